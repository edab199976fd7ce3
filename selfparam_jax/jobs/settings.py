"""Every setting of a job with its default, as frozen dataclasses; a ConfigDict in, checked `Settings` out.

`configs/base.py` is built from these, so a default stands in one place: where the code is that uses it.
"""

import dataclasses
import difflib
import functools
import math
import typing
from types import MappingProxyType
from typing import Annotated

from ml_collections import ConfigDict

from selfparam_jax.baselines.registry import RECOMMENDERS, SYSTEMS, system_name
from selfparam_jax.checkpoints.default_model import DEFAULT_MODEL
from selfparam_jax.checkpoints.tokenizers import read_date
from selfparam_jax.distributed.files import flatten
from selfparam_jax.distributed.mesh import MeshConfig
from selfparam_jax.distributed.ranges import SEED, Range, check_ranges, shown
from selfparam_jax.evaluation.reach import LEVELS
from selfparam_jax.evaluation.recommenders import RecommendConfig
from selfparam_jax.models.attention import ATTENTION, BLOCKS
from selfparam_jax.models.lora import LoraConfig
from selfparam_jax.models.rounding import AUTO as AUTO_PRECISION
from selfparam_jax.models.rounding import PRECISIONS
from selfparam_jax.sequential.config import SequentialConfig
from selfparam_jax.targets.config import EndpointConfig, GeneratorConfig, TargetConfig
from selfparam_jax.training.optimizer import TrainConfig
from selfparam_jax.training.other_teacher import TeacherConfig
from selfparam_jax.training.recipe import AUTO as AUTO_REMAT
from selfparam_jax.training.recipe import PASSAGE_RANGE, PASSAGE_TOKENS, RELATED_RANGE, RELATED_SHARE, Recipe

TRACKERS = ("tensorboard", "wandb")
JOBS = ("batch", "single", "sequential", "recommend")
DTYPES = ("float32", "bfloat16")
BASE_WEIGHTS = ("float", "int8")
SELF = "self"  # config.unrelated: the model draws the texts itself

# Settings that were called otherwise in versions before 0.2.
RENAMED = {
    "train.batch_rows": "train.batch_size",
    "train.row_length": "train.seq_len",
    "train.b_ratio": "train.loraplus_ratio",
    "lora.targets": "lora.target_modules",
    "sequential.rehearsal_pairs": "sequential.replay_pairs",
    "sequential.rehearsal_per_epoch": "sequential.replay_per_epoch",
    "sequential.rehearsal_weight": "sequential.replay_weight",
    "sequential.imagined_per_epoch": "sequential.self_generated_per_epoch",
    "eval.systems": "systems",
}
RENAMED_VALUES = {("prompt", "worked"): "few_shot"}


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """What a job measures beside its training.

    Attributes:
      general: general text on which drift is measured, never trained on: "examples" (ours), a JSONL file with "text",
        or a .txt file with blank lines between texts; "" measures none.
      batch_size: questions decoded together.
      sample_every: steps from one sample of answers to the next during training: held-out questions, answered by the
        model as it stands, into samples.jsonl and the trackers of `report_to`; 0: none.
      sample_questions: how many questions a sample asks.
      reach: what job "batch" asks to see whether the documents are known however one asks. "forms": the held-out
        questions in the reading format, through the model's chat template, and bare. "all": also in other words, from
        the other side, as claims, "tell me what you know", and what must not change (unrelated and invented
        questions, instructions); takes some minutes on a CPU. "none".
      reach_file: JSON lines with other wordings of the held-out questions, for "all": "context", "question",
        "other_words", "inverted" (with "question" and "answers"), "true" and "false"; "examples" has those of our
        documents. Questions that are not in it are not asked in these ways.

    Raises:
      ValueError: a value outside its range.
    """

    general: str = "examples"
    batch_size: Annotated[int, Range(1, 2**16)] = 16
    sample_every: Annotated[int, Range(1, 10**9, also={0: "none"})] = 0
    sample_questions: Annotated[int, Range(1, 10**6)] = 4
    reach: str = "forms"
    reach_file: str = "examples"

    def __post_init__(self):
        check_ranges(self, "eval")
        if self.reach not in LEVELS:
            raise ValueError(f"eval.reach = {self.reach!r}, expected one of {', '.join(map(repr, LEVELS))}")


# A section for each system that has settings of its own: a new system brings them along.
BaselineOptions = dataclasses.make_dataclass(
    "BaselineOptions",
    [(name, entry.options, entry.options()) for name, entry in SYSTEMS.items() if entry.options],
    namespace={"__post_init__": lambda self: check_ranges(self, "baselines")},
    frozen=True,
)
BaselineOptions.__doc__ = "The own settings of the systems that have some.\n\nAttributes:\n" + "\n".join(
    f"  {field.name}: {SYSTEMS[field.name].label}, {SYSTEMS[field.name].meaning}."
    for field in dataclasses.fields(BaselineOptions)
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a job.

    Attributes:
      job: "batch": all documents into one set of weights. "single": each document on its own. "sequential": one after
        the other into the same weights, with all questions asked after each. "recommend": dialogues, all into one
        set of weights, then titles are recommended at test turns.
      seed: of everything that is drawn, 0 to 2**32 - 1.
      model: the base: "smollm2-135m-instruct" (embedded), a directory in Hugging Face's layout, a .gguf file, or a
        hub id such as "openlm-research/open_llama_3b_v2".
      adapter: a directory with a LoRA adapter of the base in PEFT's layout, ours or another's, that training starts
        from, and that is part of the result; "" starts from a fresh one (not for job "sequential"). Where it has
        fewer ranks than `lora.rank`, or lacks a projection of `lora.target_modules`, there is room for new ones; what
        it has is kept. The base alone teaches.
      date: the day that a chat template is told if it asks for it, "2026-11-28"; "" is the day on which the work
        directory is made, which is kept there for every later use of it.
      dtype: of weights and activations, "float32" or "bfloat16"; products always accumulate in float32.
      base_weights: how the frozen base is held: "float" (in `dtype`), or "int8": the kernels of its layers in 8 bits,
        half of what bfloat16 takes (needs the extra `int8`; not for job "sequential"). The adapter is merged into the
        base in its own dtype.
      matmul_precision: of products with the frozen weights where `dtype` is float32. "bfloat16" (one device) rounds
        weights and activations as they are multiplied, and sums in float32; it needs half the weights' memory on top.
        "auto": bfloat16 on processors that have instructions for it (AMX, AVX-512 BF16), where a step takes about two
        thirds of the time, else float32.
      remat: what the backward pass computes again instead of storing it: "layers" (all of a layer: the least memory),
        "products" (all but the products with weights), "none" (nothing: the fastest where memory suffices). "auto":
        "none" where a step keeps about 1 GiB at most, else "layers".
      attention: "blocks" (ours); "xla" or "cudnn" (GPU, bfloat16), jax.nn.dot_product_attention's, in training alone;
        "splash" (TPU), JAX's Pallas kernel, in training and where documents are read.
      compilation_cache: store compiled programs in the cache directory for the next run (JAX_COMPILATION_CACHE_DIR is
        honoured).
      prompt: how document, question and answer become text: "plain", "few_shot" (plain, and a reader with the
        document sees four worked examples first: what small models need), "paper" or "chat".
      contexts: the documents: a JSONL file, a file of text, Markdown, HTML, PDF, Word, PowerPoint, EPUB, a notebook,
        source code or conversations, a folder of these, a pattern ("notes/*.md"), a file in SQuAD's layout (.json,
        or rows in .jsonl or .parquet), "examples" (ours; "examples:4" the first four, "examples:development" others),
        "pwc", "squad", "squad:train", "squadshifts:new_wiki" (nyt, reddit, amazon), each also from a local copy as
        "squad@PATH", or another data set of the hub, "hub:ID:SPLIT". Several sources are given one a line.
      context_ids: only the documents with these ids, in this order; () means all.
      limit: only the first of the documents, at most this many; 0 means all.
      passage_tokens: a document of more tokens than this is read as passages of at most as many, cut along its
        headings, paragraphs and sentences; 0 splits none (not in job "recommend").
      related_share: of what a model or a server writes pairs about in a long document (targets.generator "local",
        "endpoint"), how much is two or three related passages that are read together, 0 to 0.5.
      unrelated: unrelated text that keeps the model what it was: "examples" (ours), JSONL with "text", paragraphs in
        a .txt, .parquet, .jsonl.gz, a folder of these, a hub data set that is streamed ("hub:DKYoon/SlimPajama-6B"),
        or "self": drawn from the model.
      export_dtype: dtype of the merged model under WORKDIR/merged, a Hugging Face directory (jobs "batch", and
        "sequential" of one sequence): "bfloat16", "float32", or "" for none.
      report_to: who is told of steps, scores, settings and sampled answers beside the files of the work directory:
        "none", "tensorboard" (event files in WORKDIR/tensorboard), "wandb" (Weights & Biases; WANDB_MODE=offline
        keeps it on disk), or both, separated by a comma. Needs the extra `trackers`.
      mesh: the devices of all processes together, and how long one may be silent.
      teacher: who teaches, if it is not the base that learns.
      targets: which target sentences, and the loss on their tokens.
      generator: how pairs are written for documents that bring none.
      endpoint: the server that writes them, for `targets.generator` "endpoint".
      sequential: how documents follow one another in job "sequential".
      lora: shape of the adapter.
      train: optimizer, batches and epochs.
      eval: what is measured.
      systems: which systems answer the questions beside the injected model, by name (`baselines.registry.SYSTEMS`);
        a finished run may be asked for more of them.
      baselines: the own settings of these systems.
      recommend: what job "recommend" asks; its `contexts` are dialogues (`data.dialogues`), "examples" are ours.

    Raises:
      ValueError: a value that is not possible.
    """

    job: str = "batch"
    seed: Annotated[int, SEED] = 0
    model: str = DEFAULT_MODEL
    adapter: str = ""
    date: str = ""
    dtype: str = "float32"
    base_weights: str = "float"
    matmul_precision: str = AUTO_PRECISION
    remat: str = AUTO_REMAT
    attention: str = BLOCKS
    compilation_cache: bool = True
    prompt: str = "few_shot"
    contexts: str = "examples"
    context_ids: tuple[str, ...] = ()
    limit: Annotated[int, Range(1, 10**9, also={0: "all documents"})] = 0
    passage_tokens: Annotated[int, PASSAGE_RANGE] = PASSAGE_TOKENS
    related_share: Annotated[float, RELATED_RANGE] = RELATED_SHARE
    unrelated: str = "examples"
    export_dtype: str = "bfloat16"
    report_to: str = "none"
    mesh: MeshConfig = MeshConfig()
    teacher: TeacherConfig = TeacherConfig()
    targets: TargetConfig = TargetConfig()
    generator: GeneratorConfig = GeneratorConfig()
    endpoint: EndpointConfig = EndpointConfig()
    sequential: SequentialConfig = SequentialConfig()
    lora: LoraConfig = LoraConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    recommend: RecommendConfig = RecommendConfig()
    systems: tuple[str, ...] = ("base_q", "base_cq")
    baselines: BaselineOptions = BaselineOptions()

    def __post_init__(self):
        check_ranges(self)
        for name, allowed in (
            ("job", JOBS),
            ("dtype", DTYPES),
            ("export_dtype", (*DTYPES, "")),
            ("base_weights", BASE_WEIGHTS),
            ("matmul_precision", PRECISIONS),
            ("attention", ATTENTION),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} = {getattr(self, name)!r}, expected one of {', '.join(map(repr, allowed))}")
        for name, value in (
            ("model", self.model),
            ("unrelated", self.unrelated),
            *(("contexts", each) for each in self.contexts.split("\n")),
        ):
            if not value.strip():
                raise ValueError(f"{name} = {value!r}, expected a name or a path; see docs/settings.md")
        if unknown := [name for name in self.trackers if name not in TRACKERS]:
            raise ValueError(f"report_to names {unknown[0]!r}, expected none or some of {', '.join(TRACKERS)}")
        read_date(self.date)
        for name in self.systems:
            self._check_system(name)
        for name in self.recommend.systems:
            if name not in RECOMMENDERS:
                raise ValueError(f"recommend.systems has {name!r}, expected some of {', '.join(RECOMMENDERS)}")
        if self.int8 and self.job == "sequential":
            raise ValueError(
                "base_weights = 'int8' with job 'sequential', expected 'float': every injection is merged into the "
                "weights that teach the next one, and 8 bits would lose it"
            )
        if self.adapter and self.job == "sequential":
            raise ValueError(
                f"adapter = {self.adapter!r} with job 'sequential', expected '': its ledger has an adapter for every "
                "injection; merge the adapter into its base with `selfparam export ADAPTER --base=MODEL --format=hf "
                "--out=DIR`, and set model to DIR"
            )
        if self.teacher.model and self.job == "sequential":
            if self.sequential.teacher == "current":
                raise ValueError(
                    f"teacher.model = {self.teacher.model!r} with sequential.teacher = 'current', expected "
                    "'original': another model does not learn what the injections before have taught; set "
                    "sequential.teacher='original', or teacher.model=''"
                )
            if self.sequential.self_generated_per_epoch:
                raise ValueError(
                    f"teacher.model = {self.teacher.model!r} with sequential.self_generated_per_epoch = "
                    f"{self.sequential.self_generated_per_epoch}, expected 0: these pairs are read by the model that "
                    "learns, whose states are not the teacher's; set it to 0, or teacher.model=''"
                )
        if self.targets.distractors and self.job in ("single", "sequential"):
            raise ValueError(
                f"targets.distractors = {self.targets.distractors} with job {self.job!r}, expected 0: it reads one "
                "document at a time, so there are no others to stand beside it; set it to 0, or job=batch"
            )
        again = self.sequential.replay_pairs or self.sequential.self_generated_per_epoch
        if self.job == "sequential" and self.train.teacher == "online" and again:
            raise ValueError(
                "train.teacher = 'online' with replay or self-generated pairs, expected 'stored': the model that "
                "read them no longer exists; leave train.teacher at its default, or set sequential.replay_pairs, "
                "replay_per_epoch and self_generated_per_epoch to 0"
            )
        self.recipe  # noqa: B018  checks what only a recipe knows

    def _check_system(self, name: str) -> None:
        entry = SYSTEMS[system_name(name)]
        if entry.needs_adapters and self.job != "single":
            raise ValueError(
                f"systems has {name!r} in job {self.job!r}, expected it in job 'single' only, which has an adapter "
                "for each document; take it out or set job=single"
            )
        if self.job == "sequential" and not entry.in_sequence:
            raise ValueError(
                f"systems has {name!r} in job 'sequential', expected it in jobs 'batch' and 'single' only: what it "
                "learns or needs is no adapter that can be merged before the next document; take it out"
            )

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers of `report_to`."""
        names = [name.strip() for name in self.report_to.split(",")]
        return tuple(name for name in dict.fromkeys(names) if name not in ("", "none"))

    @property
    def int8(self) -> bool:
        """Whether the base's kernels are rounded to 8 bits."""
        return self.base_weights == "int8"

    @property
    def recipe(self) -> Recipe:
        """How documents are written into the model."""
        return Recipe(
            seed=self.seed,
            prompt=self.prompt,
            remat=self.remat,
            targets=self.targets,
            generator=self.generator,
            endpoint=self.endpoint,
            lora=self.lora,
            train=self.train,
            passage_tokens=0 if self.job == "recommend" else self.passage_tokens,
            related_share=self.related_share,
        )

    @property
    def texts_wanted(self) -> int:
        """How many unrelated texts the job has use for."""
        fresh = self.job == "sequential" and self.sequential.fresh_texts
        injections = self.sequential.length if fresh else 1
        return self.targets.unrelated_per_epoch * self.train.epochs * injections


def fields_of(section: type) -> list[dataclasses.Field]:
    """The fields of a settings class that a user sets; those filled in from elsewhere are left out."""
    return [field for field in dataclasses.fields(section) if not field.metadata.get("derived")]


def default_config() -> ConfigDict:
    """A fresh ConfigDict with every setting at its default."""
    return _to_config(Settings)


def _to_config(section: type) -> ConfigDict:
    values = {}
    for field in fields_of(section):
        value = field.default
        values[field.name] = _to_config(type(value)) if dataclasses.is_dataclass(value) else value
    return ConfigDict(values)


def read_settings(config: ConfigDict | dict) -> Settings:
    """Checks a configuration.

    Raises:
      ValueError: a setting that does not exist (one that was renamed is named), or a value that is not possible.
    """
    given = config.to_dict() if isinstance(config, ConfigDict) else config
    check_names(flatten(given))
    for (name, old), new in RENAMED_VALUES.items():
        if given.get(name) == old:
            raise ValueError(f"{name} = {old!r} is called {new!r} now; write {name} = {new!r}")
    return _from_dict(Settings, given, "")


def _from_dict(section: type, given: dict, prefix: str):
    """An instance of a settings class from a dict; what is not given has its default."""
    if not isinstance(given, dict):
        raise ValueError(
            f"{prefix[:-1]} = {shown(given)}, expected its settings, such as {fields_of(section)[0].name}"
        )
    types, values = typing.get_type_hints(section), {}
    for field in fields_of(section):
        if field.name not in given:
            continue
        name, kind, value = prefix + field.name, types[field.name], given[field.name]
        if dataclasses.is_dataclass(kind):
            values[field.name] = _from_dict(kind, value, f"{name}.")
        else:
            values[field.name] = _typed(name, kind, value)
    try:
        return section(**values)
    except ValueError as error:
        # The options of a system do not know under which name it is registered.
        raise ValueError(f"{prefix}{error}" if prefix.startswith("baselines.") else str(error)) from error


def _typed(name: str, kind: type, value: object) -> object:
    """The value as the setting's type. Raises ValueError if it is of another."""
    if typing.get_origin(kind) is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise ValueError(f"{name} = {value!r}, expected a tuple, such as ('a',)")
        if not all(isinstance(each, typing.get_args(kind)[0]) for each in value):
            raise ValueError(f"{name} = {value!r}, expected a tuple of {typing.get_args(kind)[0].__name__}")
        if name == "context_ids":  # an id may hold a comma
            return tuple(value)
        # A command line's a,b arrives as one string.
        return tuple(part.strip() for each in value for part in each.split(","))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 10**300 else value  # more is no float; out of every range
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{name} = {shown(value)}, expected {'an' if kind is int else 'a'} {kind.__name__}")
    return value


@functools.cache
def _defaults() -> MappingProxyType:
    """The default of every setting by its dotted name."""
    return MappingProxyType(flatten(default_config().to_dict()))


def setting_names() -> list[str]:
    """The dotted names of all settings."""
    return list(_defaults())


def check_text(name: str, text: str) -> None:
    """Raises ValueError for a value, as a command line has it, that is not of its setting's type."""
    default = _defaults().get(name)
    if default is None:  # a section
        fields = [known for known in setting_names() if known.startswith(f"{name}.")]
        if fields:
            raise ValueError(f"{name} = {text!r}, expected one of its settings, such as {fields[0]}")
        return
    if isinstance(default, bool):
        expected, fits = "true or false", text.lower() in ("true", "t", "1", "false", "f", "0")
    elif isinstance(default, int | float):
        expected = "an int" if isinstance(default, int) else "a float"
        try:
            fits = isinstance(int(text, 0), int) if isinstance(default, int) else math.isfinite(float(text))
        except ValueError:
            fits = False
    else:
        return
    if not fits:
        raise ValueError(f"{name} = {shown(text)}, expected {expected}; the default is {default}")


def check_names(names: typing.Iterable[str]) -> None:
    """Raises ValueError for a name that is no setting; says the new name of one that was renamed."""
    known = setting_names()
    sections = {name.partition(".")[0] for name in known if "." in name}
    for name in names:
        if name in known or name in sections:
            continue
        if name in RENAMED:
            raise ValueError(f"the setting {name} is called {RENAMED[name]} now")
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "see `--config` in the documentation, settings"
        raise ValueError(f"there is no setting {name}; {hint}")
