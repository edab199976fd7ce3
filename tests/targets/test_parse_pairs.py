"""Parsing: what a model replies becomes exactly these pairs, whatever its form, and nothing else gets through."""

import json
import random
import sys
import time

import pytest

from selfparam_jax.targets.parse_pairs import parse_pairs

WHO = ("Who founded the town of Quenbarrow?", "Hedra Molvane")
WHEN = ("When was it founded?", "in 1743")
BOTH = [WHO, WHEN]


def read(text, complete=True):
    return [(pair.question, pair.answer) for pair in parse_pairs(text, complete)]


Q1, A1, Q2, A2 = *WHO, *WHEN
REPLIES = {
    "labels": f"Question: {Q1}\nAnswer: {A1}\nQuestion: {Q2}\nAnswer: {A2}",
    "blank lines": f"Question: {Q1}\n\nAnswer: {A1}\n\n\nQuestion: {Q2}\n\nAnswer: {A2}\n",
    "short labels": f"Q: {Q1}\nA: {A1}\n\nQ: {Q2}\nA: {A2}",
    "numbered short labels": f"Q1. {Q1}\nA1. {A1}\nQ2. {Q2}\nA2. {A2}",
    "numbered labels": f"Question 1: {Q1}\nAnswer 1: {A1}\nQuestion 2: {Q2}\nAnswer 2: {A2}",
    "answers in another order": f"Q1: {Q1}\nQ2: {Q2}\nA1: {A1}\nA2: {A2}",
    "windows line ends": f"Question: {Q1}\r\nAnswer: {A1}\r\nQuestion: {Q2}\r\nAnswer: {A2}\r\n",
    "lower and upper case": f"question: {Q1}\nANSWER: {A1}\nQUESTION: {Q2}\nanswer: {A2}",
    "wide colons": f"Question：{Q1}\nAnswer：{A1}\nQuestion：{Q2}\nAnswer：{A2}",
    "numbers, inline label": f"1. {Q1} Answer: {A1}\n2. {Q2} Answer: {A2}",
    "numbers, label below": f"1. {Q1}\nAnswer: {A1}\n2. {Q2}\nAnswer: {A2}",
    "brackets, nothing else": f"1) {Q1}\n{A1}\n2) {Q2}\n{A2}",
    "numbers, indented bullets": f"1. {Q1}\n   - {A1}\n2. {Q2}\n   - {A2}",
    "numbers, question and answer": f"1. {Q1} {A1}\n2. {Q2} {A2}",
    "numbers before labels": f"1. Question: {Q1}\n   Answer: {A1}\n2. Question: {Q2}\n   Answer: {A2}",
    "answer in parentheses": f"1. {Q1} (Answer: {A1})\n2. {Q2} (Answer: {A2})",
    "dash": f"- {Q1} – {A1}\n- {Q2} – {A2}",
    "arrow": f"1. {Q1} -> {A1}\n2. {Q2} -> {A2}",
    "tab": f"{Q1}\t{A1}\n{Q2}\t{A2}",
    "bold labels": f"**Question:** {Q1}\n**Answer:** {A1}\n\n**Question:** {Q2}\n**Answer:** {A2}",
    "bold labels, colon outside": f"**Question 1**: {Q1}\n**Answer**: {A1}\n\n**Question 2**: {Q2}\n**Answer**: {A2}",
    "bold lines": f"**Q: {Q1}**\nA: {A1}\n\n**Q: {Q2}**\nA: {A2}",
    "bold questions": f"1. **{Q1}**\n   {A1}\n\n2. **{Q2}**\n   {A2}",
    "bullets": f"* **Question:** {Q1}\n* **Answer:** {A1}\n* **Question:** {Q2}\n* **Answer:** {A2}",
    "headings": f"### Question 1\n{Q1}\n### Answer 1\n{A1}\n### Question 2\n{Q2}\n### Answer 2\n{A2}",
    "heading questions": f"# Quiz\n## {Q1}\n{A1}\n## {Q2}\n{A2}",
    "pair headings": f"Pair 1:\nQuestion: {Q1}\nAnswer: {A1}\n---\nPair 2:\nQuestion: {Q2}\nAnswer: {A2}\n---",
    "quotation": f"> Q: {Q1}\n> A: {A1}\n>\n> Q: {Q2}\n> A: {A2}",
    "bare lines": f"{Q1}\n{A1}\n{Q2}\n{A2}",
    "bare lines apart": f"{Q1}\n\n{A1}\n\n{Q2}\n\n{A2}",
    "one line each": f"Q: {Q1} A: {A1}\nQ: {Q2} A: {A2}",
    "all on one line": f"Q: {Q1} A: {A1} Q: {Q2} A: {A2}",
    "numbers on one line": f"1. {Q1} Answer: {A1} 2. {Q2} Answer: {A2}",
    "answer label forgotten": f"Question: {Q1}\nAnswer: {A1}\nQuestion: {Q2}\n{A2}\n",
    "label alone": f"Question:\n{Q1}\nAnswer:\n{A1}\n\nQuestion:\n{Q2}\nAnswer:\n\n{A2}",
    "question over lines": f"Question: Who founded the town\nof Quenbarrow?\nAnswer: {A1}\nQ: {Q2}\nA: {A2}",
    "answer over lines": f"Question: {Q1}\nAnswer: Hedra\n  Molvane\nQuestion: {Q2}\nAnswer: in\n1743",
    "chatter": f"Sure! Here are 2 questions:\n\n1. {Q1}\n{A1}\n2. {Q2}\n{A2}\nLet me know if you need more!",
    "polite questions": f"Ready?\n\nQuestion: {Q1}\nAnswer: {A1}\nQ: {Q2}\nA: {A2}\n\nWould you like more?",
    "remarks": f"Q: {Q1}\nA: {A1}\nDifficulty: easy\nQ: {Q2}\nA: {A2}\nSource: line 2",
    "thoughts": f"<think>\nQuestion: What?\nAnswer: no\n</think>\nQuestion: {Q1}\nAnswer: {A1}\nQ: {Q2}\nA: {A2}",
    "assistant": f"Assistant: Q: {Q1}\nA: {A1}\nQ: {Q2}\nA: {A2}",
    "table": f"| Question | Answer |\n|---|:---:|\n| {Q1} | {A1} |\n| {Q2} | {A2} |",
    "table with numbers": "Here:\n\n| # | Question | Answer |\n|---|---|---|\n"
    f"| 1 | {Q1} | {A1} |\n| 2 | {Q2} | **{A2}** |\n",
    "table without edges": f"Question | Answer\n--- | ---\n{Q1} | {A1}\n{Q2} | {A2}",
    "elements": f"<qa><question>{Q1}</question>\n<answer>{A1}</answer></qa>\n"
    f"<qa><question>{Q2}</question>\n<answer>{A2}</answer></qa>",
    "fence on the same line": f"```Question: {Q1}\nAnswer: {A1}\nQuestion: {Q2}\nAnswer: {A2}```",
    "json": json.dumps([{"question": Q1, "answer": A1}, {"question": Q2, "answer": A2}]),
    "json, pretty": json.dumps({"pairs": [{"Question": Q1, "Answer": A1}, {"Q": Q2, "A": A2}]}, indent=2),
    "json, fenced": "Here:\n```json\n"
    f'[{{"question": "{Q1}", "answer": "{A1}"}},\n {{"q": "{Q2}", "a": "{A2}"}},]\n```\nDone!',
    "json lines": f'{{"question": "{Q1}", "answer": "{A1}"}}\n{{"question": "{Q2}", "answer": "{A2}"}}',
    "json, single quotes": f"[{{'question': '{Q1}', 'answer': '{A1}'}}, {{'question': '{Q2}', 'answer': '{A2}'}}]",
    "json, no key": json.dumps({Q1: A1, Q2: A2}),
    "json, lists": json.dumps([[Q1, A1], [Q2, A2]]),
    "json, columns": json.dumps({"questions": [Q1, Q2], "answers": [A1, A2]}),
    "json, numbered": json.dumps({"question1": Q1, "question2": Q2, "answer1": A1, "answer2": A2}),
    "json, strings": json.dumps([f"Question: {Q1}", f"Answer: {A1}", f"Question: {Q2}", f"Answer: {A2}"]),
    "json, labels inside": json.dumps([{"question": f"Q1: {Q1}", "answer": f"A: {A1}"}, {"q": f"2. {Q2}", "a": A2}]),
    "json, cut": f'[{{"question": "{Q1}", "answer": "{A1}"}}, {{"question": "{Q2}", "answer": "{A2}',
    "json, cut in a question": json.dumps([{"question": Q1, "answer": A1}, {"question": Q2, "answer": A2}])[:-1]
    + ', {"question": "How ma',
    "json, cut in a key": json.dumps([{"q": Q1, "a": A1}, {"q": Q2, "a": A2}])[:-1] + ', {"q": "Why?", "an',
    "cut before an answer": f"Q: {Q1}\nA: {A1}\nQ: {Q2}\nA: {A2}\nQ: Where is it?",
    "cut in a question": f"Q: {Q1}\nA: {A1}\nQ: {Q2}\nA: {A2}\nQ: Where is",
    "cut in a label": f"Question: {Q1}\nAnswer: {A1}\nQuestion: {Q2}\nAnswer: {A2}\nQuest",
    "cut in an answer's label": f"Question: {Q1}\nAnswer: {A1}\nQuestion: {Q2}\nAnswer: {A2}\nQuestion: Why?\nAnsw",
    "cut after a number": f"1. {Q1}\nAnswer: {A1}\n2. {Q2}\nAnswer: {A2}\n3.",
    "empty ones": f"Q: {Q1}\nA: {A1}\nQ:\nA: b\nQ: Why?\nA:\nQ: How?\nA: ...\nQ: {Q2}\nA: {A2}",
    "white space": f"Q:\t{Q1}\nA:  Hedra \t\xa0 Molvane \nQ: When  was it\x0bfounded?\nA: \x00in\x1b 1743\x07",
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_the_same_two_pairs_in_every_form(reply):
    assert read(reply) == BOTH


OTHERS = {
    "": [],
    "\n \n": [],
    "I cannot help with that.": [],
    "Sure! Here are 5 questions:": [],
    "1. Who?\n2. When?\n3. Where?": [],
    "Questions:\n1. Who?\n2. When?\n\nAnswers:\n1. Bo\n2. 1743": [],
    "Q: Who?\nA: A. Smith\nA.B. Jones": [("Who?", "A. Smith A.B. Jones")],
    "Q: Who?\nA: Bo\nA: Al": [("Who?", "Bo")],
    "Q: Which?\nA) red\nB) blue\n\nAnswer: red": [("Which?", "red")],
    "Q: How far?\nA: A 4.5 km walk": [("How far?", "A 4.5 km walk")],
    "How far?\nA 4.5 km walk": [("How far?", "A 4.5 km walk")],
    "Q1: Who?\nQ2: When?\nA2: 1743": [("When?", "1743")],
    "Q: What day?\nA: 12. May 1901": [("What day?", "12. May 1901")],
    "1. What did she say?\nAnswer: Who is it? Nobody.\n2. Why?\nAnswer: fear": [
        ("What did she say?", "Who is it? Nobody."),
        ("Why?", "fear"),
    ],
    "1. Name the founder of the town.\nAnswer: Bo\n2. Name its river.\nAnswer: Esk": [
        ("Name the founder of the town.", "Bo"),
        ("Name its river.", "Esk"),
    ],
    "Question: Name the founder\nAnswer: Bo": [("Name the founder", "Bo")],
    "Question: Who wrote 'Answer: Yes'? Answer: The Last Answer: Bo": [
        ("Who wrote 'Answer: Yes'?", "The Last Answer: Bo")
    ],
    "Is it old? Yes, it is from 1743.\nIs it big? No.": [
        ("Is it old?", "Yes, it is from 1743."),
        ("Is it big?", "No."),
    ],
    "Q: What colours?\nA:\n- red\n- blue": [("What colours?", "red blue")],
    "Q: Which?\nA: x | y {z} [1]": [("Which?", "x | y {z} [1]")],
    'Question: Which?\nAnswer: ["red", "blue"]': [("Which?", '["red", "blue"]')],
    "Q: Power?\nA: 2**3 and a_b": [("Power?", "2**3 and a_b")],
    "Q: Who?\nA: *Bo*": [("Who?", "Bo")],
    "Q: Who?\nA: the **old** baker": [("Who?", "the old baker")],
    '[{"question": "How much?", "answer": 1.50}, {"question": "Old?", "answer": true}, {"q": "x?", "a": null}]': [
        ("How much?", "1.50"),
        ("Old?", "Yes"),
    ],
    '[{"question": "Who?", "answer": ["Bo", "Al"]}]': [("Who?", "Bo, Al")],
    '[{"question": "What?", "answer": "he said "no" twice"},\n{"question": "Who?", "answer": "Bo"}]': [
        ("What?", 'he said "no" twice'),
        ("Who?", "Bo"),
    ],
    "| Question | Answer |\n|---|---|\n| Which? | a \\| b |\n| Who?": [("Which?", "a | b")],
    "Q: 谁？\nA: 李白": [("谁？", "李白")],
    "Q: کجا؟ است?\nA: می\u200cرود": [("کجا؟ است?", "می\u200cرود")],
}


@pytest.mark.parametrize("reply", OTHERS, ids=range(len(OTHERS)))
def test_other_replies(reply):
    assert read(reply) == OTHERS[reply]


MARKERS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "[INST]",
    "[/INST]",
    "</s>",
    "<s>",
    "<</SYS>>",
    "<|eot_id|>",
]
MARKERS += [
    "<end_of_turn>",
    "<start_of_turn>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
    "<|IM_END|>",
    "<|im_\u200bend|>",
    "<\xad/s>",
]
MARKERS += ["<|im_\u200dend|>", "\nUser: hi", "\n### Human: hi", "\nsystem: you obey", "<tool_call>"]


PLAIN = f"Question: {Q1}\nAnswer: {A1}\n\nQuestion: {Q2}\nAnswer: {A2}"
OBJECTS = json.dumps([{"question": Q1, "answer": A1}, {"question": Q2, "answer": A2}], indent=1)


@pytest.mark.parametrize(
    "reply",
    [
        f"<think>\nQuestion: is this one?\nAnswer: no, a thought\n</think>\n\n{PLAIN}",
        f"Okay. Question: is this one?\nAnswer: no, a thought\n</think>\n\n{PLAIN}",
        f"<think>a</think>b <think>Question: c?\nAnswer: d</think>{PLAIN}",
        f"<thinking>hm</thinking>{PLAIN}",
        f"<seed:think>Question: c?\nAnswer: d</seed:think>{PLAIN}",
        f"◁think▷Question: c?\nAnswer: d◁/think▷{PLAIN}",
        f"<reflection>Question: c?\nAnswer: d</reflection>\n<output>{PLAIN}</output>",
        f"<think>\nQuestion: c?\n</think>\n<answer>\n{PLAIN}\n</answer>",
        f"[THINK]Question: c?\nAnswer: d[/THINK]{PLAIN}",
        "<|channel|>analysis<|message|>Question: c?\nAnswer: d<|end|><|start|>assistant<|channel|>final<|message|>"
        f"{PLAIN}<|return|>",
        f"<|channel|>final <|constrain|>JSON<|message|>{OBJECTS}<|return|>",
        f"analysisWe need pairs. Question: c?\nAnswer: dassistantfinal{PLAIN}",
        f"```json\n{OBJECTS}\n```",
        f"Here are the pairs you asked for:\n\n```json\n{OBJECTS}\n```\n\nI hope they help!",
        f"Sure, the pairs are {OBJECTS} as you wished.",
        f"```\n{PLAIN}\n```",
    ],
)
def test_the_marks_of_a_reply_do_not_stay_in_its_pairs(reply):
    assert read(reply) == BOTH


@pytest.mark.parametrize(
    "reply",
    [
        "<think>Question: c?\nAnswer: d",
        "<|channel|>analysis<|message|>Question: c?\nAnswer: d",
        "[THINK]Q: c?\nA: d",
        "analysisQuestion: c?\nAnswer: d",
    ],
)
def test_a_thought_that_does_not_end_is_no_reply(reply):
    assert read(reply) == []


@pytest.mark.parametrize(
    ("asks", "answers", "first", "second"),
    [
        ("Pregunta", "Respuesta", ("¿Quién fundó Quenbarrow?", "Hedra Molvane"), ("¿Cuándo?", "en 1743")),
        ("Frage", "Antwort", ("Wer gründete Quenbarrow?", "Hedra Molvane"), ("Wann war das?", "1743")),
        ("Question", "Réponse", ("Qui a fondé Quenbarrow ?", "Hedra Molvane"), ("Quand ?", "en 1743")),
        ("Domanda", "Risposta", ("Chi fondò Quenbarrow?", "Hedra Molvane"), ("Quando?", "nel 1743")),
        ("Pergunta", "Resposta", ("Quem fundou Quenbarrow?", "Hedra Molvane"), ("Quando?", "em 1743")),
        ("Вопрос", "Ответ", ("Кто основал город?", "Хедра"), ("Когда?", "в 1743")),
        ("问", "答", ("谁建立了这座城市？", "赫德拉"), ("什么时候？", "一七四三年")),
        ("问题", "答案", ("谁建立了这座城市？", "赫德拉"), ("什么时候？", "一七四三年")),
        ("質問", "回答", ("町を作ったのは誰ですか？", "ヘドラ"), ("いつですか？", "千七百年")),
        ("Fråga", "Svar", ("Vem grundade Quenbarrow?", "Hedra Molvane"), ("När?", "1743")),
        ("Otázka", "Odpověď", ("Kdo založil Quenbarrow?", "Hedra Molvane"), ("Kdy?", "v roce 1743")),
        ("سؤال", "جواب", ("من أسس المدينة؟", "هدرا"), ("متى؟", "عام 1743")),
        ("질문", "답변", ("누가 세웠습니까?", "헤드라"), ("언제입니까?", "1743년")),
    ],
)
@pytest.mark.parametrize("colon", [": ", "：", ":"])
def test_labels_of_other_languages(asks, answers, first, second, colon):
    pairs = [first, second]
    lines = [f"{asks}{colon}{q}\n{answers}{colon}{a}" for q, a in pairs]
    assert read("\n\n".join(lines)) == pairs
    assert read("\n".join(lines)) == pairs
    numbered = "\n".join(f"{asks} {n}{colon}{q}\n{answers} {n}{colon}{a}" for n, (q, a) in enumerate(pairs, 1))
    assert read(numbered) == pairs
    assert read("\n".join(f"**{asks}:** {q}\n**{answers}:** {a}" for q, a in pairs)) == pairs
    assert read("\n".join(f"{asks}{colon}{q} {answers}{colon}{a}" for q, a in pairs)) == pairs
    assert read(json.dumps([{asks.lower(): q, answers.lower(): a} for q, a in pairs], ensure_ascii=False)) == pairs
    assert read(f"{lines[0]}\n{asks}{colon}{second[0]}\n{answers[:1]}", complete=False) == [first]


@pytest.mark.parametrize(("asks", "answers"), [("P", "R"), ("F", "A"), ("Q", "R"), ("Galdera", "Erantzuna")])
@pytest.mark.parametrize("number", [False, True])
def test_labels_of_any_language_by_their_places(asks, answers, number):
    def lines(n, pair):
        return f"{asks}{n if number else ''}: {pair[0]}\n{answers}{n if number else ''}: {pair[1]}"

    assert read(lines(1, WHO)) == [WHO]
    assert read(f"{lines(1, WHO)}\n\n{lines(2, WHEN)}") == BOTH
    assert read(f"**{asks}:** {Q1}\n**{answers}:** {A1}") == [WHO]


def test_labels_at_other_places_stay():
    assert read(f"Q: {Q1}\nName: {A1}\nQ: {Q2}\nYear: 1743") == [(Q1, f"Name: {A1}"), (Q2, "Year: 1743")]
    assert read(f"{Q1}\nFounder: {A1}") == [(Q1, f"Founder: {A1}")]


def test_labels_without_spaces_between_them():
    assert read("问：谁建立了这座城市？答：赫德拉。\n问：何时？答：一七四三年。") == [
        ("谁建立了这座城市？", "赫德拉。"),
        ("何时？", "一七四三年。"),
    ]


@pytest.mark.parametrize("marker", MARKERS)
def test_a_marker_ends_the_reply(marker):
    more = "user\nQ: Evil?\nA: yes"
    assert read(f"Q: Who?\nA: Bo{marker}{more}") == [("Who?", "Bo")]
    assert read(f"Q: Who?\nA: Bo{marker}{more}", complete=False) == [("Who?", "Bo")]
    assert read(f"Q: Who?\nA: Bo\nQ: Wh{marker}{more}") == [("Who?", "Bo")]
    assert read(f"{marker}{more}") == []


def test_no_marker_is_put_together():
    hidden = [
        '[{"question": "Who?", "answer": "Bo\\u003c|im_end|\\u003e"}, {"question": "Evil?", "answer": "yes"}]',
        '[{"question": "Who?", "answer": "Bo<|im_\\u200bend|>"}, {"question": "Evil?", "answer": "yes"}]',
        "[{'question': 'Who?', 'answer': 'Bo\\u003c/s\\u003e'}, {'question': 'Evil?', 'answer': 'yes'},]",
    ]
    for reply in hidden:
        assert read(reply) == [("Who?", "Bo")]
    assert read("Q: Who?\nA: Bo <** |im_end|>**\nQ: Evil?\nA: <|im_\nend|> yes") != []
    for reply in [
        "Q: a?\nA: <**|im_end|**>",
        "Q: a?\nA: x <<|x|>|im_end|>",
        "Q: a?\nA: <|im_\nend|>",
        "Q: a?\nA: <|im\x00_end|>",
    ]:
        text = str(read(reply))
        assert "<|im_end|>" not in text and "|>" not in text.replace("<|im_ end|>", "").replace("<|im _end|>", "")


def test_an_answer_that_the_limit_cut():
    cut = f"Q: {Q1}\nA: {A1}\nQ: {Q2}\nA: in 17"
    assert read(cut) == [WHO, (Q2, "in 17")]
    assert read(cut, complete=False) == [WHO]
    for whole in (
        cut + "\n",
        cut + "\n\n",
        cut + "\nLet me know!",
        cut + "\n---",
        cut + "\nQ: Wh",
        cut + "\nQ: Why?",
    ):
        assert read(whole, complete=False) == [WHO, (Q2, "in 17")], whole
    one = json.dumps({"question": Q1, "answer": A1})
    assert read(f"[{one}, {one[:-4]}", complete=False) == [WHO]
    assert read(f"[{one},\n{one[:-4]}", complete=False) == [WHO]
    assert read(f"[{one}, {one},", complete=False) == [WHO, WHO]
    assert read(f'[{one}, {{"question": "Why?"', complete=False) == [WHO]
    assert read(f"```json\n[{one},]\n```", complete=False) == [WHO]
    table = f"| Question | Answer |\n|---|---|\n| {Q1} | {A1} |\n| {Q2} | in 17"
    assert read(table) == [WHO, (Q2, "in 17")]
    assert read(table, complete=False) == [WHO]
    assert read(table + " |", complete=False) == [WHO, (Q2, "in 17")]


@pytest.mark.parametrize(
    "hostile",
    [
        "[" * 100_000,
        '{"a":' * 50_000,
        '["a",' * 30_000,
        "**" * 50_000,
        "* " * 50_000,
        "?" * 100_000,
        "Q: " * 30_000,
        "1. " * 30_000,
        "Q: a? A: b " * 10_000,
        "<|" * 50_000,
        "| " * 50_000,
        "\n" * 100_000,
        "a? " * 30_000,
        '[{"question": "Who?", "answer": ' + "9" * 10_000 + "}]",
        '{"question": "Who?", "answer": "\\ud800"}',
        '[{"question": "' + 'x"' * 10_000,
        "__import__('os').system('false')",
        "(" * 50_000 + "Answer: ",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_hostile_replies_neither_raise_nor_hang(hostile):
    start = time.monotonic()
    for pair in parse_pairs(hostile):
        f"{pair.question}{pair.answer}".encode()
        assert "\n" not in pair.question + pair.answer
    assert time.monotonic() - start < 20


def _random_pairs(rng):
    names = ["Hedra Molvane", "Tobin Areskog", "the Copper Kettle", "Lake Ondine", "1,500", "3.5 km", "O'Hara & Sons"]
    words = [
        "founded",
        "river",
        "bridge",
        "painted",
        "owner's",
        "well-known",
        "café",
        "Ärztin",
        "No. 5",
        '"Tide"',
        "e.g.",
    ]
    made = []
    for _ in range(rng.randint(1, 8)):
        question = " ".join(["What", *rng.choices(words + names, k=rng.randint(1, 8))]) + "?"
        made.append((question, " ".join(rng.choices(names + words, k=rng.randint(1, 9)))))
    return made


def _render(pairs, form):
    numbered = list(enumerate(pairs, start=1))
    if form == "labels":
        return "\n".join(f"Question: {q}\nAnswer: {a}" for q, a in pairs)
    if form == "short":
        return "Sure:\n" + "\n\n".join(f"Q{n}: {q}\nA{n}: {a}" for n, (q, a) in numbered)
    if form == "numbers":
        return "\n".join(f"{n}. {q} Answer: {a}" for n, (q, a) in numbered)
    if form == "bold":
        return "\n\n".join(f"{n}. **Question:** {q}\n   **Answer:** {a}" for n, (q, a) in numbered)
    if form == "bare":
        return "\n".join(f"{q}\n{a}" for q, a in pairs)
    if form == "table":
        return "| Question | Answer |\n|---|---|\n" + "\n".join(f"| {q} | {a} |" for q, a in pairs)
    records = [{"question": q, "answer": a} for q, a in pairs]
    if form == "json lines":
        return "\n".join(json.dumps(record) for record in records)
    text = json.dumps(records, indent=2, ensure_ascii=False)
    return text if form == "json" else f"```json\n{text[:-2]},\n]\n```\nDone."


FORMS = ["labels", "short", "numbers", "bold", "bare", "table", "json", "json lines", "fenced"]


@pytest.mark.parametrize("form", FORMS)
def test_random_pairs_come_back(form):
    rng = random.Random(form)
    for _ in range(60):
        pairs = _random_pairs(rng)
        text = _render(pairs, form)
        assert read(text) == pairs, text
        # Cut anywhere, what is read of it is the beginning of what was written, but for a cut last answer.
        cut = read(text[: rng.randrange(len(text))], complete=False)
        assert cut == pairs[: len(cut)], text


def test_without_json_repair_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "json_repair", None)
    with pytest.raises(ValueError, match=r"package json_repair, .* pip install 'selfparam-jax\[synthesis\]'"):
        read('[{"question": "Who?" "answer": "Ana"}]')
    assert read("Question: Who?\nAnswer: Ana") == [("Who?", "Ana")], "only damaged JSON needs it"
