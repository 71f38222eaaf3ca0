"""A second set of weights beside a model's own: its past, or an average of it. Each rank keeps its own shards.

They lie where the model's shards do: on the device, or in CPU memory (model.offload=always).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from verl.utils.device import get_torch_device


class WeightCopy:
    """Copies of a module's trainable parameters, at first equal to them; frozen ones are the same in any copy."""

    def __init__(self, module: torch.nn.Module):
        self._module = module
        self._copies = [shard.clone() for shard in self._shards()]

    def _shards(self) -> list[torch.Tensor]:
        parameters = (p.detach() for p in self._module.parameters() if p.requires_grad)
        return [p.to_local() if isinstance(p, DTensor) else p for p in parameters]

    @torch.no_grad()
    def move_towards_weights(self, decay: float) -> None:
        """copy <- decay * copy + (1 - decay) * weights."""
        for copy, shard in zip(self._copies, self._shards(), strict=True):
            copy.lerp_(shard, 1.0 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The module computes with the copy inside the block; no gradient graph of it may be alive meanwhile."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for module in self._module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # drops what was gathered from the other set
        get_torch_device().synchronize()  # shards in CPU memory may still be on their way to the device
        for copy, shard in zip(self._copies, self._shards(), strict=True):
            kept = shard.clone()
            shard.copy_(copy)
            copy.copy_(kept)

    def save(self, path: Path) -> None:
        """Write this rank's shards."""
        torch.save(self._copies, path)

    def load(self, path: Path) -> None:
        """Read this rank's shards, as `save` wrote them for the same number of ranks, wherever they lay then."""
        stored = torch.load(path, weights_only=True, map_location="cpu")
        for copy, shard in zip(self._copies, stored, strict=True):
            copy.copy_(shard)
