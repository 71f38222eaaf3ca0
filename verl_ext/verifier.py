r"""The verifier: is a response's answer the gold answer? One for curation, for evaluation and for online rewards.

`judge(pairs)` and `Verifier.judge(pairs)` take pairs (response, gold) and return verdicts in their order:

| verdict       | meaning                                                             | about the model |
|---------------|---------------------------------------------------------------------|-----------------|
| `correct`     | the final box holds the gold answer                                 | yes             |
| `incorrect`   | it holds another answer                                             | yes             |
| `no_answer`   | there is no box, or an empty or unfinished one                      | yes             |
| `unparseable` | what it holds is not mathematics, or nothing that a problem asks for| yes             |
| `timeout`     | the comparison used up its CPU time, in a process with nothing else | no              |
| `memory`      | likewise its memory                                                 | no              |
| `crash`       | the process died, three times                                       | no              |
| `bad_gold`    | the gold answer is empty, `nan` or does not parse                   | no              |

A verdict is a function of (response, gold, versions): not of load, order, neighbours or the number of workers. Text
rules (`answers`, `equivalence`) decide most pairs; the rest goes to math-verify in processes that can be killed
(`verifier_pool`, `verifier_process`). Callers may be threads, asyncio executors or Ray actors.
"""

from __future__ import annotations

import importlib.metadata
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from verl_ext import answers, equivalence
from verl_ext.errors import UserError
from verl_ext.verifier_pool import Limits, Request, Slot, Zygote, run

__all__ = ["FAILURES", "VERDICTS", "Limits", "Verdict", "Verifier", "compute_score", "judge", "version"]

VERDICTS = ("correct", "incorrect", "no_answer", "unparseable", "timeout", "memory", "crash", "bad_gold")
FAILURES = ("timeout", "memory", "crash")  # of the verifier; neither these nor `bad_gold` say anything of a model
_BATCH_SIZE = 16  # requests with one gold that go to one judge, which parses the gold once
_MAX_REMEMBERED = 100_000
_REWARD_WORKERS = 2  # in each process that computes rewards online

_Key = tuple[str, str | None]  # cleaned gold and answer


@dataclass(frozen=True)
class Verdict:
    """What became of one pair."""

    verdict: str  # one of VERDICTS
    prediction: str | None  # what the final box holds, at most MAX_ANSWER_CHARS characters
    seconds: float  # CPU time of the comparison; equal answers share one

    @property
    def reward(self) -> float:
        """1.0 if correct, else 0.0."""
        return float(self.verdict == "correct")


class Verifier:
    """A verification service with `num_workers` judging processes; several threads may call `judge` at once."""

    def __init__(self, num_workers: int = 1, limits: Limits | None = None):
        if num_workers < 1:
            raise UserError(f"num_workers is {num_workers}; the verifier needs at least 1.")
        self.limits = limits or Limits()
        self._owner = os.getpid()
        self._zygote = Zygote(self.limits)
        self._slots: queue.LifoQueue[Slot] = queue.LifoQueue()
        for index in range(num_workers):
            self._slots.put(Slot(index, self._zygote, self.limits))
        self.num_workers = num_workers
        self._memo: dict[_Key, tuple[str, float]] = {}
        self.close = weakref.finalize(self, self._zygote.close)

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def judge(self, pairs: Iterable[tuple[str, str]]) -> list[Verdict]:
        """Judge pairs of (response, gold), in order. Never raises for what they contain."""
        if os.getpid() != self._owner or not self.close.alive:
            raise RuntimeError("this Verifier is closed, or was made before a fork; make one in each process")
        readings = [_read(response, gold) for response, gold in pairs]
        outcomes: dict[_Key, tuple[str, float]] = {}
        requests: dict[_Key, Request] = {}
        for key in dict.fromkeys(reading.key for reading in readings if reading.verdict is None):
            if known := self._memo.get(key):
                outcomes[key] = known
            else:
                requests[key] = Request(*key)
        self._settle(list(requests.values()))
        outcomes |= {key: (request.verdict, request.seconds) for key, request in requests.items()}
        if len(self._memo) > _MAX_REMEMBERED:
            self._memo = {}
        self._memo.update({key: outcomes[key] for key in requests if outcomes[key][0] not in FAILURES})
        return [reading.conclude(outcomes) for reading in readings]

    def _settle(self, requests: Sequence[Request]) -> None:
        """Have the requests judged by as many processes as are free, at least one."""
        by_gold: dict[str, list[Request]] = {}
        for request in requests:
            by_gold.setdefault(request.gold, []).append(request)
        batches = deque(
            deque(group[start : start + _BATCH_SIZE])
            for group in by_gold.values()
            for start in range(0, len(group), _BATCH_SIZE)
        )
        if not batches:
            return
        slots = [self._slots.get()]
        try:
            while len(slots) < len(batches):
                try:
                    slots.append(self._slots.get_nowait())
                except queue.Empty:
                    break
            run(slots, batches)
        except BaseException:
            for slot in slots:
                slot.reset()
            raise
        finally:
            for slot in slots:
                self._slots.put(slot)


@dataclass(frozen=True)
class _Reading:
    """A pair after the text rules: either its verdict, or what is to be compared."""

    prediction: str | None
    verdict: str | None
    key: _Key = ("", None)

    def conclude(self, outcomes: dict[_Key, tuple[str, float]]) -> Verdict:
        """The verdict, looked up by what was compared where the text rules did not settle it."""
        verdict, seconds = outcomes[self.key] if self.verdict is None else (self.verdict, 0.0)
        return Verdict(verdict, self.prediction, seconds)


def _printable(text: str) -> str:
    """Text that can be written as UTF-8, which a lone surrogate cannot."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _read(response: Any, gold: Any) -> _Reading:
    raw = answers.extract(response) if isinstance(response, str) else None
    prediction = None if raw is None else _printable(raw[: answers.MAX_ANSWER_CHARS])
    truth = answers.clean(gold) if isinstance(gold, str) else None
    if truth is None or equivalence.is_void(truth):
        return _Reading(prediction, "bad_gold")
    answer = None if raw is None else answers.clean(raw)
    if equivalence.read_number(truth) is not None:  # then the gold is sound, and most answers are settled here
        if raw is None:
            return _Reading(prediction, "no_answer")
        if answer is None:
            return _Reading(prediction, "unparseable")
        equal = equivalence.decide(truth, answer)
        if equal is not None:
            return _Reading(prediction, "correct" if equal else "incorrect")
    if raw is not None and answer is None:
        answer = ""  # unreadable; but whether the gold is sound comes first
    return _Reading(prediction, None, (truth, answer))


_shared: dict[tuple[int, int, Limits], Verifier] = {}
_shared_lock = threading.Lock()


def judge(
    pairs: Iterable[tuple[str, str]],
    *,
    num_workers: int = 1,
    cpu_seconds: float = 3.0,
    memory_bytes: int = 1 << 30,
) -> list[Verdict]:
    """Judge pairs of (response, gold) with a verifier that this process keeps for the purpose; see `Verifier`."""
    limits = Limits(cpu_seconds=cpu_seconds, memory_bytes=memory_bytes)
    key = (os.getpid(), num_workers, limits)
    with _shared_lock:
        if key not in _shared:
            _shared[key] = Verifier(num_workers, limits)
    return _shared[key].judge(pairs)


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **_: Any
) -> dict[str, float]:
    """verl's custom reward function: `reward.custom_reward_function.path=<this file>`; the score is 1.0 or 0.0."""
    (verdict,) = judge([(solution_str, ground_truth)], num_workers=_REWARD_WORKERS)
    return {
        "score": verdict.reward,
        "acc": verdict.reward,
        "verifier_failed": float(verdict.verdict in FAILURES),
        "answered": float(verdict.verdict != "no_answer"),
    }


def version() -> str:
    """What a verdict depends on besides the pair: these rules and the algebra below them."""
    packages = ("math-verify", "latex2sympy2_extended", "sympy")
    return ", ".join([f"rules {answers.RULES_VERSION}", *(f"{p} {importlib.metadata.version(p)}" for p in packages)])
