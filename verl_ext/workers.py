"""`OfflineActorWorker`: verl's `TrainingWorker` whose method, model and optimizer are set by name, run after run.

Start-up (imports, process group) costs more than training a small policy, so one group of workers serves all rows of
a table: `start` loads the weights anew and builds a fresh optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig, TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker

from verl_ext import engine, plugin, ulysses  # importing the engine registers it
from verl_ext.config import ModelConfig, TrainConfig
from verl_ext.losses import get_method
from verl_ext.losses.base import LossInputs, Method, Normalizer, reduce_losses
from verl_ext.usage import Usage, usage


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What one training run needs inside the worker."""

    model: ModelConfig
    train: TrainConfig
    method: str
    params: dict[str, Any]
    num_steps: int
    threads: int | None = None


class OfflineActorWorker(TrainingWorker):
    """A Ray worker of one rank. Raises RuntimeError where verl's plugin was not loaded."""

    def __init__(self, config: TrainingWorkerConfig):
        plugin.assert_registered()
        super().__init__(config)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def start(self, plan: RunPlan) -> int:
        """Load the weights, build optimizer and schedule, choose the loss; returns the number of parameters."""
        if plan.threads is not None:
            torch.set_num_threads(plan.threads)
        torch.manual_seed(plan.train.seed)
        self.model_config = self.engine.model_config = model_config(plan.model, plan.train)
        self.engine.logits_chunk_tokens = plan.train.logits_chunk_tokens
        self.engine._is_lora = plan.model.lora_rank > 0  # decided once in the engine's constructor otherwise
        self.optimizer_config = self.engine.optimizer_config = optimizer_config(plan.train, plan.num_steps)
        self.engine.release()
        self.engine.initialize()
        method = get_method(plan.method)
        params = method.params(**plan.params)
        self.engine.prepare_for(method.requirements(params))
        self.set_loss_fn(partial(offline_loss, method=method, params=params, normalizer=plan.train.normalizer))
        return sum(parameter.numel() for parameter in self.engine.module.parameters())

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def move_average(self, decay: float) -> None:
        """Move the average of the policy towards its weights: avg <- decay * avg + (1 - decay) * theta."""
        self.engine.average.move_towards_weights(decay)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_checkpoint(self, local_path: str, hdfs_path: Any = None, global_step: int = 0, **_: Any) -> None:
        """verl's checkpoint, and this rank's shard of the average where there is one."""
        self.engine.save_checkpoint(local_path, hdfs_path, global_step, None)
        if self.engine.average is not None:
            self.engine.average.save(self._average_path(local_path))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_checkpoint(self, local_path: str, hdfs_path: Any = None, **_: Any) -> None:
        """What `save_checkpoint` wrote, with the same number of ranks."""
        self.engine.load_checkpoint(local_path, hdfs_path, False)
        if self.engine.average is not None:
            self.engine.average.load(self._average_path(local_path))

    def _average_path(self, directory: str) -> Path:
        return Path(directory) / f"average_rank_{torch.distributed.get_rank()}.pt"

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def fingerprint(self) -> str:
        """Platform, engine and threads of this process, for the log."""
        return f"{type(self.engine).__name__} on {self.device_name}, {torch.get_num_threads()} threads"

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def usage(self) -> Usage:
        """CPU time and memory of this process so far."""
        return usage()


def offline_loss(
    model_output: dict[str, torch.Tensor],
    data: TensorDict,
    dp_group: Any = None,
    *,
    method: Method,
    params: Any,
    normalizer: Normalizer,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss that verl's engine calls for each micro-batch: (scalar to backpropagate, metric sums)."""
    log_probs = model_output["log_probs"]
    lengths = log_probs.offsets().diff()
    mask = torch.arange(int(lengths.max()), device=lengths.device).unsqueeze(0) < lengths.unsqueeze(1)
    trained = data["loss_mask"].values().bool()

    def padded(flat: torch.Tensor) -> torch.Tensor:
        return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)

    stored = {
        name: padded(data[name].values()[trained]) for name in ("ref_log_probs", "behavior_log_probs") if name in data
    }
    if "ref_kl" in model_output:
        stored["ref_kl"] = padded(model_output["ref_kl"].values())
    rewards = data.get("rewards", None)
    inputs = LossInputs(
        log_probs=padded(log_probs.values()), mask=mask, quality=data["quality"], rewards=rewards, **stored
    )
    losses, metrics = method(inputs, params)
    if losses.dim() == 1:  # a loss per pair
        mask = mask.any(dim=1).view(len(losses), -1).any(dim=1)
    counts = {
        name: tu.get_non_tensor_data(data, key=name, default=None)
        for name in ("num_tokens_global", "num_sequences_global", "num_micro_batches", "dp_size")
    }
    loss = reduce_losses(losses, mask, normalizer, **counts)
    metrics = {"weighted_loss_sum": losses.detach().double().sum(), **metrics}
    return loss, {name: float(value) for name, value in metrics.items()}


def model_config(model: ModelConfig, train: TrainConfig) -> HFModelConfig:
    """verl's model config; the tokenizer is saved with every checkpoint."""
    attention: str = model.attn_implementation
    if train.sequence_parallel_size > 1 and attention == "sdpa":
        ulysses.register()
        attention = ulysses.ATTENTION
    return HFModelConfig(
        path=model.path,
        trust_remote_code=model.trust_remote_code,
        enable_gradient_checkpointing=model.gradient_checkpointing,
        use_remove_padding=model.use_remove_padding,
        override_config={"attn_implementation": attention},
        lora_rank=model.lora_rank,
        lora_alpha=model.lora_alpha,
        target_modules="all-linear",
    )


def optimizer_config(train: TrainConfig, num_steps: int) -> FSDPOptimizerConfig:
    """AdamW with linear warm-up, then constant or a half cosine that would reach zero one step after the last.

    So no step runs with a learning rate of zero: step s of n (from 1) uses min(s / w, ...) of the peak. A constant
    rate is verl's cosine with a floor of 1, since its own constant schedule starts warm-up at zero.
    """
    return FSDPOptimizerConfig(
        lr=train.learning_rate,
        betas=(train.beta1, train.beta2),
        weight_decay=train.weight_decay,
        clip_grad=train.max_grad_norm,
        lr_scheduler_type="cosine",
        min_lr_ratio=1.0 if train.lr_schedule == "constant" else 0.0,
        lr_warmup_steps=int(train.warmup_fraction * num_steps),
        total_training_steps=num_steps + 1,
        zero_indexed_step=False,
        # one kernel a step: FSDP2's DTensors one by one cost a small policy an eighth of the step in dispatching
        override_optimizer_config={"fused": True},
    )


def worker_config(model: ModelConfig, train: TrainConfig) -> TrainingWorkerConfig:
    """What a worker needs to start; `OfflineActorWorker.start` replaces model and optimizer for each run."""
    from verl.trainer.config import CheckpointConfig

    contents = ["model", "optimizer", "extra", "hf_model"]
    return TrainingWorkerConfig(
        model_type=engine.MODEL_TYPE,
        model_config=model_config(model, train),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            model_dtype=model.parameter_dtype,
            mixed_precision={"param_dtype": model.dtype, "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
            use_torch_compile=False,
            use_dynamic_bsz=True,
            ulysses_sequence_parallel_size=train.sequence_parallel_size,
            offload_policy=model.offload == "always",
            # else the whole gradients of all layers would stay on each device until the last micro-batch
            use_no_sync_for_gradient_accumulation=False,
        ),
        optimizer_config=optimizer_config(train, num_steps=1),
        checkpoint_config=CheckpointConfig(save_contents=contents, load_contents=contents[:3]),
    )


__all__ = ["OfflineActorWorker", "RunPlan", "offline_loss", "worker_config"]
