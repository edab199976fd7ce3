"""The recommenders that need no model: popularity, retrieval by BM25; and their registry."""

import sys
import types

import pytest

from selfparam_jax import baselines
from selfparam_jax.baselines import bm25, popularity, registry
from selfparam_jax.data.documents import Document
from selfparam_jax.evaluation.recommenders import RecommendConfig, RecommendSetup


def document(name, text, *titles):
    return Document(text, id=name, metadata={"titles": [{"title": title, "suggested": True} for title in titles]})


DOCUMENTS = [
    document("a", "User: robbers and banks\n\nSystem: Heat (1995)", "Heat (1995)", "Up (2009)"),
    document("b", "User: ghosts in old houses\n\nSystem: The Others (2001)", "The Others (2001)", "Heat (1995)"),
    document("c", "User: a dog and a child\n\nSystem: Up (2009)", "Coco (2017)"),
]


def setup(**changes):
    return RecommendSetup(None, RecommendConfig(**changes))


def test_popular_titles_come_first_and_equal_ones_in_alphabetical_order():
    system = popularity.Popularity(setup())
    system.prepare(DOCUMENTS)
    assert system.titles == ("Heat (1995)", "Coco (2017)", "The Others (2001)", "Up (2009)")
    assert list(system.recommend(["x", "y"]))[1] == (1, "", "\n".join(
        f"{n}. {title}" for n, title in enumerate(system.titles, start=1)
    ))  # fmt: skip


def test_popularity_counts_dialogues_and_keeps_twenty():
    many = [document(str(n), "x", *[f"T{m:02}" for m in range(n + 1)]) for n in range(30)]
    system = popularity.Popularity(setup())
    system.prepare(many)
    assert system.titles == tuple(f"T{m:02}" for m in range(20))


def test_bm25_puts_the_dialogues_with_the_same_words_before_the_question():
    system = bm25.RetrievedDialogues(setup(retrieved=2, prompt="Now: {dialogue}"))
    system.prepare(DOCUMENTS)
    found = system.retrieve("\nUser: I love films about banks and robbers\nSystem: ")
    assert found[-1] == "User: robbers and banks\nSystem: Heat (1995)"  # the nearest stands next to the question
    asked = system.ask("ghosts")
    assert asked.index("robbers") < asked.index("ghosts in old houses") or "robbers" not in asked
    assert asked.endswith("Now: ghosts") and "The Others (2001)" in asked


def test_more_dialogues_than_there_are_are_all():
    system = bm25.RetrievedDialogues(setup(retrieved=9))
    system.prepare(DOCUMENTS)
    assert len(system.retrieve("banks")) == 3


def test_the_registry_has_both_kinds():
    assert list(registry.RECOMMENDERS) == ["base", "injected", "bm25", "ft_c", "ft_s", "popularity"]
    assert "popularity" not in registry.SYSTEMS and "base_cq" not in registry.RECOMMENDERS


def test_a_file_without_an_entry_is_refused(monkeypatch, tmp_path):
    (tmp_path / "empty.py").write_text("")
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path)])
    monkeypatch.setitem(sys.modules, "selfparam_jax.baselines.empty", types.ModuleType("empty"))
    with pytest.raises(ValueError, match=r"baselines/empty.py has neither SYSTEM nor RECOMMENDER"):
        registry.find_systems()
