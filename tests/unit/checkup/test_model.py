"""A model's files on given directories: what is missing, what is refused, and whether a response could end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from verl_ext import model_files
from verl_ext.checkup import model
from verl_ext.config import ModelConfig


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model of the family qwen-boxed, its files just large enough to be looked at."""
    files: dict[str, Any] = {
        "config.json": {"model_type": "qwen2", "vocab_size": 12},
        "tokenizer.json": {
            "model": {"vocab": {"a": 0, "b": 1}},
            "added_tokens": [{"content": "<|endoftext|>", "id": 10}, {"content": "<|im_end|>", "id": 11}],
        },
        "tokenizer_config.json": {"eos_token": "<|endoftext|>", "chat_template": "..."},
        "generation_config.json": {"eos_token_id": [10, 11]},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "model.safetensors").write_bytes(b"")
    return tmp_path


def change(path: Path, **content: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **content}))


def settings_of(directory: Path, **settings: Any) -> ModelConfig:
    return ModelConfig(path=str(directory), **settings)


def test_a_complete_model_is_fine(directory: Path) -> None:
    settings = settings_of(directory)
    assert [finding.level for finding in model.check_files(settings)] == ["ok"]
    (prompting,) = model.check_prompting(settings)
    assert prompting.level == "ok" and "ends with '<|endoftext|>'" in prompting.message


@pytest.mark.parametrize(
    ("name", "lacks"),
    [("config.json", "config.json"), ("tokenizer.json", "a tokenizer"), ("model.safetensors", "weights")],
)
def test_a_missing_file_of_a_model_is_an_error(directory: Path, name: str, lacks: str) -> None:
    """T4"""
    (directory / name).unlink()
    (found,) = model.check_files(settings_of(directory))
    assert found.level == "error" and f"lacks {lacks}" in found.message and found.remedy


def test_every_shard_of_an_index_has_to_be_there(directory: Path) -> None:
    """T4"""
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "model-1.safetensors").write_bytes(b"")
    assert model_files.missing(directory) == ["model-2.safetensors"]


def test_a_pickle_is_refused(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    (found,) = model.check_files(settings_of(directory))
    assert found.level == "error" and "weights (*.safetensors)" in found.message


def test_code_that_a_model_brings_is_refused(directory: Path) -> None:
    change(directory / "config.json", auto_map={"AutoModel": "evil.py"})
    (found,) = model.check_files(settings_of(directory))
    assert found.level == "error" and "model.trust_remote_code=true" in found.message


@pytest.mark.parametrize(
    ("offline", "is_cached", "level", "words"),
    [
        ("", False, "warning", "fetched from the hub by the first stage"),
        ("1", False, "error", "HF_HUB_OFFLINE forbids it"),
        ("1", True, "ok", "in the hub's cache"),
    ],
)
def test_a_hub_id_is_still_to_be_fetched_or_is_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offline: str, is_cached: bool, level: str, words: str
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    if is_cached:
        snapshot = tmp_path / "models--somebody--model/snapshots/0"
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
    found = model.check_hub("somebody/model", tmp_path / "run/models/somebody/model")
    assert found.level == level and words in found.message
    assert ("`hf download somebody/model`" in found.remedy) == (level == "error")


def test_what_is_neither_directory_nor_hub_id_is_an_error() -> None:
    settings = ModelConfig(path="/nowhere/at/all")
    (found,) = model.check_files(settings)
    assert found.level == "error" and "'/nowhere/at/all' is no directory, and no hub id" in found.message
    assert model.check_prompting(settings) == []


def test_pickled_weights_are_weights_where_they_are_allowed(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    assert model_files.missing(directory) == ["weights (*.safetensors)"]
    assert model_files.missing(directory, allow_pickle=True) == []


@pytest.mark.parametrize(
    ("file", "content", "level", "words"),
    [
        ("tokenizer_config.json", {"eos_token": None}, "error", "no end-of-sequence token"),
        ("tokenizer_config.json", {"eos_token": {"content": "<eos>"}}, "error", "'<eos>' is not in its vocabulary"),
        ("config.json", {"vocab_size": 11}, "error", "vocabulary (11) is smaller than its tokenizer's (12)"),
        ("generation_config.json", {"eos_token_id": 11}, "warning", "ends a response at 11, the tokenizer at 10"),
    ],
)
def test_a_tokenizer_that_no_response_could_end_with_is_noticed(
    directory: Path, file: str, content: dict[str, Any], level: str, words: str
) -> None:
    """T9: at start, before any GPU work."""
    change(directory / file, **content)
    (found,) = model.check_prompting(settings_of(directory))
    assert found.level == level and words in found.message and found.remedy


def test_an_end_of_sequence_of_another_family_is_a_warning(directory: Path) -> None:
    """T9"""
    (found,) = model.check_prompting(settings_of(directory, prompt_template="llama-base-boxed"))
    assert found.level == "warning" and "family 'llama-base-boxed' does not know" in found.message
    named = settings_of(directory, prompt_template="llama-base-boxed", stop=["<|endoftext|>"])
    assert model.check_prompting(named)[0].level == "ok"


def test_an_unknown_family_is_an_error(directory: Path) -> None:
    (found,) = model.check_prompting(settings_of(directory, prompt_template="qwen-boxt"))
    assert found.level == "error" and "did you mean 'qwen-boxed'" in found.message
