"""The settings that matter of the commands with recipes: their short help, by group, with an example each."""

Essentials = dict[str, dict[str, str]]
"""Groups of examples, ``--flag value``, with what they do."""

_TEXT = {
    "--train_file mine.csv": "txt (a sentence a line), csv, tsv, jsonl, parquet, a hub data set, sample:FILE",
    "--text_columns question answer": "one, a pair, or a pair and its hard negatives; known names are found",
}
_DEV = {
    "--dev_file mydev=dev.csv": "graded pairs, or queries with documents: they choose the best step",
    "--held_out_rows 400": "or: so many rows of the text choose and judge, and are not trained on",
    "--test_file mytest=test.csv": "held out: the verdict against the start is told from it",
    "--evaluation none": "no dev set: the last step is the result",
    "--eval_steps 50": "score and save every so many steps (save_steps follows)",
}
_LENGTH = {
    "--max_seq_length 64": "training sentences are cut to so many tokens",
    "--query_prompt 'query: '": "before queries, and document_prompt; default: what the start states",
}
_STEPS = {
    "--num_train_epochs 1": "passes over the text",
    "--max_steps 500": "instead: so many steps",
    "--per_device_train_batch_size 64": "rows a step; each row's negatives are the other rows",
    "--learning_rate 3e-5": "of the largest step",
    "--warmup_steps 0.1": "a share of the steps, or a number of them",
    "--seed 1": "of everything drawn",
}
_MACHINE = {
    "--bf16 auto": "bfloat16 where it is faster here; true, false",
    "--mini_batch_size 32": "encode so many at once; the loss still sees the whole batch",
    "--use_cpu": "no GPU",
    "--check": "check settings, text and models, train nothing",
}
_OUTPUT = {
    "--output_dir runs/mine": "checkpoints, export/ and report.html",
    "--overwrite_output_dir": "replace an earlier run there",
    "--resume_from_checkpoint last": "go on with an interrupted run",
    "--push_to_hub --hub_model_id me/mine": "push the exported encoder",
    "--quiet": "no progress; --json: the result as one JSON object",
}
_RECIPE = "a recipe, by name or path; flags win over it; --help all lists them"

ESSENTIALS: dict[str, Essentials] = {
    "train": {
        "start": {
            "--config simcse/minilm": _RECIPE,
            "--model intfloat/multilingual-e5-small": "the encoder to train: folder, hub id or package:NAME/FOLDER",
            "--tower_a bert-base-uncased --tower_b princeton-nlp/unsup-simcse-bert-base-uncased": "CACSE: two encoders",
            "--pooling mean": "cls, mean, last_token, …; default: what the start states",
        },
        "text": {**_TEXT, "--label_column score": "graded or 0/1 pairs: the number a pair, for cosent and angle"},
        "method": {
            "--objective cosent": "info_nce (text, pairs, triplets), cosent or angle (labelled pairs), …",
            "--contrastive_temperature 0.05": "τ: smaller looks harder at the nearest negatives",
            "--hard_negative_weight 0.0": "more weight for the hard negatives of a row",
            "--guide start": "leave out negatives that an encoder finds as close as the positive",
            "--teachers path=runs/a/export/encoder": "on single sentences: learn these encoders' ranking, too",
            "--matryoshka_dims 384 128 64": "vectors that may be cut to so many dimensions",
            "--lora_r 16": "train an adapter, not the weights",
        },
        "training": {**_STEPS, **_LENGTH},
        "judged by": _DEV,
        "machine": _MACHINE,
        "output": _OUTPUT,
    },
    "distill": {
        "who learns from whom": {
            "--config distill/quickstart": _RECIPE,
            "--student nreimers/MiniLM-L6-H384-uncased": "the encoder that learns",
            "--teacher runs/cacse/export": "whose vectors it learns: any encoder, or a folder with towers",
            "--teachers path=a,weight=0.25 path=b,weight=0.75": "instead: several, weighted",
            "--objective vectors": "vectors, or the teacher's ranking: listnet, listmle",
            "--contrastive_weight 0.01": "share of the contrastive loss beside the teacher's vectors",
            "--teacher_cache cache/": "the teacher's vectors are computed once and kept there",
            "--pooling cls": "the student's; default: what its folder states",
        },
        "text": _TEXT,
        "training": {**_STEPS, **_LENGTH},
        "judged by": _DEV,
        "machine": _MACHINE,
        "output": _OUTPUT,
    },
    "adapt": {
        "text and start": {
            "--text my_documents/": "folders or files (txt, md, html, pdf, docx, tables), or hub data sets",
            "--config adapt/multilingual": f"{_RECIPE}; default: adapt/english_small",
            "--model intfloat/multilingual-e5-small": "the encoder to adapt; default: the recipe's",
            "--title_column title": "of tables, and body_column; known names are found",
        },
        "rows": {
            "--rows title=1 heading=1 cloze=0.5": "kinds of rows, with shares; default: those of the text's structure",
            "--pairs_file clicks.csv": "pairs of your own",
            "--question_writer Qwen/Qwen2.5-0.5B-Instruct": "a model, or a server's URL, that writes questions",
            "--mined_negatives 3": "hard negatives a row",
            "--near_duplicates 0.8": "leave out documents so much like an earlier one",
        },
        "judged by": {
            "--dev_queries my_queries.csv": "your own queries with their documents, to choose by",
            "--test_queries more.csv": "the same, to judge by",
            "--general_text general.txt": "sentences whose similarities should change little",
        },
        "training": {
            "--budget 30": "minutes for all of it on this machine",
            "--max_steps 200": "instead: so many steps",
            **{flag: what for flag, what in _STEPS.items() if flag.startswith(("--per", "--learning"))},
        },
        "output": {
            "--output_dir runs/adapted": "encoder/, report.html, adaptation.json",
            "--check": "rows and minutes; nothing is kept",
            "--onnx": "write the encoder as ONNX, too; --static: as a table",
            "--quiet": "no progress; --json: the result as one JSON object",
        },
    },
    "instruct": {
        "what": {
            "--config instruct/tiny": _RECIPE,
            "--encoder runs/cacse/export/ensemble": "whose similarity scores are taught",
            "--scores gold": "instead: the scores of the pairs themselves",
            "--pairs mine=pairs.tsv": "the pairs: stsb, sickr, or files of your own",
            "--stages data train": "only these of data, train, merge, evaluate",
            "--plan": "say what would be done",
        },
        "training": {
            **{flag: what for flag, what in _STEPS.items() if flag != "--per_device_train_batch_size 64"},
            "--per_device_train_batch_size 8": "records a step",
            "--bf16 auto": _MACHINE["--bf16 auto"],
        },
        "output": {
            "--output_dir runs/instruct": "a folder a stage",
            "--quiet": "no progress; --json: the result as one JSON object",
        },
    },
}

WITHOUT_EFFECT = (
    *("do_predict", "local_rank"),  # of scripts and launchers
    *("remove_unused_columns", "label_names", "label_smoothing_factor", "average_tokens_across_devices"),
    *("use_cache", "use_liger_kernel", "liger_kernel_config"),  # of language models
    *("prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps"),
    *("include_for_metrics", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval"),  # the dev sets are encoded
    *("length_column_name", "hub_strategy", "hub_always_push"),  # raw text; checkpoints are never pushed
    *("parallelism_config",),  # no word of a command line
)
"""Fields of transformers' `TrainingArguments` that change nothing here; they are taken, and no help tells of them."""
FORMER = {"gradient_checkpointing": "activation_checkpointing"}
"""Older names in `TrainingArguments`, with their ``_kwargs``; no help tells of them where the newer one is there."""
