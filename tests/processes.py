"""Programs of ours in processes of their own, forked from one that has imported what they import.

The imports of a job take longer than a job on a tiny model. Each process is what `python -m MODULE` starts otherwise:
its own arguments, environment, output, signals and exit code, and JAX begins in it. That the plain command lines work
is tested in tests/jobs/test_main.py and tests/package.
"""

import atexit
import multiprocessing
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["preloaded"])


class Started:
    """A running process, with the names of `subprocess.Popen`."""

    def __init__(self, process):
        self._process = process
        self.pid = process.pid

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self._process.exitcode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def start(arguments, output, error=None, cwd=ROOT, devices=1, environment=None):
    """Starts `python -m ARGUMENTS`.

    Args:
      arguments: the module and what it is given.
      output, error: files of what it prints; without `error` both go into the first.
      cwd: its directory.
      devices: CPU devices that JAX shows it.
      environment: its environment variables; without it those of this process.
    """
    paths = [str(ROOT), str(ROOT / "tests")]  # where the server, which the first call starts, finds `preloaded`
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if known[:2] != paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, known)])
    line = [str(argument) for argument in arguments]
    given = (
        line,
        dict(os.environ if environment is None else environment),
        str(output),
        str(error or ""),
        str(cwd),
        devices,
    )
    process = _context.Process(target=_main, args=given, name=" ".join(line))
    process.start()
    return Started(process)


def run(arguments, cwd=ROOT, devices=1, timeout=240, environment=None):
    """Runs `python -m ARGUMENTS` to its end, as `subprocess.run` with its output captured as text."""
    with tempfile.TemporaryDirectory() as folder:
        output, error = (pathlib.Path(folder, name) for name in ("output", "error"))
        process = start(arguments, output, error, cwd, devices, environment)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(arguments, code, output.read_text(), error.read_text())


def run_command(command, env=None, cwd=ROOT, check=False, **_):
    """In place of `subprocess.run` where code starts `python -m ...` itself."""
    assert command[1] == "-m", command
    done = run(command[2:], cwd, environment=env)
    assert not (check and done.returncode), done.stderr
    return done


def _main(arguments, environment, output, error, cwd, devices):
    """In the new process."""
    for number, name in ((1, output), (2, error or output)):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    import jax

    from selfparam_jax.reports import style

    jax.config.update("jax_num_cpu_devices", devices)
    style.can_draw = lambda: False  # as in tests/conftest.py
    sys.path.insert(0, cwd)
    sys.argv = ["", *arguments[1:]]
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # a process of multiprocessing leaves them out
