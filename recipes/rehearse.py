"""Rehearse an experiment on this machine before it takes a cluster: every stage and row of it, in toy sizes.

    python -m recipes.rehearse experiment=dft_offline model=llama3_2_3b [fidelity=paper] [rehearse.num_ranks=2]

The experiment is the one that recipes.compare would run, with its rows, methods, losses, schedules, prompts, stop
tokens, graders and published tables. Replaced are its model (a random one of the same architecture class and family,
taught to answer in the asked form), its data (problems of our own in the columns of each data set, loaded by the same
code) and its sizes (two steps of a sixteenth of the batch). What ends in a table here has passed every stage that it
will pass there; the numbers in it mean nothing. Writes to <run_dir>/rehearsal, and continues where it was stopped;
rehearsal.json there says what ran.
"""

from __future__ import annotations

import datetime
import json
import logging
import time
from dataclasses import replace
from pathlib import Path

from recipes.compare import choose_stages, compare, stage_names
from verl_ext import artifacts, cluster, compose
from verl_ext.config import Config
from verl_ext.experiment import plan
from verl_ext.layout import RunLayout
from verl_ext.rehearsal import data, policy, sizes

logger = logging.getLogger(__name__)


def rehearse(config: Config) -> Path:
    """Run the experiment in toy sizes with stand-ins; returns the directory of its results."""
    began = time.monotonic()
    plan(config)  # as it is, before anything of it is replaced
    small = sizes.rehearsed(config)
    directory = RunLayout.of(small.run_dir).run_dir
    small = replace(small, model=policy.stand_in(small.model, directory / "stand_ins/models", config.seed))
    small = data.stand_in(small, directory / "stand_ins/data", Path(small.model.path))
    results = compare(small)
    every = stage_names(small)
    stages = choose_stages(every, small.experiment.stages)
    record = {
        "experiment": small.experiment.name,
        "model": config.model.path,
        "fidelity": small.experiment.fidelity,
        "num_ranks": config.rehearse.num_ranks,
        "stages": stages,
        "num_stages": len(every),
        "seconds": round(time.monotonic() - began, 1),
        "hardware": cluster.hardware(),
        "date": datetime.date.today().isoformat(),
    }
    artifacts.write_bytes_atomically(directory / "rehearsal.json", json.dumps(record, indent=1).encode() + b"\n")
    done = f"{len(stages)} of {len(every)} stages"
    logger.info("rehearsed %s: %s; nothing in %s is a result", small.experiment.name, done, results)
    return results


if __name__ == "__main__":
    compose.main("rehearse", rehearse, __doc__)
