"""What an online run writes down every round, and when it has to stop: plain data, no torch and no verl."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from verl_ext import artifacts, checkpoints, guards
from verl_ext.artifacts import Lineage
from verl_ext.errors import UserError
from verl_ext.verifier import FAILURES, VERDICTS

LOG = "log.jsonl"
STOPPED = "stopped.txt"  # why our trainer ended the run, as the user is to read it
_FORGIVEN_FAILURES = 2  # of the verifier, before the fraction of a short run means something


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the trainer inside verl has to know of the run; travels as JSON."""

    name: str
    output_dir: str
    model_path: str
    prompt_template: str
    trust_remote_code: bool
    num_steps: int
    samples_per_step: int
    max_response_length: int
    end_token_ids: Sequence[int]
    max_log_prob_gap: float  # nats
    max_skipped_steps: int
    max_failure_fraction: float
    keep_last: int
    keep_best: str | None
    lineage: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path | str) -> Plan:
        return cls(**json.loads(Path(path).read_text()))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a run's log.jsonl, one a round; none where there is no log yet."""
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise UserError(f"'{path}' is damaged: {error}. The same command writes it anew from a checkpoint.") from None


def write_log(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Replace log.jsonl as a whole."""
    artifacts.write_bytes_atomically(path, "".join(json.dumps(record) + "\n" for record in records).encode())


def samples_path(output_dir: Path, step: int) -> Path:
    """The samples of one round."""
    return output_dir / "samples" / f"step_{step:06d}.parquet"


class Journal:
    """The log and the samples of a run, and the rules that stop it. Every `check_*` raises UserError."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.output_dir = Path(plan.output_dir)
        self.lineage = Lineage(**plan.lineage)
        self.records: list[dict[str, Any]] = []
        self._gap: dict[str, float] = {}

    def resume(self, step: int) -> None:
        """Take over the log up to round `step`."""
        self.records = read_log(self.output_dir / LOG)[:step]

    def check_count(self, step: int, num_responses: int) -> None:
        """verl goes on with the rest where sampling or judging failed for some responses; we do not."""
        if num_responses != self.plan.samples_per_step:
            raise UserError(
                f"{self.plan.name}: round {step} has {num_responses} responses instead of "
                f"{self.plan.samples_per_step}: sampling or judging failed for the others. "
                f"'{self.output_dir / 'verl.log'}' has the error; the same command continues."
            )

    def check_log_probs(self, step: int, trained: np.ndarray, sampled: np.ndarray) -> None:
        """Compare the trainer's log-probabilities of the sampled tokens with the sampler's own, in nats."""
        gaps = np.abs(np.asarray(trained, dtype=np.float64) - np.asarray(sampled, dtype=np.float64))
        mean, largest = (float(gaps.mean()), float(gaps.max())) if len(gaps) else (math.nan, math.nan)
        self._gap = {"log_prob_gap": mean, "max_log_prob_gap": largest}
        if not mean <= self.plan.max_log_prob_gap:
            raise UserError(
                f"{self.plan.name}: in round {step} trainer and sampler disagree about the {len(gaps)} sampled tokens: "
                f"their log-probabilities differ by {mean:.3g} nats on average ({largest:.3g} at most), more than "
                f"online.max_log_prob_gap={self.plan.max_log_prob_gap:g}. The sampler does not run the trained "
                "weights, or runs them in another precision: the weight sync failed, or the dtypes differ. "
                "Nothing was trained on this round."
            )

    def write(self, step: int, samples: pa.Table, metrics: Mapping[str, Any], seconds: float) -> None:
        """Store a round: its samples, then its line in the log; then check that the run may go on."""
        artifacts.write(samples_path(self.output_dir, step), "samples", samples, self.lineage)
        self.records.append({"step": step, **self._summary(samples), **self._gap, **metrics, "seconds": seconds})
        record = self.records[-1]
        record["tokens_per_second"] = record["num_tokens"] / max(seconds, 1e-9)
        write_log(self.output_dir / LOG, self.records)
        self._check_verifier(record)
        self._check_gradients(record)

    def _summary(self, samples: pa.Table) -> dict[str, Any]:
        rewards = samples["reward"].to_numpy()
        lengths = samples["response_token_ids"].combine_chunks().value_lengths().to_numpy()
        groups: dict[str, list[float]] = {}
        for prompt_id, reward in zip(samples["prompt_id"].to_pylist(), rewards, strict=True):
            groups.setdefault(prompt_id, []).append(float(reward))
        verdicts = Counter(samples["verdict"].to_pylist())
        before = self.records[-1] if self.records else {"num_sampled_tokens": 0, "num_sampled_responses": 0}
        return {
            "reward": float(rewards.mean()),
            "response_length": float(lengths.mean()),
            "truncated_fraction": float(
                np.mean([reason == "length" for reason in samples["finish_reason"].to_pylist()])
            ),
            "all_right_fraction": float(np.mean([min(values) >= 1 for values in groups.values()])),
            "all_wrong_fraction": float(np.mean([max(values) <= 0 for values in groups.values()])),
            "verdicts": {name: verdicts[name] for name in VERDICTS if verdicts[name]},
            "num_responses": len(samples),
            "num_tokens": int(lengths.sum()),
            "num_sampled_tokens": before["num_sampled_tokens"] + int(lengths.sum()),
            "num_sampled_responses": before["num_sampled_responses"] + len(samples),
        }

    def _check_verifier(self, record: Mapping[str, Any]) -> None:
        failed = sum(item["verdicts"].get(name, 0) for item in self.records for name in FAILURES)
        if failed > max(_FORGIVEN_FAILURES, self.plan.max_failure_fraction * record["num_sampled_responses"]):
            raise UserError(
                f"{self.plan.name}: the verifier failed on {failed} of {record['num_sampled_responses']} responses, "
                f"which were trained on as wrong; that is more than verify.max_failure_fraction="
                f"{self.plan.max_failure_fraction}. Give each more (verify.cpu_seconds, verify.memory_gib), or raise "
                "verify.max_failure_fraction."
            )

    def _check_gradients(self, record: Mapping[str, Any]) -> None:
        """verl skips a step whose gradient is not finite, and says so in its log alone."""
        most = self.plan.max_skipped_steps
        broken = [not _has_finite_gradients(earlier) for earlier in self.records]
        in_a_row = len(list(takewhile(bool, reversed(broken))))
        if in_a_row > most or (in_a_row and sum(broken) > max(most, guards.MAX_SKIPPED_FRACTION * self.plan.num_steps)):
            raise UserError(
                f"{self.plan.name}: the gradient was not finite in {in_a_row} rounds in a row, {sum(broken)} in all "
                f"(last: round {record['step']}). Lower online.learning_rate; "
                f"{checkpoints.last_good(self.output_dir / 'steps')}."
            )


def _has_finite_gradients(record: Mapping[str, Any]) -> bool:
    """Of policy and critic; a round that trained one of them alone has no gradient of the other."""
    return all(math.isfinite(record.get(name, 0.0)) for name in ("grad_norm", "critic_grad_norm"))
