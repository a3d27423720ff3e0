"""Rows to a file of the kind that its name ends in; what `sources` reads back."""

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq

from cacse_trainer.data.readers import BATCH_ROWS
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.files import writing

KINDS = (".jsonl", ".csv", ".tsv", ".parquet")


def check_output(path: Path, overwrite: bool = False) -> None:
    """Refuse a file that cannot be written, before any work is done.

    Raises:
        UserError: an unknown ending, or it is there already.
    """
    if path.suffix not in KINDS:
        raise UserError(f"output {path}: give a name that ends in {', '.join(KINDS)}")
    if path.is_dir():
        raise UserError(f"output {path} is a folder; choose another name")
    if path.exists() and not overwrite:
        raise UserError(f"output {path} is there already; choose another name, or --overwrite")


def write_rows(rows: datasets.Dataset, path: Path) -> None:
    """Write all rows, whole or not at all.

    Lists become JSON in csv and tsv files; tabs and line breaks, which a tsv file has no quotes for, become spaces.

    Raises:
        UserError: an unknown ending, or the file cannot be written.
    """
    check_output(path, overwrite=True)
    with user_errors(f"output {path} cannot be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path) as staged:
            if path.suffix == ".parquet":
                schema = rows.features.arrow_schema
                with pq.ParquetWriter(staged, schema) as writer:
                    for table in rows.with_format("arrow").iter(BATCH_ROWS):
                        writer.write_table(table.cast(schema))
            else:
                _write_text(rows, staged, path.suffix)


def _write_text(rows: datasets.Dataset, path: Path, kind: str) -> None:
    names = rows.column_names
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        if kind == ".csv":
            table.writerow(names)
        elif kind == ".tsv":
            file.write("\t".join(names) + "\n")
        for row in rows:
            if kind == ".jsonl":
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            elif kind == ".csv":
                table.writerow([_cell(row[name]) for name in names])
            else:
                file.write("\t".join(" ".join(_cell(row[name]).split()) for name in names) + "\n")


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
