"""The pins are complete and consistent, and scripts/setup.sh says what is wrong before it spends minutes."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[a-z0-9,_-]+\])?==(?P<version>[A-Za-z0-9.+]+)")
REQUIREMENTS = {stack: ROOT / f"docker/requirements-{stack}.txt" for stack in ("cpu", "gpu", "test")}
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci/run"]


def read_pins(stack: str) -> list[str]:
    lines = REQUIREMENTS[stack].read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def as_versions(pins: list[str]) -> dict[str, str]:
    matches = [PIN.fullmatch(pin) for pin in pins]
    return {re.sub(r"[-_.]+", "-", m["name"]).lower(): m["version"] for m in matches if m}


@pytest.mark.parametrize("stack", REQUIREMENTS)
def test_every_requirement_is_pinned_to_one_version(stack: str) -> None:
    assert [pin for pin in read_pins(stack) if not PIN.fullmatch(pin)] == []


@pytest.mark.parametrize("stack", ["cpu", "test"])
def test_fully_pinned_lists_are_sorted_and_free_of_duplicates(stack: str) -> None:
    names = [pin.split("==")[0].lower() for pin in read_pins(stack)]
    assert names == sorted(set(names))


def test_the_cpu_stack_leaves_out_what_links_cuda() -> None:
    versions = as_versions(read_pins("cpu"))
    assert {"torchvision", "torchaudio", "torchcodec", "triton", "flash-attn"} & set(versions) == set()
    assert versions["torch"].endswith("+cpu")


def test_test_tools_do_not_repeat_the_pins_of_the_cpu_stack() -> None:
    assert as_versions(read_pins("test")).keys() & as_versions(read_pins("cpu")).keys() == set()


@pytest.mark.parametrize(("extra", "stack"), [("cpu", "cpu"), ("gpu", "gpu"), ("dev", "test")])
def test_the_extras_of_the_project_agree_with_the_requirement_files(extra: str, stack: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated, installed = as_versions(project["optional-dependencies"][extra]), as_versions(read_pins(stack))
    assert stated == {name: installed.get(name) for name in stated}


@pytest.mark.parametrize("stack", ["cpu", "gpu"])
def test_both_stacks_hold_every_dependency_of_the_project(stack: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[\[<>=]", dependency)[0].lower() for dependency in project["dependencies"]}
    implied = {"numpy"} if stack == "gpu" else set()  # pip resolves it for the GPU stack
    assert names - implied <= as_versions(read_pins(stack)).keys()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_shell_script_parses_and_can_be_run(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""
    assert os.access(script, os.X_OK) or script.name == "lib.sh"


def run_setup(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run setup.sh for an environment that does not exist, with pip's configuration and package index cut off."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    isolated = {"VENV": str(tmp_path / "venv"), "PYTHON": sys.executable, "PIP_CONFIG_FILE": os.devnull}
    command = ["bash", str(ROOT / "scripts/setup.sh"), *arguments]
    return subprocess.run(
        command, env=inherited | isolated | environment, capture_output=True, text=True, timeout=60, cwd=tmp_path
    )


def write_program(path: Path, output: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\ncat <<'TEXT'\n{output}\nTEXT\n")
    path.chmod(0o755)
    return path


def with_free_space(tmp_path: Path, kilobytes: int) -> str:
    """Return a PATH whose `df` reports this much free space."""
    header = "Filesystem 1024-blocks Used Available Capacity Mounted on"
    write_program(tmp_path / "bin/df", f"{header}\n/dev/fake 999999999 0 {kilobytes} 1% /")
    return f"{tmp_path / 'bin'}:{os.environ['PATH']}"


def write_index(folder: Path, files: dict[str, str]) -> str:
    """Write a package index of file names only, which is all that a look at the versions reads."""
    for package, file in files.items():
        (folder / package).mkdir(parents=True)
        (folder / package / "index.html").write_text(
            f'<!DOCTYPE html><html><body><a href="{file}">{file}</a></body></html>'
        )
    return folder.as_uri()


def test_an_unknown_option_is_answered_with_the_usage(tmp_path: Path) -> None:
    outcome = run_setup(tmp_path, "--fast")
    assert outcome.returncode == 2
    assert "usage: scripts/setup.sh [--gpu] [--test]" in outcome.stderr


def test_a_python_without_wheels_is_refused_with_the_one_to_install(tmp_path: Path) -> None:
    old_python = write_program(tmp_path / "bin/old-python", "3.8")
    outcome = run_setup(tmp_path, PYTHON=str(old_python))
    assert outcome.returncode == 1
    assert f"pinned for Python 3.11 only: {old_python} is 3.8" in outcome.stderr
    assert "remedy: install Python 3.11" in outcome.stderr
    assert not (tmp_path / "venv").exists()


def test_an_environment_of_the_gpu_stack_stays_one_where_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv/.setup-mark").write_text(f"gpu {tmp_path / 'venv'}\n")
    old_python = write_program(tmp_path / "bin/old-python", "3.8")
    outcome = run_setup(tmp_path, PYTHON=str(old_python))
    assert f"the gpu stack's wheels are pinned for Python 3.11 and 3.12 only: {old_python} is 3.8" in outcome.stderr


needs_the_pinned_platform = pytest.mark.skipif(
    (platform.system(), platform.machine(), sys.version_info[:2]) != ("Linux", "x86_64", (3, 11)),
    reason="setup.sh refuses other platforms than Linux x86_64 with Python 3.11 before it comes to this check",
)


@needs_the_pinned_platform
def test_too_little_disk_space_is_reported_with_the_amount_needed(tmp_path: Path) -> None:
    outcome = run_setup(tmp_path, PATH=with_free_space(tmp_path, kilobytes=300 * 1024))
    assert outcome.returncode == 1
    assert re.search(r"has 300 MB of free disk space, the virtual environment needs \d{4} MB", outcome.stderr)
    assert "set VENV to a directory on another disk" in outcome.stderr


@needs_the_pinned_platform
def test_an_unreachable_index_is_noticed_before_anything_is_built(tmp_path: Path) -> None:
    space = with_free_space(tmp_path, kilobytes=10**8)
    outcome = run_setup(tmp_path, PATH=space, PIP_INDEX_URL="http://127.0.0.1:9", PIP_EXTRA_INDEX_URL="")
    assert outcome.returncode == 1
    assert "the package index is unreachable or has no verl 0.9.1" in outcome.stderr
    assert "PIP_INDEX_URL" in outcome.stderr
    assert not (tmp_path / "venv").exists()


@needs_the_pinned_platform
def test_an_index_with_cuda_builds_only_asks_for_another_one(tmp_path: Path) -> None:
    files = {"verl": "verl-0.9.1-py3-none-any.whl", "torch": "torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl"}
    space = with_free_space(tmp_path, kilobytes=10**8)
    outcome = run_setup(tmp_path, PATH=space, PIP_INDEX_URL=write_index(tmp_path / "index", files))
    assert outcome.returncode == 1
    assert "has no torch 2.13.0+cpu, only CUDA builds" in outcome.stderr
    assert "remedy: TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu" in outcome.stderr
    assert not (tmp_path / "venv").exists()
