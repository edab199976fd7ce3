"""What llama.cpp itself makes of a file, where its Python package is installed (pip install llama-cpp-python)."""

import importlib.util

import numpy as np
import pytest


def llama_cpp():
    """The package; the test is skipped without it. It is no part of the extra `test`: it is compiled for minutes."""
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("needs llama-cpp-python")
    import llama_cpp

    return llama_cpp


def open_model(path, context=64):
    """A file, read by llama.cpp on the CPU."""
    return llama_cpp().Llama(str(path), n_ctx=context, n_threads=1, logits_all=True, verbose=False)


def logits_of(model, ids):
    """Float32 logits [B, T, V] of ids [B, T]."""
    rows = []
    for row in np.asarray(ids):
        model.reset()
        model.eval(row.tolist())
        rows.append(np.array(model.scores[: len(row)], np.float32))
    return np.stack(rows)


def ids_of(model, text):
    """Ids of a text, without BOS and without special tokens in it."""
    return model.tokenize(text.encode(), add_bos=False, special=False)
