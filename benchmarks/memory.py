"""How much memory a benchmark's process has held; imports neither JAX nor torch."""

import pathlib
import re
import resource
import sys


def peak_memory() -> int:
    """The most memory this process has held, in bytes.

    On Linux not `ru_maxrss`: a child process starts with its parent's there, however large that was.
    """
    status = pathlib.Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others KiB
