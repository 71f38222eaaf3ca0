"""A whole experiment, estimated: its stages, what they add up to, what it can show, and what will not work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from verl_ext import hub
from verl_ext.config import Config
from verl_ext.experiment import Cell, num_ranks
from verl_ext.planning import costs
from verl_ext.planning.architecture import Architecture, of_model
from verl_ext.planning.devices import GIGA, Device, device
from verl_ext.planning.power import Detectable, detectable
from verl_ext.planning.setting import Setting, Stage
from verl_ext.planning.stages import cells_of, num_items, stages_of, staging_bytes

_MORE_RANKS = (
    "Raise cluster.ranks_per_node or cluster.num_nodes, train adapters (model.lora_rank), or keep weights, gradients "
    "and moments in CPU memory (model.offload=always)."
)
_SMALLER = "lower max_tokens_per_micro_batch, or share sequences (train.sequence_parallel_size)."
_REMEDIES = {
    "parameters": _MORE_RANKS,
    "gradients": _MORE_RANKS,
    "moments": _MORE_RANKS,
    "gathered": "Use devices with more memory.",
    "activations": f"Set model.gradient_checkpointing; where it is set, {_SMALLER}",
    "logits": f"Offline, set train.logits_chunk_tokens=1024; online, {_SMALLER}",
}
FILLED_FRACTION = 0.9  # of a device's memory; the formula leaves out what the allocator wastes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an experiment takes; `disk` in bytes is what stays and what one checkpoint needs while it is written."""

    config: Config
    setting: Setting
    stages: tuple[Stage, ...]
    num_cells: int
    disk: float
    detectable: Detectable | None
    warnings: tuple[str, ...]

    @property
    def shape(self) -> Architecture:
        return self.setting.shape

    @property
    def device(self) -> Device:
        return self.setting.device

    @property
    def tokens(self) -> float:
        return sum(stage.tokens for stage in self.stages)

    @property
    def flops(self) -> float:
        return sum(stage.flops for stage in self.stages)

    @property
    def device_hours(self) -> float:
        return sum(stage.device_hours for stage in self.stages)

    @property
    def core_hours(self) -> float:
        return sum(stage.core_hours for stage in self.stages)

    @property
    def hours(self) -> float:
        return sum(stage.hours for stage in self.stages)


def estimate(config: Config) -> Plan:
    """The plan of an experiment; raises UserError for what cannot be run or whose size is unknown."""
    setting = Setting(config=config, shape=of_model(hub.found(config)), device=device(config.plan))
    cells = cells_of(config)
    stages = tuple(stages_of(setting, cells))
    trains = any(cell.is_trained for cell in cells)
    return Plan(
        config=config,
        setting=setting,
        stages=stages,
        num_cells=len(cells),
        disk=sum(stage.disk for stage in stages) + (staging_bytes(setting) if trains else 0.0),
        detectable=_detectable(setting, cells),
        warnings=(*_small_data(setting, cells), *_memory(setting, stages)),
    )


def _detectable(setting: Setting, cells: Sequence[Cell]) -> Detectable | None:
    config, rows = setting.config, {cell.row.name for cell in cells}
    if not config.data.benchmarks:
        return None
    return detectable(
        setting.benchmark_sizes(), config.evaluate.k, config.experiment.num_seeds, len(rows) - 1, config.plan
    )


def _small_data(setting: Setting, cells: Sequence[Cell]) -> list[str]:
    found = {}
    for cell in cells:
        if cell.train is not None and (items := num_items(setting, cell)) < cell.train.batch_size:
            found[cell.row.name] = (
                f"Row '{cell.row.name}' has about {items} items, fewer than a batch of {cell.train.batch_size}: they "
                "repeat within a step. Lower train.batch_size, or sample more."
            )
    return list(found.values())


def _memory(setting: Setting, stages: Sequence[Stage]) -> list[str]:
    """What does not fit into the device; the first stage of each kind speaks for the others."""
    config, memory, device_ = setting.config, setting.device.memory, setting.device
    if memory is None:
        return []
    found = []
    longest = config.model.max_prompt_length + config.model.max_response_length
    if not costs.concurrent_sequences(setting.shape, longest, config.sampler, device_):
        found.append(
            f"The sampler does not fit: weights of {costs.weight_bytes(setting.shape, config.sampler) / GIGA:.0f} GB "
            f"and one sequence of {longest} tokens on {config.sampler.tensor_parallel_size} x {device_.name}. Raise "
            "sampler.tensor_parallel_size."
        )
    too_large = [stage for stage in stages if stage.training and (stage.memory or 0) > FILLED_FRACTION * memory]
    if too_large:
        worst = max(too_large, key=lambda stage: stage.memory or 0)
        assert worst.training is not None
        part = worst.training.largest
        found.append(
            f"'{worst.name}' wants {(worst.memory or 0) / GIGA:.0f} GB on each of {num_ranks(config)} x "
            f"{device_.name} of {memory / GIGA:.0f} GB, most of it ({getattr(worst.training, part) / GIGA:.0f} GB) for "
            f"{part}. {_REMEDIES[part]}"
        )
    sampler = config.sampler.gpu_memory_utilization * memory
    crowded = [stage for stage in stages if stage.idle and sampler + stage.idle > FILLED_FRACTION * memory]
    if crowded:
        worst = max(crowded, key=lambda stage: stage.idle)
        found.append(
            f"'{worst.name}' keeps {worst.idle / GIGA:.1f} GB of weights and moments on each {device_.name} of "
            f"{memory / GIGA:.0f} GB while it samples, beside the sampler's {sampler / GIGA:.0f} GB. Set "
            "model.offload=idle, or lower sampler.gpu_memory_utilization."
        )
    return found
