"""T6: what Ray delivers twice, in pieces or in another order; T17: what an engine returns that it should not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from recipes import verify
from tests.faults import stages
from tests.faults.harness import injected
from verl_ext import artifacts, judging, sampling
from verl_ext.config import ModelConfig, SamplerConfig, VerifyConfig
from verl_ext.vllm_sampler import Sampler, SamplingRequest

REQUEST = SamplingRequest(n=2, temperature=1.0, top_p=1.0, max_tokens=4, seed=0)


def _twice(blocks: list[pa.Table]) -> list[pa.Table]:
    return [block for block in blocks for _ in range(2)]


def _pieces(blocks: list[pa.Table]) -> list[pa.Table]:
    return [block.slice(start, 1) for block in reversed(blocks) for start in reversed(range(len(block)))]


def _overlapping(blocks: list[pa.Table]) -> list[pa.Table]:
    """A task that died after half of its rows, and was done again."""
    return [piece for block in blocks for piece in (block.slice(0, 2), block)]


@pytest.mark.parametrize("delivery", [_twice, _pieces, _overlapping])
def test_rows_that_ray_delivers_twice_count_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delivery: Callable[[list[pa.Table]], list[pa.Table]]
) -> None:
    """T6: the samples are those of the local backend, row by row."""

    class Dataset:
        def __init__(self, blocks: list[pa.Table]):
            self.blocks = blocks

        def map_batches(self, actor: Any, *, fn_constructor_args: Any, **_: Any) -> Dataset:
            judge = actor(*fn_constructor_args)
            return Dataset([judge(block) for block in self.blocks])

        def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
            injected("delivery")
            yield from delivery(self.blocks)

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(data=SimpleNamespace(from_arrow=Dataset)))
    monkeypatch.setattr(verify, "start_ray", lambda *_: None)
    monkeypatch.setattr(judging, "make_verifier", lambda *_, **__: stages.StandIn())
    source = stages.responses(tmp_path / "responses.jsonl")
    for backend in ("local", "ray"):
        settings = VerifyConfig(
            input=str(source), output=str(tmp_path / f"{backend}.parquet"), shard_size=4, backend=backend
        )
        verify.run(replace(stages.base(), run_dir=str(tmp_path), verify=settings))
    local, ray = (artifacts.read(tmp_path / f"{name}.parquet", "samples") for name in ("local", "ray"))
    assert ray.equals(local) and len(set(ray["sample_id"].to_pylist())) == len(ray)


class Engine:
    """A vLLM that answers in `way`."""

    def __init__(self, way: str):
        self.way = way

    def reset_prefix_cache(self) -> None:
        pass

    def generate(self, prompts: list[Any], *_: Any, **__: Any) -> list[Any]:
        outputs = [self._output(prompt["prompt_token_ids"]) for prompt in prompts]
        if self.way == "no output for a prompt":
            return outputs[:-1]
        return outputs[::-1] if self.way == "another order" else outputs

    def _output(self, prompt: list[int]) -> Any:
        counts = {"too few samples": 1, "too many samples": 3, "no samples": 0}
        reasons = {"aborted": "abort", "unfinished": None, "length": "length"}
        completion = SimpleNamespace(
            token_ids=[7, 2],
            text="x",
            finish_reason=reasons.get(self.way, "stop"),
            logprobs=[{7: SimpleNamespace(logprob=-1.0)}, {2: SimpleNamespace(logprob=-0.5)}],
        )
        if self.way == "log-probs of other tokens":
            completion.logprobs = completion.logprobs[::-1]
        elif self.way == "fewer log-probs":
            completion.logprobs = completion.logprobs[:1]
        return SimpleNamespace(prompt_token_ids=prompt, outputs=[completion] * counts.get(self.way, 2))


def _sample(way: str) -> pa.Table:
    sampler = Sampler(ModelConfig(), SamplerConfig(), on_cpu=True)
    sampler._llm, sampler._loaded = Engine(way), "weights"
    prompts = pa.table(
        {
            "prompt_id": ["p0", "p1"],
            "data_source": ["test"] * 2,
            "ground_truth": ["1"] * 2,
            "prompt_token_ids": pa.array([[3], [4]], type=pa.list_(pa.int32())),
        }
    )
    return sampler.sample("weights", prompts, REQUEST, shard=0)


@pytest.mark.parametrize(
    "way",
    [
        "too few samples",
        "too many samples",
        "no samples",
        "no output for a prompt",
        "another order",
        "aborted",
        "unfinished",
        "log-probs of other tokens",
        "fewer log-probs",
    ],
)
def test_an_engine_that_does_not_return_what_was_asked_for_fails_the_shard(
    monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """T17, P14: nothing is stored that has fewer, more or other samples than the table counts on."""
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=lambda **_: None))
    injected("answer of an engine")
    with pytest.raises((RuntimeError, ValueError, KeyError)):
        _sample(way)


def test_a_response_that_was_cut_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """T17"""
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=lambda **_: None))
    assert _sample("length")["finish_reason"].to_pylist() == ["length"] * 4
    assert _sample("well")["sample_id"].to_pylist() == ["p0-0", "p0-1", "p1-0", "p1-1"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sample()\nray.exceptions.ActorDiedError: The actor died\n\tpid: 7", "died (The actor died pid: 7)"),
        ("sample()\nray.exceptions.GetTimeoutError: Get timed out", "did not answer within sampler.max_idle_seconds=5"),
        ("sample()\nValueError: of its own", None),
    ],
)
def test_an_engine_that_dies_or_hangs_is_named_as_the_cause(text: str, reason: str | None) -> None:
    """T17, P11; the real one is killed in integration/test_faults.py"""
    assert sampling._why_engine_failed(f"ray::MapBatches({text}", 5.0) == reason
