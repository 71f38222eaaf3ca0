"""SFT: supervised fine-tuning, maximum likelihood of the response (2022, arXiv 2203.02155, step 1). The baseline.

loss      L = -sum_t log p_t / D                       p_t = pi_theta(y_t | x, y_<t), D from `reduce_losses`
gradient  dL/dlogits_t = (softmax_t - onehot(y_t)) / D
limit     it is SFT

Trained on the verified samples only it is RFT (rejection-sampling fine-tuning, 2023, arXiv 2308.01825): the data
change, the loss does not, hence no file for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from verl_ext.losses.base import PARAMS_CONFIG, LossInputs, Method, weight_metrics, weighted_nll

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, config=PARAMS_CONFIG)
class SftParams:
    """SFT has nothing to set."""


def sft_loss(inputs: LossInputs, params: SftParams) -> tuple[Tensor, dict[str, Tensor]]:
    """Token NLL, [B, T]."""
    weight = inputs.log_probs.detach().new_ones(()).expand(inputs.mask.shape)
    return weighted_nll(inputs, weight), weight_metrics(weight, inputs.mask, -inputs.log_probs)


METHOD = Method(loss=sft_loss, params=SftParams, data="positives")
