"""``cacse-trainer train`` on CPU processes that accelerate takes for accelerators: it shards on those alone."""

from collections.abc import Sequence
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from cacse_trainer.cli import train


def main(arguments: Sequence[str]) -> None:
    """Run the command; its processes talk over gloo, as they would without."""
    original = AcceleratorState.__init__

    def init(state: Any, mixed_precision: Any = None, cpu: bool = False, **more: Any) -> None:
        if not AcceleratorState._shared_state:
            PartialState(cpu=True)
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU
        original(state, mixed_precision, cpu, **more)

    AcceleratorState.__init__ = init  # type: ignore[method-assign]
    train.main(arguments)
