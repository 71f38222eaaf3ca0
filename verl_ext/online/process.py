"""verl's trainer as a child process: started, watched, and never left behind."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

from verl_ext import loopback
from verl_ext.console import Progress
from verl_ext.errors import UserError
from verl_ext.online.journal import LOG, STOPPED, read_log

if TYPE_CHECKING:
    from verl_ext.online.run import OnlineRun

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 30.0
_TAIL_BYTES = 3000
_PR_SET_PDEATHSIG = 1


def supervise(run: OnlineRun, start: int, lock: int) -> None:
    """Run verl from round `start` to the end, with progress lines; raises UserError when it stops or stalls.

    `lock` is the descriptor of `locks.hold`: what is left of the child holds it, too.
    """
    resume_from = run.steps_dir / f"step_{start:06d}" / f"global_step_{start}" if start else None
    if resume_from is not None:
        logger.info("%s: resumed after round %d from %s", run.name, start, resume_from)
    (run.output_dir / STOPPED).unlink(missing_ok=True)
    # a directory of its own: short, since Ray's sockets have a path limit, and free of other users' files
    loopback.keep_token_private()
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as ray_dir:
        command = [sys.executable, "-m", "verl.trainer.main_ppo", *run.overrides(resume_from, ray_dir)]
        with open(run.output_dir / "verl.log", "ab") as log:
            process = subprocess.Popen(
                command,
                env={**os.environ, **run.environment()},
                cwd=run.output_dir,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(lock,),
                preexec_fn=_die_with_parent,
            )
        try:
            _watch(run, process, start)
        finally:
            _end(process)


def _die_with_parent() -> None:
    """Linux: the kernel ends this process when the one that started it dies, however that happens.

    By SIGTERM, on which Ray's driver stops its processes; a killed driver leaves Ray's agents behind.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _watch(run: OnlineRun, process: subprocess.Popen[bytes], start: int) -> None:
    progress = Progress(run.name, run.online.num_steps, done=start, unit="rounds")
    done, last_sign = start, time.monotonic()
    while True:
        ended = process.poll() is not None
        records = read_log(run.output_dir / LOG)[done:]
        for record in records:
            _show(progress, record)
            done, last_sign = done + 1, time.monotonic()
        if ended:
            break
        if time.monotonic() - last_sign > run.online.max_idle_seconds:
            raise UserError(
                f"{run.name}: no round was finished within online.max_idle_seconds={run.online.max_idle_seconds:g}, "
                f"so the run was stopped after round {done}. '{run.output_dir / 'verl.log'}' says what it waited for; "
                "the same command continues."
            )
        time.sleep(_POLL_SECONDS)
    if process.returncode:
        raise UserError(_reason(run, process.returncode))


def _reason(run: OnlineRun, code: int) -> str:
    stopped = run.output_dir / STOPPED
    if stopped.exists():
        return stopped.read_text()
    log = run.output_dir / "verl.log"
    tail = log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
    return (
        f"{run.name}: verl's trainer ended with code {code}; the same command goes on from the last checkpoint. "
        f"The end of its log, '{log}':\n{tail}"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop the child if it still runs; Ray's processes end with it."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _show(progress: Progress, record: dict[str, Any]) -> None:
    progress.advance(
        reward=record["reward"],
        entropy=record["entropy"],
        response_length=record["response_length"],
        tokens_per_second=round(record["tokens_per_second"]),
    )
