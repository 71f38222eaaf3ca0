"""Which files of a model are loaded: no pickles and no code, unless the configuration allows them by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from verl_ext.config import ModelConfig
from verl_ext.errors import UserError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_WEIGHTS = (("*.safetensors", "model.safetensors.index.json"), ("*.bin", "pytorch_model.bin.index.json"))
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_WITH_CODE = ("config.json", "tokenizer_config.json", "processor_config.json", "generation_config.json")


def check(model: ModelConfig) -> None:
    """Raise UserError where `model.path` is a directory that cannot or must not be loaded.

    Refused are a directory without a readable config.json, weights that only a pickle holds (model.allow_pickle), and
    an `auto_map`, which names Python files to run (model.trust_remote_code). A hub id has no files here yet.
    """
    directory = Path(model.path)
    if not model.path:
        raise UserError("model.path is empty. Set it to a Hugging Face directory, or choose model=<name>.")
    if not directory.is_dir():
        return
    _read(directory / "config.json")
    if not model.trust_remote_code:
        _refuse_code(directory)
    if not model.allow_pickle and not _has(directory, "*.safetensors"):
        pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
        if pickles:
            raise UserError(
                f"Model '{directory}' has its weights in {pickles[0]}, a pickle, which may run code when it is loaded. "
                "Convert it to safetensors (save_pretrained of a machine you trust), or set model.allow_pickle=true."
            )


def missing(directory: Path, allow_pickle: bool = False) -> list[str]:
    """What a model's directory lacks, by name; a kind of file of which any will do is named as such."""
    lacking = [] if (directory / "config.json").is_file() else ["config.json"]
    if not any((directory / name).is_file() for name in _TOKENIZERS):
        lacking.append("a tokenizer (tokenizer.json)")
    for pattern, index in _WEIGHTS if allow_pickle else _WEIGHTS[:1]:
        if (directory / index).is_file():
            shards = set(_read(directory / index).get("weight_map", {}).values())
            return lacking + sorted(name for name in shards if not (directory / name).is_file())
        if _has(directory, pattern):
            return lacking
    return [*lacking, "weights (*.safetensors)"]


def _refuse_code(directory: Path) -> None:
    for name in _WITH_CODE:
        if (directory / name).exists() and (classes := _read(directory / name).get("auto_map")):
            raise UserError(
                f"Model '{directory}' asks to run Python files of its own: auto_map in {name} names "
                f"{str(classes)[:120]}. Read them, then allow them by model.trust_remote_code=true."
            )


def _has(directory: Path, pattern: str) -> bool:
    return any(directory.glob(pattern))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"'{path}' cannot be read: {error}. Set model.path to a Hugging Face directory (of a trained checkpoint, "
            "its subdirectory 'huggingface')."
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"'{path}' holds no JSON object. Restore the file, or set model.path to another directory.")
    return content
