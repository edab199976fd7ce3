"""How much memory a benchmark's process has held; imports neither JAX nor torch."""

import pathlib
import re
import resource
import sys


def status_bytes(field: str) -> int:
    """A size that Linux keeps of this process: "VmRSS", "VmHWM" (the most of it), "RssAnon"."""
    status = pathlib.Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024


def peak_memory() -> int:
    """The most memory this process has held, in bytes.

    On Linux not `ru_maxrss`: a child process starts with its parent's there, however large that was.
    """
    if pathlib.Path("/proc/self/status").exists():
        return status_bytes("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others KiB
