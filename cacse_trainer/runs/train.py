"""A training run: settings → data → model → trainer → train → export."""

from cacse_trainer.errors import user_errors
from cacse_trainer.models.base import CLS_WITH_MLP
from cacse_trainer.runs.baseline import take_stated_pooling, take_stated_prompts
from cacse_trainer.runs.build import build_model, check_fit, check_weights
from cacse_trainer.runs.distill import build_ranking_term, public_choices
from cacse_trainer.runs.guide import build_guide, build_keeping
from cacse_trainer.runs.methods import check_hard_negatives, check_used
from cacse_trainer.runs.run import RunResult, TrainingRun
from cacse_trainer.runs.scoring import score_only
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments, ModelArguments
from cacse_trainer.settings.recipes import Parsed
from cacse_trainer.training.trainer import CacseTrainer


def train(
    model_args: ModelArguments, data_args: DataArguments, args: CacseTrainingArguments, parsed: Parsed | None = None
) -> RunResult:
    """What ``cacse-trainer train`` does.

    Args:
        model_args, data_args, args: the settings.
        parsed: the command line and the recipe that they come from: a flag that nothing would read is refused.

    Returns:
        What the run has left.

    Raises:
        UserError: with what to mend.
        RunError: nothing was learned, or the export does not give the model's vectors.
    """
    parsed = parsed or Parsed((model_args, data_args, args))
    if not args.do_train:
        single = model_args.model is not None
        return score_only(
            parsed,
            [model_args.model] if single else [model_args.tower_a, model_args.tower_b],
            model_args.pooling,
            head=single and not model_args.mlp_only_train,
            adapter=model_args.adapter,
            trust_remote_code=model_args.trust_remote_code,
            prompt_template=model_args.prompt_template,
            append_eos=model_args.append_eos,
            bidirectional_start_layer=model_args.bidirectional_start_layer,
        )
    if model_args.pooling == CLS_WITH_MLP and "mlp_only_train" not in parsed.flags:
        model_args.mlp_only_train = None  # a recipe's, which the flag contradicts
    if (model_args.model is None) != (model_args.tower_a is None):  # else there is none, or too many: see build_model
        take_stated_pooling(model_args)
        check_used(parsed)
    training = TrainingRun(parsed)
    columns = training.data_facts.get("columns", [])
    check_hard_negatives(parsed, len(columns))
    model, tokenizer = build_model(model_args)
    check_weights(model)
    starts = list(dict.fromkeys(filter(None, (model_args.model, model_args.tower_a, model_args.tower_b))))
    take_stated_prompts(data_args, starts)
    if args.export:
        model.check_exportable()
    if columns:
        model.check_rows(columns, training.train_dataset["score"] if training.data_facts.get("labelled") else None)
    for length in (data_args.max_seq_length, data_args.eval_max_seq_length):
        if length is not None:
            check_fit(model, tokenizer, length)
    guide = build_guide(model_args, data_args, args)
    keeping = build_keeping(model_args, data_args, args, tokenizer)
    ranking_term = build_ranking_term(model_args, training)
    with user_errors("settings", ImportError, RuntimeError):  # a logger or an optimizer that is not installed
        trainer = CacseTrainer(
            model=model,
            args=args,
            train_dataset=training.train_dataset,
            eval_dataset=training.dev_sets or None,
            processing_class=tokenizer,
            max_seq_length=data_args.max_seq_length,
            eval_max_seq_length=data_args.eval_max_seq_length,
            mask_probability=data_args.mask_probability,
            guide=guide,
            keeping=keeping,
            ranking_term=ranking_term,
            query_prompt=data_args.query_prompt or "",
            document_prompt=data_args.document_prompt or "",
        )
    taught = {"teacher": {"encoders": public_choices(model_args.teachers)}} if model_args.teachers else {}
    return training.execute(trainer, starts, taught)
