"""A run's push of its export: where to, and when."""

import logging
from collections.abc import Iterable
from pathlib import Path

from cacse_trainer.encoding.hub import MAIN, HubError, HubTarget, prepare_repo, push_folders
from cacse_trainer.errors import UserError
from cacse_trainer.settings.arguments import CacseTrainingArguments

logger = logging.getLogger(__name__)


def hub_target(args: CacseTrainingArguments) -> HubTarget | None:
    """Where a training run pushes its export; `Trainer`'s own pushing, of checkpoints, is switched off.

    Raises:
        UserError: no name is given, or there is no export to push.
    """
    token, args.hub_token = args.hub_token, None  # or `Trainer` writes it into training_args.bin
    if not args.push_to_hub:
        return None
    args.push_to_hub = False
    if not args.hub_model_id:
        raise UserError("push_to_hub needs a name: give --hub_model_id OWNER/NAME")
    if not args.export:
        raise UserError("push_to_hub pushes the exported encoders: drop --export false, or --push_to_hub")
    return HubTarget(args.hub_model_id, args.hub_private_repo, args.hub_revision, token)


def check_hub(target: HubTarget) -> None:
    """Make the repository before the training: a refused token ends the run now, an unreachable hub is only said.

    Raises:
        UserError: the token is refused.
    """
    try:
        prepare_repo(target)
    except HubError as error:
        logger.warning("%s; the training goes on, and the push is tried again at its end", error)


def push_export(target: HubTarget, folder: Path, names: Iterable[str]) -> str:
    """Push the exported encoders of these names, the main one to the root; returns the commit's address.

    Raises:
        UserError, HubError: see `push_folders`.
    """
    ordered = sorted(names, key=lambda name: name not in MAIN)
    return push_folders([folder / name for name in ordered], target)
