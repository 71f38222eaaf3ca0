"""Curation: what is kept, why the rest is not, and that neither order nor chance has a say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.sample_rows import sample_row
from verl_ext.artifacts import SCHEMAS
from verl_ext.curation import (
    Fitness,
    demonstrations_to_positives,
    quality_of,
    select_judged,
    select_pairs,
    select_positives,
)
from verl_ext.errors import UserError
from verl_ext.sieve import check_report, describe
from verl_ext.verifier import VERDICTS

EOS = 9


def sample(sample_id: str, **changes: Any) -> dict[str, Any]:
    prompt_id, _, index = sample_id.rpartition("-")
    ids = {"sample_id": sample_id, "prompt_id": prompt_id, "prompt_token_ids": [3, 4]}
    row = sample_row(**{**ids, "response_token_ids": [1, int(index) + 10, EOS], **changes})
    return row | {"reward": float(row["verdict"] == "correct")}


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, SCHEMAS["samples"])


def ids(kept: pa.Table, column: str = "sample_id") -> list[str]:
    return kept[column].to_pylist()


def test_quality_is_the_pass_rate_over_verdicts_about_the_model() -> None:
    verdicts = ["correct", "incorrect", "no_answer", "correct", "timeout", "bad_gold"]
    rows = [sample(f"a-{i}", verdict=verdict) for i, verdict in enumerate(verdicts)]
    positives, _ = select_positives(table([*rows, sample("b-0")]))
    assert dict(zip(ids(positives), positives["quality"].to_pylist(), strict=True)) == {
        "a-0": 0.5, "a-3": 0.5, "b-0": 1.0,
    }  # fmt: skip


def test_quality_is_the_reward_or_a_column_where_asked_for() -> None:
    rows = table([sample("a-0"), sample("a-1", verdict="incorrect"), sample("b-0", verdict_seconds=0.25)])
    assert quality_of(rows, "pass_rate").tolist() == [0.5, 0.5, 1.0]
    assert quality_of(rows, "reward").tolist() == [1.0, 0.0, 1.0]
    kept, _ = select_positives(rows, quality="verdict_seconds")
    assert kept["quality"].to_pylist() == [0.0, 0.25]


def test_judged_responses_keep_right_and_wrong_ones_with_their_reward() -> None:
    rows = [
        sample("a-0"),
        sample("a-1", verdict="incorrect", finish_reason="length"),  # a wrong one may have been cut off
        sample("a-2", finish_reason="length"),  # a right one may not
        sample("a-3", verdict="timeout"),  # says nothing about the model
        sample("a-4", verdict="no_answer"),
        sample("a-5", response_token_ids=[1, 10, EOS]),  # equals a-0
    ]
    kept, report = select_judged(table(rows), fitness=Fitness(eos_token_ids=[EOS]))
    assert set(ids(kept)) in ({"a-0", "a-1", "a-4"}, {"a-5", "a-1", "a-4"})
    assert sorted(kept["reward"].to_pylist()) == [0.0, 0.0, 1.0]
    assert report == {**report, "read": 6, "timeout": 1, "truncated": 1, "duplicate": 1, "kept": 3}
    assert kept.schema == SCHEMAS["judged"]


def test_nothing_left_is_an_error_that_says_where_the_rows_went() -> None:
    rows = [sample("a-0", verdict="incorrect"), sample("a-1", finish_reason="length")]
    with pytest.raises(UserError, match="2 read, 1 incorrect, 1 truncated, 0 kept.*rollout.n"):
        select_positives(table(rows))
    with pytest.raises(UserError, match="0 read"):
        select_positives(table([]))


def test_another_seed_chooses_other_samples() -> None:
    samples = table([sample(f"a-{i}") for i in range(40)])
    chosen = [set(ids(select_positives(samples, max_per_prompt=5, seed=seed)[0])) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_sliced_and_chunked_tables_are_read_right() -> None:
    rows = [sample(f"{prompt}-{i}", response_token_ids=[i % 2, EOS]) for prompt in "abc" for i in range(4)]
    whole = pa.concat_tables([table(rows[:5]), table(rows[5:6]), table(rows[6:])])
    fitness = Fitness(eos_token_ids=[EOS])
    positives, report = select_positives(whole.slice(4, 7), fitness=fitness)
    assert (len(positives), report["duplicate"]) == (4, 3)


def test_pairs_put_a_correct_response_over_a_wrong_one_of_the_same_prompt() -> None:
    rows = [
        sample("a-0"),
        sample("a-1", verdict="incorrect"),
        sample("a-2", verdict="no_answer", finish_reason="length", response_token_ids=[1, 2]),
        sample("a-3", verdict="crash"),
        sample("b-0"),
        sample("c-0", verdict="unparseable"),
        sample("c-1", finish_reason="length"),
        sample("d-0"),
        sample("d-1", verdict="unparseable"),
    ]
    pairs, report = select_pairs(table(rows), fitness=Fitness(eos_token_ids=[EOS]))
    assert pairs.schema.equals(SCHEMAS["pairs"])
    assert ids(pairs, "chosen_sample_id") == ["a-0", "d-0"]
    assert ids(pairs, "rejected_sample_id")[0] in ("a-1", "a-2") and ids(pairs, "rejected_sample_id")[1] == "d-1"
    assert pairs["chosen_token_ids"].to_pylist()[1] == [1, 10, EOS]
    assert pairs["rejected_token_ids"].to_pylist()[1] == [1, 11, EOS]
    assert report["kept"] == 4 and report["crash"] == 1 and report["truncated"] == 1
    assert report["without a partner"] == 3


def test_without_pairs_the_table_is_empty_and_still_typed() -> None:
    pairs, report = select_pairs(table([sample("a-0")]))
    assert len(pairs) == 0 and pairs.schema.equals(SCHEMAS["pairs"]) and report["kept"] == 0


ROWS = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from(VERDICTS),
        st.sampled_from(["stop", "stop", "length"]),
        st.lists(st.integers(0, 1), max_size=2),
    ),
    max_size=30,
)


def build(rows: list[tuple[str, str, str, list[int]]]) -> list[dict[str, Any]]:
    return [
        sample(f"{prompt}-{i}", verdict=verdict, finish_reason=reason, response_token_ids=tokens)
        for i, (prompt, verdict, reason, tokens) in enumerate(rows)
    ]


@settings(max_examples=60, deadline=None)
@given(ROWS, st.none() | st.integers(1, 3), st.booleans(), st.integers(0, 3), st.randoms(use_true_random=False))
def test_positives_add_up_keep_to_their_caps_and_ignore_the_order(rows, cap, deduplicate, seed, random) -> None:
    built = build(rows)
    options = {"max_per_prompt": cap, "deduplicate": deduplicate, "seed": seed, "fitness": Fitness(eos_token_ids=[0])}
    try:
        positives, report = select_positives(table(built), **options)
    except UserError as error:
        assert "0 kept" in str(error)
        return
    check_report(report)
    assert report["read"] == len(built) and report["kept"] == len(positives)
    kept = positives.to_pylist()
    source = {row["sample_id"]: row for row in built}
    for row in kept:
        assert source[row["sample_id"]]["verdict"] == "correct"
        assert source[row["sample_id"]]["finish_reason"] == "stop"
        assert row["response_token_ids"] == source[row["sample_id"]]["response_token_ids"]
        assert row["response_token_ids"][-1] == 0
    contents = [(row["prompt_id"], tuple(row["response_token_ids"])) for row in kept]
    if deduplicate:
        assert len(set(contents)) == len(contents)
    if cap is not None:
        assert max(np.unique([row["prompt_id"] for row in kept], return_counts=True)[1]) <= cap
    random.shuffle(built)
    again, report_again = select_positives(table(built), **options)
    assert sorted(ids(again)) == sorted(ids(positives)) and report_again == report


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 3), st.integers(0, 3), st.randoms(use_true_random=False))
def test_pairs_add_up_keep_to_their_caps_and_ignore_the_order(rows, cap, seed, random) -> None:
    built = build(rows)
    pairs, report = select_pairs(table(built), max_pairs_per_prompt=cap, seed=seed)
    check_report(report)
    verdicts = {row["sample_id"]: row["verdict"] for row in built}
    chosen, rejected = ids(pairs, "chosen_sample_id"), ids(pairs, "rejected_sample_id")
    assert all(verdicts[identifier] == "correct" for identifier in chosen)
    assert all(verdicts[identifier] in ("incorrect", "no_answer", "unparseable") for identifier in rejected)
    assert all(a[0] == b[0] for a, b in zip(chosen, rejected, strict=True))
    assert len({*chosen, *rejected}) == 2 * len(pairs) == report["kept"]
    assert all(chosen_prompts.count(prompt) <= cap for chosen_prompts in [ids(pairs, "prompt_id")] for prompt in "abc")
    random.shuffle(built)
    again, _ = select_pairs(table(built), max_pairs_per_prompt=cap, seed=seed)
    assert again.equals(pairs)


def demonstration(prompt_id: str, solution: str | None, problem: str = "2+3?") -> dict[str, Any]:
    return {
        "prompt_id": prompt_id,
        "data_source": "test",
        "prompt": [{"role": "user", "content": problem}],
        "reward_model": {"style": "rule", "ground_truth": "5"},
        "extra_info": {"split": "train", "index": 0, "problem": problem, "solution": solution},
    }


def encode_prompt(messages: Any) -> list[int]:
    if "<eos>" in messages[0]["content"]:
        raise UserError("special token")
    return [ord(character) for character in messages[0]["content"]]


def encode_response(text: str) -> list[int]:
    return [*map(ord, text), EOS]


def test_demonstrations_become_positives_or_have_a_reason() -> None:
    rows = [
        demonstration("p0", "is 5"),
        demonstration("p1", None),
        demonstration("p2", "  "),
        demonstration("p3", "is 5", problem="<eos>"),
        demonstration("p4", "is 5", problem="long " * 9),
        demonstration("p5", "is 5" * 9),
        *(demonstration(f"q{i}", "so 5") for i in range(2000)),
    ]
    prompts = pa.Table.from_pylist(rows, SCHEMAS["prompts"])
    positives, report = demonstrations_to_positives(
        prompts, encode_prompt, encode_response, fitness=Fitness(max_prompt_length=20, max_response_length=20)
    )
    assert dict(report) == {
        "read": 2006, "no solution": 2, "prompt without text": 0, "special token in text": 1, "prompt too long": 1,
        "response too long": 1, "kept": 2001,
    }  # fmt: skip
    assert positives.schema.equals(SCHEMAS["positives"])
    first = positives.slice(0, 1).to_pylist()[0]
    assert first["response_token_ids"] == [*map(ord, "is 5"), EOS] and first["behavior_log_probs"] is None
    assert first["quality"] == 1.0 and first["sample_id"] == "p0-demonstration"


def test_no_demonstrations_is_an_error_with_a_remedy() -> None:
    prompts = pa.Table.from_pylist([demonstration("p0", None)], SCHEMAS["prompts"])
    with pytest.raises(UserError, match="1 read, 1 no solution, 0 kept.*worked solutions"):
        demonstrations_to_positives(prompts, encode_prompt, encode_response)


def test_a_description_leaves_out_reasons_that_do_not_apply() -> None:
    _, report = select_positives(table([sample("a-0"), sample("a-1", verdict="incorrect")]))
    assert describe(report) == "2 read, 1 incorrect, 1 kept"
