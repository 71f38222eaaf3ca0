"""Loss and gradient of a step do not depend on its layout: ranks, shared sequences, packing, chunks, offload."""

from __future__ import annotations

import dataclasses
import functools
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing

from tests.integration.engine_layouts import Case, Layout, Work, result_path, run_rank
from verl_ext import trainer
from verl_ext.config import ModelConfig, TrainConfig
from verl_ext.embedded import policy

CASES: list[Case] = [
    ("sft", {}),
    ("dft", {}),
    ("dft", {"level": "sequence"}),
    ("dft", {"level": "geometric_mean"}),
    ("iw_sft", {}),
    ("iw_sft", {"level": "token"}),
    ("iw_sft", {"normalize": True, "temperature": 5.0}),
    ("rft", {}),
    ("sft_q", {"use": "weighting"}),
    ("iw_sft_q", {"use": "weighting"}),
    ("psft", {"period": 3}),
    ("pear", {}),
    ("pear", {"level": "block"}),
    ("pear", {"level": "sequence", "target": "initial", "negative_coef": 0.3}),
    ("asft", {"kl_coef": 2.0}),
    ("asft", {"kl_coef": 2.0, "direction": "reverse"}),
    ("raft", {}),
    ("dpo", {"beta": 0.5}),
]
IDS = ["-".join([method, *map(str, params.values())]) for method, params in CASES]
PLAIN = Layout(name="plain")
CHUNKS = Layout(name="chunks", chunk_tokens=7)
PACKED = Layout(name="packed", use_remove_padding=True)
RECOMPUTED = Layout(name="recomputed", chunk_tokens=7, gradient_checkpointing=True)
TWO = Layout(name="two_ranks", num_ranks=2)
TWO_CHUNKS = Layout(name="two_ranks_chunks", num_ranks=2, chunk_tokens=7)
SHARED = Layout(name="shared", num_ranks=2, sequence_parallel_size=2, use_remove_padding=True)
SHARED_CHUNKS = dataclasses.replace(SHARED, name="shared_chunks", chunk_tokens=7)
OFFLOADED = Layout(name="offloaded", offload="always")
TWO_OFFLOADED = dataclasses.replace(OFFLOADED, name="two_ranks_offloaded", num_ranks=2)
TWO_OFFLOADED_CHUNKS = dataclasses.replace(TWO_OFFLOADED, name="two_ranks_offloaded_chunks", chunk_tokens=7)
ADAPTED = Layout(name="adapted", lora_rank=4)
ADAPTED_CHUNKS = Layout(name="adapted_chunks", lora_rank=4, chunk_tokens=7)
ADAPTED_OFFLOADED = dataclasses.replace(ADAPTED_CHUNKS, name="adapted_offloaded", offload="always")
LIKE_PLAIN = [CHUNKS, PACKED, TWO, TWO_CHUNKS, SHARED, SHARED_CHUNKS, OFFLOADED, TWO_OFFLOADED, TWO_OFFLOADED_CHUNKS]
FEW: list[Case] = [("dft", {}), ("asft", {"kl_coef": 2.0}), ("dpo", {"beta": 0.5})]


def make_model(path: Path, **changes: Any) -> ModelConfig:
    """A small random Qwen2 with four heads, which two ranks can share; `changes` in its configuration."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(3)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "initializer_range": 0.1}
    config = Qwen2Config(**{**policy.model_config(), **heads, **changes})
    Qwen2ForCausalLM(config).save_pretrained(path)
    for name, text in policy.tokenizer_files().items():
        (path / name).write_text(text, encoding="utf-8")
    return ModelConfig(path=str(path), dtype="fp32", prompt_template="problem-only")


Measured = Callable[[Layout, Case], dict[str, Any]]


def measure(model: ModelConfig, data: dict[str, Path], layouts: list[Layout], cases: list[Case], out: Path) -> Measured:
    for num_ranks in {layout.num_ranks for layout in layouts}:
        alike = [layout for layout in layouts if layout.num_ranks == num_ranks]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        work = Work(model=model, data=data, cases=cases, layouts=alike, directory=out, port=port)
        torch.multiprocessing.spawn(run_rank, (work,), nprocs=num_ranks)
    return lambda layout, case: torch.load(result_path(out, layout, case), weights_only=True)


@pytest.fixture(scope="module")
def tied(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Embeddings tied to the head: the head's weights belong to FSDP's root group."""
    out = tmp_path_factory.mktemp("tied")
    return measure(make_model(out / "model"), data, [PLAIN, *LIKE_PLAIN], CASES, out)


@pytest.fixture(scope="module")
def untied(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """A head of its own, which FSDP gathers for its forward pass alone; one head of keys, which two ranks repeat."""
    out = tmp_path_factory.mktemp("untied")
    model = make_model(out / "model", tie_word_embeddings=False, num_key_value_heads=1)
    adapted = [ADAPTED, ADAPTED_CHUNKS, ADAPTED_OFFLOADED]
    layouts = [PLAIN, CHUNKS, RECOMPUTED, TWO_CHUNKS, SHARED, SHARED_CHUNKS, TWO_OFFLOADED_CHUNKS, *adapted]
    return measure(model, data, layouts, FEW, out)


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("loss", "entropy"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)
    size = torch.linalg.vector_norm(expected["gradient"])
    assert size > 0, "a gradient of nothing proves nothing"  # p(y|x) makes it tiny for dft with level=sequence
    assert torch.linalg.vector_norm(found["gradient"] - expected["gradient"]) <= 1e-5 * size


@pytest.mark.parametrize("layout", LIKE_PLAIN, ids=lambda layout: layout.name)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_loss_and_gradient_equal_those_of_one_rank_with_all_logits(tied: Measured, layout: Layout, case: Case) -> None:
    assert_equal(tied(layout, case), tied(PLAIN, case))


@pytest.mark.parametrize(
    "layout",
    [CHUNKS, RECOMPUTED, TWO_CHUNKS, SHARED, SHARED_CHUNKS, TWO_OFFLOADED_CHUNKS],
    ids=lambda layout: layout.name,
)
@pytest.mark.parametrize("case", FEW, ids=lambda case: case[0])
def test_a_head_of_its_own_and_repeated_keys_change_nothing(untied: Measured, layout: Layout, case: Case) -> None:
    assert_equal(untied(layout, case), untied(PLAIN, case))


@pytest.mark.parametrize("layout", [ADAPTED_CHUNKS, ADAPTED_OFFLOADED], ids=lambda layout: layout.name)
@pytest.mark.parametrize("case", FEW, ids=lambda case: case[0])
def test_chunks_and_offload_change_nothing_under_adapters_too(untied: Measured, layout: Layout, case: Case) -> None:
    """The head is frozen, and its own reference where a method has a KL."""
    assert_equal(untied(layout, case), untied(ADAPTED, case))


@pytest.mark.parametrize(
    ("method", "params", "kind"), [("iw_sft", {"normalize": True}, "positives"), ("dpo", {}, "pairs")]
)
def test_ranks_that_share_sequences_train_what_one_rank_trains(
    method: str,
    params: dict[str, Any],
    kind: str,
    data: dict[str, Path],
    workers: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Through Ray and verl's dispatch: both ranks get the same rows, references are scored by both, one answers."""
    model = make_model(tmp_path / "model", max_position_embeddings=64)
    packed = dataclasses.replace(model, use_remove_padding=True)
    logs = []
    for ranks in (1, 2):
        settings: dict[str, Any] = {
            "batch_size": 8,
            "num_steps": 3,
            "max_tokens_per_micro_batch": 150,
            "lr_schedule": "constant",
        }
        shared: dict[str, Any] = {"sequence_parallel_size": 2, "logits_chunk_tokens": 16} if ranks == 2 else {}
        run = trainer.TrainingRun(
            name=f"ranks{ranks}",
            model=packed if ranks == 2 else model,
            train=TrainConfig(**settings, **shared, learning_rate=1e-3),
            method=method,
            params=params,
            data=data[kind],
            output_dir=tmp_path / f"ranks{ranks}",
            num_ranks=ranks,
            threads=1,
        )
        trainer.train(run, functools.partial(workers, ranks, packed if ranks == 2 else None))
        logs.append([json.loads(line) for line in (run.output_dir / "log.jsonl").read_text().splitlines()])
    for found, expected in zip(*reversed(logs), strict=True):
        for key in ("loss", "nll", "grad_norm", "mean_weight"):
            assert found[key] == pytest.approx(expected[key], rel=2e-5), (key, expected["step"])
        assert found["num_tokens"] == expected["num_tokens"]


def test_every_method_of_the_registry_is_covered() -> None:
    from verl_ext.losses import method_names

    assert {method for method, _ in CASES} == set(method_names())


def test_the_compared_steps_have_more_than_one_micro_batch(data: dict[str, Path]) -> None:
    """And odd packed lengths, so that a padded tail is exchanged as well."""
    from verl_ext import artifacts
    from verl_ext.batching import TrainingDataset, plan_micro_batches

    dataset = TrainingDataset(artifacts.read(data["positives"], "positives"))
    groups = plan_micro_batches(dataset.lengths[:16].tolist(), 150)
    assert len(groups) > 2
    assert any(sum(int(dataset.lengths[row]) for row in group) % 2 for group in groups)
