"""The configuration of a rehearsal: an experiment's own, with sizes that one machine runs in minutes.

Rows, methods, parameters, losses, schedules, graders, prompts and fidelity stay; steps, batches, lengths, numbers of
samples, processes and places change. Batches keep their ratios, so that an ablation of them stays one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from verl_ext import cluster
from verl_ext.config import ClusterConfig, Config, LaunchConfig, ModelConfig, SamplerConfig

BATCH_DIVISOR = 16
MAX_PROMPT_LENGTH = 320  # tokens: a family's instructions in a stand-in tokenizer, and a problem
MAX_RESPONSE_LENGTH = 40
_SAMPLES = 4  # of a prompt, at most
_SHARD_SIZE = 8  # prompts: several shards of everything
_MICRO_BATCH_TOKENS = 1024
_CHUNK_TOKENS = 32
_OUR_SIZES = ("num_steps", "num_epochs", "save_every", "prompts_per_step", "max_tokens_per_micro_batch")


def rehearsed(config: Config) -> Config:
    """`config` in toy sizes, in `<run_dir>/rehearsal`; its model and data are yet to be replaced."""
    steps, ranks = config.rehearse.num_steps, config.rehearse.num_ranks
    k = min(config.evaluate.k, 2)
    pass_k = config.tabulate.pass_k
    return replace(
        config,
        run_dir=f"{config.run_dir}/rehearsal",
        model=_model(config.model, cluster.runs_on_cpu(config.cluster)),
        cluster=ClusterConfig(device=config.cluster.device, ranks_per_node=ranks),
        launch=LaunchConfig(),
        sampler=SamplerConfig(max_num_seqs=64, kv_cache_gib=0.25, gpu_memory_utilization=0.3),
        rollout=replace(config.rollout, n=min(config.rollout.n, _SAMPLES), shard_size=_SHARD_SIZE),
        train=replace(
            config.train,
            num_steps=steps,
            batch_size=_batch(config.train.batch_size, ranks),
            max_tokens_per_micro_batch=config.train.max_tokens_per_micro_batch and _MICRO_BATCH_TOKENS,
            logits_chunk_tokens=config.train.logits_chunk_tokens and _CHUNK_TOKENS,
            sequence_parallel_size=1,
            save_every=1,
        ),
        online=replace(
            config.online,
            num_steps=steps,
            prompts_per_step=_batch(config.online.prompts_per_step, ranks),
            prompts_per_update=_batch(config.online.prompts_per_update, ranks),
            n=min(config.online.n, _SAMPLES),
            max_tokens_per_micro_batch=_MICRO_BATCH_TOKENS,
            save_every=1,
        ),
        evaluate=replace(config.evaluate, k=k, shard_size=_SHARD_SIZE),
        tabulate=replace(
            config.tabulate,
            pass_k=pass_k and min(pass_k, k),
            num_resamples=1000,
            caption=f"A rehearsal of {config.experiment.name}: toy sizes, stand-ins for model and data. "
            "Its numbers mean nothing.",
        ),
        experiment=replace(
            config.experiment,
            num_seeds=1,
            curve_every=config.experiment.curve_every and 1,
            ablation={
                key: _batches(values, ranks) if key == "batch_size" else values
                for key, values in config.experiment.ablation.items()
            },
            rows=[
                replace(
                    row, train=_own(row.train, ranks), online=None if row.online is None else _own(row.online, ranks)
                )
                for row in config.experiment.rows
            ],
        ),
    )


def _model(model: ModelConfig, on_cpu: bool) -> ModelConfig:
    model = replace(model, max_prompt_length=MAX_PROMPT_LENGTH, max_response_length=MAX_RESPONSE_LENGTH)
    if not on_cpu:
        return model
    return replace(
        model, dtype="fp32", attn_implementation="sdpa", use_remove_padding=False
    )  # what needs a GPU's kernels


def _batch(size: Any, num_ranks: int) -> Any:
    """A sixteenth of a batch, a multiple of the ranks."""
    return size and max(1, size // BATCH_DIVISOR // num_ranks) * num_ranks


def _batches(sizes: Sequence[float], num_ranks: int) -> list[float]:
    """The batches of an ablation, which differ by the same factors."""
    divisor = min(BATCH_DIVISOR, max(1, int(min(sizes)) // num_ranks))
    return [size // divisor for size in sizes]


def _own(settings: Mapping[str, Any], num_ranks: int) -> dict[str, Any]:
    """What a row sets for itself, without sizes that the rehearsal sets for all."""
    kept = {key: value for key, value in settings.items() if key not in _OUR_SIZES}
    for key in ("batch_size", "prompts_per_update"):
        if key in kept:
            kept[key] = _batch(kept[key], num_ranks)
    return kept | ({"n": min(kept["n"], _SAMPLES)} if "n" in kept else {})
