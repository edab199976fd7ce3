"""How often each fault is tried, and what came of it.

A few are tried by every run of the tests, always the same ones. `python -m benchmarks.faults` tries many and makes
the table of docs/faults.md: it sets FAULTS_TRIES, and FAULTS_LOG, where every outcome is written.
"""

import json
import os

import numpy as np
import pytest


@pytest.fixture(scope="session")
def tries():
    """A function: how many tries there are, given how many there are in CI."""
    return lambda few: int(os.environ.get("FAULTS_TRIES", few))


@pytest.fixture
def draw(request):
    """Draws that belong to a test and stay the same."""
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture(scope="session")
def tally():
    """A function that writes down what came of a fault: (what was done, to what, the outcome)."""
    path = os.environ.get("FAULTS_LOG")

    def write(fault, where, outcome):
        if path:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"fault": fault, "where": where, "outcome": outcome}) + "\n")

    return write
