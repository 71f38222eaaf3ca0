"""The recipe as a whole, without Ray: what it prints, how it ends, and what it does not load."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from verl_ext import compose

ROOT = compose.CONFIG_DIR.parent
PROGRAM = """
import runpy, sys
sys.argv = ["recipe", *{arguments!r}]
code = 0
try:
    runpy.run_module("recipes.{recipe}", run_name="__main__")
except SystemExit as end:
    code = end.code
loaded = [name for name in ("torch", "vllm", "ray", "verl", "transformers", "huggingface_hub") if name in sys.modules]
sys.exit(99 if loaded else code)
"""


def run(recipe: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(recipe=recipe, arguments=list(arguments))
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)


def test_the_embedded_experiment_is_looked_at_without_loading_the_stack(tmp_path: Path) -> None:
    done = run("doctor", "doctor.ray=false", "cluster.device=cpu", f"run_dir={tmp_path}", "doctor.ports=[9]")
    *lines, summary = done.stdout.splitlines()
    levels = {line.split(":")[0].split()[-1]: line.split()[0] for line in lines}
    assert {"versions", "disk", "upload"} <= levels.keys(), "these are the machine's"
    assert {levels[check] for check in ("antlr", "attention", "model", "experiment", "ports", "ray")} == {"ok"}
    assert done.returncode == ("error" in levels.values()), done.stdout + done.stderr
    assert summary.endswith("error(s)")


def test_an_error_is_said_with_its_remedy_and_ends_with_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = run("doctor", "doctor.ray=false", f"run_dir={tmp_path}", "model.path=nobody/nothing")
    assert done.returncode == 1, done.stdout + done.stderr
    errors = [line for line in done.stdout.splitlines() if line.startswith("error") and "nobody/nothing" in line]
    assert len(errors) == 2, "there is no network to fetch it by, and the plan does not know the model"
    assert "Remedy: unset it, or run `hf download nobody/nothing`" in errors[0]
    assert "Traceback" not in done.stderr


def test_a_model_that_was_fetched_is_looked_at_where_it_is(tmp_path: Path) -> None:
    target = tmp_path / "models" / "tiny" / "policy"
    shutil.copytree(ROOT / "verl_ext" / "embedded" / "base_policy", target)
    settings = ["doctor.ray=false", "cluster.device=cpu", f"run_dir={tmp_path}", "model.path=tiny/policy"]
    done = run("doctor", *settings, "model.prompt_template=problem-only")
    levels = {line.split(":")[0].split()[-1]: line.split()[0] for line in done.stdout.splitlines()[:-1]}
    assert (levels["model"], levels["experiment"]) == ("ok", "ok"), done.stdout + done.stderr
    assert f"'{target}', weights of" in done.stdout


def test_a_plan_is_written_without_loading_the_stack(tmp_path: Path) -> None:
    done = run("plan", f"run_dir={tmp_path}", "scale=smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    heading = done.stdout.splitlines()[0].split("\t")
    assert heading[:4] == ["stage", "runs", "steps", "tokens"]
    assert "train dft" in done.stdout and "Smallest difference to the baseline" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"plan.md", "plan.json"}
