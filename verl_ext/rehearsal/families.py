"""What a model family's files look like: architecture class, special tokens, tokenizer class, ends of a response.

| family   | class              | tokenizer class         | its hub ids start with |
|----------|--------------------|-------------------------|------------------------|
| qwen2.5  | Qwen2ForCausalLM   | Qwen2Tokenizer          | Qwen/                  |
| llama3   | LlamaForCausalLM   | PreTrainedTokenizerFast | meta-llama/            |
| deepseek | LlamaForCausalLM   | LlamaTokenizerFast      | deepseek-ai/           |

All three have byte-level BPE; they differ in how text is cut into pieces first, in which tokens begin a text or end a
response, and in what they call their tokenizer. Values as in the families' own config.json and tokenizer_config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from verl_ext.errors import UserError

_LLAMA3_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN_PIECES = _LLAMA3_PIECES.replace("{1,3}", "")


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family's conventions; `eos` ends a text, `begins` starts one where the tokenizer adds it to every text."""

    architecture: str
    model_type: str
    tokenizer_class: str
    pieces: str
    special_tokens: tuple[str, ...]
    eos: str
    instruct_eos: str
    pad: str | None
    begins: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)  # keys of config.json beside the sizes


QWEN = Family(
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    tokenizer_class="Qwen2Tokenizer",
    pieces=_QWEN_PIECES,
    special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    eos="<|endoftext|>",
    instruct_eos="<|im_end|>",
    pad="<|endoftext|>",
    config={"rope_theta": 10000.0, "max_position_embeddings": 32768, "use_sliding_window": False},
)
LLAMA3 = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    tokenizer_class="PreTrainedTokenizerFast",
    pieces=_LLAMA3_PIECES,
    special_tokens=(
        *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    eos="<|end_of_text|>",
    instruct_eos="<|eot_id|>",
    pad=None,
    begins="<|begin_of_text|>",
    config={
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
)
DEEPSEEK = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    tokenizer_class="LlamaTokenizerFast",
    pieces=_QWEN_PIECES,
    special_tokens=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    eos="<｜end▁of▁sentence｜>",
    instruct_eos="<｜end▁of▁sentence｜>",
    pad="<｜end▁of▁sentence｜>",
    begins="<｜begin▁of▁sentence｜>",
    config={"rope_theta": 10000.0, "max_position_embeddings": 4096},
)
_OF_ORGANISATION = {"Qwen": QWEN, "meta-llama": LLAMA3, "deepseek-ai": DEEPSEEK}


def of_hub_id(path: str) -> Family:
    """The family of a hub id, by its organisation. Raises UserError for one that is not in the table."""
    organisation = path.partition("/")[0]
    if organisation not in _OF_ORGANISATION:
        raise UserError(
            f"model.path='{path}' has no stand-in: families of {', '.join(_OF_ORGANISATION)} are known. Give the "
            "directory of the model, whose own configuration and tokenizer are then rehearsed with."
        )
    return _OF_ORGANISATION[organisation]
