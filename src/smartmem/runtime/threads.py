"""How many threads are worth starting here."""

from __future__ import annotations

import math
import os
from pathlib import Path


def default_threads() -> int:
    """One per physical core that this process may use, within the container's CPU quota; at least 1.

    Two hyperthreads share one set of multipliers: a second thread on a core does not make kernels faster.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
    else:
        allowed = set(range(os.cpu_count() or 1))
    cores = {_siblings(cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota()))


def _siblings(cpu: int) -> str:
    """The hyperthreads of `cpu`'s core, itself included; `cpu` alone where the system does not say."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Whole CPUs that the control group allows (its cpu.max is "quota period" or "max period")."""
    try:
        quota, period = path.read_text().split()[:2]
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return 1 << 30
