"""What all stages of a plan share, and what a plan says of one stage."""

from __future__ import annotations

from dataclasses import dataclass

from verl_ext.config import Config
from verl_ext.errors import UserError
from verl_ext.planning import costs
from verl_ext.planning.architecture import Architecture
from verl_ext.planning.costs import Row
from verl_ext.planning.devices import Device
from verl_ext.planning.memory import Memory
from verl_ext.planning.sizes import num_rows


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage, summed over its `runs`; `steps` of one run, `memory` in bytes of one device."""

    name: str
    runs: int = 1
    steps: int = 0  # of the optimizer
    tokens: float = 0.0  # of prompts and responses
    flops: float = 0.0
    devices: int = 0  # at work at a time
    device_hours: float = 0.0
    core_hours: float = 0.0
    memory: float | None = None
    training: Memory | None = None  # what `memory` of a training rank is for
    idle: float = 0.0  # bytes of one device that online training holds beside the sampler
    disk: float = 0.0  # bytes that stay

    @property
    def hours(self) -> float:
        """On the clock, one run after the other; without the stages that CPUs alone do."""
        return self.device_hours / self.devices if self.devices else 0.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all stages share."""

    config: Config
    shape: Architecture
    device: Device

    @property
    def row(self) -> Row:
        """A prompt and a response of mean length."""
        plan, model = self.config.plan, self.config.model
        return Row(
            prompt=plan.prompt_tokens or model.max_prompt_length / 4,
            response=plan.response_tokens or model.max_response_length / 4,
        )

    @property
    def flops_per_second(self) -> float:
        """What one rank does of useful work."""
        plan, model = self.config.plan, self.config.model
        if plan.training_tokens_per_second is None:
            return self.device.peak_flops * plan.flops_utilization
        one = costs.training_flops(
            self.shape, self.row, recompute=model.gradient_checkpointing, lora_rank=model.lora_rank
        )
        return plan.training_tokens_per_second * one / self.row.tokens

    def size(self, split: str) -> int:
        """Rows of a training split."""
        config = self.config
        if split not in config.data.splits:
            raise UserError(f"The experiment reads data.splits.{split}, which is not there. Choose another data=...")
        return num_rows(split, config.data.splits[split], config.prepare.limit, config.plan.rows)

    def benchmark_sizes(self) -> dict[str, int]:
        config = self.config
        return {
            name: num_rows(name, source, config.prepare.limit, config.plan.rows)
            for name, source in config.data.benchmarks.items()
        }
