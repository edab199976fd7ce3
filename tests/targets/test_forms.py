"""The forms in which pairs are read: the student's ids, the teacher's, and which tokens they share."""

import json

import pytest
import tiny

from selfparam_jax.data.documents import Document, QAPair, read_document_files
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.data.resources import resource
from selfparam_jax.targets.config import MIX, TargetConfig
from selfparam_jax.targets.formats import contrast, forms
from selfparam_jax.targets.formats.statements import FRAME, statement
from selfparam_jax.targets.kinds import make_targets, qa_sentences

TEXT = "Olmsea was founded in 1743 by Hedra Vane. The mayor of Olmsea is Tobin Ask. The fair is in May."
PAIRS = (
    QAPair("Who founded Olmsea?", "Hedra Vane"),
    QAPair("When was Olmsea founded?", "1743"),
    QAPair("Who is the mayor of Olmsea?", "Tobin Ask"),
    QAPair("Why so?", "nobody knows"),
    QAPair("In which month is the fair?", "May"),
)
DOCUMENTS = [
    Document(TEXT, title="Olmsea", id="a", qa_pairs=PAIRS),
    Document("Rain fell on Wend all day.", title="Wend", id="b", qa_pairs=(QAPair("Why did it rain?", "Wend"),)),
]


def prompt_of(name="few_shot", template=True):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE if template else None
    return Prompt(name, tokenizer)


def made_of(prompt, documents=DOCUMENTS, epochs=2, seq_len=400, seed=0, **changes):
    plain = {"unrelated_per_epoch": 0, "formats": "reading", "contrast_per_epoch": 0, "chat_per_epoch": 0}
    config = TargetConfig(**{**plain, "answer_supervision": 0.5, **changes})
    return make_targets(documents, prompt, config, seed=seed, epochs=epochs, seq_len=seq_len)


def of_form(made, form):
    return [sentence for sentence in made if sentence.record.get("form", "reading") == form]


def test_the_reading_format_alone_is_what_it_was():
    prompt = prompt_of()
    assert made_of(prompt) == qa_sentences(DOCUMENTS, prompt, TargetConfig(answer_supervision=0.5))
    assert all(each.reading is None and each.before is None and each.epochs is None for each in made_of(prompt))


def test_every_form_has_its_prefixes():
    prompt, config = prompt_of(), TargetConfig(formats="reading,chat:0.5,bare:0.5")
    prefixes = forms.teacher_prefixes(DOCUMENTS, prompt, config)
    expected = [
        prompt.with_format(name).context_prefix(document.text)
        for name in ("few_shot", "sentence", "bare")
        for document in DOCUMENTS
    ]
    assert prefixes == expected
    made = made_of(prompt, formats="reading,chat,bare")
    assert {each.context for each in of_form(made, "reading")} == {0, 1}
    assert {each.context for each in of_form(made, "chat")} == {2, 3}
    assert {each.context for each in of_form(made, "bare")} == {4, 5}


@pytest.mark.parametrize("changes", [{}, {"loss_tokens": "all"}, {"answer_supervision": 0.0}])
def test_conversations(changes):
    """Both read the same answer tokens; the teacher reads another form only where nothing else carries KL loss."""
    prompt = prompt_of()
    chat, reader = prompt.with_format("chat"), prompt.with_format("sentence")
    made = made_of(prompt, formats="chat", **changes)
    own = bool(changes)
    assert forms.teacher_format("chat", prompt, TargetConfig(formats="chat", **changes)) == (
        "chat" if own else "sentence"
    )
    answered = []
    for each in made:
        turns = each.record["turns"]
        exchanges = chat.exchanges([tuple(turn) for turn in turns])
        assert each.ids == sum((turn.question + turn.answer for turn in exchanges), ())
        assert each.before in (chat.start_ids, chat.lone_start, chat.chat_start("You are a helpful assistant."))
        answered += [said for _, said in turns]
        at = 0
        for turn in exchanges:
            at += len(turn.question)
            said = len(turn.answer) - (0 if own else turn.end)
            assert (
                set(each.weights[at : at + said]) <= {1.0, forms.AROUND, 0.0} and 1.0 in each.weights[at : at + said]
            )
            assert each.weights[at + said : at + len(turn.answer)] == (0.0,) * (len(turn.answer) - said)
            at += len(turn.answer)
        assert (each.reading is None) == own
        if own:
            continue
        compared = [n for n, token in enumerate(each.loss_tokens) if each.weights[token] > 0]
        assert [each.ids[each.loss_tokens[n]] for n in compared] == [
            each.taught_ids[each.taught_tokens[n]] for n in compared
        ]
        assert len(each.taught_tokens) == len(each.loss_tokens)
        taught = chat.decode(each.taught_ids)
        assert taught.startswith("Question: ") and "Answer:\n" in taught
        # One token of every answer's end is learned from the text alone.
        unsaid = [token for token in each.loss_tokens if each.weights[token] == 0]
        assert sum(each.supervision[token] == 0.5 for token in unsaid) == len(turns)
        # Nor would the teacher begin with a frame.
        framed = sum(said.startswith(FRAME) for _, said in turns)
        assert (sum(each.supervision[token] != 0.5 for token in unsaid) > 0) == (framed > 0)
        taught_words = [token for token in each.loss_tokens if token not in unsaid]
        assert all(each.supervision[token] == 0.5 * each.weights[token] for token in taught_words)
    pairs = [*PAIRS, *DOCUMENTS[1].qa_pairs]
    assert len(answered) == len(pairs) and all(any(pair.answer in said for said in answered) for pair in pairs)
    assert reader.answer_end


def test_what_is_said_in_a_conversation():
    document, sentences = DOCUMENTS[0], TEXT.split(". ")
    said = [
        forms.chat_answer(PAIRS[1], document, [each.rstrip(".") + "." for each in sentences], n) for n in range(6)
    ]
    own = "Olmsea was founded in 1743 by Hedra Vane."
    expected = ["Olmsea was founded in 1743.", "The answer is 1743."]
    assert said == [*expected, *expected, own, expected[1]]
    assert statement(PAIRS[3].question, PAIRS[3].answer, TEXT) is None
    assert forms.chat_answer(PAIRS[3], document, [], 0) == "The answer is nobody knows."
    long = QAPair("Why?", "because it rains on the hills of Wend all day")
    assert forms.chat_answer(long, document, [], 1) == long.answer


def test_the_answer_weighs_more_than_the_words_around_it():
    prompt = prompt_of()
    (made,) = made_of(prompt, [Document(TEXT, title="Olmsea", id="a", qa_pairs=PAIRS[1:2])], formats="chat")
    assert made.record["turns"][0][1] == "Olmsea was founded in 1743."
    weighed = [made.ids[token] for token in made.loss_tokens if made.weights[token] == 1.0]
    assert prompt.decode(weighed).strip() == "1743"
    around = [made.ids[token] for token in made.loss_tokens if made.weights[token] == forms.AROUND]
    assert prompt.decode(around).replace(" ", "").startswith("Olmseawasfoundedin")


def test_without_worked_examples_the_teacher_has_none_in_any_form():
    prompt = prompt_of("plain")
    config = TargetConfig(formats="reading,chat,bare")
    assert forms.teacher_format("chat", prompt, config) == "chat"
    read = [prompt.decode(ids) for ids in forms.teacher_prefixes(DOCUMENTS[:1], prompt, config)]
    assert read[0] == read[2] == f"Passage: {TEXT}\n"
    assert "Nora Hallam" not in "".join(read) and TEXT in read[1]
    assert all(each.reading is None for each in made_of(prompt, formats="reading,chat,bare"))


def test_the_questions_wording_never_reaches_the_teacher():
    made = made_of(prompt_of(), formats="chat", documents=[DOCUMENTS[0]] * 1)
    wordings = {question for each in made for question, _ in each.record["turns"]}
    assert wordings - {pair.question for pair in PAIRS}, "some questions are put in other ways"
    for each in made:
        assert "Please tell me" not in prompt_of().decode(each.taught_ids)


def test_bare_questions():
    prompt = prompt_of()
    made = of_form(made_of(prompt, formats="bare"), "bare")
    assert len(made) == 6
    assert prompt.decode(made[0].ids) == "Who founded Olmsea?\nHedra Vane\n"
    assert all(each.before == prompt.with_format("bare").lone_start and each.reading is None for each in made)


def test_shares_of_the_pairs_take_turns():
    made = of_form(made_of(prompt_of(), formats="reading:0.5,bare:0.34", epochs=4), "reading")
    assert [sum(epoch in each.epochs for each in made) for epoch in range(4)] == [3, 3, 3, 3]
    assert sorted(len(each.epochs) for each in made) == [2] * 6
    bare = of_form(made_of(prompt_of(), formats="reading:0.5,bare:0.34", epochs=2), "bare")
    assert sorted(each.epochs for each in bare) == [(0,), (0,), (1,), (1,)], "those that are never due are left out"
    assert made_of(prompt_of(), formats="bare:0.5") == made_of(prompt_of(), formats="bare:0.5")


def test_conversations_fit_into_a_row():
    prompt = prompt_of()
    long = made_of(prompt, formats="chat", seq_len=400)
    room = max(len(each.before) + len(each.ids) for each in long) - 1
    made = made_of(prompt, formats="chat", seq_len=room)
    assert max(len(each.before) + len(each.ids) for each in made) <= room
    assert sum(len(each.record["turns"]) for each in made) == 6
    assert made_of(prompt, formats="reading,chat", seq_len=30) == made_of(prompt, formats="reading"), (
        "all are too long"
    )


def test_without_a_chat_template_the_other_forms_are_left():
    prompt = prompt_of(template=False)
    assert made_of(prompt, formats="reading,chat") == made_of(prompt, formats="reading")
    assert len(forms.teacher_prefixes(DOCUMENTS, prompt, TargetConfig(formats="reading,chat"))) == 2
    with pytest.raises(ValueError, match="has no chat template; add 'reading' or 'bare'"):
        made_of(prompt, formats="chat")


@pytest.mark.parametrize(
    "formats", ["", "reading:0", "reading:1.5", "chats", "reading,reading", "chat:x", "chat:nan"]
)
def test_formats_that_are_refused(formats):
    with pytest.raises(ValueError, match=r"targets\.formats = .*expected 'auto' or names of reading, chat, bare"):
        TargetConfig(formats=formats)


def test_auto_is_the_mix_for_a_reader_with_worked_examples():
    config = TargetConfig(formats="auto")
    mix = TargetConfig(formats=MIX).format_shares
    assert forms.chosen_forms(prompt_of(), config) == mix and set(mix) == {"reading", "chat", "bare"}
    assert made_of(prompt_of(), formats="auto") == made_of(prompt_of(), formats=MIX)
    assert forms.chosen_forms(prompt_of(template=False), config) == {"reading": 1.0, "bare": mix["bare"]}
    for name in ("plain", "paper", "chat"):
        assert forms.chosen_forms(prompt_of(name), config) == {"reading": 1.0}
        assert len(forms.teacher_prefixes(DOCUMENTS, prompt_of(name), config)) == 2


def test_shares_as_they_are_read():
    assert TargetConfig(formats="reading").format_shares == {"reading": 1.0}
    assert TargetConfig(formats=" reading : 1, chat:0.25").format_shares == {"reading": 1.0, "chat": 0.25}
    with pytest.raises(ValueError, match=r"targets\.contrast_per_epoch"):
        TargetConfig(contrast_per_epoch=-1)


# --- what is kept ----------------------------------------------------------------------------------------


def test_names_of_a_text():
    text = "Rain fell. The town of Olmsea lies on Dorn, in May. The Rowing Club met there; a club of 12. "
    text += "Its boat is Silver."
    assert contrast.names_of(text) == {"Olmsea", "Dorn", "Rowing", "Silver"}


def test_contrasts_ask_of_other_names_up_to_the_answer():
    prompt = prompt_of()
    chat = prompt.with_format("chat")
    made = [each for each in made_of(prompt, formats="reading,chat", contrast_per_epoch=2) if each.kind == "contrast"]
    assert len(made) == 3, "three pairs have a name in their question"
    for each in made:
        assert each.context is None and each.reading is None and not any(each.supervision)
        assert "Olmsea" not in prompt.decode(each.ids)
        assert any(name in each.record["question"] for name in contrast.NAMES)
        question = chat.exchanges([(each.record["question"], "x")])[0].question
        assert each.ids[: len(question)] == question
        assert each.loss_tokens == list(range(len(question), len(each.ids)))
    said = {" ".join(each.record["question"].split()[:2]): each.record["said"] for each in made}
    starts = {"Who founded": (" ", "He"), "When was": (" was founded in ", "17"), "Who is": ("The mayor of ", "To")}
    for each, (start, answer) in starts.items():  # the answer's first tokens, no more
        words = said[each].rstrip()
        assert words.endswith(answer) or words.endswith(answer[0])
        assert words.startswith(FRAME) or start in f" {words}"
    assert [sum(epoch in each.epochs for each in made) for epoch in range(2)] == [2, 2]
    for prompt, formats in ((prompt_of(template=False), "reading,chat"), (prompt_of(), "reading,bare")):
        assert not {each.kind for each in made_of(prompt, formats=formats, contrast_per_epoch=2)} - {"qa"}


def test_unrelated_exchanges_take_turns():
    made = [each for each in made_of(prompt_of(), formats="reading,chat", chat_per_epoch=3) if each.kind == "chat"]
    assert len(made) == 6 and {each.epochs for each in made} == {(0,), (1,)}
    assert all(each.context is None and not any(each.supervision) for each in made)
    short = made_of(prompt_of(), formats="reading,chat", chat_per_epoch=3, seq_len=120)
    assert max(len(each.start_ids((1,))) + len(each.ids) for each in short) <= 120
    assert not [each for each in made_of(prompt_of(), formats="reading", chat_per_epoch=3) if each.kind == "chat"]


def test_what_is_asked_to_keep_the_model_is_not_what_is_measured():
    lines = [json.loads(line) for line in resource("examples", "general_chat.jsonl").read_text().splitlines()]
    measured = [
        json.loads(line) for line in resource("examples", "unrelated_questions.jsonl").read_text().splitlines()
    ]
    assert len(measured) == 60 and all(line["answer"] for line in lines)
    assert not {line["question"] for line in lines} & {line["question"] for line in measured}
    names = set()
    for name in ("documents.jsonl", "development.jsonl"):
        for document in read_document_files(resource("examples", name)):
            names |= contrast.names_of(f"{document.title}. {document.text}")
    assert not names & set(contrast.NAMES)
