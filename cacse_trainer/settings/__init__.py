"""Settings of a run: dataclasses of arguments, and the YAML recipes and flags that fill them."""

from dataclasses import field
from typing import Any


def setting(default: Any, help: str, **more: Any) -> Any:
    """A dataclass's field: its default, its flag's help, and what else `add_argument` takes for the flag."""
    return field(default=default, metadata={"help": help, **more})
