"""A hub id as model.path: what is fetched, what is kept, what lineage says, and what a user reads where it fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from recipes import evaluate
from tests.unit.model_hub import BUSY, FORBIDDEN, GATED, GATED_WITHOUT_TOKEN, PRIVATE, Hub, Repository
from verl_ext import artifacts, compose, hub, model_files, prompting
from verl_ext.config import Config, ModelConfig
from verl_ext.errors import UserError

BASE_POLICY = compose.CONFIG_DIR.parent / "verl_ext" / "embedded" / "base_policy"
TEMPLATE = "/{repo_id}/resolve/{revision}/{filename}"
NOBODY = "http://127.0.0.1:9"
OLD, NEW = "0" * 39 + "1", "0" * 39 + "2"
MODEL = {
    name: (BASE_POLICY / name).read_bytes()
    for name in (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    )
}
MODEL["model.safetensors"] = (BASE_POLICY / "model.safetensors").read_bytes()
LEFT_OUT = {
    "README.md": b"read me",
    ".gitattributes": b"",
    "pytorch_model.bin": b"a pickle",
    "pytorch_model.bin.index.json": b"{}",
    "consolidated.safetensors": b"the same weights again",
    "original/params.json": b"{}",
    "modeling.py": b"code",
}


@pytest.fixture
def repository() -> Repository:
    older = {**MODEL, "generation_config.json": b'{"eos_token_id": 0}'}
    return Repository(commits={OLD: older, NEW: {**MODEL, **LEFT_OUT}}, tags={"v1": OLD})


def reached(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What HF_ENDPOINT does when huggingface_hub is loaded."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url + TEMPLATE)


@pytest.fixture
def served(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub that huggingface_hub finds, with an empty cache of its own."""
    with Hub({"tiny/Policy-0.3M": repository}) as running:
        reached(monkeypatch, running.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        yield running


def configured(run_dir: Path, **model: object) -> Config:
    settings = ModelConfig(**{"path": "tiny/Policy-0.3M", "prompt_template": "problem-only", **model})  # type: ignore[arg-type]
    return Config(run_dir=str(run_dir), model=settings)


def test_a_hub_id_becomes_a_directory_of_its_name_with_the_files_that_are_needed(served: Hub, tmp_path: Path) -> None:
    found = hub.on_disk(configured(tmp_path / "run")).model
    assert found.path == str(tmp_path / "run" / "models" / "tiny" / "Policy-0.3M")
    assert {path.name: path.read_bytes() for path in Path(found.path).iterdir() if path.name != hub.ORIGIN} == MODEL
    assert set(served.files()) == set(MODEL) and not any("original" in path for path in served.requests)
    assert hub.origin(found.path) == f"tiny/Policy-0.3M@{NEW}"
    assert model_files.missing(Path(found.path)) == [] and found.revision is None
    # what is there is not asked for again, and nothing but the model is left
    before = list(served.requests)
    assert hub.on_disk(configured(tmp_path / "run")).model == found
    assert served.requests == before
    assert [path.name for path in Path(found.path).parent.iterdir()] == ["Policy-0.3M"]


def test_the_same_id_has_the_same_lineage_wherever_it_was_fetched_to(served: Hub, tmp_path: Path) -> None:
    """T3: neither the directory, nor where the files came from, nor how the revision was named is in it."""
    here = hub.on_disk(configured(tmp_path / "a")).model
    there = hub.on_disk(configured(tmp_path / "b", download_dir=str(tmp_path / "shared"), revision=NEW)).model
    assert there.path == str(tmp_path / "shared" / "tiny" / "Policy-0.3M")
    first, second = (
        artifacts.make_lineage("train", {"model": model.identity()}, {"model": Path(model.path)})
        for model in (here, there)
    )
    assert first == second
    assert first.inputs["model.hub"] == f"tiny/Policy-0.3M@{NEW}"
    assert str(tmp_path) not in first.to_json()
    older = hub.on_disk(configured(tmp_path / "c", revision="v1")).model
    other = artifacts.make_lineage("train", {"model": older.identity()}, {"model": Path(older.path)})
    assert {text.split(" ")[0] for text in other.differences(first)} == {"inputs.model", "inputs.model.hub"}


def test_a_revision_is_pinned_by_tag_or_commit_and_another_one_is_refused_in_its_place(
    served: Hub, tmp_path: Path
) -> None:
    found = hub.on_disk(configured(tmp_path, revision="v1")).model
    assert hub.origin(found.path) == f"tiny/Policy-0.3M@{OLD}"
    assert json.loads((Path(found.path) / "generation_config.json").read_text()) == {"eos_token_id": 0}
    for same in (None, "v1", OLD):
        assert hub.on_disk(configured(tmp_path, revision=same)).model == found
    with pytest.raises(UserError, match=f"holds commit {OLD}.*revision v1.*not model.revision=main.*another run_dir"):
        hub.on_disk(configured(tmp_path, revision="main"))
    with pytest.raises(UserError, match="model.revision=v1 is of a hub id, and model.path='.*' is none"):
        hub.on_disk(configured(tmp_path, path=str(BASE_POLICY), revision="v1"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refuses": PRIVATE}, "is no directory here, and as a hub id it is unknown to the hub, or private.*HF_TOKEN"),
        ({"refuses": GATED_WITHOUT_TOKEN}, "it is gated.*Accept the terms.*set HF_TOKEN"),
        ({"refuses_files": GATED_WITHOUT_TOKEN}, "it is gated.*Accept the terms.*set HF_TOKEN"),
        ({"refuses_files": GATED}, "it is gated.*Accept the terms.*set HF_TOKEN"),
        ({"refuses": BUSY}, "the hub answered 503.*Wait a while; the same command continues"),
        ({"refuses_files": FORBIDDEN}, "the hub answered 403.*Check what HF_TOKEN may read"),
    ],
)
def test_what_the_hub_refuses_is_said_with_its_remedy(
    served: Hub, repository: Repository, tmp_path: Path, changes: dict[str, tuple[int, str]], message: str
) -> None:
    """T4"""
    for name, value in changes.items():
        setattr(repository, name, value)
    with pytest.raises(UserError, match=f"model.path='tiny/Policy-0.3M'.*{message}"):
        hub.on_disk(configured(tmp_path))
    assert not hub.directory(configured(tmp_path)).exists()


def test_an_unknown_model_or_revision_is_said_with_its_remedy(served: Hub, tmp_path: Path) -> None:
    """T4: a mistyped directory of two parts looks like a hub id, so the sentence names both."""
    with pytest.raises(UserError, match="model.path='runs/mine' is no directory here, and as a hub id it is unknown"):
        hub.on_disk(configured(tmp_path, path="runs/mine"))
    with pytest.raises(UserError, match="it has no revision 'v2'. Set model.revision to a branch, tag or commit"):
        hub.on_disk(configured(tmp_path, revision="v2"))


def cut_off(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        reached(monkeypatch, NOBODY)


def test_without_a_network_the_cache_is_asked_and_its_lack_is_said(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T4: HF_HUB_OFFLINE, or a hub that no one answers for; then the same with the files in the hub's cache."""
    from huggingface_hub import snapshot_download

    absent = "not in the hub's cache on this machine, which does not reach the hub.*Run `hf download tiny/Policy-0.3M`"
    for name in ("offline", "unreachable"):
        with monkeypatch.context() as changed:
            cut_off(changed, name)
            with pytest.raises(UserError, match=absent):
                hub.on_disk(configured(tmp_path / name))
    snapshot_download("tiny/Policy-0.3M")
    fetched = len(served.requests)
    for name in ("offline", "unreachable"):
        with monkeypatch.context() as changed:
            cut_off(changed, name)
            found = hub.on_disk(configured(tmp_path / name)).model.path
        assert hub.origin(found) == f"tiny/Policy-0.3M@{NEW}"
        assert {path.name for path in Path(found).iterdir()} == {*MODEL, hub.ORIGIN}
        assert not any(path.is_symlink() for path in Path(found).iterdir()), "the cache is this machine's alone"
    assert len(served.requests) == fetched


def test_what_is_whole_in_the_cache_is_not_downloaded_again_and_what_is_not_is(served: Hub, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    cached = Path(snapshot_download("tiny/Policy-0.3M"))
    files = len(served.files())
    hub.on_disk(configured(tmp_path / "whole"))
    assert len(served.files()) == files
    (cached / "tokenizer.json").unlink()
    found = hub.on_disk(configured(tmp_path / "part")).model.path
    assert (Path(found) / "tokenizer.json").read_bytes() == MODEL["tokenizer.json"]


def test_a_download_that_ended_early_is_continued_and_never_taken_for_whole(
    served: Hub, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T2, T4"""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    repository.cuts = "model.safetensors"
    with pytest.raises(UserError, match="its download ended early: .*Look at the network; the same command continues"):
        hub.on_disk(configured(tmp_path))
    assert hub.found(configured(tmp_path)) == "tiny/Policy-0.3M"
    repository.cuts = None
    served.requests.clear()
    found = Path(hub.on_disk(configured(tmp_path)).model.path)
    assert served.files() == ["model.safetensors"]
    assert (found / "model.safetensors").read_bytes() == MODEL["model.safetensors"]


def test_two_stages_that_start_together_fetch_once(served: Hub, tmp_path: Path) -> None:
    """T21"""
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(hub.on_disk, [configured(tmp_path)] * 2)
    assert first == second
    assert sorted(served.files()) == sorted(MODEL)


def test_a_recipe_reads_the_model_that_it_fetched(served: Hub, tmp_path: Path) -> None:
    """From the command line, with HF_ENDPOINT: a file of responses gets the token ids of its model."""
    rows = [{"problem": "What is 1+1?", "gold": "2", "responses": ["$1+1=2$\n\\boxed{2}"]}]
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "run" / "samples.parquet"
    command = [sys.executable, "-m", "recipes.verify", f"run_dir={tmp_path / 'run'}", f"verify.output={output}"]
    command += [f"verify.input={tmp_path / 'responses.jsonl'}", "model.prompt_template=problem-only"]
    environment = {**os.environ, "HF_ENDPOINT": served.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [*command, "model.path=tiny/Policy-0.3M"],
        env={
            name: value for name, value in environment.items() if name not in ("HF_HUB_CACHE", "TRANSFORMERS_OFFLINE")
        },
        cwd=compose.CONFIG_DIR.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"commit {NEW}, {len(MODEL)} files" in done.stderr and "%|" not in done.stderr, "lines, no bars"
    (row,) = artifacts.read(output, "samples").to_pylist()
    tokenizer = prompting.load_tokenizer(BASE_POLICY, "problem-only")
    assert row["response_token_ids"] == prompting.encode_response(tokenizer, rows[0]["responses"][0])  # type: ignore[index]
    assert str(tmp_path) not in artifacts.read_lineage(output).to_json()


def test_a_checkpoint_to_evaluate_may_be_a_hub_id(served: Hub, tmp_path: Path) -> None:
    """In the model's revision where it is the model, in the newest where it is another; T4: an error names it."""

    def directory(checkpoint: str, **model: object) -> Path:
        return evaluate.checkpoint_directory(configured(tmp_path, **model), "base", checkpoint)

    assert hub.origin(directory("tiny/Policy-0.3M", revision="v1")) == f"tiny/Policy-0.3M@{OLD}"
    shutil.rmtree(tmp_path / "models")
    assert hub.origin(directory("tiny/Policy-0.3M", path="other/model", revision="v1")) == f"tiny/Policy-0.3M@{NEW}"
    with pytest.raises(UserError, match="Checkpoint 'base': model.path='runs/mine' is no directory here"):
        directory("runs/mine")
    assert directory(str(BASE_POLICY)) == BASE_POLICY


def test_a_directory_that_was_damaged_or_not_fetched_is_refused(served: Hub, tmp_path: Path) -> None:
    """T4"""
    found = Path(hub.on_disk(configured(tmp_path)).model.path)
    (found / "config.json").unlink()
    with pytest.raises(UserError, match="config.json' is missing or damaged. Remove '.*': the same command fetches it"):
        hub.on_disk(configured(tmp_path))
    shutil.rmtree(found)
    found.mkdir()
    with pytest.raises(UserError, match="was not made by that. Set model.path to it, or move it away"):
        hub.on_disk(configured(tmp_path))
