"""ONNX graphs of exported folders: the same vectors in onnxruntime, an int8 one, its cost on a dev set."""

import json

import pytest

from cacse_trainer.cli import export
from cacse_trainer.cli.common import run
from cacse_trainer.encoding.onnx import OnnxEncoder
from cacse_trainer.export.graphs import tell_card
from cacse_trainer.export.onnx import ONNX, export_onnx
from cacse_trainer.files import RECORD, foreign
from tests.graph_folders import decoder_folder, make_folder
from tests.tolerances import noise

pytestmark = pytest.mark.slow  # tracing takes some ten seconds a graph
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("bert", {"pooling": "cls_before_pooler"}), ("roberta", {"pooling": "mean"}), ("bert", {"pooling": "cls"})],
)
def test_the_graph_gives_the_vectors(tiny_towers, tiny_tokenizer, tmp_path, kind, settings):
    """For raw CLS, mean, and a head of dense and tanh; other numbers of rows and tokens than it was traced with."""
    folder = make_folder(tiny_towers, tiny_tokenizer, tmp_path, kind, **settings)
    report = export_onnx(folder)
    assert report["largest_difference"]["float32"] <= noise(32**0.5)  # the largest entry after a LayerNorm
    assert report["largest_difference"]["int8"] > report["largest_difference"]["float32"]
    left = {path.name for path in (folder / "onnx").iterdir()}
    assert left == {"model.onnx", "model_int8.onnx", "report.json", RECORD} and foreign(folder) == []


def test_a_decoder_whose_tokenizer_gives_nothing_for_nothing(tmp_path):
    folder = decoder_folder(tmp_path)
    report = export_onnx(folder)
    assert report["largest_difference"]["float32"] <= noise(32**0.5)
    encoder = OnnxEncoder(folder)
    assert encoder.encode(["", "the dog"]).any(axis=1).tolist() == [False, True] and not encoder.encode("").any()


def test_command_reports_the_cost(tiny_towers, tiny_tokenizer, tmp_path, dev_file, capsys):
    folder = make_folder(tiny_towers, tiny_tokenizer, tmp_path)
    flags = ["--folder", str(folder), "--format", "onnx", "--dev_file", f"stsb={dev_file}"]
    assert run(export.main, flags) == 0
    assert "stsb: float32" in capsys.readouterr().out
    report = json.loads((folder / "onnx" / "report.json").read_text())
    scores = report["scores"]
    assert report["cost_of_int8"]["stsb"] == pytest.approx(scores["float32"]["stsb"] - scores["int8"]["stsb"])
    card = (folder / "README.md").read_text()
    assert f"loses up to {report['cosine_loss_of_int8']:.1e}" in card
    assert f"{report['cost_of_int8']['stsb']:.2f} points on stsb" in card
    tell_card(folder / "README.md", ONNX, {"cosine_loss_of_int8": 0.5})  # a later export's words take the place
    again = (folder / "README.md").read_text()
    assert again.count("## ONNX graphs") == 1 and "up to 5.0e-01 of" in again and "points on stsb" not in again
    assert again.count("\n## Training\n") == card.count("\n## Training\n") == 1
    assert run(export.main, ["--folder", str(folder)]) == 2
    assert run(export.main, ["--folder", str(tmp_path), "--format", "onnx"]) == 2
    assert run(export.main, [*flags, "--output_dir", str(tmp_path / "x")]) == 2
