"""Where stages run: Ray, Slurm, KubeRay."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from verl_ext.config.fields import STRICT, NonNegativeInt, PositiveFloat, PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClusterConfig:
    """Where Ray runs and how many training ranks it places."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    address: str | None = None  # of a running Ray cluster; None starts a local one
    num_nodes: PositiveInt = 1
    ranks_per_node: PositiveInt = 1
    threads_per_rank: PositiveInt | None = None  # torch threads on a CPU; None: all cores divided by the ranks


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SlurmConfig:
    """What the batch script asks for; nodes and GPUs follow from `cluster`."""

    time: str = "24:00:00"
    partition: str | None = None
    account: str | None = None
    cpus_per_node: PositiveInt | None = None  # None: the whole node
    container: str | None = None  # image for `srun --container-image` (pyxis); None: the nodes' own environment
    setup: str = ""  # a shell line before anything else, such as `module load cuda`


@dataclass(frozen=True, kw_only=True, config=STRICT)
class KubeRayConfig:
    """Pods of the RayJob; their number and GPUs follow from `cluster`."""

    image: str | None = None
    namespace: str = "default"
    cpus: PositiveInt = 16  # a pod
    memory_gib: PositiveInt = 128
    volume_claim: str | None = None  # PersistentVolumeClaim that holds run_dir
    mount: str = "/runs"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LaunchConfig:
    """Where the stages of an experiment run: here, or as jobs."""

    to: Literal["local", "ray", "slurm", "kuberay"] = "local"
    dashboard: str = "http://127.0.0.1:8265"  # of the Ray cluster that takes jobs
    python: str = "python"  # of the cluster's nodes
    retries: NonNegativeInt = 1  # submissions of a stage that failed, after the first
    upload: bool = True  # send this project with each job; false where the nodes have it installed
    submit: bool = False  # hand the file for Slurm or KubeRay to sbatch or kubectl
    excludes: list[str] = field(
        default_factory=lambda: [".venv", ".git", "runs", "outputs", "tests", ".*_cache", "__pycache__", "*.egg-info"]
    )
    max_upload_mib: PositiveFloat = 100.0  # Ray's own limit is 500
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    kuberay: KubeRayConfig = field(default_factory=KubeRayConfig)
