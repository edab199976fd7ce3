"""All systems on the same questions: trained beside the injected model, resumed, ruined, and in a sequence."""

import re
import types

import pytest
from job_inputs import DOCUMENTS, documents, modified, write

from selfparam_jax.baselines import _finetuned
from selfparam_jax.baselines.registry import SYSTEMS
from selfparam_jax.commands.command import print_scores
from selfparam_jax.distributed import files
from selfparam_jax.evaluation import health
from selfparam_jax.evaluation.questions import answer_records
from selfparam_jax.jobs import systems
from selfparam_jax.jobs.run import run_job

SEQUENCE_KEYS = {"just_injected", "final", "retention", "forgetting"}


@pytest.fixture
def config(config):
    config.export_dtype = ""
    config.train.epochs = 2
    config.systems = ("base", "ft_c", "ft_s", "selfparam")
    return config


def test_fine_tuned_systems_are_trained_asked_and_resumed(config, tmp_path, monkeypatch):
    config.baselines.ft_c.learning_rate = 1e-3
    config.baselines.ft_s.check_every = 1
    whole, folder = tmp_path / "whole", tmp_path / "run"
    results = run_job(config, whole)
    assert [each["name"] for each in results["systems"]] == ["base_q", "injected", "ft_c", "ft_s"]
    found = results["measured"]
    for name in ("ft_c", "ft_s", "injected"):
        assert found[name]["prepare_s"] > 0 and found[name]["drift"]["perplexity_after"] > 0, name
        assert found[name]["cost"] == {"storage_bytes": 0, "extra_parameters": 0}
    drifts = {round(found[name]["drift"]["kl"], 6) for name in ("ft_c", "ft_s", "injected")}
    assert len(drifts) == 3  # three models
    seen = files.read_json(whole / "systems" / "ft_s" / "health.json")["perplexity"]
    assert len(seen) == files.read_json(whole / "results.json")["steps"]

    asked = _finetuned.FineTuned.answer

    def stop(self, documents):
        raise KeyboardInterrupt

    monkeypatch.setattr(_finetuned.FineTuned, "answer", stop)
    with pytest.raises(KeyboardInterrupt):
        run_job(config, folder)
    times = modified(folder / "systems" / "ft_c" / "checkpoints")
    monkeypatch.setattr(_finetuned.FineTuned, "answer", asked)
    resumed = run_job(config, folder)
    assert modified(folder / "systems" / "ft_c" / "checkpoints") == times and times
    assert resumed["scores"] == results["scores"]
    config.baselines.ft_c.learning_rate = 2e-3  # also where the run is complete
    with pytest.raises(ValueError, match=r"ft_c was measured with other settings baselines.ft_c:\n.*learning_rate"):
        run_job(config, folder)


def test_a_ruined_system_is_said_to_have_collapsed(config, tmp_path, monkeypatch):
    """The last step at which it was healthy is asked beside it."""
    config.targets.update(formats="reading", contrast_per_epoch=0, chat_per_epoch=0)
    config.systems = ("ft_s",)
    config.baselines.ft_s.learning_rate = 30.0
    config.baselines.ft_s.check_every = 1
    config.train.update(epochs=4, warmup=0.9, clip_norm=0.0)
    # Other characters than those that are trained on, which cost more and more.
    config.eval.general = str(
        write(tmp_path / "general.jsonl", [{"text": "%%&& ~~ ^^ 0x7F;; $$ {}{} <>|| 88 66 !! ??"}])
    )
    results = run_job(config, tmp_path / "whole")
    assert (
        not results["measured"]["ft_s"]["collapsed"]
        and "collapsed" not in (tmp_path / "whole" / "report.md").read_text()
    )
    before = results["measured"]["ft_s"]["drift"]["perplexity_before"]
    seen = list(files.read_json(tmp_path / "whole" / "systems" / "ft_s" / "health.json")["perplexity"].values())
    assert seen[0] < seen[-1]
    # A random model has little to lose: a smaller loss counts as ruin.
    monkeypatch.setattr(health, "RUINED", (seen[0] + seen[-1]) / 2 / before)
    results = run_job(config, tmp_path / "run")
    found = results["measured"]["ft_s"]
    assert found["collapsed"] == 1 == found["groups"]
    good = [step for step, value in enumerate(seen, start=1) if value <= health.RUINED * before]
    (healthy,) = found["healthy"]
    assert healthy["step"] == max(good) < len(seen)
    assert healthy["drift"]["perplexity_after"] == pytest.approx(seen[healthy["step"] - 1])
    report = (tmp_path / "run" / "report.md").read_text()
    assert "**FT(S) collapsed**" in report and f"(step {healthy['step']})" in report


def test_a_system_that_could_not_be_asked_is_tried_with_other_settings(config, tmp_path, capsys):
    config.systems = ("memoryllm",)
    config.train.epochs = 1
    results = run_job(config, tmp_path / "run")
    assert "set baselines.memoryllm.model" in results["measured"]["memoryllm"]["unavailable"]
    print_scores(results)
    printed = capsys.readouterr().out
    assert "injected 0." in printed and "memoryllm" not in printed
    assert run_job(config, tmp_path / "run") == results  # complete
    config.baselines.memoryllm.model = str(tmp_path / "nowhere")
    with pytest.raises((ValueError, OSError), match="nowhere"):
        run_job(config, tmp_path / "run")


def test_another_teacher_teaches_the_baselines_too(config, model_dir, tmp_path):
    config.systems = ("released", "cartridge", "full_mlp")
    config.train.epochs, config.baselines.cartridge.tokens = 1, 8
    config.teacher.model = str(model_dir)
    run_job(config, tmp_path / "run")
    own = files.read_json(tmp_path / "run" / "injection.json")["teacher"]
    for name, file in (("released", "injection"), ("full_mlp", "injection"), ("cartridge", "cartridge")):
        assert files.read_json(tmp_path / "run" / "systems" / name / f"{file}.json")["teacher"] == own, name


def test_the_released_recipe_is_an_injection_with_its_own_settings(config, tmp_path):
    config.systems = ("released",)
    results = run_job(config, tmp_path / "run")
    folder = tmp_path / "run" / "systems" / "released"
    recipe = files.read_json(folder / "injection.json")["recipe"]
    assert recipe["train.learning_rate"] == 2e-5 and recipe["lora.alpha"] == 32.0
    assert recipe["targets.unrelated_context"] and recipe["targets.answer_supervision"] == 0.0
    kinds = [line["kind"] for line in files.read_lines(folder / "targets.jsonl")]
    pairs = sum(len(document["qa_pairs"]) for document in DOCUMENTS)
    assert kinds.count("qa") == pairs and kinds.count("tail") >= pairs
    assert results["measured"]["released"]["drift"]["kl"] < results["measured"]["injected"]["drift"]["kl"]


def test_each_document_has_systems_of_its_own_in_job_single(config, tmp_path):
    config.job = "single"
    config.systems = ("ft_c",)
    results = run_job(config, tmp_path / "run")
    assert results["measured"]["ft_c"]["groups"] == len(DOCUMENTS)
    folders = sorted(path.name for path in (tmp_path / "run" / "systems" / "ft_c").iterdir() if path.is_dir())
    assert folders == ["000", "001", "002"]


def test_what_trained_systems_forget_in_a_sequence(config, tmp_path):
    config.job = "sequential"
    config.sequential.length = 0
    config.systems = ("base", "ft_c")
    results = run_job(config, tmp_path / "run")
    found = results["sequential_systems"]["ft_c"]
    matrix = found["f1"]["matrices"][0]
    assert len(matrix) == len(DOCUMENTS) + 1 and len(matrix[0]) == len(DOCUMENTS)
    assert found["f1"].keys() >= SEQUENCE_KEYS
    assert results["scores"]["ft_c"]["f1"] == pytest.approx(found["f1"]["final"])
    assert found["kl"][0][0] == 0.0 and found["kl"][0][-1] > 0
    report = (tmp_path / "run" / "report.md").read_text()
    assert "## Forgetting" in report and "| FT(C) |" in report
    times = modified(tmp_path / "run" / "systems")
    (tmp_path / "run" / "results.json").unlink()
    again = run_job(config, tmp_path / "run")
    assert again["sequential_systems"] == results["sequential_systems"]
    kept = {path: when for path, when in times.items() if path.name != "measured.json"}
    assert {path: when for path, when in modified(tmp_path / "run" / "systems").items() if path in kept} == kept


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "got a list, expected a JSON object with 'options', 'groups'"),
        ('{"options": null}', "got no 'groups', expected a JSON object with 'options', 'groups'"),
        (
            '{"options": null, "groups": {}}',
            "got no list of objects as 'groups'; remove the file, and it is measured",
        ),
        ('{"options": null, "groups": []}', "got no list of objects as 'groups'"),
        ('{"options": null, "groups": [1]}', "got no list of objects as 'groups'"),
        ('{"options": null, "grou', "got malformed JSON"),
    ],
)
def test_what_a_system_took_has_a_shape(tmp_path, content, message):
    assert systems.read_measured(tmp_path, "base_q") is None
    path = systems.measured_path(tmp_path, "base_q")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ValueError, match=f"measured.json: {re.escape(message)}"):
        systems.read_measured(tmp_path, "base_q")


def test_answers_that_are_cut_off_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(systems, "_is_measured", lambda *_: True)
    asked = documents(2)
    job = types.SimpleNamespace(workdir=tmp_path, documents=asked)
    path = tmp_path / "answers" / "base_q.jsonl"
    path.parent.mkdir()
    answers = [[{"answer": "x", "f1": 0.5}]] * 2
    files.write_lines(path, answer_records(asked, answers), sealed=True)
    assert systems._measure(job, SYSTEMS["base_q"], None) == answers
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    told = r"base_q\.jsonl: no answer is recorded to 'Who founded Bor\?' about 'doc-1'; remove the file, and"
    with pytest.raises(ValueError, match=told):
        systems._measure(job, SYSTEMS["base_q"], None)


def test_all_names_of_the_paper_are_known():
    for name in ("base", "base_cq", "ft_c", "ft_s", "selfparam"):
        assert any(name == entry.name or name in entry.also for entry in SYSTEMS.values()), name
