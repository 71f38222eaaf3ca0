"""Training by PPO or GRPO."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from verl_ext.config.fields import STRICT, Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OnlineConfig:
    """Prompts and a policy to a checkpoint, by verl's PPO trainer with our verifier as the reward."""

    prompts: str | None = None  # None: the run's training prompts
    output_dir: str | None = None
    algorithm: Literal["grpo", "ppo"] = "grpo"  # ppo trains a critic beside the policy
    loss: str | None = None  # None: the algorithm's clipped loss; a method: the verified reward in place of advantages
    params: dict[str, Any] = field(default_factory=dict)  # of `loss`
    num_steps: PositiveInt = 100  # rounds of sampling and training
    prompts_per_step: PositiveInt = 64
    n: PositiveInt = 4  # samples a prompt
    prompts_per_update: PositiveInt | None = None  # prompts an optimizer step; None: all of the round's
    max_tokens_per_micro_batch: PositiveInt = 16384  # a rank
    learning_rate: PositiveFloat = 1e-6
    critic_learning_rate: PositiveFloat = 1e-5
    critic_warmup_steps: NonNegativeInt = 0  # rounds in which only the critic learns
    lr_schedule: Literal["cosine", "constant"] = "constant"
    warmup_fraction: Fraction = 0.1
    weight_decay: NonNegativeFloat = 0.01
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    max_grad_norm: PositiveFloat = 1.0
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    clip_low: Fraction = 0.2  # of the clipped loss: distance of the ratio's bounds from 1
    clip_high: NonNegativeFloat = 0.2
    discount: Fraction = 1.0  # of generalised advantage estimation
    gae_lambda: Fraction = 1.0
    kl_coef: NonNegativeFloat = 0.0  # of the KL to the initial policy, in the loss; above 0 a reference policy is kept
    entropy_coef: NonNegativeFloat = 0.0
    max_log_prob_gap: PositiveFloat = 0.1  # nats, mean; trainer against sampler on the tokens of every round
    max_skipped_steps: NonNegativeInt = 3  # in a row, for a non-finite gradient, before the run stops
    max_idle_seconds: PositiveFloat = 3600.0  # without a finished round before the run is stopped
    save_every: PositiveInt | None = None  # rounds; None: at the end only
    keep_last: Annotated[int, Field(ge=2)] = 2  # resumable checkpoints that stay on disk
    keep_best: Literal["reward"] | None = "reward"  # the one with the highest, since the one before, stays too
    verl_overrides: list[str] = field(default_factory=list)  # of verl.trainer.main_ppo, each 'key=value'
    seed: int = 0
