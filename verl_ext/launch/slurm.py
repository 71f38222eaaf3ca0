"""A Slurm batch script: Ray on every allocated node, then the experiment on it.

The head runs on the first node, a worker on each other one; all of them share a token made for this job, so nobody else
on the cluster's network can use this Ray. The script ends when the experiment does, and Slurm then ends Ray. Slurm may
requeue it: the command continues from what the run directory holds.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from verl_ext import cluster
from verl_ext.config import Config
from verl_ext.launch.command import Command

_PORT = 6379
_WAIT_SECONDS = 600


def script(config: Config, command: Command, stages: Sequence[str] | None) -> str:
    """The text of the script. The project must lie on storage that all nodes see, as must `run_dir`."""
    run_dir = Path(config.run_dir).expanduser()
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in _options(config, command, run_dir)),
        "set -euo pipefail",
        *([config.launch.slurm.setup] if config.launch.slurm.setup else []),
        f"cd {shlex.quote(str(cluster.REPOSITORY))}",
        "",
        "# one token for this job, readable by its owner alone",
        f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={shlex.quote(str(run_dir))}/submit/.token-$SLURM_JOB_ID",
        '(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d " \\n" >"$RAY_AUTH_TOKEN_PATH")',
        "trap 'rm -f \"$RAY_AUTH_TOKEN_PATH\"' EXIT",
        "",
        'mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        "address=$(srun --nodes=1 --ntasks=1 -w \"${nodes[0]}\" hostname --ip-address | awk '{print $1}')",
        f'start() {{ srun --nodes=1 --ntasks=1 --overlap {_container(config)}-w "$1" ${{@:2}} & }}',
        f'start "${{nodes[0]}}" {_ray(config)} --head --node-ip-address="$address" --port={_PORT} \\',
        "    --include-dashboard=false --block",
        f'for node in "${{nodes[@]:1}}"; do start "$node" {_ray(config)} --address="$address:{_PORT}" --block; done',
        "",
        "# wait for all nodes, then run; RAY_ADDRESS is what cluster.address=auto finds",
        f'export RAY_ADDRESS="$address:{_PORT}"',
        f"for second in $(seq {_WAIT_SECONDS}); do",
        f'    [ "$({_on_head(config)} {shlex.quote(command.python)} -c '
        '\'import ray; ray.init(log_to_driver=False); print(sum(n["Alive"] for n in ray.nodes()))\' 2>/dev/null)" = '
        '"${#nodes[@]}" ] && break',
        f'    [ "$second" != {_WAIT_SECONDS} ] || {{ echo "error: of ${{#nodes[@]}} nodes not all joined Ray within '
        f'{_WAIT_SECONDS} s; the log of this job has what their Ray said" >&2; exit 1; }}',
        "    sleep 1",
        "done",
        f"{_on_head(config)} {shlex.join(command.for_stages(stages))}",
        "",
    ]
    return "\n".join(lines)


def _options(config: Config, command: Command, run_dir: Path) -> list[str]:
    slurm, nodes = config.launch.slurm, config.cluster.num_nodes
    options = {
        "job-name": command.name,
        "nodes": nodes,
        "ntasks-per-node": 1,
        "time": slurm.time,
        "output": run_dir / "submit" / "%x-%j.log",
        "partition": slurm.partition,
        "account": slurm.account,
        "cpus-per-task": slurm.cpus_per_node,
        "gpus-per-node": None if cluster.runs_on_cpu(config.cluster) else config.cluster.ranks_per_node,
    }
    whole = ["--exclusive"] if slurm.cpus_per_node is None else []
    return [*(f"--{key}={value}" for key, value in options.items() if value is not None), *whole, "--requeue"]


def _ray(config: Config) -> str:
    """`ray start`; on CPUs Ray is told of one device a rank and engine, since verl's placement groups ask for them."""
    fake = (
        f" --num-gpus={config.cluster.ranks_per_node + config.sampler.num_engines}"
        if cluster.runs_on_cpu(config.cluster)
        else ""
    )
    return f"ray start{fake}"


def _container(config: Config) -> str:
    """Options of pyxis, whose containers see none of the nodes' directories: the project, the run, a local model."""
    image = config.launch.slurm.container
    if not image:
        return ""
    places = [cluster.REPOSITORY, Path(config.run_dir).expanduser()]
    places += [Path(config.model.path)] if Path(config.model.path).is_absolute() else []
    mounts = ",".join(f"{place}:{place}" for place in dict.fromkeys(places))
    options = {"image": image, "mounts": mounts, "workdir": str(cluster.REPOSITORY)}
    return "".join(f"{shlex.quote(f'--container-{key}={value}')} " for key, value in options.items())


def _on_head(config: Config) -> str:
    return f'srun --nodes=1 --ntasks=1 --overlap {_container(config)}-w "${{nodes[0]}}"'
