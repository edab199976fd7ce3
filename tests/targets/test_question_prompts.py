"""The prompts that ask for pairs: ours, a user's own, and what is refused."""

import pytest

from selfparam_jax.data.documents import QAPair
from selfparam_jax.data.prompts import FEW_SHOT_EXAMPLES
from selfparam_jax.targets.config import GeneratorConfig
from selfparam_jax.targets.parse_pairs import parse_pairs
from selfparam_jax.targets.question_prompts import (
    PromptKind,
    TextKind,
    chosen_kinds,
    load_prompts,
    replies_per_kind,
)

KNOWN = QAPair("Who founded the town of Quenbarrow?", "Hedra Molvane")
CHAT = ["facts", "numbers_and_names", "why_how", "paraphrase_inversion", "summary", "yes_no_reason", "short_answers"]
PAIRS = ["dialogue", "use_it"]  # optional, as are texts
TEXTS = ["summary_text", "rewrite", "facts_list", "implications", "strategies"]
COMPLETION = ["continued", "reworded", "inverted", "explained"]


def test_our_kinds():
    prompts = load_prompts()
    assert list(prompts) == CHAT + PAIRS + TEXTS + COMPLETION
    assert [kind.form for kind in prompts.values()] == ["chat"] * 14 + ["completion"] * 4
    assert [name for name, kind in prompts.items() if kind.optional] == PAIRS + TEXTS
    assert [name for name, kind in prompts.items() if isinstance(kind, TextKind)] == TEXTS
    assert all(kind.name == name and kind.weight > 0 for name, kind in prompts.items())
    shapes = {name: kind.answer_shape for name, kind in prompts.items()}
    assert shapes["facts"] == shapes["short_answers"] == "short" and shapes["why_how"] == "sentence"
    assert [name for name, kind in prompts.items() if kind.builds_on_pairs] == [
        "paraphrase_inversion", "reworded", "inverted",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="at least one known pair"):
        prompts["paraphrase_inversion"].render("x", 1)
    with pytest.raises(ValueError, match="got count 0, expected at least 1"):
        prompts["facts"].render("x", 0)


@pytest.mark.parametrize("name", CHAT)
def test_our_chat_kinds(name):
    kind = load_prompts()[name]
    text = kind.render("A {context} with {braces}, {count} and {pairs}.", 7, ["Old one?", "Old\ntwo?"], [KNOWN])
    assert "A {context} with {braces}, {count} and {pairs}." in text and "7" in text
    assert "Question: " in text and "Answer: " in text and "- Old one?\n- Old two?\n" in text
    assert text.count("{") == 4
    without = kind.render("Text.", 7, (), [KNOWN])
    assert "again" not in without and "\n\n\n" not in without
    line = f"Question: {KNOWN.question}\nAnswer: {KNOWN.answer}"
    assert (line in text) == (name == "paraphrase_inversion")


@pytest.mark.parametrize("name", PAIRS)
def test_our_optional_kinds_of_pairs(name):
    text = load_prompts()[name].render("The mill has {four} wheels.", 7)
    assert "The mill has {four} wheels." in text and " 7 " in text and text.count("{") == 1
    assert text.splitlines()[-2].startswith("Question: <") and text.splitlines()[-1].startswith("Answer: <")


@pytest.mark.parametrize("name", TEXTS)
def test_our_kinds_of_texts(name):
    kind = load_prompts()[name]
    first = kind.first_instruction("The mill has {four} wheels.")
    assert "The mill has {four} wheels." in first and first.count("{") == 1
    text = kind.render("The mill has {four} wheels.", 1, plan="Draw the {context}.")
    assert ("Draw the {context}." in text) == (first != text) == (name == "strategies")
    asked = [kind.question("the mill", number) for number in range(len(kind.ask) + 1)]
    assert len(set(asked)) == len(kind.ask) >= 4 and asked[-1] == asked[0]
    assert all("the mill" in question and "{" not in question for question in asked)


def test_which_kinds_are_asked_for():
    def names(**settings):
        return [kind.name for kind in chosen_kinds(GeneratorConfig(form="chat", **settings))]

    assert names() == CHAT
    assert names(kinds=("all",)) == CHAT + PAIRS + TEXTS
    assert names(kinds=("rewrite", "facts")) == ["facts", "rewrite"]
    with pytest.raises(ValueError, match=r"kinds = \['all'\] with form 'chat', expected 'all' or some of facts"):
        names(kinds=("all", "facts"))


def test_optional_kinds_alone_are_not_asked_for(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(GOOD + "optional = true\n")
    with pytest.raises(ValueError, match=r"kinds = \[\] with form 'chat', expected 'all' or some of mine"):
        chosen_kinds(GeneratorConfig(form="chat", prompts=str(path)))
    assert [kind.name for kind in chosen_kinds(GeneratorConfig(form="chat", prompts=str(path), kinds=("mine",)))]


@pytest.mark.parametrize("name", COMPLETION)
def test_our_completion_kinds(name):
    """What a completion goes on from is itself a text whose pairs can be read, so the form is taught by example."""
    kind = load_prompts()[name]
    text = kind.render("The mill has {four} wheels.", 1, (), [KNOWN])
    if kind.builds_on_pairs:
        assert f"Question: {KNOWN.question}\nAnswer: {KNOWN.answer}\n" in text and "The mill" not in text
        assert kind.told == kind.taken == 1
    else:
        assert text.endswith("\n\nPassage: The mill has {four} wheels.")
    assert (FEW_SHOT_EXAMPLES.strip() in text) == (name == "continued")
    assert all(begin.startswith("Question:") and not begin.endswith(" ") for begin in kind.begin)
    assert "  " not in text and "{pairs}" not in text and "{examples}" not in text
    made = parse_pairs(f"{kind.begin[0]} has four wheels?\nAnswer: the mill\n\nPassage: x\nQuestion: y?\nAnswer: z")
    assert [pair.answer for pair in made] == ["the mill"], "what follows about another passage is left out"


GOOD = '[mine]\ninstruction = "{context} {count}"\nweight = 1\nanswer_shape = "short"\n'


def test_own_prompts(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(GOOD)
    assert load_prompts(path)["mine"].render("{count}", 3) == "{count} 3"
    path.write_text(
        '[mine]\nform = "completion"\ninstruction = "{pairs}"\nweight = 1\nanswer_shape = "short"\ntold = 2'
    )
    kind = load_prompts(path)["mine"]
    assert kind.render("Text.", 1, (), [KNOWN]) == f"Question: {KNOWN.question}\nAnswer: {KNOWN.answer}"
    assert (kind.begin, kind.told, kind.taken) == (("",), 2, 0)


TEXT = (
    '[mine]\nask = ["About {title}?"]\nplan = "P {context}"\ninstruction = "{context} {plan}"\nweight = 1\n'
    'answer_shape = "sentence"\n'
)


def test_own_kind_of_text(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(TEXT)
    kind = load_prompts(path)["mine"]
    assert kind.first_instruction("{plan}") == "P {plan}" and kind.render("{plan}", 1, plan="{x}") == "{plan} {x}"
    assert kind.question("{title}", 3) == "About {title}?"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('["About {title}?"]', '"About {title}?"', "got ask = 'About {title}\\?', expected a list"),
        ('["About {title}?"]', "[]", r"got ask = \[\], expected a list"),
        ('["About {title}?"]', "[5]", "got ask = 5, expected a string"),
        ("About {title}", "About it", "got ask with no placeholder, expected {title}"),
        ("About {title}", "About {title} {plan}", "got ask with {plan}, {title}, expected {title}"),
        ('"P {context}"', '"P"', "got plan with no placeholder, expected {context}"),
        ('"P {context}"', "5", "got plan = 5, expected a string"),
        ("{context} {plan}", "{context}", "got instruction with {context}, expected {context} and {plan}"),
        ("{context} {plan}", "{context} {plan} {count}", "got instruction with {context}, {count}, {plan}"),
        ('plan = "P {context}"\n', "", "got instruction with {context}, {plan}, expected {context};"),
        ('ask = ["About {title}?"]\n', "", "got ask = None, expected a list"),
        ('"sentence"', '"short"', "another answer_shape than 'sentence'"),
        ('"sentence"', '"sentence"\ntaken = 1', "or with told or taken"),
        ('"sentence"', '"sentence"\noptional = 1', "got optional = 1, expected true or false"),
    ],
)
def test_wrong_kinds_of_texts_are_refused(tmp_path, old, new, message):
    assert_refused(tmp_path, TEXT.replace(old, new), message)


def assert_refused(tmp_path, text, message):
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_prompts(path)
    assert "own.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("weight", "wieght", "unknown field 'wieght'.*did you mean 'weight'"),
        ("weight = 1\n", "", "got no 'weight'.*add the field"),
        ("weight = 1", "weight = 0", "got weight = 0, expected a number greater than 0"),
        ("weight = 1", "weight = -2.5", "got weight = -2.5"),
        ("weight = 1", "weight = true", "got weight = True"),
        ("weight = 1", "weight = nan", "got weight = nan"),
        ("weight = 1", "weight = inf", "got weight = inf"),
        ("weight = 1", "weight = '1'", "got weight = '1'"),
        ('"short"', '"long"', "got answer_shape = 'long', expected 'short' or 'sentence'"),
        ("{context}", "text", "without {context}"),
        ("{count}", "five", "without {count}"),
        ("{count}", "{count} {document}", "unknown placeholder {document}"),
        ("{count}", "{count} { earlier }", "unknown placeholder { earlier }"),
        ('"{context} {count}"', "5", "got instruction = 5, expected a string"),
        ("[mine]\n", "[mine\n", "malformed TOML"),
        ("{count}", "{count} \\ud800", "malformed TOML"),
        ("[mine]\n", "", "expected a table"),
        (GOOD, "", "got no table"),
        ('"short"', '"short"\nform = "poem"', "got form = 'poem', expected 'chat' or 'completion'"),
        ('"short"', '"short"\nbegin = ["Q"]', r"got begin = \['Q'\], expected a list.*only for form"),
        ('"short"', '"short"\nform = "completion"\nbegin = []', r"got begin = \[\]"),
        ('"short"', '"short"\nform = "completion"\nbegin = "Q"', "got begin = 'Q'"),
        ('"short"', '"short"\ntold = -1', "got told = -1, expected a whole number"),
        ('"short"', '"short"\ntaken = true', "got taken = True"),
        ('"{context} {count}"', '"{count}"\nform = "completion"', "without {context} or {pairs}"),
    ],
)
def test_wrong_prompts_are_refused(tmp_path, old, new, message):
    assert_refused(tmp_path, GOOD.replace(old, new), message)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.toml"):
        load_prompts(tmp_path / "none.toml")


def test_replies_are_shared_by_weight():
    kinds = [PromptKind(name, "", weight, "short") for name, weight in (("a", 3.0), ("b", 2.0), ("c", 1.0))]
    assert replies_per_kind(kinds, 6) == {"a": 3, "b": 2, "c": 1}
    assert replies_per_kind(kinds, 1) == {"a": 1, "b": 0, "c": 0}
    for replies in range(1, 30):
        assert sum(replies_per_kind(kinds, replies).values()) == replies
