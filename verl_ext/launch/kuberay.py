"""A RayJob for the KubeRay operator: a cluster for one experiment, which ends with it.

The operator makes the cluster, submits the command, tries it again `launch.retries` times, and deletes the cluster. The
image holds the project, so nothing is uploaded; `run_dir` lies on a volume, so a second try continues the first. Ray
asks for a token that the operator makes, which takes KubeRay 1.5.1 or later.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from verl_ext import artifacts, cluster
from verl_ext.config import Config
from verl_ext.errors import UserError
from verl_ext.launch.command import Command

_GROUP = 1000  # any will do


def manifest(config: Config, command: Command, stages: Sequence[str] | None) -> str:
    """The YAML document. Raises UserError without an image, or where `run_dir` is not on the mounted volume."""
    _check(config)
    settings = config.launch.kuberay
    workers = config.cluster.num_nodes - 1
    groups = [{"groupName": "workers", "replicas": workers, "minReplicas": workers, "maxReplicas": workers}]
    document = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": command.name, "namespace": settings.namespace},
        "spec": {
            "entrypoint": shlex.join(command.for_stages(stages)),
            "backoffLimit": config.launch.retries,
            "shutdownAfterJobFinishes": True,
            "rayClusterSpec": {
                "rayVersion": artifacts.package_version("ray"),
                "authOptions": {"mode": "token"},
                "headGroupSpec": {"rayStartParams": _start(config), "template": _pod(config, "ray-head")},
                "workerGroupSpecs": [
                    {**group, "rayStartParams": _start(config), "template": _pod(config, "ray-worker")}
                    for group in groups
                    if workers
                ],
            },
        },
    }
    return yaml.safe_dump(document, sort_keys=False)


def _check(config: Config) -> None:
    settings = config.launch.kuberay
    if settings.image is None:
        raise UserError(
            "launch.kuberay.image is empty: the pods would have no code to run. Build docker/Dockerfile, push it to a "
            "registry that the cluster reads, and name it there."
        )
    if settings.volume_claim is None or not Path(config.run_dir).is_relative_to(settings.mount):
        raise UserError(
            f"run_dir='{config.run_dir}' would be lost with the pods. Set launch.kuberay.volume_claim to a claim that "
            f"all pods can mount, and run_dir to a directory below launch.kuberay.mount='{settings.mount}'."
        )


def _start(config: Config) -> dict[str, str]:
    """Parameters of `ray start`; on CPUs one device a rank and engine, since verl's placement groups ask for them."""
    devices = config.cluster.ranks_per_node + config.sampler.num_engines
    return {"num-gpus": str(devices)} if cluster.runs_on_cpu(config.cluster) else {}


def _pod(config: Config, name: str) -> dict[str, Any]:
    settings = config.launch.kuberay
    resources: dict[str, Any] = {"cpu": str(settings.cpus), "memory": f"{settings.memory_gib}Gi"}
    if not cluster.runs_on_cpu(config.cluster):
        resources["nvidia.com/gpu"] = str(config.cluster.ranks_per_node)
    mounts = [{"name": "runs", "mountPath": settings.mount}, {"name": "shm", "mountPath": "/dev/shm"}]
    volumes = [
        {"name": "runs", "persistentVolumeClaim": {"claimName": settings.volume_claim}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    container = {
        "name": name,
        "image": settings.image,
        "resources": {"requests": resources, "limits": resources},
        "volumeMounts": mounts,
    }
    owner = {"fsGroup": _GROUP}  # the image's user is not root: the volume has to be writable for a group it is in
    return {"spec": {"securityContext": owner, "containers": [container], "volumes": volumes}}
