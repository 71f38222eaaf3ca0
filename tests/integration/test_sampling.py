"""vLLM: sampling does not depend on history, and its log-probs are the trainer's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.torch import load_file, save_file

from recipes.evaluate import check_log_probs
from tests.integration.test_training import make_run
from verl_ext import artifacts, checkpoints, sampling, trainer
from verl_ext.config import ClusterConfig, ModelConfig, SamplerConfig
from verl_ext.errors import UserError
from verl_ext.vllm_sampler import SamplingRequest

REQUEST = SamplingRequest(n=3, temperature=1.0, top_p=1.0, max_tokens=20, seed=7)


@pytest.fixture(scope="module")
def samplers(model: ModelConfig, workers: Callable[[int], Any]) -> Iterator[list[Any]]:
    import ray

    workers(1)  # starts the cluster with room for an engine
    engines = sampling.create_samplers(model, SamplerConfig(kv_cache_gib=0.25), ClusterConfig())
    yield engines
    for engine in engines:
        ray.kill(engine)


def prompts(count: int) -> pa.Table:
    rng = np.random.default_rng(3)
    ids = [rng.integers(3, 200, int(rng.integers(2, 30))).tolist() for _ in range(count)]
    return pa.table(
        {
            "prompt_id": [f"p{index}" for index in range(count)],
            "data_source": ["test"] * count,
            "ground_truth": ["1"] * count,
            "prompt_token_ids": pa.array(ids, type=pa.list_(pa.int32())),
        }
    )


def sample(samplers: list[Any], path: str, order: list[int]) -> dict[int, pa.Table]:
    slices = sampling.shard_prompts(prompts(20), 8)
    jobs = [sampling.Job(key=("test", index), index=index, prompts=slices[index]) for index in order]
    return {key[1]: table for key, table in sampling.sample_jobs(samplers, path, jobs, REQUEST)}


@pytest.mark.filterwarnings("error::ray.util.annotations.RayDeprecationWarning")
def test_a_shard_is_the_same_whatever_was_sampled_before(samplers: list[Any], model: ModelConfig) -> None:
    forward, backward = sample(samplers, model.path, [0, 1, 2]), sample(samplers, model.path, [2, 0])
    assert sorted(forward) == [0, 1, 2]
    assert forward[0].equals(backward[0]) and forward[2].equals(backward[2])
    assert not forward[0]["response_token_ids"].equals(forward[1]["response_token_ids"])


def test_two_engines_share_the_shards_and_give_the_samples_of_one(samplers: list[Any], model: ModelConfig) -> None:
    import ray

    expected = sample(samplers, model.path, [0, 1, 2])
    second = sampling.create_samplers(model, SamplerConfig(kv_cache_gib=0.25), ClusterConfig())
    try:
        shared = sample([*samplers, *second], model.path, [2, 0, 1])
        assert shared.keys() == expected.keys()
        assert all(shared[shard].equals(expected[shard]) for shard in expected)
        scored = sampling.score_with_each([*samplers, *second], model.path, [[3, 4], [5]], [[6], [7, 8]])
        assert [[len(row) for row in rows] for rows in scored] == [[1, 2], [1, 2]]
    finally:
        ray.kill(second[0])


def test_a_sequence_that_fills_the_context_is_scored_but_for_its_last_token(
    samplers: list[Any], model: ModelConfig
) -> None:
    """32 and 32 tokens are all that the engine was built for."""
    prompt, response = [3] * model.max_prompt_length, [4] * model.max_response_length
    whole, short = sampling.score_with_each(samplers, model.path, [prompt, prompt], [response, response[:-1]])[0]
    assert len(whole) == len(short) == model.max_response_length - 1
    np.testing.assert_allclose(whole, short, atol=1e-5)


def test_rollouts_keep_ids_log_probs_and_the_true_finish_reason(samplers: list[Any], model: ModelConfig) -> None:
    rows = sample(samplers, model.path, [0])[0].to_pylist()
    assert [row["sample_id"] for row in rows[:4]] == ["p0-0", "p0-1", "p0-2", "p1-0"]
    for row in rows:
        assert len(row["behavior_log_probs"]) == len(row["response_token_ids"])
        cut = row["finish_reason"] == "length"
        assert cut == (len(row["response_token_ids"]) == REQUEST.max_tokens and row["response_token_ids"][-1] != 2)


def test_trainer_and_sampler_agree_on_a_trained_checkpoint_and_the_guard_stops_on_other_weights(
    samplers: list[Any],
    model: ModelConfig,
    positives: Path,
    workers: Callable[[int], Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = make_run(model, positives, tmp_path / "run", "dft", learning_rate=3e-3)
    checkpoint = trainer.train(run, lambda: workers(1))
    caplog.set_level("INFO")
    check_log_probs(checkpoint, samplers, limit=1e-4)  # swapped in place: the engine was built for the base policy
    assert "trainer against sampler 0" in caplog.text

    stale = tmp_path / "stale"
    shutil.copytree(checkpoint, stale)
    base = load_file(Path(model.path) / "model.safetensors")
    save_file(base, stale / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="Trainer and sampler disagree"):
        check_log_probs(stale, samplers, limit=1e-4)
    assert artifacts.read(checkpoint / checkpoints.PROBE, "positives").num_rows > 0


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"intermediate_size": 320}, r"not of the model this engine was built for.*\['intermediate_size'\]"),
        (
            {"num_hidden_layers": 2},
            "(?s)config.json that transformers refuses.*num_hidden_layers",
        ),  # of 3 layer_types
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    changes: dict[str, Any], refusal: str, samplers: list[Any], model: ModelConfig, tmp_path: Path
) -> None:
    sample(samplers, model.path, [0])
    with pytest.raises(Exception, match=refusal):
        sample(samplers, str(_copied(model.path, tmp_path, changes)), [0])


def test_a_checkpoint_whose_configuration_is_spelt_otherwise_is_the_same_model(
    samplers: list[Any], model: ModelConfig, tmp_path: Path
) -> None:
    """A published config.json has `rope_theta` and no padding token; the one beside a trained checkpoint differs."""
    content = json.loads((Path(model.path) / "config.json").read_text())
    assert "rope_theta" not in content and content["rope_parameters"]["rope_theta"] == 10000.0
    spelt = {"rope_parameters": None, "layer_types": None, "rope_theta": 10000.0, "pad_token_id": None}
    expected = sample(samplers, model.path, [0])[0]
    assert sample(samplers, str(_copied(model.path, tmp_path, spelt)), [0])[0].equals(expected)


def _copied(path: str, directory: Path, changes: dict[str, Any]) -> Path:
    """A copy of a model with other values in config.json; None removes a key."""
    other = directory / "other"
    shutil.copytree(path, other)
    content = json.loads((other / "config.json").read_text()) | changes
    kept = {key: value for key, value in content.items() if value is not None}
    (other / "config.json").write_text(json.dumps(kept))
    return other


def test_a_prompt_that_is_too_long_is_refused_by_id(model: ModelConfig) -> None:
    row = {
        "prompt_id": "p0",
        "data_source": "test",
        "prompt": [{"role": "user", "content": "one two three " * 20}],
        "reward_model": {"style": "rule", "ground_truth": "1"},
        "extra_info": {"split": "test", "index": 0, "problem": "", "solution": None},
    }
    table = pa.Table.from_pylist([row], schema=artifacts.SCHEMAS["prompts"])
    with pytest.raises(UserError, match=r"Prompt 'p0' has \d+ tokens, more than model.max_prompt_length=32"):
        sampling.encode_prompts(table, model)
