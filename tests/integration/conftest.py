"""One Ray cluster, one random tiny policy and one set of random positives for all integration tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from verl_ext import artifacts, cluster
from verl_ext.config import ClusterConfig, Config, ModelConfig, TrainConfig
from verl_ext.embedded import policy

NUM_ROWS = 24
EOS = 2  # of the built-in tokenizer


@pytest.fixture(scope="session")
def policy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights large enough that token probabilities differ between rows."""
    import torch
    from safetensors.torch import load_file, save_file

    path = tmp_path_factory.mktemp("policy")
    policy.initialize(path, seed=0)
    weights = load_file(path / "model.safetensors")
    torch.manual_seed(1)
    noisy = {
        name: value + 0.05 * torch.randn_like(value) if value.dim() > 1 else value for name, value in weights.items()
    }
    save_file(noisy, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(scope="session")
def model(policy_dir: Path) -> ModelConfig:
    return ModelConfig(
        path=str(policy_dir),
        dtype="fp32",
        prompt_template="problem-only",
        max_prompt_length=32,
        max_response_length=32,
    )


@pytest.fixture(scope="session")
def positives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random rows of ragged length, one of them with a single token before EOS."""
    rng = np.random.default_rng(0)
    lengths = [(int(rng.integers(2, 30)), int(rng.integers(2, 30))) for _ in range(NUM_ROWS - 1)] + [(5, 2)]
    rows = [
        {
            "sample_id": f"s{index}",
            "prompt_id": f"p{index}",
            "prompt_token_ids": rng.integers(3, 200, prompt).tolist(),
            "response_token_ids": [*rng.integers(3, 200, response - 1).tolist(), EOS],
            "behavior_log_probs": None,
            "quality": 1.0,
        }
        for index, (prompt, response) in enumerate(lengths)
    ]
    path = tmp_path_factory.mktemp("data") / "positives.parquet"
    table = pa.Table.from_pylist(rows, schema=artifacts.SCHEMAS["positives"])
    artifacts.write(path, "positives", table, artifacts.make_lineage("test", {}))
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Ragged random rows with behaviour log-probs, graded quality and rewards, and pairs of them."""
    directory, rng = tmp_path_factory.mktemp("methods"), np.random.default_rng(1)
    rows = []
    for index in range(20):
        length = int(rng.integers(2, 24))
        rows.append(
            {
                "sample_id": f"s{index}",
                "prompt_id": f"p{index // 2}",
                "prompt_token_ids": rng.integers(3, 200, int(rng.integers(2, 24))).tolist(),
                "response_token_ids": [*rng.integers(3, 200, length - 1).tolist(), EOS],
                "behavior_log_probs": (-5.5 + rng.normal(size=length)).tolist(),
                "quality": float(rng.integers(1, 5)) / 4,
                "reward": float(index % 3 > 0),
            }
        )
    tables = {
        "positives": rows,
        "judged": rows,
        "pairs": [
            {
                "prompt_id": first["prompt_id"],
                "prompt_token_ids": first["prompt_token_ids"],
                "chosen_token_ids": first["response_token_ids"],
                "rejected_token_ids": second["response_token_ids"],
                "chosen_sample_id": first["sample_id"],
                "rejected_sample_id": second["sample_id"],
            }
            for first, second in zip(rows[::2], rows[1::2], strict=True)
        ],
    }
    paths = {}
    for kind, content in tables.items():
        schema = artifacts.SCHEMAS[kind]
        chosen = [{name: row[name] for name in schema.names} for row in content]
        paths[kind] = directory / f"{kind}.parquet"
        table = pa.Table.from_pylist(chosen, schema=schema)
        artifacts.write(paths[kind], kind, table, artifacts.make_lineage("test", {}))
    return paths


@pytest.fixture(scope="session")
def workers(model: ModelConfig) -> Iterator[Callable[..., Any]]:
    """`workers(num_ranks)`: a group that lives as long as the session; of another model if it packs or offloads."""
    groups: dict[tuple[int, bool, str], Any] = {}

    def get(num_ranks: int, other: ModelConfig | None = None) -> Any:
        asked = other or model
        key = (num_ranks, asked.use_remove_padding, asked.offload)
        if key not in groups:
            # room for the groups of one, of two, of two packed and of one offloaded rank, and for two engines
            cluster.start_ray(ClusterConfig(ranks_per_node=6), num_engines=2)
            train = TrainConfig(sequence_parallel_size=num_ranks if asked.use_remove_padding else 1)
            place = ClusterConfig(ranks_per_node=num_ranks)
            groups[key] = cluster.create_workers(Config(model=asked, train=train, cluster=place))
        return groups[key]

    yield get
    import ray

    ray.shutdown()
