"""The tiny policy of the built-in experiment: a Qwen2 of 0.34 million parameters and its byte-level tokenizer.

Both are rebuilt from code, bit for bit: the tokenizer is trained on the generator's own text, the weights are drawn
from a seed. Everything downstream (verl, vLLM, transformers) loads the directory as it would load Qwen2.5.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verl_ext.embedded.problems import generate
from verl_ext.embedded.solutions import solve
from verl_ext.errors import UserError
from verl_ext.prompting import get_template

logger = logging.getLogger(__name__)

END_OF_TEXT, TURN_START, TURN_END = SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY_SIZE = 472
MAX_POSITIONS = 256
SEED_FILE = "seed.txt"
_CORPUS_PROBLEMS = 2000

# Qwen2's own: a digit is always a piece of its own, so is a run of line ends.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _corpus() -> Iterator[str]:
    """Training problems and, so that their words are no longer than others, reworded ones; solutions in both styles."""
    rng = random.Random(0)
    for problem in (*generate("pretraining", _CORPUS_PROBLEMS), *generate("reworded", _CORPUS_PROBLEMS // 4)):
        yield f"user\n{problem.text}\n"
        for style in ("terse", "demonstration"):
            yield f"assistant\n{solve(problem, style, rng)}\n"


def build_tokenizer() -> Any:
    """Train the byte-level BPE tokenizer (`tokenizers.Tokenizer`) with exactly VOCABULARY_SIZE entries.

    Laid out as transformers' Qwen2Tokenizer rebuilds it (NFC, then Qwen2's pieces): all loaders agree on every text,
    and decoding gives back any text in NFC.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    size = tokenizer.get_vocab_size()
    if size != VOCABULARY_SIZE:
        raise AssertionError(f"the tokenizer has {size} entries instead of {VOCABULARY_SIZE}: the corpus is too small")
    return tokenizer


def tokenizer_files() -> dict[str, str]:
    """Name and text of the files that make a directory loadable with AutoTokenizer."""
    tokenizer = build_tokenizer()
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in SPECIAL_TOKENS
    }
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": added,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "bos_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "errors": "replace",
        "model_max_length": MAX_POSITIONS,
        "chat_template": get_template("problem-only").chat_template,
    }
    return {
        "tokenizer.json": tokenizer.to_str(pretty=False),
        "tokenizer_config.json": json.dumps(settings, indent=2),
    }


def model_config() -> dict[str, Any]:
    """`config.json` of the policy. Its vocabulary is the tokenizer's, not padded: vLLM masks ids above it."""
    end, pad = SPECIAL_TOKENS.index(TURN_END), SPECIAL_TOKENS.index(END_OF_TEXT)
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 32,  # the smallest that vLLM's CPU attention supports
        "max_position_embeddings": MAX_POSITIONS,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "initializer_range": 0.06,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "eos_token_id": end,
        "pad_token_id": pad,
        "dtype": "float32",
    }


def initialize(path: Path | str, seed: int) -> None:
    """Write a Hugging Face directory with random weights drawn from `seed`, the tokenizer and the generation settings.

    The same seed gives the same bytes on one machine and torch version.
    """
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    settings = model_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(Qwen2Config(**settings))
    model.generation_config = GenerationConfig(
        eos_token_id=settings["eos_token_id"], pad_token_id=settings["pad_token_id"], do_sample=True
    )
    model.save_pretrained(path)
    for name, text in tokenizer_files().items():
        (path / name).write_text(text, encoding="utf-8")


def initialize_once(path: Path, seed: int, overwrite: bool = False) -> Path:
    """Initialise the directory `path` unless it exists, whole or not at all; returns `path`.

    Raises UserError where it was drawn from another seed, and `overwrite` is false.
    """
    note = path / SEED_FILE
    if note.exists() and not overwrite:
        if note.read_text(encoding="utf-8").strip() == str(seed):
            return path
        raise UserError(
            f"'{path}' was drawn from another seed than {seed}. Choose another run_dir, or pass overwrite=true to "
            "replace it."
        )
    temporary = path.parent / f".{path.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    initialize(temporary, seed)
    (temporary / SEED_FILE).write_text(f"{seed}\n", encoding="utf-8")
    shutil.rmtree(path, ignore_errors=True)
    temporary.rename(path)
    logger.info("tiny policy drawn from seed %d in %s", seed, path)
    return path
