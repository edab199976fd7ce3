"""Says what this machine and installation can do: versions, devices, cache, model, extras, disk.

    selfparam doctor [--model=MODEL]

Exit code 1 if something that every job needs is missing.

Example: selfparam doctor
"""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from selfparam_jax.checkpoints.default_model import DEFAULT_MODEL, GGUF_NAME, cache_directory, default_model_file
from selfparam_jax.checkpoints.load import check_source, read_architecture
from selfparam_jax.commands import command

CORE = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "tokenizers",
    "datasets",
    "gguf",
    "numpy",
)
EXTRAS = {
    "synthesis": ("json_repair", "openai", "rapidfuzz", "tenacity"),
    "documents": ("bs4", "mammoth", "markdownify", "pypdf", "pptx"),
    "report": ("matplotlib",),
    "serve": ("fastapi", "uvicorn"),
    "eval": ("lm_eval",),
    "trackers": ("tensorboardX", "wandb"),
    "raptor": ("sklearn", "umap"),
    "int8": ("qwix",),
    "torch": ("torch",),
    "zstd": ("zstandard",),
    "tpu": ("libtpu",),
    "gpu-plan": ("jax_cuda12_plugin",),
}
WANTED_GB = 2.0  # the default job: model, compiled programs, teacher states, merged model


def main(argv: list[str] | None = None) -> None:
    """Prints the findings; ends the process with 1 if a job could not run."""
    parser = command.make_parser("doctor", __doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a model to look at, as --config.model")
    arguments = parser.parse_args(argv)
    if not command.run(diagnose, arguments):
        sys.exit(1)


def diagnose(arguments: argparse.Namespace) -> bool:
    """Prints a line per finding; whether a job could run."""
    checks: tuple[tuple[str, Callable[[], tuple[bool, str]]], ...] = (
        ("Python", check_python),
        ("packages", check_packages),
        ("devices", check_devices),
        ("cache", check_cache),
        ("disk", check_disk),
        ("model", lambda: check_model(arguments.model)),
    )
    fine = True
    for name, check in checks:
        good, text = check()
        fine &= good
        print(f"{'ok' if good else 'MISSING':8}{name:10}{text}")
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        state = "installed" if not missing else f"not installed: pip install 'selfparam-jax[{extra}]'"
        print(f"{'ok' if not missing else '-':8}{'extra':10}{extra}: {state}")
    return fine


def check_python() -> tuple[bool, str]:
    """Version of Python and the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {cores} cores"
    return sys.version_info >= (3, 11), text


def check_packages() -> tuple[bool, str]:
    """Versions of the packages that everything stands on."""
    found, missing = [], []
    for name in ("selfparam-jax", *CORE):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    text = ", ".join(found) + (f"; not installed: {', '.join(missing)}" if missing else "")
    return not set(missing) & set(CORE), text


def check_devices() -> tuple[bool, str]:
    """What JAX computes on."""
    import jax

    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # the second where a plugin for JAX_PLATFORMS is missing
        said = (str(error).splitlines() or [type(error).__name__])[0]
        return False, f"JAX finds no device: {said}; JAX_PLATFORMS is {os.environ.get('JAX_PLATFORMS', '')!r}"
    kinds = sorted({device.device_kind for device in devices})
    return True, f"{len(devices)} x {', '.join(kinds)} ({devices[0].platform})"


def check_cache() -> tuple[bool, str]:
    """Whether models and compiled programs can be stored."""
    directory = cache_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".doctor-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return False, f"{directory} cannot be written: {error.strerror}; set SELFPARAM_JAX_CACHE to another directory"
    compiled = directory / "compiled"
    programs = len(list(compiled.iterdir())) if compiled.is_dir() else 0
    return True, f"{directory}, {programs} files of compiled programs"


def check_disk() -> tuple[bool, str]:
    """Free space where the cache and where the work directories are."""
    free = {str(path): shutil.disk_usage(path).free / 1e9 for path in (_existing(cache_directory()), Path.cwd())}
    text = ", ".join(f"{size:.1f} GB free at {path}" for path, size in free.items())
    return min(free.values()) >= WANTED_GB, text + ("" if min(free.values()) >= WANTED_GB else
                                                    f"; the default job wants {WANTED_GB:.0f} GB")  # fmt: skip


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def check_model(source: str) -> tuple[bool, str]:
    """Whether a model is at hand, without loading it."""
    if source == DEFAULT_MODEL:
        try:
            path = default_model_file()
        except ValueError as error:
            return False, str(error)
        return True, f"{DEFAULT_MODEL}, {path.stat().st_size / 1e6:.0f} MB in the cache ({GGUF_NAME})"
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        return path.is_file(), f"{path}" + ("" if path.is_file() else ": no such file")
    if path.is_dir():
        try:
            config = read_architecture(path / "config.json")
        except ValueError as error:
            return False, str(error)
        return True, f"{path}: {config.num_hidden_layers} layers of {config.hidden_size}"
    try:
        check_source(source)
    except ValueError as error:
        return False, str(error)
    return True, f"{source}: neither a file nor a folder here, so it would be fetched from the hub"
