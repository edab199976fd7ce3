"""The prompts that ask a model for pairs, or for a text: kinds, read from a TOML file, and their rendering."""

import dataclasses
import difflib
import math
import os
import pathlib
import re
import tomllib
from collections.abc import Sequence

from selfparam_jax.data.documents import QAPair
from selfparam_jax.data.prompts import FEW_SHOT_EXAMPLES
from selfparam_jax.targets.config import ANSWER_SHAPES, FORMS, GeneratorConfig

PROMPTS_FILE = pathlib.Path(__file__).with_name("question_prompts.toml")
_REQUIRED = ("instruction", "weight", "answer_shape")
_FIELDS = (*_REQUIRED, "form", "begin", "told", "taken", "optional", "ask", "plan")
_PLACEHOLDERS = ("{context}", "{count}", "{earlier}", "{pairs}", "{examples}")
ALL = "all"  # in generator.kinds: the optional kinds, too
_PLACEHOLDER = re.compile(r"\{\s*\w*\s*\}")


@dataclasses.dataclass(frozen=True)
class PromptKind:
    """One way to ask for pairs.

    Attributes:
      name: its name in configurations and records.
      instruction: template with the placeholders of `question_prompts.toml`.
      weight: how often it is asked for, relative to the others of its form.
      answer_shape: "short" or "sentence", what its answers should look like.
      form: "chat": the instruction is a user's turn; "completion": a text that the model continues.
      begin: what the replies of a completion begin with, one after the other.
      told: how many known pairs fill {pairs}, and how many questions {earlier}; 0 means all that the caller passes.
      taken: how many pairs of a reply are used, 0 for all.
      optional: whether it is asked for only where `generator.kinds` names it.
    """

    name: str
    instruction: str
    weight: float
    answer_shape: str
    form: str = "chat"
    begin: tuple[str, ...] = ("",)
    told: int = 0
    taken: int = 0
    # Which kinds are asked for, a file of pairs knows by their names.
    optional: bool = dataclasses.field(default=False, repr=False)

    @property
    def builds_on_pairs(self) -> bool:
        """Whether it needs known pairs."""
        return "{pairs}" in self.instruction

    def render(
        self,
        context: str,
        count: int,
        earlier: Sequence[str] = (),
        pairs: Sequence[QAPair] = (),
        plan: str = "",
    ) -> str:
        """The text to send; the text that is filled in is never read as a template itself.

        Args:
          context: the document.
          count: how many pairs to ask for.
          earlier: questions not to repeat; without any, the paragraph with {earlier} is left out.
          pairs: known pairs for {pairs}. Both are ignored if the template has no place for them.
          plan: what the model has planned to write, for {plan}.

        Returns:
          the text of the prompt.

        Raises:
          ValueError: `count` is below 1, or the template has {pairs} and there are none.
        """
        if count < 1:
            raise ValueError(f"prompt {self.name!r}: got count {count}, expected at least 1; raise it")
        if self.builds_on_pairs and not pairs:
            raise ValueError(
                f"prompt {self.name!r}: got no pairs, expected at least one known pair for {{pairs}}; "
                "ask for other kinds first"
            )
        template = self.instruction
        if not earlier:
            paragraphs = re.split(r"\n[^\S\n]*\n", template)
            template = "\n\n".join(paragraph for paragraph in paragraphs if "{earlier}" not in paragraph)
        values = {
            "{context}": context,
            "{count}": str(count),
            "{earlier}": "\n".join(f"- {' '.join(question.split())}" for question in earlier),
            "{pairs}": "\n".join(
                f"Question: {' '.join(pair.question.split())}\nAnswer: {' '.join(pair.answer.split())}"
                for pair in pairs
            ),
            "{examples}": FEW_SHOT_EXAMPLES.rstrip("\n"),
            "{plan}": plan,
        }
        # In one pass: str.replace for one placeholder after the other would also replace inside the context.
        return _PLACEHOLDER.sub(lambda match: values[match.group()], template).strip()


@dataclasses.dataclass(frozen=True)
class TextKind(PromptKind):
    """One way to ask for a text about a document, which answers a question that we ask.

    Attributes:
      ask: the questions, with {title} for what the document is about; they take turns.
      plan: an instruction that the model reads first; its reply stands for {plan} in `instruction`. "" for none.
    """

    ask: tuple[str, ...] = ()
    plan: str = ""

    def question(self, topic: str, number: int) -> str:
        """What the text number `number` about a document answers."""
        return self.ask[number % len(self.ask)].replace("{title}", topic)

    def first_instruction(self, context: str) -> str:
        """The instruction that the model reads with a document before any other."""
        if not self.plan:
            return self.render(context, 1)
        return self.plan.strip().replace("{context}", context)


def load_prompts(path: str | os.PathLike | None = None) -> dict[str, PromptKind]:
    """Reads the kinds of prompts from a TOML file.

    Args:
      path: a file of the same form as `question_prompts.toml`; None: that file.

    Returns:
      the kinds by name, in the file's order.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not TOML, has no table, or a table has an unknown, missing or wrong field.
    """
    path = PROMPTS_FILE if path is None else pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path")
    try:
        tables = tomllib.loads(path.read_bytes().decode("utf-8").replace("\r\n", "\n"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: got malformed TOML ({error}), expected TOML in UTF-8; correct the file") from error
    if not tables:
        raise ValueError(f"{path}: got no table, expected one table per kind of question; add one, as [facts]")
    return {name: _prompt_kind(name, table, f"{path}, [{name}]") for name, table in tables.items()}


def chosen_kinds(config: GeneratorConfig) -> list[PromptKind]:
    """The kinds of prompts that a configuration asks for.

    Raises:
      ValueError: a kind that the file of prompts does not have in this form; `load_prompts`'s errors.
    """
    kinds = {name: kind for name, kind in load_prompts(config.prompts or None).items() if kind.form == config.form}
    if config.kinds == (ALL,) and kinds:
        return list(kinds.values())
    unknown = set(config.kinds) - kinds.keys()
    chosen = [kind for name, kind in kinds.items() if (name in config.kinds if config.kinds else not kind.optional)]
    if unknown or not chosen:
        names = f"{ALL!r} or some of {', '.join(kinds)}" if kinds else "a file of prompts with a kind of this form"
        raise ValueError(
            f"generator.kinds = {sorted(unknown) or list(config.kinds)} with form {config.form!r}, expected {names}"
        )
    return chosen


def replies_per_kind(kinds: Sequence[PromptKind], replies: int) -> dict[str, int]:
    """Shares replies among kinds by weight, largest remainders first; a kind may get none."""
    total = sum(kind.weight for kind in kinds)
    shares = {kind.name: replies * kind.weight / total for kind in kinds}
    counts = {name: int(share) for name, share in shares.items()}
    left = replies - sum(counts.values())
    for name in sorted(shares, key=lambda name: counts[name] - shares[name])[:left]:
        counts[name] += 1
    return counts


def _prompt_kind(name: str, table: object, where: str) -> PromptKind:
    if not isinstance(table, dict):
        raise ValueError(f"{where}: got {table!r}, expected a table; move it below a line [name of the kind]")
    for field in (*table, *_REQUIRED):
        if field not in table or field not in _FIELDS:
            close = difflib.get_close_matches(field, _FIELDS, n=1)
            hint = "add the field" if field in _FIELDS else f"did you mean {close[0]!r}?" if close else "remove it"
            got = f"no {field!r}" if field in _FIELDS else f"the unknown field {field!r}"
            raise ValueError(f"{where}: got {got}, expected the fields {', '.join(_REQUIRED)}; {hint}")
    weight, shape = table["weight"], table["answer_shape"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ValueError(
            f"{where}: got weight = {weight!r}, expected a number greater than 0; "
            "correct it, or remove the table to leave the kind out"
        )
    if shape not in ANSWER_SHAPES:
        raise ValueError(f"{where}: got answer_shape = {shape!r}, expected 'short' or 'sentence'; choose one")
    form = table.get("form", "chat")
    if form not in FORMS:
        raise ValueError(f"{where}: got form = {form!r}, expected 'chat' or 'completion'; choose one")
    if not isinstance(optional := table.get("optional", False), bool):
        raise ValueError(f"{where}: got optional = {optional!r}, expected true or false; correct it")
    begin = _beginnings(table.get("begin", [""]), form, where)
    fields = (name, table["instruction"], float(weight), shape, form, begin)
    if "ask" in table or "plan" in table:
        return TextKind(*fields, optional=optional, **_text_fields(table, where))
    _check_instruction(table["instruction"], form, where)
    numbers = {field: _whole_number(table.get(field, 0), field, where) for field in ("told", "taken")}
    return PromptKind(*fields, **numbers, optional=optional)


def _text_fields(table: dict, where: str) -> dict:
    """What only a kind of text has."""
    ask, plan = table.get("ask"), table.get("plan", "")
    if not isinstance(ask, list) or not ask:
        raise ValueError(f"{where}: got ask = {ask!r}, expected a list of at least one question; correct it")
    for text in ask:
        _check_placeholders(text, ("{title}",), "ask", where)
    if table["answer_shape"] != "sentence" or "told" in table or "taken" in table:
        raise ValueError(
            f"{where}: got a kind of text (it has 'ask') with another answer_shape than 'sentence', or with told or "
            "taken, which are for pairs; correct it"
        )
    _check_placeholders(
        table["instruction"], ("{context}", "{plan}") if plan else ("{context}",), "instruction", where
    )
    if "plan" in table:
        _check_placeholders(plan, ("{context}",), "plan", where)
    return {"ask": tuple(ask), "plan": plan}


def _check_placeholders(text: object, expected: tuple[str, ...], field: str, where: str) -> None:
    """Raises ValueError for what is no string, or has other placeholders than these."""
    if not isinstance(text, str):
        raise ValueError(f"{where}: got {field} = {text!r}, expected a string; put it into quotes")
    if (used := {*_PLACEHOLDER.findall(text)}) != {*expected}:
        raise ValueError(
            f"{where}: got {field} with {', '.join(sorted(used)) or 'no placeholder'}, expected "
            f"{' and '.join(expected)}; correct it"
        )


def _check_instruction(instruction: object, form: str, where: str) -> None:
    if not isinstance(instruction, str):
        raise ValueError(f"{where}: got instruction = {instruction!r}, expected a string; put it into quotes")
    used = _PLACEHOLDER.findall(instruction)
    unknown = [f"the unknown placeholder {each}" for each in used if each not in _PLACEHOLDERS]
    # A completion may turn known pairs into others without the document, and shows how many by its examples.
    alternatives = [("{context}",), ("{count}",)] if form == "chat" else [("{context}", "{pairs}")]
    missing = [f"an instruction without {' or '.join(each)}" for each in alternatives if not {*each} & {*used}]
    for wrong in unknown + missing:
        raise ValueError(
            f"{where}: got {wrong}, expected {{context}} and (in a chat) {{count}}, perhaps {{earlier}}, {{pairs}} "
            "and {examples}, and no others; correct the instruction"
        )


def _whole_number(value: object, field: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{where}: got {field} = {value!r}, expected a whole number of at least 0; correct it")
    return value


def _beginnings(value: object, form: str, where: str) -> tuple[str, ...]:
    texts = isinstance(value, list) and all(isinstance(text, str) for text in value)
    if not texts or not value or (form == "chat" and value != [""]):
        raise ValueError(
            f"{where}: got begin = {value!r}, expected a list of at least one string, and only for "
            'form = "completion"; correct it'
        )
    return tuple(value)
