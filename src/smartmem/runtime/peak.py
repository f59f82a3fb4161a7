"""How much memory this process took."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_bytes() -> int:
    """Most memory that this process had at once, files mapped into it included.

    Linux's ru_maxrss starts at what the parent had when it forked; VmHWM is of this program alone.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
