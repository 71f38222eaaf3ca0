"""Train a few steps with verl's own worker and verl's own loss, and write the losses: `verl_losses.py POLICY OUT`.

A process of its own, since a Ray cluster is one to a process. OUT is JSON: number of ranks -> losses.
"""

from __future__ import annotations

import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

NUM_STEPS, LEARNING_RATE, WEIGHT_DECAY = 3, 3e-3, 0.01


def rows() -> list[tuple[list[int], list[int]]]:
    """(token ids, loss mask) of eight sequences; lengths differ, so ranks and micro-batches differ in tokens."""
    batch = []
    for index in range(8):
        prompt, response = 3 + index % 3, 4 + 2 * index
        ids = [(7 * position + 13 * index) % 470 + 4 for position in range(prompt + response)]
        batch.append((ids, [0] * prompt + [1] * response))
    return batch


def worker_config(policy: str) -> Any:
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig, TrainingWorkerConfig

    return TrainingWorkerConfig(
        model_type="language_model",
        model_config=HFModelConfig(
            path=policy,
            use_remove_padding=False,
            enable_gradient_checkpointing=False,
            override_config={"attn_implementation": "sdpa"},
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            mixed_precision={"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
            use_torch_compile=False,
        ),
        optimizer_config=FSDPOptimizerConfig(
            lr=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            clip_grad=1.0,
            lr_scheduler_type="constant",
            total_training_steps=NUM_STEPS,
        ),
        checkpoint_config=CheckpointConfig(),
    )


def batch() -> Any:
    import torch
    from tensordict import NonTensorData
    from verl.utils import tensordict_utils as tu
    from verl.utils.dataset.dataset_utils import DatasetPadMode

    def jagged(sequences: list[list[int]]) -> Any:
        return torch.nested.as_nested_tensor([torch.tensor(row) for row in sequences], layout=torch.jagged)

    ids, masks = [ids for ids, _ in rows()], [mask for _, mask in rows()]
    tensors = {
        "input_ids": jagged(ids),
        "loss_mask": jagged(masks),
        "position_ids": jagged([list(range(len(row))) for row in ids]),
    }
    settings = {
        "use_dynamic_bsz": False,
        "micro_batch_size_per_gpu": 2,
        "temperature": 1.0,
        "global_batch_size": len(ids),
        "pad_mode": DatasetPadMode.NO_PADDING,
        "pad_token_id": 0,
    }
    data = tu.get_tensordict(tensors, settings)
    tu.assign_non_tensor(data, update_lr_scheduler=True, global_token_num=NonTensorData([len(row) for row in ids]))
    return data


def train(policy: str, num_ranks: int) -> list[float]:
    import ray
    from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup
    from verl.utils import tensordict_utils as tu
    from verl.workers.engine_workers import TrainingWorker
    from verl.workers.utils import losses

    pool = RayResourcePool([num_ranks], max_colocate_count=1)  # by default it waits for 10 logical CPUs a rank
    actor = RayClassWithInitArgs(ray.remote(TrainingWorker), config=worker_config(policy))
    group: Any = RayWorkerGroup(resource_pool=pool, ray_cls_with_init=actor, device_name="cpu")
    sft_loss: Any = losses.sft_loss
    group.set_loss_fn(loss_fn=partial(sft_loss, config=None))
    group.reset()
    return [tu.get(group.train_batch(batch()).get(), "metrics")["loss"] for _ in range(NUM_STEPS)]


def main(policy: str, out: str) -> None:
    import ray

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as directory:
        ray.init(
            num_cpus=4,
            num_gpus=3,  # declared: what verl's placement groups ask for, one a rank
            include_dashboard=False,
            _temp_dir=directory,  # short, since Ray's sockets have a path limit
            object_store_memory=256 * 2**20,
        )
        found = {num_ranks: train(policy, num_ranks) for num_ranks in (1, 2)}
        ray.shutdown()
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
