"""Languages by script, by a detector where one is installed, else English or not told."""

import sys
from types import ModuleType

import pytest

from cacse_trainer.data.languages import language_of


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("今天天气很好，我们去公园散步。", "zh"),
        ("今日は天気がいいので公園を散歩します。", "ja"),
        ("오늘은 날씨가 좋아서 공원에 갑니다.", "ko"),
        ("The pump of the house does not start in the winter.", "en"),
        ("12 + 30 = 42", ""),
    ],
)
def test_by_script_and_common_words(text, code, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert language_of([text] * 3).code == code


def test_the_extra_tells_the_others(monkeypatch):
    german = ["Die Pumpe im Haus springt nicht an.", "Wir fahren morgen mit dem Zug nach Berlin."]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert language_of(german) == ("", "no detector is installed: pip install 'cacse-trainer[language]'")
    detector = ModuleType("py3langid")
    detector.classify = lambda text: ("de", -1.0)
    monkeypatch.setitem(sys.modules, "py3langid", detector)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: detector)
    assert language_of(german) == ("de", "by py3langid")
