"""Early stopping counts in the log, so that a resumed run stops where one without a break does."""

from transformers import TrainerState, TrainingArguments
from transformers.trainer_callback import TrainerControl

from cacse_trainer.training.patience import Patience
from tests.conftest import StopAt


def test_it_waits_and_ends(make_trainer):
    """Without a rate no score rises: the third evaluation is the second that is no better."""
    trainer = make_trainer(learning_rate=0.0, max_steps=20, callbacks=[Patience(2)])
    trainer.train()
    scored = [entry["step"] for entry in trainer.state.log_history if "eval_stsb_spearman" in entry]
    assert trainer.state.global_step == scored[2] < 20
    assert len(scored) == 3


def test_a_resumed_run_stops_where_the_other_did(make_trainer):
    whole = make_trainer("whole", learning_rate=0.0, max_steps=20, callbacks=[Patience(3)])
    whole.train()
    cut = make_trainer("cut", learning_rate=0.0, max_steps=20, callbacks=[Patience(3), StopAt(4)])
    cut.train()
    assert cut.state.global_step == 4
    resumed = make_trainer("cut", learning_rate=0.0, max_steps=20, callbacks=[Patience(3)])
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step > 4


def test_scores_that_fall_are_better_where_less_is(tmp_path):
    args = TrainingArguments(str(tmp_path), metric_for_best_model="loss", greater_is_better=False)
    for losses, ends in (([3.0, 2.0, 1.0], False), ([1.0, 2.0, 3.0], True), ([], False)):
        state = TrainerState(log_history=[{"eval_loss": loss, "step": i} for i, loss in enumerate(losses)])
        control = TrainerControl()
        Patience(2).on_evaluate(args, state, control)
        assert control.should_training_stop is ends
