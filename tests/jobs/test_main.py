"""`python -m selfparam_jax.main`: errors in one line, names that do not exist, and whose log lines are shown."""

import io
import logging
import os
import pathlib
import subprocess
import sys

import jax
import pytest

import selfparam_jax
from selfparam_jax.commands import command
from selfparam_jax.main import main

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_command_line_reports_errors_in_one_line_and_exits_with_1(tmp_path):
    line = ["--config=configs/batch.py", "--config.model=nothing", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, "-m", "selfparam_jax.main", *line],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "nothing" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture
def refused(tmp_path, capfd):
    """A function: what the command says to a command line that it refuses; nothing is written."""

    def run(*line):
        with pytest.raises(SystemExit) as ended:
            main([*line, f"--workdir={tmp_path / 'run'}"])
        assert ended.value.code == 1
        said = capfd.readouterr().err.strip()
        assert said.startswith("error: ") and len(said.splitlines()) == 1
        assert not (tmp_path / "run").exists()
        return said

    return run


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.lora.rnak=4", "there is no setting lora.rnak; did you mean lora.rank?"),
        ("--config.train.batch_rows=2", "the setting train.batch_rows is called train.batch_size now"),
        ("--config.train.row_length=64", "the setting train.row_length is called train.seq_len now"),
        ("--config.sequential.rehearsal_pairs=1", "sequential.rehearsal_pairs is called sequential.replay_pairs now"),
        ("--config.prompt=worked", "prompt = 'worked' is called 'few_shot' now"),
    ],
)
def test_a_setting_that_does_not_exist_is_refused(refused, flag, message):
    assert message in refused("--config=batch", flag)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.lora.rnak = 4", "there is no setting lora.rnak; did you mean lora.rank?"),
        ("config.train.batch_rows = 2", "the setting train.batch_rows is called train.batch_size now"),
        ("config.lora.targets = ('q_proj',)", "the setting lora.targets is called lora.target_modules now"),
        ("config.train.b_ratio = 2.0", "the setting train.b_ratio is called train.loraplus_ratio now"),
    ],
)
def test_a_setting_that_does_not_exist_in_a_users_file(refused, tmp_path, line, message):
    path = tmp_path / "mine.py"
    path.write_text(
        "from selfparam_jax.configs import base\n\n\ndef get_config():\n"
        f"    config = base.get_config()\n    {line}\n    return config\n"
    )
    assert message in refused(f"--config={path}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n", "SyntaxError: invalid syntax"),
        ("x = 1\n", "has no attribute 'get_config'"),
        ("def get_config():\n    return 5\n", "get_config gave a int, expected a ConfigDict"),
        ("def get_config():\n    return {'lora': {'rank': 4}}\n", "get_config gave a dict, expected a ConfigDict"),
        ("import nothing_of_this_name\n", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("def get_config():\n    pass\n", "get_config gave nothing, expected a ConfigDict; end it with 'return"),
        ("import sys\nsys.exit(0)\n", "ends the process (SystemExit(0)), expected a get_config"),
        ("def get_config():\n    raise SystemExit(0)\n", "ends the process (SystemExit(0)), expected a get_config"),
        ("def get_config():\n    raise ValueError('one\\ntwo')\n", "ValueError: one two; correct"),
        ("def get_config():\n    raise KeyError('x')\n", "KeyError: 'x'"),
        ("def get_config():\n    return 1 / 0\n", "ZeroDivisionError: division by zero"),
        (
            "from selfparam_jax.configs import base\n\n\ndef get_config():\n    config = base.get_config()\n"
            "    config.lora.rank = 'x'\n    return config\n",
            "TypeError: Could not override field 'rank'",
        ),
    ],
)
def test_a_users_file_that_cannot_be_run_is_refused_in_one_line(refused, tmp_path, text, message, monkeypatch):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # ml_collections' name for every such file
    path = tmp_path / "mine.py"
    path.write_text(text)
    said = refused(f"--config={path}")
    assert said.startswith(f"error: --config={path}: ") and message in said and "correct the file" in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--config=batch", "--dryrun"], "there is no flag --dryrun; did you mean --dry_run?"),
        (["--config=batch", "--dry_run=maybe"], "got --dry_run=maybe, expected true or false"),
        (["--config=batch", "--process_count=two"], "got --process_count=two, expected a whole number"),
        (["--config=batch", "--process_count=-3"], "process_count"),
    ],
)
def test_a_command_line_that_cannot_be_read_ends_with_2(line, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(line)
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and len(said.splitlines()) == 1 and message in said and "(" not in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--config=batch", "--config.contexts="], "contexts = '', expected a name or a path"),
        (["--config=batch", "--config.unrelated="], "unrelated = '', expected"),
        (["--config=batch", "--config.model="], "model = '', expected"),
        (["--config=batch", "--config.systems=bank"], "systems has 'bank' in job 'batch', expected it in"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_what_contradicts_itself_or_names_nothing_is_refused(refused, line, message, dry_run):
    assert message in refused(*line, *["--dry_run"] * dry_run)


# --- log lines ----------------------------------------------------------------------------------------

PACKAGE = pathlib.Path(selfparam_jax.__file__).parent


def record(path, level):
    return logging.LogRecord("absl", level, str(path), 1, "text", (), None)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_our_modules_are_heard_in_whatever_folder(path):
    assert command._is_news(record(path, logging.INFO))


OTHERS = [jax.__file__, PACKAGE.with_name("selfparam_jax_more") / "x.py", PACKAGE.parent / "benchmarks" / "ours.py"]


@pytest.mark.parametrize("path", OTHERS)
def test_others_are_heard_when_they_warn(path):
    assert not command._is_news(record(path, logging.INFO))
    assert command._is_news(record(path, logging.WARNING))


def test_of_a_librarys_error_the_first_line_is_shown(monkeypatch):
    """Orbax's threads log their errors with tracebacks; the job's own line says what has happened."""
    for level, shown in ((0, ("failed: a", False)), (1, ("failed: a\nb", True))):
        monkeypatch.setattr(command.logging, "get_verbosity", lambda level=level: level)
        try:
            raise OSError("disk")
        except OSError:
            told = logging.LogRecord("absl", logging.ERROR, jax.__file__, 1, "failed: %s", ("a\nb",), sys.exc_info())
        assert command._in_one_line(told)
        assert (told.getMessage(), bool(told.exc_info)) == shown
    ours = logging.LogRecord("absl", logging.ERROR, str(PACKAGE / "x.py"), 1, "a\nb", (), None)
    monkeypatch.setattr(command.logging, "get_verbosity", lambda: 0)
    assert command._in_one_line(ours) and ours.getMessage() == "a\nb"


def test_lines_of_a_subfolder_are_shown(monkeypatch):
    """With the real handler: ours, from a file three folders deep, and not a library's."""
    from absl import logging as absl_logging

    ours, shown = PACKAGE / "models" / "families" / "llama.py", io.StringIO()
    absl_logging.use_absl_handler()
    monkeypatch.setattr(absl_logging.get_absl_handler().python_handler, "stream", shown)

    def say():
        logger = absl_logging.get_absl_logger()
        for path, text in ((ours, "read with care"), (pathlib.Path(jax.__file__), "told from inside")):
            logger.handle(logger.makeRecord("absl", logging.INFO, str(path), 1, text, (), None))

    command.run(say)
    assert "read with care" in shown.getvalue() and "told from inside" not in shown.getvalue()
