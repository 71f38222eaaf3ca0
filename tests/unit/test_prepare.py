"""Problem sets to prompts artifacts: columns, held-out problems, counts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes import prepare as recipe
from recipes.prepare import find_bad_golds, initial_policy, prepare
from verl_ext import artifacts, sources
from verl_ext.compose import compose, group_options
from verl_ext.config import Config, DataConfig, ModelConfig, PrepareConfig, SourceConfig
from verl_ext.errors import UserError
from verl_ext.layout import RunLayout

ROWS = [
    {"problem": "What is 1+1?", "answer": "2", "solution": "$1+1=2$, so \\boxed{2}."},
    {"problem": "What is 2+2?", "answer": "4", "solution": "\\boxed{4}"},
]


def write_jsonl(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def file_source(path, **changes) -> SourceConfig:
    return SourceConfig(source="file", path=str(path), **changes)


def config(tmp_path, splits=None, benchmarks=None, **changes) -> Config:
    data = DataConfig(splits=splits or {}, benchmarks=benchmarks or {})
    model = ModelConfig(prompt_template="problem-only")
    return Config(run_dir=str(tmp_path / "run"), data=data, model=model, **changes)


def test_prepare_writes_verls_columns_for_every_split_and_benchmark(tmp_path):
    embedded = {name: SourceConfig(split="train", limit=5, style=name) for name in ("terse", "demonstration")}
    splits = {"train": embedded["terse"], "demonstrations": embedded["demonstration"]}
    settings = config(tmp_path, splits, {"harder": SourceConfig(split="harder", limit=4)})
    reports = prepare(settings)
    layout = RunLayout.of(settings.run_dir)
    train, demonstrations, harder = (
        artifacts.read(path, "prompts").to_pylist()
        for path in (layout.prompts("train"), layout.prompts("demonstrations"), layout.benchmark("harder"))
    )
    assert {name: report.num_kept for name, report in reports.items()} == {
        "train": 5,
        "demonstrations": 5,
        "harder": 4,
    }
    assert [row["prompt_id"] for row in train] == [row["prompt_id"] for row in demonstrations]
    assert train[0]["extra_info"]["solution"] != demonstrations[0]["extra_info"]["solution"]
    assert harder[0]["data_source"] == "harder" and harder[0]["extra_info"]["split"] == "harder"
    assert harder[0]["prompt"] == [{"role": "user", "content": harder[0]["extra_info"]["problem"]}]
    assert harder[0]["reward_model"]["style"] == "rule"


def test_held_out_problems_are_dropped_from_training_and_the_counts_add_up(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [*ROWS, {"problem": "What is 3+3?", "answer": 6}])
    splits = {"train": file_source(path), "validation": file_source(path, limit=1)}
    held_out = {"bench": file_source(write_jsonl(tmp_path / "b.jsonl", ROWS[1:]))}
    report = prepare(config(tmp_path, splits, held_out))["train"]
    assert report.dropped == {"also in bench": 1, "also in validation": 1}
    assert report.num_kept + report.dropped.total() == report.num_read == 3


def test_training_on_nothing_but_held_out_problems_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(UserError, match="Nothing of 'train' is left: .'also in bench': 2"):
        prepare(config(tmp_path, {"train": file_source(path)}, {"bench": file_source(path)}))


def test_a_second_run_writes_nothing_and_a_changed_file_is_refused_with_its_name(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    settings = config(tmp_path, {"train": file_source(path)})
    assert list(prepare(settings)) == ["train"]
    assert prepare(settings) == {}
    write_jsonl(path, ROWS[:1])
    with pytest.raises(UserError, match="inputs.train"):
        prepare(settings)
    assert prepare(config(tmp_path, {"train": file_source(path)}, overwrite=True))["train"].num_kept == 1


def test_a_file_that_has_moved_is_still_the_same_source(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    prepare(config(tmp_path, {"train": file_source(path)}))
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / "a.jsonl")
    assert prepare(config(tmp_path, {"train": file_source(moved)})) == {}


def test_only_names_what_to_prepare_and_unknown_names_are_refused(tmp_path):
    splits = {"train": SourceConfig(limit=3), "pretraining": SourceConfig(split="pretraining", limit=3)}
    assert list(prepare(config(tmp_path, splits, prepare=PrepareConfig(only=["pretraining"])))) == ["pretraining"]
    with pytest.raises(UserError, match="names 'trains' .*did you mean 'train'"):
        prepare(config(tmp_path, splits, prepare=PrepareConfig(only=["trains"])))


def test_nothing_is_written_when_one_of_several_sources_is_malformed(tmp_path):
    good = file_source(write_jsonl(tmp_path / "good.jsonl", ROWS))
    bad = file_source(write_jsonl(tmp_path / "bad.jsonl", [{"text": "p"}]))
    with pytest.raises(UserError, match="bad.jsonl"):
        prepare(config(tmp_path, {"train": good, "other": bad}))
    assert not (tmp_path / "run").exists()


def test_a_name_for_both_a_split_and_a_benchmark_and_an_empty_plan_are_refused(tmp_path):
    with pytest.raises(UserError, match="both a split and a benchmark"):
        prepare(config(tmp_path, {"a": SourceConfig()}, {"a": SourceConfig()}))
    with pytest.raises(UserError, match="no data to prepare"):
        prepare(config(tmp_path))


def test_gold_answers_that_no_response_can_match_are_found(tmp_path):
    assert find_bad_golds(["18", "\\frac{1}{2}", "nan", "18"]) == ["nan"]
    path = write_jsonl(tmp_path / "a.jsonl", [*ROWS, {"problem": "p", "answer": "nan"}])
    report = prepare(config(tmp_path, {}, {"bench": file_source(path)}))["bench"]
    assert (report.num_kept, report.bad_golds) == (3, ("nan",))


def test_the_initial_policy_is_the_configured_one_or_drawn_once_from_the_seed(tmp_path, monkeypatch):
    drawn = []

    def initialize(path, seed):
        path.mkdir(parents=True)
        drawn.append(seed)

    monkeypatch.setattr("verl_ext.embedded.policy.initialize", initialize)
    settings = config(tmp_path, seed=3)
    layout = RunLayout.of(settings.run_dir)
    assert initial_policy(settings, layout) == initial_policy(settings, layout) == layout.run_dir / "initial"
    assert drawn == [3]
    with pytest.raises(UserError, match="another seed than 4"):
        initial_policy(config(tmp_path, seed=4), layout)
    given = Config(run_dir=settings.run_dir, model=ModelConfig(path="somewhere"))
    assert initial_policy(given, layout) == Path("somewhere")


@pytest.mark.parametrize("name", group_options("data"))
def test_every_data_configuration_composes_and_its_built_in_sources_exist(name):
    data = compose([f"data={name}"]).data
    assert data.splits or data.benchmarks
    for source in [*data.splits.values(), *data.benchmarks.values()]:
        if source.source == "embedded":
            small = SourceConfig(split=source.split, style=source.style, noise=source.noise, limit=2)
            assert len(sources.load(small, name).rows) == 2


@pytest.mark.parametrize("name", group_options("model"))
def test_every_model_configuration_composes_with_a_known_prompt_template(name):
    model = compose([f"model={name}"]).model
    assert recipe.prompting.get_template(model.prompt_template)
