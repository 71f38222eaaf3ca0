"""Tokenizers that transformers 5 would build by other rules than those of their own tokenizer.json.

The class that tokenizer_config.json names decides how text is cut, whatever tokenizer.json says. DeepSeek's LLaMA
models (DeepSeekMath among them) name LlamaTokenizerFast and are byte-level BPE: built as SentencePiece, every space and
line end of a prompt is dropped without a word (huggingface/transformers issues 45488 and 48206; seen with the pinned
5.10.4). A model in such a directory is used through a directory of links whose tokenizer_config.json names the class
that takes tokenizer.json as it is; the model's own files are not touched.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from verl_ext.atomic_files import write_bytes_atomically
from verl_ext.errors import UserError

AS_IT_IS = "PreTrainedTokenizerFast"
SETTINGS, RULES = "tokenizer_config.json", "tokenizer.json"
PROBE = "Find  x:\n\n\t12 + x = 345, naïve 答 \\boxed{6}."
_SENTENCE_PIECE = ("LlamaTokenizer", "LlamaTokenizerFast")


def misnames(directory: Path) -> bool:
    """Whether a model's files name a SentencePiece class for a byte-level tokenizer."""
    settings, rules = _read(directory / SETTINGS), _read(directory / RULES)
    return settings.get("tokenizer_class") in _SENTENCE_PIECE and "ByteLevel" in json.dumps(rules.get("pre_tokenizer"))


def correct(directory: Path) -> None:
    """Name the class that takes tokenizer.json as it is in the files of `directory`, which are our own copies."""
    write_bytes_atomically(directory / SETTINGS, _corrected(directory))


def _corrected(model: Path) -> bytes:
    return json.dumps(_read(model / SETTINGS) | {"tokenizer_class": AS_IT_IS}, indent=2).encode()


def link_corrected(model: Path, target: Path) -> None:
    """Make `target` a directory of links to the files of `model`, with a corrected tokenizer_config.json."""
    links = {file.name: file for file in model.resolve().iterdir() if file.name != SETTINGS}
    corrected = _corrected(model)
    if target.is_dir():  # another stage may be reading it
        there = {file.name: file.resolve() for file in target.iterdir() if file.name != SETTINGS}
        if there == links and (target / SETTINGS).read_bytes() == corrected:
            return
        shutil.rmtree(target)
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, file in links.items():
        (part / name).symlink_to(file)
    (part / SETTINGS).write_bytes(corrected)
    part.rename(target)


def check(tokenizer: Any, directory: Path) -> None:
    """Raise UserError where a loaded tokenizer writes or reads a text otherwise than its own tokenizer.json."""
    if not (directory / RULES).is_file():
        return
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(directory / RULES))
    found, expected = tokenizer.encode(PROBE, add_special_tokens=False), own.encode(PROBE, add_special_tokens=False).ids
    read_back = tokenizer.decode(expected, clean_up_tokenization_spaces=False)
    if found != expected or read_back != own.decode(expected):
        raise UserError(
            f"The tokenizer of model '{directory}' is loaded as {type(tokenizer).__name__}, which does not do what its "
            f"{RULES} says: {PROBE!r} comes back as {tokenizer.decode(found)!r}. Set tokenizer_class to {AS_IT_IS} in "
            f"{SETTINGS} of a copy."
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # whoever loads it says what is wrong
    return content if isinstance(content, dict) else {}
