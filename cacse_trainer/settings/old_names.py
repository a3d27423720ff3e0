"""What the scripts of the original projects call their flags, and what to type here; for the answer to one of them.

The page docs/migrating.md has a row for each.
"""

NOTHING = "nothing: leave it out"
SIMCSE = {
    "model_name_or_path": "--model",
    "temp": "--contrastive_temperature",
    "pooler_type": "--pooling",
    "do_mlm": "--mlm_weight 0.1",
    "mlm_probability": "--mask_probability",
    "model_type": f"{NOTHING}, it is read from the config",
    "config_name": f"{NOTHING}, the config is the model's",
    "tokenizer_name": f"{NOTHING}, the tokenizer is the model's",
    "cache_dir": "the environment variable HF_HUB_CACHE",
    "use_fast_tokenizer": f"{NOTHING}, it is fast",
    "model_revision": "--model FOLDER, of a snapshot that hf download --revision made",
    "use_auth_token": "the environment variable HF_TOKEN, or hf auth login",
    "dataset_name": "--train_file NAME",
    "dataset_config_name": "--train_file FILE, of the part that is meant",
    "overwrite_cache": f"{NOTHING}, no text is cached",
    "validation_split_percentage": "--dev_file NAME=PATH",
    "preprocessing_num_workers": "--dataloader_num_workers",
    "pad_to_max_length": f"{NOTHING}, batches are padded to their longest row",
    "pooler": "--pooling (cls there is cls_with_mlp)",
    "task_set": "--suite sts, transfer or full; na: --tasks alone",
    "path": "cacse-trainer import --checkpoint FOLDER",
}
TRAINING_ARGUMENTS = {
    "evaluation_strategy": "--eval_strategy",
    "no_cuda": "--use_cpu",
    "warmup_ratio": "--warmup_steps 0.1 (a share, below 1)",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR",
    "per_gpu_train_batch_size": "--per_device_train_batch_size",
    "per_gpu_eval_batch_size": "--per_device_eval_batch_size",
    "group_by_length": "--train_sampling_strategy group_by_length",
    "sharded_ddp": "--fsdp",
}
DIFFCSE = {
    "generator_name": "--generator",
    "masking_ratio": "--mask_probability",
    "lambda_weight": "--rtd_loss_weight",
    "batchnorm": "--projection batch_norm",
    "before_mlp": f"{NOTHING}, the discriminator sees the vector behind the projection",
}
CACSE = {
    "submodel1_path": "--tower_a",
    "submodel2_path": "--tower_b",
    "source_of_constraint_layer": "--constraint",
    "cross_head_num": "--cascade_heads",
    "begin_layer": "--cascade_start_layer",
    "constraint_trainstate_pos": "--constraint_layers",
    "hylambda": "--cascade_loss_weight",
    "output_path": "--output_dir",
    "lr": "--learning_rate",
    "epochs": "--num_train_epochs",
    "batch_size_train": "--per_device_train_batch_size",
    "batch_size_eval": "--per_device_eval_batch_size",
    "num_workers": "--dataloader_num_workers",
    "eval_step": "--eval_steps",
    "max_len": "--max_seq_length",
    "pretrain_model_path": "--student",
    "path_to_UC": "--teachers path=CACSE,weight=0.25 path=UC,weight=0.75",
    "alpha": "the weights of --teachers path=…,weight=…",
    "model_name_UC": "evaluate --model CACSE --model UC --weights 0.25 0.75",
}
PAIRS = {
    "pretrain_model_path_1": "--tower_a",
    "pretrain_model_path_2": "--tower_b",
    "pretrain_subencoder_1": "--tower_a",
    "pretrain_subencoder_2": "--tower_b",
    "pretrain_tokenizer": f"{NOTHING}, the tokenizer is the tower's",
    "tokenizer_path": f"{NOTHING}, the tokenizer is the model's: put its files into a folder that has none",
    "train_mode": f"{NOTHING}, the columns of --train_file say it",
    "num_ca_layers": f"{NOTHING}, JTCSE is not trained here, its released models are read",
    "model_name_or_path_1": "evaluate --model A --model B",
    "model_name_or_path_2": "evaluate --model A --model B",
    "model_path1": "evaluate --model A --model B",
    "model_path2": "evaluate --model A --model B",
    "ensemble_UC": "evaluate --model A --model B --model UC",
    "device": "--use_cpu, or the environment variable CUDA_VISIBLE_DEVICES",
}
"""Of TNCSE and JTCSE."""
DEMO = {
    "sentences_dir": "demo --corpus FILE",
    "example_sentences": "demo --corpus FILE",
    "example_query": "search --query, or the field of the page",
    "ip": "demo --host",
    "load_light": f"{NOTHING}, the script does not read it",
}
"""Of SimCSE's demo."""
BELLM = {
    "train_name_or_path": "--train_file",
    "train_subset_name": "--train_file FILE, of the part that is meant",
    "train_split_name": "--train_file FILE, of the split that is meant",
    "valid_name_or_path": "--dev_file",
    "valid_subset_name": "--dev_file",
    "pretrained_lora_path": "--adapter",
    "pretrained_model_path": "--model",
    "save_dir": "--output_dir",
    "dataset_seed": "--data_seed",
    "workers": "--dataloader_num_workers",
    "cosine_w": "--cosine_weight",
    "ibn_w": "--ibn_weight",
    "angle_w": "--angle_weight",
    "angle_tau": "--ranking_scale",
    "cosine_tau": "--ranking_scale",
    "ibn_tau": "--contrastive_temperature (1/τ)",
    "is_llm": f"{NOTHING}, it is read from the model",
    "apply_lora": "--lora_r",
    "load_kbit": "--load_in_4bit or --load_in_8bit",
    "start_bilayer_index": "--bidirectional_start_layer",
    "apply_billm": "--bidirectional_start_layer",
    "billm_model_class": f"{NOTHING}, it is read from the model",
    "pooling_strategy": "--pooling (avg: mean, last: last_token)",
    "batch_size": "--per_device_train_batch_size",
    "maxlen": "--max_seq_length",
    "torch_dtype": "--base_dtype or --bf16",
    "apply_tdmse": f"{NOTHING}, two-dimensional Matryoshka is not there; --matryoshka_dims is",
    "tdmse_kl_temperature": f"{NOTHING}, two-dimensional Matryoshka is not there",
    "fixed_teacher_name_or_path": "cacse-trainer distill --teacher",
    "wandb_project": "the environment variable WANDB_PROJECT, with --report_to wandb",
    "wandb_log_model": "the environment variable WANDB_LOG_MODEL",
    "lora_name_or_path": "--adapter",
    "prompt": "--prompt_template",
    "apply_bfloat16": "--bf16",
    "max_length": "--max_seq_length",
    "checkpoint_path": "--model CHECKPOINT",
    "lora_weight": "--adapter",
    "avg": f"{NOTHING}, it is a word in a log of the script",
    "n_layer": f"{NOTHING}, a decoder is read through all its layers",
}
CFT = {"train_data_path": "--train_file", "temperature": "--contrastive_temperature"}
COUNTERPARTS = {**DEMO, **PAIRS, **BELLM, **CACSE, **DIFFCSE, **TRAINING_ARGUMENTS, **CFT, **SIMCSE}
"""Old flag → what to type."""


def counterpart(flag: str) -> str | None:
    """What to type for a flag of an original project's script, ``--temp``; None: none of them has it."""
    return COUNTERPARTS.get(flag.removeprefix("--"))
