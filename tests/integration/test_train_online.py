"""verl's PPO trainer with our verifier, journal, guard and checkpoints, as processes on a CPU: five starts in all."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest

from recipes.evaluate import PROBE
from verl_ext import artifacts, checkpoints, prompting
from verl_ext.compose import CONFIG_DIR
from verl_ext.online.journal import read_log
from verl_ext.prompting import load_tokenizer
from verl_ext.verifier import judge

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(1500)]  # three starts in a fixture

BASE_POLICY = CONFIG_DIR.parent / "verl_ext" / "embedded" / "base_policy"
DEADLINE_SECONDS = 400
RANK = "ray::WorkerDict"  # as Ray titles its process
NUM_PROMPTS, N, NUM_ROUNDS = 8, 4, 6  # rounds enough for two kills to leave some to do


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of prompts."""
    run_dir = tmp_path_factory.mktemp("prompts")
    command = ["recipes.prepare", "experiment=embedded", f"run_dir={run_dir}", "prepare.only=[train]"]
    done = run([*command, f"prepare.limit={NUM_ROUNDS * NUM_PROMPTS}"])
    assert done.returncode == 0, done.stderr
    return run_dir / "prompts" / "train.parquet"


def command_line(prompts: Path, output_dir: Path, *overrides: str) -> list[str]:
    settings = [
        "experiment=embedded",
        f"online.prompts={prompts}",
        f"online.output_dir={output_dir}",
        f"online.prompts_per_step={NUM_PROMPTS}",
        f"online.n={N}",
        f"online.num_steps={NUM_ROUNDS}",
        "online.learning_rate=1e-3",
        "online.warmup_fraction=0",
        "online.save_every=1",
        "online.max_log_prob_gap=0.001",
        "sampler.kv_cache_gib=0.25",
    ]
    return ["recipes.train_online", *settings, *overrides]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=CONFIG_DIR.parent,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    process = start(arguments)
    _, messages = process.communicate(timeout=DEADLINE_SECONDS)
    return subprocess.CompletedProcess(arguments, process.returncode, "", messages)


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline, "the run does not get there"
        time.sleep(0.05)


def processes_of(output_dir: Path) -> list[int]:
    """Live processes that were started for this run: its directory is in their command line or environment."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            text = (directory / "cmdline").read_bytes() + os.readlink(directory / "cwd").encode()
        except OSError:
            continue
        if str(output_dir).encode() in text and int(directory.name) != os.getpid():
            found.append(int(directory.name))
    return found


def check_nothing_is_left(output_dir: Path) -> None:
    """Ray's processes end within moments of their driver, not in the same one."""
    deadline = time.monotonic() + 30
    while processes_of(output_dir) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not processes_of(output_dir), "the run left processes behind"


def rank_of(process: subprocess.Popen[str]) -> psutil.Process:
    """The training rank among the processes that a run has started."""
    ranks = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and child.cmdline()[:1] and child.cmdline()[0].startswith(RANK)
    ]
    assert len(ranks) == 1, ranks
    return ranks[0]


class Killed(NamedTuple):
    """A run that was killed twice and ended."""

    output_dir: Path
    before: list[dict[str, Any]]  # its log when it was killed itself
    said: str  # when its rank was killed


@pytest.fixture(scope="module")
def killed_and_resumed(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """A GRPO run: its rank is killed with -9 after a checkpoint, then itself after one more; then it goes on."""
    output_dir = tmp_path_factory.mktemp("grpo") / "run"
    steps = output_dir / "steps"
    first = start(command_line(prompts, output_dir))
    wait_for((steps / "step_000001" / checkpoints.MANIFEST).exists, first)
    rank_of(first).kill()
    _, said = first.communicate(timeout=DEADLINE_SECONDS)
    assert first.returncode == 2, said
    check_nothing_is_left(output_dir)
    reached = len(read_log(output_dir / "log.jsonl"))
    second = start(command_line(prompts, output_dir))
    wait_for(lambda: newest(steps) > reached, second)
    second.send_signal(signal.SIGKILL)
    second.wait()
    before = read_log(output_dir / "log.jsonl")
    check_nothing_is_left(output_dir)
    third = run(command_line(prompts, output_dir))
    assert third.returncode == 0, third.stderr
    assert re.search(r"resumed after round [2-5] from", third.stderr)
    return Killed(output_dir, before, said)


def newest(steps: Path) -> int:
    """The round of the last finished checkpoint."""
    done = steps.glob(f"step_*/{checkpoints.MANIFEST}")
    return max((int(path.parent.name.removeprefix("step_")) for path in done), default=0)


def test_a_killed_rank_ends_the_run_with_its_cause(killed_and_resumed: Killed) -> None:
    said = killed_and_resumed.said
    assert "verl's trainer ended with code 1; the same command goes on from the last checkpoint" in said
    assert "ActorDiedError" in said


def test_a_killed_run_continues_and_ends_in_a_checkpoint(killed_and_resumed: Killed, prompts: Path) -> None:
    """T2"""
    output_dir, before = killed_and_resumed.output_dir, killed_and_resumed.before
    records = read_log(output_dir / "log.jsonl")
    rounds = list(range(1, NUM_ROUNDS + 1))
    assert [record["step"] for record in records] == rounds
    assert records[:2] == before[:2]
    assert checkpoints.is_intact(output_dir)
    # one epoch: every prompt once, so the resumed run went on where the killed one had stopped
    seen = [set(samples(output_dir, step)["prompt_id"].to_pylist()) for step in rounds]
    assert set.union(*seen) == set(artifacts.read(prompts, "prompts")["prompt_id"].to_pylist())
    # the same command once more has nothing to do, and another one is refused
    again = run(command_line(prompts, output_dir))
    assert again.returncode == 0 and "skipped" in again.stderr
    other = run(command_line(prompts, output_dir, "online.seed=1"))
    assert other.returncode == 2 and "config.online.seed (0, now 1)" in other.stderr
    # a run killed between its last round and the end has only its weights to publish
    published = (output_dir / "huggingface" / "model.safetensors").read_bytes()
    shutil.rmtree(output_dir / "huggingface")
    (output_dir / checkpoints.MANIFEST).unlink()
    last = run(command_line(prompts, output_dir))
    assert last.returncode == 0 and f"all {NUM_ROUNDS} rounds were done before" in last.stderr
    assert (output_dir / "huggingface" / "model.safetensors").read_bytes() == published


def samples(output_dir: Path, step: int) -> Any:
    return artifacts.read(output_dir / "samples" / f"step_{step:06d}.parquet", "samples")


def test_every_sample_is_kept_with_its_verdict(killed_and_resumed: Killed, prompts: Path) -> None:
    output_dir = killed_and_resumed.output_dir
    tokenizer = load_tokenizer(BASE_POLICY, "problem-only")
    messages = {row["prompt_id"]: row["prompt"] for row in artifacts.read(prompts, "prompts").to_pylist()}
    num_tokens = 0
    for record in read_log(output_dir / "log.jsonl"):
        rows = samples(output_dir, record["step"]).to_pylist()
        assert len(rows) == NUM_PROMPTS * N == len({row["sample_id"] for row in rows})
        for row in rows:
            assert row["prompt_token_ids"] == prompting.encode_prompt(tokenizer, messages[row["prompt_id"]])
            assert len(row["behavior_log_probs"]) == len(row["response_token_ids"])
            ended = row["response_token_ids"][-1] == tokenizer.eos_token_id
            assert row["finish_reason"] == ("stop" if ended else "length")
        verdicts = judge([(row["response"], row["ground_truth"]) for row in rows])
        assert [row["verdict"] for row in rows] == [verdict.verdict for verdict in verdicts]
        assert np.mean([row["reward"] for row in rows]) == pytest.approx(record["reward"])
        num_tokens += sum(len(row["response_token_ids"]) for row in rows)
        assert record["num_sampled_tokens"] == num_tokens
        assert 0 <= record["log_prob_gap"] < 1e-4
        assert record["grad_norm"] > 0 and record["entropy"] > 0


def test_the_final_weights_are_trained_and_score_their_probe_alike(
    killed_and_resumed: Killed,
) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    huggingface = killed_and_resumed.output_dir / "huggingface"
    weights, base = load_file(huggingface / "model.safetensors"), load_file(BASE_POLICY / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert json.loads((huggingface / "config.json").read_text())["dtype"] == "float32"
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(weights[name], base[name].float())
    load_tokenizer(huggingface)  # with its chat template
    model: Any = AutoModelForCausalLM.from_pretrained(huggingface, dtype=torch.float32)
    for row in artifacts.read(huggingface / PROBE, "positives").slice(0, 4).to_pylist():
        ids = torch.tensor([row["prompt_token_ids"] + row["response_token_ids"]])
        with torch.no_grad():
            log_probs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        expected = log_probs[len(row["prompt_token_ids"]) - 1 :].tolist()
        assert row["behavior_log_probs"] == pytest.approx(expected, abs=1e-4)


def test_a_broken_weight_sync_stops_one_of_our_methods(prompts: Path, tmp_path: Path) -> None:
    """Round 1 trains by DFT-scaled RAFT; round 2 is sampled with the weights of round 1 again."""
    stale = "online.verl_overrides=['actor_rollout_ref.model.external_lib=tests.integration.broken_sync']"
    done = run(command_line(prompts, tmp_path / "run", "online.loss=raft_dft", stale))
    assert done.returncode == 2
    assert "in round 2 trainer and sampler disagree about the" in done.stderr
    assert "more than online.max_log_prob_gap=0.001" in done.stderr
    (record,) = read_log(tmp_path / "run" / "log.jsonl")
    assert 0 < record["mean_weight"] <= record["reward"] + 1e-6
    assert not (tmp_path / "run" / "huggingface").exists()
    check_nothing_is_left(tmp_path / "run")


@pytest.fixture(scope="module")
def with_brace_token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base policy, whose tokenizer calls `}`, the last character of a boxed answer, a token of its own."""
    path = tmp_path_factory.mktemp("policy") / "base"
    shutil.copytree(BASE_POLICY, path)
    content = json.loads((path / "tokenizer.json").read_text())
    brace = {**content["added_tokens"][0], "id": content["model"]["vocab"]["}"], "content": "}", "special": False}
    content["added_tokens"].append(brace)
    (path / "tokenizer.json").write_text(json.dumps(content))
    (path / checkpoints.MANIFEST).unlink()  # which holds the hash of the other tokenizer
    return path


def test_ppo_trains_a_critic_with_generalised_advantages_on_responses_that_end_where_they_should(
    prompts: Path, tmp_path: Path, with_brace_token: Path
) -> None:
    """The stop tokens of the offline sampler end verl's samples too: here the answer's brace, not only EOS."""
    settings = ["online=ppo", "online.num_steps=2", "online.critic_learning_rate=1e-3", "online.save_every=null"]
    stop = [f"model.path={with_brace_token}", "model.stop=['}']"]
    done = run(command_line(prompts, tmp_path / "run", *settings, *stop))
    assert done.returncode == 0, done.stderr
    tokenizer = load_tokenizer(with_brace_token, "problem-only")
    brace = tokenizer.convert_tokens_to_ids("}")
    assert json.loads((tmp_path / "run" / "generation_config.json").read_text()) == {"eos_token_id": [2, brace]}
    rows = [row for step in (1, 2) for row in samples(tmp_path / "run", step).to_pylist()]
    for row in rows:
        assert {brace, 2}.isdisjoint(row["response_token_ids"][:-1])
        assert row["finish_reason"] == ("stop" if row["response_token_ids"][-1] in (brace, 2) else "length")
    at_brace = [row for row in rows if row["response_token_ids"][-1] == brace]
    assert len(at_brace) > len(rows) / 2 and any(row["verdict"] == "correct" for row in at_brace)
    first, second = read_log(tmp_path / "run" / "log.jsonl")
    for record in (first, second):
        assert record["critic_grad_norm"] > 0 and record["critic_loss"] > 0
        assert record["log_prob_gap"] < 1e-4
    assert (tmp_path / "run" / "steps" / "step_000002" / "global_step_2" / "critic").is_dir()
    assert checkpoints.is_intact(tmp_path / "run")
