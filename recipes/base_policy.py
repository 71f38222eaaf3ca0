"""Train the embedded experiment's base policy and put it into the package.

    python -m recipes.base_policy experiment=embedded_base

Random weights (drawn from `seed`) -> SFT on the generator's noisy worked solutions -> verl_ext/embedded/base_policy,
with the lineage of its training. The package ships the result, since it takes longer than a comparison should wait.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from recipes import curate, prepare
from verl_ext import checkpoints, cluster, compose
from verl_ext.config import Config
from verl_ext.layout import RunLayout

if TYPE_CHECKING:
    from verl_ext.trainer import TrainingRun

logger = logging.getLogger(__name__)

SHIPPED = Path("verl_ext/embedded/base_policy")


def training_run(config: Config) -> TrainingRun:
    """The run whose lineage the shipped policy carries; its inputs are prepared first."""
    from verl_ext.trainer import TrainingRun

    layout = RunLayout.of(config.run_dir)
    prepare.run(config)
    data = layout.positives("pretraining")
    settings = dataclasses.replace(
        config.curate, source="demonstrations", input=str(layout.prompts("pretraining")), output=str(data)
    )
    initial = prepare.initial_policy(config, layout)
    model = dataclasses.replace(config.model, path=str(initial))
    curate.run(dataclasses.replace(config, curate=settings, model=model))
    return TrainingRun(
        name="base",
        model=model,
        train=config.train,
        method="sft",
        params={},
        data=data,
        output_dir=layout.checkpoint("base", config.train.seed),
        num_ranks=config.cluster.num_nodes * config.cluster.ranks_per_node,
        threads=cluster.threads_per_rank(config.cluster),
        overwrite=config.overwrite,
    )


def run(config: Config) -> None:
    """Entry point of `python -m recipes.base_policy`."""
    from verl_ext import trainer

    plan = training_run(config)
    trained = trainer.train(plan, lambda: cluster.create_workers(dataclasses.replace(config, model=plan.model)))
    target = cluster.REPOSITORY / SHIPPED
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(trained, target)
    checkpoints.write_manifest(target, plan.lineage())
    logger.info("base policy: %s (%.1f MB)", target, sum(p.stat().st_size for p in target.iterdir()) / 1e6)


if __name__ == "__main__":
    compose.main("base_policy", run, __doc__)
