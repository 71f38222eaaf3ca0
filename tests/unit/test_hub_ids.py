"""Hub ids before and beside their download: which files are wanted, what is chosen by the name, who asks for them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from recipes import compare
from verl_ext import compose, hub, published
from verl_ext.config import Config, ModelConfig
from verl_ext.errors import UserError
from verl_ext.experiment import plan

PICKLES = {"config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": b"", "modeling.py": b""}


def test_pickles_and_code_are_fetched_only_where_they_are_allowed() -> None:
    """T19"""
    model = ModelConfig(path="a/b")
    with pytest.raises(UserError, match="'a/b' has its weights in pickles alone.*model.allow_pickle=true"):
        hub.needed(list(PICKLES), model)
    assert hub.needed(list(PICKLES), replace(model, allow_pickle=True)) == sorted({*PICKLES} - {"modeling.py"})
    assert hub.needed(list(PICKLES), replace(model, allow_pickle=True, trust_remote_code=True)) == sorted(PICKLES)
    with pytest.raises(UserError, match="'a/b' has no weights .model.*safetensors. on the hub"):
        hub.needed(["config.json", "adapter_model.safetensors"], model)


def test_shards_come_with_their_index_and_not_with_that_of_the_pickles() -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    others = ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "onnx/model.safetensors"]
    settings = ["config.json", "merges.txt", "tokenizer.model", "vocab.json"]
    names = hub.needed([*shards, *others, *settings], ModelConfig(path="a/b"))
    assert names == sorted([*shards, *settings])


@pytest.mark.parametrize("path", ["", "name", "/a/b", "a/b/c", "../a", "verl_ext/embedded", "a b/c", "a/"])
def test_what_is_no_hub_id_is_left_as_it_is(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(compose.CONFIG_DIR.parent)
    assert not hub.is_id(path)
    config = Config(run_dir=str(tmp_path), model=ModelConfig(path=path))
    assert hub.on_disk(config) == config


def test_learning_rates_and_published_numbers_are_those_of_the_models_name(tmp_path: Path) -> None:
    config = compose.compose(["experiment=dft_math", "model=qwen2_5_math_1_5b", f"run_dir={tmp_path}"])
    assert config.model.path == "Qwen/Qwen2.5-Math-1.5B"
    fetched = replace(config, model=replace(config.model, path=str(hub.directory(config))))
    rates = [[cell.train and cell.train.learning_rate for cell in plan(item)] for item in (config, fetched)]
    assert rates[0] == rates[1]
    named = replace(config, experiment=replace(config.experiment, model_learning_rates={"Qwen2.5-Math-1.5B": 0.125}))
    fetched = replace(named, model=fetched.model)
    assert 0.125 in {cell.train.learning_rate for cell in plan(fetched) if cell.train}
    _, numbers = published.find("dft/table_1")
    assert (
        len(published.of_model(numbers, fetched.model.path)) == len(published.of_model(numbers, named.model.path)) > 0
    )


@pytest.mark.parametrize(("stages", "is_fetched"), [(["prepare"], False), (["curate"], True)])
def test_an_experiment_fetches_its_model_once_and_only_for_stages_that_read_it(
    stages: list[str], is_fetched: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Config] = []

    def on_disk(config: Config) -> Config:
        asked.append(config)
        raise UserError("fetched")

    monkeypatch.setattr(compare.hub, "on_disk", on_disk)
    monkeypatch.setattr(compare.prepare, "run", lambda _: None)
    config = compose.compose(["experiment=embedded", "scale=smoke", f"run_dir={tmp_path}"])
    config = replace(config, model=replace(config.model, path="tiny/Policy-0.3M"))
    config = replace(config, experiment=replace(config.experiment, stages=stages))
    if is_fetched:
        with pytest.raises(UserError, match="fetched"):
            compare.compare(config)
    else:
        compare.compare(config)
    assert len(asked) == is_fetched


def test_composing_a_plan_and_its_stages_neither_loads_the_hub_nor_asks_it(tmp_path: Path) -> None:
    program = f"""
import sys
from recipes import compare, plan
from verl_ext import compose
config = compose.compose(["experiment=dft_math", "model=qwen2_5_math_1_5b", "run_dir={tmp_path}", "model.revision=v1"])
assert compare.stage_names(config)
plan.run(config)
sys.exit(bool({{"torch", "huggingface_hub"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=compose.CONFIG_DIR.parent
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "models").exists()
