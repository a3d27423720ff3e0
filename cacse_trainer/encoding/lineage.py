"""What is known of the encoders that another one was made of, for its card: their hub ids and languages."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, try_to_load_from_cache

from cacse_trainer.data.readers import kind_of
from cacse_trainer.files import read_object
from cacse_trainer.settings.resources import resolve_resource

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
NAMED_IN_USE = re.compile(r"SentenceTransformer\(\s*['\"]([\w.-]+/[\w.-]+)['\"]")
"""How a card of sentence-transformers' kind loads the model that it tells of."""


def known_of(starts: Sequence[str]) -> dict[str, Any]:
    """``base_ids`` and ``languages`` of some encoders, as `CardFacts` takes them.

    A hub id is its own; its languages are known where its card is in the cache. A local folder is what its card loads
    in its example, else what the card or config says that it was made of.

    Args:
        starts: folders, hub ids or ``package:NAME/FOLDER``.
    """
    ids: list[str] = []
    languages: list[str] = []
    for start in starts:
        folder = Path(resolve_resource(start))
        if folder.is_dir():
            told, text = _card(folder / "README.md")
            ids += NAMED_IN_USE.findall(text)[:1] or _listed(told.get("base_model")) or _named_in_config(folder)
        elif NAME.fullmatch(start):
            ids.append(start)
            cached = try_to_load_from_cache(start, "README.md")
            told, _ = _card(Path(cached)) if isinstance(cached, str) else ({}, "")
        else:
            continue
        languages += _listed(told.get("language"))
    return {"base_ids": list(dict.fromkeys(ids)), "languages": list(dict.fromkeys(languages))}


def hub_data_sets(names: Sequence[str]) -> list[str]:
    """The hub's data sets among the names of texts, without config and split."""
    there = [name for name in names if kind_of(name) is None and not Path(name).exists()]
    return [found[0] for name in there if (found := HUB_ID.match(name)) and name[found.end() :][:1] in ("", ":", "@")]


def _card(path: Path) -> tuple[dict[str, Any], str]:
    """A card's metadata and its text; nothing where there is none, or it cannot be read."""
    try:
        card = ModelCard.load(path, ignore_metadata_errors=True)
    except (OSError, ValueError, TypeError):  # another's file, which need be no card
        return {}, ""
    return card.data.to_dict(), card.text


def _listed(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, str)]


def _named_in_config(folder: Path) -> list[str]:
    path = folder / "config.json"
    name = read_object(path, "save the model anew").get("_name_or_path") if path.is_file() else None
    return [name] if isinstance(name, str) and HUB_ID.fullmatch(name) and not Path(name).exists() else []
