"""Guards: what they find, what they let pass, and what their sentences tell the reader to do."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.sample_rows import sample_row
from verl_ext import guards
from verl_ext.artifacts import SCHEMAS
from verl_ext.config import GuardConfig
from verl_ext.errors import UserError

SETTINGS = GuardConfig()


def samples(*rows: dict[str, Any]) -> pa.Table:
    plain = {"prompt_token_ids": [1], "response_token_ids": list(range(40))}
    found = []
    for index, row in enumerate(rows):
        one = {"sample_id": str(index), "prompt_id": str(index // 2), "response": f"r{index}"}
        found.append(sample_row(**{**plain, **one, **row}))
    return pa.Table.from_pylist(found, schema=SCHEMAS["samples"])


HEALTHY = [{"verdict": "correct"}, {"verdict": "incorrect"}] * 5


def test_healthy_samples_pass_every_guard() -> None:
    assert guards.of_samples(samples(*HEALTHY), SETTINGS) == []


def test_no_samples_have_no_findings() -> None:
    assert guards.of_samples(samples(), SETTINGS) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{"finish_reason": "length"}] * 3, "30.0% of the responses were cut at the length limit"),
        ([{"behavior_log_probs": [-1e-4] * 40}] * 10, "the policy has collapsed: .* 0.0001 nats"),
        ([{"behavior_log_probs": [-math.inf] * 40}], "are not finite"),
        ([{"response_token_ids": [5, 6, 7] * 20}] * 2, "20.0% of the responses repeat themselves"),
        ([{"response": "same", "prompt_id": "0"}] * 7, "60.0% of the responses equal another one"),
        ([{"verdict": "correct"}] * 10, "100.0% of the prompts have right responses only, 0.0% wrong ones only"),
        ([{"verdict": "incorrect"}] * 10, "0.0% of the prompts have right responses only, 100.0% wrong ones only"),
    ],
)
def test_samples_that_go_wrong_are_named_with_a_remedy(changes: list[dict[str, Any]], message: str) -> None:
    rows = [{**row, **change} for row, change in zip(HEALTHY, [*changes, *[{}] * 10], strict=False)]
    (finding,) = guards.of_samples(samples(*rows), SETTINGS)
    assert re.search(message, finding), finding


def test_a_failure_of_the_verifier_is_no_wrong_response() -> None:
    rows = [{"verdict": "correct"}, {"verdict": "timeout"}] * 5  # one judged sample a prompt: no group at all
    assert guards.of_samples(samples(*rows), SETTINGS) == []


@given(st.lists(st.integers(0, 5), min_size=guards.NGRAM, max_size=60))
def test_the_share_of_distinct_ngrams_is_that_of_a_plain_count(tokens: list[int]) -> None:
    runs = [tuple(tokens[i : i + guards.NGRAM]) for i in range(len(tokens) - guards.NGRAM + 1)]
    assert guards.distinct_ngrams(np.array(tokens)) == pytest.approx(len(set(runs)) / len(runs))


def test_a_step_whose_weights_vanish_or_explode_is_named() -> None:
    healthy = {"effective_sample_size": 0.9, "mean_weight": 1.0}
    assert guards.of_step(healthy, SETTINGS) == []
    (vanished,) = guards.of_step({**healthy, "effective_sample_size": 0.001}, SETTINGS)
    assert "99.9% of the tokens no longer count" in vanished and "refresh the reference" in vanished
    (exploded,) = guards.of_step({**healthy, "mean_weight": 12.0}, SETTINGS)
    assert "the mean weight is 12 (limit 10)" in exploded
    nothing = dict.fromkeys(healthy, math.nan)  # a step without any token
    assert guards.of_step(nothing, SETTINGS) == []


def test_findings_are_warnings_or_where_asked_for_the_end(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        guards.act(["it is bad."], "curate", SETTINGS)
    assert "curate: it is bad." in caplog.text
    with pytest.raises(UserError, match=r"curate: it is bad\. Set guards\.action=warn"):
        guards.act(["it is bad."], "curate", replace(SETTINGS, action="stop"))
    guards.act([], "curate", replace(SETTINGS, action="stop"))
