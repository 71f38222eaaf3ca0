"""Benchmarks of speed and memory."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from verl_ext.config.fields import STRICT, PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BenchmarkConfig:
    """Speed and memory of the worker path against other training loops."""

    problems: str | None = None  # JSONL with `problem` and `solution`; None: the built-in generator's
    loops: list[Literal["bare", "mixed", "responses", "trl"]] = field(default_factory=lambda: ["bare", "mixed", "trl"])
    methods: list[str] = field(default_factory=lambda: ["sft", "dft", "iw_sft"])
    vocab_size: PositiveInt | None = None  # of the model; None: as many entries as the tokenizer has
    logits_chunk_tokens: PositiveInt | None = None  # run the methods once more with train.logits_chunk_tokens
    num_steps: PositiveInt = 8  # timed optimizer steps, after one that warms up
    batch_size: PositiveInt = 64  # sequences an optimizer step
    max_tokens_per_micro_batch: PositiveInt = 4096  # padded
    max_length: PositiveInt = 768  # tokens; longer rows are cut there
    threads: PositiveInt = 1  # of torch
    trl_path: str | None = None  # directory to import TRL from, for its own process alone; None: where it is installed
    rounds: PositiveInt = 1  # times that all contenders take their turn; the median round counts
    seed: int = 0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VerifierBenchmarkConfig:
    """Speed of the verifier against plain math-verify, on the responses of verify.input."""

    repeats: PositiveInt = 16  # of every response, as in avg@16
    golds: list[str] = field(default_factory=list)  # JSONL files of benchmarks, for answers that come only once


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FlowConfig:
    """Sizes of the simulated data path."""

    num_samples: list[PositiveInt] = field(default_factory=lambda: [1_000, 10_000, 100_000, 1_000_000])
    n: PositiveInt = 4
    prompt_tokens: PositiveInt = 64
    response_tokens: PositiveInt = 128
    shard_size: PositiveInt = 512  # prompts
    seed: int = 0
