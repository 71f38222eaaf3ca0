"""The container files: linted, and consistent with the scripts, the pins and what is in the repository."""

from __future__ import annotations

import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = {"cpu": ROOT / "docker/Dockerfile.cpu", "gpu": ROOT / "docker/Dockerfile"}
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line]
SETUP = (ROOT / "scripts/setup.sh").read_text()
stacks = pytest.mark.parametrize("stack", FILES)


def instructions(stack: str) -> list[tuple[str, str]]:
    """`[("FROM", "python:3.11-slim"), ("RUN", "..."), ...]` without comments, continued lines joined."""
    lines = [line for line in FILES[stack].read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def sources(arguments: str) -> list[str]:
    """What a COPY takes, without its options and its destination."""
    return [word for word in shlex.split(arguments) if not word.startswith("--")][:-1]


def is_ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path, or a directory it is in, out of the build context."""
    parents = [str(place) for place in (Path(path), *Path(path).parents) if place != Path()]
    return any(
        fnmatch.fnmatchcase(place, pattern) or (pattern.startswith("**/") and fnmatch.fnmatchcase(place, pattern[3:]))
        for place in parents
        for pattern in IGNORED
    )


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("this is no git repository: what belongs to the project is not known")
    return listed.stdout.splitlines()


@stacks
def test_hadolint_finds_nothing(stack: str) -> None:
    here = Path(sys.executable).with_name("hadolint")
    hadolint = str(here) if here.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed: scripts/setup.sh --test installs it")
    done = subprocess.run([hadolint, "--no-color", FILES[stack]], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@stacks
def test_every_pardoned_rule_has_its_reason_in_the_line_above(stack: str) -> None:
    lines = FILES[stack].read_text().splitlines()
    pardons = [index for index, line in enumerate(lines) if "hadolint ignore" in line]
    assert pardons
    assert all(re.match(r"# \w", lines[index - 1]) for index in pardons)


@stacks
def test_what_is_copied_exists_and_is_in_the_build_context(stack: str) -> None:
    copied = [source for name, rest in instructions(stack) if name == "COPY" for source in sources(rest)]
    assert "." in copied and "docker" in copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert not is_ignored(source), source


@stacks
def test_the_set_up_comes_before_the_code_and_has_what_it_reads(stack: str) -> None:
    """Editing a recipe installs nothing again: the layer of the set-up depends on no file of code."""
    done = instructions(stack)
    setup = next(index for index, (_, rest) in enumerate(done) if "scripts/setup.sh" in rest.split(" ")[0])
    before = {source for name, rest in done[:setup] if name == "COPY" for source in sources(rest)}
    after = [source for name, rest in done[setup:] if name == "COPY" for source in sources(rest)]
    packages = {"verl_ext/__init__.py", "recipes/__init__.py"}  # an editable installation asks where they are
    assert before == {"pyproject.toml", "docker", "scripts/lib.sh", "scripts/setup.sh", *packages}
    assert after == ["."]
    read = set(re.findall(r"\$root/([\w./]+)", SETUP)) | {"scripts/lib.sh"}
    assert {path.split("/")[0] for path in read} <= {source.split("/")[0] for source in before}


@stacks
def test_an_image_sets_up_its_own_stack_and_runs_what_the_readme_runs(stack: str) -> None:
    done = instructions(stack)
    (setup,) = [rest for name, rest in done if name == "RUN" and rest.startswith("scripts/setup.sh")]
    assert setup.split(" ")[1:] == (["--gpu", "--test"] if stack == "gpu" else ["--test"])
    assert done[-1] == ("CMD", '["scripts/reproduce.sh"]')
    assert "scripts/reproduce.sh" in (ROOT / "README.md").read_text()
    assert [rest for name, rest in done if name == "USER"] == ["$UID"]


@stacks
def test_the_python_of_an_image_is_one_that_the_set_up_takes(stack: str) -> None:
    cpu, gpu = (match.split() for match in re.findall(r"pythons=\(([\d. ]+)\)", SETUP))
    base = next(rest for name, rest in instructions(stack) if name == "FROM")
    if stack == "cpu":
        assert re.fullmatch(r"python:(\d+\.\d+)-slim-\w+", base)[1] in cpu  # type: ignore[index]
        return
    chosen = next(rest for name, rest in instructions(stack) if name == "ENV" and "PYTHON=" in rest)
    version = chosen.partition("PYTHON=python")[2]
    assert version in gpu
    assert f"python{version}-venv" in FILES[stack].read_text()


def test_the_image_has_the_cuda_that_the_pins_are_built_for() -> None:
    base = next(rest for name, rest in instructions("gpu") if name == "FROM")
    major = re.search(r"cuda:(\d+)\.", base)
    assert major is not None
    assert f"cupy-cuda{major[1]}x==" in (ROOT / "docker/requirements-gpu.txt").read_text()


def test_the_build_context_is_the_repository_and_no_more() -> None:
    assert [path for path in tracked() if is_ignored(path)] == []
    for path in (".git/HEAD", ".venv/bin/python", "runs/mine/log.jsonl", "outputs/x", ".mypy_cache/x"):
        assert is_ignored(path), path
    for path in ("verl_ext/__pycache__/a.pyc", "recipes/a.pyc", "verl_offline.egg-info/PKG-INFO", "build/lib/x.py"):
        assert is_ignored(path), path


def test_what_git_ignores_stays_out_of_images_too() -> None:
    lines = (ROOT / ".gitignore").read_text().split()
    for pattern in lines:
        assert is_ignored(pattern.rstrip("/").replace("*", "x")), pattern
