"""Which module may import which, and how long functions and files may be (DESIGN.md, section 3 and rule 10)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "selfparam_jax"
# From the bottom; a module may import only from the lines before its own.
LAYERS = (
    "segments processes program_costs",
    "splash",
    "attention",
    "model",
    "files command backend",
    "quantization lora packing prefix mesh checkpoint contexts prompts workdir replies",
    "pairs corpora",
    "weights objective generate question_prompts ledger",
    "sharding",
    "hub generator selfsample",
    "targets endpoint inspection",
    "teacher trainer evaluate",
    "baselines recommend report likelihood agreement rehearsal",
    "injection",
    "authoring examination export compare",
    "sequential sequential_report",
    "jobs",
    "served",
    "plan main ask targets.__main__ ledger.__main__",
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
MODULES = pytest.mark.parametrize("module", FILES)


def tree(module):
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def rank(module):
    """Of a module by its name below the package: its own, or that of its folder."""
    return RANKS.get(module, RANKS.get(module.split(".")[0]))


def imports(parsed, package=("selfparam_jax",)):
    """Dotted names of all that is imported, also inside functions; `from a import b` gives `a.b`."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def own_imports(parsed, package=("selfparam_jax",)):
    """First names, below our package, of the modules of ours that are imported."""
    names = (name.split(".") for name in imports(parsed, package))
    return {parts[1] for parts in names if parts[0] == "selfparam_jax" and len(parts) > 1}


def test_the_reader_of_imports():
    code = """
import selfparam_jax.jobs
from selfparam_jax import hub as h, lora
from selfparam_jax.model import Decoder
import flax.linen as nn
def f():
    from . import report
    from .targets import Sentence
"""
    found = own_imports(ast.parse(code))
    assert found == {"jobs", "hub", "lora", "model", "report", "targets"}
    assert "flax.linen" in set(imports(ast.parse(code)))


@MODULES
def test_every_module_has_a_rank(module):
    assert rank(module) is not None, f"put {module} into LAYERS"


@MODULES
def test_imports_go_down(module):
    parts = ("selfparam_jax", *module.split(".")[:-1])
    for name in own_imports(tree(module), parts):
        if name == module.split(".")[0]:  # within a folder of the package
            continue
        assert name in RANKS, f"{module} imports {name}, which is no module of ours"
        assert RANKS[name] < rank(module), f"{module} must not import {name}"


def test_there_is_something_to_read():
    assert {"model", "jobs", "main"} <= set(FILES)
    assert "model" in own_imports(tree("teacher"))


@MODULES
def test_only_jobs_knows_config_dict(module):
    if module in ("jobs", "main", "plan.__main__", "targets.__main__"):
        return
    parsed = tree(module)
    assert not [name for name in imports(parsed) if name.startswith("ml_collections")]
    names = {node.id for node in ast.walk(parsed) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(parsed) if isinstance(node, ast.Attribute)}
    assert not names & {"ConfigDict", "FrozenConfigDict"}


@MODULES
def test_only_model_knows_linen(module):
    parsed = tree(module)
    linen = [name for name in imports(parsed) if name.startswith("flax.linen")]
    linen += [node.attr for node in ast.walk(parsed) if isinstance(node, ast.Attribute) and node.attr == "linen"]
    assert bool(linen) == (module == "model")


@MODULES
def test_sizes(module):
    lines = FILES[module].read_text(encoding="utf-8").count("\n")
    assert lines <= 600, f"{module} has {lines} lines"
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{module}.{node.name} has {length} lines"
