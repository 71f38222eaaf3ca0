"""Ray: start or join a cluster, and place a group of training workers on it.

A cluster that is started here listens on loopback alone (`loopback`), has no dashboard, and asks for a token.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_ext import loopback
from verl_ext.config import ClusterConfig, Config
from verl_ext.errors import UserError

if TYPE_CHECKING:
    from verl.single_controller.ray import RayWorkerGroup

logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parent.parent


def runs_on_cpu(cluster: ClusterConfig) -> bool:
    """Whether training and sampling run on CPUs: as configured, or because this machine has no GPU."""
    if cluster.device == "auto":
        return not any(Path("/dev").glob("nvidia[0-9]*"))
    return cluster.device == "cpu"


def environment(cluster: ClusterConfig) -> dict[str, str]:
    """Environment of every Ray process: verl's plugin, quiet start-up, no data sent anywhere, no one listening.

    verl prints it, so it holds nothing of this process's own environment but the path of its modules.
    """
    variables = {
        "VERL_USE_EXTERNAL_MODULES": "verl_ext.plugin",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VERL_LOGGING_LEVEL": "WARNING",
    }
    if cluster.address is None:
        variables |= loopback.VARIABLES
    if runs_on_cpu(cluster):
        variables |= {"VERL_PLATFORM": "cpu", "TORCH_COMPILE_DISABLE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    return variables


def start_ray(cluster: ClusterConfig, num_engines: int = 1) -> None:
    """Connect to `cluster.address`, or start a local one without a dashboard; does nothing when connected.

    A local CPU cluster declares as many fake GPUs as ranks and engines: verl's placement groups ask for them.
    """
    import ray

    if ray.is_initialized():
        return
    variables = environment(cluster)
    os.environ.update(variables)
    options: dict[str, Any] = {"runtime_env": {"env_vars": variables}, "log_to_driver": _wants_worker_logs()}
    if cluster.address is not None:
        _warn_without_token()
        ray.init(address=cluster.address, **options)
        _refuse_to_leave_gpus(cluster)
        return
    num_ranks = cluster.num_nodes * cluster.ranks_per_node
    if cluster.num_nodes > 1:
        raise UserError(f"cluster.num_nodes={cluster.num_nodes} needs cluster.address of a running Ray cluster.")
    if runs_on_cpu(cluster):
        # logical CPUs: one a rank, one an engine, and some for Ray Data and the verifier; real cores are shared
        options |= {
            "num_cpus": max(os.cpu_count() or 1, num_ranks + num_engines + 4),
            "num_gpus": num_ranks + num_engines,
            "object_store_memory": _STORE,
        }
    # one's own directory: short, since Ray's sockets have a path limit, and free of other users' files
    directory = tempfile.mkdtemp(prefix="ray-")
    loopback.confine_ray()
    loopback.keep_token_private()
    ray.init(
        address="local",  # not what RAY_ADDRESS says
        include_dashboard=False,
        _temp_dir=directory,
        **options,
    )
    logger.info("Ray started: %s CPUs, logs in %s", int(ray.cluster_resources().get("CPU", 0)), directory)


def _refuse_to_leave_gpus(cluster: ClusterConfig) -> None:
    """Raise UserError where `auto` found no GPU on this node of a cluster that has some: all ranks would use CPUs."""
    import ray

    kinds = [name for name in ray.cluster_resources() if name.startswith("accelerator_type:")]
    if cluster.device == "auto" and runs_on_cpu(cluster) and kinds:
        ray.shutdown()
        raise UserError(
            f"cluster.device=auto found no GPU on this node, and the Ray cluster has {', '.join(sorted(kinds))}. "
            "Set cluster.device=cuda to use them, or cluster.device=cpu."
        )


def _warn_without_token() -> None:
    """Whoever reaches a Ray cluster without token authentication runs code on it."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token" and not loopback.has_token():
        logger.warning(
            "The cluster at cluster.address is joined without a token: everyone who reaches it can run code on it. "
            "Start it with RAY_AUTH_MODE=token (`ray get-auth-token --generate` makes one), or keep it in a private "
            "network."
        )


_STORE = 512 * 2**20  # bytes, on a CPU; of a large model a shard of long samples alone may be more


def _wants_worker_logs() -> bool:
    return os.environ.get("RECIPE_WORKER_LOGS", "0") == "1"


_GPU_SECONDS = 30.0


def require_gpus(needed: int, what: str, setting: str) -> None:
    """Wait until `needed` GPUs are free: Ray counts those of a process that was just ended a moment later.

    Raises UserError where the cluster has fewer, or others hold them for longer than that.
    """
    import ray

    deadline = time.monotonic() + _GPU_SECONDS
    while (present := int(ray.available_resources().get("GPU", 0))) < needed:
        if ray.cluster_resources().get("GPU", 0) < needed or time.monotonic() > deadline:
            raise UserError(
                f"{what} asks for {needed} GPU(s), but Ray has {present} free. "
                f"Lower {setting}, or wait for (or stop) the job that holds them: `ray status` shows it."
            )
        time.sleep(0.1)


def create_workers(config: Config) -> RayWorkerGroup:
    """A group of `OfflineActorWorker`s, one a rank. Raises UserError when the cluster has too few GPUs for it."""
    import ray
    from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup
    from verl.utils.device import get_device_name

    from verl_ext import plugin
    from verl_ext.workers import OfflineActorWorker, worker_config

    plugin.register()  # in this process; in Ray's, verl does it
    cluster = config.cluster
    start_ray(cluster, config.sampler.num_engines)
    require_gpus(cluster.num_nodes * cluster.ranks_per_node, "Training", "cluster.ranks_per_node")
    # one process a bundle: with verl's default of 10 CPUs a rank, a small machine would wait forever
    pool = RayResourcePool([cluster.ranks_per_node] * cluster.num_nodes, max_colocate_count=1, use_gpu=True)
    actor = RayClassWithInitArgs(ray.remote(OfflineActorWorker), config=worker_config(config.model, config.train))
    return RayWorkerGroup(resource_pool=pool, ray_cls_with_init=actor, device_name=get_device_name())


def threads_per_rank(cluster: ClusterConfig) -> int | None:
    """Torch threads of a training rank on a CPU: Ray would otherwise give each worker one."""
    if not runs_on_cpu(cluster):
        return None
    return cluster.threads_per_rank or max(1, (os.cpu_count() or 1) // cluster.ranks_per_node)


def hardware() -> str:
    """What the figures of this run were measured on: processor, cores, memory, GPUs."""
    import platform
    import subprocess

    import psutil

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    text = f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"
    text += f", {psutil.virtual_memory().total / 2**30:.0f} GiB memory"
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpus = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")
    except (OSError, subprocess.SubprocessError):
        return f"{text}, no GPU"
    found = [name.strip() for name in gpus if name.strip()]
    return f"{text}, {len(found)} x {found[0]}" if found else f"{text}, no GPU"
