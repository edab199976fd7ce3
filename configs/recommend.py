"""Dialogues into one set of weights, then titles at every test turn, scored as the benchmark does.

python -m selfparam_jax.main --config=configs/recommend.py --workdir=/tmp/recommend
python -m selfparam_jax.main --config=configs/recommend.py:slice --workdir=/tmp/slice \
    --config.contexts=train_dialogues.jsonl --config.recommend.records=test_records.jsonl \
    --config.recommend.entities=entity2id.json --config.recommend.item_ids=item_ids.json
python -m selfparam_jax.main --config=configs/recommend.py:paper --workdir=/shared/recommend \
    --config.contexts=train.tsv  # and the three files of the benchmark
"""

from ml_collections import ConfigDict
from selfparam_jax.configs import base, paper


def get_config(arg: str = "") -> ConfigDict:
    """The recommendation job.

    Args:
      arg: "" (our example dialogues), "slice" (the first 12 dialogues and 16 test turns of a real data set, for a
        small model on two CPU cores), "paper" (Mistral-7B-Instruct, all dialogues and turns), "quick" (two dialogues
        and two turns, a few steps).
    """
    if arg not in ("", "slice", "paper", "quick"):
        raise ValueError(f"configs/recommend.py takes '', 'slice', 'paper' or 'quick', got {arg!r}")
    config = base.get_config()
    base.set_reading_recipe(config)
    config.job = "recommend"
    config.prompt = "chat"  # dialogues are learned in the format in which titles are asked for
    config.recommend.systems = ("base", "bm25", "ft_c", "ft_s", "popularity")
    config.recommend.new_tokens = 256  # 20 titles of a small model
    config.targets.generator = "none"  # the pairs are made by rule
    config.targets.long_pairs = "skip"
    config.targets.tails_per_context = 2
    config.targets.tail_cut = "sentence"  # turns begin sentences
    config.train.seq_len = 256
    config.train.learning_rate = 2e-3
    if arg == "slice":
        config.limit, config.recommend.turns = 12, 16
        config.recommend.new_tokens = 128
        config.train.epochs = 3
    if arg == "quick":
        config.limit = config.recommend.turns = 2
        config.recommend.systems = ("base", "popularity")
        config.recommend.new_tokens = 16
        config.train.epochs = 1
    if arg == "paper":
        config.model = "mistralai/Mistral-7B-Instruct-v0.2"
        config.dtype = "bfloat16"
        config.unrelated = "hub:DKYoon/SlimPajama-6B"
        config.recommend.new_tokens = 512
        config.targets.tails_per_context = 10
        config.targets.answer_supervision = 0.0
        config.targets.loss_tokens = "all"
        config.targets.unrelated_tokens = 256
        config.targets.unrelated_context = True
        paper.set_released_optimizer(config)
        config.train.epochs = 50
    return config
