"""The worker path as a contender: the trainer drives a new group of workers whose steps are measured."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_ext.config import ClusterConfig, Config, ModelConfig
from verl_ext.contenders import Measurement, Task
from verl_ext.usage import Usage, usage

if TYPE_CHECKING:
    from verl.single_controller.ray import RayWorkerGroup


def worker_path(task: Task, method: str, directory: Path) -> Measurement:
    """Train `method` through Ray, one `OfflineActorWorker`, verl's engine and FSDP2; the driver is this process.

    CPU time is the worker's and the driver's, memory the worker's alone. Nothing else may use Ray meanwhile.
    """
    import ray

    from verl_ext import cluster, trainer

    model = ModelConfig(
        path=str(task.model_path),
        dtype="fp32",
        prompt_template="problem-only",
        max_prompt_length=task.max_length,
        max_response_length=task.max_length,
    )
    plan = trainer.TrainingRun(
        name=method,
        model=model,
        train=task.train,
        method=method,
        params={},
        data=task.data,
        output_dir=Path(tempfile.mkdtemp(dir=directory)) / method,
        threads=task.threads,
    )
    try:
        config = Config(model=model, train=task.train, cluster=ClusterConfig(device="cpu"))
        workers = MeteredWorkers(cluster.create_workers(config), task.train.num_steps or 0)
        trainer.train(plan, lambda: workers)  # type: ignore[arg-type,return-value]
    finally:
        ray.shutdown()
    steps = [json.loads(line) for line in (plan.output_dir / "log.jsonl").read_text().splitlines()]
    return workers.measurement(sum(step["num_tokens"] for step in steps[1:]), steps[-1]["loss"])


class MeteredWorkers:
    """A worker group, and what its first rank and this process have used after the first and the last step."""

    def __init__(self, workers: RayWorkerGroup, num_steps: int):
        self._workers, self._num_steps = workers, num_steps
        self._base = workers.usage()[0]
        self._num_done = 0
        self._ticks: list[tuple[float, Usage, float]] = []
        self._started = self._first_called = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workers, name)

    def start(self, plan: Any) -> Any:
        result = self._workers.start(plan)
        self._started = time.perf_counter()
        return result

    def train_batch(self, batch: Any) -> _Pending:
        self._first_called = self._first_called or time.perf_counter()
        return _Pending(self._workers.train_batch(batch), self._done)

    def _done(self) -> None:
        self._num_done += 1
        if self._num_done in (1, self._num_steps):
            self._ticks.append((time.perf_counter(), self._workers.usage()[0], usage().cpu_seconds))

    def measurement(self, num_tokens: int, loss: float) -> Measurement:
        """Totals from the end of the first step to the end of the last one."""
        (began, before, driver_before), (ended, after, driver_after) = self._ticks
        return Measurement(
            seconds=ended - began,
            cpu_seconds=after.cpu_seconds - before.cpu_seconds + driver_after - driver_before,
            num_tokens=num_tokens,
            num_padded_tokens=0,
            base_bytes=self._base.resident_bytes,
            peak_bytes=after.peak_bytes,
            loss=loss,
            scoring_seconds=self._first_called - self._started,
        )


class _Pending:
    """A result to come that says when it has come."""

    def __init__(self, pending: Any, done: Callable[[], None]):
        self._pending, self._call_done = pending, done

    def get(self) -> Any:
        result = self._pending.get()
        self._call_done()
        return result
