"""The rules of the house, on folders: which may import which, and what an `__init__.py` may hold."""

import ast
import itertools
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "selfparam_jax"
# From the top; a folder imports only from those after it.
FOLDERS = ["commands", "jobs", "reports", "plan", "compare", "sequential", "baselines", "evaluation", "training"]
FOLDERS += ["targets", "data", "inference", "checkpoints", "models", "distributed"]
FILES = sorted(PACKAGE.rglob("*.py"))
EACH_FILE = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def folder_of(path):
    """The folder a file belongs to; "" for the files at the top of the package."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def module_of(path):
    """selfparam_jax/models/lora.py -> selfparam_jax.models.lora."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(code, package="selfparam_jax"):
    """Dotted names of all that some code imports, also inside functions; `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            start = ".".join(part for part in (base, node.module) if part)
            yield from (f"{start}.{alias.name}" for alias in node.names)


def own_folders(path):
    """Folders of the package that a file imports from."""
    names = (name.split(".") for name in imported(path.read_text(encoding="utf-8"), module_of(path)))
    return {parts[1] for parts in names if parts[0] == "selfparam_jax" and len(parts) > 1}


def modules_of(path):
    """Our own modules that a file imports."""
    known = {module_of(file) for file in FILES}
    found = set()
    for name in imported(path.read_text(encoding="utf-8"), module_of(path)):
        found |= {name, name.rpartition(".")[0]} & known
    return found


def test_the_reader_of_imports():
    code = """
import selfparam_jax.jobs.batch
from selfparam_jax.models import lora as adapters, decoder
import flax.linen as nn
def f():
    from . import report
    from .targets import Sentence
"""
    assert set(imported(code)) == {
        "selfparam_jax.jobs.batch",
        "selfparam_jax.models.lora",
        "selfparam_jax.models.decoder",
        "flax.linen",
        "selfparam_jax.report",
        "selfparam_jax.targets.Sentence",
    }


def test_every_folder_is_known():
    found = {folder_of(path) for path in FILES} - {""}
    assert found == set(FOLDERS)


@EACH_FILE
def test_imports_go_down_the_list(path):
    folder = folder_of(path)
    if not folder or path.name == "__main__.py":  # front doors open onto the top
        return
    below = FOLDERS[FOLDERS.index(folder) :]
    for name in own_folders(path):
        assert name in below, f"{module_of(path)} must not import {name}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_there_is_no_circle_within_a_folder(folder):
    files = [path for path in FILES if folder_of(path) == folder and path.name != "__init__.py"]
    graph = {module_of(path): modules_of(path) for path in files}
    free, before = set(), -1
    while len(free) > before:
        before = len(free)
        free |= {name for name, needs in graph.items() if not needs & graph.keys() - free - {name}}
    assert not graph.keys() - free, f"these import each other: {sorted(graph.keys() - free)}"


@EACH_FILE
def test_an_init_only_re_exports(path):
    if path.name != "__init__.py":
        return
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        names = isinstance(node, ast.Assign) and [target.id for target in node.targets] in (
            ["__all__"],
            ["__version__"],
        )
        assert docstring or names or isinstance(node, ast.Import | ast.ImportFrom), f"line {node.lineno}"


@EACH_FILE
def test_only_jobs_and_commands_know_config_dict(path):
    if folder_of(path) in ("jobs", "commands", ""):
        return
    assert not [name for name in imported(path.read_text(encoding="utf-8")) if name.startswith("ml_collections")]


@EACH_FILE
def test_only_the_command_line_knows_signals(path):
    if folder_of(path) in ("jobs", "commands"):
        return
    assert "signal" not in set(imported(path.read_text(encoding="utf-8")))


def public_functions(tree):
    """(function, is a constructor) of all that is neither private nor inside another function."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and (
                    member.name == "__init__" or not member.name.startswith("_")
                ):
                    yield member


@EACH_FILE
def test_functions_of_more_than_three_parameters_explain_them(path):
    for function in public_functions(ast.parse(path.read_text(encoding="utf-8"))):
        given = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
        if len([each for each in given if each.arg not in ("self", "cls")]) <= 3:
            continue
        text, returned = ast.get_docstring(function) or "", function.returns
        gives = returned is not None and not (isinstance(returned, ast.Constant) and returned.value is None)
        raised = any(isinstance(node, ast.Raise) and node.exc is not None for node in ast.walk(function))
        wanted = ["Args:"] + ["Returns:"] * gives + ["Raises"] * raised
        missing = [section for section in wanted if section not in text]
        assert not missing, f"{path.name}:{function.lineno} {function.name} has no {', '.join(missing)}"


def test_tests_lie_in_the_same_folders():
    found = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert found <= {*FOLDERS, "benchmarks", "docs", "faults", "launch", "package"}


def test_the_list_of_folders_goes_from_the_top():
    assert all(a != b for a, b in itertools.combinations(FOLDERS, 2))
