"""Writes documents and dialogues into a language model's own weights (SELF-PARAM, arXiv 2410.00487)."""

from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.documents import Document, QAPair, Question
from selfparam_jax.jobs.api import Adapter, MergedModel, evaluate, inject, load_adapter, read_documents
from selfparam_jax.models.lora import LoraConfig
from selfparam_jax.targets.config import EndpointConfig, GeneratorConfig, TargetConfig
from selfparam_jax.training.optimizer import TrainConfig
from selfparam_jax.training.recipe import Recipe

__version__ = "0.2.0"
__all__ = [
    "Adapter",
    "Document",
    "EndpointConfig",
    "GeneratorConfig",
    "LoraConfig",
    "MergedModel",
    "Model",
    "QAPair",
    "Question",
    "Recipe",
    "TargetConfig",
    "TrainConfig",
    "evaluate",
    "inject",
    "load_adapter",
    "load_model",
    "read_documents",
]
