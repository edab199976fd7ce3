"""The paper's settings, as its authors released them: for comparison, not for speed.

python -m selfparam_jax.main --config=configs/paper.py:batch --workdir=/shared/paper
python -m selfparam_jax.main --config=configs/paper.py:single --workdir=/shared/single
python -m selfparam_jax.main --config=configs/paper.py:sequential --workdir=/shared/sequential

They need a GPU or TPU, the hub, and a server for the QA pairs (OPENAI_API_KEY). Another of the paper's models:
`--config.model=mistralai/Mistral-7B-v0.1` or `--config.model=meta-llama/Meta-Llama-3-8B`.
"""

from ml_collections import ConfigDict
from selfparam_jax.configs import base

from selfparam_jax.training.recipe import RELEASED

CONTEXTS = {"single": 100, "batch": 100, "sequential": 1000}
PAIRS = {"single": 500, "batch": 500, "sequential": 200}  # per context, none repeated


def get_config(arg: str = "batch") -> ConfigDict:
    """`arg`: "batch" (100 contexts), "single" (each of 100) or "sequential" (50 sequences of 20)."""
    if arg not in CONTEXTS:
        raise ValueError(f"configs/paper.py takes single, batch or sequential, got {arg!r}")
    config = base.get_config()
    base.set_reading_recipe(config)
    config.job = arg
    config.model = "openlm-research/open_llama_3b_v2"
    config.dtype = "bfloat16"
    config.prompt = "paper"
    config.contexts = "pwc"
    config.limit = CONTEXTS[arg]
    config.passage_tokens = 0
    config.unrelated = "hub:DKYoon/SlimPajama-6B"

    # One step each of a QA pair, a tail and an unrelated text in turn: as many of each kind.
    together = CONTEXTS[arg] if arg == "batch" else 1
    config.targets.generator = "endpoint"
    config.targets.qa_per_context = config.targets.tails_per_context = PAIRS[arg]
    config.targets.unrelated_per_epoch = PAIRS[arg] * together
    config.targets.unrelated_tokens = 256
    config.targets.unrelated_context = True
    config.targets.loss_tokens = "all"
    config.targets.answer_supervision = 0.0
    config.generator.form = "chat"
    config.generator.pairs_per_context = PAIRS[arg]
    config.generator.rounds = 50
    config.generator.pairs_per_reply = 10
    config.generator.reply_tokens = 1024
    config.generator.temperature = 1.0
    config.generator.top_p = 1.0
    config.generator.teacher_scores = False
    config.generator.least_support = 0.0
    config.endpoint.base_url = "https://api.openai.com/v1"
    config.endpoint.model = "gpt-4o-mini"
    config.sequential.length = 20
    config.sequential.sequences = 50

    set_released_optimizer(config)
    config.train.epochs = 1
    return config


def set_released_optimizer(config: ConfigDict) -> None:
    """The released adapter, and AdamW as PyTorch has it: one sentence a step at a constant rate."""
    config.lora.update(RELEASED["lora"])
    config.train.update(RELEASED["train"])
    config.train.batch_size = 1
    config.train.seq_len = 1024
    config.train.pack = False
