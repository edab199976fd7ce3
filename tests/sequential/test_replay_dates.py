"""Replay where later documents change facts: what is kept of an injection, and what a later one goes over."""

import numpy as np
import pytest

from selfparam_jax.data.documents import Document, QAPair
from selfparam_jax.sequential.config import SequentialConfig
from selfparam_jax.sequential.replay import keep_replay, read_replay
from selfparam_jax.sequential.sequence import DocumentSequence, SequenceSetup, gather_continual_state
from selfparam_jax.targets.config import TargetConfig
from selfparam_jax.targets.sentences import Sentence
from selfparam_jax.training.recipe import Recipe

HEAD, SIZE = "Who is the head?", "How many members are there?"
OF_OLD = "As of 10 January 2031, "


def sentence(*questions, size=2):
    """One of a pair, or a conversation, with loss on its last `size` tokens."""
    record = {"kind": "qa", "context": "old", "question": questions[0], "answer": "x"}
    if len(questions) > 1:
        record = {"kind": "qa", "form": "chat", "turns": [], "questions": list(questions)}
    weights = (0.0, *(1.0,) * size)
    return Sentence("qa", 0, tuple(range(size + 1)), weights, None, record, weights)


SENTENCES = [
    sentence(HEAD), sentence(OF_OLD + "who is the head?", size=3), sentence(SIZE),
    sentence("How many members are there as of 10 January 2031?"), sentence(SIZE, HEAD, size=4),
    sentence(OF_OLD + "who is the head?", OF_OLD + "how many members are there?"),
]  # fmt: skip
FIRST = np.cumsum([0, *(len(each.loss_tokens) for each in SENTENCES)])[:-1]


class States:
    """A teacher's states that say which slot they are of."""

    def take_all(self, slots):
        return np.asarray(slots, np.float32)[:, None]


def keep(directory, count):
    keep_replay(directory, SENTENCES, FIRST, States(), count, seed=1)
    return read_replay([directory], 1.0)


def asked(replay):
    return [each.record.get("questions") or each.record["question"] for each in replay.sentences]


@pytest.mark.parametrize("seed", range(3))
def test_with_each_pair_its_dated_one_is_kept(tmp_path, seed):
    keep_replay(tmp_path, SENTENCES[:4], FIRST[:4], States(), 1, seed)
    plain, dated = asked(read_replay([tmp_path], 1.0))
    assert {HEAD: SENTENCES[1], SIZE: SENTENCES[3]}[plain].record["question"] == dated


def test_what_is_out_of_date_is_replayed_with_its_date_only(tmp_path):
    assert len(keep(tmp_path, 9).sentences) == 6
    found = read_replay([tmp_path], 1.0, [{HEAD}])
    kept = [1, 2, 3, 5]  # neither the old head without a date, nor the conversation that names it
    assert asked(found) == [SENTENCES[n].record.get("questions") or SENTENCES[n].record["question"] for n in kept]
    slots = [FIRST[n] + i for n in kept for i in range(len(SENTENCES[n].loss_tokens))]
    assert found.states[:, 0].tolist() == slots, "each sentence has its own states"


def test_nothing_is_left_where_all_is_out_of_date(tmp_path):
    keep_replay(tmp_path, SENTENCES[:1], FIRST[:1], States(), 9, 0)
    assert read_replay([tmp_path], 1.0, [{HEAD}]) is None


@pytest.mark.parametrize("name", ["states.npy", "sentences.jsonl"])
def test_damaged_files_are_not_replayed(tmp_path, name):
    keep_replay(tmp_path, SENTENCES[:4], FIRST[:4], States(), 9, 0)
    whole = (tmp_path / name).read_bytes()
    place = len(whole) - 40
    (tmp_path / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(ValueError, match="cannot be made again"):
        read_replay([tmp_path], 1.0)
    (tmp_path / name).write_bytes(whole)
    assert read_replay([tmp_path], 1.0)
    (tmp_path / "states.npy").unlink()
    with pytest.raises(ValueError, match=r"restore .* from a copy, or run the job in another"):
        read_replay([tmp_path], 1.0)


def dated(name, date, *pairs):
    return Document("Text.", id=name, qa_pairs=tuple(QAPair(*pair) for pair in pairs), metadata={"date": date})


@pytest.mark.parametrize("switch", [True, False])
def test_an_injection_knows_what_it_changes(tmp_path, switch):
    """The document that is injected makes the facts before it old, those after it do not."""
    documents = (
        dated("old", "2031-01-10", (HEAD, "Ana"), (SIZE, "12")),
        dated("new", "2032-05-20", (HEAD, "Bo")),
        dated("newest", "2033-01-01", (SIZE, "30")),
    )
    sequence = DocumentSequence(0, documents, tmp_path)
    keep(sequence.injection_directory(0) / "replay", 9)
    config = SequentialConfig(length=3, replay_pairs=9, replay_per_epoch=9)
    recipe = Recipe(targets=TargetConfig(dated=switch))
    setup = SequenceSetup(None, recipe, config)
    state = gather_continual_state(setup, None, recipe, sequence, 1, None)
    assert [each.id for each in state.documents] == ["old"]
    questions = asked(state.replay)
    assert (HEAD in questions) is not switch and SIZE in questions
    assert OF_OLD + "who is the head?" in questions
