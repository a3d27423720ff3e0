"""What the trainer asks of a model that is none of this package's: any module with a loss and an ``embed``.

A `SentenceModel` answers for itself; for any other `torch.nn.Module` an `OwnModule` gives the answers that a
`SentenceModel` gives by default.
"""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.models.adapters import unwrapped
from cacse_trainer.models.base import SentenceConfig, SentenceModel
from cacse_trainer.models.computing import ComputeSettings


class OwnModule:
    """Answers for a module of one's own, as the contract of `SentenceModel` has them; what else it has is its own.

    Its ``forward`` takes (B, V, L) inputs by name and gives the loss, as ``{"loss": …}``, an output with it, or first
    in a tuple; its ``embed`` takes (N, L) inputs and gives (N, H). Neither need know what else a tokenizer gives.

    Args:
        module: the module.

    Raises:
        UserError: it has no ``embed``.
    """

    compute = ComputeSettings(negatives="local")
    deletion = SentenceModel.deletion
    learns_scores = SentenceModel.learns_scores
    needs_masked_copies = SentenceModel.needs_masked_copies
    has_adapter = SentenceModel.has_adapter
    loads_from_folder = False
    effective_negatives = SentenceModel.effective_negatives

    def __init__(self, module: nn.Module):
        self.module: Any = module
        self.config = SentenceConfig()
        with user_errors(
            f"{type(module).__name__}: the trainer scores a model by its embed(input_ids, attention_mask), which gives "
            "(N, H) vectors of (N, L) inputs; add it",
            AttributeError,
        ):
            _ = self.module.embed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def use(self, compute: ComputeSettings) -> None:
        """Nothing to set: it computes its loss in its own way.

        Raises:
            UserError: gradient caching is asked for.
        """
        if compute.mini_batch_size is not None:
            raise UserError(
                f"mini_batch_size: a {type(self.module).__name__} encodes its batch by itself; leave it out, or make "
                "the model a SentenceModel that encodes by self.compute.in_parts"
            )

    def embed(self, **inputs: Tensor) -> Tensor:
        """(N, L) inputs of a tokenizer → (N, H), by those that the module's own ``embed`` takes."""
        return self.module.embed(**{name: inputs[name] for name in inputs if takes(self.module.embed, name)})

    def check_exportable(self) -> None:
        """Refuse: nobody could load its folder.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"a {type(self.module).__name__} is a plain module, whose folder no AutoModel loads: keep its weights with "
            "trainer.save_model(folder), or make it a SentenceModel with a SentenceConfig, which is exported"
        )


def answers_for(model: Any) -> Any:
    """Who answers for a model in training: itself if it is a `SentenceModel`, else an `OwnModule`.

    Raises:
        UserError: it has no ``embed``.
    """
    return model if isinstance(model, SentenceModel) else OwnModule(model)


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of this name, or any."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def without_wrapper(model: Any) -> Any:
    """A model whose adapter is its own, without what peft's ``get_peft_model`` put around it or around its encoder.

    The layers and weights are those of the wrapper. A module of one's own keeps it.

    Raises:
        UserError: the model trains no adapter, or not this one.
    """
    inner = unwrapped(model)
    if isinstance(inner, SentenceModel):
        inner.adopt_adapter(None if inner is model else model.peft_config)
        return inner
    return model
