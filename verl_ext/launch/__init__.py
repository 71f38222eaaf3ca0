"""Stages as jobs of a Ray cluster, and the files that start one under Slurm or KubeRay."""

from __future__ import annotations

import logging
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from verl_ext import cluster
from verl_ext.artifacts import write_bytes_atomically
from verl_ext.config import Config
from verl_ext.errors import UserError
from verl_ext.launch import kuberay, ray_jobs, slurm
from verl_ext.launch.command import Command

logger = logging.getLogger(__name__)


def launch(config: Config, command: Command, stages: Sequence[str]) -> Path | None:
    """Run `stages` as Ray jobs, or write the file that a scheduler takes, whose path is returned."""
    if config.launch.to == "ray":
        ray_jobs.run_stages(config, command, stages)
        return None
    _check_device(config)
    chosen = stages if config.experiment.stages is not None else None
    if config.launch.to == "slurm":
        name, content, submit = f"{command.name}.sbatch", slurm.script(config, command, chosen), ["sbatch"]
    else:
        name, content = f"{command.name}.yaml", kuberay.manifest(config, command, chosen)
        submit = ["kubectl", "apply", "-f"]
    path = Path(config.run_dir).expanduser() / "submit" / name
    write_bytes_atomically(path, content.encode())
    if config.launch.submit:
        _submit([*submit, str(path)])
    else:
        logger.info("written; submit it with: %s", shlex.join([*submit, str(path)]))
    return path


def _check_device(config: Config) -> None:
    """`auto` looks at this machine, and the file would ask for no GPU where a login node or a laptop has none."""
    if config.cluster.device == "auto" and cluster.runs_on_cpu(config.cluster):
        raise UserError(
            "cluster.device=auto: this machine has no GPU, which says nothing of the nodes that the job will get. Set "
            "cluster.device=cuda, or cpu."
        )


def _submit(arguments: list[str]) -> None:
    """Run the scheduler's own command, whose output is shown."""
    try:
        subprocess.run(arguments, check=True, stdout=sys.stderr)
    except FileNotFoundError:
        raise UserError(
            f"'{arguments[0]}' is not installed here. Run `{shlex.join(arguments)}` where it is, or set "
            "launch.submit=false to write the file alone."
        ) from None
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"`{shlex.join(arguments)}` failed with code {error.returncode}; it says why above. Mend that, and run the "
            "same command again."
        ) from None
