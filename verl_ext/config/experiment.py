"""The rows of a comparison, what it will cost, and what is looked at before it."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from verl_ext.config.fields import STRICT, Fraction, NonNegativeFloat, PositiveFloat, PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RowConfig:
    """One row of the table: a method on a data set, or the base policy as it is."""

    name: str
    label: str
    group: str = ""  # heading of the table's section
    method: str | None = None  # configs/method/<method>.yaml; None: the base policy
    data: Literal["demonstrations", "samples"] | None = None
    behavior: str | None = None  # row whose checkpoint stands for the author of the demonstrations
    start: str | None = None  # row whose checkpoint this one continues from; None: the base policy
    online: dict[str, Any] | None = None  # what differs from the experiment's `online` section; makes the row online
    params: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)  # what differs from the experiment's `train` section


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExperimentConfig:
    """Rows of the table and how they are compared."""

    name: str = "unnamed"
    rows: list[RowConfig] = field(default_factory=list)
    fidelity: Literal["corrected", "paper"] = "corrected"  # paper: as the authors' code ran, faults included
    baseline: str = "sft"  # the row that differences are taken to
    num_seeds: PositiveInt = 1
    learning_rates: str | None = None  # result file of a sweep; gives each row its learning rate
    model_learning_rates: dict[str, PositiveFloat] = field(default_factory=dict)  # last part of model.path -> train's
    sweep: list[PositiveFloat] = field(default_factory=list)  # learning rates to try; makes the experiment a sweep
    ablation: dict[str, list[float]] = field(default_factory=dict)  # keys of `train` -> values each row is trained with
    curve_every: PositiveInt | None = None  # optimizer steps between the points of learning curves
    stages: list[str] | None = None  # the stages to run, by the names that the log gives them; None: all


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PlanConfig:
    """What an experiment is taken to meet: a device, lengths of texts, how often samples are right."""

    device: Literal["a100", "h100", "h200", "cpu"] = "h100"
    peak_tflops: PositiveFloat | None = None  # None: of the device's data sheet, as the two below
    bandwidth_gb: PositiveFloat | None = None  # 10^9 bytes a second
    memory_gb: PositiveFloat | None = None  # 10^9 bytes
    flops_utilization: Annotated[float, Field(gt=0, le=1)] = 0.4  # of the peak, in training and scoring
    bandwidth_utilization: Annotated[float, Field(gt=0, le=1)] = 0.6  # of the peak, in decoding
    training_tokens_per_second: PositiveFloat | None = None  # measured: prompt and response tokens, of one rank
    sampling_tokens_per_second: PositiveFloat | None = None  # measured: of one engine
    prompt_tokens: PositiveFloat | None = None  # mean; None: a quarter of model.max_prompt_length
    response_tokens: PositiveFloat | None = None  # mean; None: a quarter of model.max_response_length
    rows: dict[str, PositiveInt] = field(default_factory=dict)  # of a split or benchmark that is not on this machine
    correct_fraction: Fraction = 0.35  # of the policy's samples (arXiv 2508.05629, section 4.3: 140k of 400k)
    verdicts_per_second: PositiveFloat = 30.0  # of one core, on answers that it has not seen
    problem_variance: Annotated[float, Field(ge=0, le=0.25)] = 0.1  # p (1 - p) of a problem, mean over problems
    difference_sd: NonNegativeFloat = 0.2  # over problems, of the difference of two methods' p
    seed_sd: NonNegativeFloat = 0.012  # over training seeds, of a benchmark's accuracy
    output_dir: str | None = None  # None: run_dir


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DoctorConfig:
    """What is looked at before an experiment is started."""

    ray: bool = True  # ask a Ray worker: of cluster.address, or of a local Ray that is started for it
    ports: list[PositiveInt] = field(default_factory=lambda: [6379, 8265, 10001])  # Ray's: control, dashboard, client


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RehearseConfig:
    """Sizes of a rehearsal."""

    num_steps: PositiveInt = 2  # optimizer steps, and rounds of an online row
    num_problems: PositiveInt = 48  # of each split
    num_ranks: PositiveInt = 1  # training processes
