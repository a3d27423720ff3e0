"""Teaching a causal language model what a sentence encoder knows: data set, LoRA fine-tuning, merge, evaluation."""
