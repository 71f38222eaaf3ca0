"""Run a whole experiment, from problems to the table: every stage in order, finished ones skipped.

    python -m recipes.compare experiment=embedded [scale=smoke]

Prepares problems, samples the base policy and verifies (if a row trains on its samples), curates, trains every row of
the experiment on the same data with the same budget, evaluates all checkpoints with one engine, and writes table and
figure to <run_dir>/results. Kill it at any point: the same command continues to the same table.

`cluster=ray launch.dashboard=<url>` submits each stage as a Ray job instead, follows it, tries a failed one again, and
finds its jobs again when the command is repeated; `cluster=slurm` and `cluster=kuberay` write the file to submit.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from recipes import curate, evaluate, prepare, rollout, tabulate, verify
from verl_ext import cluster, compose, hub, judging
from verl_ext.checkpoints import weights_by_step
from verl_ext.config import Config, ModelConfig
from verl_ext.console import Stages
from verl_ext.errors import UserError, nearest
from verl_ext.experiment import Cell, num_ranks, plan, trained_on
from verl_ext.launch import launch
from verl_ext.launch.command import command
from verl_ext.layout import RunLayout
from verl_ext.locks import hold
from verl_ext.session import Session
from verl_ext.usage import PeakMemory
from verl_ext.verifier import Verifier

logger = logging.getLogger(__name__)

TABULATE = "tabulate"
_WITHOUT_MODEL = {"prepare", "verify", TABULATE}  # stages that read no file of it


def compare(config: Config) -> Path:
    """Run the experiment, or the stages of it that `experiment.stages` names; returns the directory of its results."""
    layout = RunLayout.of(config.run_dir)
    with ExitStack() as opened:
        chosen = choose_stages(stage_names(config), config.experiment.stages)
        if not _WITHOUT_MODEL.issuperset(chosen):
            config = hub.on_disk(config)
        work = _work(config, opened)
        stages = Stages(chosen)
        if config.experiment.stages is None:  # single stages may run side by side: each holds its own output
            opened.enter_context(hold(layout.run_dir))
        opened.enter_context(_resources(layout))
        opened.enter_context(stages)
        for title in chosen:
            with stages.stage(title):
                work[title]()
    if TABULATE in chosen:
        logger.info("%s", (layout.results_dir / "table.md").read_text())
    return layout.results_dir


def stage_names(config: Config) -> list[str]:
    """The stages of an experiment in their order, checked as far as can be before any starts."""
    with ExitStack() as nothing:
        return list(_work(config, nothing))


def choose_stages(names: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """`wanted` in the order of `names`; all where None. Raises UserError for a name that is no stage."""
    for name in wanted or ():
        if name not in names:
            raise UserError(
                f"experiment.stages: '{name}' is no stage{nearest(name, names)}. Stages: {', '.join(names)}."
            )
    return [name for name in names if wanted is None or name in wanted]


def _work(config: Config, opened: ExitStack) -> dict[str, Callable[[], object]]:
    """Every stage by name, in order. What they share is started by the first that needs it, and ended by `opened`."""
    layout, cells, session = RunLayout.of(config.run_dir), plan(config), Session(config)

    @cache
    def verifier() -> Verifier:
        return opened.enter_context(judging.make_verifier(config.verify))

    work: dict[str, Callable[[], object]] = {"prepare": lambda: prepare.run(config)}
    data = trained_on(cells)
    if "samples" in data:
        work["rollout"] = lambda: rollout.rollout(config, lambda: session.samplers(config.model))
        work["verify"] = lambda: verify.run(config)
    if data:
        work["curate"] = lambda: _curate(config, layout, data)
    offline, online = [c for c in cells if c.train is not None], [c for c in cells if c.online is not None]
    work |= {f"train {cell.name}": partial(_train, config, layout, session, cell) for cell in offline}
    work |= {f"train {cell.name}": partial(_train_online, config, layout, session, cell) for cell in online}
    work |= {f"evaluate {cell.name}": partial(_evaluate, config, layout, session, cell, verifier) for cell in cells}
    work[TABULATE] = lambda: tabulate.run(config, cluster.hardware())
    return work


@contextmanager
def _resources(layout: RunLayout) -> Iterator[None]:
    """Add one line to resources.jsonl, whether the run ends or fails: its time, and its memory in all processes."""
    began = time.monotonic()
    with PeakMemory() as peak:
        try:
            yield
        finally:
            found = {
                "seconds": round(time.monotonic() - began, 1),
                "peak_memory_bytes": peak.bytes,
                "hardware": cluster.hardware(),
                "date": datetime.date.today().isoformat(),
            }
            layout.run_dir.mkdir(parents=True, exist_ok=True)
            with open(layout.resources, "a") as stream:
                stream.write(json.dumps(found) + "\n")
            logger.info("at most %.2f GiB of memory, all processes together", peak.bytes / 2**30)


def _curate(config: Config, layout: RunLayout, data: Collection[str]) -> None:
    if "samples" in data:
        samples = replace(config.curate, source="samples", output=str(layout.positives("samples")))
        curate.run(replace(config, curate=samples))
    if "demonstrations" in data:
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
        model=_started_from(config, layout, cell),
        train=cell.train,
        method=cell.method,
        params=cell.params or {},
        data=layout.training_data(cell.data_kind, cell.row.data),
        output_dir=layout.checkpoint(cell.row.name, cell.seed),
        behavior_model=None
        if cell.row.behavior is None
        else layout.checkpoint(cell.row.behavior, cell.seed) / "huggingface",
        num_ranks=num_ranks(config),
        threads=cluster.threads_per_rank(config.cluster),
        guards=config.guards,
        overwrite=config.overwrite,
    )
    trainer.train(run, lambda: session.workers(config.model))


def _train_online(config: Config, layout: RunLayout, session: Session, cell: Cell) -> None:
    from verl_ext.online.run import OnlineRun, train_online

    assert cell.online is not None
    session.close()  # verl starts a Ray of its own
    run = OnlineRun(
        name=cell.name,
        model=_started_from(config, layout, cell),
        online=cell.online,
        prompts=layout.prompts("train"),
        output_dir=layout.checkpoint(cell.row.name, cell.seed),
        sampler=config.sampler,
        cluster=config.cluster,
        verify=config.verify,
        overwrite=config.overwrite,
    )
    train_online(run)


def _started_from(config: Config, layout: RunLayout, cell: Cell) -> ModelConfig:
    """The base policy, or the checkpoint of the row that this one continues."""
    if cell.row.start is None:
        return config.model
    return replace(config.model, path=str(layout.checkpoint(cell.row.start, cell.seed) / "huggingface"))


def _evaluate(
    config: Config, layout: RunLayout, session: Session, cell: Cell, verifier: Callable[[], Verifier]
) -> None:
    seeded = replace(config, evaluate=replace(config.evaluate, seed=config.evaluate.seed + cell.seed))
    run_dir = layout.checkpoint(cell.row.name, cell.seed)
    checkpoints: dict[int | None, Path] = {
        None: run_dir / "huggingface" if cell.is_trained else Path(config.model.path)
    }
    if config.experiment.curve_every:
        checkpoints.update(weights_by_step(run_dir))
    for step, checkpoint in checkpoints.items():
        outputs = {
            name: (layout.benchmark(name), layout.evaluation(cell.row.name, cell.seed, name, step))
            for name in config.data.benchmarks
        }
        evaluate.evaluate(seeded, checkpoint, outputs, lambda: session.samplers(config.model), verifier())


def run(config: Config) -> None:
    """Entry point of `python -m recipes.compare`: run here, or hand over to the launcher that `cluster=` names."""
    if config.launch.to == "local":
        compare(config)
        return
    names = choose_stages(stage_names(config), config.experiment.stages)
    launch(config, command(config, "compare", sys.argv[1:]), names)


if __name__ == "__main__":
    compose.main("compare", run, __doc__)
