"""Settings of a run: dataclasses of arguments, and the YAML recipes and flags that fill them."""

import copy
from dataclasses import field
from typing import Any


def setting(default: Any, help: str, **more: Any) -> Any:
    """A dataclass's field: its default, its flag's help, and what else `add_argument` takes for the flag."""
    metadata = {"help": help, **more}
    if isinstance(default, (list, dict)):  # each instance has its own
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)
