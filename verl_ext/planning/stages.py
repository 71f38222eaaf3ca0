"""The stages of an experiment as steps, tokens, FLOPs, hours, memory and disk.

Formulas: `costs` (FLOPs and time), `memory`, `power`. Time is the work divided by the device's peak and the share of it
that is reached (`plan.flops_utilization`), or by a measured rate; starting processes and loading weights is left out.
Disk: 16 bytes a parameter for each resumable checkpoint that is kept (weights, two moments, published weights, in fp32;
half of it in bf16), 4 for the final weights and every point of a curve; 4 bytes a token id or log-probability and 4 a
token of text, before compression.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from verl_ext.config import Config, RowConfig, TrainConfig
from verl_ext.experiment import Cell, num_ranks, trained_on
from verl_ext.experiment import plan as cells_of_experiment
from verl_ext.losses import get_method
from verl_ext.losses.base import Requirements
from verl_ext.planning import costs
from verl_ext.planning.costs import Row
from verl_ext.planning.memory import MicroBatch, idle_bytes, training_memory
from verl_ext.planning.setting import Setting, Stage

_HOUR = 3600.0
_BYTES = {"fp32": 4, "bf16": 2}


def cells_of(config: Config) -> list[Cell]:
    """The checkpoints of the experiment; without rows (`recipes.base_policy`) one run of SFT."""
    if config.experiment.rows or config.experiment.sweep:
        return cells_of_experiment(config)
    row = RowConfig(name="base", label="Base policy", method="sft", data="demonstrations")
    return [Cell(row=row, seed=config.seed, method="sft", params={}, train=config.train)]


def stages_of(setting: Setting, cells: Sequence[Cell]) -> list[Stage]:
    """All stages that cost anything, in their order; the seeds of a row are one stage."""
    found = [*_sampling(setting, cells), *_references(setting, cells)]
    found += _by_row(_offline(setting, cell) for cell in cells if cell.train is not None)
    found += _by_row(_online(setting, cell) for cell in cells if cell.online is not None)
    if setting.config.data.benchmarks:
        found += _by_row(_evaluation(setting, cell) for cell in cells)
    return found


def staging_bytes(setting: Setting) -> float:
    """Of a checkpoint while it is written beside those that stay."""
    return _checkpoint_bytes(setting)


def _by_row(stages: Iterable[Stage]) -> list[Stage]:
    """One stage a name, its runs added up."""
    found: dict[str, Stage] = {}
    for stage in stages:
        before = found.get(stage.name)
        if before is None:
            found[stage.name] = stage
            continue
        sums = ("runs", "tokens", "flops", "device_hours", "core_hours", "disk")
        found[stage.name] = replace(before, **{name: getattr(before, name) + getattr(stage, name) for name in sums})
    return list(found.values())


def requirements(cell: Cell) -> Requirements:
    """What the method of an offline cell wants under its parameters."""
    method = get_method(cell.method)
    return method.requirements(method.params(**(cell.params or {})))


def num_items(setting: Setting, cell: Cell) -> int:
    """Rows, or pairs, that a cell trains on. Pairs: of independent samples, right with plan.correct_fraction."""
    config, correct = setting.config, setting.config.plan.correct_fraction
    splits = config.data.splits
    if cell.row.data == "demonstrations":
        return setting.size("demonstrations" if "demonstrations" in splits else next(iter(splits), "demonstrations"))
    prompts, n = setting.size("train"), config.rollout.n
    if cell.data_kind == "samples":
        return prompts * n
    if cell.data_kind == "pairs":
        mixed = 1 - correct**n - (1 - correct) ** n
        return max(1, round(prompts * mixed * min(config.curate.max_pairs_per_prompt, n // 2)))
    return max(1, round(prompts * min(n * correct, config.curate.max_per_prompt or n)))


def _sampling(setting: Setting, cells: Sequence[Cell]) -> list[Stage]:
    """Samples of the base policy and their verdicts."""
    config = setting.config
    if "samples" not in trained_on(cells):
        return []
    prompts, n = setting.size("train"), config.rollout.n
    verdicts = prompts * n / config.plan.verdicts_per_second / _HOUR
    kept = _sample_bytes(setting, prompts * n)
    sampled = _sampled(setting, "rollout", prompts, n, engines=config.sampler.num_engines)
    return [replace(sampled, disk=kept), Stage(name="verify", core_hours=verdicts, disk=kept)]


def _sampled(setting: Setting, name: str, prompts: float, n: int, *, engines: int) -> Stage:
    """n samples of each prompt by `engines` engines."""
    config, shape, row = setting.config, setting.shape, setting.row
    rate = costs.sampled_tokens_per_second(shape, row, config.sampler, setting.device, config.plan)
    parallel = config.sampler.tensor_parallel_size
    prefill = costs.forward_flops(shape, Row(prompt=row.prompt, response=0)) * prompts
    decode_hours = parallel * prompts * n * row.response / rate / _HOUR if rate else float("inf")
    memory = setting.device.memory
    return Stage(
        name=name,
        tokens=prompts * (row.prompt + n * row.response),
        flops=costs.sampling_flops(shape, row, n) * prompts,
        devices=engines * parallel,
        device_hours=decode_hours + prefill / setting.flops_per_second / _HOUR,
        memory=None if memory is None else memory * config.sampler.gpu_memory_utilization,
    )


def _references(setting: Setting, cells: Sequence[Cell]) -> list[Stage]:
    """Log-probabilities of the data under fixed weights; rows that share data and weights share them."""
    scored = {}
    for cell in (cell for cell in cells if cell.train is not None):
        wanted = requirements(cell)
        data = (cell.row.data, cell.data_kind)
        if "ref_log_probs" in wanted.needs and wanted.reference.kind == "initial":
            scored[(*data, cell.row.start and cell.name)] = _rows(setting, cell, wanted)
        if "behavior_log_probs" in wanted.needs and cell.row.behavior is not None:
            scored[(*data, f"{cell.row.behavior}-seed{cell.seed}")] = _rows(setting, cell, wanted)
    if not scored:
        return []
    rows = sum(scored.values())
    flops = rows * costs.forward_flops(setting.shape, setting.row)
    return [
        Stage(
            name="score references",
            runs=len(scored),
            tokens=rows * setting.row.tokens,
            flops=flops,
            devices=num_ranks(setting.config),
            device_hours=flops / setting.flops_per_second / _HOUR,
            disk=4 * rows * setting.row.response,
        )
    ]


def _rows(setting: Setting, cell: Cell, wanted: Requirements) -> int:
    return num_items(setting, cell) * (2 if wanted.data == "pairs" else 1)


def _offline(setting: Setting, cell: Cell) -> Stage:
    assert cell.train is not None
    config, shape, row, train = setting.config, setting.shape, setting.row, cell.train
    wanted = requirements(cell)
    per_item = 2 if wanted.data == "pairs" else 1
    steps = train.num_steps or max(1, int(train.num_epochs * num_items(setting, cell) / train.batch_size))
    rows = steps * train.batch_size * per_item
    moves, has_kl = wanted.reference.kind != "initial", "ref_kl" in wanted.needs
    flops = rows * (
        costs.training_flops(
            shape, row, recompute=config.model.gradient_checkpointing, lora_rank=config.model.lora_rank
        )
        + (moves + has_kl) * costs.forward_flops(shape, row)
    )
    batch = _micro_batch(config, train, per_item)
    copies = has_kl + (wanted.reference.kind == "average")
    memory = training_memory(shape, config.model, batch, num_ranks=num_ranks(config), weight_copies=copies)
    saves = -(-steps // (train.save_every or steps))
    kept = min(saves, train.keep_last + bool(train.keep_best)) * _checkpoint_bytes(setting)
    published = _weight_bytes(setting) * (1 + (saves if train.keep_weights else 0))
    return Stage(
        name=f"train {cell.row.name}",
        steps=steps,
        tokens=rows * row.tokens,
        flops=flops,
        devices=num_ranks(config),
        device_hours=flops / setting.flops_per_second / _HOUR,
        memory=memory.total,
        training=memory,
        disk=kept + published,
    )


def _micro_batch(config: Config, train: TrainConfig, rows_per_item: int) -> MicroBatch:
    """The largest that a rank can meet: rows at both length limits, no more than its share of the batch."""
    longest = config.model.max_prompt_length + config.model.max_response_length
    shards = train.sequence_parallel_size
    items = -(-train.batch_size * shards // num_ranks(config))
    if train.micro_batch_size is not None:
        tokens = longest * rows_per_item * min(train.micro_batch_size, items)
    else:
        most = min(train.max_tokens_per_micro_batch or 0, longest * rows_per_item * items)
        tokens = max(longest * rows_per_item, most)
    return MicroBatch(
        tokens=tokens,
        trained_tokens=tokens * config.model.max_response_length / longest,
        num_shards=shards,
        chunk=train.logits_chunk_tokens,
    )


def _online(setting: Setting, cell: Cell) -> Stage:
    """Rounds of sampling, scoring (policy, and what else the algorithm keeps) and training, on the same devices.

    PPO trains a critic of the policy's size; a KL to the initial policy scores under that one, too, whose weights verl
    keeps in CPU memory.
    """
    assert cell.online is not None
    config, shape, row, online = setting.config, setting.shape, setting.row, cell.online
    ranks = num_ranks(config)
    prompts = online.num_steps * online.prompts_per_step
    engines = max(1, ranks // config.sampler.tensor_parallel_size)
    sampled = _sampled(setting, f"train {cell.row.name}", prompts, online.n, engines=engines)
    models = 2 if online.algorithm == "ppo" else 1
    forward = costs.forward_flops(shape, row)
    per_row = models * (costs.training_flops(shape, row, recompute=config.model.gradient_checkpointing) + forward)
    flops = prompts * online.n * (per_row + forward * (online.kl_coef > 0))
    longest = config.model.max_prompt_length + config.model.max_response_length
    tokens = max(online.max_tokens_per_micro_batch, longest)
    batch = MicroBatch(tokens=tokens, trained_tokens=tokens)  # verl's engine runs the head on all of them
    in_fp32 = replace(config.model, parameter_dtype="fp32")  # as verl's trainer is started
    memory = training_memory(shape, in_fp32, batch, num_ranks=ranks)
    states = memory.parameters + memory.gradients + memory.moments
    updates = online.prompts_per_step // (online.prompts_per_update or online.prompts_per_step)
    saves = -(-online.num_steps // (online.save_every or online.num_steps))
    return replace(
        sampled,
        steps=online.num_steps * updates,
        flops=sampled.flops + flops,
        devices=ranks,
        device_hours=sampled.device_hours + flops / setting.flops_per_second / _HOUR,
        memory=memory.total + (models - 1) * states,
        training=memory,
        idle=models * idle_bytes(memory, config.model),
        disk=models * min(saves, online.keep_last + bool(online.keep_best)) * _checkpoint_bytes(setting)
        + _weight_bytes(setting),
    )


def _evaluation(setting: Setting, cell: Cell) -> Stage:
    """k samples of every problem under the final weights, and under those of every point of a curve."""
    config = setting.config
    problems, points = sum(setting.benchmark_sizes().values()), 1
    if config.experiment.curve_every and cell.train is not None:
        points += _offline(setting, cell).steps // config.experiment.curve_every
    name, engines = f"evaluate {cell.row.name}", config.sampler.num_engines
    sampled = _sampled(setting, name, problems * points, config.evaluate.k, engines=engines)
    samples = problems * points * config.evaluate.k
    verdicts = samples / config.plan.verdicts_per_second / _HOUR
    return replace(sampled, core_hours=verdicts, disk=_sample_bytes(setting, samples))


def _checkpoint_bytes(setting: Setting) -> float:
    """Of one resumable checkpoint: weights, two moments of what trains, published weights."""
    model = setting.config.model
    trainable = setting.shape.lora_parameters(model.lora_rank) if model.lora_rank else setting.shape.num_parameters
    return 2 * _weight_bytes(setting) + 2 * _BYTES[model.parameter_dtype] * trainable


def _weight_bytes(setting: Setting) -> float:
    return _BYTES[setting.config.model.parameter_dtype] * setting.shape.num_parameters


def _sample_bytes(setting: Setting, num_samples: float) -> float:
    """Of stored samples, before compression: ids, log-probabilities, text."""
    return num_samples * (4 * setting.row.prompt + 12 * setting.row.response)
