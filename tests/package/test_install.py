"""The package as users get it: a wheel built from the sdist, installed, and used in an empty directory."""

import ast
import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Folders of the sources, and where they lie in the wheel.
HOMES = {"selfparam_jax": "selfparam_jax", "configs": "selfparam_jax/configs", "examples": "selfparam_jax/examples"}
DATA = (".json", ".jsonl", ".toml", ".ipynb", ".html")
EXTRAS = {
    "synthesis",
    "report",
    "documents",
    "serve",
    "eval",
    "trackers",
    "int8",
    "raptor",
    "torch",
    "tpu",
    "gpu-plan",
    "zstd",
    "bench",
    "docs",
    "test",
}
# What the extras bring; the program starts, and every module imports, without them: but for one that extends
# a class of lm-evaluation-harness, which `selfparam eval` alone imports.
EXTENDS = "selfparam_jax.evaluation.harness"
OPTIONAL = ("bs4", "json_repair", "mammoth", "markdownify", "matplotlib", "openai", "peft", "pptx", "pypdf", "qwix")
OPTIONAL += ("rapidfuzz", "tenacity", "torch", "zstandard", "fastapi", "uvicorn", "lm_eval", "tensorboardX", "wandb")
OPTIONAL += ("sklearn", "umap")


def python_module(*arguments):
    done = subprocess.run([sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from an sdist of a copy of the sources in `source`: building leaves files beside them."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    for name in HOMES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    python_module("build", "--no-isolation", "--outdir", folder / "out", source)
    (path,) = (folder / "out").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A directory into which the wheel is installed, without what it depends on."""
    target = tmp_path_factory.mktemp("installed")
    python_module("pip", "install", "--quiet", "--no-index", "--no-deps", "--target", target, wheel)
    return target


@pytest.fixture
def python(installed, tmp_path):
    """A function: arguments of Python -> its finished process, in an empty directory, with the wheel installed."""

    def run(*arguments):
        # -S leaves out this environment's .pth files, and with them its own installation of the package.
        paths = [str(installed), *dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
        line = [sys.executable, "-S", *map(str, arguments)]
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def said(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_every_source_file_and_nothing_else(wheel):
    expected, source = set(), wheel.parents[1] / "source"
    for name, home in HOMES.items():
        files = (path.relative_to(source / name) for path in (source / name).rglob("*") if path.is_file())
        expected |= {f"{home}/{path.as_posix()}" for path in files if path.suffix in (".py", *DATA)}
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert found == expected


def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        folder = f"selfparam_jax-{wheel.name.split('-')[1]}.dist-info"
        metadata = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
        points = archive.read(f"{folder}/entry_points.txt").decode()
        assert b"Apache License" in archive.read(f"{folder}/licenses/LICENSE")
    assert metadata["Name"] == "selfparam-jax"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra")) == EXTRAS
    assert metadata["Summary"] and len(metadata.get_payload()) > 1000
    assert "selfparam = selfparam_jax.commands.cli:main" in points


def test_the_core_needs_no_extra(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        requirements = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist")
    core = {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in requirements if "extra ==" not in line}
    assert "jax" in core and not core & set(OPTIONAL)


def test_settings_and_examples_are_found(python, installed):
    code = """
from pathlib import Path
from selfparam_jax.configs import batch
from selfparam_jax.jobs import inputs
from selfparam_jax.data.resources import resource
assert resource("configs", "batch.py") == Path(batch.__file__)
assert batch.get_config().job == "batch"
for name in [*inputs.EXAMPLES.values(), "general_train.jsonl", "general_eval.jsonl"]:
    print(resource("examples", name))
print(resource("configs", "models", "llama3_8b.json"))
"""
    lines = said(python("-c", code)).splitlines()
    assert len(lines) == 7
    assert all(Path(line).is_file() and Path(line).is_relative_to(installed) for line in lines)


def test_a_missing_resource_is_named(python):
    done = python("-c", "from selfparam_jax.data.resources import resource; resource('examples', 'nothing.jsonl')")
    assert "ValueError: examples/nothing.jsonl is missing from " in done.stderr


def test_other_projects_folders_are_not_taken(python, installed):
    """`examples` and `configs` are common names beside an installed package."""
    (installed / "examples").mkdir(exist_ok=True)
    (installed / "examples" / "theirs.jsonl").write_text("")
    done = python("-c", "from selfparam_jax.data.resources import resource; resource('examples', 'theirs.jsonl')")
    assert "is missing from" in done.stderr


def test_the_console_script(python, installed):
    shown = said(python(installed / "bin" / "selfparam", "--help"))
    assert "selfparam" in shown


def test_every_module_imports_without_the_extras(python, installed):
    code = f"""
import importlib, pkgutil, sys
for name in {OPTIONAL}:
    sys.modules[name] = None  # importing it is an ImportError
import selfparam_jax
failed = {{}}
names = [each.name for each in pkgutil.walk_packages(selfparam_jax.__path__, "selfparam_jax.", onerror=failed.get)]
for name in names:
    if name.endswith("__main__"):
        continue
    try:
        module = importlib.import_module(name)
    except Exception as error:
        failed[name] = f"{{type(error).__name__}}: {{error}}"
    else:
        assert module.__file__.startswith({str(installed)!r}), module.__file__
print(len(names), failed)
"""
    count, failed = said(python("-c", code)).split(" ", 1)
    assert list(ast.literal_eval(failed)) == [EXTENDS]
    assert int(count) > 40


def test_the_readme_s_test_command_is_ci_s():
    commands = re.findall(r"^pip install -e '\.\[test\]'.*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert len(commands) == 1
    assert commands[0] in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_constraints_are_exact_and_name_no_place():
    files = sorted((ROOT / "constraints").glob("python*.txt"))
    assert [path.stem for path in files] == ["python3.11", "python3.12", "python3.13"]
    for path in files:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert "constraints/update.sh" in "".join(line for line in lines if line.startswith("#"))
        pins = [line for line in lines if not line.lstrip().startswith("#")]
        assert [line for line in pins if not re.fullmatch(r"[a-z0-9._-]+==[\w.]+", line)] == []
        assert {"jax", "pytest", "transformers"} <= {line.split("==")[0] for line in pins}
