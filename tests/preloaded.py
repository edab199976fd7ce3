"""What the processes of tests/processes.py have imported when they begin. Nothing here may start JAX or a thread."""

import gc
import os

os.environ["JAX_PLATFORMS"] = "cpu"

import matplotlib.figure  # noqa: F401
import orbax.checkpoint  # noqa: F401
import tokenizers  # noqa: F401
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast  # noqa: F401

import selfparam_jax.commands.run
import selfparam_jax.jobs.run  # noqa: F401

gc.freeze()  # a forked process need not look through it for garbage, which would copy it, too
