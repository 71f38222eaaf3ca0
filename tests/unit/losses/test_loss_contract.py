"""What every method must satisfy, whichever files `verl_ext/losses` holds; a new file is covered unnamed."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_ext.losses import get_method, method_names
from verl_ext.losses.base import LossInputs, reduce_losses

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "method"
NORMALIZERS = ["global_token", "micro_token_mean", "paper_v1", "sequence_mean"]
PER_TOKEN = [name for name in method_names() if get_method(name).data != "pairs"]
VARIANTS = [(name, {}) for name in PER_TOKEN] + [
    ("dft", {"level": "sequence"}),
    ("dft", {"level": "geometric_mean", "min_weight": 0.3}),
    ("iw_sft", {"level": "token"}),
]
every_method = pytest.mark.parametrize(
    ("name", "params"), VARIANTS, ids=lambda v: str(v) if isinstance(v, str) else "-".join(map(str, v.values())) or "-"
)
shapes = given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 6),
    length=st.integers(1, 7),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
modest = settings(max_examples=10, deadline=None)


def take(inputs: LossInputs, rows: object, columns: object = slice(None)) -> LossInputs:
    """The same fields at some rows and columns; log_probs stays attached to the original leaf."""
    values = {f.name: getattr(inputs, f.name) for f in fields(inputs)}
    return LossInputs(**{k: v[rows][:, columns] if v.ndim == 2 else v[rows] for k, v in values.items()})


def pad(inputs: LossInputs, left: int, right: int, value: float) -> LossInputs:
    def widen(values: torch.Tensor, fill: float) -> torch.Tensor:
        return torch.nn.functional.pad(values, (left, right), value=fill)

    return replace(
        inputs,
        mask=widen(inputs.mask, False),
        **{k: widen(getattr(inputs, k), value) for k in ("log_probs", "ref_log_probs", "behavior_log_probs")},
    )


def run(name: str, params: dict, inputs: LossInputs) -> tuple[torch.Tensor, dict]:
    return get_method(name)(inputs, get_method(name).params(**params))


def reduce(
    losses: torch.Tensor, mask: torch.Tensor, normalizer: str, whole: torch.Tensor, **sizes: int
) -> torch.Tensor:
    """`whole` is the mask of the global batch."""
    defaults = {"num_micro_batches": 1, "dp_size": 1} | sizes
    sequences = int(whole.any(1).sum())
    return reduce_losses(
        losses, mask, normalizer, num_tokens_global=int(whole.sum()), num_sequences_global=sequences, **defaults
    )


def value_and_gradient(name: str, params: dict, inputs: LossInputs, leaf: torch.Tensor) -> tuple[float, torch.Tensor]:
    leaf.grad = None
    losses, _ = run(name, params, inputs)
    loss = reduce(losses, inputs.mask, "global_token", inputs.mask)
    loss.backward()
    return loss.item(), leaf.grad.float()


@every_method
@modest
@shapes
def test_losses_are_unreduced_fp32_and_zero_where_masked(name, params, make_inputs, seed, rows, length, dtype) -> None:
    inputs = make_inputs(seed, rows, length, dtype)
    losses, metrics = run(name, params, inputs)
    assert losses.shape == (rows, length) and losses.dtype == torch.float32
    assert losses.isfinite().all() and (losses[~inputs.mask] == 0).all()
    assert not any(torch.is_tensor(value) and value.requires_grad for value in metrics.values())
    exact, _ = run(name, params, replace(inputs, **upcast(inputs)))
    assert torch.equal(losses, exact)


def upcast(inputs: LossInputs) -> dict[str, torch.Tensor]:
    return {k: getattr(inputs, k).float() for k in ("log_probs", "ref_log_probs", "behavior_log_probs")}


@every_method
@modest
@shapes
@pytest.mark.parametrize("garbage", [math.nan, -math.inf, math.inf])
def test_what_stands_at_masked_positions_changes_neither_value_nor_gradient(
    name, params, make_inputs, garbage, seed, rows, length, dtype
) -> None:
    inputs = make_inputs(seed, rows, length, dtype)
    clean = value_and_gradient(name, params, inputs, inputs.log_probs)
    dirty_leaf = inputs.log_probs.detach().masked_fill(~inputs.mask, garbage).requires_grad_()
    stored = {k: getattr(inputs, k).masked_fill(~inputs.mask, garbage) for k in ("ref_log_probs", "behavior_log_probs")}
    dirty = value_and_gradient(name, params, replace(inputs, log_probs=dirty_leaf, **stored), dirty_leaf)
    assert clean[0] == dirty[0] and torch.equal(clean[1], dirty[1])
    assert (dirty[1][~inputs.mask] == 0).all()


@every_method
@modest
@shapes
def test_padding_left_or_right_changes_nothing(name, params, make_inputs, seed, rows, length, dtype) -> None:
    inputs = make_inputs(seed, rows, length, dtype)
    plain = value_and_gradient(name, params, inputs, inputs.log_probs)
    padded = value_and_gradient(name, params, pad(inputs, seed % 3, seed % 4, -7.0), inputs.log_probs)
    assert padded[0] == pytest.approx(plain[0], rel=1e-5, abs=1e-7)
    torch.testing.assert_close(padded[1], plain[1], rtol=1e-5, atol=1e-7)


@every_method
@modest
@shapes
def test_permuting_rows_permutes_the_losses(name, params, make_inputs, seed, rows, length, dtype) -> None:
    inputs = make_inputs(seed, rows, length, dtype)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(run(name, params, take(inputs, order))[0], run(name, params, inputs)[0][order])


@every_method
@pytest.mark.parametrize("normalizer", ["global_token", "sequence_mean"])
@modest
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 8), length=st.integers(1, 7), size=st.integers(1, 4))
def test_micro_batches_on_several_ranks_give_the_gradient_of_the_whole_batch(
    name, params, make_inputs, normalizer, seed, rows, length, size
) -> None:
    inputs = make_inputs(seed, rows, length)
    losses, sums = run(name, params, inputs)
    whole = reduce(losses, inputs.mask, normalizer, inputs.mask)
    (expected,) = torch.autograd.grad(whole, inputs.log_probs)

    dp_size = 1 + seed % 3
    value, gradient, added = 0.0, torch.zeros_like(expected), dict.fromkeys(sums, 0.0)
    for rank in range(dp_size):
        mine = list(range(rank, rows, dp_size))
        for chunk in (mine[i : i + size] for i in range(0, len(mine), size)):
            part = take(inputs, chunk)
            losses, metrics = run(name, params, part)
            loss = reduce(losses, part.mask, normalizer, inputs.mask, dp_size=dp_size)
            gradient += torch.autograd.grad(loss, inputs.log_probs)[0] / dp_size  # FSDP's mean over ranks
            value += loss.item() / dp_size
            added = {key: added[key] + float(metrics[key]) for key in added}
    assert value == pytest.approx(whole.item(), rel=1e-5, abs=1e-7)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)
    assert added == {key: pytest.approx(float(total), rel=1e-9, abs=1e-9) for key, total in sums.items()}


@every_method
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (2, 0)])
def test_an_all_masked_micro_batch_gives_zero_with_a_gradient_path(
    name, params, make_inputs, normalizer, shape
) -> None:
    inputs = make_inputs(0, *shape)
    inputs = replace(inputs, mask=torch.zeros_like(inputs.mask))
    loss = reduce(run(name, params, inputs)[0], inputs.mask, normalizer, inputs.mask)
    loss.backward()
    assert loss.item() == 0 and (inputs.log_probs.grad == 0).all()


@every_method
def test_an_empty_response_changes_nothing_for_the_others(name, params, make_inputs) -> None:
    inputs = make_inputs(5, rows=3, length=4)
    inputs = replace(inputs, mask=torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.bool))
    with_empty = value_and_gradient(name, params, inputs, inputs.log_probs)
    without = value_and_gradient(name, params, take(inputs, [0, 2]), inputs.log_probs)
    assert with_empty[0] == pytest.approx(without[0], rel=1e-6)
    torch.testing.assert_close(with_empty[1], without[1])


@pytest.mark.parametrize("name", method_names())
def test_a_method_has_a_config_of_its_name_whose_parameters_it_accepts(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    config = yaml.safe_load(path.read_text())
    assert path.read_text().startswith("# "), "one line that says what the row is"
    assert config["name"] == name
    get_method(name).params(**config["params"])
    get_method(name).params()  # every parameter has a default
