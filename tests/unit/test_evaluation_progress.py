"""What an evaluation says while it runs: accuracies over all that was judged, not over the last shard."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from recipes import evaluate
from tests.unit.bad_data.cases import BASE_POLICY, MODEL, prompt, write
from verl_ext import artifacts, sampling
from verl_ext.config import Config, EvaluateConfig
from verl_ext.console import Progress
from verl_ext.verifier import Verifier

K = 4
NUM_RIGHT = {"p0": 4, "p1": 3, "p2": 0, "p3": 1}  # of each prompt's four samples
BENCHMARKS = {"long": [prompt(0), prompt(1), prompt(2)], "short": [prompt(3)]}  # shards of two prompts: 2 + 1, and 1


def rollouts(prompts: pa.Table) -> pa.Table:
    """What an engine would return, with `NUM_RIGHT` right answers to each prompt."""
    rows = [
        row
        | {
            "sample_id": f"{row['prompt_id']}-{index}",
            "response": f"\\boxed{{{row['ground_truth'] if index < NUM_RIGHT[row['prompt_id']] else 0}}}",
            "response_token_ids": [7, 2],
            "behavior_log_probs": [-0.5, -0.5],
            "finish_reason": "stop",
        }
        for row in prompts.to_pylist()
        for index in range(K)
    ]
    return pa.Table.from_pylist(rows, schema=artifacts.SCHEMAS["rollouts"])


def sample_jobs(jobs: Sequence[sampling.Job], until: int | None = None) -> Iterator[tuple[tuple[str, int], pa.Table]]:
    for job in jobs[:until]:
        yield job.key, rollouts(job.prompts)
    if until is not None:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def service() -> Iterator[Verifier]:
    with Verifier() as service:
        yield service


def test_the_accuracy_is_of_each_benchmark_and_counts_what_an_earlier_run_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, service: Verifier
) -> None:
    """P3: 7 of 8 in the first shard, 7 of 12 with the second; 1 of 4 of the other benchmark."""
    prompts = {name: write(tmp_path / f"{name}.parquet", "prompts", rows) for name, rows in BENCHMARKS.items()}
    outputs = {name: (path, tmp_path / "dft" / f"{name}.parquet") for name, path in prompts.items()}
    model = replace(MODEL, path=str(BASE_POLICY))
    config = Config(run_dir=str(tmp_path), model=model, evaluate=EvaluateConfig(k=K, shard_size=2))
    monkeypatch.setattr(evaluate, "check_log_probs", lambda *_: None)
    monkeypatch.setattr(evaluate, "Progress", partial(Progress, every_seconds=0.0))
    caplog.set_level("INFO", logger="progress")

    def lines(until: int | None = None) -> list[tuple[str, str]]:
        caplog.clear()
        monkeypatch.setattr(sampling, "sample_jobs", lambda _, __, jobs, *___: sample_jobs(jobs, until))
        if until is None:
            evaluate.evaluate(config, BASE_POLICY, outputs, list, service)
        else:
            with pytest.raises(KeyboardInterrupt):
                evaluate.evaluate(config, BASE_POLICY, outputs, list, service)
        found = [re.fullmatch(r"evaluate dft: (\S+) samples, .* left, accuracy (.*)", line) for line in caplog.messages]
        return [(match[1], match[2]) for match in found if match]

    assert lines(until=1) == [("8/16", "long 0.875")]
    assert lines() == [("12/16", "long 0.5833"), ("16/16", "long 0.5833, short 0.25")]
    rewards = {name: artifacts.read(output, "samples")["reward"].to_pylist() for name, (_, output) in outputs.items()}
    assert {name: (sum(values), len(values)) for name, values in rewards.items()} == {"long": (7, 12), "short": (1, 4)}
