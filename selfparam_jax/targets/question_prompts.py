"""The prompts that ask a model for question-answer pairs: kinds, read from a TOML file, and their rendering."""

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
_FIELDS = (*_REQUIRED, "form", "begin", "told", "taken")
_PLACEHOLDERS = ("{context}", "{count}", "{earlier}", "{pairs}", "{examples}")
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
    """

    name: str
    instruction: str
    weight: float
    answer_shape: str
    form: str = "chat"
    begin: tuple[str, ...] = ("",)
    told: int = 0
    taken: int = 0

    @property
    def builds_on_pairs(self) -> bool:
        """Whether it needs known pairs."""
        return "{pairs}" in self.instruction

    def render(self, context: str, count: int, earlier: Sequence[str] = (), pairs: Sequence[QAPair] = ()) -> str:
        """The text to send; the text that is filled in is never read as a template itself.

        Args:
          context: the document.
          count: how many pairs to ask for.
          earlier: questions not to repeat; without any, the paragraph with {earlier} is left out.
          pairs: known pairs for {pairs}. Both are ignored if the template has no place for them.

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
        }
        # In one pass: str.replace for one placeholder after the other would also replace inside the context.
        return _PLACEHOLDER.sub(lambda match: values[match.group()], template).strip()


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
    unknown = set(config.kinds) - kinds.keys()
    if unknown or not kinds:
        raise ValueError(
            f"generator.kinds = {sorted(unknown)} with form {config.form!r}, expected some of "
            f"{', '.join(kinds) or 'none: the file of prompts has no kind of this form'}"
        )
    return [kind for name, kind in kinds.items() if not config.kinds or name in config.kinds]


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
    _check_instruction(table["instruction"], form, where)
    numbers = {field: _whole_number(table.get(field, 0), field, where) for field in ("told", "taken")}
    begin = _beginnings(table.get("begin", [""]), form, where)
    return PromptKind(name, table["instruction"], float(weight), shape, form, begin, **numbers)


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
