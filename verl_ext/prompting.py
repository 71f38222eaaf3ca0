"""Chat templates and answer instructions per model family: from a problem to the token ids that every stage shares.

Text becomes tokens here and nowhere else. A prompt is a list of messages (`build_prompt`), rendered by the tokenizer's
chat template (`encode_prompt`); a response is its text and the end-of-sequence token (`encode_response`). Both parts
are tokenised separately and concatenated, so a response has the same ids whatever stands before it. Text that spells a
special token can never become one: it is refused in a prompt and split in a response.

The families and their wording follow the evaluation of the DFT paper (arXiv 2508.05629). Unlike there, training and
sampling see the same ids: the instruction is in both, and so is the token that begins every text of Llama and DeepSeek.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_ext.errors import UserError, nearest

logger = logging.getLogger(__name__)

Message = dict[str, str]

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
SYSTEM = "You are a helpful assistant."
MAX_PADDING_FRACTION = 0.05  # of the vocabulary; log(1 / 0.95) = 0.05 nats is what it can shift at most

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_LLAMA_BASE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] + '<|end_of_text|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
_DEEPSEEK_MATH = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ ('User: ' if message['role'] == 'user' else 'Assistant: ') + message['content'] + '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """How a model family is asked: `{problem}` stands for the problem in `user`; `chat_template` is Jinja."""

    user: str
    system: str | None = None
    chat_template: str


TEMPLATES: dict[str, PromptTemplate] = {
    "qwen-boxed": PromptTemplate(user=f"{{problem}}\n{INSTRUCTION}", system=SYSTEM, chat_template=_CHATML),
    "llama-base-boxed": PromptTemplate(user=f"{{problem}}\n{INSTRUCTION}", system=SYSTEM, chat_template=_LLAMA_BASE),
    "deepseek-math": PromptTemplate(user=f"{{problem}}\n{INSTRUCTION}", chat_template=_DEEPSEEK_MATH),
    "problem-only": PromptTemplate(user="{problem}", chat_template=_CHATML),
}


def get_template(name: str) -> PromptTemplate:
    """Look up a template; raises UserError naming the known ones."""
    if name not in TEMPLATES:
        raise UserError(
            f"Prompt template '{name}' is unknown{nearest(name, TEMPLATES)}. Known templates: {', '.join(TEMPLATES)}."
        )
    return TEMPLATES[name]


def build_prompt(problem: str, template_name: str) -> list[Message]:
    """Messages that ask for the solution of `problem` as the family `template_name` is used to.

    Raises UserError for an unknown template.
    """
    template = get_template(template_name)
    messages = [{"role": "system", "content": template.system}] if template.system is not None else []
    # `replace` and not `format`: braces are common in problems.
    return [*messages, {"role": "user", "content": template.user.replace("{problem}", problem)}]


def load_tokenizer(path: Path | str, template_name: str | None = None, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a model directory or hub id.

    With `template_name`, a tokenizer that brings no chat template gets that of the family; one that brings its own
    keeps it. Raises UserError if the tokenizer cannot be loaded, has no end-of-sequence token or no chat template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"The tokenizer of model '{path}' cannot be loaded: {error}. Set model.path to a directory with "
            "tokenizer.json, or to a hub id that this machine can reach."
        ) from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"The tokenizer of model '{path}' has no end-of-sequence token, so no response could end. "
            "Set eos_token in its tokenizer_config.json."
        )
    if not tokenizer.chat_template:
        if template_name is None:
            raise UserError(
                f"The tokenizer of model '{path}' has no chat template. Set model.prompt_template to one of: "
                f"{', '.join(TEMPLATES)}."
            )
        tokenizer.chat_template = get_template(template_name).chat_template
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def special_token_texts(tokenizer: Any) -> list[str]:
    """Spellings of the tokenizer's special tokens, longest first."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(special | set(tokenizer.all_special_tokens), key=len, reverse=True)


def encode_prompt(tokenizer: Any, prompt: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of the messages in the tokenizer's chat template, up to where the response begins.

    Raises UserError if a message spells a special token: the template would turn it into a real one.
    """
    special = special_token_texts(tokenizer)
    for message in prompt:
        found = [text for text in special if text in message["content"]]
        if found:
            raise UserError(
                f"A prompt contains the special token text {found[0]!r} in its {message['role']} message: "
                f"{_excerpt(message['content'], found[0])!r}. Remove the text from the problem."
            )
    ids = tokenizer.apply_chat_template(
        [dict(message) for message in prompt], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return [int(token) for token in ids]


def encode_response(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a response, ended by the end-of-sequence token.

    A special token's text in the response is tokenised as plain text, so the sequence ends exactly once. A lone
    surrogate, which no tokenizer accepts, becomes the replacement character.
    """
    text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    special = set(tokenizer.added_tokens_decoder) & set(tokenizer.all_special_ids)
    if special & set(ids):
        raise UserError(
            f"The tokenizer turns text of the response {_excerpt(text, text[:1])!r} into a special token. "
            "Remove the row: the sequence would end in its middle."
        )
    return [*map(int, ids), int(tokenizer.eos_token_id)]


def check_vocabulary(tokenizer: Any, model_config: Path | str | Mapping[str, Any]) -> None:
    """Refuse a model whose vocabulary is not the tokenizer's; `model_config` is config.json, its directory or content.

    vLLM never samples ids that the tokenizer lacks while the trainer's softmax counts them: with untrained weights
    their log-probabilities differ by log(model / tokenizer) nats. A few rows of padding (Qwen2.5: 0.2 %) pass with a
    log line, since training makes them negligible; more raise UserError, and so does a vocabulary that is too small.
    """
    size, known = int(_read_config(model_config)["vocab_size"]), len(tokenizer)
    if size < known:
        raise UserError(
            f"The model's vocabulary ({size}) is smaller than its tokenizer's ({known}): some tokens have no "
            "embedding. Use the tokenizer that belongs to the model, or resize the model's embeddings."
        )
    if size - known > MAX_PADDING_FRACTION * size:
        raise UserError(
            f"The model's vocabulary ({size}) is larger than its tokenizer's ({known}): trainer and sampler would "
            f"disagree about {size - known} ids, more than padding explains. Set vocab_size to {known} in the model's "
            "config.json and initialise it again, or use the tokenizer that belongs to the model."
        )
    if size > known:
        logger.info("model vocabulary %d, tokenizer %d: %d rows of padding", size, known, size - known)


def _read_config(model_config: Path | str | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(model_config, Mapping):
        return model_config
    path = Path(model_config)
    path = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"The model's configuration '{path}' cannot be read: {error}. Check model.path.") from None
    if "vocab_size" not in config:
        raise UserError(f"The model's configuration '{path}' has no 'vocab_size'. Check that it is a causal model's.")
    return config


def _excerpt(text: str, around: str, width: int = 30) -> str:
    position = text.find(around)
    return text[max(position - width, 0) : position + len(around) + width]
