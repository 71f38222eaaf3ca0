"""Rows of a set of problems as mappings from column to value, from one file, or from a hub through `datasets`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_ext.errors import UserError


def read_file(path: Path, subject: str) -> Iterator[Mapping[str, Any]]:
    """Rows of one file. `subject` begins the sentence of an error. Raises UserError for what is not such a file."""
    if path.is_dir():
        raise UserError(f"{subject} is a directory. Name one file, or set its source to 'hub' for a data set.")
    if path.suffix == ".parquet":
        return _read_parquet(path, subject)
    if path.suffix in (".jsonl", ".json"):
        return _read_json_lines(path, subject)
    raise UserError(f"{subject} is of the unknown format '{path.suffix}'. Accepted: .jsonl, .json (lines), .parquet.")


def _read_parquet(path: Path, subject: str) -> Iterator[Mapping[str, Any]]:
    try:
        with pq.ParquetFile(path) as parquet:
            for batch in parquet.iter_batches():
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{subject} is not a readable parquet file: {error}") from None


def _read_json_lines(path: Path, subject: str) -> Iterator[Mapping[str, Any]]:
    with open(path, encoding="utf-8") as stream:
        try:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError(
                        f"{subject}, line {number}: expected an object with columns, found {line.strip()[:60]!r}."
                    )
                yield row
        except UnicodeDecodeError as error:
            raise UserError(f"{subject} is not UTF-8 text: {error}.") from None
        except json.JSONDecodeError as error:
            raise UserError(
                f"{subject}, line {number}: not JSON ({error}). Each line has to hold one object with its columns."
            ) from None


def read_hub(path: str, name: str, split: str, revision: str | None, subject: str) -> Iterator[Mapping[str, Any]]:
    """Rows of a hub's data set, or of a local directory with the same layout, through the same function."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        table = load_dataset(path, name or None, split=split, revision=revision)
    except (DatasetNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"{subject}: split '{split}' cannot be loaded: {error} Check its path, split, name and revision, and that "
            "this machine can reach the hub."
        ) from error
    return iter(table)
