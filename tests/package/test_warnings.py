"""Our own modules' warnings fail a test; those of libraries do not."""

import warnings
from pathlib import Path

import pytest


def warn_from(module):
    warnings.warn_explicit("old", DeprecationWarning, "somewhere.py", 1, module=module, registry={})


OURS = ["selfparam_jax", "selfparam_jax.models.lora", "benchmarks.speed", "configs.base"]
TESTS = Path(__file__).parents[1]
HELPERS = sorted({path.stem for path in TESTS.rglob("*.py") if not path.stem.startswith("test_")})


@pytest.mark.parametrize("module", [*OURS, *HELPERS, __name__])
def test_a_warning_of_ours_is_an_error(module):
    with pytest.raises(DeprecationWarning, match="old"):
        warn_from(module)


@pytest.mark.parametrize("module", ["transformers.utils", "jax._src.core", "tinycss", "pytest", "testing"])
def test_a_warning_of_a_library_is_not(module):
    with warnings.catch_warnings(record=True) as caught:  # this keeps the filters
        warn_from(module)
    assert [str(each.message) for each in caught] == ["old"]
