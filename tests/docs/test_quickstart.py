"""The quickstart as a script and as a notebook, on a tiny model."""

import runpy
import sys
from pathlib import Path

import pytest
import tiny
from extras import require

import selfparam_jax as sp

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTIONS = (
    "In what year was Vessa founded?",
    "Who founded Vessa?",
    "Who was Vessa's first teacher?",
    "What was Orla Tunn's seal called?",
)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A tiny model whose tokens are bytes, with room for the worked examples of every form."""
    directory = tmp_path_factory.mktemp("quickstart") / "model"
    tiny.save_checkpoint(directory, "gqa", max_position_embeddings=4096)
    return directory


def test_the_script_runs(model_dir, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["quickstart.py", str(model_dir)])
    trained = []
    inject = sp.inject

    def inject_a_little(model, documents, recipe):
        trained.append((model, documents, recipe))
        return inject(model, documents, sp.Recipe(epochs=1), progress=False)

    monkeypatch.setattr(sp, "inject", inject_a_little)
    runpy.run_path(str(EXAMPLES / "quickstart.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert all(question in printed for question in QUESTIONS)
    assert printed.count("  before:") == printed.count("  after:") == len(QUESTIONS)
    ((model, (document,), recipe),) = trained
    assert (model.source, recipe.train.epochs) == (str(model_dir), 16)
    asked = {pair.question for pair in document.qa_pairs}
    assert len(asked) == 8 and not asked & set(QUESTIONS)


def test_importing_the_script_does_nothing(capsys):
    runpy.run_path(str(EXAMPLES / "quickstart.py"), run_name="quickstart")
    assert capsys.readouterr().out == ""


def test_the_notebook_runs(model_dir, monkeypatch):
    nbformat, nbclient = require("nbformat"), require("nbclient")
    require("ipykernel")
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is stored without outputs"
    (training,) = (cell for cell in notebook.cells if "sp.Recipe(epochs=16)" in cell.source)
    training.source = training.source.replace("epochs=16", "epochs=1")  # every line runs, in fewer steps
    monkeypatch.setenv("SELFPARAM_MODEL", str(model_dir))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    done = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    texts = [output.get("text", "") for cell in done.cells for output in cell.get("outputs", ())]
    printed = "".join(texts)
    assert all(question in printed for question in QUESTIONS)
    assert "steps, loss" in printed and "'injected':" in printed
    answers = [output for output in done.cells[-1].outputs if output.output_type == "execute_result"]
    assert len(answers) == 1
