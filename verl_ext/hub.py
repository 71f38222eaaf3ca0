"""A hub id as `model.path`: its files in a directory that every node sees, fetched by the first stage that needs them.

    <models>/Qwen/Qwen2.5-Math-1.5B/               what a stage reads: the needed files of one commit
    <models>/Qwen/Qwen2.5-Math-1.5B/.origin.json   id, commit and sizes; the directory appears with it, whole
    <models>/Qwen/.Qwen2.5-Math-1.5B.<commit>/     a download that ended early; the same command continues it

with `<models>` = model.download_dir, or <run_dir>/models. The directory keeps the model's name, by which learning rates
and published numbers are chosen; lineage records `origin`, never the place. A commit that is whole in the hub's own
cache on this machine is copied from there, also where there is no network. `huggingface_hub` is loaded on use.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_ext import disk, model_files, tokenizer_class
from verl_ext.atomic_files import fsync_directory, write_bytes_atomically
from verl_ext.config import Config, ModelConfig
from verl_ext.errors import UserError
from verl_ext.layout import RunLayout
from verl_ext.locks import hold

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

logger = logging.getLogger(__name__)

ORIGIN = ".origin.json"
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SETTINGS = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")  # configuration and tokenizer
_SAFE, _PICKLED = "model*.safetensors", "pytorch_model*.bin"
_WAIT_SECONDS = 6 * 3600.0  # for another stage of the run that fetches the same model


def is_id(path: str) -> bool:
    """Whether `path` is written like `organisation/name` and is nothing on this machine."""
    return bool(_ID.fullmatch(path)) and not Path(path).exists()


def directory(config: Config) -> Path:
    """Where the model of a hub id is, or will be."""
    models = config.model.download_dir
    root = RunLayout.of(config.run_dir).models if models is None else Path(models).expanduser().resolve()
    return root / config.model.path


def found(config: Config) -> str:
    """`model.path`, or the directory it was fetched into; nothing is fetched."""
    path = config.model.path
    return str(directory(config)) if is_id(path) and directory(config).is_dir() else path


def origin(path: Path | str) -> str | None:
    """`organisation/name@commit` of a directory that was fetched here; None for any other."""
    found = _read_origin(Path(path))
    return f"{found['id']}@{found['commit']}" if found else None


def on_disk(config: Config) -> Config:
    """`config` with a directory as its `model.path`: that of a hub id is fetched where it is not there yet.

    A directory stays, unless every process that loads it would misread its tokenizer (`tokenizer_class`).

    Raises UserError where the hub does not give the model, or the directory holds another revision or lacks a file.
    """
    model = config.model
    if not is_id(model.path):
        if model.revision is not None:
            raise UserError(
                f"model.revision={model.revision} is of a hub id, and model.path='{model.path}' is none. Unset one."
            )
        return replace(config, model=replace(model, path=_readable(config)))
    target = directory(config)
    if not target.exists():
        logger.info("model '%s' is fetched into '%s'", model.path, target)
        with hold(target, _WAIT_SECONDS):
            if not target.exists():
                _fetch(model, target)
    _check(model, target)
    return replace(config, model=replace(model, path=str(target), revision=None))


def _readable(config: Config) -> str:
    """`model.path`, or where transformers would misread its tokenizer, a directory of links that it reads well."""
    source = Path(config.model.path)
    if not config.model.path or not tokenizer_class.misnames(source):
        return config.model.path
    place = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:12]  # models of one name do not share links
    target = RunLayout.of(config.run_dir).models / "links" / place / source.resolve().name
    with hold(target, _WAIT_SECONDS):
        tokenizer_class.link_corrected(source, target)
    logger.info(
        "model '%s': its tokenizer is byte-level and named otherwise; it is read by way of '%s'", source, target
    )
    return str(target)


def _read_origin(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((path / ORIGIN).read_text())
    except (OSError, ValueError):
        return None
    return found


def _check(model: ModelConfig, target: Path) -> None:
    found = _read_origin(target)
    if found is None:
        raise UserError(
            f"'{target}' is where model.path='{model.path}' would be fetched to, and was not made by that. Set "
            "model.path to it, or move it away."
        )
    if model.revision not in (None, found["commit"], found["revision"]):
        raise UserError(
            f"'{target}' holds commit {found['commit']} of '{model.path}' (revision {found['revision'] or 'main'}), "
            f"not model.revision={model.revision}. Choose another run_dir or model.download_dir, or remove it."
        )
    for name, size in found["files"].items():
        path = target / name
        if not path.is_file() or path.stat().st_size != size:
            raise UserError(f"'{path}' is missing or damaged. Remove '{target}': the same command fetches it again.")


def _fetch(model: ModelConfig, target: Path) -> None:
    """Gather the files beside `target`, then rename."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    had_bars = not are_progress_bars_disabled()
    disable_progress_bars()  # our log has lines
    try:
        with _explained(model):
            info = _look_up(model)
            if info is None:
                cached = _in_cache(model.path, model.revision)
                commit, sizes = cached.name, {path.name: path.stat().st_size for path in cached.iterdir()}
            else:
                commit = str(info.sha)
                sizes = {item.rfilename: item.size or 0 for item in info.siblings or ()}
            names = needed(list(sizes), model)
            part = target.with_name(f".{target.name}.{commit}")
            disk.require(target, sum(sizes[name] for name in names), f"model '{model.path}'")
            _fill(part, model.path, commit, names)
            if lacking := model_files.missing(part, model.allow_pickle):
                raise UserError(
                    f"'{model.path}' at commit {commit} lacks {', '.join(lacking[:5])}. Choose another one."
                )
    finally:
        if had_bars:
            enable_progress_bars()
    shutil.rmtree(part / ".cache", ignore_errors=True)  # what huggingface_hub remembers of the download
    if tokenizer_class.misnames(part):
        tokenizer_class.correct(part)
    files = {name: (part / name).stat().st_size for name in names}
    found = {"id": model.path, "commit": commit, "revision": model.revision, "files": files}
    write_bytes_atomically(part / ORIGIN, json.dumps(found, indent=1).encode())
    part.rename(target)
    fsync_directory(target.parent)
    logger.info("model '%s': commit %s, %d files, %.3g GB", model.path, commit, len(names), sum(files.values()) / 1e9)


def needed(names: Sequence[str], model: ModelConfig) -> list[str]:
    """Of a repository's files, those of its top directory that a stage reads: weights once, settings, tokenizer.

    Pickled weights only where there are no others and model.allow_pickle says so; Python files only with
    model.trust_remote_code. Raises UserError for a repository without weights that may be loaded.
    """
    top = sorted(name for name in names if "/" not in name and not name.startswith("."))
    kind = _SAFE
    if not any(fnmatchcase(name, kind) for name in top):
        kind = _PICKLED
        if not any(fnmatchcase(name, kind) for name in top):
            raise UserError(
                f"'{model.path}' has no weights ({_SAFE}) on the hub. Choose a model in the layout of transformers."
            )
        if not model.allow_pickle:
            raise UserError(
                f"'{model.path}' has its weights in pickles alone ({_PICKLED}), which may run code when they are "
                "loaded. Choose a revision with safetensors, or set model.allow_pickle=true."
            )
    index = "model.safetensors.index.json" if kind == _SAFE else "pytorch_model.bin.index.json"
    patterns = (kind, *_SETTINGS, *(("*.py",) if model.trust_remote_code else ()))
    wanted = (name for name in top if any(fnmatchcase(name, pattern) for pattern in patterns))
    return [name for name in wanted if name == index or not name.endswith(".index.json")]


def _look_up(model: ModelConfig) -> ModelInfo | None:
    """What the hub says of the revision; None where this machine does not reach it."""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        return HfApi().model_info(model.path, revision=model.revision, files_metadata=True)
    except (OfflineModeIsEnabled, httpx.TransportError) as error:
        logger.info("the hub is not reached (%s): looking into its cache on this machine", _reason(error))
        return None


def _in_cache(hub_id: str, revision: str | None) -> Path:
    """The snapshot in the hub's cache, which may lack files; LocalEntryNotFoundError where there is none."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(hub_id, revision=revision, local_files_only=True, allow_patterns="config.json"))


def _fill(part: Path, hub_id: str, commit: str, names: Sequence[str]) -> None:
    """Put the files into `part`: from the cache where it has them all, else from the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    part.mkdir(parents=True, exist_ok=True)
    try:
        cached = _in_cache(hub_id, commit)
    except LocalEntryNotFoundError:
        cached = None
    if cached is not None and all((cached / name).is_file() for name in names):
        for name in names:
            shutil.copyfile(cached / name, part / name)
        return
    snapshot_download(hub_id, revision=commit, local_dir=part, allow_patterns=list(names))


@contextmanager
def _explained(model: ModelConfig) -> Iterator[None]:
    """Let what huggingface_hub raises reach the user as a sentence with its remedy."""
    import httpx
    from huggingface_hub import errors

    try:
        yield
    except (httpx.HTTPError, errors.HfHubHTTPError, errors.FileMetadataError, errors.LocalEntryNotFoundError) as error:
        is_absent = isinstance(error, errors.LocalEntryNotFoundError)
        cause = error.__cause__ if is_absent and error.__cause__ is not None else error
        raise UserError(
            f"model.path='{model.path}' is no directory here, and as a hub id {_sentence(cause, model)}"
        ) from None


def _sentence(error: BaseException, model: ModelConfig) -> str:
    from huggingface_hub import errors

    again = "the same command continues."
    if isinstance(error, errors.GatedRepoError):
        return (
            "it is gated: its owner grants access. Accept the terms on its page of the hub, and set HF_TOKEN to a "
            "token of that account, on the node that fetches it."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return "it is unknown to the hub, or private. Correct it, or set HF_TOKEN to a token that may read it."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision '{model.revision}'. Set model.revision to a branch, tag or commit of it."
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            "it is not in the hub's cache on this machine, which does not reach the hub (no network, or HF_HUB_OFFLINE "
            f"is set). Run `hf download {model.path}` where there is a network and the same HF_HOME, or set model.path "
            "to a directory with its files."
        )
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        remedy = "Check what HF_TOKEN may read;" if status in (401, 403) else "Wait a while;"
        return f"the hub answered {status} ({_reason(error)}). {remedy} {again}"
    return f"its download ended early: {_reason(error)}. Look at the network; {again}"


def _reason(error: BaseException) -> str:
    """The first line of what an error says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:200]
