"""What every command does the same way: quiet libraries, one line for an error, an exit code."""

import logging as standard_logging
import pathlib
import sys
from collections.abc import Callable

from absl import logging

from selfparam_jax.processes import end


def _is_news(record: standard_logging.LogRecord) -> bool:
    """Our own log lines and everybody's warnings; libraries tell a lot about their insides."""
    ours = pathlib.Path(record.pathname).parent == pathlib.Path(__file__).parent
    return ours or record.levelno >= standard_logging.WARNING


def run(function: Callable, *args):
    """Returns what the function returns; ends the process for what a user can do something about.

    Exit code 1 with one line for input that cannot be used or a loss that is not finite, 130 for a stop
    that was asked for. Anything else is our mistake and shows its traceback.
    """
    logging.get_absl_handler().addFilter(_is_news)
    try:
        return function(*args)
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        end(130)
    except (ValueError, OSError, ArithmeticError) as error:
        logging.debug("traceback", exc_info=True)  # shown with --verbosity=1
        print(f"error: {error}", file=sys.stderr)
        end(1)
