"""A teacher of another size, family and precision: the loss by hand, its vocabulary, what stays of it, whole jobs."""

import contextlib
import dataclasses
import json
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from families import hf_config
from job_inputs import TEXTS, assert_same_adapter, batch_config, documents, flat_adapter, newest_adapter

import selfparam_jax as sp
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed.files import read_lines
from selfparam_jax.distributed.mesh import MeshConfig, make_mesh
from selfparam_jax.evaluation.questions import answer_questions
from selfparam_jax.jobs.inputs import prepare
from selfparam_jax.jobs.run import run_job
from selfparam_jax.jobs.settings import read_settings
from selfparam_jax.models.decoder import CappedHead, apply_head, output_head
from selfparam_jax.models.registry import model_config_from_hf
from selfparam_jax.targets.formats.forms import teacher_prefixes
from selfparam_jax.training import batches, train_step
from selfparam_jax.training.inject import (
    Hooks,
    Interrupted,
    first_adapter,
    inject,
    read_teacher,
    student_decoder,
)
from selfparam_jax.training.losses import Signal, chunked_loss, kl_from_logits
from selfparam_jax.training.other_teacher import OtherTeacher, TeacherConfig, check_tokens, check_vocabulary
from selfparam_jax.training.recipe import Recipe

UNRELATED = [record["text"] for record in TEXTS]
RECIPE = Recipe(
    prompt="plain", epochs=2, batch_size=2, seq_len=128, unrelated_per_epoch=2, tails_per_context=1,
    checkpoint_every=1, learning_rate=1e-2,
)  # fmt: skip
OTHER_SIZE = {"hidden_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 1024}
# By family: the transformers class, and what differs from the student beside the size.
FAMILIES = {
    "qwen2": ("Qwen2Config", {}),
    "capped": ("Gemma2Config", {"head_dim": 12, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0}),
    "more rows": ("Qwen2Config", {"vocab_size": 288}),
    "fewer rows": ("Qwen2Config", {"vocab_size": 270}),
}


def small_tokenizer():
    """The tiny tokenizer without its last fillers, for weights with fewer rows."""
    made = tiny.tokenizer()
    description = json.loads(made.backend_tokenizer.to_str())
    description["model"]["vocab"] = {t: n for t, n in description["model"]["vocab"].items() if n < 270}
    made.backend_tokenizer  # noqa: B018
    from tokenizers import Tokenizer

    return type(made)(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)),
        bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=tiny.CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def teacher_of(random_params):
    """A function: name of FAMILIES -> a random model of other sizes than the student."""

    def make(name):
        hf_class, changes = FAMILIES[name]
        config = model_config_from_hf(hf_config(hf_class, **OTHER_SIZE, **changes))
        tokenizer = small_tokenizer() if name == "fewer rows" else tiny.tokenizer()
        return Model(name, config, random_params(config, seed=1), tokenizer, None, f"fingerprint of {name}")

    return make


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory):
    """The directory of a Mistral of another size than the student."""
    directory = tmp_path_factory.mktemp("teacher")
    tiny.save_checkpoint(directory, "mistral_full", seed=5, **OTHER_SIZE)
    return directory


def student_for(model, name):
    return dataclasses.replace(model, tokenizer=small_tokenizer()) if name == "fewer rows" else model


def other(model, student):
    return OtherTeacher(lambda: model, student)


# The loss.


@pytest.mark.parametrize("caps", [(None, None), (4.0, None), (None, 2.0), (4.0, 2.0)])
@pytest.mark.parametrize("rows", [(37, 37), (37, 41), (40, 37)])
def test_each_head_with_its_own_size_and_cap(rows, caps):
    rng = np.random.default_rng(0)
    shape, used = (3, 10), np.array([7, 10, 1], np.int32)
    student, states = (jnp.asarray(rng.standard_normal((*shape, d)), jnp.float32) for d in (6, 9))
    heads = [jnp.asarray(rng.standard_normal(s), jnp.float32) for s in zip(rows, (6, 9), strict=True)]
    heads = [head if cap is None else CappedHead(head, cap) for head, cap in zip(heads, caps, strict=True)]
    weights, supervision = (jnp.asarray(rng.choice([0.0, 1.0, 3.0], shape), jnp.float32) for _ in range(2))
    targets = jnp.asarray(rng.integers(0, 37, shape), jnp.int32)
    signal = Signal(jnp.asarray(used), states, weights, targets, supervision)

    def slow(student):
        ours, theirs = (
            apply_head(x, h)[..., :37].reshape(-1, 37) for x, h in zip((student, states), heads, strict=True)
        )
        valid = (np.arange(10)[None] < used[:, None]).reshape(-1)
        kl = kl_from_logits(theirs, ours, 1.5) * weights.reshape(-1) * valid
        chosen = jnp.take_along_axis(jax.nn.log_softmax(ours, axis=-1), targets.reshape(-1, 1), axis=-1)[:, 0]
        return jnp.sum(kl) - jnp.sum(chosen * supervision.reshape(-1) * valid)

    def fast(student):
        return chunked_loss(student, heads[0], signal, 1.5, 4, heads[1])[0]

    (expected, slope), (found, gradient) = (jax.value_and_grad(f)(student) for f in (slow, fast))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradient_are_those_of_full_logits(tiny_model, teacher_of, name):
    """Each sentence in a row of its own, the whole document before it for the teacher, the KL from all logits."""
    student, model = student_for(tiny_model, name), teacher_of(name)
    teacher, prompt = other(model, student), Prompt(RECIPE.prompt, student.tokenizer)
    sentences, slots, signal = read_teacher(student, prompt, documents(), RECIPE, UNRELATED, teacher=teacher)
    plan = batches.Plan(sentences, slots, prompt.start_ids, RECIPE.train, RECIPE.targets.unrelated_per_epoch)
    batch = batches.make_batch(plan.rows(0), signal, student.mesh, supervised=True)
    lora = jax.tree.map(lambda leaf: leaf + 0.02, first_adapter(student, RECIPE))
    decoder, key = student_decoder(student, RECIPE), jax.random.key(0)

    def fast(lora):
        loss = train_step.LossConfig(chunk=32)
        return train_step.student_loss(lora, student.params, batch, key, decoder, loss, teacher.head)[0]

    prefixes = teacher_prefixes(documents(), prompt, RECIPE.targets)
    chosen = [sentences[i] for row in plan.assignment(0) for i in row]
    assert {sentence.kind for sentence in chosen} >= {"qa", "unrelated"}
    start = tuple(prompt.start_ids)
    before = [start if s.context is None else tuple(prefixes[s.context])[: s.start] for s in chosen]
    length = max(len(b) + len(s.ids) for b, s in zip(before, chosen, strict=True))

    def logits(reader, variables, head, befores):
        ids, places = np.zeros((len(chosen), length), np.int32), []
        for row, (first, sentence) in enumerate(zip(befores, chosen, strict=True)):
            ids[row, : len(first) + len(sentence.ids)] = first + sentence.ids
            places += [(row, len(first) + token - 1) for token in range(len(sentence.ids))]
        positions = np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape)
        hidden, _ = reader.apply(variables, ids, positions, np.ones_like(ids))
        return apply_head(hidden[tuple(np.transpose(places))], head)

    weights, targets = (np.concatenate([getattr(s, field) for s in chosen]) for field in ("weights", "ids"))
    supervision = np.concatenate([s.supervision or (0.0,) * len(s.ids) for s in chosen])
    theirs = logits(model.decoder(), {"params": model.params}, output_head(model.params, model.config), before)

    def slow(lora):
        variables = {"params": student.params, "lora": lora}
        head = output_head(student.params, student.config)
        ours = logits(decoder, variables, head, [start] * len(chosen))
        shared = min(ours.shape[1], theirs.shape[1])
        kl = kl_from_logits(theirs[:, :shared], ours[:, :shared])
        log_probability = jax.nn.log_softmax(ours[:, :shared], axis=-1)[np.arange(len(targets)), targets]
        return jnp.sum(weights * kl) - jnp.sum(supervision * log_probability)

    (expected, slopes), (found, gradients) = (jax.jit(jax.value_and_grad(f))(lora) for f in (slow, fast))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slopes))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest), gradients, slopes)
    own = train_step.student_loss(lora, student.params, batch.replace(
        signal=batch.signal.replace(teacher=jnp.zeros((*batch.index.shape, student.config.hidden_size)))
    ), key, decoder, train_step.LossConfig())[0]  # fmt: skip
    assert abs(float(own) - float(found)) > 1e-2, "the teacher's states matter"


# Whole injections.


@pytest.fixture(scope="module")
def alone(tiny_model):
    return inject(tiny_model, documents(), RECIPE, UNRELATED)


def test_a_teacher_that_is_the_student_changes_nothing(tiny_model, alone):
    twin = dataclasses.replace(tiny_model, params=jax.tree.map(jnp.copy, tiny_model.params), name="twin")
    found = inject(tiny_model, documents(), RECIPE, UNRELATED, teacher=other(twin, tiny_model))
    assert_same_adapter(flat_adapter(found.lora), flat_adapter(alone.lora))


@pytest.fixture(scope="module")
def taught(tiny_model, teacher_of):
    """Taught by the Qwen2, in memory, without a stop."""
    return inject(tiny_model, documents(), RECIPE, UNRELATED, teacher=other(teacher_of("qwen2"), tiny_model))


def test_another_teacher_teaches_something_else(alone, taught):
    one, two = (np.concatenate([np.ravel(leaf) for leaf in flat_adapter(x.lora).values()]) for x in (alone, taught))
    assert np.abs(one - two).max() > 1e-3


def test_it_resumes_and_the_directory_of_another_teacher_is_refused(tiny_model, teacher_of, taught, tmp_path):
    teacher, done = other(teacher_of("qwen2"), tiny_model), []
    stop = Hooks(on_step=done.append, stop_requested=lambda first: contextlib.nullcontext(lambda: len(done) >= 2))
    with pytest.raises(Interrupted):
        inject(tiny_model, documents(), RECIPE, UNRELATED, tmp_path / "work", hooks=stop, teacher=teacher)
    resumed = inject(tiny_model, documents(), RECIPE, UNRELATED, tmp_path / "work", teacher=teacher)
    assert resumed.resumed_from == 2
    assert_same_adapter(flat_adapter(resumed.lora), flat_adapter(taught.lora))
    with pytest.raises(
        ValueError, match=r"another injection(?s:.*)teacher\.fingerprint: .*qwen2.* there, '\(not set\)"
    ):
        inject(tiny_model, documents(), RECIPE, UNRELATED, tmp_path / "work")
    with pytest.raises(
        ValueError, match=r"teacher\.fingerprint: 'fingerprint of qwen2' there, 'fingerprint of capped'"
    ):
        capped = other(teacher_of("capped"), tiny_model)
        inject(tiny_model, documents(), RECIPE, UNRELATED, tmp_path / "work", teacher=capped)


def test_the_online_teacher_gives_the_same(tiny_model, teacher_of, taught):
    recipe = dataclasses.replace(RECIPE, train=dataclasses.replace(RECIPE.train, teacher="online"))
    found = inject(tiny_model, documents(), recipe, UNRELATED, teacher=other(teacher_of("qwen2"), tiny_model))
    for name, leaf in flat_adapter(found.lora).items():
        np.testing.assert_allclose(leaf, flat_adapter(taught.lora)[name], rtol=0, atol=2e-4, err_msg=name)


def test_only_the_head_stays_for_training(tiny_model, teacher_of):
    loaded, alive = [], []

    def load():
        model = teacher_of("qwen2")
        loaded.append({jax.tree_util.keystr(path): weakref.ref(leaf) for path, leaf in
                       jax.tree_util.tree_leaves_with_path(model.params)})  # fmt: skip
        return model

    def look(_):
        alive.append({name for name, leaf in loaded[-1].items() if leaf() is not None})

    inject(
        tiny_model, documents(), RECIPE, UNRELATED, hooks=Hooks(on_step=look), teacher=OtherTeacher(load, tiny_model)
    )
    assert len(loaded) == 1 and len(loaded[0]) > 10
    assert alive and all(names == {"['lm_head']['weight']"} for names in alive)


def test_a_teacher_that_changes_under_the_hand_is_refused(tiny_model, teacher_of):
    names = iter(("qwen2", "capped"))
    teacher = OtherTeacher(lambda: teacher_of(next(names)), tiny_model)
    teacher.model()
    teacher.let_go()
    with pytest.raises(ValueError, match="the teacher 'capped' has changed while it was in use"):
        teacher.model()


def test_pairs_that_the_teacher_finds_unlikely_are_left_out(tiny_model, teacher_of):
    model = teacher_of("capped")
    recipe = dataclasses.replace(RECIPE, targets=dataclasses.replace(RECIPE.targets, least_confidence=0.001))
    prompt = Prompt(RECIPE.prompt, tiny_model.tokenizer)
    kept = [
        [s.record["question"] for s in sentences if s.kind == "qa"]
        for teaches, teacher in ((tiny_model, other(model, tiny_model)), (model, None))
        for sentences in [read_teacher(teaches, prompt, documents(), recipe, UNRELATED, teacher=teacher)[0]]
    ]
    assert kept[0] == kept[1], "judged by the model that teaches"


def test_over_several_devices_the_result_is_that_of_one(teacher_dir, model_dir):
    found = []
    for mesh in (make_mesh(jax.devices()[:1]), make_mesh(jax.devices()[:4], MeshConfig(data=1, fsdp=2, tensor=2))):
        student, model = load_model(model_dir, mesh=mesh), load_model(teacher_dir, mesh=mesh)
        done = inject(student, documents()[:1], RECIPE, UNRELATED, teacher=other(model, student))
        found.append({name: np.asarray(leaf) for name, leaf in flat_adapter(done.lora).items()})
    for name, leaf in found[0].items():
        np.testing.assert_allclose(found[1][name], leaf, rtol=0, atol=2e-4, err_msg=name)
    with pytest.raises(ValueError, match=r"the teacher .* is on other devices than the student"):
        other(load_model(teacher_dir), student).model()


# What is refused.


def with_token(index, token):
    """The tiny tokenizer with another token at an index."""
    from tokenizers import Tokenizer

    made = tiny.tokenizer()
    description = json.loads(made.backend_tokenizer.to_str())
    vocabulary = {n: t for t, n in description["model"]["vocab"].items()} | {index: token}
    description["model"]["vocab"] = {t: n for n, t in sorted(vocabulary.items())}
    return type(made)(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)),
        bos_token="<s>", eos_token="</s>", pad_token="<pad>",
    )  # fmt: skip


def test_another_vocabulary_is_refused_by_name(tiny_model, teacher_of):
    model = dataclasses.replace(teacher_of("qwen2"), tokenizer=with_token(270, "<other>"))
    for refused in (
        lambda: check_vocabulary(model, tiny_model),
        lambda: inject(tiny_model, documents(), RECIPE, UNRELATED, teacher=other(model, tiny_model)),
        lambda: sp.inject(tiny_model, documents(), RECIPE, unrelated=UNRELATED, teacher=model, progress=False),
    ):
        with pytest.raises(
            ValueError, match=r"'qwen2' has another vocabulary than 'tiny': id 270 is '<other>', exp"
        ) as e:
            refused()
        assert "\n" not in str(e.value)
    fewer = dataclasses.replace(model, tokenizer=small_tokenizer())
    with pytest.raises(ValueError, match=r"id 270 is no token, expected '<filler_\d+>'"):
        check_vocabulary(fewer, tiny_model)
    with pytest.raises(ValueError, match=r"id 270 is '<filler_\d+>', expected no token"):
        check_vocabulary(tiny_model, fewer)


def test_other_roles_of_tokens_are_refused(tiny_model, teacher_of):
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = "<pad>"
    model = dataclasses.replace(teacher_of("qwen2"), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="'qwen2' has eos_token '<pad>', expected '</s>' as 'tiny' has"):
        check_vocabulary(model, tiny_model)


def test_a_head_without_a_row_for_every_token_is_refused(tiny_model, teacher_of):
    model = dataclasses.replace(teacher_of("fewer rows"), tokenizer=tiny.tokenizer())
    with pytest.raises(ValueError, match="share 270 rows, expected 272, one for every token"):
        check_vocabulary(model, tiny_model)


def test_another_tokenization_of_the_same_tokens_is_refused(tiny_model, teacher_of):
    """The same tokens with other merges: "the" is three tokens there."""
    from tokenizers import Tokenizer

    made = tiny.tokenizer()
    description = json.loads(made.backend_tokenizer.to_str())
    description["model"]["merges"] = description["model"]["merges"][1:2]
    tokenizer = type(made)(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)),
        bos_token="<s>", eos_token="</s>", pad_token="<pad>",
    )  # fmt: skip
    model = dataclasses.replace(teacher_of("qwen2"), tokenizer=tokenizer)
    check_vocabulary(model, tiny_model)
    with pytest.raises(ValueError, match="'qwen2' cuts 'on the river' into other tokens than 'tiny': token 3 is "):
        check_tokens(model, tiny_model, ["now", "on the river"])
    with pytest.raises(ValueError, match=r"'qwen2' cuts .* into other tokens than 'tiny'"):
        inject(tiny_model, documents(), RECIPE, UNRELATED, teacher=other(model, tiny_model))


def test_a_document_must_fit_into_the_teacher(tiny_model, teacher_of):
    model = teacher_of("qwen2")
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, max_position_embeddings=60))
    with pytest.raises(ValueError, match=r"document 'doc-0': \d+ tokens .* the limit of the teacher 'qwen2', 60"):
        sp.inject(tiny_model, documents(), RECIPE, unrelated=UNRELATED, teacher=model, progress=False)
    with pytest.raises(ValueError, match="the model's limit is 60"):
        inject(tiny_model, documents(), RECIPE, UNRELATED, teacher=other(model, tiny_model))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": {"dtype": "int4"}}, r"teacher\.dtype = 'int4', expected one of '', 'float32', 'bfloat16'"),
        ({"teacher": {"dtype": "bfloat16"}}, r"teacher\.dtype = 'bfloat16' without teacher\.model"),
        ({"teacher": {"base_weights": "int8"}}, r"teacher\.base_weights = 'int8' without teacher\.model"),
        ({"job": "sequential", "teacher": {"model": "x/y"}}, "sequential.teacher = 'current', expected 'original'"),
        (
            {
                "job": "sequential",
                "teacher": {"model": "x/y"},
                "sequential": {"teacher": "original", "self_generated_per_epoch": 2},
            },
            r"sequential\.self_generated_per_epoch = 2, expected 0",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        read_settings(settings)
    assert read_settings({}).teacher == TeacherConfig()


# The API and jobs.


def test_the_api_takes_a_name_and_its_teacher_answers_the_pairs(tiny_model, teacher_dir, tmp_path):
    recipe = dataclasses.replace(
        RECIPE, targets=dataclasses.replace(RECIPE.targets, agreement="rewrite", tails_per_context=0)
    )
    given = {"unrelated": UNRELATED, "progress": False, "teacher": teacher_dir}
    adapter = sp.inject(tiny_model, documents(), recipe, workdir=tmp_path / "work", **given)
    assert adapter.model is tiny_model
    model, prompt = load_model(teacher_dir), Prompt("plain", tiny_model.tokenizer)
    asked = [
        dataclasses.replace(d, questions=tuple(sp.Question(p.question, (p.answer,)) for p in d.qa_pairs))
        for d in documents()
    ]
    expected = answer_questions(model.decoder(), {"params": model.params}, prompt, asked, True)
    found = [line["teacher"] for line in read_lines(tmp_path / "work" / "teacher_answers.jsonl")]
    assert found == [answer["answer"] for answers in expected for answer in answers]
    record = json.loads((tmp_path / "work" / "injection.json").read_text())
    assert record["teacher"] == {"fingerprint": model.fingerprint, "dtype": "float32", "int8": False}


def test_a_batch_job_with_another_teacher(model_dir, teacher_dir, tmp_path):
    config = batch_config(model_dir, tmp_path)
    config.train.epochs, config.export_dtype = 1, ""
    config.teacher.model = str(teacher_dir)
    job = prepare(config, tmp_path / "run")
    assert job.teacher._loaded is None, "let go until it reads"
    results = run_job(config, tmp_path / "run")
    _, lora = newest_adapter(tmp_path / "run")
    assert results["recipe"]["teacher.model"] == str(teacher_dir) and results["steps"] > 0
    assert all(np.isfinite(leaf).all() for leaf in lora.values())
    config.teacher.model = ""
    with pytest.raises(ValueError, match=r"another configuration(?s:.*)teacher\.model"):
        prepare(config, tmp_path / "run")
    changed = tmp_path / "changed"
    tiny.save_checkpoint(changed, "mistral_full", seed=6, **OTHER_SIZE)
    config.teacher.model = str(tmp_path / "named")
    (tmp_path / "named").symlink_to(teacher_dir)
    prepare(config, tmp_path / "second")
    (tmp_path / "named").unlink()
    (tmp_path / "named").symlink_to(changed)
    with pytest.raises(ValueError, match=r"other inputs(?s:.*)the teacher \(teacher\.model\) has changed"):
        prepare(config, tmp_path / "second")


def test_a_sequence_with_another_teacher_keeps_its_states_for_replay(model_dir, teacher_dir, tmp_path):
    config = batch_config(model_dir, tmp_path)
    config.update(job="sequential", export_dtype="", limit=2)
    config.train.update(epochs=1, checkpoint_every=0)
    config.systems = ()
    config.sequential.update(length=2, teacher="original", replay_pairs=2, replay_per_epoch=2)
    config.teacher.model = str(teacher_dir)
    run_job(config, tmp_path / "run")
    kept = np.load(tmp_path / "run" / "sequences" / "000" / "injections" / "000" / "replay" / "states.npy")
    assert kept.shape[1] == OTHER_SIZE["hidden_size"]
