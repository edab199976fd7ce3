"""Every setting with its default. The other configurations start from here and change a few.

    python -m selfparam_jax.main --config=configs/base.py --workdir=/tmp/run

Any field can be set on the command line: `--config.lora.rank=16 --config.train.epochs=8`.
"""

import pathlib

from ml_collections import ConfigDict

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"


def get_config(arg: str = "") -> ConfigDict:
    """The defaults. `arg` is what follows the colon in `--config=FILE:arg`; here it must be empty."""
    if arg:
        raise ValueError(f"configs/base.py takes no argument, got {arg!r}")
    config = ConfigDict()

    # "batch": all contexts into one set of weights. "single": each context on its own. "sequential": one after the
    # other into the same weights, with all questions asked after each.
    config.job = "batch"
    config.seed = 0

    # The model: "smollm2-135m-instruct" (embedded), a directory in Hugging Face's layout, a .gguf file,
    # or a hub id such as "openlm-research/open_llama_3b_v2".
    config.model = "smollm2-135m-instruct"
    # dtype of weights and activations: "float32" or "bfloat16". Products always accumulate in float32.
    config.dtype = "float32"
    # How the frozen base is held: "float" (in dtype), or "int8": the kernels of its layers in 8 bits, half of what
    # bfloat16 takes (needs the extra int8; not for job "sequential"). The adapter is merged into the base as it was.
    config.base_weights = "float"
    # What the backward pass computes again instead of keeping it: "layers" (all of a layer: the least memory),
    # "products" (all but the products with weights), "none" (nothing: the fastest where memory suffices).
    config.remat = "layers"
    # Attention: "blocks" (ours); "xla" or "cudnn" (GPU, bfloat16), jax.nn.dot_product_attention's, in training alone;
    # "splash" (TPU), JAX's Pallas kernel, in training and where contexts are read: for those of many thousand tokens.
    config.attention = "blocks"

    # Keep compiled programs from one run to the next (in the cache directory; JAX_COMPILATION_CACHE_DIR is honoured).
    config.compilation_cache = True

    # The devices of all processes together: rows of a batch are split over data x fsdp, weights over fsdp x tensor.
    # -1 is what the others leave. A run may go on with other sizes.
    config.mesh = ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1
    # Of several processes: seconds without a finished step, reading or batch of answers after which all end with a
    # message; 0 waits for ever.
    config.mesh.stall_limit_s = 1800.0

    # How context, question and answer become text: "plain", "worked" (plain, and a reader with context
    # sees four worked examples first; what small models need), "paper", or "chat".
    config.prompt = "worked"

    # What is written into the weights: a JSONL file of contexts, a folder of .txt and .md files, a file in SQuAD's
    # layout (.json, or rows in .jsonl or .parquet), "pwc", "squad", "squad:train", "squadshifts:new_wiki" (nyt,
    # reddit, amazon), each also from a local copy as "squad@PATH", or another hub data set, "hub:ID:SPLIT".
    config.contexts = str(EXAMPLES / "documents.jsonl")
    config.context_ids = ()  # only these, in this order; () means all
    config.limit = 0  # only the first so many; 0 means all
    # Unrelated text that keeps the model what it was: JSONL with "text", paragraphs in a .txt, .parquet, .jsonl.gz, a
    # folder of these, a hub data set that is streamed ("hub:DKYoon/SlimPajama-6B"), or "self": drawn from the model.
    config.unrelated = str(EXAMPLES / "general_train.jsonl")

    config.targets = ConfigDict()
    # Who writes question-answer pairs about the contexts: "none" (only those that the file brings), "local" (the
    # model itself) or "endpoint" (a server); see `generator` and `endpoint` below.
    config.targets.generator = "none"
    config.targets.qa_per_context = 0  # QA pairs per context; 0 means all
    # A pair of the file that is longer than a training row: "refuse" the job, or "skip" the pair (with a count).
    config.targets.long_pairs = "refuse"
    config.targets.qa_weight = 1.0  # factor of the loss on QA pairs; 0 leaves them out
    config.targets.answer_shape = "any"  # only pairs whose answer is "short" (up to six words) or a "sentence"
    # What becomes of a pair when the teacher, with the context in view, answers its question otherwise: "none"
    # (nothing), "keep" (only pairs are kept whose answer has at least this token F1 with the teacher's) or "rewrite"
    # (the teacher's answer takes its place).
    config.targets.agreement = "none"
    config.targets.least_agreement = 1.0
    # A student copies its teacher's mistakes: leave out the pairs whose answer the teacher, with the context
    # in view, finds less likely than this (geometric mean over the answer's tokens). 0 keeps all.
    config.targets.least_confidence = 0.0
    # Which tokens of a QA pair carry the KL: "answer", "all" (as published), or two weights, of the question's
    # tokens and of the answer's: "0.1,1".
    config.targets.loss_tokens = "answer"
    # Weight of a next-token loss on the pair's own answer, beside the KL. 0 is the paper's objective; a small
    # teacher answers many questions wrongly even with the context in view, and this outvotes it.
    config.targets.answer_supervision = 0.5
    config.targets.tails_per_context = 0  # context tails per epoch, other ones in every epoch
    config.targets.tail_weight = 1.0
    config.targets.tail_cut = "random"  # where they begin: at any token ("random") or where a "sentence" begins
    config.targets.unrelated_per_epoch = 12  # unrelated texts per pass over the QA pairs
    config.targets.unrelated_weight = 1.0
    config.targets.unrelated_tokens = 48  # an unrelated text is used up to this many tokens
    # Whether the teacher reads a context before unrelated text (published: yes). False makes the term
    # exactly "stay what you were".
    config.targets.unrelated_context = False

    # How pairs are written; WORKDIR/pairs.jsonl grows as they arrive.
    config.generator = ConfigDict()
    # Where the pairs are; "" is WORKDIR/pairs.jsonl. A file that `python -m selfparam_jax.targets` has written serves
    # any number of jobs, and with targets.generator "none" it is only read.
    config.generator.file = ""
    # How a model is asked: "chat", through its chat template, or "completion", as a text that it goes on with
    # (base models, and small ones such as the embedded model; not through an endpoint).
    config.generator.form = "completion"
    config.generator.pairs_per_context = 40  # no further round for a context that has as many
    config.generator.rounds = 3  # in form "chat" later rounds are told the pairs there are
    config.generator.replies = 32  # sampled per context and round, shared among the kinds by weight
    config.generator.pairs_per_reply = 6  # what a prompt of a chat asks for
    config.generator.reply_tokens = 64  # a longer reply is cut off; a chat needs about 40 for every pair
    config.generator.temperature = 0.7
    config.generator.top_p = 0.95
    config.generator.prompts = ""  # a file of the form of selfparam_jax/question_prompts.toml; "" is that file
    config.generator.kinds = ()  # only these of its kinds; () means all of the form
    # Which of the written pairs are used. pairs.jsonl holds all with their scores, so this may be changed over it.
    config.generator.teacher_scores = True  # score pairs by the teacher's likelihood of the answer
    config.generator.least_support = 0.6  # share of an answer's words that must stand in the context
    # Geometric mean probability per token of the answer that the teacher must give it with the context in view, and
    # by how much it must be higher than without.
    config.generator.least_likelihood = 0.0
    config.generator.least_gain = 0.0
    config.generator.duplicate_threshold = 90.0  # questions as alike as this (of 100) are one question

    # The server of targets.generator "endpoint": any that speaks OpenAI's chat completions (vLLM, llama.cpp, ...).
    config.endpoint = ConfigDict()
    config.endpoint.base_url = "http://localhost:8000/v1"
    config.endpoint.model = ""  # its name at the server
    # The environment variable with the key; "" for a server that needs none. The key is never written or logged.
    config.endpoint.key_variable = "OPENAI_API_KEY"
    config.endpoint.concurrency = 8  # requests under way at once
    config.endpoint.retries = 6  # further attempts, with growing pauses, after 429, 5xx, timeouts, broken answers
    config.endpoint.timeout_s = 300.0
    config.endpoint.budget = 0.0  # the most that may be spent, in the currency of the prices; 0 is no limit
    config.endpoint.price_in = 0.0  # of a million tokens of prompts
    config.endpoint.price_out = 0.0  # of a million tokens of replies
    config.endpoint.token_budget = 0  # the most tokens, prompts and replies together; 0 is no limit
    config.endpoint.limit_name = "max_tokens"  # or "max_completion_tokens", where the server wants that
    config.endpoint.omit = ()  # of "temperature", "top_p" and "seed": those that the server refuses

    # Job "sequential".
    config.sequential = ConfigDict()
    config.sequential.length = 20  # contexts per sequence
    config.sequential.sequences = 1  # each from the untouched base, with the contexts that follow
    # Who teaches: "current", the model as it stands, with the context in view (as published), or the "original".
    config.sequential.teacher = "current"
    # Against forgetting, all off as published. Rehearsal: of every injection so many pairs are kept together with the
    # teacher's states, and every epoch of a later one goes over so many of all that are kept.
    config.sequential.rehearsal_pairs = 0
    config.sequential.rehearsal_per_epoch = 0
    config.sequential.rehearsal_weight = 1.0  # of their losses
    # Pairs that the current model says of its own accord, to stay as it is on them: so many per epoch.
    config.sequential.imagined_per_epoch = 0
    # Keep each adapter orthogonal to what the earlier ones read.
    config.sequential.orthogonal = False
    # Whether every injection draws unrelated texts of its own, as far as there are enough; else all have the same.
    config.sequential.fresh_texts = False

    config.lora = ConfigDict()
    config.lora.rank = 8
    config.lora.alpha = 16.0
    config.lora.dropout = 0.0
    config.lora.targets = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")

    config.train = ConfigDict()
    config.train.epochs = 5  # passes over the QA pairs
    config.train.batch_rows = 2  # rows per optimiser step; a multiple of the number of devices
    config.train.accumulate = 1  # parts of a step's rows that are gone through one after another: less memory
    config.train.row_length = 128  # tokens per row; sentences are packed into rows
    # "stored": the teacher reads every sentence once. "online": it reads each step's sentences again, unpacked,
    # each after its whole context: the slow reference, and for a teacher that changes.
    config.train.teacher = "stored"
    config.train.loss_chunk = 128  # loss positions per device whose logits over the vocabulary are held at a time
    config.train.pack = True  # False: one sentence per row (the slow reference)
    config.train.learning_rate = 4e-3
    config.train.b_ratio = 1.0  # learning rate of LoRA's B relative to A (LoRA+)
    config.train.schedule = "cosine"  # "constant", "linear" or "cosine"
    config.train.warmup = 0.05  # share of the steps
    config.train.final_fraction = 0.05  # where the schedule ends, relative to its peak
    config.train.clip_norm = 1.0  # global gradient norm; 0 means no clipping
    config.train.weight_decay = 0.0
    config.train.beta1 = 0.9
    config.train.beta2 = 0.99
    config.train.temperature = 1.0  # of teacher and student in the KL
    config.train.checkpoint_every = 100  # steps; 0 means only at the end

    config.eval = ConfigDict()
    # Text on which drift is measured; never trained on. "" measures none.
    config.eval.general = str(EXAMPLES / "general_eval.jsonl")
    config.eval.batch_size = 16  # questions decoded together

    # The merged model as a Hugging Face directory under WORKDIR/merged (job "batch"): "bfloat16",
    # "float32", or "" for none.
    config.export_dtype = "bfloat16"
    return config
