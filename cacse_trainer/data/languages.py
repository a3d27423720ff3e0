"""The language of some text: by its script, then by py3langid where it is installed (extra: language), else a guess."""

import importlib.util
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

SCRIPTS = {"HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "CJK": "zh", "THAI": "th", "GREEK": "el", "HEBREW": "he"}
"""Scripts of one language, as Unicode names their letters; text with a share of kana is Japanese."""
ENGLISH = "the of and to in is a that for it with on as was are by this be from or an at not you".split()  # noqa: SIM905
"""The commonest English words."""
EXTRA = "pip install 'cacse-trainer[language]'"


class Language(NamedTuple):
    """A language by its ISO 639-1 code, ``""`` where it could not be told, and what it was told by."""

    code: str
    told_by: str


def language_of(texts: Iterable[str]) -> Language:
    """The language of most of some texts; a few hundred are enough."""
    joined = " ".join(texts)[:200_000]
    letters = [letter for letter in joined if letter.isalpha()]
    scripts = Counter(unicodedata.name(letter, "?").split()[0].split("-")[0] for letter in letters[:20_000])
    total = sum(scripts.values())
    if not total:
        return Language("", "it has no letters")
    if scripts["HIRAGANA"] + scripts["KATAKANA"] > 0.05 * total:
        return Language("ja", "by its script")
    for script, code in SCRIPTS.items():
        if scripts[script] > 0.3 * total:
            return Language(code, "by its script")
    if importlib.util.find_spec("py3langid") is not None:
        import py3langid  # an extra

        return Language(str(py3langid.classify(joined[:20_000])[0]), "by py3langid")
    words = re.findall(r"[a-z]+", joined.lower())[:20_000]
    if scripts["LATIN"] > 0.9 * total and sum(word in ENGLISH for word in words) > 0.15 * len(words):
        return Language("en", "by its commonest words")
    return Language("", f"no detector is installed: {EXTRA}")
