"""Systems are files of one folder: whatever is there can be asked and is reported, with no other file touched."""

import sys

import pytest
from job_inputs import DOCUMENTS, modified

from selfparam_jax import baselines
from selfparam_jax.baselines import registry
from selfparam_jax.distributed import files
from selfparam_jax.jobs.ask import ask
from selfparam_jax.jobs.run import run_job

ECHO = '''
"""Says a document's title, whatever it is asked."""

import dataclasses

from selfparam_jax.evaluation.metrics import METRICS, best
from selfparam_jax.evaluation.systems import BaseSystem, SystemEntry


@dataclasses.dataclass(frozen=True)
class EchoOptions:
    """Its settings.

    Attributes:
      times: how often a title is said.
    """

    times: int = 1


class Echo(BaseSystem):
    earlier_s = 1000.0

    def prepare(self, documents):
        self.prepared = True

    def answer(self, documents):
        assert self.prepared
        return [
            [
                {
                    "answer": d.title,
                    **{name: best(metric, d.title, q.answers) for name, metric in METRICS.items()},
                    "paper": d.title,
                    "f1_paper": 0.0,
                    "tokens": 7,
                }
                for q in d.questions
            ]
            for d in documents
        ]

    def cost(self):
        return {"storage_bytes": 12, "extra_parameters": 0}


SYSTEM = SystemEntry("echo", "Echo", "the title", "baseline", Echo)
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that belongs to the baselines; the registry is read again when a file was written there."""
    made = tmp_path / "more_systems"
    made.mkdir()
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(made)])
    before, modules = dict(registry.SYSTEMS), set(sys.modules)
    yield made
    registry.SYSTEMS.clear()
    registry.SYSTEMS.update(before)
    for name in set(sys.modules) - modules:
        if name.startswith("selfparam_jax.baselines."):
            del sys.modules[name]
            delattr(baselines, name.rpartition(".")[2])


def read_again():
    found = registry.find_systems()
    registry.SYSTEMS.clear()
    registry.SYSTEMS.update(found)


def test_a_system_that_is_dropped_into_the_folder_is_asked_and_reported(config, tmp_path, folder):
    (folder / "echo.py").write_text(ECHO)
    read_again()
    names = list(registry.SYSTEMS)
    assert names[:3] == ["base_q", "injected", "base_cq"] and names[3:] == sorted(names[3:]) and "echo" in names
    config.train.epochs, config.export_dtype = 1, ""
    config.systems = ("base_q", "echo")
    results = run_job(config, tmp_path / "run")
    assert [each["name"] for each in results["systems"]] == ["base_q", "injected", "echo"]
    assert set(results["scores"]) == {"base_q", "injected", "echo"}
    echo = results["measured"]["echo"]
    assert echo["cost"] == {"storage_bytes": 12, "extra_parameters": 0} and echo["tokens"] == 7
    assert echo["prepare_s"] > 1000 > echo["answer_s"]  # with the work of earlier runs
    assert echo["questions"] == len(DOCUMENTS) and echo["health"]["empty"] == 0.0
    assert results["against_injected"].keys() == {"base_q", "echo"}
    predictions = files.read_lines(tmp_path / "run" / "predictions.jsonl")
    assert [line["echo"]["answer"] for line in predictions] == [each["title"] for each in DOCUMENTS]
    assert "Echo" in (tmp_path / "run" / "report.md").read_text()
    answer = ask(tmp_path / "run", ["Who founded Bor?"])[0]
    assert answer["echo"] == "Bor" and set(answer) == {"base_q", "injected", "echo", "document"}


def test_a_finished_run_is_asked_for_more_systems(config, tmp_path, folder):
    """Nothing is trained or asked again, and one that cannot be asked says why."""
    config.train.epochs, config.export_dtype, config.systems = 1, "", ("base",)
    before = run_job(config, tmp_path / "run")
    times = modified(tmp_path / "run" / "checkpoints"), modified(tmp_path / "run" / "answers")
    (folder / "echo.py").write_text(ECHO)
    (folder / "mute.py").write_text(ECHO.replace('"echo"', '"mute"').replace(
        '"baseline", Echo', '"baseline", Echo, unavailable=lambda setup: "it has no voice"'
    ))  # fmt: skip
    read_again()
    config.systems = ("base", "echo", "mute")
    results = run_job(config, tmp_path / "run")
    assert [each["name"] for each in results["systems"]] == ["base_q", "injected", "echo", "mute"]
    assert results["scores"] == before["scores"] | {"echo": results["scores"]["echo"]}
    assert results["measured"]["mute"]["unavailable"] == "it has no voice"
    assert results["measured"]["injected"] == before["measured"]["injected"]  # seconds of its training too
    assert modified(tmp_path / "run" / "checkpoints") == times[0]
    answers = modified(tmp_path / "run" / "answers")
    assert {name: answers[name] for name in times[1]} == times[1]
    report = (tmp_path / "run" / "report.md").read_text()
    assert "it has no voice" in report


@pytest.mark.parametrize(
    ("change", "message"), [(("echo", "base_q"), "got name 'base_q'"), (("baseline", "best"), "and role 'best'")]
)
def test_a_name_that_is_taken_or_an_unknown_role_is_refused(folder, change, message):
    (folder / "echo.py").write_text(ECHO.replace(f'"{change[0]}"', f'"{change[1]}"'))
    with pytest.raises(ValueError, match=message):
        registry.find_systems()
