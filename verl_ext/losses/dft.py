"""DFT: dynamic fine-tuning, 2025, arXiv 2508.05629 (On the Generalization of SFT: A Reinforcement Learning Perspective
with Reward Rectification).

loss      L = -sum_t sg(w_t) log p_t / D               p_t = pi_theta(y_t | x, y_<t), D from `reduce_losses`
weight    level=token           w_t = p_t                        (Eq. 9, the method)
          level=sequence        w_t = prod_s p_s                 (Eq. 8, ablation)
          level=geometric_mean  w_t = (prod_s p_s)^(1/T)         (section 4.6, ablation; T tokens in the response)
gradient  dL/dlogits_t = w_t (softmax_t - onehot(y_t)) / D;  for level=token this is -grad(sum_t p_t) / D
limit     SFT where the model is already certain (p -> 1), and for min_weight = 1

D is the same token count as SFT's; nothing renormalises the weights, so the logged loss is 10 to 20 times below SFT's.
One token's loss is at most 1/e. Tokens with p near 0 are not learned (an EOS the base model never writes, say): that is
what `min_weight` is for, as `scale` was in the authors' first code. Undetached, the gradient would change sign at
p = 1/e. level=sequence is exactly 0 in fp32 once a response has more than about 103 nats: no update at all.
The released code has the token level only; for the other two the paper gives words and no normaliser.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from verl_ext.losses.base import (
    PARAMS_CONFIG,
    LossInputs,
    Method,
    sequence_means,
    sequence_sums,
    weight_metrics,
    weighted_nll,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, config=PARAMS_CONFIG)
class DftParams:
    """level: whose probability weighs a token. min_weight: the weight's lower bound in [0, 1]; 0 is the paper's."""

    level: Literal["token", "sequence", "geometric_mean"] = "token"
    min_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0


def dft_loss(inputs: LossInputs, params: DftParams) -> tuple[Tensor, dict[str, Tensor]]:
    """Token NLL times the model's own detached probability, [B, T]."""
    log_weight = inputs.log_probs.detach()
    if params.level == "sequence":
        log_weight = sequence_sums(log_weight, inputs.mask)
    elif params.level == "geometric_mean":
        log_weight = sequence_means(log_weight, inputs.mask)
    probability = log_weight.exp()
    weight = probability.clamp(min=params.min_weight)
    metrics = weight_metrics(weight, inputs.mask, -inputs.log_probs, probability < params.min_weight)
    return weighted_nll(inputs, weight), metrics


METHOD = Method(loss=dft_loss, params=DftParams, data="positives")
