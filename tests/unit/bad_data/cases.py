"""What the tables of malformed inputs share: a case, rows that are in order, and what a refusal must leave behind."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.unit.sample_rows import sample_row
from verl_ext import artifacts, prompting
from verl_ext.config import ModelConfig
from verl_ext.errors import UserError

BASE_POLICY = Path(__file__).resolve().parents[3] / "verl_ext" / "embedded" / "base_policy"
EOS, PADDING, START = 2, 0, 1  # of the built-in tokenizer: <|im_end|>, <|endoftext|>, <|im_start|>
LINEAGE = artifacts.Lineage(stage="test")
MODEL = ModelConfig(
    path=str(BASE_POLICY), prompt_template="problem-only", max_prompt_length=48, max_response_length=16, dtype="fp32"
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One malformed input: `given` changes what is in order (or writes a file), `message` is what the user reads."""

    id: str
    given: Any
    message: str


def table(cases: Iterable[Case]) -> pytest.MarkDecorator:
    """One test a case."""
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in cases])


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, dot files included."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def assert_refused(call: Callable[[], Any], message: str, directory: Path) -> None:
    """`call` raises a UserError that says `message`; the files in `directory` are as before, and no other is there."""
    before = contents(directory)
    with pytest.raises(UserError) as caught:
        call()
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)
    assert contents(directory) == before


def write(path: Path, kind: str, rows: list[Row]) -> Path:
    """Rows as an artifact of `kind`."""
    artifacts.write(path, kind, pa.Table.from_pylist(rows, schema=artifacts.SCHEMAS[kind]), LINEAGE)
    return path


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    """JSON lines; text and bytes are lines as they are."""
    lines = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows
    ]
    path.write_bytes(b"\n".join([*lines, b""]))
    return path


def prompt(index: int, **changes: Any) -> Row:
    """A row of a prompts artifact that is in order."""
    text = f"Ann has {index} nuts, finds 4. How many nuts now?"
    row: Row = {
        "prompt_id": f"p{index}",
        "data_source": "test",
        "prompt": prompting.build_prompt(text, "problem-only"),
        "reward_model": {"style": "rule", "ground_truth": str(index + 4)},
        "extra_info": {"split": "train", "index": index, "problem": text, "solution": f"\\boxed{{{index + 4}}}"},
    }
    return row | changes


def positive(index: int, **changes: Any) -> Row:
    """A row of positives (or, without `reward`, of judged responses) that is in order."""
    row: Row = {
        "sample_id": f"p{index}-0",
        "prompt_id": f"p{index}",
        "prompt_token_ids": [START, 20, 21],
        "response_token_ids": [30, 31 + index, EOS],
        "quality": 1.0,
    } | changes
    return {"behavior_log_probs": [-0.5] * len(row["response_token_ids"] or []), **row}


def sample(index: int, **changes: Any) -> Row:
    """A row of samples that is in order, and correct."""
    row = positive(index)
    ids = {name: row[name] for name in ("sample_id", "prompt_id", "prompt_token_ids", "response_token_ids")}
    return sample_row(**{**ids, "response": f"\\boxed{{5}} {index}", **changes})


def model_directory(path: Path, **changes: Any) -> Path:
    """A copy of the shipped policy; `changes` of the form `file__key=value` set (or with None remove) a JSON key."""
    shutil.copytree(BASE_POLICY, path, ignore=shutil.ignore_patterns("manifest.json", "probe.parquet"))
    for name, value in changes.items():
        file, key = name.split("__")
        content = json.loads((path / f"{file}.json").read_text())
        content[key] = value
        (path / f"{file}.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return path
