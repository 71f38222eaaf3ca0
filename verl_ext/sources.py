"""Sets of problems from files, hubs and the built-in generator, in one form: problem, gold answer, worked solution.

Public sets name and format their columns differently. Which column is what is recognised from the known names below,
or given in the configuration; each row's gold answer is read from its answer column (`#### 18`, `["$2$"]`, 27.0) or
else from the last box of its solution. Nothing is repaired silently: every row is either kept or counted as dropped.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_ext.answers import extract
from verl_ext.config import SourceConfig
from verl_ext.embedded import problems, solutions
from verl_ext.errors import UserError, nearest
from verl_ext.source_files import read_file, read_hub

PROBLEM_COLUMNS = ("problem", "question")
ANSWER_COLUMNS = ("final_answer", "answer", "expected_answer", "gold")
SOLUTION_COLUMNS = ("solution", "messages")
DEFAULT_EMBEDDED_COUNT = 1000
_GSM8K_MARK = "####"
_SPECIAL_TOKEN = re.compile(r"<[|｜][^<>|｜\s]{1,40}[|｜]>")
_SURROGATE = re.compile("[\ud800-\udfff]")  # a lone one: JSON can spell it, UTF-8 cannot


@dataclass(frozen=True, kw_only=True)
class ProblemRow:
    """One problem; `index` is its row in the source. `answer` is None where the row holds no gold answer."""

    index: int
    problem: str
    answer: str | None
    solution: str | None

    @property
    def key(self) -> str:
        """Equal for problems that differ in white space only."""
        return " ".join(self.problem.split())


@dataclass(frozen=True, kw_only=True)
class ProblemSet:
    """The usable rows of a source, and why the others were dropped: len(rows) + sum(dropped) = num_read."""

    rows: list[ProblemRow]
    num_read: int
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True)
class _Columns:
    problem: str
    answer: str | None
    solution: str | None


def local_path(source: SourceConfig, name: str) -> Path | None:
    """The file or directory that a source reads, or None; raises UserError if a file is not there."""
    if source.source == "embedded":
        return None
    if not source.path:
        raise UserError(f"Data source '{name}' has no path. Set its path to the {source.source} to read.")
    path = Path(source.path)
    if path.exists():
        return path
    if source.source == "file":
        raise UserError(f"{_subject(source, name)} does not exist. Correct its path, or set its source to 'hub'.")
    return None


def _subject(source: SourceConfig, name: str) -> str:
    return f"Data source '{name}' ({source.path})"


def load(source: SourceConfig, name: str, *, needs_solution: bool = False) -> ProblemSet:
    """Read a source. Rows need a gold answer, or with `needs_solution` a worked solution (and may lack the answer).

    `name` is what errors call the source. Raises UserError for a missing or malformed file, columns that are not
    recognised, a source that is empty or of which nothing is usable.
    """
    if source.source == "embedded":
        return _load_embedded(source)
    path, subject = local_path(source, name), _subject(source, name)
    if source.source == "hub":
        rows = read_hub(source.path, source.name, source.split, source.revision, subject)
    else:
        assert path is not None
        rows = read_file(path, subject)
    loaded = _collect(rows, source, subject, needs_solution)
    if not loaded.num_read:
        raise UserError(f"{subject} is empty. Give a source with at least one problem.")
    if not loaded.rows:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in loaded.dropped.items())
        raise UserError(f"{subject} has no usable problem among {loaded.num_read} rows ({reasons}).")
    return loaded


def _load_embedded(source: SourceConfig) -> ProblemSet:
    rows = [
        ProblemRow(
            index=index,
            problem=problem.text,
            answer=str(problem.answer),
            solution=solutions.solve(
                problem, source.style, random.Random(f"{source.seed}-{source.style}-{problem.text}"), source.noise
            ),
        )
        for index, problem in enumerate(
            problems.generate(source.split, source.limit or DEFAULT_EMBEDDED_COUNT, source.seed)
        )
    ]
    return ProblemSet(rows=rows, num_read=len(rows))


def _collect(rows: Iterable[Mapping[str, Any]], source: SourceConfig, subject: str, needs_solution: bool) -> ProblemSet:
    kept: list[ProblemRow] = []
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    columns: _Columns | None = None
    num_read = 0
    for index, row in enumerate(rows):
        if source.limit is not None and index == source.limit:
            break
        num_read += 1
        columns = columns or _recognise(row, source, subject)
        parsed = _parse_row(index, row, columns)
        reason = _reason_to_drop(parsed, seen, needs_solution)
        if reason:
            dropped[reason] += 1
        else:
            seen.add(parsed.key)
            kept.append(parsed)
    return ProblemSet(rows=kept, num_read=num_read, dropped=dropped)


def _reason_to_drop(row: ProblemRow, seen: set[str], needs_solution: bool) -> str | None:
    if not row.problem:
        return "no problem"
    if needs_solution and not row.solution:
        return "no solution"
    if not needs_solution and not row.answer:
        return "no answer"
    if row.key in seen:
        return "duplicate"
    if _SPECIAL_TOKEN.search(row.problem):
        return "special-token text"
    if any(_SURROGATE.search(text or "") for text in (row.problem, row.answer, row.solution)):
        return "not Unicode"
    return None


def _recognise(row: Mapping[str, Any], source: SourceConfig, subject: str) -> _Columns:
    """Which column is what, from the configuration or the known names; the first row's keys are the columns."""

    def pick(given: str | None, known: tuple[str, ...], key: str) -> str | None:
        if given is None:
            return next((column for column in known if column in row), None)
        if given not in row:
            raise UserError(
                f"{subject} has no column '{given}' ({key}){nearest(given, row)}. Its columns: {', '.join(row)}."
            )
        return given

    problem = pick(source.problem_column, PROBLEM_COLUMNS, "problem_column")
    answer = pick(source.answer_column, ANSWER_COLUMNS, "answer_column")
    solution = pick(source.solution_column, SOLUTION_COLUMNS, "solution_column")
    if problem is None:
        raise UserError(
            f"{subject} has no column with problems. Its columns: {', '.join(row)}. Accepted: "
            f"{', '.join(PROBLEM_COLUMNS)}; or set problem_column."
        )
    if answer is None and solution is None:
        raise UserError(
            f"{subject} has no column with answers. Its columns: {', '.join(row)}. Accepted: "
            f"{', '.join(ANSWER_COLUMNS)}, or {', '.join(SOLUTION_COLUMNS)} with a boxed answer; or set answer_column "
            "or solution_column."
        )
    return _Columns(problem=problem, answer=answer, solution=solution)


def _parse_row(index: int, row: Mapping[str, Any], columns: _Columns) -> ProblemRow:
    problem = row.get(columns.problem)
    solution = _solution_text(row.get(columns.solution)) if columns.solution else None
    value = row.get(columns.answer) if columns.answer else None
    if isinstance(value, str) and solution is None and (_GSM8K_MARK in value or "\\boxed" in value):
        solution = value.strip()
    return ProblemRow(
        index=index,
        problem=problem.strip() if isinstance(problem, str) else "",
        answer=gold_answer(value) or (extract(solution) if solution else None),
        solution=solution,
    )


def _solution_text(value: Any) -> str | None:
    """A solution, the first of several, or what the assistant says in a conversation; None where there is none."""
    if isinstance(value, list) and value:
        if isinstance(value[0], Mapping):
            said = [message.get("content") for message in value if message.get("role") == "assistant"]
            return _solution_text(said)
        value = value[0]
    return (value.strip() or None) if isinstance(value, str) else None


def gold_answer(value: Any) -> str | None:
    """The gold answer that an answer column holds as text, or None where it holds none.

    27.0 and 27 are `27`; what follows `####` or stands in the last box counts; a list of answers is joined; dollar
    signs around the whole are dropped.
    """
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, list | tuple):
        answers = [gold_answer(item) for item in value]
        return ", ".join(answer for answer in answers if answer) or None
    text = str(value).rpartition(_GSM8K_MARK)[2].strip()
    if "\\boxed" in text:
        return extract(text)
    return text.strip("$").strip() or None
