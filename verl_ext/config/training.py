"""A method and its offline training."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from verl_ext.config.fields import STRICT, Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from verl_ext.errors import UserError
from verl_ext.losses.base import Normalizer


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MethodConfig:
    """A training objective by name (`verl_ext/losses/<name>.py`) and its parameters."""

    name: str = "sft"
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig:
    """Positives and a method to a checkpoint."""

    data: str | None = None  # an artifact of positives, pairs or judged responses, as the method requires
    output_dir: str | None = None
    behavior_model: str | None = None  # checkpoint that stands for the author of responses which nobody sampled
    num_steps: PositiveInt | None = None  # optimizer steps; None: from num_epochs
    num_epochs: PositiveFloat = 1.0
    batch_size: PositiveInt = 256  # sequences an optimizer step, over all ranks
    max_tokens_per_micro_batch: PositiveInt | None = 16384  # padded tokens a rank; dynamic micro-batches
    micro_batch_size: PositiveInt | None = None  # sequences a rank; fixed micro-batches in data order instead
    logits_chunk_tokens: PositiveInt | None = None  # tokens whose logits exist at once; None: a micro-batch's responses
    sequence_parallel_size: PositiveInt = 1  # ranks that share a sequence (Ulysses); needs model.use_remove_padding
    normalizer: Normalizer = "global_token"
    learning_rate: PositiveFloat = 5e-5
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    warmup_fraction: Fraction = 0.1
    weight_decay: NonNegativeFloat = 0.01
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    max_grad_norm: PositiveFloat = 1.0
    save_every: PositiveInt | None = None  # steps; None: at the end only
    keep_last: Annotated[int, Field(ge=2)] = 2  # resumable checkpoints that stay on disk
    keep_best: Literal["nll", "loss"] | None = None  # the one with the lowest, since the one before, stays too
    keep_weights: bool = False  # keep the Hugging Face weights of every saved step
    max_skipped_steps: NonNegativeInt = 3  # in a row, for a non-finite gradient, before the run stops
    max_idle_seconds: PositiveFloat = 3600.0  # that the workers may take for a step or a save before the run is stopped
    seed: int = 0

    def check(self, num_ranks: int) -> None:
        """Raise UserError for settings that contradict each other or the number of ranks."""
        size = self.sequence_parallel_size
        if num_ranks % size:
            raise UserError(
                f"train.sequence_parallel_size={size} cannot be made of {num_ranks} rank(s). "
                f"Use a divisor of {num_ranks}, or another cluster.ranks_per_node."
            )
        num_shares = num_ranks // size
        if self.batch_size % num_shares:
            raise UserError(
                f"train.batch_size={self.batch_size} cannot be divided evenly among {num_shares} ranks. "
                f"Use a multiple of {num_shares}, or another cluster.ranks_per_node."
            )
        if (self.micro_batch_size is None) == (self.max_tokens_per_micro_batch is None):
            raise UserError(
                "Set exactly one of train.micro_batch_size (fixed, in data order) and train.max_tokens_per_micro_batch "
                f"(dynamic); they are {self.micro_batch_size} and {self.max_tokens_per_micro_batch}."
            )
        if self.normalizer in ("paper_v1", "micro_token_mean") and self.micro_batch_size is None:
            raise UserError(
                f"train.normalizer={self.normalizer} means something only for fixed micro-batches. Set "
                "train.micro_batch_size (the paper's is 4) and train.max_tokens_per_micro_batch=null."
            )
