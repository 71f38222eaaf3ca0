"""Stages of an experiment: counted by hand on the embedded one, and made for every experiment that is shipped."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from verl_ext import compose
from verl_ext.config import SourceConfig
from verl_ext.errors import UserError
from verl_ext.experiment import plan as cells_of_experiment
from verl_ext.planning import costs, report
from verl_ext.planning.costs import Row
from verl_ext.planning.estimate import Plan, estimate
from verl_ext.planning.setting import Stage
from verl_ext.planning.sizes import num_rows

EXPERIMENTS = compose.group_options("experiment")
NO_TABLE = "embedded_base"  # trains the shipped policy, for recipes.base_policy
SETTING = ["plan.device=h100", "plan.prompt_tokens=20", "plan.response_tokens=30", "experiment.learning_rates=null"]
ROWS = {
    "base": "{name: base, label: B}",
    "sft": "{name: sft, label: S, method: sft, data: demonstrations}",
    "iw_sft": "{name: iw_sft, label: I, method: iw_sft, data: demonstrations}",
    "psft": "{name: psft, label: P, method: psft, data: demonstrations}",
    "dpo": "{name: dpo, label: D, method: dpo, data: samples}",
    "rft": "{name: rft, label: R, method: rft, data: samples}",
    "grpo": "{name: grpo, label: G, online: {algorithm: grpo}}",
}


def planned(*names: str, overrides: tuple[str, ...] = ()) -> Plan:
    """The embedded experiment with some rows: 512 training problems, 4 benchmarks of 150, 60 steps of 64."""
    rows = f"experiment.rows=[{', '.join(ROWS[name] for name in names)}]"
    config = compose.compose(["experiment=embedded", rows, f"experiment.baseline={names[0]}", *SETTING, *overrides])
    return estimate(config)


def stage(plan: Plan, name: str) -> Stage:
    (found,) = [stage for stage in plan.stages if stage.name == name]
    return found


def test_there_are_experiments() -> None:
    assert len(EXPERIMENTS) > 8 and NO_TABLE in EXPERIMENTS


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_that_is_shipped_is_planned(name: str) -> None:
    config = compose.compose([f"experiment={name}"])
    plan = estimate(config)
    cells = [] if name == NO_TABLE else cells_of_experiment(config)
    assert plan.num_cells == max(1, len(cells))
    named = {found.name for found in plan.stages}
    assert {f"train {cell.row.name}" for cell in cells if cell.is_trained} <= named
    assert {f"evaluate {cell.row.name}" for cell in cells} <= named
    assert 0 < plan.flops < 1e24 and 0 < plan.device_hours < 1e6 and 0 < plan.disk < 1e16
    content = json.loads(report.to_json(plan))
    assert content["config"] == json.loads(json.dumps(compose.to_dict(config)))
    assert f"run_dir: {config.run_dir}" in report.markdown(plan)


def test_training_counts_its_steps_tokens_and_flops() -> None:
    plan = planned("base", "sft", overrides=("experiment.num_seeds=3",))
    found, row = stage(plan, "train sft"), Row(prompt=20, response=30)
    assert (found.runs, found.steps, found.devices) == (3, 60, 1)
    assert found.tokens == 3 * 60 * 64 * 50
    assert found.flops == 3 * 60 * 64 * costs.training_flops(plan.shape, row)
    assert found.device_hours == pytest.approx(found.flops / (989.4e12 * 0.4) / 3600)
    # two kept checkpoints of 16 bytes a parameter, and the published weights
    assert found.disk == 3 * (2 * 16 + 4) * plan.shape.num_parameters
    assert plan.disk == pytest.approx(sum(s.disk for s in plan.stages) + 16 * plan.shape.num_parameters)


def test_epochs_become_steps_as_the_trainer_makes_them() -> None:
    plan = planned("sft", "rft", overrides=("train.num_steps=null", "train.num_epochs=3", "train.batch_size=100"))
    assert stage(plan, "train sft").steps == 3 * 512 // 100
    # 35 % of 4 samples of each problem
    assert stage(plan, "train rft").steps == 3 * round(512 * 4 * 0.35) // 100


def test_a_pair_is_two_rows_and_comes_from_problems_with_both_verdicts() -> None:
    plan = planned("sft", "dpo", overrides=("train.num_steps=null", "train.batch_size=16"))
    found = stage(plan, "train dpo")
    # 1 - 0.35^4 - 0.65^4 of the problems have a right and a wrong one of 4 samples: 412.96 pairs
    pairs = round(512 * (1 - 0.35**4 - 0.65**4))
    assert pairs == 413 and found.steps == 413 // 16
    assert found.tokens == found.steps * 16 * 2 * 50


def test_a_reference_is_scored_once_or_with_every_batch() -> None:
    plan = planned("sft", "iw_sft", "psft", overrides=("experiment.num_seeds=2",))
    forward = costs.forward_flops(plan.shape, Row(prompt=20, response=30))
    scored = stage(plan, "score references")
    assert (scored.runs, scored.tokens, scored.flops) == (1, 512 * 50, 512 * forward)
    assert stage(plan, "train iw_sft").flops == stage(plan, "train sft").flops
    assert stage(plan, "train psft").flops - stage(plan, "train sft").flops == pytest.approx(2 * 60 * 64 * forward)


def test_sampling_and_evaluation_count_prompts_once_and_their_samples() -> None:
    plan = planned("base", "sft", "rft", overrides=("evaluate.k=16", "plan.sampling_tokens_per_second=1000"))
    assert stage(plan, "rollout").tokens == 512 * (20 + 4 * 30)
    evaluated = stage(plan, "evaluate sft")
    assert evaluated.tokens == 600 * (20 + 16 * 30)
    assert evaluated.core_hours == pytest.approx(600 * 16 / 30 / 3600)
    decode = 600 * 16 * 30 / 1000 / 3600
    assert evaluated.device_hours == pytest.approx(decode, rel=1e-3), "the prompts' share is small"


def test_nothing_is_sampled_where_no_row_trains_on_samples() -> None:
    assert not {"rollout", "verify"} & {stage.name for stage in planned("base", "sft", "grpo").stages}


def test_a_curve_is_evaluated_at_each_of_its_points_and_at_the_end() -> None:
    plan = planned("base", "sft", overrides=("experiment.curve_every=10",))
    assert stage(plan, "evaluate sft").tokens == 7 * stage(plan, "evaluate base").tokens


def test_a_round_of_grpo_samples_scores_and_trains() -> None:
    plan = planned("sft", "grpo")
    row, found = Row(prompt=20, response=30), stage(plan, "train grpo")
    prompts = 40 * 64
    trained = costs.training_flops(plan.shape, row) + costs.forward_flops(plan.shape, row)
    expected = prompts * costs.sampling_flops(plan.shape, row, 4) + prompts * 4 * trained
    assert found.steps == 40 and found.flops == pytest.approx(expected)


def test_a_measured_rate_sets_the_hours_of_training() -> None:
    plan = planned("sft", overrides=("plan.training_tokens_per_second=500",))
    assert stage(plan, "train sft").device_hours == pytest.approx(60 * 64 * 50 / 500 / 3600)


def test_what_does_not_fit_is_said_with_its_remedy() -> None:
    overrides = ["experiment=embedded", "model=qwen2_5_math_7b", "data=numina_math", *SETTING[:1], SETTING[-1]]
    one, eight = (estimate(compose.compose([*overrides, f"cluster.ranks_per_node={ranks}"])) for ranks in (1, 8))
    (warning,) = one.warnings
    assert "on each of 1 x h100 of 80 GB, most of it (61 GB) for moments. Raise cluster.ranks_per_node" in warning
    assert eight.warnings == ()
    packed = estimate(
        compose.compose([*overrides, "cluster.ranks_per_node=8", "train.max_tokens_per_micro_batch=40000"])
    )
    assert "for logits. Offline, set train.logits_chunk_tokens=1024" in packed.warnings[0]
    small = estimate(compose.compose([*overrides, "cluster.ranks_per_node=8", "plan.memory_gb=16"]))
    assert "The sampler does not fit: weights of 15 GB" in small.warnings[0]
    assert "device-hours" in report.markdown(one) and "**Warning:**" in report.markdown(one)


def test_offload_makes_room_for_32b_in_training_and_for_7b_beside_the_sampler() -> None:
    s1k, two_stage = ["experiment=iw_sft_s1k", "plan.device=h100"], ["experiment=psft_two_stage", "plan.device=h100"]
    (warning,) = estimate(compose.compose([*s1k, "model.offload=none"])).warnings
    assert "for moments." in warning and warning.endswith("in CPU memory (model.offload=always).")
    assert estimate(compose.compose(s1k)).warnings == ()
    plan = estimate(compose.compose([*two_stage, "model.offload=none"]))
    # 4 bytes of weights and 8 of moments for 7.6e9 parameters on 8 ranks; 85 % of 80 GB are the sampler's
    assert stage(plan, "train sft_grpo").idle == 12 * plan.shape.num_parameters / 8
    (warning,) = plan.warnings
    assert "keeps 11.4 GB of weights and moments on each h100 of 80 GB while it samples" in warning
    assert "beside the sampler's 68 GB. Set model.offload=idle" in warning
    assert estimate(compose.compose(two_stage)).warnings == ()


def test_a_critic_stays_beside_the_sampler_too_and_the_reference_of_a_kl_does_not() -> None:
    overrides = ["experiment=dft_offline", "plan.device=h100", "model.offload=none"]
    plan = estimate(compose.compose([*overrides, "online.kl_coef=0.1"]))
    policy = 12 * plan.shape.num_parameters / 8
    assert (stage(plan, "train grpo").idle, stage(plan, "train ppo").idle) == (policy, 2 * policy)


def test_the_table_has_a_line_for_every_stage_and_their_sum() -> None:
    plan = planned("base", "sft")
    heading, *lines, total = report.rows(plan)
    assert [line[0] for line in lines] == ["train sft", "evaluate base", "evaluate sft"]
    assert {len(line) for line in (heading, *lines, total)} == {len(report.COLUMNS)}
    column = dict(zip(heading, lines[0], strict=True))
    # 60 x 64 rows of 50 tokens; 36 bytes of checkpoints for each of 341,280 parameters
    assert (column["steps"], column["tokens"], column["GB on disk"]) == ("60", "192 k", "0.0123")
    # 341,280 weights of 4 bytes on the one rank, as much for gradients, twice as much for moments
    assert "parameters 0.0014, gradients 0.0014, moments 0.0027" in report.markdown(plan)
    stream = StringIO()
    Console(file=stream, width=200).print(report.table(plan))
    assert "train sft" in stream.getvalue() and "192 k" in stream.getvalue()


def test_rows_are_counted_where_the_data_are_here_and_by_the_configuration_where_not(tmp_path: Path) -> None:
    local = tmp_path / "own.jsonl"
    local.write_text('{"problem": "1+1"}\n\n{"problem": "1+2"}\n')
    assert num_rows("own", SourceConfig(source="file", path=str(local))) == 2
    there = SourceConfig(source="hub", path="somebody/math500", num_rows=500)
    assert num_rows("math500", there) == 500
    assert num_rows("math500", replace(there, limit=60), limit=90) == 60
    assert num_rows("train", SourceConfig(source="hub", path="somebody/many", limit=100_000)) == 100_000
    unknown = SourceConfig(source="hub", path="somebody/problems")
    assert num_rows("own", unknown, given={"own": 7}) == 7
    with pytest.raises(UserError, match=r"How many rows 'own' has is unknown.*Set plan\.rows=\{own: <number>\}"):
        num_rows("own", unknown)
