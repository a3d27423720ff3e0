"""The published classifier settings by mode.

``test`` is what papers report; ``fasttest`` and ``dev`` share a cheaper setting for prototyping (``dev`` is the same
run, of which ``devacc`` is reported).
"""

from __future__ import annotations

import copy
from typing import Any

from senteval.errors import SettingsError

_THOROUGH = {
    "usepytorch": True,
    "kfold": 10,
    "classifier": {"nhid": 0, "optim": "adam", "batch_size": 64, "tenacity": 5, "epoch_size": 4},
}
_QUICK = {
    "usepytorch": True,
    "kfold": 5,
    "classifier": {"nhid": 0, "optim": "rmsprop", "batch_size": 128, "tenacity": 3, "epoch_size": 2},
}
MODES: dict[str, dict[str, Any]] = {"test": _THOROUGH, "fasttest": _QUICK, "dev": _QUICK}


def classifier_settings(mode: str) -> dict[str, Any]:
    """Engine parameters of a mode: ``usepytorch``, ``kfold`` and the ``classifier`` dictionary.

    Args:
        mode: "test", "dev" or "fasttest".

    Returns:
        A fresh dictionary to merge into the engine's parameters.

    Raises:
        SettingsError: another mode.

    Example:
        >>> classifier_settings("fasttest")["classifier"]["optim"]
        'rmsprop'
    """
    if mode not in MODES:
        raise SettingsError(f"unknown mode {mode!r}; choose from {', '.join(MODES)}")
    return copy.deepcopy(MODES[mode])
