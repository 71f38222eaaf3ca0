"""Light stages in the sizes of a fault: each writes below `root` alone, and ends in the same bytes whenever it is run.

What judges, samples, scores and trains is replaced: the writes are the product's own.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file

from recipes import curate, prepare, tabulate, verify
from verl_ext import artifacts, checkpoints, compose, forest, judging, retention, trainer, training_loop
from verl_ext.batching import TrainingDataset
from verl_ext.config import (
    Config,
    CurateConfig,
    DataConfig,
    EvaluateConfig,
    ExperimentConfig,
    ModelConfig,
    RowConfig,
    SourceConfig,
    TabulateConfig,
    TrainConfig,
    VerifyConfig,
)
from verl_ext.online.journal import LOG, Journal, Plan, read_log
from verl_ext.verifier import Verdict

NUM_STEPS = 4


class StandIn:
    """A verifier that finds right what has the characters of the gold."""

    num_workers = 1

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def judge(self, pairs: Iterable[tuple[str, str]], *_: object) -> list[Verdict]:
        found = []
        for response, gold in pairs:
            answer = response.rpartition("{")[2].partition("}")[0]
            is_right = sorted(answer.replace(" ", "")) == sorted(gold.replace(" ", ""))
            verdict = "correct" if is_right else "incorrect"
            found.append(Verdict(verdict, answer, 0.0, (verdict, "correct")))
        return found


def responses(path: Path, count: int = 6) -> Path:
    """A file of responses that two graders disagree about."""
    rows = [
        {"problem": f"What is {n}+{n}?", "gold": str(2 * n), "responses": [rf"\boxed{{{2 * n}}}", rf"\boxed{{{n}}}"]}
        for n in range(10, 10 + count)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def samples(count: int = 6, per_prompt: int = 2, accuracy: float = 0.5, seed: int = 0) -> pa.Table:
    """Judged responses that can be trained on."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count * per_prompt):
        prompt, number = divmod(index, per_prompt)
        is_right = bool(rng.random() < accuracy)
        rows.append(
            {
                "sample_id": f"p{prompt}-{number}",
                "prompt_id": f"p{prompt}",
                "data_source": "test",
                "ground_truth": f"gold {prompt}",
                "prompt_token_ids": [5, 6, prompt],
                "response_token_ids": [7, index, 2],
                "response": f"response {index}",
                "behavior_log_probs": [-0.5, -0.25, -1.0],
                "finish_reason": "stop",
                "prediction": "x",
                "verdict": "correct" if is_right else "incorrect",
                "verdict_seconds": 0.0,
                "reward": float(is_right),
            }
        )
    return pa.Table.from_pylist(rows, schema=artifacts.SCHEMAS["samples"])


@cache
def base() -> Config:
    return replace(
        compose.compose(["experiment=embedded", "scale=smoke"]), model=ModelConfig(prompt_template="problem-only")
    )


def _prepare(root: Path) -> None:
    splits = {"train": SourceConfig(split="train", limit=6), "validation": SourceConfig(split="validation", limit=3)}
    data = DataConfig(splits=splits, benchmarks={"harder": SourceConfig(split="harder", limit=4)})
    prepare.run(replace(base(), run_dir=str(root), data=data))


def _verify(root: Path, judge: bool = False) -> None:
    if not judge:
        judging.make_verifier = lambda *_, **__: StandIn()  # type: ignore[assignment, return-value]
    settings = VerifyConfig(
        input=str(root.parent / "inputs" / "responses.jsonl"),
        output=str(root / "samples.parquet"),
        shard_size=4,
        grader="math_verify" if judge else "both",
    )
    verify.run(replace(base(), run_dir=str(root), verify=settings))


def _judge(root: Path) -> None:
    """Verification by the real service, with its processes."""
    _verify(root, judge=True)


def _curate(root: Path, seed: int = 0, overwrite: bool = False) -> None:
    settings = CurateConfig(input=str(root.parent / "inputs" / "samples.parquet"), seed=seed)
    curate.run(replace(base(), run_dir=str(root), curate=settings, overwrite=overwrite))


def _curate_again(root: Path) -> None:
    """In the place of the results of another configuration, which `prepare_template` left."""
    _curate(root, seed=1, overwrite=True)


def _tabulate(root: Path) -> None:
    forest.render = lambda _: {"png": b"png", "svg": b"svg"}  # type: ignore[assignment]
    rows = [
        RowConfig(name="base", label="Base"),
        RowConfig(name="sft", label="SFT", method="sft", data="demonstrations"),
    ]
    config = Config(
        run_dir=str(root.parent / "inputs"),
        data=DataConfig(benchmarks={"math": SourceConfig()}),
        evaluate=EvaluateConfig(k=2),
        tabulate=TabulateConfig(num_resamples=50, output_dir=str(root / "results")),
        experiment=ExperimentConfig(rows=rows, baseline="sft"),
    )
    tabulate.run(config, "one machine")


class Workers:
    """Stands for training ranks: the weights are a function of the steps taken."""

    def __init__(self) -> None:
        self.workers: list[Any] = []
        self.weights = torch.zeros(4)

    def train_batch(self, batch: Any) -> Any:
        self.weights = self.weights * 0.5 + float(batch["input_ids"].values().sum())
        sums = {"nll_sum": 2.0, "token_sum": 4.0, "weight_sum": 4.0, "weight_sq_sum": 4.0, "clipped_sum": 0.0}
        return _Done({"metrics": {**sums, "loss": float(self.weights[0]), "grad_norm": 1.0, "lr": 0.1}})

    def infer_batch(self, batch: Any) -> Any:
        lengths = batch["loss_mask"].values()
        counts = [int(row.sum()) for row in batch["loss_mask"].unbind()]
        assert sum(counts) == int(lengths.sum())
        return _Done(
            {"log_probs": torch.nested.nested_tensor([torch.full((n,), -0.5) for n in counts], layout=torch.jagged)}
        )

    def save_checkpoint(self, path: str, global_step: int) -> None:
        directory = Path(path) / "huggingface"
        directory.mkdir()
        (directory / "config.json").write_text("{}")
        save_file({"w": self.weights}, directory / "model.safetensors")
        (Path(path) / "optim_rank_0.bin").write_bytes(bytes(range(64)) + str(global_step).encode())

    def load_checkpoint(self, path: str) -> None:
        from safetensors.torch import load_file

        self.weights = load_file(Path(path) / "huggingface" / "model.safetensors")["w"]
        assert (Path(path) / "optim_rank_0.bin").read_bytes().startswith(bytes(range(64)))


class _Done:
    def __init__(self, result: Any):
        self._result = result

    def get(self) -> Any:
        return self._result


def training_run(root: Path, **train: Any) -> trainer.TrainingRun:
    """iw-SFT, so that reference scores are stored before the first step."""
    settings: dict[str, Any] = {"num_steps": NUM_STEPS, "batch_size": 4, "save_every": 1, "keep_weights": True}
    return trainer.TrainingRun(
        name="toy",
        model=ModelConfig(path=str(root.parent / "inputs" / "model"), prompt_template="problem-only"),
        train=TrainConfig(**{**settings, **train}),
        method="iw_sft",
        params={},
        data=root.parent / "inputs" / "positives.parquet",
        output_dir=root / "train" / "toy",
    )


def _train(root: Path, **settings: Any) -> None:
    trainer.validate = lambda run: TrainingDataset(artifacts.read(run.data, "positives"))  # type: ignore[assignment]
    trainer._start = lambda *_: None  # type: ignore[assignment]
    training_loop.time = SimpleNamespace(monotonic=itertools.count().__next__)  # type: ignore[assignment]
    trainer.train(training_run(root, **settings), lambda: Workers())  # type: ignore[arg-type, return-value]


def _journal(root: Path) -> None:
    """Three rounds with a checkpoint after each, as verl's trainer and its parent write them."""
    lineage = artifacts.make_lineage("train_online", {})
    plan = Plan(
        name="toy",
        output_dir=str(root),
        model_path="",
        prompt_template="problem-only",
        trust_remote_code=False,
        num_steps=3,
        samples_per_step=4,
        max_response_length=8,
        end_token_ids=[2],
        max_log_prob_gap=0.1,
        max_skipped_steps=1,
        max_failure_fraction=0.5,
        keep_last=2,
        keep_best=None,
        lineage=json.loads(lineage.to_json()),
    )
    steps = root / "steps"
    if not checkpoints.should_run(root, lineage, overwrite=False):
        return
    found = checkpoints.latest(steps)
    done = 0 if found is None else int(found[1]["step"])
    journal = Journal(plan)
    journal.records = [] if found is None else found[1]["records"]
    for step in range(done + 1, 4):
        journal.write(step, samples(2, 2, seed=step), {"entropy": 0.5, "grad_norm": 1.0}, seconds=1.0)
        staging = checkpoints.staging_directory(steps, step)
        (staging / "huggingface").mkdir()
        (staging / "huggingface" / "config.json").write_text(json.dumps({"step": step}))
        checkpoints.commit(staging, steps, step, lineage, {"step": step, "records": journal.records})
        retention.prune(steps, 2)
    retention.prune(steps, 2)
    assert [record["step"] for record in read_log(root / LOG)] == [1, 2, 3]
    checkpoints.publish(steps / "step_000003", root, lineage)


STAGES: dict[str, Callable[[Path], None]] = {
    "prepare": _prepare,
    "verify": _verify,
    "curate": _curate,
    "curate again": _curate_again,
    "tabulate": _tabulate,
    "train": _train,
    "journal": _journal,
    "judge": _judge,
}


def make_inputs(directory: Path) -> None:
    """What the stages read, in `directory`; their roots lie beside it."""
    responses(directory / "responses.jsonl")
    artifacts.write(directory / "samples.parquet", "samples", samples(), artifacts.make_lineage("verify", {}))
    kept = samples(8, 1).select(artifacts.SCHEMAS["positives"].names[:-1])
    positives = kept.append_column("quality", pa.array([1.0] * len(kept), pa.float32()))
    artifacts.write(directory / "positives.parquet", "positives", positives, artifacts.make_lineage("curate", {}))
    for row in ("base", "sft"):
        lineage = artifacts.Lineage(stage="evaluate", config={"sampling": {"n": 2}})
        path = directory / "evaluate" / f"{row}-seed0" / "math.parquet"
        artifacts.write(path, "samples", samples(4, 2, seed=len(row)), lineage)
    (directory / "model").mkdir(parents=True)
    (directory / "model" / "config.json").write_text("{}")
    save_file({"w": torch.zeros(4)}, directory / "model" / "model.safetensors")
    checkpoints.write_manifest(directory / "model", artifacts.make_lineage("train", {}))


def make_template(stage: str, root: Path) -> None:
    """What `root` holds before the stage is run for the first time."""
    root.mkdir(parents=True)
    if stage == "curate again":
        _curate(root)
