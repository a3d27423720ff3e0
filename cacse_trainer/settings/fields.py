"""A setting in one line: the field of a dataclass whose help text the command line shows."""

import copy
from dataclasses import field
from typing import Any


def setting(default: Any, help: str, **more: Any) -> Any:
    """A field of a dataclass.

    Args:
        default: its value; each instance has its own copy of a list or a mapping.
        help: for ``--help``.
        more: further metadata.
    """
    metadata = {"help": help, **more}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)
