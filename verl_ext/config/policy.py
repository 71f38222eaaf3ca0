"""The policy that is trained and sampled."""

from __future__ import annotations

from typing import Any, Literal

from pydantic.dataclasses import dataclass

from verl_ext.config.fields import STRICT, NonNegativeInt, PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """The policy: where its weights are, how it is prompted, how it is run."""

    path: str = ""  # hub id or local directory
    revision: str | None = None  # of a hub id: branch, tag or commit; None: the newest when it is fetched
    download_dir: str | None = None  # where hub ids are fetched to, seen by every node; None: <run_dir>/models
    prompt_template: str = "qwen-boxed"  # how problems are asked: a family of verl_ext/prompt_templates.py
    demonstration_template: str | None = None  # of demonstrations, where training asks otherwise; None: the same
    stop: list[str] | None = None  # tokens that end a response, beside EOS; None: those of the family
    max_prompt_length: PositiveInt = 1024  # tokens; longer prompts are refused
    max_response_length: PositiveInt = 2048  # tokens, EOS included
    dtype: Literal["fp32", "bf16"] = "bf16"  # of the forward pass
    parameter_dtype: Literal["fp32", "bf16"] = "fp32"  # of weights trained offline, and Adam's moments
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    use_remove_padding: bool = False  # packed sequences; needs flash_attention_2
    gradient_checkpointing: bool = False
    # what leaves the GPU. idle: online, weights and Adam's moments while the policy is sampled. always: weights,
    # gradients and moments are kept in CPU memory, where Adam steps; layers visit the GPU one by one
    offload: Literal["none", "idle", "always"] = "none"
    trust_remote_code: bool = False
    allow_pickle: bool = False  # load weights of which there is no safetensors file
    lora_rank: NonNegativeInt = 0  # of adapters on all linear layers; 0 trains all weights
    lora_alpha: PositiveInt = 16  # an adapter's update is scaled by alpha / rank

    def identity(self) -> dict[str, Any]:
        """What lineage records beside the weights: all that is in use (adapters, bf16 weights where there are any)."""
        unused = {"path", "revision", "download_dir", "allow_pickle"}  # the files' hashes and their origin are known
        unused |= {"offload"}  # where numbers lie, not what they are: a run may go on with another choice
        unused |= {"demonstration_template", "stop"}  # the prompts and rollouts know these
        unused |= set() if self.lora_rank else {"lora_rank", "lora_alpha"}
        unused |= {"parameter_dtype"} if self.parameter_dtype == "fp32" else set()
        return {key: value for key, value in vars(self).items() if key not in unused}
