"""Scores, differences and their marks against numbers worked by hand; what cannot be scored is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from verl_ext.errors import UserError
from verl_ext.intervals import resample
from verl_ext.statistics import (
    collect,
    differences,
    holm,
    mean_at_k,
    pass_at_k,
    problem_mean,
)

MATRICES = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 12), st.integers(1, 6)), elements=st.sampled_from([0.0, 1.0])
)


def flat(rewards: dict[str, list[int]]) -> dict[str, list]:
    """{problem: rewards} as the columns of a samples artifact."""
    pairs = [(name, index, value) for name, values in rewards.items() for index, value in enumerate(values)]
    return {
        "sample_ids": [f"{name}-{index}" for name, index, _ in pairs],
        "problem_ids": [name for name, _, _ in pairs],
        "rewards": [float(value) for _, _, value in pairs],
    }


def test_mean_at_k_is_the_mean_over_problems_of_the_share_of_correct_samples():
    # Shares 2/4, 4/4, 0/4: mean 1/2.
    assert mean_at_k(np.array([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], float)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("correct", "k", "expected"),
    [
        (0, 2, 0.0),
        (1, 1, 0.25),
        (1, 2, 0.5),  # 1 - C(3,2)/C(4,2) = 1 - 3/6
        (2, 2, 5 / 6),  # 1 - C(2,2)/C(4,2) = 1 - 1/6
        (2, 3, 1.0),  # three of four cannot all be among the two wrong ones
        (4, 1, 1.0),
    ],
)
def test_pass_at_k_equals_the_count_of_subsets_worked_by_hand(correct: int, k: int, expected: float):
    rewards = np.array([[1.0] * correct + [0.0] * (4 - correct)])
    assert pass_at_k(rewards, k) == pytest.approx(expected)


def test_pass_at_k_equals_enumerating_all_subsets():
    row = [1, 0, 0, 1, 0, 0, 0]
    for k in range(1, 8):
        subsets = list(itertools.combinations(row, k))
        assert pass_at_k(np.array([row], float), k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_beyond_the_samples_is_refused(k: int):
    with pytest.raises(UserError, match="1 <= k <= the number of samples per problem, 4"):
        pass_at_k(np.zeros((2, 4)), k)


@given(MATRICES)
def test_mean_is_at_most_pass_and_both_lie_between_zero_and_one(rewards: np.ndarray):
    k = rewards.shape[1]
    passes = [pass_at_k(rewards, i) for i in range(1, k + 1)]
    assert passes[0] == pytest.approx(mean_at_k(rewards))
    assert all(earlier <= later + 1e-12 for earlier, later in itertools.pairwise(passes))
    assert 0.0 <= mean_at_k(rewards) <= passes[-1] + 1e-12 <= 1.0 + 1e-12


def test_samples_are_collected_by_problem_whatever_their_order():
    columns = flat({"b": [1, 0], "a": [0, 0]})
    shuffled = {name: [values[i] for i in (3, 0, 2, 1)] for name, values in columns.items()}
    for given_columns in (columns, shuffled):
        found = collect(**given_columns, k=2, subject="x")
        assert found.problem_ids == ("a", "b")
        assert found.rewards.tolist() == [[0.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("columns", "expected", "message"),
    [
        (flat({"p": [1, 0], "q": [1]}), None, r"fewer than k=2 samples \(1\): q has 1"),
        (flat({"p": [1, 0], "q": [1, 1, 1]}), None, r"more than k=2 samples \(1\): q has 3"),
        (flat({"p": [1, 0]}), ["p", "q"], r"without any sample \(1\): q"),
        (flat({"p": [1, 0], "z": [1, 0]}), ["p"], r"not in the benchmark \(1\): z"),
        (flat({}), None, "no problem at all"),
        ({"sample_ids": ["p-0", "p-0"], "problem_ids": ["p", "p"], "rewards": [1.0, 0.0]}, None, "repeated .*p-0"),
        ({"sample_ids": ["p-0", "p-1"], "problem_ids": ["p", "p"], "rewards": [0.5, 0.0]}, None, "other than 0 and 1"),
        ({"sample_ids": ["p-0", "p-1"], "problem_ids": ["p", "p"], "rewards": [math.nan, 0.0]}, None, "nan"),
    ],
)
def test_anything_but_k_judged_samples_of_every_problem_is_refused_by_name(columns, expected, message: str):
    with pytest.raises(UserError, match=message):
        collect(**columns, k=2, subject="Row 'sft'", expected=expected)


def test_permuting_the_problems_in_the_file_changes_nothing():
    columns = flat({f"p{i:02d}": [i % 2, i % 3 == 0] for i in range(20)})
    order = np.random.default_rng(0).permutation(40)
    shuffled = {name: [values[i] for i in order] for name, values in columns.items()}
    shares = [problem_mean(collect(**c, k=2, subject="x").rewards)[None] for c in (columns, shuffled)]
    first, second = (resample({"x": {"b": share}})["x"].estimate() for share in shares)
    assert first == second


def test_holm_multiplies_the_smallest_by_the_count_and_never_goes_down():
    # Sorted: 0.01 * 3 = 0.03; 0.02 * 2 = 0.04; 0.04 * 1 = 0.04 (not below the one before).
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_marks_follow_the_corrected_p_values():
    rng = np.random.default_rng(1)
    base = rng.random(100) * 0.5
    rows = {"sft": base, "better": base + 0.3 * rng.random(100), "worse": base * 0.5, "same": base + 0.0}
    found = differences(resample({name: {"b": v[None]} for name, v in rows.items()}), "sft")
    assert {name: item.mark for name, item in found.items()} == {
        "better": "win",
        "worse": "lose",
        "same": "undecided",
    }
    assert found["same"].p_value == 1.0
    assert found["better"].p_holm >= found["better"].p_value


def test_correction_can_undecide_what_a_single_comparison_would_decide():
    rng = np.random.default_rng(2)
    base = rng.random(60) * 0.5
    edge = base + rng.normal(0.05, 0.17, 60)
    rows = {"sft": base, "edge": edge, **{f"null{i}": base + rng.normal(0, 0.1, 60) for i in range(8)}}
    arrays = {name: {"b": v[None]} for name, v in rows.items()}
    alone = differences(resample({name: arrays[name] for name in ("sft", "edge")}), "sft")["edge"]
    among = differences(resample(arrays), "sft")["edge"]
    assert alone.low > 0.0 and alone.mark == "win"
    assert among.mark == "undecided" and among.p_value == pytest.approx(alone.p_value, rel=1e-3)


def test_detectable_difference_is_2_8_standard_errors_of_the_paired_difference():
    rng = np.random.default_rng(4)
    x, y = rng.random((2, 1, 50))
    found = differences(resample({"x": {"b": x}, "y": {"b": y}}, num_resamples=20_000), "x")["y"]
    expected = 2.8 * (y - x).std(ddof=1) / math.sqrt(50)
    assert found.detectable == pytest.approx(expected, rel=0.03)


def test_unknown_baseline_is_refused_with_the_rows_there_are():
    with pytest.raises(UserError, match=r"'dft' is not a row of the table. Choose one of \['sft'\]"):
        differences(resample({"sft": {"b": np.array([[0.0, 1.0]])}}), "dft")
