"""Intervals against textbook formulas, against a simulation with a known truth, and at the edges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from verl_ext.intervals import Score, resample
from verl_ext.statistics import problem_mean, problem_pass

MATRICES = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 12), st.integers(1, 6)), elements=st.sampled_from([0.0, 1.0])
)


def score(values: dict[str, Any] | list, name: str = "row", **options: int) -> Score:
    """One row's score from one value per problem (one benchmark), or benchmark -> values or seeds of values."""
    cells = values if isinstance(values, dict) else {"b": values}
    return resample({name: {b: np.atleast_2d(np.asarray(v, float)) for b, v in cells.items()}}, **options)[name]


def test_macro_average_is_the_unweighted_mean_of_the_benchmarks():
    found = score({"small": [1, 0], "large": [0.25] * 90})
    assert found.values.tolist() == pytest.approx([0.5, 0.25, 0.375])
    assert found.estimate().value == pytest.approx(0.375)


def test_standard_error_of_one_benchmark_is_the_textbook_one():
    # Variance with n - 1: (4 * 0.25) / 3 = 1/3; standard error sqrt(1/3 / 4) = 0.2887.
    assert score([0, 1, 0, 1], num_resamples=40_000).estimate().standard_error == pytest.approx(0.2887, rel=0.02)


def test_standard_error_of_the_macro_average_adds_the_benchmarks_variances():
    # Two benchmarks with variance 1/12 each: sqrt(2 / 12) / 2 = 0.2041.
    found = score({"a": [0, 1, 0, 1], "b": [0, 1, 0, 1]}, num_resamples=40_000)
    assert found.estimate().standard_error == pytest.approx(0.2041, rel=0.02)


def test_interval_is_the_normal_one_for_many_problems():
    # p = 0.5 over 400 problems of one sample: 0.5 +- 1.966 * 0.02503.
    found = score([0, 1] * 200).estimate()
    assert (found.low, found.high) == pytest.approx((0.4508, 0.5492), abs=0.004)


def test_difference_paired_by_problem_has_no_noise_where_every_problem_moves_alike():
    base = np.linspace(0.0, 0.9, 30)
    scores = resample({"sft": {"b": base[None]}, "dft": {"b": base[None] + 0.1}})
    paired = scores["dft"] - scores["sft"]
    assert np.abs(paired.problem_noise).max() < 1e-12
    assert scores["dft"].estimate().standard_error > 0.04  # unpaired, the same numbers would be uncertain
    assert paired.estimate().value == pytest.approx(0.1)


def test_no_spread_is_not_taken_for_certainty():
    # q <= 1 - 0.025^(1/30) = 0.1157, the exact bound for 0 of 30.
    wrong, right = score([0] * 30).estimate(), score([1] * 30).estimate()
    assert (wrong.low, wrong.high) == (0.0, pytest.approx(0.1157, abs=1e-4))
    assert (right.low, right.high) == (pytest.approx(0.8843, abs=1e-4), 1.0)
    both = (score([0] * 30) - score([0] * 30)).estimate()
    assert (both.low, both.high) == (pytest.approx(-0.1157, abs=1e-4), pytest.approx(0.1157, abs=1e-4))


@pytest.mark.parametrize("values", [[0.0], [1.0], [0.5], [0.0, 1.0], [0.0] * 5, [1.0] * 5])
def test_extreme_accuracies_and_single_problems_give_finite_numbers(values: list[float]):
    other = [0.5] * len(values)
    scores = resample({"x": {"b": np.array([values])}, "y": {"b": np.array([other])}}, num_resamples=200)
    found = [scores["x"].estimate(), (scores["x"] - scores["y"]).estimate()]
    assert all(math.isfinite(v) for item in found for v in vars(item).values())
    assert all(item.low <= item.value <= item.high for item in found)
    assert 0.0 <= found[0].low <= found[0].high <= 1.0
    assert 0.0 < (scores["x"] - scores["y"]).p_value() <= 1.0


def test_one_problem_leaves_nearly_everything_open():
    found = score([0.5]).estimate()
    assert (found.low, found.high) == (pytest.approx(0.0125), pytest.approx(0.9875))


@settings(max_examples=40, deadline=None)
@given(MATRICES, st.integers(0, 3))
def test_interval_contains_the_estimate_within_the_possible_range(rewards: np.ndarray, seed: int):
    found = score(problem_mean(rewards).tolist(), num_resamples=100, seed=seed).estimate()
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0


@settings(max_examples=40, deadline=None)
@given(MATRICES, st.floats(-0.5, 0.5))
def test_shifting_both_rows_leaves_their_difference_as_it_was(rewards: np.ndarray, shift: float):
    first, second = problem_mean(rewards), problem_pass(rewards, rewards.shape[1])
    plain = resample({"x": {"b": first[None]}, "y": {"b": second[None]}}, num_resamples=50)
    moved = resample({"x": {"b": first[None] + shift}, "y": {"b": second[None] + shift}}, num_resamples=50)
    expected, found = (scores["x"] - scores["y"] for scores in (plain, moved))
    np.testing.assert_allclose(found.values, expected.values, atol=1e-9)
    np.testing.assert_allclose(found.problem_noise, expected.problem_noise, atol=1e-9)


def test_same_seed_gives_the_same_output_and_another_seed_another():
    values = np.random.default_rng(0).random(30).tolist()
    assert score(values, seed=1).estimate() == score(values, seed=1).estimate()
    assert score(values, seed=1).estimate() != score(values, seed=2).estimate()


def test_adding_a_row_or_a_benchmark_leaves_the_other_numbers_as_they_were():
    values = np.random.default_rng(0).random((2, 30))
    alone = resample({"x": {"b": values}}, num_resamples=500)["x"].estimate(0)
    wider = resample({"new": {"a": values, "b": 1 - values}, "x": {"a": values, "b": values}}, num_resamples=500)
    assert list(vars(wider["x"].estimate(1)).values()) == pytest.approx(list(vars(alone).values()))


def test_seeds_that_scatter_widen_the_interval_and_equal_seeds_do_not():
    values = np.linspace(0.1, 0.9, 40)
    single = score(values.tolist()).estimate()
    equal = score({"b": np.stack([values] * 3)}).estimate()
    apart = score({"b": np.stack([values - 0.1, values, values + 0.1])}).estimate()
    assert (equal.low, equal.high) == pytest.approx((single.low, single.high))
    # Between seeds: sd 0.1, variance of the mean 0.01 / 3; between problems: 0.0573 / 40. Sum 0.00477, root 0.069.
    assert apart.standard_error == pytest.approx(0.069, rel=0.02)
    # Satterthwaite: 0.00477^2 / (0.00333^2 / 2 + 0.00143^2 / 39) = 4.1 degrees of freedom, t = 2.75, half-width 0.19.
    assert (apart.high - apart.low) / 2 == pytest.approx(0.19, rel=0.05)


def test_decoding_noise_between_seeds_is_not_counted_twice():
    rng = np.random.default_rng(0)
    share = [(rng.random((200, 16)) < 0.5).mean(axis=1) for _ in range(4)]
    found = score({"b": np.stack(share)}, num_resamples=4000).estimate()
    pooled = score(np.mean(share, axis=0).tolist(), num_resamples=4000).estimate()
    assert found.standard_error == pytest.approx(pooled.standard_error, rel=0.35)


def test_seed_variance_is_the_scatter_less_the_decoding_noise():
    # Seed means 0.5 +- 0.1: variance of their mean 0.1^2. Residuals +- 0.05: of decoding 4 * 0.05^2 / 4 = 0.0025.
    # On the average of two such benchmarks the scatter is the same, decoding noise halves: 0.01 - 0.00125.
    values = [[0.65, 0.55], [0.35, 0.45]]
    found = score({"a": values, "b": values}, num_resamples=10)
    assert found.seed_variance.tolist() == pytest.approx([0.0075, 0.0075, 0.00875])
    assert (found - found).seed_variance.tolist() == pytest.approx([0.015, 0.015, 0.0175])


def test_degrees_of_freedom_of_a_macro_average_weigh_problems_and_seeds():
    # Per benchmark 0.3^2 / 99 = 9.09e-4 from problems, so 4.55e-4 for the average; seeds +- 0.02 give 4e-4.
    # df = (8.55e-4)^2 / (2 * (2.27e-4)^2 / 99 + (4e-4)^2 / 1) = 4.54; t = 2.65; half-width 2.65 * 0.02924 = 0.0775.
    problems = np.tile([0.3, -0.3], 50)
    values = 0.5 + np.stack([problems + 0.02, problems - 0.02])
    found = score({"a": values, "b": values}).estimate()
    assert (found.high - found.low) / 2 == pytest.approx(0.0775, rel=0.04)


def simulate(rng: np.random.Generator, num_problems: int, num_seeds: int, num_benchmarks: int, seed_sd: float):
    """Two rows with success probabilities 0.2 + 0.5 u and 0.25 + 0.6 u, u ~ U(0, 1), moved by each seed."""
    rows: dict[str, dict[str, np.ndarray]] = {"x": {}, "y": {}}
    shift = rng.normal(scale=seed_sd, size=(2, num_seeds, 1))
    for name in map(str, range(num_benchmarks)):
        u = rng.random(num_problems)
        for row, probability, move in zip(rows, (0.2 + 0.5 * u, 0.25 + 0.6 * u), shift, strict=True):
            rows[row][name] = rng.binomial(8, np.clip(probability + move, 0, 1)) / 8
    return rows


@pytest.mark.parametrize(
    ("num_problems", "num_seeds", "num_benchmarks", "seed_sd"),
    [(30, 1, 1, 0.0), (120, 1, 1, 0.0), (40, 1, 3, 0.0), (60, 3, 1, 0.03), (60, 3, 2, 0.0)],
)
def test_95_percent_intervals_cover_a_known_truth_about_95_times_in_100(
    num_problems: int, num_seeds: int, num_benchmarks: int, seed_sd: float
):
    # Truth: 0.45 for x; 0.55 - 0.45 = 0.1 for the difference. 400 trials: standard error of the coverage 1.1 points.
    rng, trials = np.random.default_rng(7), 400
    level = paired = 0
    for trial in range(trials):
        rows = simulate(rng, num_problems, num_seeds, num_benchmarks, seed_sd)
        scores = resample(rows, num_resamples=400, seed=trial)
        first, second = scores["x"].estimate(), (scores["y"] - scores["x"]).estimate()
        level += first.low <= 0.45 <= first.high
        paired += second.low <= 0.1 <= second.high
    assert 0.92 <= level / trials <= 0.98
    # With seeds the interval of a difference errs to the wide side where seeds differ by decoding noise alone.
    assert 0.92 <= paired / trials <= (0.98 if num_seeds == 1 else 0.995)


def test_p_value_is_below_alpha_exactly_where_the_interval_excludes_zero():
    rng = np.random.default_rng(3)
    for shift in np.linspace(0.0, 0.25, 12):
        found = score((rng.normal(shift, 0.4, 40)).tolist(), num_resamples=2000)
        item, p_value = found.estimate(), found.p_value()
        if abs(p_value - 0.05) > 0.002:
            assert (p_value < 0.05) == (item.low > 0.0 or item.high < 0.0)


def test_p_values_under_no_difference_are_spread_evenly():
    rng = np.random.default_rng(5)
    found = []
    for trial in range(200):
        rows = {name: {"b": rng.binomial(4, 0.4, (1, 50)) / 4} for name in ("x", "y")}
        scores = resample(rows, num_resamples=300, seed=trial)
        found.append((scores["x"] - scores["y"]).p_value())
    assert np.mean(np.array(found) < 0.5) == pytest.approx(0.5, abs=0.12)
    assert np.mean(np.array(found) < 0.05) <= 0.1
