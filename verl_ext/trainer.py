"""The offline loop: reference scores, steps, log, save, resume.

The loop owns the order of the data and the optimizer steps; verl's workers own everything inside a step. Every state
of the loop is a function of the step, so a run killed at any point continues from its last checkpoint exactly.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from verl_ext import artifacts, checkpoints
from verl_ext.artifacts import Lineage
from verl_ext.batching import PositivesDataset, deal_to_ranks, step_rows
from verl_ext.config import ModelConfig, TrainConfig
from verl_ext.console import Progress
from verl_ext.errors import UserError
from verl_ext.losses import get_method
from verl_ext.losses.base import summarize

if TYPE_CHECKING:
    from tensordict import TensorDict
    from verl.single_controller.ray import RayWorkerGroup

logger = logging.getLogger(__name__)

PACKAGES = ("verl", "torch", "transformers")
NUM_PROBE_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """One checkpoint to be made: a method on a positives artifact, from a model's weights."""

    name: str
    model: ModelConfig
    train: TrainConfig
    method: str
    params: dict[str, Any]
    data: Path
    output_dir: Path
    num_ranks: int = 1
    threads: int | None = None
    overwrite: bool = False

    def lineage(self) -> Lineage:
        """Everything the weights depend on; how often they are saved is not part of it."""
        ignored = {"data", "output_dir", "save_every", "keep_last", "max_skipped_steps"}
        train = {key: value for key, value in vars(self.train).items() if key not in ignored}
        model = {key: value for key, value in vars(self.model).items() if key != "path"}
        config = {
            "method": self.method,
            "params": self.params,
            "train": train,
            "model": model,
            "num_ranks": self.num_ranks,
        }
        inputs = {"data": self.data, "model": Path(self.model.path)}
        return artifacts.make_lineage("train", config, inputs, PACKAGES, self.train.seed)


def num_steps(train: TrainConfig, num_rows: int) -> int:
    """Optimizer steps of a run: as given, or what `num_epochs` passes over the data make (at least one)."""
    return train.num_steps or max(1, int(train.num_epochs * num_rows / train.batch_size))


def validate(run: TrainingRun) -> PositivesDataset:
    """Load and check everything that can be checked without starting a worker; raises UserError."""
    method = get_method(run.method)
    method.params(**run.params)
    if method.data != "positives":
        raise UserError(f"Method '{run.method}' trains on {method.data}, which train cannot feed it yet.")
    run.train.check(run.num_ranks)
    dataset = PositivesDataset(artifacts.read(run.data, "positives"))
    vocab_size = json.loads((Path(run.model.path) / "config.json").read_text())["vocab_size"]
    dataset.check(run.model.max_prompt_length, run.model.max_response_length, vocab_size)
    if len(dataset) < run.train.batch_size:
        logger.warning(
            "%s has %d rows, fewer than a batch of %d: rows repeat within a step",
            run.data,
            len(dataset),
            run.train.batch_size,
        )
    return dataset


def train(run: TrainingRun, start_workers: Callable[[], RayWorkerGroup]) -> Path:
    """Train `run`; returns the directory of the Hugging Face checkpoint.

    `start_workers` is called when there is something to do: a finished run with the same lineage is skipped, another
    one is refused, an unfinished one continues. Raises UserError for bad input before any worker starts.
    """
    dataset = validate(run)
    lineage = run.lineage()
    if not checkpoints.should_run(run.output_dir, lineage, run.overwrite):
        return run.output_dir / "huggingface"
    run.output_dir.mkdir(parents=True, exist_ok=True)
    workers = start_workers()
    _start(run, workers, num_steps(run.train, len(dataset)))
    if "ref_log_probs" in get_method(run.method).needs:
        references = reference_log_probs(run, dataset, workers)
        dataset = PositivesDataset(artifacts.read(run.data, "positives"), references["ref_log_probs"])
    return _Loop(run, dataset, lineage, workers).run()


def _start(run: TrainingRun, workers: RayWorkerGroup, steps: int) -> None:
    from verl_ext.workers import RunPlan

    plan = RunPlan(
        model=run.model, train=run.train, method=run.method, params=run.params, num_steps=steps, threads=run.threads
    )
    num_parameters = workers.start(plan)[0]
    logger.info("%s: %s with %.2f M parameters, %d steps", run.name, run.method, num_parameters / 1e6, steps)


def reference_log_probs(run: TrainingRun, dataset: PositivesDataset, workers: RayWorkerGroup) -> pa.Table:
    """Score the data once under the weights the run starts from, by the engine that will train them; keep the result.

    The artifact lies beside the runs, named after its lineage, so rows that share data and base share it.
    """
    config = {"model": {key: value for key, value in vars(run.model).items() if key != "path"}}
    inputs = {"data": run.data, "model": Path(run.model.path)}
    lineage = artifacts.make_lineage("reference_log_probs", config, inputs, PACKAGES)
    path = run.output_dir.parent / "references" / f"{lineage.fingerprint()[:16]}.parquet"
    chunk = max(run.train.batch_size, run.num_ranks)
    if artifacts.should_run(path, lineage, overwrite=False):
        shards = artifacts.Shards(path, "references", lineage, math.ceil(len(dataset) / chunk))
        sample_ids = artifacts.read(run.data, "positives", columns=["sample_id"])["sample_id"]
        progress = Progress(f"{run.name}: reference log-probs", shards.num_shards, unit="chunks")
        for index in shards.missing():
            rows = np.arange(index * chunk, min((index + 1) * chunk, len(dataset)))
            scores = _score(run, dataset, rows, workers)
            shards.write(index, pa.table({"sample_id": sample_ids.take(rows), "ref_log_probs": scores}))
            progress.advance()
        shards.commit()
    return artifacts.read(path, "references")


def _score(run: TrainingRun, dataset: PositivesDataset, rows: np.ndarray, workers: RayWorkerGroup) -> pa.Array:
    padded = np.resize(rows, math.ceil(len(rows) / run.num_ranks) * run.num_ranks)  # equal rows on every rank
    output = workers.infer_batch(_step_batch(run, dataset, padded, compute_loss=False)).get()
    scores = [row.numpy() for row in output["log_probs"].unbind()][: len(rows)]
    return pa.array(scores, type=artifacts.SCHEMAS["references"].field("ref_log_probs").type)


def _step_batch(run: TrainingRun, dataset: PositivesDataset, rows: np.ndarray, **options: Any) -> TensorDict:
    from verl.utils import tensordict_utils as tu

    batch = dataset.batch(rows)
    limits = {
        "micro_batch_size": run.train.micro_batch_size,
        "max_tokens_per_micro_batch": run.train.max_tokens_per_micro_batch,
    }
    tu.assign_non_tensor(batch, **{key: value for key, value in {**limits, **options}.items() if value is not None})
    return batch


class _Loop:
    """The steps of one run, from its last checkpoint on."""

    def __init__(self, run: TrainingRun, dataset: PositivesDataset, lineage: Lineage, workers: RayWorkerGroup):
        self.run_plan, self.dataset, self.lineage, self.workers = run, dataset, lineage, workers
        self.total = num_steps(run.train, len(dataset))
        self.steps_dir = run.output_dir / "steps"
        self.log_path = run.output_dir / "log.jsonl"
        self.records: list[dict[str, Any]] = []
        self._prepared: dict[int, tuple[TensorDict, int]] = {}
        self.skipped_in_a_row = 0

    def run(self) -> Path:
        start = self._resume()
        progress = Progress(self.run_plan.name, self.total, done=start, unit="steps")
        for step in range(start, self.total):
            record = self._step(step)
            self.records.append(record)
            progress.advance(
                loss=record["loss"], nll=record["nll"], tokens_per_second=round(record["tokens_per_second"])
            )
            every = self.run_plan.train.save_every
            if step + 1 == self.total or (every and (step + 1) % every == 0):
                self._save(step + 1)
        last = self.steps_dir / f"step_{self.total:06d}"
        return checkpoints.publish(last, self.run_plan.output_dir, self.lineage)

    def _resume(self) -> int:
        found = checkpoints.latest(self.steps_dir)
        if found is None:
            return 0
        path, state = found
        self.workers.load_checkpoint(str(path))
        self.records, self.skipped_in_a_row = state["records"], state["skipped_in_a_row"]
        logger.info("%s: resumed after step %d from %s", self.run_plan.name, state["step"], path)
        return int(state["step"])

    def _step(self, step: int) -> dict[str, Any]:
        began = time.monotonic()
        batch, num_tokens = self._prepared.pop(step) if step in self._prepared else self._prepare(step)
        pending = self.workers.train_batch(batch)
        if step + 1 < self.total:  # while the workers compute
            self._prepared[step + 1] = self._prepare(step + 1)
        sums = _add_up(pending.get()["metrics"])
        record = {
            "step": step + 1,
            "loss": sums["loss"],
            **summarize(sums),
            "grad_norm": sums["grad_norm"],
            "learning_rate": sums["lr"],
            "num_tokens": num_tokens,
            "tokens_per_second": num_tokens / (time.monotonic() - began),
        }
        self._guard(record)
        return record

    def _prepare(self, step: int) -> tuple[TensorDict, int]:
        """The batch of a step and its number of tokens."""
        run = self.run_plan
        rows = step_rows(len(self.dataset), run.train.batch_size, step, run.train.seed)
        if run.train.micro_batch_size is None:
            rows = deal_to_ranks(rows, self.dataset.lengths, run.num_ranks)
        batch = _step_batch(run, self.dataset, rows, update_lr_scheduler=True)
        return batch, int(self.dataset.lengths[rows].sum())

    def _guard(self, record: dict[str, Any]) -> None:
        """verl skips a step whose gradient is not finite; count it, and stop when it keeps happening."""
        if math.isfinite(record["grad_norm"]) and math.isfinite(record["loss"]):
            self.skipped_in_a_row = 0
            return
        self.skipped_in_a_row += 1
        logger.warning("%s: step %d skipped, loss or gradient is not finite", self.run_plan.name, record["step"])
        if self.skipped_in_a_row > self.run_plan.train.max_skipped_steps:
            raise UserError(
                f"{self.run_plan.name}: loss or gradient was not finite in {self.skipped_in_a_row} steps in a row "
                f"(last: step {record['step']}). Lower train.learning_rate or look at the data; the last good "
                f"checkpoint is in '{self.steps_dir}'."
            )

    def _write_probe(self, path: Path) -> None:
        """A few training rows with their log-probs under the final weights: what the sampler is checked against."""
        run = self.run_plan
        rows = np.arange(min(NUM_PROBE_ROWS, len(self.dataset)))
        table = artifacts.read(run.data, "positives").take(rows)
        column = table.schema.get_field_index("behavior_log_probs")
        scores = _score(run, self.dataset, rows, self.workers)
        table = table.set_column(column, "behavior_log_probs", scores)
        artifacts.write(path, "positives", table, self.lineage)

    def _save(self, step: int) -> None:
        staging = checkpoints.staging_directory(self.steps_dir, step)
        self.workers.save_checkpoint(str(staging), global_step=step)
        checkpoints.state_dtype(staging / "huggingface", "float32")  # the dtype of the master weights
        if step == self.total:
            self._write_probe(staging / "huggingface" / checkpoints.PROBE)
        state = {"step": step, "records": self.records, "skipped_in_a_row": self.skipped_in_a_row}
        lines = "".join(json.dumps(record) + "\n" for record in self.records)
        artifacts.write_bytes_atomically(self.log_path, lines.encode())
        checkpoints.commit(staging, self.steps_dir, step, self.lineage, state)
        checkpoints.prune(self.steps_dir, self.run_plan.train.keep_last)


def _add_up(metrics: dict[str, Any]) -> dict[str, float]:
    """Metric sums over micro-batches and ranks; single numbers (loss, grad_norm, lr) stay as they are."""

    def total(value: Any) -> float:
        return sum(total(item) for item in value) if isinstance(value, list | tuple) else float(value)

    return {key: total(value) for key, value in metrics.items() if isinstance(value, int | float | list | tuple)}
