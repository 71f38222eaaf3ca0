"""Shards of prompts over vLLM engines: one Ray actor an engine, fed by Ray Data.

A shard is sampled under a seed of its own, whatever was sampled before it (`vllm_sampler`), so a run that was killed
continues to the same samples (on one machine and vLLM version).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from verl_ext import cluster, model_files, prompt_checks, prompting
from verl_ext.config import ClusterConfig, ModelConfig, SamplerConfig
from verl_ext.errors import UserError
from verl_ext.vllm_sampler import Sampler, SamplingRequest

if TYPE_CHECKING:
    import ray


def encode_prompts(prompts: pa.Table, model: ModelConfig, subject: str = "The prompts") -> pa.Table:
    """Prompts artifact -> table with `prompt_token_ids`, on the driver, so that a bad prompt stops the run early.

    Raises UserError for a model that must not be loaded, as `prompt_checks.check` does, and naming the first prompt
    that is longer than `model.max_prompt_length`, or a vocabulary mismatch.
    """
    model_files.check(model)
    prompt_checks.check(prompts, subject)
    tokenizer = prompting.load_tokenizer(model.path, model.prompt_template, model.trust_remote_code)
    prompting.check_vocabulary(tokenizer, model.path)
    prompting.stop_token_ids(tokenizer, model)  # refuses tokens that the model does not have
    rows = []
    for batch in prompts.select(["prompt_id", "prompt"]).to_batches(1024):
        for row in batch.to_pylist():
            ids = prompting.encode_prompt(tokenizer, row["prompt"])
            if len(ids) > model.max_prompt_length:
                raise UserError(
                    f"Prompt '{row['prompt_id']}' has {len(ids)} tokens, more than model.max_prompt_length="
                    f"{model.max_prompt_length}. Raise the limit, or prepare the data without it."
                )
            rows.append(np.asarray(ids, dtype=np.int32))
    return pa.table(
        {
            "prompt_id": prompts["prompt_id"],
            "data_source": prompts["data_source"],
            "ground_truth": pc.struct_field(prompts["reward_model"], "ground_truth"),
            "prompt_token_ids": pa.array(rows, type=pa.list_(pa.int32())),
        }
    )


def shard_prompts(prompts: pa.Table, shard_size: int) -> list[pa.Table]:
    """Consecutive slices of at most `shard_size` prompts."""
    return [prompts.slice(start, shard_size) for start in range(0, len(prompts), shard_size)]


def create_samplers(model: ModelConfig, sampler: SamplerConfig, cluster_config: ClusterConfig) -> list[Any]:
    """Ray actors, one an engine; weights are loaded when the first shard names them.

    Raises UserError when the cluster has too few GPUs for them.
    """
    import ray

    cluster.start_ray(cluster_config, sampler.num_engines)
    needed = sampler.num_engines * sampler.tensor_parallel_size
    cluster.require_gpus(needed, "Sampling", "sampler.num_engines or sampler.tensor_parallel_size")
    on_cpu = cluster.runs_on_cpu(cluster_config)
    actor = ray.remote(Sampler).options(num_cpus=1, num_gpus=sampler.tensor_parallel_size)
    return [actor.remote(model, sampler, on_cpu) for _ in range(sampler.num_engines)]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One shard to be sampled: `key` names it to the caller, `index` seeds it."""

    key: tuple[str, int]
    index: int
    prompts: pa.Table


def sample_jobs(
    samplers: Sequence[Any], path: str, jobs: Sequence[Job], request: SamplingRequest, max_idle_seconds: float = 3600.0
) -> Iterator[tuple[tuple[str, int], pa.Table]]:
    """Ray Data over the engines: each block is one shard; yields (key, rollouts) as shards finish.

    Raises UserError when an engine dies, or does not answer within `max_idle_seconds`.
    """
    import ray

    if not jobs:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = None  # else Ray cuts a shard of more than 192 MiB in two
    logging.getLogger("ray.data").setLevel(logging.WARNING)

    idle = _idle(len(samplers))

    def sample(block: pa.Table) -> pa.Table:
        job = int(block["job"][0].as_py())
        number = idle.get() if idle is not None else 0
        try:
            reply = samplers[number].sample.remote(path, block.drop_columns(["job"]), request, jobs[job].index)
            rows = ray.get(reply, timeout=max_idle_seconds)
        finally:
            if idle is not None:
                idle.put(number)
        return rows.append_column("job", pa.array([job] * len(rows), type=pa.int32()))

    light = [Job(key=job.key, index=job.index, prompts=job.prompts.slice(0, 0)) for job in jobs]
    blocks = [
        job.prompts.append_column("job", pa.array([index] * len(job.prompts), type=pa.int32()))
        for index, job in enumerate(jobs)
    ]
    jobs = light  # what the tasks carry: the prompts travel as blocks
    dataset = _map_once(ray.data.from_arrow(blocks), sample, len(samplers))
    with _explained(
        "The shards that were finished are kept; the same command goes on with the others.", max_idle_seconds
    ):
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            job = int(table["job"][0].as_py())
            if len(table) != (expected := len(blocks[job]) * request.n):
                raise RuntimeError(f"Ray delivered {len(table)} of the {expected} samples of shard {jobs[job].key}")
            yield jobs[job].key, table.drop_columns(["job"])


def score_with_each(
    samplers: Sequence[Any],
    path: str,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    max_idle_seconds: float = 3600.0,
) -> list[list[np.ndarray]]:
    """`Sampler.score` of the same responses by every engine; raises UserError as `sample_jobs` does."""
    import ray

    with _explained("What was sampled is kept; the same command goes on.", max_idle_seconds):
        replies = [sampler.score.remote(path, prompts, responses) for sampler in samplers]
        found: list[list[np.ndarray]] = ray.get(replies, timeout=max_idle_seconds)
    return found


def _idle(num_engines: int) -> Any:
    """The engines that are free, shared by the tasks; None for one, which needs no queue."""
    if num_engines == 1:
        return None
    from ray.util.queue import Queue

    idle = Queue(actor_options={"num_cpus": 0})
    idle.put_nowait_batch(list(range(num_engines)))
    return idle


@contextmanager
def _explained(consequence: str, max_idle_seconds: float) -> Iterator[None]:
    """Say in a sentence that an engine died or did not answer."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        reason = _why_engine_failed(f"{type(error).__name__}: {error}", max_idle_seconds)
        if reason is None:
            raise
        raise UserError(f"A vLLM engine {reason}. {consequence}") from error


def _map_once(dataset: ray.data.Dataset, sample: Callable[[pa.Table], pa.Table], num_tasks: int) -> ray.data.Dataset:
    """`sample` of every block, `num_tasks` at a time; a task that is killed is not started again.

    Ray Data's own default starts it again without end, for instance under the memory monitor, and asks an engine for a
    shard that it is still sampling. Ray 2.60 warns of every option without a named parameter, and has none for this
    one: that warning alone is left out. Ray 2.64 will refuse the option.
    """
    import ray
    from ray.util.annotations import RayDeprecationWarning

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", RayDeprecationWarning)
        return dataset.map_batches(
            sample,
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.TaskPoolStrategy(size=num_tasks),
            num_cpus=0.01,
            max_retries=0,
        )


def _why_engine_failed(text: str, max_idle_seconds: float) -> str | None:
    """From the text of Ray's error: its causes do not travel between processes. None for an error of another kind."""
    if "GetTimeoutError: " in text:
        return f"did not answer within sampler.max_idle_seconds={max_idle_seconds:g}"
    _, found, cause = text.partition("ActorDiedError: ")
    return f"died ({' '.join(cause.split())[:400]})" if found else None
