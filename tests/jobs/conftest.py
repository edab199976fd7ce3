"""The job that most tests of this folder change a little."""

import pytest
from job_inputs import batch_config


@pytest.fixture
def config(model_dir, tmp_path):
    """A batch job of eight rows a step on the tiny model."""
    return batch_config(model_dir, tmp_path)
