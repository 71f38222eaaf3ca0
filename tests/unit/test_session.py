"""Training workers and vLLM engines that take turns on the GPUs of a cluster."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from verl_ext import cluster, session
from verl_ext.config import ClusterConfig, Config
from verl_ext.errors import UserError


class Ray:
    """A Ray whose count of free GPUs lags behind: each look gives the next of `free`, then the last again."""

    def __init__(self, total: int, free: list[int]):
        self.total, self.free = total, free
        self.killed: list[str] = []
        self.removed: list[str] = []
        self.util = SimpleNamespace(remove_placement_group=self.removed.append)

    def available_resources(self) -> dict[str, float]:
        return {"GPU": float(self.free.pop(0) if len(self.free) > 1 else self.free[0])}

    def cluster_resources(self) -> dict[str, float]:
        return {"GPU": float(self.total)}

    def kill(self, actor: str) -> None:
        self.killed.append(actor)


def install(monkeypatch: pytest.MonkeyPatch, total: int, free: list[int]) -> Ray:
    """The stand-in in the place of Ray, and a clock that sleeps advance."""
    ray, now = Ray(total, free), [0.0]
    clock: Any = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(cluster, "time", clock)
    monkeypatch.setattr(cluster, "start_ray", lambda *_: None)
    return ray


def test_gpus_that_were_just_given_back_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = install(monkeypatch, total=8, free=[0, 0, 3, 8])
    cluster.require_gpus(8, "Training", "cluster.ranks_per_node")
    assert ray.free == [8]


@pytest.mark.parametrize(("total", "free"), [(4, [4]), (8, [5])], ids=["too small", "held by others"])
def test_gpus_that_do_not_come_are_named(monkeypatch: pytest.MonkeyPatch, total: int, free: list[int]) -> None:
    install(monkeypatch, total, free)
    with pytest.raises(UserError, match=rf"Sampling asks for 8 GPU\(s\), but Ray has {free[0]} free\. Lower a key,"):
        cluster.require_gpus(8, "Sampling", "a key")


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> tuple[session.Session, Ray]:
    """A session whose workers hold two nodes of two GPUs each."""
    ray = install(monkeypatch, total=4, free=[0, 0, 4])
    found = session.Session(Config())
    pool = SimpleNamespace(pgs=["node 0", "node 1"])
    found._workers = SimpleNamespace(workers=["rank 0", "rank 1", "rank 2", "rank 3"], resource_pool=pool)
    monkeypatch.setattr(session.sampling, "create_samplers", lambda *_: ["engine"])
    return found, ray


def test_engines_get_the_gpus_of_every_node_that_trained(busy: tuple[session.Session, Ray]) -> None:
    """verl has a placement group a node; one that stays would hold that node's GPUs for good."""
    found, ray = busy
    assert found.samplers(Config().model) == ["engine"]
    assert ray.killed == ["rank 0", "rank 1", "rank 2", "rank 3"] and ray.removed == ["node 0", "node 1"]
    assert found._workers is None


def joined(monkeypatch: pytest.MonkeyPatch, device: str, resources: dict[str, float]) -> list[str]:
    """What is done to a cluster that is joined from a node without a GPU."""
    done: list[str] = []
    ray = SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda **_: done.append("joined"),
        shutdown=lambda: done.append("left"),
        cluster_resources=lambda: resources,
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(cluster.Path, "glob", lambda *_: iter(()))
    monkeypatch.setattr(cluster.os, "environ", {})
    cluster.start_ray(ClusterConfig(address="head:6379", device=device))  # type: ignore[arg-type]
    return done


def test_a_node_without_a_gpu_does_not_put_a_cluster_that_has_some_on_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = {"CPU": 64.0, "GPU": 8.0, "accelerator_type:H100": 1.0}
    with pytest.raises(UserError, match=r"found no GPU on this node.*accelerator_type:H100.*cluster.device=cuda"):
        joined(monkeypatch, "auto", gpus)
    assert joined(monkeypatch, "cuda", gpus) == joined(monkeypatch, "cpu", gpus) == ["joined"]
    assert joined(monkeypatch, "auto", {"CPU": 4.0, "GPU": 2.0}) == ["joined"]  # devices that were only declared
