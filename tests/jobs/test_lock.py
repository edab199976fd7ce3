"""One job at a time in a work directory, and what is said of a disk that does not keep it."""

import errno
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import filelock
import jax
import numpy as np
import pytest
from job_inputs import batch_config

from selfparam_jax.commands import command
from selfparam_jax.distributed import files
from selfparam_jax.jobs import batch, lock, run
from selfparam_jax.jobs.ledger_model import lock_job
from selfparam_jax.jobs.lock import HOLDER, LOCK, PairsLock, WorkdirLock
from selfparam_jax.jobs.settings import default_config
from selfparam_jax.jobs.targets import write_targets
from selfparam_jax.jobs.workdir import StorageError, bind_workdir, digest_inputs, storage_trouble
from selfparam_jax.sequential.ledger import Ledger


@pytest.fixture
def workdir(tmp_path):
    bind_workdir(tmp_path / "run", default_config().to_dict(), "f", digest_inputs([], [], []))
    return tmp_path / "run"


def test_a_second_job_is_refused_with_the_first_ones_name(workdir):
    with WorkdirLock(workdir):
        note = files.read_json(workdir / HOLDER)
        assert (note["pid"], note["host"], note["processes"]) == (os.getpid(), socket.gethostname(), 1)
        said = rf"run is in use by another job \(process {os.getpid()} on .*, since 20\d\d-.*\); wait for its end"
        with pytest.raises(ValueError, match=said):
            WorkdirLock(workdir).acquire()
    assert not (workdir / HOLDER).exists()
    with WorkdirLock(workdir):
        pass


def test_a_directory_that_is_not_there_yet_is_locked_once_it_is(tmp_path):
    with WorkdirLock(tmp_path / "run") as held:
        assert not (tmp_path / "run").exists()
        (tmp_path / "run").mkdir()
        assert held.acquire() and not held.acquire()
        with pytest.raises(ValueError, match="is in use by another job"), WorkdirLock(tmp_path / "run"):
            pass
    # With a lock alone in it, it is as good as empty.
    bind_workdir(tmp_path / "run", default_config().to_dict(), "f", digest_inputs([], [], []))


KILLED = """
import pathlib, sys, time
from selfparam_jax.jobs.lock import WorkdirLock
with WorkdirLock(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_the_lock_of_a_job_that_was_killed_is_taken_over(workdir):
    """A real process: the operating system must let go of what it held."""
    line = [sys.executable, "-c", KILLED, str(workdir)]
    root = pathlib.Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, cwd=root, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    ) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ValueError, match=rf"in use by another job \(process {other.pid} on "):
            WorkdirLock(workdir).acquire()
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert (workdir / HOLDER).exists()
    with WorkdirLock(workdir):
        assert files.read_json(workdir / HOLDER)["pid"] == os.getpid()


def hold_elsewhere(workdir, silent_s):
    """The note of a job on another machine that touched it some time ago."""
    (workdir / HOLDER).write_text(json.dumps({"pid": 7, "host": "other-host", "processes": 4, "since": 1e9}))
    then = time.time() - silent_s
    os.utime(workdir / HOLDER, (then, then))


def test_on_a_disk_that_carries_no_locks_the_note_of_another_machine_counts(workdir):
    hold_elsewhere(workdir, silent_s=5)
    with pytest.raises(
        ValueError, match=r"in use by another job \(process 7 on other-host, of 4 processes, since 2001"
    ):
        WorkdirLock(workdir).acquire()
    hold_elsewhere(workdir, silent_s=lock.DEAD_S + 30)  # dead
    with WorkdirLock(workdir):
        assert files.read_json(workdir / HOLDER)["host"] == socket.gethostname()


def test_a_lock_without_a_sign_of_life_is_said_to_be_stale(workdir):
    """Where the lock itself outlives its holder, the user is told which file to remove."""
    with filelock.FileLock(workdir / LOCK):
        hold_elsewhere(workdir, silent_s=500)
        with pytest.raises(
            ValueError, match=r"no sign of life for 50\d s; if that process is gone, remove .*\.lock$"
        ):
            WorkdirLock(workdir).acquire()
        (workdir / HOLDER).write_text("{")
        os.utime(workdir / HOLDER, (1, 1))
        with pytest.raises(ValueError, match="in use by another job, which has given no sign of life"):
            WorkdirLock(workdir).acquire()


def test_of_several_processes_all_are_refused(workdir, monkeypatch):
    """The main process cannot lock it; the others, which do not try, hear of it."""
    monkeypatch.setattr(lock, "is_main_process", lambda: False)
    monkeypatch.setattr(lock, "all_agree", lambda flags: [False, True])
    with pytest.raises(ValueError, match="is in use; the log of the main process says by whom"):
        WorkdirLock(workdir).acquire()
    assert not (workdir / LOCK).exists()


def test_a_directory_that_cannot_be_written_is_refused(workdir, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(lock, "replacing_own", full)
        with pytest.raises(
            StorageError, match=r"run cannot be locked \(no space is left on its disk\); choose a dir"
        ):
            WorkdirLock(workdir).acquire()
    with WorkdirLock(workdir):
        pass


def test_all_processes_go_on_with_what_the_main_one_has_found(workdir, monkeypatch):
    """They work in lockstep: one that held it while another did not would wait for what never comes."""
    said = []
    monkeypatch.setattr(lock, "is_main_process", lambda: False)
    monkeypatch.setattr(lock, "all_agree", lambda flags: said.append(flags) or [True, len(said) > 1])
    with WorkdirLock(workdir) as other:
        assert other.acquire() and not other.acquire(), "the main process has made the directory since"
        assert said == [[True, True]] * 2
    assert not (workdir / LOCK).exists()


def test_a_holder_shows_that_it_lives(workdir, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.01)
    with WorkdirLock(workdir):
        os.utime(workdir / HOLDER, (1, 1))
        deadline = time.monotonic() + 20
        while (workdir / HOLDER).stat().st_mtime < 10 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (workdir / HOLDER).stat().st_mtime > 10
        shutil.rmtree(workdir)  # neither the thread nor the end complains


def test_a_file_of_pairs_has_one_writer(model_dir, tmp_path):
    """As processes have it: who comes second is refused before anything is read, and the file is as it was."""
    config, path = batch_config(model_dir, tmp_path), tmp_path / "pairs.jsonl"
    path.write_text("{}\n")
    with PairsLock(path):
        assert files.read_json(tmp_path / ".pairs.jsonl.lock.json")["pid"] == os.getpid()
        said = r"pairs\.jsonl is in use by another job \(process \d+ on .*; .* or choose another file$"
        given, config.contexts = config.contexts, "nowhere"
        with pytest.raises(ValueError, match=said):
            write_targets(config, path)
        config.contexts = given
        with PairsLock(tmp_path / "other.jsonl"), WorkdirLock(tmp_path):
            pass
    assert path.read_text() == "{}\n"
    with pytest.raises(ValueError, match="expected a file of written pairs"):
        write_targets(config, path)
    with PairsLock(tmp_path / "new" / "pairs.jsonl") as lock:
        assert not (tmp_path / "new").exists()
        (tmp_path / "new").mkdir()
        assert lock.acquire()


def test_an_entry_is_not_undone_while_the_job_runs(workdir):
    book = Ledger.open(workdir / "sequences" / "000" / "ledger", "f" * 64)
    with lock_job(Ledger.open(workdir.parent / "ledger", "f" * 64)):
        assert not (workdir / LOCK).exists(), "of no job"
    with WorkdirLock(workdir), pytest.raises(ValueError, match="is in use by another job"), lock_job(book):
        pass
    with lock_job(book), pytest.raises(ValueError, match="is in use by another job"):
        WorkdirLock(workdir).acquire()


# --- a job ----------------------------------------------------------------------------------------------


@pytest.fixture
def failing(model_dir, tmp_path, monkeypatch, capsys):
    """A function: what the command line says, and its exit code, if a job fails like this in its work directory."""

    def fail(act):
        def inject(job, *_):
            with pytest.raises(ValueError, match="is in use by another job"):
                run.run_job(batch_config(model_dir, tmp_path), tmp_path / "run")
            act(job.workdir)

        monkeypatch.setattr(batch, "inject_documents", inject)
        config = batch_config(model_dir, tmp_path)
        config.systems, config.eval.general = (), ""
        with pytest.raises(SystemExit) as ended:
            command.run(run.run_job, config, tmp_path / "run")
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
        return line, ended.value.code

    return fail


def full(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_in_a_library(_):
    raise ValueError("FAILED_PRECONDITION: write failed: No space left on device\n[source locations=...]")


@pytest.mark.parametrize("act", [full, full_in_a_library])
def test_a_full_disk_is_named_and_has_an_exit_code(failing, tmp_path, act):
    line, code = failing(act)
    assert code == 74 and line.startswith(
        f"error: {tmp_path / 'run'}: no space is left on its disk; what was written"
    )
    assert not (tmp_path / "run" / HOLDER).exists()


def test_a_directory_that_vanishes_is_named(failing, tmp_path):
    line, code = failing(lambda workdir: (shutil.rmtree(workdir), (workdir / "x").write_text("x")))
    assert code == 74 and line.startswith(f"error: {tmp_path / 'run'} is gone: it was removed or moved while the job")


def test_a_directory_that_was_removed_and_made_again_is_no_success(model_dir, tmp_path, monkeypatch, capsys):
    """Checkpoints, logs and reports make the folders that they need."""
    config = batch_config(model_dir, tmp_path)
    config.systems, config.eval.general, config.train.epochs = (), "", 1
    whole = batch.inject_documents

    def inject(job, *given):
        done = whole(job, *given)
        shutil.rmtree(job.workdir)
        return done

    monkeypatch.setattr(batch, "inject_documents", inject)
    with pytest.raises(SystemExit) as ended:
        command.run(run.run_job, config, tmp_path / "run")
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert ended.value.code == 74 and line.startswith(f"error: {tmp_path / 'run'}")
    assert not (tmp_path / "run" / "results.json").exists()


def out_of_memory(_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nmore lines")


def test_too_little_memory_says_which_settings_help(failing):
    line, code = failing(out_of_memory)
    assert code == 1 and line.startswith("error: too little memory (RESOURCE_EXHAUSTED: Out of memory allocating 99")
    assert "lower train.batch_size" in line
    assert failing(lambda _: np.zeros(2**50))[0].startswith("error: Unable to allocate")


def test_other_errors_stay_what_they_are(failing):
    def wrong(_):
        raise ValueError("a loss that is not finite")

    assert failing(wrong) == ("error: a loss that is not finite", 1)


def test_troubles_of_a_disk(workdir):
    assert storage_trouble(workdir, ValueError("x")) is None
    assert storage_trouble(workdir, PermissionError(errno.EACCES, "no", "x")) is None
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE):
        try:
            try:
                raise OSError(number, "x", "some/file")
            except OSError as error:
                raise RuntimeError("a library's own") from error
        except RuntimeError as error:
            found = storage_trouble(workdir, error)
        assert isinstance(found, StorageError) and str(found).startswith("some/file: its" if number != errno.ENOSPC
            and number != errno.EDQUOT else "some/file: ")  # fmt: skip
    (workdir / "config.json").unlink()
    assert "no longer has its config.json" in str(storage_trouble(workdir, ValueError("x")))


def test_a_write_that_fails_names_its_file(tmp_path, monkeypatch):
    def fsync(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(OSError, match=r"No space left on device: '.*state\.json'") as refused:
        files.write_json(tmp_path / "state.json", {})
    assert refused.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())
