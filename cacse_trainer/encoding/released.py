"""The field's released models: how each is read, and what was published of it; the one table of them.

Their folders state no pooling, so that everyone who loads them has to know it. What stands here is what a folder of
that name, on the hub or on a disk, is read by wherever an encoder is loaded (`read_modules`, `load_encoder`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

RAW, HEAD, LAST = "cls_before_pooler", "cls_with_mlp", "last_token"
SETS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICKRelatedness")
"""Of the published figures, in order."""
BELLM_PROMPT = 'The representative word for sentence {text} is:"'
OF_TRAINING_SCRIPTS = ("BertForCL", "RobertaForCL")
"""Architectures that the training scripts of SimCSE, ESimCSE, InfoCSE and DiffCSE write."""


@dataclass(frozen=True)
class Released:
    """One released model.

    Args:
        name: hub id, or the folder of the release; of a pair that of its first tower.
        method: whose it is.
        pooling: how it is read.
        average: published mean Spearman ×100 of the seven test sets, see `SETS`; None: not published.
        figures: the seven, where they are published.
        source: where the figures stand.
        second: the other tower's folder; the two vectors are summed.
        base: of an adapter, the model that it belongs to.
        max_seq_length: in tokens; None: the model's own limit, at which the published evaluations cut.
        prompt_template, append_eos, bidirectional_start_layer: of a decoder, see `load_encoder`.
        weights: state dicts of the release (no folder that AutoModel loads), and the command that reads them.
        note: what else there is to know.
    """

    name: str
    method: str
    pooling: str
    average: float | None = None
    figures: tuple[float, ...] = ()
    source: str = ""
    second: str | None = None
    base: str | None = None
    max_seq_length: int | None = None
    prompt_template: str | None = None
    append_eos: bool = False
    bidirectional_start_layer: int | None = None
    weights: str | None = None
    note: str = ""

    @property
    def names(self) -> Iterator[tuple[str, ...]]:
        """Ends of paths that are this model's: of a hub id also the name alone, as after a download."""
        for name in filter(None, (self.name, self.second)):
            parts = tuple(name.split("/"))
            if self.weights is None:
                yield parts
                if self.second is None:
                    yield parts[-1:]


def _simcse(name: str, pooling: str, average: float, *figures: float, source: str = "paper, table 5") -> Released:
    return Released(f"princeton-nlp/{name}", "SimCSE", pooling, average, figures, f"{source}; average: README")


def _diffcse(name: str, average: float | None, *figures: float) -> Released:
    note = "" if average else "for transfer tasks"
    return Released(f"voidism/diffcse-{name}", "DiffCSE", RAW, average, figures, "paper" if average else "", note=note)


def _esimcse(name: str, average: float, *figures: float) -> Released:
    return Released(f"ffgcc/esimcse-{name}", "ESimCSE", RAW, average, figures, "README and logs of caskcsg/sentemb")


def _cacse(name: str, average: float, *figures: float, command: str, note: str = "") -> Released:
    source = "eval_CACSE_RoBERTa.py" if "RoBERTa" in name else "README of the release"
    return Released(name, "CACSE", RAW, average, figures, source, weights=command, note=note)


def _pair(name: str, second: str, method: str, average: float, *figures: float) -> Released:
    return Released(name, method, RAW, average, figures, f"README of {method}", second)


def _student(name: str, method: str, average: float, *figures: float) -> Released:
    return Released(name, method, RAW, average, figures, f"README of {method}")


def _cft(name: str, base: str) -> Released:
    return Released(f"trapoom555/{name}-Text-Embedding-cft", "STS-CFT", LAST, base=base, append_eos=True)


_CKPT = "import --checkpoint pytorch_model.bin --tower_a"
_STUDENT = "evaluate --model FOLDER --pooling cls (FOLDER: its pytorch_model.bin, the base's config and tokenizer)"
_J = "JTCSE_saved_ckpt"

RELEASED = (
    _simcse("unsup-simcse-bert-base-uncased", RAW, 76.25, 68.40, 82.41, 74.38, 80.91, 78.56, 76.85, 72.23),
    _simcse(
        *("unsup-simcse-bert-large-uncased", RAW, 78.41, 70.88, 84.16, 76.43, 84.50, 79.76, 79.26, 73.88),
        source="README of DistillCSE",
    ),
    _simcse("unsup-simcse-roberta-base", RAW, 76.57, 70.16, 81.77, 73.24, 81.36, 80.65, 80.22, 68.56),
    _simcse("unsup-simcse-roberta-large", RAW, 78.90, 72.86, 83.99, 75.62, 84.77, 81.80, 81.98, 71.26),
    _simcse("sup-simcse-bert-base-uncased", HEAD, 81.57, 75.30, 84.67, 80.19, 85.40, 80.82, 84.25, 80.39),
    Released("princeton-nlp/sup-simcse-bert-large-uncased", "SimCSE", HEAD, 82.21, source="README, the average alone"),
    _simcse("sup-simcse-roberta-base", HEAD, 82.52, 76.53, 85.21, 80.95, 86.03, 82.57, 85.83, 80.50),
    _simcse("sup-simcse-roberta-large", HEAD, 83.76, 77.46, 87.27, 82.36, 86.66, 83.93, 86.70, 81.95),
    _diffcse("bert-base-uncased-sts", 78.49, 72.28, 84.43, 76.47, 83.90, 80.54, 80.59, 71.23),
    _diffcse("bert-base-uncased-trans", None),
    _diffcse("roberta-base-sts", 78.21, 70.05, 83.43, 75.49, 82.81, 82.12, 82.38, 71.19),
    _diffcse("roberta-base-trans", None),
    _esimcse("bert-base-uncased", 78.27, 73.40, 83.27, 77.25, 82.66, 78.81, 80.17, 72.30),
    _esimcse("bert-large-uncased", 79.31, 73.21, 85.37, 77.73, 84.30, 78.92, 80.73, 74.89),
    _esimcse("roberta-base", 77.44, 69.90, 82.50, 74.68, 83.19, 80.30, 80.99, 70.54),
    _esimcse("roberta-large", 79.45, 73.20, 84.93, 76.88, 84.86, 81.21, 82.79, 72.27),
    Released(
        *("ffgcc/InfoCSE-bert-base", "InfoCSE", RAW, 78.85, (70.53, 84.59, 76.40, 85.10, 81.95, 82.00, 71.37)),
        source="README of caskcsg/sentemb",
    ),
    Released("ffgcc/InfoCSE-bert-large", "InfoCSE", RAW, 80.18, source="README of caskcsg/sentemb"),
    Released("caskcsg/InfoCSE-bert-base-rtd", "InfoCSE", RAW, 79.39, source="README of caskcsg/sentemb"),
    _cacse(
        *("CACSE-BERT", 79.02, 75.38, 83.23, 76.45, 84.14, 79.66, 81.29, 72.98),
        command=f"{_CKPT} bert-base-uncased",
        note="STS-B 81.29 in CACSE_distilled.py, 81.27 in its README",
    ),
    _cacse(
        *("CACSE-BERT D", 78.99, 74.75, 83.74, 76.23, 83.87, 79.58, 81.18, 73.58),
        command=_STUDENT,
    ),
    _cacse(
        *("CACSE+UC-BERT D", 80.16, 74.88, 85.18, 78.06, 85.59, 81.40, 82.57, 73.41),
        command=_STUDENT,
    ),
    _cacse(
        *("CACSE-RoBERTa", 78.84, 72.67, 83.00, 75.69, 84.07, 82.01, 82.53, 71.92),
        command=f"{_CKPT} roberta-base --cascade_start_layer 11 --constraint_layers 1",
        note="the README repeats BERT's rows in RoBERTa's place",
    ),
    _cacse(
        *("CACSE-RoBERTa D", 79.55, 73.50, 84.28, 76.25, 84.60, 82.41, 83.35, 72.45),
        command=_STUDENT,
    ),
    _cacse(
        *("CACSE+UC-RoBERTa D", 79.31, 72.59, 83.89, 76.13, 84.26, 82.29, 83.23, 72.77),
        command=_STUDENT,
    ),
    _pair(
        *("TNCSE_BERT_CKPT/BERT_1", "TNCSE_BERT_CKPT/BERT_2", "TNCSE"),
        *(79.58, 75.52, 83.91, 77.57, 84.97, 80.42, 81.72, 72.97),
    ),
    _pair(
        *("TNCSE_RoBERTa_CKPT/RoBERTa1", "TNCSE_RoBERTa_CKPT/RoBERTa2", "TNCSE"),
        *(79.53, 74.11, 84.01, 76.07, 84.80, 81.60, 82.68, 73.47),
    ),
    _student("TNCSE_D_BERT", "TNCSE", 79.77, 75.42, 84.64, 77.62, 84.92, 80.50, 81.79, 73.52),
    _student("TNCSE_D_RoBERTa", "TNCSE", 79.91, 74.56, 84.74, 76.30, 84.89, 81.70, 83.01, 74.18),
    _student("TNCSE_UC_D_BERT", "TNCSE", 80.60, 75.94, 85.31, 78.50, 85.69, 81.86, 83.03, 73.89),
    _student("TNCSE_UC_D_RoBERTa", "TNCSE", 79.45, 74.14, 83.86, 76.08, 84.06, 81.59, 82.90, 73.55),
    _pair(
        *(f"{_J}/JTCSE_BERT/JTCSE_bert_ckpt_encoder_1", f"{_J}/JTCSE_BERT/JTCSE_bert_ckpt_encoder_2", "JTCSE"),
        *(79.70, 74.96, 84.20, 77.79, 84.75, 80.43, 81.87, 73.88),
    ),
    _pair(
        f"{_J}/JTCSE_RoBERTa/JTCSE_roberta_ckpt_encoder_1",
        f"{_J}/JTCSE_RoBERTa/JTCSE_roberta_ckpt_encoder_2",
        *("JTCSE", 79.95, 74.92, 84.79, 76.99, 84.91, 81.58, 82.71, 73.74),
    ),
    _student("JTCSE_D/BERT/JTCSE_BERT_D", "JTCSE", 79.89, 75.01, 84.86, 77.76, 84.62, 80.38, 82.05, 74.53),
    _student("JTCSE_D/RoBERTa/JTCSE_RoBERTa_D", "JTCSE", 80.32, 75.42, 85.36, 77.31, 85.04, 81.72, 82.91, 74.46),
    _student("JTCSE_UCD/JTCSE_BERT_UCD", "JTCSE", 80.50, 75.23, 85.46, 78.50, 85.50, 81.55, 83.02, 74.24),
    _student("JTCSE_UCD/JTCSE_RoBERTa_UCD", "JTCSE", 80.16, 74.92, 85.14, 77.07, 84.59, 81.71, 83.18, 74.50),
    Released(
        *("SeanLee97/bellm-llama-7b-nli", "BeLLM", LAST, 86.29, (78.36, 90.88, 86.28, 89.89, 86.59, 88.89, 83.17)),
        source="README of BeLLM",
        base="NousResearch/Llama-2-7b-hf",
        max_seq_length=512,
        prompt_template=BELLM_PROMPT,
        bidirectional_start_layer=31,
        note="its code reads a decoder's last token, whatever --pooling_strategy says",
    ),
    _cft("MiniCPM-2B", "openbmb/MiniCPM-2B-dpo-bf16"),
    _cft("Gemma-2B", "google/gemma-2b-it"),
    _cft("Phi-2", "microsoft/phi-2"),
)
"""All of them."""


def released(name: str) -> Released | None:
    """The released model of this name: a hub id, a folder called so, or one in the hub's cache; None: it is none."""
    parts = PurePosixPath(name.rstrip("/")).parts
    cached = [part.removeprefix("models--").split("--") for part in parts if part.startswith("models--")]
    parts = tuple(cached[-1]) if cached else parts
    return next((one for one in RELEASED for end in one.names if parts[-len(end) :] == end), None)
