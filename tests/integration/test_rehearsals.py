"""Experiments at a paper's size, in toy sizes: every stage on stand-ins of the three architecture classes.

A cover of what the whole grid (every experiment with every class) runs; that is in configs/experiment/rehearsals.md.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from verl_ext import artifacts, prompting
from verl_ext.rehearsal.data import NUM_BENCHMARK_PROBLEMS

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ("math500", "minerva_math", "olympiadbench", "aime24", "amc23")
K = 2  # samples a problem
OF_OWN_SAMPLES = ("rollout", "verify", "curate", "train dpo-seed0", "train grpo-seed0", "evaluate dpo-seed0")


def rehearse(run_dir: Path, *overrides: str) -> Path:
    """The run directory of a finished rehearsal."""
    command = [sys.executable, "-m", "recipes.rehearse", f"run_dir={run_dir}", *overrides]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, env=os.environ)
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-4000:]
    return run_dir / "rehearsal"


def weights(directory: Path) -> dict[str, Any]:
    files = sorted(directory.glob("*.safetensors"))
    found: dict[str, torch.Tensor] = {}
    for file in files:
        found |= {name: value.float() for name, value in load_file(file).items()}
    return found


def assert_trained(run: Path, rows: Sequence[str], model: str) -> None:
    """Two steps each, to weights that are finite, of the stand-in's shapes, and those of no other row."""
    start = weights(run / "stand_ins" / "models" / model)
    seen = [start]
    for row in rows:
        steps = (run / "train" / f"{row}-seed0" / "log.jsonl").read_text().splitlines()
        assert len(steps) == 2
        found = weights(run / "train" / f"{row}-seed0" / "huggingface")
        assert {name: value.shape for name, value in found.items()} == {n: value.shape for n, value in start.items()}
        assert all(torch.isfinite(value).all() for value in found.values())
        assert all(any(not torch.equal(found[name], other[name]) for name in found) for other in seen), row
        seen.append(found)


def assert_evaluated(run: Path, row: str, model: str) -> None:
    """Every problem has its samples, asked in the text that was meant, and the family's tokens end them."""
    tokenizer = prompting.read_tokenizer(run / "train" / f"{row}-seed0" / "huggingface")
    for name in BENCHMARKS:
        samples = artifacts.read(run / "evaluate" / f"{row}-seed0" / f"{name}.parquet", "samples").to_pylist()
        assert len(samples) == NUM_BENCHMARK_PROBLEMS * K
        assert {item["verdict"] for item in samples} <= {"correct", "incorrect", "no_answer"}
        boxed = [item for item in samples if item["response"].startswith("It leaves \\boxed{")]
        ended = [item for item in samples if item["finish_reason"] == "stop"]
        assert min(len(boxed), len(ended)) >= 0.75 * len(samples)
        asked = tokenizer.decode(samples[0]["prompt_token_ids"])
        assert " leave when divided by 4?" in asked, asked


def assert_tabulated(run: Path, rows: Sequence[str]) -> None:
    with open(run / "results" / "table.csv") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) >= len(rows) + 1  # and the base policy
    record = json.loads((run / "rehearsal.json").read_text())
    assert record["stages"][0] == "prepare" and record["stages"][-1] == "tabulate"


@pytest.mark.timeout(1000)
def test_deepseeks_class_as_the_papers_code_ran(tmp_path: Path) -> None:
    """LlamaForCausalLM with a head for each key, a byte-level tokenizer under another name, bf16 weights, paper_v1."""
    run = rehearse(tmp_path, "experiment=dft_math", "model=deepseek_math_7b", "fidelity=paper")
    rows = ("sft", "dft", "iw_sft")
    assert_trained(run, rows, "deepseek-math-7b-base")
    for row in rows:
        assert_evaluated(run, row, "deepseek-math-7b-base")
    assert_tabulated(run, rows)


@pytest.mark.timeout(1000)
def test_qwens_class_with_adapters_on_two_ranks(tmp_path: Path) -> None:
    run = rehearse(tmp_path, "experiment=dft_lora", "model=qwen2_5_math_1_5b", "rehearse.num_ranks=2")
    assert_trained(run, ("sft", "dft"), "Qwen2.5-Math-1.5B")
    for row in ("sft", "dft"):
        assert_evaluated(run, row, "Qwen2.5-Math-1.5B")
    assert_tabulated(run, ("sft", "dft"))
    assert json.loads((run / "rehearsal.json").read_text())["num_ranks"] == 2


@pytest.mark.timeout(1000)
def test_llamas_class_on_its_own_samples_and_online(tmp_path: Path) -> None:
    """With Llama 3's scaled rotary embedding, and a BOS that its tokenizer adds: DPO and GRPO of one experiment."""
    quoted = ",".join(f"'{name}'" for name in ("prepare", *OF_OWN_SAMPLES, "evaluate grpo-seed0"))
    run = rehearse(tmp_path, "experiment=dft_offline", "model=llama3_2_3b", f"experiment.stages=[{quoted}]")
    assert_trained(run, ("dpo", "grpo"), "Llama-3.2-3B")
    for row in ("dpo", "grpo"):
        assert_evaluated(run, row, "Llama-3.2-3B")
    samples = artifacts.read(run / "samples.parquet", "samples").to_pylist()
    assert len(samples) == 48 * 4 and {item["verdict"] for item in samples} >= {"correct", "incorrect"}
    pairs = artifacts.read(run / "pairs.parquet", "pairs")
    assert pairs.num_rows > 0
