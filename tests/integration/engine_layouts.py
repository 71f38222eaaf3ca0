"""The engine alone, without Ray, on one or two gloo processes: loss and gradient of a step in several layouts."""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from verl_ext.config import ModelConfig, TrainConfig

Case = tuple[str, dict[str, Any]]  # method, parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How a step is run."""

    name: str
    num_ranks: int = 1
    sequence_parallel_size: int = 1
    use_remove_padding: bool = False
    chunk_tokens: int | None = None
    gradient_checkpointing: bool = False
    lora_rank: int = 0
    offload: Literal["none", "idle", "always"] = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """All layouts of one number of processes, and the cases that each runs; results go to `directory`."""

    model: ModelConfig
    data: dict[str, Path]  # kind of data -> artifact
    cases: list[Case]
    layouts: list[Layout]
    directory: Path
    port: int


def result_path(directory: Path, layout: Layout, case: Case) -> Path:
    """Where loss, metrics and gradient of a case are, as `torch.save` wrote them."""
    method, params = case
    name = "-".join([layout.name, method, *(f"{key}={value}" for key, value in params.items())])
    return directory / f"{name}.pt".replace(" ", "")


def run_rank(rank: int, work: Work) -> None:
    """One process of all layouts in `work`."""
    num_ranks = work.layouts[0].num_ranks
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(work.port), RANK=str(rank), WORLD_SIZE=str(num_ranks), LOCAL_RANK="0"
    )
    from verl_ext import plugin

    plugin.register()
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    for layout in work.layouts:
        engine = _make_engine(layout, work)
        start = [parameter.detach().clone() for parameter in engine.module.parameters()]
        for case in work.cases:
            with torch.no_grad():
                for parameter, value in zip(engine.module.parameters(), start, strict=True):
                    parameter.copy_(value)
            _measure(engine, layout, case, work, rank)
    torch.distributed.destroy_process_group()


def _make_engine(layout: Layout, work: Work) -> Any:
    from verl_ext.engine import OfflineActorEngine
    from verl_ext.workers import worker_config

    model = dataclasses.replace(
        work.model,
        use_remove_padding=layout.use_remove_padding,
        gradient_checkpointing=layout.gradient_checkpointing,
        lora_rank=layout.lora_rank,
        offload=layout.offload,
    )
    config = worker_config(model, TrainConfig(sequence_parallel_size=layout.sequence_parallel_size))
    engine = OfflineActorEngine(
        config.model_config, config.engine_config, config.optimizer_config, config.checkpoint_config
    )
    engine.logits_chunk_tokens = layout.chunk_tokens
    torch.manual_seed(0)  # of adapters
    engine.initialize()
    assert engine._uses_fsdp2_cpu_offload_policy == (layout.offload == "always")
    return engine


def _measure(engine: Any, layout: Layout, case: Case, work: Work, rank: int) -> None:
    from verl.utils import tensordict_utils as tu

    from verl_ext.losses import get_method
    from verl_ext.workers import offline_loss

    name, values = case
    method = get_method(name)
    params = method.params(**values)
    requirements = method.requirements(params)
    engine.prepare_for(requirements)
    _move_away_from_start(engine)
    loss = partial(offline_loss, method=method, params=params, normalizer="global_token")
    share = engine.get_data_parallel_rank(), engine.get_data_parallel_size()
    asked = _batch(work, requirements, *share)
    tu.assign_non_tensor(asked, calculate_entropy=True)
    with engine.eval_mode():
        scores = engine.forward_backward_batch(asked, None, forward_only=True)["model_output"]
    with engine.train_mode():
        output = engine.forward_backward_batch(_batch(work, requirements, *share), loss)
        gradient = torch.cat([_whole(p.grad).flatten() for p in engine.module.parameters() if p.grad is not None])
        engine.optimizer_zero_grad()
    entropy = scores["entropy"].values().double().sum()
    totals = torch.stack([torch.tensor(sum(output["loss"]) / share[1], dtype=torch.float64), entropy])
    torch.distributed.all_reduce(totals, group=engine.get_data_parallel_group())
    if rank == 0:
        found = {"loss": float(totals[0]), "entropy": float(totals[1]), "gradient": gradient}
        torch.save(found, result_path(work.directory, layout, case))


@torch.no_grad()
def _move_away_from_start(engine: Any) -> None:
    """Make the policy another one than its reference, alike on any number of ranks."""
    for parameter in engine.module.parameters():
        if parameter.requires_grad:
            parameter.mul_(1.05).add_(0.001)


def _whole(gradient: Any) -> torch.Tensor:
    whole: torch.Tensor = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return whole.float()


def _batch(work: Work, requirements: Any, share: int, num_shares: int) -> Any:
    """A share of the first 16 rows (8 pairs), in micro-batches of 150 tokens, with made-up reference scores."""
    from verl.utils import tensordict_utils as tu

    from verl_ext import artifacts
    from verl_ext.batching import TrainingDataset
    from verl_ext.ragged import Ragged
    from verl_ext.trainer import TABLES

    kind = TABLES[requirements.data]
    dataset = TrainingDataset(artifacts.read(work.data[kind], kind), requirements.data)
    rng = np.random.default_rng(5)
    lengths = dataset.responses.lengths
    scores = [(-5.5 + 0.3 * rng.normal(size=length)).astype(np.float32) for length in lengths]
    dataset.per_token["ref_log_probs"] = Ragged(pa.array(scores, type=pa.list_(pa.float32())))
    rows = np.arange(16).reshape(num_shares, -1)[share]
    batch = dataset.batch(rows)
    tu.assign_non_tensor(batch, max_tokens_per_micro_batch=150, rows_per_item=dataset.rows_per_item)
    return batch
