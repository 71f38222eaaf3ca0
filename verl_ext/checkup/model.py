"""A model's files: complete, loadable without running code, and with an end of sequence that sampling stops at."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_ext import model_files
from verl_ext.checkup.findings import Finding
from verl_ext.config import ModelConfig
from verl_ext.errors import UserError
from verl_ext.planning.architecture import hub_snapshot
from verl_ext.prompt_templates import get_template

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def check_files(model: ModelConfig) -> list[Finding]:
    """A directory with config.json, all shards of the weights, a tokenizer; no pickles and no code unless allowed."""
    directory = Path(model.path)
    if not directory.is_dir():
        message = f"model.path='{model.path}' is no directory, and no hub id ('organisation/name') either."
        return [_finding("error", message, "correct model.path.")]
    try:
        missing = model_files.missing(directory, model.allow_pickle)
        if missing:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            remedy = "download the model again, or correct model.path."
            return [_finding("error", f"'{directory}' lacks {shown}.", remedy)]
        model_files.check(model)
    except UserError as error:
        return [_finding("error", str(error))]
    size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    return [_finding("ok", f"'{directory}', weights of {size / 1e9:.2g} GB.")]


def check_hub(hub_id: str, target: Path) -> Finding:
    """A model that is still to be fetched into `target`: from the cache on this machine, or over the network."""
    if hub_snapshot(hub_id):
        return _finding("ok", f"'{hub_id}' is in the hub's cache here, from where the first stage takes what it needs.")
    message = f"'{hub_id}' is fetched from the hub by the first stage that needs it, into '{target}'."
    if any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in _OFFLINE):
        remedy = f"unset it, or run `hf download {hub_id}` where there is a network and the same HF_HOME."
        return _finding("error", f"{message} HF_HUB_OFFLINE forbids it.", remedy)
    remedy = "a node without a network needs the same HF_HOME and `hf download` before; a gated model needs HF_TOKEN."
    return _finding("warning", message, remedy)


def check_prompting(model: ModelConfig) -> list[Finding]:
    """The tokenizer has an end of sequence in its vocabulary, of the family that model.prompt_template names."""
    directory = Path(model.path)
    if not (directory / "tokenizer.json").is_file():
        return []
    try:
        template = get_template(model.prompt_template)
    except UserError as error:
        return [_finding("error", str(error))]
    settings = _read(directory / "tokenizer_config.json")
    end, known = _text(settings.get("eos_token")), vocabulary(_read(directory / "tokenizer.json"))
    if end is None or end not in known:
        return [
            _finding(
                "error",
                "The tokenizer has no end-of-sequence token, so no response could end."
                if end is None
                else f"The tokenizer's end of sequence {end!r} is not in its vocabulary.",
                "set eos_token in tokenizer_config.json to the token that ends a response.",
            )
        ]
    findings = []
    size = int(_read(directory / "config.json").get("vocab_size", 0))
    if size <= max(known.values()):
        findings.append(
            _finding(
                "error",
                f"The model's vocabulary ({size}) is smaller than its tokenizer's ({max(known.values()) + 1}).",
                "use the tokenizer that belongs to the model.",
            )
        )
    if end not in (model.stop or template.stop) and end not in template.chat_template:
        findings.append(
            _finding(
                "warning",
                f"The tokenizer ends a sequence with {end!r}, which family '{model.prompt_template}' does not know.",
                "set model.prompt_template to the model's own family.",
            )
        )
    ends = _read(directory / "generation_config.json").get("eos_token_id")
    if ends is not None and known[end] not in (ends if isinstance(ends, list) else [ends]):
        findings.append(
            _finding(
                "warning",
                f"generation_config.json ends a response at {ends}, the tokenizer at {known[end]} ({end!r}).",
                "add the tokenizer's id to eos_token_id of generation_config.json.",
            )
        )
    whose = "its own" if _has_chat_template(directory, settings) else "none of its own"
    message = f"family '{model.prompt_template}', chat template: {whose}; a response ends with {end!r}."
    return findings or [_finding("ok", message)]


def vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Token to id, from tokenizer.json: the model's vocabulary (a mapping, or a list of pairs) and added tokens."""
    vocab = tokenizer.get("model", {}).get("vocab", {})
    entries = vocab.items() if isinstance(vocab, dict) else ((item[0], index) for index, item in enumerate(vocab))
    return {**dict(entries), **{item["content"]: int(item["id"]) for item in tokenizer.get("added_tokens", [])}}


def _has_chat_template(directory: Path, settings: Mapping[str, Any]) -> bool:
    return bool(settings.get("chat_template")) or (directory / "chat_template.jinja").is_file()


def _text(token: Any) -> str | None:
    """A special token as older and newer files write it."""
    return token.get("content") if isinstance(token, dict) else token


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _finding(level: Any, message: str, remedy: str = "") -> Finding:
    return Finding(check="model", level=level, message=message, remedy=remedy)
