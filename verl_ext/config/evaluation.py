"""Benchmarks, warnings, the table, and what explains it."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from verl_ext.config.fields import STRICT, Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from verl_ext.config.training import MethodConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateConfig:
    """Checkpoints and benchmarks to samples."""

    checkpoints: dict[str, str] = field(default_factory=dict)  # name -> Hugging Face directory
    benchmarks: dict[str, str] = field(default_factory=dict)  # name -> prompts artifact; empty: the run's own
    output_dir: str | None = None
    k: PositiveInt = 16  # samples a problem
    temperature: NonNegativeFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    shard_size: PositiveInt = 256
    max_log_prob_gap: PositiveFloat = 0.1  # nats, trainer against sampler on the same tokens
    grader: Literal["math_verify", "qwen", "both"] | None = None  # None: verify.grader
    extraction: list[str] | None = None  # None: verify.extraction
    seed: int = 0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GuardConfig:
    """From where on a run is said to go wrong (`guards`): on by default, as warnings."""

    action: Literal["warn", "stop"] = "warn"
    max_truncated_fraction: Fraction = 0.2  # of responses cut at the length limit
    min_entropy: NonNegativeFloat = 0.01  # nats a sampled token
    max_repetitive_fraction: Fraction = 0.1  # of responses that run in a loop
    max_duplicate_fraction: Fraction = 0.5  # of responses that equal another one to the same prompt
    max_flat_groups: Fraction = 0.8  # of prompts whose samples are all right or all wrong
    min_effective_sample_size: Fraction = 0.01  # of a step's tokens
    max_mean_weight: PositiveFloat = 10.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TabulateConfig:
    """Samples of all runs to the table, its intervals and its figure."""

    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    num_resamples: PositiveInt = 10000
    pass_k: PositiveInt | None = None  # None: k
    published: list[str] = field(default_factory=list)  # <source>/<table> of configs/published, to put beside ours
    round_draws: bool = False  # each draw's accuracy to 0.1 %, as the Qwen2.5-Math evaluation does before it averages
    caption: str = ""
    output_dir: str | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExplainConfig:
    """What methods do to a token, and would do to a data set under a policy."""

    methods: list[str] = field(default_factory=list)  # empty: sft and the chosen `method`
    variants: dict[str, MethodConfig] = field(default_factory=dict)  # label -> a method with parameters of its own
    data: str | None = None  # positives to profile under model.path; None: the methods alone
    checkpoints: dict[str, str] = field(default_factory=dict)  # label -> trained on them; their probabilities are drawn
    reference: str | None = None  # checkpoint that methods compare model.path with; None: itself, as before training
    max_rows: PositiveInt = 512  # of the data, drawn with the seed
    max_tokens_per_batch: PositiveInt = 16384  # padded
    output_dir: str | None = None
    seed: int = 0
