"""verl's reward function: our verifier, awaited by verl's reward workers.

    reward.custom_reward_function.path=pkg://verl_ext.online.reward

verl awaits one call a response, from an event loop in a Ray actor. Calls that are waiting at the same time are judged
together, in a thread, by processes that can be killed (`verifier`), with pairs of known verdict among them
(`judging.judge_texts`), as `python -m recipes.verify` would with the same `verify.*` settings: the same rubric, the
reward of the row's style, the same memo. Whatever a response contains, its verdict comes back; a broken verifier
raises, which ends the run instead of scoring 0.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from verl_ext import judging
from verl_ext.config import VerifyConfig
from verl_ext.verifier import FAILURES, Verdict, Verifier

STYLE = "reward_style"  # entry of `extra_info` that `reward_manager` adds
_Waiting = tuple[str, str, str, "asyncio.Future[Verdict]"]

_services: dict[tuple[asyncio.AbstractEventLoop, str], RewardService] = {}


class RewardService:
    """Verdicts for responses that arrive one by one; belongs to one event loop."""

    def __init__(self, settings: VerifyConfig, verifier: Verifier | None = None):
        self._settings = settings
        self._rubric = judging.rubric(settings)
        self._verifier = verifier or judging.make_verifier(settings)
        self._waiting: list[_Waiting] = []
        self._task: asyncio.Task[None] | None = None

    async def judge(self, response: str, gold: str, style: str | None = None) -> Verdict:
        """The verdict on one response; RuntimeError when the verifier gets known answers wrong."""
        reward = judging.reward_of(self._settings, style)
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._waiting.append((response, gold, reward, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        await asyncio.sleep(0)  # let the calls that are ready now join
        while self._waiting:
            batch, self._waiting = self._waiting, []
            responses, golds, rewards, futures = (list(column) for column in zip(*batch, strict=True))
            try:
                verdicts = await asyncio.to_thread(
                    judging.judge_mixed, responses, golds, rewards, self._verifier, self._rubric
                )
            except Exception as error:  # each waiting call has to hear of it
                for future in futures:
                    if not future.done():
                        future.set_exception(RuntimeError(f"the verifier failed: {error}"))
                continue
            for future, verdict in zip(futures, verdicts, strict=True):
                if not future.done():  # its call was given up
                    future.set_result(verdict)


async def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, *, verify: str = "{}", **_: Any
) -> dict[str, Any]:
    """What verl calls for every response: `score` 1.0 or 0.0, and the verdict as `samples` artifacts keep it.

    `verify` is the `verify.*` section as JSON.
    """
    key = (asyncio.get_running_loop(), verify)
    if key not in _services:
        _services[key] = RewardService(VerifyConfig(**json.loads(verify)))
    verdict = await _services[key].judge(solution_str, ground_truth, (extra_info or {}).get(STYLE))
    return {
        "score": verdict.reward,
        "verdict": verdict.verdict,
        "prediction": verdict.prediction,
        "verdict_seconds": verdict.seconds,
        "verifier_failed": float(verdict.verdict in FAILURES),
    }
