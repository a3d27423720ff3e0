"""The transfer tasks' dev scores while a model trains, and the dev sets that are chosen by name."""

import json

import pytest

from cacse_trainer.cli.main import main
from cacse_trainer.encoding.encoder import SentenceEncoder
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.results import TRANSFER
from cacse_trainer.evaluation.transfer_dev import TransferDevScorer
from cacse_trainer.runs.preparation import dev_entries
from cacse_trainer.settings.arguments import DataArguments


def test_scores_are_sentevals_dev_scores(tiny_towers, senteval_sample):
    import senteval

    encoder = SentenceEncoder(tiny_towers("bert")[0], "mean", device="cpu")
    scorer = TransferDevScorer(senteval_sample)
    found = scorer(encoder.embedder)
    assert set(found) == {f"transfer_{name}" for name in (*TRANSFER, "avg")}
    params = {"task_path": senteval_sample, **senteval.classifier_settings("dev"), "seed": 1111}
    batcher = lambda params, batch: encoder.vectors([" ".join(tokens) for tokens in batch])  # noqa: E731
    assert found["transfer_TREC"] == pytest.approx(senteval.SE(params, batcher).eval("TREC")["devacc"], abs=1.0)


def test_without_data(tmp_path):
    with pytest.raises(UserError, match=r"bash SentEval/data/downstream/download_dataset.sh"):
        TransferDevScorer(tmp_path)


def test_dev_sets_by_name(senteval_sample, tmp_path):
    chosen = DataArguments(eval_sets=["stsb", "sickr", "mine=x.tsv"], senteval_data=str(senteval_sample))
    entries = dev_entries(chosen)
    assert entries[0].endswith("STSBenchmark/sts-dev.csv") and entries[1].endswith("SICK_trial.txt")
    assert entries[2] == "mine=x.tsv"
    assert dev_entries(DataArguments()) is None
    assert dev_entries(DataArguments(eval_sets=["stsb"], senteval_data=str(tmp_path)))[0].startswith("stsb=sentence-")
    with pytest.raises(UserError, match="did you mean stsb"):
        dev_entries(DataArguments(eval_sets=["stsd"]))
    with pytest.raises(UserError, match="SICK_trial"):
        dev_entries(DataArguments(eval_sets=["sickr"], senteval_data=str(tmp_path)))


def test_training_with_both(tiny_towers, text_file, senteval_sample, tmp_path):
    a, b, constraint = tiny_towers("bert")
    flags = f"--tower_a {a} --tower_b {b} --constraint {constraint} --cascade_start_layer 2 --constraint_layers 1"
    flags += f" --train_file {text_file} --per_device_train_batch_size 8 --max_steps 2 --eval_strategy steps"
    flags += f" --eval_steps 2 --report_to none --output_dir {tmp_path / 'run'} --eval_sets stsb sickr --eval_transfer"
    flags += f" --senteval_data {senteval_sample} --export false --use_cpu --disable_tqdm true"
    assert main(["train", *flags.split()]) == 0
    history = json.loads((tmp_path / "run" / "training_report.json").read_text())["log_history"]
    last = [entry for entry in history if "eval_transfer_avg" in entry][-1]
    assert last["step"] == 2 and {"eval_stsb_spearman", "eval_sickr_spearman", "eval_transfer_MR"} <= last.keys()
