"""Stand-ins for a family's tokenizer: its special tokens and class, with a vocabulary learned from a few lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from verl_ext.prompt_templates import TEMPLATES, get_template
from verl_ext.rehearsal.data import SOLUTION
from verl_ext.rehearsal.families import Family

VOCABULARY_SIZE = 512


def tokenizer_files(family: Family, is_instruct: bool) -> dict[str, str]:
    """Name and text of the files that make a directory loadable with AutoTokenizer, as the family's are."""
    tokenizer = _train(family)
    settings: dict[str, Any] = {
        "tokenizer_class": family.tokenizer_class,
        "bos_token": family.begins,
        "eos_token": family.instruct_eos if is_instruct else family.eos,
        "pad_token": family.pad,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for token in family.special_tokens
        },
    }
    if family.tokenizer_class == "Qwen2Tokenizer":
        settings["chat_template"] = get_template("problem-only").chat_template
    if family.tokenizer_class == "LlamaTokenizerFast":
        settings |= {"add_bos_token": True, "add_eos_token": False, "legacy": True}
    return {"tokenizer.json": tokenizer.to_str(pretty=False), "tokenizer_config.json": json.dumps(settings, indent=2)}


def _train(family: Family) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    if family.model_type == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    pieces = pre_tokenizers.Split(Regex(family.pieces), behavior="isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(family.special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    if family.begins is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{family.begins} $A",
            special_tokens=[(family.begins, tokenizer.token_to_id(family.begins))],
        )
    return tokenizer


def _corpus() -> Iterator[str]:
    """What a rehearsal reads and writes most."""
    for template in TEMPLATES.values():
        yield f"system\n{template.system}\nuser\n{template.user}\nassistant\n"
    for answer in range(100):
        yield f" {answer}: what does {7 * answer} leave when divided by 4?\n{SOLUTION.format(answer=answer % 4)}"
        yield "<think>\nFour goes into it.\n</think>\n\nAnswer: It leaves"
