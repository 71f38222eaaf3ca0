"""What the worker path is measured against: a bare PyTorch loop, and TRL's trainer.

Both train the model of `Task` on the rows of `Task.data` in the order of `step_rows`, in fp32, and return a
`Measurement` of the steps after the first one, which warms up. They run in a fresh process each.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_ext.config import TrainConfig
from verl_ext.usage import Usage, usage

if TYPE_CHECKING:
    import numpy as np

TRL_BATCH_SIZE = 8  # rows a backward pass


@dataclass(frozen=True, kw_only=True)
class Task:
    """The same work for every contender. `train.num_steps` counts the warm-up step."""

    model_path: Path
    data: Path  # a positives artifact
    train: TrainConfig
    max_length: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Totals over the timed steps, in one process; `loss` is that of the last step."""

    seconds: float
    cpu_seconds: float
    num_tokens: int  # real tokens, prompts included
    num_padded_tokens: int
    base_bytes: int  # resident before the model was loaded: Python and its imports
    peak_bytes: int
    loss: float
    scoring_seconds: float = 0.0  # before the first step, for reference log-probabilities


def measurement(
    start: Usage, warm: tuple[float, Usage], num_tokens: int, num_padded_tokens: int, loss: float
) -> Measurement:
    """From the usage at the start, time and usage after the warm-up step, and now."""
    end = usage()
    return Measurement(
        seconds=time.perf_counter() - warm[0],
        cpu_seconds=end.cpu_seconds - warm[1].cpu_seconds,
        num_tokens=num_tokens,
        num_padded_tokens=num_padded_tokens,
        base_bytes=start.resident_bytes,
        peak_bytes=end.peak_bytes,
        loss=loss,
    )


def steps(task: Task, lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of every optimizer step, as the trainer draws them."""
    from verl_ext.batching import step_rows

    for step in range(task.train.num_steps or 0):
        yield step_rows(len(lengths), task.train.batch_size, step, task.train.seed)


def grouped(task: Task, rows: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Micro-batches of one step grouped by length, as the engine plans them on one rank."""
    from verl_ext.batching import deal_to_ranks, plan_micro_batches

    assert task.train.max_tokens_per_micro_batch is not None
    rows = deal_to_ranks(rows, lengths, num_ranks=1)
    return [rows[group] for group in plan_micro_batches(lengths[rows].tolist(), task.train.max_tokens_per_micro_batch)]


def in_data_order(task: Task, rows: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Micro-batches of `TRL_BATCH_SIZE` rows, whatever their lengths."""
    return [rows[start : start + TRL_BATCH_SIZE] for start in range(0, len(rows), TRL_BATCH_SIZE)]


def count_tokens(groups: list[np.ndarray], lengths: np.ndarray) -> tuple[int, int]:
    """Real and padded tokens of micro-batches."""
    real = sum(int(lengths[group].sum()) for group in groups)
    return real, sum(int(lengths[group].max()) * len(group) for group in groups)


def bare_loop(task: Task, by_length: bool = True) -> Measurement:
    """SFT in plain PyTorch: padded rows, logits at all positions, AdamW, clipped gradients, and nothing else."""
    import torch
    from transformers import Qwen2ForCausalLM

    from verl_ext import artifacts
    from verl_ext.batching import PositivesDataset

    torch.set_num_threads(task.threads)
    data = PositivesDataset(artifacts.read(task.data, "positives"))
    start = usage()
    model = Qwen2ForCausalLM.from_pretrained(task.model_path, dtype=torch.float32).train()
    train = task.train
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=train.learning_rate, betas=(train.beta1, train.beta2), weight_decay=train.weight_decay
    )
    warm, real, padded = (0.0, start), 0, 0
    for step, rows in enumerate(steps(task, data.lengths)):
        groups = (grouped if by_length else in_data_order)(task, rows, data.lengths)
        num_trained = int(data.responses.lengths[rows].sum())
        optimizer.zero_grad()
        total = 0.0
        for group in groups:
            inputs, labels = _padded(data, group)
            logits = model(input_ids=inputs, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
            loss = loss / num_trained
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm)
        optimizer.step()
        if step == 0:
            warm = time.perf_counter(), usage()
        else:
            counted = count_tokens(groups, data.lengths)
            real, padded = real + counted[0], padded + counted[1]
    return measurement(start, warm, real, padded, total)


def _padded(data: Any, rows: np.ndarray) -> tuple[Any, Any]:
    """Token ids and labels (-100 on prompts and padding) of some rows, [rows, longest]."""
    import torch

    shape = (len(rows), int(data.lengths[rows].max()))
    inputs, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
    for index, row in enumerate(rows):
        prompt, response = torch.from_numpy(data.prompts[row]), torch.from_numpy(data.responses[row])
        inputs[index, : len(prompt)] = prompt
        inputs[index, len(prompt) : data.lengths[row]] = labels[index, len(prompt) : data.lengths[row]] = response
    return inputs, labels


def trl_dft(task: Task) -> Measurement:
    """TRL's SFTTrainer with loss_type="dft" on the same rows in the same steps, eight rows a backward pass.

    Gradient checkpointing, TRL's default, is off, since no other contender recomputes. Raises ImportError without TRL.
    """
    import datasets
    import torch
    from trl import SFTConfig, SFTTrainer

    from verl_ext import artifacts
    from verl_ext.batching import PositivesDataset

    torch.set_num_threads(task.threads)
    datasets.disable_progress_bars()
    data = PositivesDataset(artifacts.read(task.data, "positives"))
    batches = list(steps(task, data.lengths))
    order = [int(row) for rows in batches for row in rows]
    start = usage()
    with tempfile.TemporaryDirectory() as directory:
        trainer = SFTTrainer(
            model=str(task.model_path),
            args=SFTConfig(output_dir=directory, **_trl_arguments(task)),
            train_dataset=datasets.Dataset.from_dict(
                {
                    "input_ids": [[*data.prompts[row].tolist(), *data.responses[row].tolist()] for row in order],
                    "completion_mask": [[0] * len(data.prompts[row]) + [1] * len(data.responses[row]) for row in order],
                }
            ),
            callbacks=[clock := _clock()],
        )
        trainer.train()
    groups = [group for rows in batches[1:] for group in in_data_order(task, rows, data.lengths)]
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    total = measurement(start, clock.ticks[0], *count_tokens(groups, data.lengths), losses[-1])
    # up to the last step: what the trainer does afterwards is not training
    (began, before), (ended, after) = clock.ticks[0], clock.ticks[-1]
    return dataclasses.replace(total, seconds=ended - began, cpu_seconds=after.cpu_seconds - before.cpu_seconds)


def _clock() -> Any:
    """A trainer callback that notes time and usage at the end of every step."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.ticks: list[tuple[float, Usage]] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ticks.append((time.perf_counter(), usage()))

    return Clock()


def _trl_arguments(task: Task) -> dict[str, Any]:
    train = task.train
    return {
        "loss_type": "dft",
        "completion_only_loss": True,
        "max_length": task.max_length,
        "packing": False,
        "per_device_train_batch_size": TRL_BATCH_SIZE,
        "gradient_accumulation_steps": train.batch_size // TRL_BATCH_SIZE,
        "train_sampling_strategy": "sequential",
        "max_steps": train.num_steps,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": "constant",
        "adam_beta1": train.beta1,
        "adam_beta2": train.beta2,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "bf16": False,
        "model_init_kwargs": {"dtype": "float32"},
        "save_strategy": "no",
        "report_to": "none",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
