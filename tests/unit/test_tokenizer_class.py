"""A byte-level tokenizer that is named as SentencePiece keeps its spaces: DeepSeekMath's, under transformers 5."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from verl_ext import compose, hub, prompting, tokenizer_class
from verl_ext.config import Config, ModelConfig
from verl_ext.errors import UserError
from verl_ext.rehearsal import families, tokenizers

transformers = pytest.importorskip("transformers")

TEXT = "What is  12 by 4?\n\nAssistant:"
BASE_POLICY = compose.CONFIG_DIR.parent / "verl_ext" / "embedded" / "base_policy"


@pytest.fixture
def deepseek(tmp_path: Path) -> Path:
    """A directory with the tokenizer files of the family, and other files as of a model."""
    path = tmp_path / "shelf" / "deepseek-math-7b-base"
    shutil.copytree(BASE_POLICY, path)
    (path / "chat_template.jinja").unlink()
    for name, text in tokenizers.tokenizer_files(families.DEEPSEEK, is_instruct=False).items():
        (path / name).write_text(text, encoding="utf-8")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    return path


def test_the_installed_transformers_still_drops_the_spaces(deepseek: Path) -> None:
    """Where this fails on an upgrade (seen with 5.10.4; the GPU stack pins 5.9.0), `tokenizer_class` may go."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(deepseek)
    read_back = tokenizer.decode(tokenizer.encode(TEXT, add_special_tokens=False))
    assert " " not in read_back and "\n" not in read_back, version("transformers")


def test_our_own_reading_keeps_them(deepseek: Path) -> None:
    tokenizer = prompting.read_tokenizer(deepseek)
    assert tokenizer.decode(tokenizer.encode(TEXT, add_special_tokens=False)) == TEXT
    assert tokenizer.encode(TEXT)[0] == tokenizer.bos_token_id


def test_a_stage_reads_the_model_by_way_of_links_that_every_process_reads_well(deepseek: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in deepseek.iterdir()}
    config = Config(run_dir=str(tmp_path / "run"), model=ModelConfig(path=str(deepseek)))
    found = Path(hub.on_disk(config).model.path)
    assert found.is_relative_to(tmp_path / "run" / "models") and found.name == "deepseek-math-7b-base"
    tokenizer = transformers.AutoTokenizer.from_pretrained(found)
    assert tokenizer.decode(tokenizer.encode(TEXT, add_special_tokens=False)) == TEXT
    assert {path.name: path.read_bytes() for path in deepseek.iterdir()} == before
    assert {path.name for path in found.iterdir()} == before.keys()
    assert all(path.is_symlink() == (path.name != "tokenizer_config.json") for path in found.iterdir())


def test_the_links_stay_as_they_are_for_whoever_reads_them_and_follow_the_model(deepseek: Path, tmp_path: Path) -> None:
    config = Config(run_dir=str(tmp_path / "run"), model=ModelConfig(path=str(deepseek)))
    found = Path(hub.on_disk(config).model.path)
    first = found.stat().st_ino
    assert Path(hub.on_disk(config).model.path).stat().st_ino == first
    (deepseek / "added.json").write_text("{}")
    assert (Path(hub.on_disk(config).model.path) / "added.json").is_symlink()


def test_models_of_one_name_have_links_of_their_own(deepseek: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / deepseek.name
    shutil.copytree(deepseek, other)
    found = [
        hub.on_disk(Config(run_dir=str(tmp_path), model=ModelConfig(path=str(p)))).model.path for p in (deepseek, other)
    ]
    assert found[0] != found[1] and all((Path(path) / "model.safetensors").is_symlink() for path in found)


def test_other_tokenizers_are_left_alone(tmp_path: Path) -> None:
    config = Config(run_dir=str(tmp_path / "run"), model=ModelConfig(path=str(BASE_POLICY)))
    assert hub.on_disk(config) == config and not (tmp_path / "run").exists()
    for family in (families.QWEN, families.LLAMA3):
        path = tmp_path / family.tokenizer_class
        path.mkdir()
        for name, text in tokenizers.tokenizer_files(family, is_instruct=True).items():
            (path / name).write_text(text, encoding="utf-8")
        assert not tokenizer_class.misnames(path)
        tokenizer = prompting.read_tokenizer(path)
        assert tokenizer.decode(tokenizer.encode(TEXT, add_special_tokens=False)) == TEXT


def test_any_other_class_that_does_not_do_as_its_file_says_is_refused(deepseek: Path) -> None:
    settings = json.loads((deepseek / "tokenizer_config.json").read_text())
    (deepseek / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "GemmaTokenizerFast"}))
    with pytest.raises(UserError, match=r"loaded as Gemma\w+, which does not do what its tokenizer.json says: .*copy"):
        prompting.read_tokenizer(deepseek)
