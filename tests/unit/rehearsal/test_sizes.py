"""A rehearsal differs from its experiment in sizes and places, and in nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import pytest

from verl_ext import compose
from verl_ext.config import Config
from verl_ext.experiment import plan
from verl_ext.rehearsal import sizes

EXPERIMENTS = [name for name in compose.group_options("experiment") if name != "embedded_base"]
MAY_DIFFER = (
    *("run_dir", "cluster.*", "launch.*", "sampler.*", "tabulate.caption", "tabulate.num_resamples"),
    *("model.max_prompt_length", "model.max_response_length"),
    *("model.dtype", "model.attn_implementation", "model.use_remove_padding"),  # what needs a GPU
    *("rollout.n", "rollout.shard_size", "evaluate.k", "evaluate.shard_size", "tabulate.pass_k"),
    *("*.num_steps", "*.save_every", "*.max_tokens_per_micro_batch", "*.batch_size", "*.prompts_per_step"),
    *("*.prompts_per_update", "train.logits_chunk_tokens", "train.sequence_parallel_size", "*.num_epochs", "online.n"),
    *("experiment.num_seeds", "experiment.curve_every", "experiment.ablation.batch_size.*"),
    *("experiment.rows.*.online.n", "experiment.rows.*.train.num_epochs"),
)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
        return
    for key, item in items:
        yield from leaves(item, f"{path}.{key}".lstrip("."))


def rehearsed(*overrides: str) -> tuple[Config, Config]:
    config = compose.compose(list(overrides))
    return config, sizes.rehearsed(config)


@pytest.mark.parametrize("fidelity", ["corrected", "paper"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_nothing_but_sizes_and_places_is_changed(experiment: str, fidelity: str) -> None:
    config, small = rehearsed(f"experiment={experiment}", f"fidelity={fidelity}")
    before, after = (dict(leaves(compose.to_dict(item))) for item in (config, small))
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert changed and not {key for key in changed if not any(fnmatchcase(key, known) for known in MAY_DIFFER)}


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_row_is_there_with_its_method_and_parameters_and_trains_two_steps(
    experiment: str, num_ranks: int
) -> None:
    config, small = rehearsed(f"experiment={experiment}", f"rehearse.num_ranks={num_ranks}", "experiment.num_seeds=1")
    cells, toys = plan(config), plan(small)
    assert [(cell.method, cell.params, cell.data_kind) for cell in cells] == [
        (toy.method, toy.params, toy.data_kind) for toy in toys
    ]
    assert len({toy.name for toy in toys}) == len(toys)
    for cell, toy in zip(cells, toys, strict=True):
        if toy.train is not None and cell.train is not None:
            assert toy.train.num_steps == 2 and toy.train.learning_rate == cell.train.learning_rate
            assert toy.train.batch_size % num_ranks == 0
            assert cell.train.batch_size / 16 <= max(toy.train.batch_size, num_ranks) <= 32
        if toy.online is not None and cell.online is not None:
            assert (toy.online.num_steps, toy.online.algorithm) == (2, cell.online.algorithm)
            assert toy.online.prompts_per_step <= 16


@pytest.mark.parametrize(
    ("experiment", "num_ranks", "expected"),
    [("dft_ablation", 1, [2, 4, 8, 16]), ("dft_ablation", 2, [2, 4, 8, 16]), ("embedded_ablation", 2, [2, 4, 8, 16])],
)
def test_an_ablation_of_batches_stays_one(experiment: str, num_ranks: int, expected: list[int]) -> None:
    """32 to 256 by 16 at most; 16 to 128 on two ranks by 8, so that the smallest still has a row a rank."""
    _, small = rehearsed(f"experiment={experiment}", f"rehearse.num_ranks={num_ranks}")
    assert small.experiment.ablation["batch_size"] == expected


def test_learning_rates_are_not_sizes() -> None:
    _, small = rehearsed("experiment=dft_ablation")
    assert small.experiment.ablation["learning_rate"] == [2e-4, 1e-4, 5e-5, 1e-5]


def test_on_a_gpu_the_kernels_of_the_experiment_are_kept() -> None:
    config = compose.compose(["experiment=dft_math"])
    on_gpu = sizes.rehearsed(replace(config, cluster=replace(config.cluster, device="cuda")))
    assert (on_gpu.model.dtype, on_gpu.model.attn_implementation) == ("bf16", "flash_attention_2")
    assert on_gpu.model.use_remove_padding
    on_cpu = sizes.rehearsed(replace(config, cluster=replace(config.cluster, device="cpu")))
    assert (on_cpu.model.dtype, on_cpu.model.attn_implementation) == ("fp32", "sdpa")
    assert not on_cpu.model.use_remove_padding
