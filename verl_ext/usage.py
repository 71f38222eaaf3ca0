"""CPU time and memory of the calling process, for benchmarks."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What the process has used so far."""

    cpu_seconds: float  # user and system, all threads
    resident_bytes: int  # now
    peak_bytes: int  # the most it ever had resident


def usage() -> Usage:
    """Usage of this process.

    On Linux the peak is that of the current program (VmHWM): `getrusage` also counts what the parent held when it
    forked, so a small child of a large process would look large.
    """
    if _STATUS.exists():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if line.startswith("Vm"))
        resident, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    else:  # macOS counts bytes
        resident = peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Usage(cpu_seconds=time.process_time(), resident_bytes=resident, peak_bytes=peak)
