"""Rollouts to samples: every response gets its verdict, whether it was just sampled, stored, or brought by a user."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from verl_ext import artifacts, verifier
from verl_ext.config import VerifyConfig
from verl_ext.errors import UserError
from verl_ext.verifier import FAILURES, Limits, Verdict, Verifier

logger = logging.getLogger(__name__)

PACKAGES = ("math-verify", "latex2sympy2_extended", "sympy")
_NUM_EXAMPLES = 3
_EXAMPLE_CHARS = 80
_probe_numbers = itertools.count(1)


def versions() -> dict[str, str]:
    """What verdicts depend on, for the lineage of samples."""
    return {name: artifacts.package_version(name) for name in PACKAGES} | {"verifier": verifier.version()}


def limits(settings: VerifyConfig) -> Limits:
    """The limits of one judgement as configured."""
    return Limits(cpu_seconds=settings.cpu_seconds, memory_bytes=round(settings.memory_gib * 2**30))


def to_samples(rollouts: pa.Table, verifier: Verifier) -> pa.Table:
    """Judge a table of rollouts and return it as samples, in the same order; see `judge_texts`."""
    verdicts = judge_texts(rollouts["response"].to_pylist(), rollouts["ground_truth"].to_pylist(), verifier)
    return append_verdicts(rollouts, verdicts)


def judge_texts(responses: list[str], golds: list[str], verifier: Verifier) -> list[Verdict]:
    """Judge responses against golds, in order.

    Pairs whose verdict is known travel along. Raises RuntimeError if one of them comes back with another verdict (all
    right, all wrong, shifted by a row): then no verdict of this call can be trusted.
    """
    number = next(_probe_numbers)
    right, wrong = (rf"Thus \(\boxed{{{number} + t}}\).", f"t+{number}"), (rf"\boxed{{{number} - t}}", f"t+{number}")
    pairs = [right, wrong, *zip(responses, golds, strict=True), wrong, right]
    first, second, *verdicts, last_but_one, last = verifier.judge(pairs)
    probed = [verdict.verdict for verdict in (first, second, last_but_one, last)]
    if probed != ["correct", "incorrect", "incorrect", "correct"]:
        raise RuntimeError(f"the verifier is broken: probes came back as {probed}; {verifier.num_workers} workers")
    return verdicts


def append_verdicts(rollouts: pa.Table, verdicts: Iterable[Verdict]) -> pa.Table:
    """Rollouts with the columns that make them samples."""
    verdicts = list(verdicts)
    columns: Mapping[str, list[Any]] = {
        "prediction": [verdict.prediction for verdict in verdicts],
        "verdict": [verdict.verdict for verdict in verdicts],
        "verdict_seconds": [verdict.seconds for verdict in verdicts],
        "reward": [verdict.reward for verdict in verdicts],
    }
    for name, values in columns.items():
        rollouts = rollouts.append_column(artifacts.SCHEMAS["samples"].field(name), pa.array(values, _type(name)))
    return rollouts


def _type(name: str) -> pa.DataType:
    return artifacts.SCHEMAS["samples"].field(name).type


def summary(counts: Counter[str]) -> str:
    """`480 in: 444 correct, 28 incorrect, 8 bad_gold`."""
    found = [f"{counts[name]} {name}" for name in verifier.VERDICTS if counts[name]]
    return f"{counts.total()} in: {', '.join(found) or 'nothing'}"


def check_failures(shards: Iterable[pa.Table], max_fraction: float) -> Counter[str]:
    """Count the verdicts; raises UserError when the verifier failed on more than `max_fraction` of the rows."""
    counts: Counter[str] = Counter()
    examples: list[str] = []
    for table in shards:
        counts.update(table["verdict"].to_pylist())
        examples.extend(itertools.islice(_failures(table), _NUM_EXAMPLES - len(examples)))
    failed = sum(counts[name] for name in FAILURES)
    if failed > max_fraction * counts.total():
        raise UserError(
            f"The verifier failed on {failed} of {counts.total()} responses ({summary(counts)}), more than "
            f"verify.max_failure_fraction={max_fraction}; for example {'; '.join(examples)}. Give each more "
            "(verify.cpu_seconds, verify.memory_gib), or raise verify.max_failure_fraction to go on without them."
        )
    if counts["bad_gold"]:
        logger.warning("%d responses belong to problems whose gold answer does not parse", counts["bad_gold"])
    return counts


def _failures(samples: pa.Table) -> Iterator[str]:
    columns = [samples[name].to_pylist() for name in ("sample_id", "verdict", "prediction", "ground_truth")]
    for sample_id, verdict, prediction, gold in zip(*columns, strict=True):
        if verdict in FAILURES:
            shown = ascii(prediction)[:_EXAMPLE_CHARS]  # a model's text may hold terminal escapes
            yield f"{sample_id}: {verdict} on {shown} for {ascii(gold)[:_EXAMPLE_CHARS]}"
