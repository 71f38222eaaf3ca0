"""What vLLM's engines are asked for, and when the weights of a checkpoint go into one that runs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from verl_ext import sampling
from verl_ext.compose import CONFIG_DIR
from verl_ext.config import ModelConfig, SamplerConfig
from verl_ext.errors import UserError
from verl_ext.vllm_sampler import Sampler, SamplingRequest

BASE_POLICY = CONFIG_DIR.parent / "verl_ext" / "embedded" / "base_policy"
REQUEST = SamplingRequest(n=3, temperature=1.0, top_p=1.0, max_tokens=4, seed=0)


def prompts(count: int) -> pa.Table:
    ids = pa.array([[3]] * count, type=pa.list_(pa.int32()))
    return pa.table({"prompt_id": [f"p{index}" for index in range(count)], "prompt_token_ids": ids})


def test_no_two_samples_of_a_shard_share_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM seeds sample j of a request with its seed + j (`ParentRequest._get_child_sampling_params`): requests whose
    seeds follow each other would draw the same random numbers, and their problems would not be independent."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=lambda **given: asked.append(given)))
    sampler = Sampler(ModelConfig(), SamplerConfig(), on_cpu=False)
    sampler._llm = SimpleNamespace(reset_prefix_cache=lambda: None, generate=lambda *_, **__: [])
    sampler._loaded = "weights"
    with pytest.raises(ValueError):  # no outputs
        sampler.sample("weights", prompts(50), REQUEST, shard=1)
    seeds = [given["seed"] + sample for given in asked for sample in range(given["n"])]
    assert len(set(seeds)) == len(seeds) == 150
    assert seeds[0] == REQUEST.shard_seed(1) != REQUEST.shard_seed(0)


@pytest.fixture
def swapped(monkeypatch: pytest.MonkeyPatch) -> tuple[Sampler, list[str]]:
    """A sampler of the embedded policy, and the paths whose weights were put into its engine afterwards."""
    paths: list[str] = []
    engine = SimpleNamespace(
        collective_rpc=lambda _, kwargs: paths.append(kwargs["weights_path"]), reset_prefix_cache=lambda: None
    )
    monkeypatch.setattr(Sampler, "_build", lambda *_: engine)
    sampler = Sampler(ModelConfig(path=str(BASE_POLICY), prompt_template="problem-only"), SamplerConfig(), on_cpu=True)
    sampler.load(str(BASE_POLICY))
    return sampler, paths


def copied(directory: Path, **ends: Any) -> str:
    """The embedded policy with another `eos_token_id` in the files that are named."""
    other = directory / "other"
    shutil.copytree(BASE_POLICY, other)
    for name, value in ends.items():
        path = other / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": value}))
    return str(other)


def test_the_end_of_sequence_that_verl_writes_into_a_configuration_is_no_other_model(
    swapped: tuple[Sampler, list[str]], tmp_path: Path
) -> None:
    """vLLM reads generation_config.json, which verl leaves as it was."""
    sampler, paths = swapped
    other = copied(tmp_path, config=[2, 3])
    sampler.load(other)
    assert paths == [other]


def test_another_set_of_tokens_that_end_a_response_is_another_model(
    swapped: tuple[Sampler, list[str]], tmp_path: Path
) -> None:
    """The engine keeps those of the checkpoint that it was built from."""
    sampler, paths = swapped
    with pytest.raises(UserError, match=r"differ in \['tokens that end a response'\]"):
        sampler.load(copied(tmp_path, generation_config=[2, 3]))
    assert paths == []


class Delivery:
    """Ray Data in this process: every block is sampled, and `cut` decides what arrives of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cut: Callable[[pa.Table], list[pa.Table]]):
        self.context, self._cut = SimpleNamespace(), cut
        data = SimpleNamespace(DataContext=SimpleNamespace(get_current=lambda: self.context), from_arrow=lambda x: x)
        ray = SimpleNamespace(data=data, get=lambda reply, timeout: reply)
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setitem(sys.modules, "ray.exceptions", SimpleNamespace(RayError=KeyError))
        monkeypatch.setattr(sampling, "_map_once", lambda blocks, sample, _: self._of(map(sample, blocks)))

    def _of(self, tables: Iterator[pa.Table]) -> Any:
        pieces = [piece for table in tables for piece in self._cut(table)]
        return SimpleNamespace(iter_batches=lambda **_: iter(pieces))

    def __call__(self) -> list[tuple[tuple[str, int], int]]:
        def thrice(_: str, block: pa.Table, __: SamplingRequest, ___: int) -> pa.Table:
            return pa.concat_tables([block] * REQUEST.n)

        engine = SimpleNamespace(sample=SimpleNamespace(remote=thrice))
        jobs = [sampling.Job(key=("math", index), index=index, prompts=prompts(4 + index)) for index in range(2)]
        return [(key, len(table)) for key, table in sampling.sample_jobs([engine], "weights", jobs, REQUEST)]


def test_a_shard_arrives_whole_however_large_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Data cuts what a task returns into blocks of 128 MiB, unless it is told not to: 4,096 long responses are
    more, and the second part would replace the first on disk."""
    delivery = Delivery(monkeypatch, lambda table: [table])
    assert delivery() == [(("math", 0), 12), (("math", 1), 15)]
    assert delivery.context.target_max_block_size is None


def test_a_shard_that_arrives_in_parts_is_not_taken_for_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    delivery = Delivery(monkeypatch, lambda table: [table.slice(0, 5), table.slice(5)])
    with pytest.raises(RuntimeError, match=r"5 of the 12 samples of shard \('math', 0\)"):
        delivery()
