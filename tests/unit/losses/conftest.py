"""Random loss inputs, the same for every test here. Fixtures return functions, so hypothesis can call them freely."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from verl_ext.losses import get_method
from verl_ext.losses.base import LossInputs


def _make_inputs(seed: int, rows: int = 3, length: int = 5, dtype: torch.dtype = torch.float32) -> LossInputs:
    """Leaf log_probs in (-4, 0), every optional field present, a mask with gaps and sometimes empty rows."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    log_probs = (-4.0 * uniform(rows, length)).to(dtype)
    return LossInputs(
        log_probs=log_probs.requires_grad_(),
        mask=uniform(rows, length) < 0.7,
        ref_log_probs=(log_probs.detach() + 0.5 * uniform(rows, length) - 0.25).to(dtype),
        behavior_log_probs=(log_probs.detach() + 0.5 * uniform(rows, length) - 0.25).to(dtype),
        rewards=(uniform(rows) < 0.5).float(),
        quality=uniform(rows),
        advantages=uniform(rows) - 0.5,
    )


def _losses(name: str, inputs: LossInputs, **params: object) -> torch.Tensor:
    method = get_method(name)
    return method(inputs, method.params(**params))[0]


@pytest.fixture(scope="session")
def make_inputs() -> Callable[..., LossInputs]:
    return _make_inputs


@pytest.fixture(scope="session")
def losses_of() -> Callable[..., torch.Tensor]:
    """`losses_of(name, inputs, **params)`: the method's unreduced losses."""
    return _losses
