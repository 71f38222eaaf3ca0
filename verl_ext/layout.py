"""Where a run keeps its artifacts. Stages that are given no paths use these."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunLayout:
    """The directory of one experiment."""

    run_dir: Path

    @classmethod
    def of(cls, run_dir: str | Path) -> RunLayout:
        """Absolute, since Ray workers run in directories of their own."""
        return cls(Path(run_dir).expanduser().resolve())

    @property
    def models(self) -> Path:
        """Models that were named by their hub id, each at `<organisation>/<name>`."""
        return self.run_dir / "models"

    def prompts(self, split: str) -> Path:
        return self.run_dir / "prompts" / f"{split}.parquet"

    def benchmark(self, name: str) -> Path:
        return self.run_dir / "prompts" / "benchmarks" / f"{name}.parquet"

    @property
    def rollouts(self) -> Path:
        return self.run_dir / "rollouts.parquet"

    @property
    def samples(self) -> Path:
        return self.run_dir / "samples.parquet"

    def positives(self, source: str) -> Path:
        return self.run_dir / "positives" / f"{source}.parquet"

    @property
    def pairs(self) -> Path:
        return self.run_dir / "pairs.parquet"

    @property
    def judged(self) -> Path:
        return self.run_dir / "judged.parquet"

    def training_data(self, kind: str, source: str) -> Path:
        """The artifact that a method which trains on `kind` (positives, pairs, samples) reads."""
        return {"pairs": self.pairs, "samples": self.judged}.get(kind, self.positives(source))

    def checkpoint(self, row: str, seed: int) -> Path:
        return self.run_dir / "train" / f"{row}-seed{seed}"

    def evaluation(self, row: str, seed: int, benchmark: str, step: int | None = None) -> Path:
        """Of the final weights, or of those after `step`."""
        directory = self.run_dir / "evaluate" / f"{row}-seed{seed}"
        return (directory if step is None else directory / f"step_{step:06d}") / f"{benchmark}.parquet"

    @property
    def results_dir(self) -> Path:
        return self.run_dir / "results"

    @property
    def resources(self) -> Path:
        """Time and memory of every run of the whole experiment, one line each."""
        return self.run_dir / "resources.jsonl"
