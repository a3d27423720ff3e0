"""Teachers of a distillation: how they are loaded, and their vectors kept in a file."""

from cacse_trainer.teachers.cache import cached_teacher_embeddings
from cacse_trainer.teachers.loading import Member, load_ensemble, load_members

__all__ = ["Member", "cached_teacher_embeddings", "load_ensemble", "load_members"]
