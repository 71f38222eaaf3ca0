"""Sample the policy on prompts: Ray Data over vLLM engines, n samples a prompt, resumable shard by shard.

    python -m recipes.rollout model.path=<checkpoint> rollout.prompts=<parquet> rollout.output=<parquet>

Each row keeps its token ids, the log-probabilities it was sampled with, and the true finish reason. Shards that an
earlier, killed run finished are kept as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from verl_ext import artifacts, checkpoints, compose, disk, hub, sampling
from verl_ext.config import Config
from verl_ext.console import Progress
from verl_ext.layout import RunLayout
from verl_ext.locks import hold
from verl_ext.vllm_sampler import SamplingRequest

PACKAGES = ("vllm", "torch", "transformers")


def rollout(config: Config, start_samplers: Callable[[], list[Any]]) -> Path:
    """Run the stage; `start_samplers` is called when there is something to sample. Returns the path of the rollouts."""
    config = hub.on_disk(config)
    layout, settings = RunLayout.of(config.run_dir), config.rollout
    prompts_path = Path(settings.prompts).resolve() if settings.prompts else layout.prompts("train")
    output = Path(settings.output).resolve() if settings.output else layout.rollouts
    request = SamplingRequest(
        n=settings.n,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_tokens=config.model.max_response_length,
        seed=settings.seed,
    )
    lineage = sampling_lineage("rollout", config, request, settings.shard_size, prompts_path, Path(config.model.path))
    prompts = artifacts.read(prompts_path, "prompts")
    with hold(output):
        if artifacts.should_run(output, lineage, config.overwrite):
            _sample(config, prompts, prompts_path, request, output, lineage, start_samplers)
    return output


def _sample(
    config: Config,
    prompts: pa.Table,
    prompts_path: Path,
    request: SamplingRequest,
    output: Path,
    lineage: artifacts.Lineage,
    start_samplers: Callable[[], list[Any]],
) -> None:
    """Sample what is missing, shard by shard, and join the shards."""
    settings = config.rollout
    disk.require(output, 2 * prompts_path.stat().st_size, "rollout")
    encoded = sampling.encode_prompts(prompts, config.model, f"'{prompts_path}'")
    slices = sampling.shard_prompts(encoded, settings.shard_size)
    shards = artifacts.Shards(output, "rollouts", lineage, len(slices))
    missing = shards.missing()
    jobs = [sampling.Job(key=("rollout", index), index=index, prompts=slices[index]) for index in missing]
    samplers = start_samplers() if jobs else []
    progress = Progress("rollout", len(encoded) * settings.n, done=_done(slices, missing) * settings.n, unit="samples")
    num_tokens, num_truncated = 0, 0
    idle = config.sampler.max_idle_seconds
    for (_, index), table in sampling.sample_jobs(samplers, config.model.path, jobs, request, idle):
        shards.write(index, table)
        num_tokens += len(table["response_token_ids"].combine_chunks().values)
        num_truncated += sum(reason == "length" for reason in table["finish_reason"].to_pylist())
        progress.advance(len(table), tokens=num_tokens, tokens_per_second=round(progress.per_second(num_tokens)))
    shards.commit()


def sampling_lineage(
    stage: str, config: Config, request: SamplingRequest, shard_size: int, prompts: Path, weights: Path
) -> artifacts.Lineage:
    """What samples depend on: weights, prompts, decoding, and on a CPU the size of a shard (its batch composition)."""
    model: dict[str, Any] = {key: getattr(config.model, key) for key in ("max_prompt_length", "prompt_template")}
    if config.model.stop is not None:
        model["stop"] = config.model.stop
    checkpoints.check_weights(weights)
    settings = {"sampling": vars(request), "shard_size": shard_size, "model": model, "dtype": config.sampler.dtype}
    return artifacts.make_lineage(stage, settings, {"prompts": prompts, "model": weights}, PACKAGES, request.seed)


def _done(slices: list[Any], missing: list[int]) -> int:
    return sum(len(table) for index, table in enumerate(slices) if index not in set(missing))


def run(config: Config) -> None:
    """Entry point of `python -m recipes.rollout`."""
    rollout(config, lambda: sampling.create_samplers(config.model, config.sampler, config.cluster))


if __name__ == "__main__":
    compose.main("rollout", run, __doc__)
