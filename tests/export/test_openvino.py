"""OpenVINO graphs of exported folders: the same vectors, an int8 one, its cost on a dev set."""

import json
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from cacse_trainer import SentenceEncoder
from cacse_trainer.cli import encode, export
from cacse_trainer.cli.common import run
from cacse_trainer.encoding.openvino import OpenVINOEncoder, load_openvino, the_core
from cacse_trainer.encoding.saving import PROBES
from cacse_trainer.errors import UserError
from cacse_trainer.export.graphs import cosine_loss, tell_card
from cacse_trainer.export.onnx import ONNX
from cacse_trainer.export.openvino import OPENVINO, export_openvino, quantise
from cacse_trainer.files import RECORD, foreign
from tests.graph_folders import decoder_folder, make_folder
from tests.tolerances import noise

GRAPHS = {"openvino_model", "openvino_model_qint8_quantized"}


def skip_without():
    if find_spec("openvino") is None:  # pytest.importorskip would import it, and with it what reports its use
        pytest.skip("openvino is not installed")


@pytest.fixture(scope="module")
def library():
    skip_without()
    return load_openvino()


@pytest.mark.slow  # tracing takes some seconds a graph
@pytest.mark.parametrize(
    ("kind", "settings"),
    [("bert", {"pooling": "cls_before_pooler"}), ("roberta", {"pooling": "mean"}), ("bert", {"pooling": "cls"})],
)
def test_the_graph_gives_the_vectors(library, tiny_towers, tiny_tokenizer, tmp_path, kind, settings):
    """For raw CLS, mean, and a head of dense and tanh; other numbers of rows and tokens than it was traced with."""
    folder = make_folder(tiny_towers, tiny_tokenizer, tmp_path, kind, **settings)
    report = export_openvino(folder)
    assert report["largest_difference"]["float32"] <= noise(32**0.5)  # the largest entry after a LayerNorm
    assert report["largest_difference"]["int8"] > report["largest_difference"]["float32"]
    assert 0 < report["cosine_loss_of_int8"] < 1e-2
    parts = {f"{name}.{end}" for name in GRAPHS for end in ("xml", "bin")}
    left = {path.name for path in (folder / "openvino").iterdir()}
    assert left == {*parts, "report.json", RECORD} and foreign(folder) == []
    sizes = {path.stem: path.stat().st_size for path in (folder / "openvino").glob("*.bin")}
    assert sizes["openvino_model_qint8_quantized"] < sizes["openvino_model"] / 2


@pytest.mark.slow
def test_what_sentence_transformers_reads(library, tiny_towers, tiny_tokenizer, tmp_path):
    """Its OpenVINO backend takes the tokens' states by name and pools them by the folder's modules."""
    folder = make_folder(tiny_towers, tiny_tokenizer, tmp_path, pooling="mean")
    export_openvino(folder)
    encoder = SentenceEncoder(folder, device="cpu")
    given = dict(encoder.tokenizer(PROBES[:3], padding=True, return_tensors="pt"))
    with torch.no_grad():
        states = encoder.model(**given).last_hidden_state.numpy()
    graph = the_core(library).compile_model(folder / "openvino" / "openvino_model.xml", "CPU")
    assert {port.any_name for port in graph.inputs} == {"input_ids", "attention_mask", "token_type_ids"}
    assert [port.any_name for port in graph.outputs] == ["last_hidden_state", "sentence_embedding"]
    found = graph({name: ids.numpy() for name, ids in given.items()})["last_hidden_state"]
    assert cosine_loss(states.reshape(-1, 32), found.reshape(-1, 32)) < 1e-3  # it may compute in bfloat16


@pytest.mark.slow
def test_a_decoder_whose_tokenizer_gives_nothing_for_nothing(library, tmp_path):
    folder = decoder_folder(tmp_path)
    report = export_openvino(folder)
    assert report["largest_difference"]["float32"] <= noise(32**0.5)
    encoder = OpenVINOEncoder(folder)
    assert encoder.encode(["", "the dog"]).any(axis=1).tolist() == [False, True] and not encoder.encode("").any()


@pytest.mark.slow
def test_command_reports_the_cost(library, tiny_towers, tiny_tokenizer, tmp_path, dev_file, capsys):
    """On the card as well, beside what an ONNX export said there; what is missing or damaged is named."""
    folder = make_folder(tiny_towers, tiny_tokenizer, tmp_path)
    tell_card(folder / "README.md", ONNX, {"cosine_loss_of_int8": 0.5})
    flags = ["--folder", str(folder), "--format", "openvino", "--dev_file", f"stsb={dev_file}"]
    assert run(export.main, flags) == 0
    assert "stsb: float32" in capsys.readouterr().out
    report = json.loads((folder / "openvino" / "report.json").read_text())
    card = (folder / "README.md").read_text()
    small = "`openvino/openvino_model_qint8_quantized.xml`"
    assert f"{small} loses up to {report['cosine_loss_of_int8']:.1e} of the cosine" in card
    assert f"{report['cost_of_int8']['stsb']:.2f} points on stsb" in card
    tell_card(folder / "README.md", OPENVINO, {"cosine_loss_of_int8": 0.25})
    again = (folder / "README.md").read_text()
    assert again.count("## OpenVINO graphs") == again.count("## ONNX graphs") == again.count("\n## Training\n") == 1
    assert f"{small} loses up to 2.5e-01 of" in again and "loses up to 5.0e-01 of" in again
    assert run(export.main, [*flags[:2], "--format", "openvino"]) == 0  # takes the place of the first

    weights = folder / "openvino" / "openvino_model.bin"
    whole, encoder = weights.read_bytes(), OpenVINOEncoder(folder)
    first = encoder.fingerprint()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert encoder.fingerprint() != first
    weights.write_bytes(whole[:100])
    with pytest.raises(UserError, match=r"openvino/openvino_model\.xml cannot be read"):
        OpenVINOEncoder(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"no openvino/openvino_model\.bin in it; make it with .* --format openvino"):
        OpenVINOEncoder(folder)


def test_matrices_become_int8(library):
    """Along a product's outputs on either side of it, and along a table's rows; all else stays what it was."""
    ops, generator = library.opset13, np.random.default_rng(0)
    drawn = generator.normal(size=(4, 16, 16)).astype(np.float32) * np.logspace(-3, 3, 16, dtype=np.float32)[:, None]
    drawn[0, 0] = 0  # a row of zeros has no scale of its own
    table, left, right, shared = drawn[0], drawn[1], drawn[2].T.copy(), drawn[3]
    ids = ops.parameter([-1], library.Type.i64)
    states = ops.gather(ops.constant(table), ids, 0)
    both = ops.constant(shared)
    results = [
        states,
        ops.matmul(states, ops.constant(left), False, True),
        ops.matmul(states, ops.constant(right), False, False),
        ops.matmul(ops.constant(left), ops.constant(generator.normal(size=(16, 1)).astype(np.float32)), False, False),
        ops.add(ops.matmul(states, both, False, True), both),
    ]
    graph = library.Model(results, [ids], "graph")

    def outputs():
        settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
        found = the_core(library).compile_model(graph, "CPU", settings)(np.arange(16))
        return [np.array(found[i]) for i in range(len(results))]

    def matrices(kind):
        constants = [node for node in graph.get_ops() if node.get_type_name() == "Constant" and len(node.shape) == 2]
        return sorted(tuple(node.shape) for node in constants if node.get_element_type() == kind)

    before = outputs()
    quantise(library, graph)
    square = (16, 16)
    assert matrices(library.Type.i8) == [square] * 4
    assert (16, 1) in matrices(library.Type.f32) and square in matrices(library.Type.f32)
    half_a_step = np.abs(table).max(axis=1, keepdims=True) / 127 / 2
    after = outputs()
    assert (np.abs(after[0] - before[0]) <= half_a_step * 1.001).all()
    for first, second in zip(before[1:], after[1:], strict=True):
        assert np.abs(second - first).max() < 0.02 * np.abs(first).max()


def test_nothing_is_reported_to_anyone():
    skip_without()
    code = "import sys; from cacse_trainer.encoding.openvino import load_openvino; load_openvino().convert_model\n"
    code += "sys.exit('openvino_telemetry' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


A_SIGNAL = """
import os, signal
from cacse_trainer.encoding.openvino import load_openvino, the_core
library = load_openvino()
number = library.opset13.parameter([4], library.Type.f32)
graph = library.Model([library.opset13.relu(number)], [number])
first = the_core(library).compile_model(graph, "CPU")
second = the_core(library).compile_model(graph, "CPU")
del first, second
signal.signal(signal.SIGTERM, lambda *given: print("told"))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_after_two_graphs():
    """Two cores would leave a stack for signals that is freed, where the processor has AMX."""
    skip_without()
    done = subprocess.run([sys.executable, "-c", A_SIGNAL], check=True, capture_output=True, text=True)
    assert done.stdout == "told\n"


def test_without_the_extra(tiny_towers, tiny_tokenizer, tmp_path, monkeypatch, capsys):
    folder = make_folder(tiny_towers, tiny_tokenizer, tmp_path)
    monkeypatch.setitem(sys.modules, "openvino", None)
    said = "pip install 'cacse-trainer[openvino]'"
    assert run(export.main, ["--folder", str(folder), "--format", "openvino"]) == 2
    assert said in capsys.readouterr().err
    (folder / "openvino").mkdir()
    for end in ("xml", "bin"):
        (folder / "openvino" / f"openvino_model.{end}").write_bytes(b"x")
    (tmp_path / "lines.txt").write_text("a line\n")
    words = ["--model", str(folder), "--input", str(tmp_path / "lines.txt"), "--output", str(tmp_path / "v.npy")]
    assert run(encode.main, [*words, "--backend", "openvino"]) == 2
    assert said in capsys.readouterr().err
