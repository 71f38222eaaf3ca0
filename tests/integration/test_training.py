"""The trained step, through Ray, verl's engine and FSDP2, against a bare PyTorch loop and against itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2ForCausalLM

from verl_ext import artifacts, checkpoints, trainer, training_loop
from verl_ext.batching import Order, TrainingDataset
from verl_ext.config import ModelConfig, TrainConfig
from verl_ext.errors import UserError
from verl_ext.losses.base import Draw

NUM_STEPS = 3
BASE = {
    "batch_size": 8,
    "num_steps": NUM_STEPS,
    "max_tokens_per_micro_batch": 150,
    "learning_rate": 1e-3,
    "warmup_fraction": 0.0,
    "lr_schedule": "constant",
}
METHODS = [("sft", {}), ("dft", {"level": "token"}), ("iw_sft", {}), ("iw_sft", {"level": "token"})]


def make_run(
    model: ModelConfig,
    positives: Path,
    out: Path,
    method: str = "sft",
    params: Any = None,
    ranks: int = 1,
    **train: Any,
) -> trainer.TrainingRun:
    return trainer.TrainingRun(
        name=out.name,
        model=model,
        train=TrainConfig(**{**BASE, **train}),
        method=method,
        params=params or {},
        data=positives,
        output_dir=out,
        num_ranks=ranks,
        threads=1,
    )


def read_log(run: trainer.TrainingRun) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run.output_dir / "log.jsonl").read_text().splitlines()]


def weights(run: trainer.TrainingRun) -> dict[str, torch.Tensor]:
    return load_file(run.output_dir / "huggingface" / "model.safetensors")


def token_log_probs(model: Qwen2ForCausalLM, prompt: np.ndarray, response: np.ndarray) -> torch.Tensor:
    ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))[None]
    log_probs = model(input_ids=ids).logits.float().log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    return log_probs[len(prompt) - 1 :]


def bare_weight(method: str, params: dict[str, Any], log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Token weights straight from the formulas, for one response."""
    if method == "sft":
        return torch.ones_like(log_probs)
    if method == "dft":
        return log_probs.exp()
    if params.get("level") == "token":
        return (log_probs - reference).exp().clamp(0.2, 1.8)
    return (log_probs - reference).mean().exp().clamp(0, 16).expand_as(log_probs)


def bare_loop(
    model_path: str, positives: Path, method: str, params: dict[str, Any]
) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    """Row by row, no padding, no micro-batches: (loss, gradient norm) of each step and the final weights."""
    model = Qwen2ForCausalLM.from_pretrained(model_path, dtype=torch.float32, attn_implementation="eager")
    data = TrainingDataset(artifacts.read(positives, "positives"))
    with torch.no_grad():
        references = [token_log_probs(model, data.prompts[row], data.responses[row]) for row in range(len(data))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    history = []
    for step in range(NUM_STEPS):
        rows = Order(data.quality, Draw(), 8, seed=0).items(step)
        num_tokens = int(data.responses.lengths[rows].sum())
        loss = torch.zeros(())
        for row in rows:
            log_probs = token_log_probs(model, data.prompts[row], data.responses[row])
            weight = bare_weight(method, params, log_probs.detach(), references[row])
            loss = loss - (weight * log_probs).sum() / num_tokens
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append((loss.item(), norm.item()))
    return history, {name: value.detach() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(("method", "params"), METHODS)
def test_three_steps_through_verl_equal_a_bare_pytorch_loop(
    method: str,
    params: dict[str, Any],
    model: ModelConfig,
    positives: Path,
    workers: Callable[[int], Any],
    tmp_path: Path,
) -> None:
    expected, final = bare_loop(model.path, positives, method, params)
    run = make_run(model, positives, tmp_path / "run", method, params)
    trainer.train(run, lambda: workers(1))
    for record, (loss, norm) in zip(read_log(run), expected, strict=True):
        assert record["loss"] == pytest.approx(loss, rel=1e-5)
        assert record["grad_norm"] == pytest.approx(norm, rel=1e-5)
    trained = weights(run)
    # One norm over all weights: where a gradient is zero but for rounding (keys' biases, to which softmax is blind),
    # AdamW turns the rounding into steps of the size of the learning rate.
    flat = [torch.cat([state[name].flatten() for name in trained]) for state in (trained, final)]
    assert torch.linalg.vector_norm(flat[0] - flat[1]) / torch.linalg.vector_norm(flat[1]) < 1e-5


@pytest.mark.parametrize(("method", "params"), METHODS[1:3])
def test_micro_batches_padding_and_ranks_change_a_step_by_rounding_only(
    method: str,
    params: dict[str, Any],
    model: ModelConfig,
    positives: Path,
    workers: Callable[[int], Any],
    tmp_path: Path,
) -> None:
    variants = {
        "whole": make_run(model, positives, tmp_path / "whole", method, params, max_tokens_per_micro_batch=10_000),
        "split": make_run(model, positives, tmp_path / "split", method, params, max_tokens_per_micro_batch=60),
        "two_ranks": make_run(model, positives, tmp_path / "ranks", method, params, ranks=2),
        "data_order": make_run(
            model, positives, tmp_path / "order", method, params, max_tokens_per_micro_batch=None, micro_batch_size=3
        ),
    }
    for run in variants.values():
        trainer.train(run, lambda ranks=run.num_ranks: workers(ranks))
    whole = read_log(variants["whole"])
    for name in ("split", "two_ranks", "data_order"):
        for record, reference in zip(read_log(variants[name]), whole, strict=True):
            for key in ("loss", "nll", "grad_norm", "mean_weight", "effective_sample_size"):
                assert record[key] == pytest.approx(reference[key], rel=1e-5), (name, key, record["step"])


def test_before_the_first_step_every_iw_sft_weight_is_one(
    model: ModelConfig, positives: Path, workers: Callable[[int], Any], tmp_path: Path
) -> None:
    # at the token level the clip range is [0.2, 1.8], so mean weight 1 and equal weights mean each weight is 1
    run = make_run(
        model, positives, tmp_path / "run", "iw_sft", {"level": "token", "clip_low": 0.9999, "clip_high": 1.0001}
    )
    trainer.train(run, lambda: workers(2 if run.num_ranks == 2 else 1))
    first = read_log(run)[0]
    assert first["clipped_fraction"] == 0.0, "an off-by-one alignment would put weights outside 1 +- 1e-4"
    assert first["mean_weight"] == pytest.approx(1.0, abs=1e-4)


def test_paper_v1_has_the_gradient_of_the_official_trainer(
    model: ModelConfig, positives: Path, workers: Callable[[int], Any], tmp_path: Path
) -> None:
    """Official code: backward on each micro-batch's token mean, no division by their number (4 here)."""
    fixed = {"micro_batch_size": 2, "max_tokens_per_micro_batch": None, "num_steps": 1}
    runs = {
        name: make_run(model, positives, tmp_path / name, normalizer=name, **fixed)
        for name in ("paper_v1", "micro_token_mean")
    }
    for run in runs.values():
        trainer.train(run, lambda: workers(1))
    data = TrainingDataset(artifacts.read(positives, "positives"))
    bare = Qwen2ForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    rows = Order(data.quality, Draw(), 8, seed=0).items(0)
    for group in rows.reshape(4, 2):
        log_probs = [token_log_probs(bare, data.prompts[row], data.responses[row]) for row in group]
        (-torch.cat(log_probs).mean()).backward()
    official = torch.nn.utils.get_total_norm([p.grad for p in bare.parameters() if p.grad is not None])
    assert read_log(runs["paper_v1"])[0]["grad_norm"] == pytest.approx(float(official), rel=1e-5)
    assert read_log(runs["micro_token_mean"])[0]["grad_norm"] == pytest.approx(float(official) / 4, rel=1e-5)


def spoil(worker: Any, kind: str, steps: set[int]) -> None:
    """Runs in a rank: put NaN into its loss, its gradient alone, or its log-probabilities, at some steps (from 0)."""
    healthy = worker.loss_fn

    def loss_function(model_output: dict[str, torch.Tensor], **rest: Any) -> tuple[torch.Tensor, dict[str, float]]:
        broken = worker.engine.lr_scheduler.last_epoch in steps
        if broken and kind == "log_probs":
            model_output = {**model_output, "log_probs": model_output["log_probs"] * torch.nan}
        loss, metrics = healthy(model_output, **rest)
        if broken and kind == "loss":
            loss = loss + torch.nan  # whose gradient is finite
        if broken and kind == "gradient":
            loss.register_hook(lambda gradient: gradient * torch.nan)
        return loss, metrics

    worker.set_loss_fn(loss_function)


class OneBadRank:
    """A group of workers whose second rank is spoiled as soon as a run starts."""

    def __init__(self, group: Any, kind: str, steps: set[int]):
        self._group, self._fault = group, (kind, steps)

    def start(self, plan: Any) -> Any:
        import ray

        found = self._group.start(plan)
        ray.get(self._group.workers[1].__ray_call__.remote(spoil, *self._fault))
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)


def test_nan_on_one_rank_is_a_step_that_no_rank_takes(
    model: ModelConfig, positives: Path, workers: Callable[[int], Any], tmp_path: Path
) -> None:
    """T10: the second step is skipped whatever was NaN in it; where it stays so, the last good checkpoint is named."""
    first = make_run(model, positives, tmp_path / "first", ranks=2, num_steps=1)
    trainer.train(first, lambda: workers(2))
    expected = weights(first)
    for kind in ("loss", "gradient", "log_probs"):
        run = make_run(model, positives, tmp_path / kind, ranks=2, num_steps=2)
        trainer.train(run, lambda kind=kind: OneBadRank(workers(2), kind, {1}))
        assert [bool(np.isfinite(line["grad_norm"])) for line in read_log(run)] == [True, False], kind
        assert all(torch.equal(value, expected[name]) for name, value in weights(run).items()), kind
    run = make_run(
        model, positives, tmp_path / "stays", ranks=2, num_steps=9, save_every=1, keep_last=2, max_skipped_steps=1
    )
    with pytest.raises(UserError, match=r"2 steps in a row.*last good checkpoint is '.*step_000002'"):
        trainer.train(run, lambda: OneBadRank(workers(2), "loss", {1, 2}))


class _Killed(BaseException):
    """Stands for a kill between two steps."""


@pytest.mark.parametrize("method", ["dft", "iw_sft"])
def test_a_run_killed_after_any_step_ends_in_the_same_bytes(
    method: str,
    model: ModelConfig,
    positives: Path,
    workers: Callable[[int], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """T3: 24 rows in batches of 8: steps 3 and 6 are ends of an epoch, where verl's own trainer skips the next one."""
    settings = {"num_steps": 7, "save_every": 1, "lr_schedule": "cosine"}
    whole = make_run(model, positives, tmp_path / "whole", method, **settings)
    trainer.train(whole, lambda: workers(1))
    expected = (whole.output_dir / "huggingface" / "model.safetensors").read_bytes()
    steps = training_loop.TrainingLoop._step
    interrupted = make_run(model, positives, tmp_path / "interrupted", method, **settings)
    for stop in range(1, 7):

        def step_or_die(self: Any, step: int, stop: int = stop) -> Any:
            if step == stop:
                raise _Killed
            return steps(self, step)

        monkeypatch.setattr(training_loop.TrainingLoop, "_step", step_or_die)
        with pytest.raises(_Killed):
            trainer.train(interrupted, lambda: workers(1))
        assert checkpoints.latest(interrupted.output_dir / "steps")[1]["step"] == stop
    monkeypatch.setattr(training_loop.TrainingLoop, "_step", steps)
    trainer.train(interrupted, lambda: workers(1))
    assert (interrupted.output_dir / "huggingface" / "model.safetensors").read_bytes() == expected
    kept = ("step", "loss", "grad_norm", "learning_rate")
    records = [[{key: record[key] for key in kept} for record in read_log(run)] for run in (whole, interrupted)]
    assert records[0] == records[1]


@pytest.mark.parametrize(
    ("method", "params"),
    [("dft", {}), ("iw_sft", {"reference": "lagged", "decay": 0.5, "period": 1}), ("asft", {"kl_coef": 1.0})],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_in_cpu_memory_end_in_the_same_bytes(
    method: str,
    params: dict[str, Any],
    model: ModelConfig,
    positives: Path,
    workers: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also from checkpoint to checkpoint, where the last steps are made without; with a moving average, with a KL."""
    settings = {"num_steps": 6, "save_every": 1, "lr_schedule": "cosine", "max_tokens_per_micro_batch": 60}
    whole = make_run(model, positives, tmp_path / "whole", method, params, **settings)
    trainer.train(whole, lambda: workers(1))
    offloaded = replace(model, offload="always")
    interrupted = make_run(offloaded, positives, tmp_path / "interrupted", method, params, **settings)
    steps = training_loop.TrainingLoop._step
    for stop in (2, 4):

        def step_or_die(self: Any, step: int, stop: int = stop) -> Any:
            if step == stop:
                raise _Killed
            return steps(self, step)

        monkeypatch.setattr(training_loop.TrainingLoop, "_step", step_or_die)
        with pytest.raises(_Killed):
            trainer.train(interrupted, lambda: workers(1, offloaded))
        assert checkpoints.latest(interrupted.output_dir / "steps")[1]["step"] == stop
    monkeypatch.setattr(training_loop.TrainingLoop, "_step", steps)
    trainer.train(replace(interrupted, model=model), lambda: workers(1))
    exported = [(run.output_dir / "huggingface" / "model.safetensors").read_bytes() for run in (whole, interrupted)]
    assert exported[0] == exported[1]
    for found, expected in zip(read_log(interrupted), read_log(whole), strict=True):
        assert (found["loss"], found["grad_norm"]) == (expected["loss"], expected["grad_norm"])


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    model: ModelConfig, positives: Path, workers: Callable[[int], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """T4"""
    run = make_run(model, positives, tmp_path / "run", save_every=1)
    trainer.train(run, lambda: workers(1))
    expected = (run.output_dir / "huggingface" / "model.safetensors").read_bytes()
    (run.output_dir / "manifest.json").unlink()
    shard = next((run.output_dir / "steps" / "step_000003").glob("model_world_size_*.pt"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    trainer.train(run, lambda: workers(1))
    assert "step_000003 is damaged" in caplog.text
    assert (run.output_dir / "huggingface" / "model.safetensors").read_bytes() == expected


def test_a_finished_run_is_skipped_and_another_one_refused(
    model: ModelConfig, positives: Path, workers: Callable[[int], Any], tmp_path: Path
) -> None:
    """T22"""

    def no_workers() -> Any:
        raise AssertionError("a finished run must not start workers")

    run = make_run(model, positives, tmp_path / "run", num_steps=1)
    trainer.train(run, lambda: workers(1))
    assert trainer.train(run, no_workers) == tmp_path / "run" / "huggingface"
    with pytest.raises(UserError, match=r"config\.train\.learning_rate \(0.001, now 0.002\)"):
        trainer.train(make_run(model, positives, tmp_path / "run", num_steps=1, learning_rate=2e-3), no_workers)
