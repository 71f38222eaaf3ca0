"""What a round leaves behind, and the sentences that stop a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from verl_ext import artifacts
from verl_ext.errors import UserError
from verl_ext.online.journal import LOG, Journal, Plan, samples_path

METRICS = {"entropy": 0.5, "grad_norm": 1.0}


def plan(output_dir: Path, **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "name": "toy",
        "output_dir": str(output_dir),
        "model_path": "",
        "prompt_template": "problem-only",
        "trust_remote_code": False,
        "num_steps": 3,
        "samples_per_step": 4,
        "max_response_length": 8,
        "end_token_ids": [2],
        "max_log_prob_gap": 0.01,
        "max_skipped_steps": 1,
        "max_failure_fraction": 0.005,
        "keep_last": 2,
        "keep_best": None,
        "lineage": json.loads(artifacts.make_lineage("train_online", {}).to_json()),
    }
    return Plan(**{**values, **changes})


def samples(*verdicts: str) -> pa.Table:
    """Two samples a prompt, of 1, 2, 3, ... tokens; the last one is cut."""
    rows = [
        {
            "sample_id": f"p{index // 2}-1-{index % 2}",
            "prompt_id": f"p{index // 2}",
            "response_token_ids": list(range(index + 1)),
            "finish_reason": "length" if index == len(verdicts) - 1 else "stop",
            "verdict": verdict,
            "reward": float(verdict == "correct"),
        }
        for index, verdict in enumerate(verdicts)
    ]
    return pa.Table.from_pylist(rows, schema=artifacts.SCHEMAS["samples"])


def test_a_round_is_summarised_and_its_samples_are_kept(tmp_path: Path) -> None:
    journal = Journal(plan(tmp_path))
    journal.check_log_probs(1, np.array([-1.0, -2.0]), np.array([-1.002, -2.004]))
    journal.write(1, samples("correct", "correct", "incorrect", "correct"), METRICS, seconds=2.0)
    journal.write(2, samples("incorrect", "no_answer", "incorrect", "correct"), METRICS, seconds=2.0)
    first, second = (json.loads(line) for line in (tmp_path / LOG).read_text().splitlines())
    assert first["reward"] == 0.75 and second["reward"] == 0.25
    assert first["response_length"] == 2.5 and first["truncated_fraction"] == 0.25
    assert (first["all_right_fraction"], first["all_wrong_fraction"]) == (0.5, 0.0)
    assert (second["all_right_fraction"], second["all_wrong_fraction"]) == (0.0, 0.5)
    assert (first["num_sampled_tokens"], second["num_sampled_tokens"]) == (10, 20)
    assert first["tokens_per_second"] == 5.0
    assert first["log_prob_gap"] == pytest.approx(0.003) and first["max_log_prob_gap"] == pytest.approx(0.004)
    assert first["entropy"] == 0.5
    stored = artifacts.read(samples_path(tmp_path, 2), "samples")
    assert stored["verdict"].to_pylist() == ["incorrect", "no_answer", "incorrect", "correct"]


def test_a_resumed_journal_forgets_the_rounds_after_its_checkpoint(tmp_path: Path) -> None:
    journal = Journal(plan(tmp_path))
    for step in (1, 2):
        journal.write(step, samples(*["correct"] * 4), METRICS, seconds=1.0)
    resumed = Journal(plan(tmp_path))
    resumed.resume(1)
    resumed.write(2, samples(*["incorrect"] * 4), METRICS, seconds=1.0)
    records = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [(record["step"], record["reward"]) for record in records] == [(1, 1.0), (2, 0.0)]
    assert records[-1]["num_sampled_tokens"] == 20


@pytest.mark.parametrize("sampled", [[-1.0, -2.5], [-1.0, math.nan]], ids=["stale", "not finite"])
def test_a_sampler_that_does_not_run_the_trained_weights_stops_the_run(tmp_path: Path, sampled: list[float]) -> None:
    with pytest.raises(
        UserError, match=r"toy: in round 7 trainer and sampler disagree .*online\.max_log_prob_gap=0\.01"
    ):
        Journal(plan(tmp_path)).check_log_probs(7, np.array([-1.0, -2.0]), np.array(sampled))


def test_missing_responses_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="round 1 has 2 responses instead of 4"):
        Journal(plan(tmp_path)).check_count(1, 2)
    Journal(plan(tmp_path)).check_count(1, 4)


def test_a_failing_verifier_stops_the_run_and_a_single_failure_does_not(tmp_path: Path) -> None:
    journal = Journal(plan(tmp_path))
    journal.write(1, samples("correct", "timeout", "correct", "crash"), METRICS, seconds=1.0)
    with pytest.raises(UserError, match=r"failed on 3 of 8 responses.*verify\.cpu_seconds"):
        journal.write(2, samples("correct", "memory", "correct", "correct"), METRICS, seconds=1.0)


def test_gradients_that_stay_infinite_stop_the_run(tmp_path: Path) -> None:
    journal = Journal(plan(tmp_path))
    broken = {**METRICS, "grad_norm": math.inf}
    journal.write(1, samples(*["correct"] * 4), broken, seconds=1.0)
    with pytest.raises(UserError, match=r"not finite in 2 rounds in a row.*online\.learning_rate"):
        journal.write(2, samples(*["correct"] * 4), broken, seconds=1.0)


@pytest.mark.parametrize("name", ["grad_norm", "critic_grad_norm"])
def test_gradients_that_break_now_and_then_stop_the_run(tmp_path: Path, name: str) -> None:
    """T10: never two rounds in a row, but two in all, of policy or critic."""
    journal, steps = Journal(plan(tmp_path, num_steps=100)), iter(range(1, 9))
    for change in ({name: math.nan}, {}, {}):
        journal.write(next(steps), samples(*["correct"] * 4), {**METRICS, **change}, seconds=1.0)
    with pytest.raises(
        UserError, match=r"1 rounds in a row, 2 in all \(last: round 4\).*no checkpoint was saved before"
    ):
        journal.write(next(steps), samples(*["correct"] * 4), {**METRICS, name: math.inf}, seconds=1.0)


def test_rounds_that_train_the_critic_alone_are_no_skipped_ones(tmp_path: Path) -> None:
    journal = Journal(plan(tmp_path))
    for step in (1, 2, 3):
        journal.write(step, samples(*["correct"] * 4), {"entropy": 0.5}, seconds=1.0)
    assert len(journal.records) == 3
