"""How a launch script is run."""

import os
import pathlib
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / "launch"
SETTINGS = ("NAME", "ZONE", "TYPE", "VERSION", "SPOT", "PROJECT", "WORKDIR", "RETRIES", "IMAGE", "CLAIM", "VENV",
            "PYTHON", "PORT", "LOGS", "ACCELERATOR", "TOPOLOGY", "HOSTS", "CHIPS")  # fmt: skip


@pytest.fixture(scope="session")
def run():
    """A function: script, arguments, settings -> what `subprocess.run` gives."""

    def run(script, *arguments, cwd=None, **settings):
        kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        kept = {name: value for name, value in kept.items() if not name.startswith("SLURM_")}
        line = ["bash", LAUNCH / script, *arguments]
        return subprocess.run(
            line, env=kept | settings, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
        )

    return run


@pytest.fixture(scope="session")
def shown(run):
    """A function: script, arguments, settings -> the lines that a dry run shows."""

    def shown(script, *arguments, **settings):
        done = run(script, "--dry-run", *arguments, **settings)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    return shown
