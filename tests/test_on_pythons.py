"""tests/on_pythons.sh with a Python in place of the real ones."""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PYTHON = """#!/bin/sh
case "$2" in venv) ;; *) exit 0 ;; esac
mkdir -p "$3/bin"
cp "$FAKES/pip" "$FAKES/python" "$3/bin"
"""
PIP = """#!/bin/sh
echo "pip $(echo "$*" | sed "s#$TMPDIR/[^/]*#TMP#g")" >>"$FAKES/log"
"""
INNER = """#!/bin/sh
case "$1" in
  -c) echo 9.9 ;;
  *) echo "$(test -f pyproject.toml && echo in the copy): $*" >>"$FAKES/log" && echo "1 test" && exit "$STATUS" ;;
esac
"""


@pytest.fixture
def run(tmp_path):
    """A function: arguments and environment -> the finished script, and what it has started."""
    for name, text in {"python3.97": PYTHON, "python3.98": PYTHON, "pip": PIP, "python": INNER}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "tmp").mkdir()

    def run(*arguments, **more):
        own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FAKES": str(tmp_path), "TMPDIR": str(tmp_path / "tmp")}
        command = [ROOT / "tests/on_pythons.sh", *arguments]
        environment = {**os.environ, **own, "STATUS": "0", **more}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        log = tmp_path / "log"
        return done, log.read_text().splitlines() if log.exists() else []

    return run


def test_each_python_has_its_constraints_and_what_pytest_says(run, tmp_path):
    done, started = run("3.97", "3.98", "--", "-m", "quick")
    assert done.returncode == 0, done.stderr
    assert started == [
        line
        for version in ("3.97", "3.98")
        for line in (
            f"pip install -e TMP/source[test] -c constraints/python{version}.txt",
            "in the copy: -m pytest -m quick",
        )
    ]
    assert done.stdout.splitlines()[-2:] == ["3.97, JAX 9.9: 1 test", "3.98, JAX 9.9: 1 test"]
    assert not list((tmp_path / "tmp").iterdir())


def test_a_failure_on_one_python_is_the_scripts(run):
    done, started = run("3.97", "3.98", STATUS="1", NEWEST="1")
    assert done.returncode == 1 and started[::2] == ["pip install -e TMP/source[test]"] * 2


def test_a_python_that_is_not_there(run):
    """Nothing is installed for the others."""
    done, started = run("3.97", "3.99")
    assert done.returncode == 1 and not started
    assert done.stderr == "no Python 3.99 here: neither python3.99 nor one of pyenv; install it, or name others\n"
