"""Exported folders to the hub: one commit that puts them in the place of what an earlier push of ours wrote there.

The repository holds the list of the pushed files, as a folder does (`RECORD`). What lies there and is not on it stays.

The main encoder lies in the repository's root, so that ``SentenceTransformer("owner/name")`` and ``AutoModel`` load
it; CACSE's towers lie beside it in folders. Checkpoints are pushed by `push_checkpoint` alone, which a trainer calls
whose arguments say ``push_to_hub``. Whatever fails, the exported folder stays whole, and so does what the hub had
before: a commit is taken as a whole or not at all.
"""

import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalTokenNotFoundError

from cacse_trainer.encoding.model_card import LOCAL_PATH
from cacse_trainer.errors import RunError, UserError, one_line
from cacse_trainer.files import CARD, RECORD, WEIGHTS, is_our_card, listed, named_like

logger = logging.getLogger(__name__)

MAIN = ("ensemble", "encoder", "student")
"""Names of exported folders that go to the repository's root; the others keep theirs."""
REFUSED = (401, 403)


class HubError(RunError):
    """The push did not succeed; nothing that was trained is lost."""


@dataclass(frozen=True)
class HubTarget:
    """Where to push.

    Args:
        repo_id: ``owner/name``.
        private: of a new repository; None: the owner's default.
        revision: branch, made when missing; None: main.
        token: None takes the usual places (``HF_TOKEN``, ``hf auth login``).
    """

    repo_id: str
    private: bool | None = None
    revision: str | None = None
    token: str | None = None


def prepare_repo(target: HubTarget) -> None:
    """Make the repository and the branch where they are missing: a refused token is known before the training.

    Raises:
        UserError: the token is refused or the name is none.
        HubError: the hub cannot be reached.
    """
    api = HfApi(token=target.token)
    try:
        api.whoami()  # create_repo is content with a repository that is there, whoever asks
        api.create_repo(target.repo_id, private=target.private, exist_ok=True)
        if target.revision is not None:
            api.create_branch(target.repo_id, branch=target.revision, exist_ok=True)
    except LocalTokenNotFoundError as error:
        raise UserError(f"hub {target.repo_id}: no token; log in with `hf auth login`, or set HF_TOKEN") from error
    except HFValidationError as error:
        raise UserError(f"hub_model_id {target.repo_id!r}: {one_line(error)}") from error
    except HfHubHTTPError as error:
        raise _explained(target, error, "nothing was pushed") from error
    except (HTTPError, OSError) as error:
        raise HubError(f"hub {target.repo_id}: cannot be reached ({one_line(error)})") from error


def push_folders(
    folders: Sequence[Path],
    target: HubTarget,
    message: str | None = None,
    again: str | None = None,
    left_out: Collection[str] = (),
) -> str:
    """Push exported folders; returns the commit's address.

    Args:
        folders: one of `MAIN`, or a single one of any name, for the root; the others beside it.
        target: where.
        message: of the commit; default: what is pushed.
        again: how to push them once more, if it does not succeed; default: by the command, for folders that stay.
        left_out: patterns of names that are not pushed.

    Raises:
        UserError: the token is refused.
        HubError: the hub cannot be reached, or the upload broke off. Either way the folders are whole, and the message
            says how to push them again.
    """
    prepare_repo(target)
    api = HfApi(token=target.token)
    folders = sorted(folders, key=lambda folder: folder.name not in MAIN)  # the main one names the push
    kept = again or (
        f"nothing is lost: {folders[0]} is whole; push it with cacse-trainer export --folder {folders[0]} "
        f"--push_to_hub --hub_model_id {target.repo_id}"
    )
    try:
        files = {
            name: content
            for name, content in list_files(folders, target.repo_id).items()
            if not any(fnmatch(name, pattern) for pattern in left_out)
        }
        files[RECORD] = json.dumps(sorted(files), indent=2).encode()
        added = [CommitOperationAdd(name, content) for name, content in files.items()]
        info = api.create_commit(
            target.repo_id,
            [*added, *map(CommitOperationDelete, _stale(api, target, files))],
            commit_message=message or f"Export of {folders[0].resolve().name} by cacse-trainer",
            revision=target.revision,
        )
    except HfHubHTTPError as error:
        raise _explained(target, error, kept) from error
    except (HTTPError, OSError, RuntimeError) as error:
        reason = one_line(error.__cause__ or error)
        raise HubError(f"hub {target.repo_id}: the upload broke off ({reason}); {kept}") from error
    logger.info("pushed %d files to %s", len(files), target.repo_id)
    return str(info.commit_url)


def push_checkpoint(
    folder: Path, target: HubTarget, message: str, left_out: Collection[str], beside: str | None = None
) -> None:
    """Push a training's checkpoint: its model to the repository's root, in the place of an earlier one.

    Args:
        folder: the checkpoint, which stays as it is meanwhile.
        target: where.
        message: of the commit.
        left_out: patterns of what is no part of the model.
        beside: the whole checkpoint, to be resumed from, goes into this folder of the repository; None: nowhere.

    Raises:
        UserError: the token is refused.
        HubError: the hub cannot be reached, or the upload broke off.
    """
    kept = f"nothing is lost: {folder} is whole"
    push_folders([folder], target, message, kept, left_out)
    if beside is not None:
        api = HfApi(token=target.token)
        try:
            api.upload_folder(
                repo_id=target.repo_id,
                folder_path=folder,
                path_in_repo=beside,
                commit_message=f"{message}, checkpoint",
                revision=target.revision,
            )
        except (HfHubHTTPError, HTTPError, OSError, RuntimeError) as error:
            raise HubError(f"hub {target.repo_id}: {beside} was not pushed ({one_line(error)}); {kept}") from error


def list_files(folders: Sequence[Path], repo_id: str) -> dict[str, str | bytes]:
    """Names in the repository → a local path, or the bytes of a card with the repository's name in it."""
    found: dict[str, str | bytes] = {}
    for folder in folders:
        prefix = "" if len(folders) == 1 or folder.name in MAIN else f"{folder.name}/"
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECORD):
            content: str | bytes = str(path)
            if path.name == "README.md":
                content = path.read_text(encoding="utf-8").replace(LOCAL_PATH, repo_id).encode()
            found[prefix + path.relative_to(folder).as_posix()] = content
    return found


def _stale(api: HfApi, target: HubTarget, files: Collection[str]) -> list[str]:
    """What an earlier push of ours left in the repository, and this one lacks.

    A version that kept no list is known by its card; of its files only weights and adapters go, which would be loaded
    instead of these.
    """
    there = set(api.list_repo_files(target.repo_id, revision=target.revision))

    def content(name: str) -> Path:
        return Path(api.hf_hub_download(target.repo_id, name, revision=target.revision))

    ours: set[str] = set()
    if RECORD in there:
        ours = set(listed(content(RECORD)))
    elif CARD in there and is_our_card(content(CARD).read_text(encoding="utf-8", errors="replace")):
        places = {name.rpartition("/")[0] for name in files}
        ours = {name for name in there if named_like([name.rpartition("/")[2]], WEIGHTS)}
        ours = {name for name in ours if name.rpartition("/")[0] in places}
    return sorted(ours & there - set(files))


def _explained(target: HubTarget, error: HfHubHTTPError, kept: str) -> Exception:
    status = error.response.status_code if error.response is not None else None
    if status in REFUSED:
        return UserError(
            f"hub {target.repo_id}: the token was refused ({status}); log in with `hf auth login`, set HF_TOKEN, or "
            f"give --hub_token of an account that may write there; {kept}"
        )
    return HubError(f"hub {target.repo_id}: {one_line(error)}; {kept}")
