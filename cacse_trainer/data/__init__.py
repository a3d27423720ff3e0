"""Raw text in, batches out: sources of training text, dev sets with gold scores, and the collator that tokenises."""

from cacse_trainer.data.collator import ContrastiveCollator
from cacse_trainer.data.masking import Masking, mask_tokens
from cacse_trainer.data.pairs import has_labels, load_pairs
from cacse_trainer.data.retrieval import RetrievalSet, load_retrieval
from cacse_trainer.data.sentences import load_sentences, load_sentences_with_stats

__all__ = [
    "ContrastiveCollator",
    "Masking",
    "RetrievalSet",
    "has_labels",
    "load_pairs",
    "load_retrieval",
    "load_sentences",
    "load_sentences_with_stats",
    "mask_tokens",
]
