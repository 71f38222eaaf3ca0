"""The data path of sampling on synthetic rows: real Ray Data, shards and artifacts, and a stand-in for the engine.

What a stage moves, stores and holds does not depend on the policy, so it can be measured at sizes that no CPU samples.
Prompts are blocks of Ray's object store, a stand-in engine answers each with random responses, the driver writes every
shard as it comes, and the shards are joined; then the samples are curated.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from verl_ext import artifacts, cluster, curation, sampling
from verl_ext.config import ClusterConfig, FlowConfig
from verl_ext.usage import PeakMemory
from verl_ext.vllm_sampler import SamplingRequest


@dataclass(frozen=True, kw_only=True)
class Flow:
    """What one size took. Bytes of memory are those of all processes together, above what they hold when idle."""

    num_samples: int
    sampling_seconds: float  # prompts out, responses back, shards written and joined
    sampling_bytes: int
    curation_seconds: float
    curation_bytes: int
    file_bytes: int  # of the rollouts


class StandIn:
    """An engine without a model: random token ids and log-probs, as many as asked for."""

    def __init__(self, num_tokens: int):
        self._num_tokens = num_tokens

    def sample(self, path: str, prompts: pa.Table, request: SamplingRequest, shard: int) -> pa.Table:
        """Rollouts of `request.n` responses to each prompt, in order; the arguments are those of `Sampler.sample`."""
        return synthetic_rollouts(prompts, request.n, self._num_tokens, request.shard_seed(shard))


def synthetic_prompts(count: int, num_tokens: int, seed: int) -> pa.Table:
    """What `encode_prompts` makes, of random ids."""
    ids = np.random.default_rng(seed).integers(0, 1000, count * num_tokens, dtype=np.int32)
    return pa.table(
        {
            "prompt_id": pa.array([f"prompt-{index}" for index in range(count)]),
            "data_source": pa.array(["synthetic"] * count),
            "ground_truth": pa.array(["0"] * count),
            "prompt_token_ids": _lists(ids, count),
        }
    )


def synthetic_rollouts(prompts: pa.Table, n: int, num_tokens: int, seed: int) -> pa.Table:
    """Random responses of `num_tokens` tokens each, as a rollouts table."""
    rng, count = np.random.default_rng(seed), len(prompts) * n
    rows = prompts.take(np.repeat(np.arange(len(prompts)), n)).combine_chunks()
    numbers = np.tile(np.arange(n), len(prompts))
    columns: dict[str, Any] = {
        **{name: rows[name] for name in rows.column_names},
        "sample_id": [
            f"{prompt}-{number}" for prompt, number in zip(rows["prompt_id"].to_pylist(), numbers, strict=True)
        ],
        "response_token_ids": _lists(rng.integers(0, 1000, count * num_tokens, dtype=np.int32), count),
        "response": ["x" * 3 * num_tokens] * count,  # about three bytes a token
        "behavior_log_probs": _lists(-rng.random(count * num_tokens, dtype=np.float32), count),
        "finish_reason": ["stop"] * count,
    }
    schema = artifacts.SCHEMAS["rollouts"]
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


def _lists(values: np.ndarray, count: int) -> pa.Array:
    """Equal parts of a flat array as a list column."""
    return pa.ListArray.from_arrays(pa.array(np.linspace(0, len(values), count + 1, dtype=np.int32)), pa.array(values))


def measure(num_samples: int, settings: FlowConfig) -> Flow:
    """Run the path on `num_samples` rows, in a Ray of its own."""
    import ray

    cluster.start_ray(ClusterConfig(device="cpu"))
    try:
        with tempfile.TemporaryDirectory(prefix="flow-") as directory:
            return _measure(num_samples, settings, Path(directory) / "rollouts.parquet")
    finally:
        ray.shutdown()


def _measure(num_samples: int, settings: FlowConfig, output: Path) -> Flow:
    prompts = synthetic_prompts(num_samples // settings.n, settings.prompt_tokens, settings.seed)
    idle = _idle_bytes()
    began = time.perf_counter()
    with PeakMemory(every_seconds=0.2) as sampled:
        _sample(prompts, settings, output)
    sampling_seconds, began = time.perf_counter() - began, time.perf_counter()
    del prompts
    with PeakMemory(every_seconds=0.2) as curated:
        _curate(output)
    return Flow(
        num_samples=num_samples,
        sampling_seconds=sampling_seconds,
        sampling_bytes=sampled.bytes - idle,
        curation_seconds=time.perf_counter() - began,
        curation_bytes=curated.bytes - idle,
        file_bytes=output.stat().st_size,
    )


def _idle_bytes() -> int:
    with PeakMemory(every_seconds=0.2) as idle:
        time.sleep(1.0)
    return idle.bytes


def _sample(prompts: pa.Table, settings: FlowConfig, output: Path) -> None:
    """As `recipes.rollout` does."""
    import ray

    engine: Any = ray.remote(StandIn).options(num_cpus=0).remote(settings.response_tokens)
    request = SamplingRequest(
        n=settings.n, temperature=1.0, top_p=1.0, max_tokens=settings.response_tokens, seed=settings.seed
    )
    slices = sampling.shard_prompts(prompts, settings.shard_size)
    shards = artifacts.Shards(output, "rollouts", artifacts.make_lineage("flow", {}), len(slices))
    jobs = [sampling.Job(key=("flow", index), index=index, prompts=slices[index]) for index in range(len(slices))]
    for (_, index), table in sampling.sample_jobs([engine], "", jobs, request):
        shards.write(index, table)
    shards.commit()


def _curate(rollouts: Path) -> None:
    """As `recipes.curate` does, every other response being right."""
    table = artifacts.read(rollouts, "rollouts")
    is_right = np.arange(len(table)) % 2 == 0
    samples = table.append_column("prediction", pa.nulls(len(table), pa.string()))
    samples = samples.append_column("verdict", pa.array(np.where(is_right, "correct", "incorrect")))
    samples = samples.append_column("verdict_seconds", pa.array(np.zeros(len(table), dtype=np.float32)))
    samples = samples.append_column("reward", pa.array(is_right.astype(np.float32)))
    curation.select_positives(samples)
