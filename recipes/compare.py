"""Run a whole experiment, from problems to the table: every stage in order, finished ones skipped.

    python -m recipes.compare experiment=embedded [scale=smoke]

Prepares problems, samples the base policy, verifies, curates, trains every row of the experiment on the same data with
the same budget, evaluates all checkpoints with one engine, and writes table and figure to <run_dir>/results. Kill it
at any point: the same command continues to the same table.
"""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recipes import curate, evaluate, prepare, rollout, tabulate, verify
from verl_ext import artifacts, cluster, compose, judging
from verl_ext.compose import load_method, to_dict
from verl_ext.config import Config, RowConfig, TrainConfig
from verl_ext.console import Stages
from verl_ext.errors import UserError, nearest
from verl_ext.layout import RunLayout
from verl_ext.losses import get_method
from verl_ext.session import Session
from verl_ext.verifier import Verifier

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One checkpoint of the table: a row with one training seed."""

    row: RowConfig
    seed: int
    method: str = ""
    params: dict[str, Any] | None = None
    train: TrainConfig | None = None  # None: the base policy

    @property
    def name(self) -> str:
        return f"{self.row.name}-seed{self.seed}"


def plan(config: Config) -> list[Cell]:
    """All checkpoints of the experiment, validated; raises UserError before anything expensive starts."""
    experiment = config.experiment
    rows = _sweep_rows(config) if experiment.sweep else list(experiment.rows)
    names = [row.name for row in rows]
    if len(set(names)) != len(names):
        raise UserError(f"Row names of the experiment must differ; they are {names}.")
    if not experiment.sweep and experiment.baseline not in names:
        raise UserError(f"experiment.baseline='{experiment.baseline}' is no row{nearest(experiment.baseline, names)}.")
    rates = {} if experiment.sweep else _learning_rates(config)
    cells: list[Cell] = []
    for row in rows:
        if row.method is None:
            cells.append(Cell(row=row, seed=config.seed))
            continue
        loaded = load_method(row.method)
        params = {**loaded.get("params", {}), **row.params}
        method = get_method(loaded["name"])
        compose.validate(method.params, params, prefix=f"experiment.rows.{row.name}.params")
        if row.data is None:
            raise UserError(f"Row '{row.name}' trains but names no data. Set data to 'demonstrations' or 'samples'.")
        rate = {"learning_rate": rates[row.name]} if row.name in rates else {}
        for seed in range(config.seed, config.seed + experiment.num_seeds):
            train = compose.replace(
                config.train, {**rate, **row.train, "seed": seed}, f"experiment.rows.{row.name}.train"
            )
            train.check(_num_ranks(config))
            cells.append(Cell(row=row, seed=seed, method=loaded["name"], params=params, train=train))
    return cells


def _sweep_rows(config: Config) -> list[RowConfig]:
    return [
        replace(
            row,
            name=f"{row.name}-lr{rate:g}",
            label=f"{row.label}, {rate:g}",
            train={**row.train, "learning_rate": rate},
        )
        for row in config.experiment.rows
        if row.method is not None
        for rate in config.experiment.sweep
    ]


def _learning_rates(config: Config) -> dict[str, float]:
    """Learning rate of each row from the committed result of a sweep."""
    if config.experiment.learning_rates is None:
        return {}
    path = cluster.REPOSITORY / config.experiment.learning_rates
    if not path.exists():
        raise UserError(
            f"experiment.learning_rates='{path}' does not exist. Run the sweep that writes it "
            "(experiment=embedded_sweep), or set it to null."
        )
    return {row: float(entry["learning_rate"]) for row, entry in json.loads(path.read_text())["rows"].items()}


def compare(config: Config) -> Path:
    """Run the experiment; returns the directory of its results."""
    layout = RunLayout.of(config.run_dir)
    cells = plan(config)
    stages = Stages(["prepare", "rollout", "verify", "curate", *_titles(cells), "tabulate"])
    session = Session(config)
    with stages:
        with stages.stage("prepare"):
            prepare.run(config)
        with stages.stage("rollout"):
            rollout.rollout(config, lambda: session.samplers(config.model))
        with stages.stage("verify"):
            verify.run(config)
        with stages.stage("curate"):
            _curate(config, layout)
        for cell in cells:
            if cell.train is not None:
                with stages.stage(f"train {cell.name}"):
                    _train(config, layout, session, cell)
        with Verifier(config.verify.num_workers, judging.limits(config.verify)) as verifier:
            for cell in cells:
                with stages.stage(f"evaluate {cell.name}"):
                    _evaluate(config, layout, session, cell, verifier)
        with stages.stage("tabulate"):
            _tabulate(config, layout, cells)
    logger.info("%s", (layout.results_dir / "table.md").read_text())
    return layout.results_dir


def _titles(cells: Sequence[Cell]) -> list[str]:
    trained = [f"train {cell.name}" for cell in cells if cell.train is not None]
    return trained + [f"evaluate {cell.name}" for cell in cells]


def _curate(config: Config, layout: RunLayout) -> None:
    samples = replace(config.curate, source="samples", output=str(layout.positives("samples")))
    curate.run(replace(config, curate=samples))
    demonstrations = replace(
        config.curate,
        source="demonstrations",
        input=str(layout.prompts("demonstrations")),
        output=str(layout.positives("demonstrations")),
        pairs_output=None,
    )
    curate.run(replace(config, curate=demonstrations))


def _train(config: Config, layout: RunLayout, session: Session, cell: Cell) -> None:
    from verl_ext import trainer

    assert cell.train is not None and cell.row.data is not None
    run = trainer.TrainingRun(
        name=cell.name,
        model=config.model,
        train=cell.train,
        method=cell.method,
        params=cell.params or {},
        data=layout.positives(cell.row.data),
        output_dir=layout.checkpoint(cell.row.name, cell.seed),
        num_ranks=_num_ranks(config),
        threads=cluster.threads_per_rank(config.cluster),
        overwrite=config.overwrite,
    )
    trainer.train(run, lambda: session.workers(config.model))


def _evaluate(config: Config, layout: RunLayout, session: Session, cell: Cell, verifier: Verifier) -> None:
    checkpoint = Path(config.model.path)
    if cell.train is not None:
        checkpoint = layout.checkpoint(cell.row.name, cell.seed) / "huggingface"
    outputs = {
        name: (layout.benchmark(name), layout.evaluation(cell.row.name, cell.seed, name))
        for name in config.data.benchmarks
    }
    seeded = replace(config, evaluate=replace(config.evaluate, seed=config.evaluate.seed + cell.seed))
    evaluate.evaluate(seeded, checkpoint, outputs, lambda: session.samplers(config.model), verifier)


def _tabulate(config: Config, layout: RunLayout, cells: Sequence[Cell]) -> None:
    entries = [
        tabulate.Entry(
            row=cell.row.name,
            label=cell.row.label,
            group=cell.row.group,
            seed=cell.seed,
            benchmark=name,
            path=layout.evaluation(cell.row.name, cell.seed, name),
            checkpoint="" if cell.train is None else f"train/{cell.name}",
        )
        for cell in cells
        for name in config.data.benchmarks
    ]
    experiment, settings = config.experiment, config.tabulate
    table = tabulate.tabulate(
        entries,
        baseline=cells[0].row.name if experiment.sweep else experiment.baseline,
        out_dir=layout.results_dir,
        k=config.evaluate.k,
        caption=settings.caption,
        pass_k=settings.pass_k,
        confidence=settings.confidence,
        num_resamples=settings.num_resamples,
        seed=settings.seed,
        hardware=cluster.hardware(),
        date=datetime.date.today().isoformat(),
        prompts={name: layout.benchmark(name) for name in config.data.benchmarks},
    )
    if experiment.sweep:
        _write_learning_rates(config, table)


def _write_learning_rates(config: Config, table: Any) -> None:
    """The best learning rate of each row on the sweep's benchmarks, with everything that was tried and the lineage."""
    experiment = config.experiment
    assert experiment.learning_rates is not None
    scores = {row.name: row.macro.value for row in table.rows}
    rows: dict[str, Any] = {}
    for row in (row for row in experiment.rows if row.method is not None):
        tried = {f"{rate:g}": round(scores[f"{row.name}-lr{rate:g}"], 6) for rate in experiment.sweep}
        rows[row.name] = {"learning_rate": float(max(tried, key=lambda rate: tried[rate])), "accuracy": tried}
    content = {
        "command": f"python -m recipes.compare experiment={experiment.name}",
        "hardware": table.hardware,
        "date": table.date,
        "benchmarks": {name: int(count) for name, count in table.benchmarks.items()},
        "k": config.evaluate.k,
        "num_seeds": experiment.num_seeds,
        "train": to_dict(config.train),
        "versions": {name: artifacts.package_version(name) for name in ("verl", "vllm", "torch", "math-verify")},
        "rows": rows,
    }
    path = cluster.REPOSITORY / experiment.learning_rates
    artifacts.write_bytes_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
    logger.info("learning rates of %d rows written to %s", len(rows), path)


def _num_ranks(config: Config) -> int:
    return config.cluster.num_nodes * config.cluster.ranks_per_node


def run(config: Config) -> None:
    """Entry point of `python -m recipes.compare`."""
    compare(config)


if __name__ == "__main__":
    compose.main("compare", run, __doc__)
