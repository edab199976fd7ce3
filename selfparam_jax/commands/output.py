"""What a command does when its own output cannot be written."""

import os
import sys
from typing import NoReturn

STORAGE = 74  # exit code for a disk that does not keep what is written (EX_IOERR of sysexits.h)


def flush_output() -> None:
    """Ends the process with STORAGE, and a line unless it has one, if what was printed could not be written."""
    try:
        if sys.stdout is not None:  # where it was closed, nothing is printed
            sys.stdout.flush()
    except OSError as error:
        end_unprinted(error, told=getattr(error.__context__, "code", None) == STORAGE)


def end_unprinted(error: OSError, told: bool = False) -> NoReturn:
    """Ends the process after an error of printing; `told` is whether it has been told."""
    # Python flushes once more at its end, and would show a traceback.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not told and not isinstance(error, BrokenPipeError):  # a reader that has gone, as `head` does, is told nothing
        print(f"error: what is printed cannot be written: {error.strerror}; free its disk", file=sys.stderr)
    sys.exit(STORAGE)
