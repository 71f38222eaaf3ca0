"""The caller's side of the verifier's processes: start the zygote, hand requests to judges, replace those that die."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_ext.verifier_process import MAX_MESSAGE_BYTES

_START_SECONDS, _FORK_SECONDS = 120.0, 30.0
_FIRST_TRY_CPU_SECONDS = 1.0
_MAX_TRIES = {"crash": 3, "killed": 10}  # a judge may also be killed for reasons that are not in the request
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "LANG", "LC_ALL", "TMPDIR")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one judgement may use. Wall time only catches a process that does not run at all."""

    cpu_seconds: float = 3.0
    wall_seconds: float = 120.0
    memory_bytes: int = 1 << 30


@dataclass(eq=False)
class Request:
    """A cleaned answer (None: there is none) to be compared with a cleaned gold, and what became of it."""

    gold: str
    answer: str | None
    verdict: str = ""
    seconds: float = 0.0
    needs_fresh: bool = False
    failures: Counter[str] = field(default_factory=Counter)


class Zygote:
    """A child process that forks judges; started anew should it die."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def fork(self, slot: int) -> tuple[socket.socket, str]:
        """Replace the judge of a slot; returns its socket and what its predecessor died of."""
        with self._lock:
            for _ in range(2):
                if self._process is None or self._process.poll() is not None:
                    self._start()
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                assert self._control is not None
                try:
                    with theirs:
                        socket.send_fds(self._control, [json.dumps({"slot": slot}).encode()], [theirs.fileno()])
                    reply = self._receive(_FORK_SECONDS)
                    return ours, reply["cause"]
                except (OSError, EOFError):
                    ours.close()
                    self._stop()
            raise RuntimeError("the verifier's zygote process dies as soon as it is asked for a judge")

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _start(self) -> None:
        self._stop()
        root = Path(__file__).resolve().parent.parent
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, sys.path)])
        environment["PYTHONHASHSEED"] = "0"  # sympy orders by hash here and there
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        settings = json.dumps({"memory_bytes": self._limits.memory_bytes})
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "verl_ext.verifier_process", str(theirs.fileno()), str(os.getpid()), settings],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        try:
            self._receive(_START_SECONDS)
        except (OSError, EOFError) as error:
            self._stop()
            raise RuntimeError("the verifier's zygote process did not start; its stderr says why") from error

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()  # the zygote ends, and takes its judges along
            self._control = None
        if self._process is not None:
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _receive(self, timeout: float) -> dict[str, Any]:
        assert self._control is not None
        self._control.settimeout(timeout)
        message = self._control.recv(MAX_MESSAGE_BYTES)
        if not message:
            raise EOFError
        return json.loads(message)


class Slot:
    """Room for one judge, which works on one request at a time."""

    def __init__(self, index: int, zygote: Zygote, limits: Limits):
        self._index = index
        self._zygote = zygote
        self._limits = limits
        self._channel: socket.socket | None = None
        self._is_fresh = False
        self._tried_fresh = False
        self._gold_parsed = False
        self._request: Request | None = None
        self._batch: deque[Request] = deque()
        self.deadline = 0.0

    def fileno(self) -> int:
        assert self._channel is not None
        return self._channel.fileno()

    def take(self, batches: deque[deque[Request]]) -> bool:
        """Begin with the next request of the current batch, or of the next one; False when there is none left."""
        if self._batch and self._batch[0].verdict:
            done = self._batch.popleft()
            if done.verdict == "bad_gold":  # a batch shares its gold
                while self._batch:
                    self._batch.popleft().verdict = done.verdict
        if not self._batch:
            if not batches:
                return False
            self._batch = batches.popleft()
        self._send(self._batch[0])
        return True

    def _send(self, request: Request) -> None:
        """Hand over a request. A judge with a past gets a shorter limit: what it says about limits is not believed."""
        if self._channel is None or (request.needs_fresh and not self._is_fresh):
            self._replace()
        assert self._channel is not None
        cpu_seconds = self._limits.cpu_seconds
        if not self._is_fresh:
            cpu_seconds = min(cpu_seconds, _FIRST_TRY_CPU_SECONDS)
        self._tried_fresh, self._is_fresh, self._gold_parsed = self._is_fresh, False, False
        self._request = request
        self.deadline = time.monotonic() + self._limits.wall_seconds
        message = {"gold": request.gold, "answer": request.answer, "cpu_seconds": cpu_seconds}
        with suppress(OSError):  # it died while idle: receive() will find that out and have the request sent again
            self._channel.send(json.dumps(message).encode())

    def receive(self) -> bool:
        """Take a message of the judge; False if it is only about progress."""
        assert self._channel is not None and self._request is not None
        try:
            message = self._channel.recv(MAX_MESSAGE_BYTES)
        except OSError:
            message = b""
        if not message:
            self._fail(self._replace())
            return True
        if "verdict" not in (reply := json.loads(message)):
            self._gold_parsed = True
            return False
        if reply["last"]:
            self.discard()
        self._request.seconds = reply["seconds"]
        if reply["verdict"] == "memory":
            self._fail("memory")
        else:
            self._request.verdict = reply["verdict"]
        return True

    def overrun(self) -> None:
        """The judge did not answer in wall time: replace it."""
        self._replace()
        self._fail("timeout")

    def discard(self) -> None:
        """Drop the judge; the next request gets a new one."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def reset(self) -> None:
        """Forget all work, after an interruption."""
        self.discard()
        self._batch = deque()

    def _replace(self) -> str:
        self.discard()
        self._channel, cause = self._zygote.fork(self._index)
        self._is_fresh = True
        return cause

    def _fail(self, cause: str) -> None:
        """Believe a failure only of a judge that had no past, so that a verdict does not depend on its neighbours."""
        request = self._request
        assert request is not None
        request.needs_fresh = True
        if cause in _MAX_TRIES:
            request.failures[cause] += 1
            if request.failures[cause] == _MAX_TRIES[cause]:
                request.verdict = "crash"
        elif self._tried_fresh:
            request.verdict = cause if self._gold_parsed else "bad_gold"
        if request.verdict == "timeout":
            request.seconds = self._limits.cpu_seconds


def run(slots: Sequence[Slot], batches: deque[deque[Request]]) -> None:
    """Work off all batches: each slot takes one and has its requests judged one after the other."""
    working = [slot for slot in slots if slot.take(batches)]
    while working:
        poll = select.poll()
        for slot in working:
            poll.register(slot.fileno(), select.POLLIN)
        wait = min(slot.deadline for slot in working) - time.monotonic()
        ready = {descriptor for descriptor, _ in poll.poll(max(0.0, wait) * 1000)}
        for slot in list(working):
            if slot.fileno() in ready:
                if not slot.receive():
                    continue
            elif time.monotonic() >= slot.deadline:
                slot.overrun()
            else:
                continue
            if not slot.take(batches):
                working.remove(slot)
