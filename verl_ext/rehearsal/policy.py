"""A stand-in for an experiment's model: its architecture class in a tiny size, random weights, taught one habit.

The habit is to answer every problem with "It leaves \\boxed{d}." and the family's end of text, d drawn evenly from the
answers there are: without it nothing that a random policy writes would ever be right, and the stages behind rejection
sampling would have nothing to work on.
"""

from __future__ import annotations

import json
import logging
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from verl_ext import prompting
from verl_ext.config import ModelConfig, SourceConfig
from verl_ext.errors import UserError
from verl_ext.planning import architecture
from verl_ext.rehearsal import families
from verl_ext.rehearsal.data import NUM_ANSWERS, SOLUTION, problem
from verl_ext.rehearsal.tokenizers import tokenizer_files

logger = logging.getLogger(__name__)

_HEAD_DIM = 32  # the smallest that vLLM's CPU attention supports
_NUM_LAYERS = 2
_TOKENIZER_FILES = ("tokenizer*", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", "*.jinja")
_MAX_STEPS = 300
_BATCH = 16
_LEARNING_RATE = 3e-3
_TAUGHT = 0.15  # nats a response above the entropy of the answer


def stand_in(model: ModelConfig, directory: Path, seed: int) -> ModelConfig:
    """`model` with the path of its stand-in, made in `directory` under the model's own name unless it is there.

    A local model lends its configuration and tokenizer, a hub id those of its family. Raises UserError for a hub id of
    an unknown family or size.
    """
    path = directory / (model.path.rstrip("/").rpartition("/")[2] or "tiny")
    found = replace(model, path=str(path))
    if (path / "config.json").is_file():
        return found
    temporary = directory / f".{path.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    settings = _write_tokenizer(model, temporary)
    _teach(replace(model, path=str(temporary)), _sized(settings, model), seed)
    temporary.rename(path)
    return found


def _write_tokenizer(model: ModelConfig, directory: Path) -> dict[str, Any]:
    """Write the tokenizer's files; returns the settings of config.json that are not sizes."""
    source = Path(model.path)
    if (source / "config.json").is_file():
        for pattern in _TOKENIZER_FILES:
            for file in source.glob(pattern):
                shutil.copy(file, directory)
        settings: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
        return {key: value for key, value in settings.items() if key not in ("layer_types", "quantization_config")}
    family = families.of_hub_id(model.path)
    is_instruct = model.path.endswith("-Instruct")
    for name, text in tokenizer_files(family, is_instruct).items():
        (directory / name).write_text(text, encoding="utf-8")
    tokenizer = prompting.read_tokenizer(directory)
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": len(tokenizer),
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **family.config,
    }


def _sized(settings: dict[str, Any], model: ModelConfig) -> dict[str, Any]:
    """config.json with tiny sizes, which keep the model's ratio of heads to key-value heads and its tied embeddings."""
    shape = architecture.of_model(model.path)
    group = shape.num_heads // shape.num_kv_heads
    heads = max(group, 2)
    return settings | {
        "hidden_size": heads * _HEAD_DIM,
        "intermediate_size": 2 * heads * _HEAD_DIM,
        "num_hidden_layers": _NUM_LAYERS,
        "max_window_layers": _NUM_LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // group,
        "head_dim": _HEAD_DIM,
        "max_position_embeddings": max(
            settings.get("max_position_embeddings", 0), model.max_prompt_length + model.max_response_length
        ),
        "tie_word_embeddings": shape.is_tied,
        "initializer_range": 0.05,
    }


def _teach(model: ModelConfig, settings: dict[str, Any], seed: int) -> None:
    """Draw the weights from `seed`, teach the habit by plain gradient descent, write the model beside its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    path = Path(model.path)
    (path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = prompting.load_tokenizer(path, model.prompt_template)
    prompts = [
        prompting.encode_prompt(tokenizer, prompting.build_prompt(text, model.prompt_template)) for text in _texts()
    ]
    responses = [
        prompting.encode_response(tokenizer, SOLUTION.format(answer=answer), model.prompt_template)
        for answer in range(NUM_ANSWERS)
    ]
    rng = random.Random(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.float32)
        optimizer = torch.optim.AdamW(policy.parameters(), lr=_LEARNING_RATE)
        excess, steps = math.inf, 0
        while excess > _TAUGHT and steps < _MAX_STEPS:
            excess = _step(policy, optimizer, [(rng.choice(prompts), rng.choice(responses)) for _ in range(_BATCH)])
            steps += 1
    if excess > _TAUGHT:
        raise UserError(
            f"The stand-in of '{model.path}' did not learn to answer in {steps} steps. Choose another seed."
        )
    logger.info(
        "stand-in: %s of %.1f M parameters, taught in %d steps", type(policy).__name__, _millions(policy), steps
    )
    policy.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, do_sample=True, temperature=0.6, top_p=0.9
    )  # as of a published model: what of it is in force is the experiment's to say
    policy.save_pretrained(path)
    (path / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")  # in the spelling of the hub


def _texts() -> list[str]:
    return [problem(SourceConfig(path=f"stand-in/{name}"), index)[0] for name in "abcd" for index in range(16)]


def _step(policy: Any, optimizer: Any, rows: list[tuple[list[int], list[int]]]) -> float:
    """One update on padded rows; returns what the mean negative log-likelihood of a response has above log 4."""
    import torch
    from torch.nn.functional import cross_entropy

    longest = max(len(prompt) + len(response) for prompt, response in rows)
    width = max(len(response) for _, response in rows) + 1
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for index, (prompt, response) in enumerate(rows):  # padded on the left: every response ends the row
        length = len(prompt) + len(response)
        ids[index, -length:] = torch.tensor([*prompt, *response])
        mask[index, -length:] = 1
        labels[index, -len(response) :] = torch.tensor(response)
    logits = policy(input_ids=ids, attention_mask=mask, logits_to_keep=width).logits[:, :-1]
    loss = cross_entropy(logits.flatten(0, 1), labels[:, 1 - width :].flatten(), reduction="sum") / len(rows)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach()) - math.log(NUM_ANSWERS)


def _millions(policy: Any) -> float:
    return sum(parameter.numel() for parameter in policy.parameters()) / 1e6
