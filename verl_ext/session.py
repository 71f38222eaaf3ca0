"""The Ray processes that a comparison keeps: one group of training workers, one set of vLLM engines.

Both live as long as the session, since starting them costs more than a small policy's training. Where the cluster has
too few free GPUs for both, the one that is not needed is stopped first.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from verl_ext import cluster, sampling
from verl_ext.config import Config, ModelConfig

if TYPE_CHECKING:
    from verl.single_controller.ray import RayWorkerGroup

logger = logging.getLogger(__name__)


class Session:
    """Workers and samplers of one configuration, created when first asked for."""

    def __init__(self, config: Config):
        self._config = config
        self._workers: RayWorkerGroup | None = None
        self._samplers: list[Any] = []

    def workers(self, model: ModelConfig) -> RayWorkerGroup:
        """The training workers; any model may be started on them later."""
        if self._workers is None:
            config = self._config
            self._make_room(config.cluster.num_nodes * config.cluster.ranks_per_node, self._stop_samplers)
            self._workers = cluster.create_workers(dataclasses.replace(config, model=model))
        return self._workers

    def samplers(self, model: ModelConfig) -> list[Any]:
        """The vLLM engines; checkpoints of one architecture take turns in them."""
        if not self._samplers:
            config = self._config.sampler
            self._make_room(config.num_engines * config.tensor_parallel_size, self._stop_workers)
            self._samplers = sampling.create_samplers(model, config, self._config.cluster)
        return self._samplers

    def close(self) -> None:
        """Stop everything and leave Ray; what is asked for later is started again."""
        import ray

        self._stop_samplers()
        self._stop_workers()
        if ray.is_initialized():
            ray.shutdown()

    def _make_room(self, needed: int, stop_other: Any) -> None:
        import ray

        cluster.start_ray(self._config.cluster, self._config.sampler.num_engines)
        if ray.available_resources().get("GPU", 0) < needed:
            stop_other()

    def _stop_samplers(self) -> None:
        import ray

        for sampler in self._samplers:
            ray.kill(sampler)
        self._samplers = []

    def _stop_workers(self) -> None:
        import ray

        if self._workers is not None:
            for worker in self._workers.workers:
                ray.kill(worker)
            for group in self._workers.resource_pool.pgs:  # one a node
                ray.util.remove_placement_group(group)
            self._workers = None
