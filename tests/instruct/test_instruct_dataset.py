"""The instruction data set: literal records, the scaling, sources and parts, wrong input."""

import json

import numpy as np
import pytest
from datasets import Dataset

from cacse_trainer.encoding.encoder import SentenceEncoder
from cacse_trainer.errors import UserError
from cacse_trainer.instruct.arguments import InstructDataArguments
from cacse_trainer.instruct.dataset import build_dataset, make_records, pair_sources, read_records, rescale

INSTRUCTION = (
    "Rate how similar the two sentences are in meaning, from 0 (unrelated) to 5 (equivalent). "
    "Answer with the number only."
)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_scored(path, scores):
    rows = [f"the dog number {i}\ta cat number {i}\t{score}" for i, score in enumerate(scores)]
    path.write_text("sentence1\tsentence2\tscore\n" + "\n".join(rows) + "\n")
    return path


def test_literal_records():
    pairs = Dataset.from_dict({"sentence1": ["A {man} runs.", "Ça va?"], "sentence2": ["A man is running.", "No."]})
    assert make_records(pairs, np.array([3.75, 0.0]), InstructDataArguments()) == [
        {
            "instruction": INSTRUCTION,
            "input": "Sentence 1: A {man} runs.\nSentence 2: A man is running.",
            "output": "3.8",
        },
        {"instruction": INSTRUCTION, "input": "Sentence 1: Ça va?\nSentence 2: No.", "output": "0.0"},
    ]
    changed = InstructDataArguments(
        score_range=[1, 5],
        score_decimals=2,
        instruction="From {low} to {high}?",
        input_format="{sentence1} | {sentence2}",
        output_format="Score: {score}",
    )
    assert make_records(pairs.select([1]), np.array([4.126]), changed) == [
        {"instruction": "From 1 to 5?", "input": "Ça va? | No.", "output": "Score: 4.13"}
    ]


def test_rescale_is_linear_and_cut_off():
    """Cosine 0.2 → 1, 0.6 → 3 (half way), 1 → 5; −0.5 and 1.2 lie beyond the ends."""
    found = rescale(np.array([0.2, 0.6, 1.0, -0.5, 1.2]), (0.2, 1.0), (1.0, 5.0))
    assert found == pytest.approx([1, 3, 5, 1, 5])


def test_gold_scores_of_a_file(tmp_path):
    """Gold 0 to 1 becomes 0 to 5; a fifth of the pairs is held out; the two parts are the whole."""
    path = write_scored(tmp_path / "pairs.tsv", [i / 10 for i in range(10)])
    args = InstructDataArguments(
        pairs=[f"mine={path}"], scores="gold", gold_range=[0, 1], validation_share=0.2, score_decimals=1
    )
    facts = build_dataset(args, tmp_path / "data", seed=7)
    train, validation = lines(tmp_path / "data" / "train.jsonl"), lines(tmp_path / "data" / "validation.jsonl")
    assert facts["records"] == {"train": 8, "validation": 2} == {"train": len(train), "validation": len(validation)}
    assert all(list(record) == ["instruction", "input", "output"] for record in train)
    by_input = {record["input"]: record["output"] for record in train + validation}
    assert by_input == {
        f"Sentence 1: the dog number {i}\nSentence 2: a cat number {i}": f"{i / 2:.1f}" for i in range(10)
    }
    assert facts["sets"]["mine"]["train"]["spearman_with_gold"] == pytest.approx(100)
    assert facts["encoder"] is None
    # the same seed gives the same files, byte for byte; another one another draw or order
    build_dataset(args, tmp_path / "again", seed=7)
    assert (tmp_path / "again" / "train.jsonl").read_bytes() == (tmp_path / "data" / "train.jsonl").read_bytes()
    build_dataset(args, tmp_path / "other", seed=8)
    assert (tmp_path / "other" / "train.jsonl").read_bytes() != (tmp_path / "data" / "train.jsonl").read_bytes()


def test_scores_of_an_encoder(tmp_path, tiny_towers, dev_file):
    """Every answer is the encoder's own cosine on the scale."""
    encoder = tiny_towers("bert")[0]
    args = InstructDataArguments(
        pairs=[f"mine={dev_file}"], encoder=encoder, encoder_pooling="mean", cosine_range=[-1, 1], score_decimals=4
    )
    facts = build_dataset(args, tmp_path / "data", seed=0)
    assert facts["encoder"]["pooling"] == "mean" and facts["scores"] == "encoder"
    loaded = SentenceEncoder(encoder, "mean")
    for record in lines(tmp_path / "data" / "train.jsonl"):
        first, second = (line.partition(": ")[2] for line in record["input"].splitlines())
        assert float(record["output"]) == pytest.approx(2.5 * (loaded.similarity(first, second) + 1), abs=1e-3)


def test_sentevals_files(senteval_sample, tmp_path):
    """STS-B and SICK-R: the train parts train, the dev parts validate, each on its own gold scale."""
    args = InstructDataArguments(data_dir=str(senteval_sample), scores="gold")
    sources = pair_sources(args)
    assert [(source.name, source.gold_range) for source in sources] == [("stsb", (0, 5)), ("sickr", (1, 5))]
    assert [source.train.rpartition("/")[2] for source in sources] == ["sts-train.csv", "SICK_train.txt"]
    assert [str(source.validation).rpartition("/")[2] for source in sources] == ["sts-dev.csv", "SICK_trial.txt"]
    facts = build_dataset(args, tmp_path / "data", seed=0)
    assert list(facts["sets"]) == ["stsb", "sickr"]
    assert facts["records"]["train"] == sum(parts["train"]["records"] for parts in facts["sets"].values())
    outputs = [float(record["output"]) for record in lines(tmp_path / "data" / "train.jsonl")]
    assert min(outputs) >= 0 and max(outputs) <= 5


def test_the_real_data(shared_data, tmp_path):
    """As many records as there are rows (the files have no header and one header line)."""
    facts = build_dataset(
        InstructDataArguments(data_dir=str(shared_data / "senteval"), scores="gold"), tmp_path / "data", seed=0
    )
    assert facts["records"] == {"train": 5749 + 4500, "validation": 1500 + 500}
    first = next(record for record in read_records(tmp_path / "data" / "train.jsonl") if "air plane" in record["input"])
    assert first["input"] == "Sentence 1: A plane is taking off.\nSentence 2: An air plane is taking off."
    assert first["output"] == "5.0"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pairs": ["stsbb"]}, "did you mean stsb?"),
        ({"pairs": []}, "pairs: give"),
        ({"pairs": ["stsb"], "data_dir": "nowhere"}, "download_dataset.sh"),
        ({"pairs": ["a={file}", "a={file}"]}, "a is given twice"),
        ({"encoder": None, "scores": "encoder"}, "--encoder"),
        ({"scores": "silver"}, "scores must be one of encoder, gold"),
        ({"score_range": [5, 0]}, "score_range must be two numbers"),
        ({"cosine_range": [0.0]}, "cosine_range must be two numbers"),
        ({"validation_share": 1.0}, "validation_share must be from 0"),
        ({"validation_share": 0.01}, "leaves one side empty"),
        ({"score_decimals": -1}, "score_decimals"),
        ({"gold_range": [0, 1]}, "out of range"),
        ({"instruction": "{lowest}"}, "only {low}, {high} may stand in braces"),
        ({"input_format": "{sentence1}"}, "must contain {sentence2}"),
        ({"output_format": "no score"}, "must contain {score}"),
    ],
)
def test_wrong_settings(tmp_path, changes, words):
    path = write_scored(tmp_path / "pairs.tsv", [0, 1, 2, 3, 4, 5])
    given = {"pairs": ["mine={file}"], "scores": "gold", **changes}
    given["pairs"] = [entry.format(file=path) for entry in given["pairs"]]
    with pytest.raises(UserError) as caught:
        build_dataset(InstructDataArguments(**given), tmp_path / "data", seed=0)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("line", ["no json", '{"instruction": "a", "input": "b"}', '["a"]', '{"instruction": 1}'])
def test_wrong_record_files(tmp_path, line):
    path = tmp_path / "train.jsonl"
    with pytest.raises(UserError, match="run the stage data first"):
        read_records(path)
    path.write_text('{"instruction": "a", "input": "", "output": "b"}\n' + line + "\n")
    with pytest.raises(UserError, match=r"train\.jsonl, line 2"):
        read_records(path)
