"""Problems, and what becomes of their prompts and responses."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from verl_ext.config.fields import STRICT, ColumnKind, Fraction, PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SourceConfig:
    """One set of problems: from the built-in generator, a file or a hub."""

    source: Literal["embedded", "file", "hub"] = "embedded"
    path: str = ""  # file or hub id
    split: str = "train"
    name: str = ""  # hub configuration name
    revision: str | None = None
    license: str = ""  # for people: nothing depends on it
    num_rows: PositiveInt | None = None  # of the whole split; any other number is refused
    check_num_rows: bool = True
    columns: dict[str, ColumnKind] = field(default_factory=dict)  # what each row must have; null passes as any kind
    limit: PositiveInt | None = None
    select: Literal["first", "sample"] = "first"  # which `limit` rows; a sample is drawn with `seed`
    reader: str = "columns"  # how a row is read: a name of verl_ext/row_readers.py
    problem_column: str | None = None  # of the reader `columns`; None: recognised from the known layouts
    answer_column: str | None = None
    solution_column: str | None = None
    max_solution_tokens: PositiveInt | None = None  # longer solutions are left out
    tokenizer: str = ""  # that counts them: hub id or local directory
    reward: Literal["math", "exact", "aliases", "choice", "numeric", "code"] = "math"  # how answers are judged
    style: str = "terse"  # of the built-in generator's worked solutions
    noise: Fraction = 0.0  # of the built-in generator: fraction of solutions with a mistake
    seed: int = 0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """Named problem sets: training splits and benchmarks."""

    splits: dict[str, SourceConfig] = field(default_factory=dict)
    benchmarks: dict[str, SourceConfig] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PrepareConfig:
    """Problems to prompts."""

    only: list[str] | None = None  # names of splits and benchmarks; None: all of `data`
    limit: PositiveInt | None = None  # problems of each source, beside its own limit


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CurateConfig:
    """Samples or demonstrations to positives and pairs."""

    source: Literal["samples", "demonstrations"] = "samples"
    input: str | None = None
    output: str | None = None
    pairs_output: str | None = None
    judged_output: str | None = None
    quality: str = "pass_rate"  # pass_rate of the prompt, reward, or a numeric column of the samples
    max_per_prompt: PositiveInt | None = None
    deduplicate: bool = True
    max_response_length: PositiveInt | None = None  # tokens; longer ones are not trained on; None: the model's
    max_pairs_per_prompt: PositiveInt = 1
    seed: int = 0
