"""What every command does the same way: quiet libraries, one line for an error, an exit code, settings by name."""

import argparse
import contextlib
import difflib
import logging as standard_logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NoReturn

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from selfparam_jax.commands.output import STORAGE, flush_output
from selfparam_jax.data.resources import resource
from selfparam_jax.distributed.files import DISK_ERRORS, StorageError
from selfparam_jax.distributed.processes import end
from selfparam_jax.distributed.ranges import Range, shown
from selfparam_jax.jobs.settings import check_names, check_text

USAGE = 2  # exit code for a command line that cannot be read, as argparse has it
AGAIN_S = 0.05  # until a lost stop signal is sent again
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def _is_news(record: standard_logging.LogRecord) -> bool:
    """Our own log lines and everybody's warnings; libraries tell a lot about their insides."""
    return os.path.abspath(record.pathname).startswith(PACKAGE) or record.levelno >= standard_logging.WARNING


def _in_one_line(record: standard_logging.LogRecord) -> bool:
    """Leaves of a library's warning its first line; the rest, and a traceback, are shown with --verbosity=1."""
    ours = os.path.abspath(record.pathname).startswith(PACKAGE)
    if not ours and logging.get_verbosity() < logging.DEBUG:
        record.msg, record.args = (record.getMessage().splitlines() or [""])[0][:300], ()
        record.exc_info = record.exc_text = record.stack_info = None
    return True


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Within it SIGTERM ends a command as Ctrl-C does, with a line; training saves first (`deferred_stop`).

    Python ignores an exception raised in a finalizer or in a callback of its garbage collector (JAX has one): it only
    calls `sys.unraisablehook`. A stop that was lost this way is sent again.
    """

    def interrupt(*_) -> NoReturn:
        raise KeyboardInterrupt("stopped by SIGTERM")

    def lost(unraisable) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            hook(unraisable)
            return
        number = signal.SIGTERM if str(unraisable.exc_value or "") else signal.SIGINT
        threading.Timer(AGAIN_S, os.kill, (os.getpid(), number)).start()

    hook = sys.unraisablehook
    heard = (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if heard:
        signal.signal(signal.SIGTERM, interrupt)
        sys.unraisablehook = lost
    try:
        yield
    finally:
        if heard:
            sys.unraisablehook = hook
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def run(function: Callable, *args):
    """Returns what the function returns; ends the process for what a user can do something about.

    Exit code 1 with one line for input that cannot be used or a loss that is not finite, USAGE for a command line
    that cannot be read, STORAGE for a disk that is full, broken or gone, 130 for a requested stop. Anything else is
    our mistake and shows its traceback.
    """
    if not flags.FLAGS.is_parsed():  # ours are a command's own; unparsed, absl would warn at the first line of a log
        flags.FLAGS.mark_as_parsed()
    logging.use_absl_handler()
    handler = logging.get_absl_handler()
    for each in (_is_news, _in_one_line):
        if each not in handler.filters:
            handler.addFilter(each)
    try:
        with _sigterm_interrupts():
            result = function(*args)
        flush_output()
        return result
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        end(130)
    except (ValueError, OSError, ArithmeticError, MemoryError) as error:
        logging.debug("traceback", exc_info=True)  # shown with --verbosity=1
        full = isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno in DISK_ERRORS)
        print(f"error: {error or 'the memory of this machine is used up'}", file=sys.stderr)
        end(STORAGE if full else USAGE if isinstance(error, UsageError) else 1)
    except RuntimeError as error:
        if "Unable to initialize backend" in str(error):
            logging.debug("traceback", exc_info=True)
            reason = str(error).splitlines()[0][:300]
            print(f"error: {reason}; JAX_PLATFORMS is {os.environ.get('JAX_PLATFORMS', '')!r}", file=sys.stderr)
            end(1)
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        logging.debug("traceback", exc_info=True)
        reason = str(error).splitlines()[0][:200]
        print(f"error: too little memory ({reason}); lower train.batch_size, train.seq_len, train.loss_chunk, "
              "lora.rank or eval.batch_size, or raise train.accumulate", file=sys.stderr)  # fmt: skip
        end(1)


def define_config(values: flags.FlagValues, argv: Sequence[str], default: str | None = None) -> None:
    """Defines --config on some flags.

    Args:
      values: a command's own flags.
      argv: the whole command line, the program's name first: the settings that it names become flags.
      default: a file, or the name of a packaged configuration; None: --config must be given.
    """
    _check_settings(argv)  # with a default, what argv sets is put into it right here
    try:
        config_flags.DEFINE_config_file(
            "config",
            default and find_config(default),
            "Configuration: FILE, FILE:ARGUMENT, or the name of one that comes with the package (batch, single, "
            "...). Every setting can be given as --config.NAME=VALUE.",
            lock_config=True,
            flag_values=values,
            sys_argv=list(argv),
        )
    except flags.Error as error:  # a file of flags that is not there
        raise UsageError(str(error).strip().splitlines()[0]) from error


def find_config(name: str) -> str:
    """The file that a configuration's name means: `batch:quick` is the packaged batch.py with argument quick.

    Raises:
      ValueError: there is no such file, and no packaged configuration of that name.
    """
    file, colon, argument = name.partition(":")
    if os.path.isfile(file):
        return name
    folder = resource("configs")
    stem = file.removeprefix("configs/").removesuffix(".py")
    packaged = folder / f"{stem}.py"
    if packaged.is_file() and not os.path.isabs(file):
        return f"{packaged}{colon}{argument}"
    names = sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.py"))
    known = ", ".join(name for name in names if not name.endswith("__init__") and name != "models/large")
    raise ValueError(f"--config={name}: no such file, expected a file or one of {known}")


def _check_settings(argv: Sequence[str]) -> None:
    """Raises ValueError for a --config.NAME that is no setting, or whose value is not of its type."""
    for place, argument in enumerate(argv[1:], 2):
        flag, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and flag.startswith("config."):
            name, following = flag.removeprefix("config."), argv[place : place + 1]
            check_names([name])
            if equals:
                check_text(name, value)
            elif following and not following[0].startswith("--"):
                check_text(name, following[0])


def parse_flags(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parses a command line; returns what is left of it, the program's name first.

    A configuration is looked up by name; `define_config` has refused settings that do not exist.

    Raises:
      UsageError: a flag that does not exist, or a value that is not possible.
      ValueError: a configuration that cannot be run.
    """
    arguments = list(argv)
    for place, argument in enumerate(arguments):
        flag, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or argument in ("-", "--"):
            continue
        if flag == "config":
            if equals:
                arguments[place] = f"--config={find_config(value)}"
            elif place + 1 < len(arguments):
                arguments[place + 1] = find_config(arguments[place + 1])
    try:
        rest = values(arguments)
        made = values["config"].value if "config" in values else None
        if not isinstance(made, ConfigDict | None) or (made is None and config_name(argv)):
            got = "nothing" if made is None else f"a {type(made).__name__}"
            raise TypeError(f"get_config gave {got}, expected a ConfigDict; end it with 'return config'")
        return rest
    except SystemExit as error:
        if not config_name(argv):
            raise
        raise ValueError(_of_config(argv, f"ends the process ({error!r}), expected a get_config")) from error
    except flags.UnrecognizedFlagError as error:
        raise UsageError(no_flag(f"--{error.flagname}", [f"--{name}" for name in values])) from error
    except flags.Error as error:
        said = str(error).strip().splitlines()
        if len(said) == 1:
            raise UsageError(_in_words(said[0])) from error
        # The loader's message may end with a traceback, whose lines are indented: the error stands after it.
        indented = [place for place, line in enumerate(said) if line.startswith(" ")]
        told = " ".join(said[indented[-1] + 1 :] if indented else said[-1:]) or said[-1].strip()
        raise ValueError(_of_config(argv, told) if config_name(argv) else told) from error
    except Exception as error:  # a configuration is a program of its writer's, and can raise anything
        said = " ".join(f"{type(error).__name__}: {error}".split())
        if not config_name(argv):
            raise UsageError(said) from error
        raise ValueError(_of_config(argv, said)) from error


# Part of absl's message for a bad value, and what the flag takes.
_CONVERSIONS = {"Non-boolean argument": "true or false", "invalid literal for int()": "a whole number"}


def _in_words(said: str) -> str:
    """absl's message about a flag's value, without Python's own words in it."""
    for part, expected in _CONVERSIONS.items():
        if part in said and said.startswith("flag "):
            flag = said.removeprefix("flag ").partition(": ")[0]
            return f"got {flag}, expected {expected}"
    return said


def _of_config(argv: Sequence[str], said: str) -> str:
    """What to say of an error in a configuration, or of a value that does not fit into it."""
    return f"--config={config_name(argv)}: {said[:300]}; correct the file, or what is set in it"


def parse_command(values: flags.FlagValues, argv: Sequence[str], usage: str) -> list[str]:
    """`parse_flags` for a whole command: with --help it prints `usage` and the flags, and ends the process.

    Log lines go to stderr, ours from INFO on; --verbosity=1 shows tracebacks of input errors.
    """
    flags.DEFINE_integer("verbosity", 0, "1 also shows the traceback of an error.", -3, 3, flag_values=values)
    if {"--help", "-h", "-help", "--helpshort"} & set(argv[1:]):
        print(f"{usage}\n\n{_describe_flags(values)}")
        sys.exit(0)
    rest = parse_flags(values, argv)
    logging.set_verbosity(logging.DEBUG if values["verbosity"].value > 0 else logging.INFO)
    return rest


def _describe_flags(values: flags.FlagValues) -> str:
    """The flags of a command, a line each."""
    lines = ["flags:"]
    for name in sorted(values):
        flag = values[name]
        default = "" if flag.default in (None, "", False) or name == "config" else f" (default: {flag.default})"
        lines.append(f"  --{name}: {flag.help}{default}")
    return "\n".join(lines)


def config_name(argv: Sequence[str]) -> str:
    """What --config was given as on a command line; "" if it was not."""
    for place, argument in enumerate(argv):
        flag, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and flag == "config":
            return value if equals else argv[place + 1]
    return ""


def refuse_twice(arguments: Sequence[str], given: str, setting: str) -> None:
    """Raises UsageError if a command line has a setting besides what stands for it."""
    if any(argument.lstrip("-").partition("=")[0] == f"config.{setting}" for argument in arguments):
        raise UsageError(f"got {given} and --config.{setting}, expected one of them; remove one")


def define_dry_run(values: flags.FlagValues) -> None:
    """Defines --dry_run on a command's flags."""
    flags.DEFINE_bool(
        "dry_run", False, "Only list documents, tokens, passages, pairs to write, steps, memory and estimated time. "
        "Nothing is started or written.", flag_values=values,
    )  # fmt: skip


def print_lines(lines: Iterable[str]) -> None:
    """Prints each line as soon as it is there."""
    for line in lines:
        print(line, flush=True)


def no_flag(given: str, known: Iterable[str]) -> str:
    """What to say of a flag that a command does not have."""
    known = sorted(name for name in known if name.startswith("--") and not name.startswith("--config."))
    close = difflib.get_close_matches(given, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"expected {', '.join(known)}"
    return f"there is no flag {given}; {hint}"


class UsageError(ValueError):
    """A command line that cannot be read."""


class Parser(argparse.ArgumentParser):
    """A parser that names the flag that was meant."""

    _given: Sequence[str] = ()

    def parse_known_args(self, args=None, namespace=None):
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def print_help(self, file=None) -> None:
        """Prints the help; argparse's own hides the error of a full disk."""
        print(self.format_help(), end="", file=file)

    def error(self, message: str) -> NoReturn:
        """Ends the process with 2; a flag that does not exist is the likely reason for whatever is missing."""
        known = list(self._option_string_actions)
        for argument in self._given:
            flag = argument.partition("=")[0]
            if flag.startswith("--") and len(flag) > 2 and not any(name.startswith(flag) for name in known):
                message = no_flag(flag, known)
                break
        super().error(message)


def make_parser(verb: str, docstring: str) -> argparse.ArgumentParser:
    """A parser for `selfparam VERB`, with the module's docstring as its help."""
    return Parser(f"selfparam {verb}", description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)


class Number:
    """The type of a flag of `argparse`: a number within a range."""

    def __init__(self, kind: type, within: Range):
        """`kind` is int or float."""
        self.kind, self.within = kind, within

    def __call__(self, text: str) -> float:
        try:
            value = self.kind(text)
        except ValueError:
            value = None
        if value is None or not self.within.has(value, self.kind):
            raise argparse.ArgumentTypeError(f"{shown(text)}, expected {self.within.words(self.kind)}")
        return value


def add_unfinished(parser: argparse.ArgumentParser) -> None:
    """The flag of commands that take the model of a work directory."""
    parser.add_argument(
        "--unfinished", action="store_true", help="also take a model whose training has not ended, as it is"
    )


def refuse_arguments(argv: Sequence[str]) -> None:
    """Raises ValueError if a command line has more than the program's name left."""
    if len(argv) > 1:
        raise ValueError(f"unexpected arguments: {' '.join(argv[1:])}; settings are given as --config.NAME=VALUE")


def print_scores(results: dict) -> None:
    """F1 (or recall) of every system of a job's results, in a line; says so if there was nothing to ask."""
    if results["job"] == "recommend":
        found = results["recommend"]["scores"]
        recalls = {
            name: variants["filtered_True_exclude_seen_False"]["all"]["recall@20"][0]
            for name, variants in found.items()
        }
        print("recall@20  " + "  ".join(f"{name} {value or 0:.4f}" for name, value in recalls.items()))
        return
    # A system that lacks something, such as trained weights, was not asked.
    asked = (each["name"] for each in results["systems"] if each["name"] in results["scores"])
    scores = {name: results["scores"][name] for name in asked}
    if all(scores.values()):
        print("F1  " + "  ".join(f"{name} {found['f1']:.3f}" for name, found in scores.items()))
    else:
        print("no document has questions, so nothing was asked and nothing is known of what was learned")
