"""A model made of encoders that read one vocabulary: its word tables, and their size."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel


class TokenReader(PreTrainedModel):
    """Base of `SentenceModel`: what transformers asks of a model's word embeddings, for one of several encoders."""

    def readers(self) -> list[Any]:
        """The models of transformers in it that read the tokens, each with a word table; none: it has one itself."""
        return [part for part in self.children() if isinstance(part, PreTrainedModel)]

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings, of the first encoder; or the first table of all."""
        readers = self.readers()
        if readers:
            return readers[0].get_input_embeddings()
        return next(module for module in self.modules() if isinstance(module, nn.Embedding))

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put a table in the place of `get_input_embeddings`'."""
        readers, table = self.readers(), self.get_input_embeddings()
        if readers:
            readers[0].set_input_embeddings(value)
        else:
            self.set_submodule(next(name for name, module in self.named_modules() if module is table), value)

    def check_resizable(self) -> None:
        """Refuse, before anything is changed, another size of the vocabulary.

        Raises:
            ValueError: with what to do instead.
        """

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """As `PreTrainedModel.resize_token_embeddings`, of every part that reads the tokens.

        Raises:
            ValueError: see `check_resizable`; nothing is changed then.
        """
        self.check_resizable()
        sizes = (new_num_tokens, pad_to_multiple_of, mean_resizing)
        if not self.readers():
            return super().resize_token_embeddings(*sizes)
        for encoder in self.readers():
            encoder.resize_token_embeddings(*sizes)
        table: Any = self.get_input_embeddings()
        size, head = table.num_embeddings, self.get_output_embeddings()
        if head is not None:
            self.set_output_embeddings(self._get_resized_lm_head(head, size, mean_resizing=mean_resizing))
        self.config.vocab_size = self.vocab_size = size  # as the library's own models have it
        return table
