"""Values and gradients against numbers worked by hand and against the papers' formulas written out literally."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_ext.losses import get_method
from verl_ext.losses.base import LossInputs, reduce_losses

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "losses.json").read_text())
VARIANTS = [
    ("sft", {}),
    ("dft", {"level": "token"}),
    ("dft", {"level": "sequence"}),
    ("dft", {"level": "geometric_mean"}),
    ("dft", {"level": "token", "min_weight": 0.2}),
    ("iw_sft", {"level": "sequence"}),
    ("iw_sft", {"level": "sequence", "temperature": 2.5, "clip_high": 1.1}),
    ("iw_sft", {"level": "token"}),
    ("iw_sft", {"level": "token", "clip_low": 0.9, "clip_high": 1.1}),
]


def label(value: object) -> str:
    return "-".join(f"{k}={v}" for k, v in value.items()) or "default" if isinstance(value, dict) else str(value)


def literal_weight(name: str, params: dict, lp: np.ndarray, ref: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The weight of every counted token, one at a time, in fp64."""
    weight = np.zeros_like(lp)
    for b, t in zip(*np.nonzero(mask), strict=True):
        counted = [s for s in range(lp.shape[1]) if mask[b, s]]
        if name == "sft":
            weight[b, t] = 1.0
        elif name == "dft":
            product = math.prod(math.exp(lp[b, s]) for s in counted)
            choices = {
                "token": math.exp(lp[b, t]),
                "sequence": product,
                "geometric_mean": product ** (1 / len(counted)),
            }
            weight[b, t] = max(choices[params["level"]], params.get("min_weight", 0.0))
        else:
            token_level = params["level"] == "token"
            mean = sum(lp[b, s] - ref[b, s] for s in counted) / len(counted)
            ratio = math.exp(params.get("temperature", 1.0) * (lp[b, t] - ref[b, t] if token_level else mean))
            low = params.get("clip_low", 0.2 if token_level else 0.0)
            high = params.get("clip_high", 1.8 if token_level else 16.0)
            weight[b, t] = min(max(ratio, low), high)
    return weight


def global_mean(losses: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return reduce_losses(
        losses,
        mask,
        "global_token",
        num_tokens_global=int(mask.sum()),
        num_sequences_global=len(mask),
        num_micro_batches=1,
        dp_size=1,
    )


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['method']}-{label(c['params'])}")
def test_weights_and_loss_equal_the_numbers_worked_by_hand(case: dict) -> None:
    log_probs = torch.tensor([GOLDEN["log_probs"]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    method = get_method(case["method"])
    inputs = LossInputs(log_probs=log_probs, mask=mask, ref_log_probs=torch.tensor([GOLDEN["ref_log_probs"]]))
    losses, metrics = method(inputs, method.params(**case["params"]))
    assert (losses / -log_probs)[0].tolist() == pytest.approx(case["weight"], abs=1e-6)
    assert global_mean(losses, mask).item() == pytest.approx(case["loss"], abs=1e-6)
    assert metrics["weight_sum"].item() == pytest.approx(sum(case["weight"]), abs=4e-6)
    assert metrics["nll_sum"].item() == pytest.approx(4.1, abs=1e-6)


@pytest.mark.parametrize(("name", "params"), VARIANTS, ids=label)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 4), length=st.integers(1, 6), vocab=st.integers(2, 9))
def test_gradient_through_the_logits_is_weight_times_softmax_minus_onehot(
    name: str, params: dict, seed: int, rows: int, length: int, vocab: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(rows, length, vocab, generator=generator)).requires_grad_()
    labels = torch.randint(vocab, (rows, length), generator=generator)
    mask = torch.rand(rows, length, generator=generator) < 0.8
    ref = -torch.rand(rows, length, generator=generator) * 3
    log_probs = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    method = get_method(name)
    losses, _ = method(LossInputs(log_probs=log_probs, mask=mask, ref_log_probs=ref), method.params(**params))
    loss = global_mean(losses, mask)
    loss.backward()

    x = logits.detach().double().numpy()
    probability = np.exp(x - x.max(-1, keepdims=True))
    probability /= probability.sum(-1, keepdims=True)
    onehot = np.eye(vocab)[labels.numpy()]
    lp = np.log((probability * onehot).sum(-1))
    weight = literal_weight(name, params, lp, ref.double().numpy(), mask.numpy())
    count = max(int(mask.sum()), 1)
    assert loss.item() == pytest.approx(-(weight * lp).sum() / count, rel=1e-5, abs=1e-7)
    expected = weight[..., None] * (probability - onehot) / count
    np.testing.assert_allclose(logits.grad.numpy(), expected, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize(("name", "params"), VARIANTS, ids=label)
def test_gradient_equals_autograd_of_the_formula_in_double_precision(name: str, params: dict, make_inputs) -> None:
    inputs = make_inputs(7, rows=4, length=6)
    losses, _ = get_method(name)(inputs, get_method(name).params(**params))
    global_mean(losses, inputs.mask).backward()

    lp = inputs.log_probs.detach().double().requires_grad_()
    weight = literal_weight(
        name, params, lp.detach().numpy(), inputs.ref_log_probs.double().numpy(), inputs.mask.numpy()
    )
    (-(lp * torch.from_numpy(weight)).sum() / inputs.mask.sum()).backward()
    torch.testing.assert_close(inputs.log_probs.grad.double(), lp.grad, rtol=1e-5, atol=1e-8)


def test_sft_is_the_cross_entropy_of_torch() -> None:
    logits = torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(15).reshape(3, 5) % 11
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 0, 1]], dtype=torch.bool)
    log_probs = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    losses, _ = get_method("sft")(LossInputs(log_probs=log_probs, mask=mask), get_method("sft").params())
    expected = torch.nn.functional.cross_entropy(
        logits.reshape(15, 11), labels.masked_fill(~mask, -100).reshape(15), ignore_index=-100
    )
    torch.testing.assert_close(global_mean(losses, mask), expected)
