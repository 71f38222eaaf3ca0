"""Chat templates and answer instructions per model family: from a problem to the token ids that every stage shares.

Text becomes tokens here and nowhere else. A prompt is a list of messages (`build_prompt`), rendered by the tokenizer's
chat template (`encode_prompt`); a response is its text and the end-of-sequence token (`encode_response`). Both parts
are tokenised separately and concatenated, so a response has the same ids whatever stands before it. Text that spells a
special token can never become one: it is refused in a prompt and split in a response.

The families and their wording are in `prompt_templates`; `model.prompt_template` names one, and no path decides
anything. Unlike in the evaluation of the DFT paper (arXiv 2508.05629), training and sampling see the same ids: the
instruction is in both (unless `model.demonstration_template` says otherwise), and so is the token that begins every
text of Llama and DeepSeek.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from verl_ext import tokenizer_class
from verl_ext.config import ModelConfig
from verl_ext.errors import UserError
from verl_ext.fitness import Fitness
from verl_ext.prompt_templates import (
    CODE_INSTRUCTION,
    INSTRUCTION,
    TEMPLATES,
    Message,
    PromptTemplate,
    build_prompt,
    get_template,
)

__all__ = [
    "CODE_INSTRUCTION",
    "INSTRUCTION",
    "TEMPLATES",
    "Message",
    "PromptTemplate",
    "build_prompt",
    "check_vocabulary",
    "encode_prompt",
    "encode_response",
    "end_token_ids",
    "fitness",
    "get_template",
    "load_tokenizer",
    "read_tokenizer",
    "special_token_ids",
    "special_token_texts",
    "stop_token_ids",
]

logger = logging.getLogger(__name__)

MAX_PADDING_FRACTION = 0.05  # of the vocabulary; log(1 / 0.95) = 0.05 nats is what it can shift at most


def read_tokenizer(path: Path | str, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model directory or hub id, as it is.

    Raises UserError if it cannot be loaded, or is loaded as another one than its files describe.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    loader = PreTrainedTokenizerFast if tokenizer_class.misnames(Path(path)) else AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"The tokenizer of model '{path}' cannot be loaded: {error}. Set model.path to a directory with "
            "tokenizer.json, or to a hub id that this machine can reach."
        ) from error
    tokenizer_class.check(tokenizer, Path(path))
    return tokenizer


def load_tokenizer(path: Path | str, template_name: str | None = None, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a model directory or hub id, with the chat template that prompts are rendered with.

    That of the family `template_name`, where the tokenizer brings none or one that renders this family's prompts
    otherwise; else its own. Raises UserError if the tokenizer cannot be loaded, has no end-of-sequence token or no
    chat template.
    """
    tokenizer = read_tokenizer(path, trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"The tokenizer of model '{path}' has no end-of-sequence token, so no response could end. "
            "Set eos_token in its tokenizer_config.json."
        )
    if template_name is None and not tokenizer.chat_template:
        raise UserError(
            f"The tokenizer of model '{path}' has no chat template. Set model.prompt_template to one of: "
            f"{', '.join(TEMPLATES)}."
        )
    if template_name is not None and not _renders_as(tokenizer, template_name):
        if tokenizer.chat_template:
            logger.info("%s: prompts are rendered as %s, not by the tokenizer's own chat template", path, template_name)
        tokenizer.chat_template = get_template(template_name).chat_template
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _renders_as(tokenizer: Any, template_name: str) -> bool:
    """Whether the tokenizer's own chat template writes the prompts of a family as that family's does."""
    from jinja2 import TemplateError

    def render(chat_template: str) -> str:
        prompt = build_prompt("1+1?", template_name)
        return str(
            tokenizer.apply_chat_template(
                prompt, chat_template=chat_template, tokenize=False, add_generation_prompt=True
            )
        )

    expected = render(get_template(template_name).chat_template)
    try:
        return isinstance(tokenizer.chat_template, str) and render(tokenizer.chat_template) == expected
    except TemplateError:  # it refuses a role that the family has
        return False


def special_token_texts(tokenizer: Any) -> list[str]:
    """Spellings of the tokenizer's special tokens, longest first."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(special | set(tokenizer.all_special_tokens), key=len, reverse=True)


def stop_token_ids(tokenizer: Any, model: ModelConfig) -> list[int]:
    """Ids that end a response beside the tokenizer's own end of sequence: `model.stop`, else those of its family.

    A family's text that is no token of this tokenizer is left out; one of `model.stop` raises UserError.
    """
    known = tokenizer.get_added_vocab()
    if unknown := [text for text in model.stop or () if text not in known]:
        raise UserError(
            f"model.stop names {unknown[0]!r}, which is no token of model '{model.path}'. Its special tokens: "
            f"{', '.join(special_token_texts(tokenizer))}."
        )
    texts = get_template(model.prompt_template).stop if model.stop is None else model.stop
    return sorted({int(known[text]) for text in texts if text in known} - {int(tokenizer.eos_token_id)})


def end_token_ids(tokenizer: Any, model: ModelConfig) -> set[int]:
    """Every id that ends a response: the tokenizer's, those of `stop_token_ids`, and those a local model names.

    It names them in generation_config.json, or where it has none, in config.json: what vLLM reads.
    """
    directory = Path(model.path)
    files = (directory / name for name in ("generation_config.json", "config.json"))
    named = next((path for path in files if path.is_file()), None)
    more = json.loads(named.read_text(encoding="utf-8")).get("eos_token_id") if named else None
    more = more if isinstance(more, list) else [] if more is None else [more]
    return {int(tokenizer.eos_token_id), *stop_token_ids(tokenizer, model), *map(int, more)}


def special_token_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that the tokenizer calls special."""
    added = {int(key) for key, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(map(int, tokenizer.all_special_ids))


def fitness(model: ModelConfig) -> Fitness:
    """What a response must be to be trained on, as far as is known: of no local model, its lengths alone.

    A directory may hold a tokenizer alone, whose vocabulary is then the limit. Raises UserError where model and
    tokenizer do not belong together.
    """
    limits = Fitness(max_prompt_length=model.max_prompt_length, max_response_length=model.max_response_length)
    if not model.path or not (Path(model.path) / "tokenizer.json").is_file():
        return limits
    tokenizer = load_tokenizer(model.path, model.prompt_template, model.trust_remote_code)
    has_config = (Path(model.path) / "config.json").is_file()
    if has_config:
        check_vocabulary(tokenizer, model.path)
    return replace(
        limits,
        eos_token_ids=sorted(end_token_ids(tokenizer, model)),
        special_token_ids=sorted(special_token_ids(tokenizer) - _thinking_token_ids(tokenizer, model.prompt_template)),
        vocab_size=int(_read_config(model.path)["vocab_size"]) if has_config else len(tokenizer),
    )


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


def encode_response(tokenizer: Any, text: str, template_name: str | None = None) -> list[int]:
    """Token ids of a response, ended by the end-of-sequence token.

    Where the family marks the thought of a response by special tokens, `<think>` and `</think>` around it become
    these. Every other special token's text is tokenised as plain text, so the sequence ends exactly once. A lone
    surrogate, which no tokenizer accepts, becomes the replacement character.
    """
    text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    special = set(tokenizer.added_tokens_decoder) & set(tokenizer.all_special_ids)
    ids: list[int] = []
    for part, is_mark in _parts(text, template_name):
        found = tokenizer.encode(part, add_special_tokens=False, split_special_tokens=not is_mark)
        if not is_mark and special & set(found):
            raise UserError(
                f"The tokenizer turns text of the response {_excerpt(text, text[:1])!r} into a special token. "
                "Remove the row: the sequence would end in its middle."
            )
        ids += map(int, found)
    return [*ids, int(tokenizer.eos_token_id)]


def _parts(text: str, template_name: str | None) -> list[tuple[str, bool]]:
    """A response in pieces, each with whether it is a mark of the family, whose special tokens are meant."""
    marks = get_template(template_name).thinking if template_name is not None else None
    thought, close, answer = text.rpartition("\n</think>\n\n")
    if marks is None or not close or not thought.startswith("<think>\n"):
        return [(text, False)]
    return [(marks[0], True), (thought.removeprefix("<think>\n") + "\n", False), (marks[1], True), (answer, False)]


def _thinking_token_ids(tokenizer: Any, template_name: str) -> set[int]:
    """Ids of the special tokens by which the family marks thought and answer inside a response."""
    marks = get_template(template_name).thinking or ()
    ids = {int(token) for mark in marks for token in tokenizer.encode(mark, add_special_tokens=False)}
    return ids & special_token_ids(tokenizer)


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
