"""vLLM's engines, what they sample, and how it is judged."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from verl_ext.config.fields import STRICT, Fraction, NonNegativeFloat, PositiveFloat, PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SamplerConfig:
    """The vLLM engines."""

    num_engines: PositiveInt = 1
    tensor_parallel_size: PositiveInt = 1
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    gpu_memory_utilization: Fraction = 0.85
    kv_cache_gib: PositiveFloat = 1.0  # on a CPU
    threads: PositiveInt | None = None  # OpenMP threads of an engine on a CPU; None: all cores
    max_num_seqs: PositiveInt = 256
    max_num_batched_tokens: PositiveInt = 8192
    enforce_eager: bool = False
    max_idle_seconds: PositiveFloat = 3600.0  # for a shard, the engine's start included, before the run is stopped


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RolloutConfig:
    """Prompts and policy to rollouts."""

    prompts: str | None = None  # None: the run's training prompts
    output: str | None = None
    n: PositiveInt = 4  # samples a prompt
    temperature: NonNegativeFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    shard_size: PositiveInt = 128  # prompts a shard: what a kill can cost
    seed: int = 0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VerifyConfig:
    """Rollouts to samples with verdicts."""

    input: str | None = None  # parquet artifact, or JSONL with `problem`, `gold`, `responses`
    output: str | None = None
    backend: Literal["local", "ray"] = "local"
    num_workers: PositiveInt = 1
    cpu_seconds: PositiveFloat = 3.0  # a response may use before its verdict is `timeout`
    memory_gib: PositiveFloat = 1.0
    shard_size: PositiveInt = 2048
    max_failure_fraction: Fraction = 0.005  # of timeout, memory and crash together
    grader: Literal["math_verify", "qwen", "both"] = "math_verify"  # both: correct is what both find correct
    extraction: list[str] = field(
        default_factory=lambda: ["box"]
    )  # rules of verl_ext/verification/extraction.py, in their order
    reward: Literal["auto", "math", "exact", "aliases", "choice", "numeric", "code"] = (
        "auto"  # auto: style of the prompts
    )
    numeric_tolerance: NonNegativeFloat = 1e-4  # relative, of the numeric reward
    memo: str | None = None  # file in which verdicts are kept for later runs
