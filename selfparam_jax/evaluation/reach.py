"""Reach: whether what was learned is there however one asks, and whether all else is as it was.

The held-out questions are asked in the reading format, through the chat template, bare, in other words and from the
other side; claims are to be judged, and the model is to tell what it knows. What must not change: answers to
unrelated questions, to questions about things that do not exist, and to instructions.
"""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from selfparam_jax.data.documents import Document, Question
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.data.resources import resource
from selfparam_jax.evaluation.metrics import best, contains, token_f1
from selfparam_jax.evaluation.questions import SHORT_TOKENS, kinds_of, short_answer, text_for
from selfparam_jax.inference.decoding import generate
from selfparam_jax.inference.prefix import read_prefixes
from selfparam_jax.models.decoder import Decoder
from selfparam_jax.targets.formats.contrast import names_of

CHAT_TOKENS = 40  # the longest answer in a conversation
TELL_TOKENS = 128
CLAIM = 'Is this statement true? "{claim}" Answer with yes or no.'
TELL = "Tell me what you know about {subject}."
AS_BEFORE = 0.5  # token F1 with the base's answer from which an answer counts as the same

# Columns of the table, in order: what is asked, and in which form.
COLUMNS = {
    "reading": ("held-out questions", "reading"),
    "chat": ("held-out questions", "chat"),
    "bare": ("held-out questions", "bare"),
    "other_words": ("in other words", "chat"),
    "inverted": ("from the other side", "chat"),
    "other_words_reading": ("in other words", "reading"),
    "inverted_reading": ("from the other side", "reading"),
    "claims": ("claims, true and false", "chat"),
    "tell": ("tell what you know", "chat"),
}
LEVELS = {"none": (), "forms": ("reading", "chat", "bare"), "all": tuple(COLUMNS)}  # `eval.reach`


@dataclasses.dataclass(frozen=True)
class Variants:
    """A held-out question asked otherwise.

    Attributes:
      other_words: the same question in other words.
      inverted: from the other side.
      true, false: a right and a wrong claim about the same fact.
    """

    other_words: str
    inverted: Question
    true: str
    false: str


@dataclasses.dataclass(frozen=True)
class Probes:
    """What must not change.

    Attributes:
      unrelated: questions with their answers.
      invented: questions about things that do not exist.
      instructions: instructions, and how to check that they were followed (`follows`).
    """

    unrelated: Sequence[Question] = ()
    invented: Sequence[str] = ()
    instructions: Sequence[tuple[str, dict]] = ()


def read_variants(path: pathlib.Path) -> dict[tuple[str, str], Variants]:
    """Variants of held-out questions by document id and question, from JSON lines.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line lacks something; says which.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; correct eval.reach_file")
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            inverted = Question(entry["inverted"]["question"], tuple(entry["inverted"]["answers"]))
            variants = Variants(entry["other_words"], inverted, entry["true"], entry["false"])
            found[entry["context"], entry["question"]] = variants
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {number}: expected an object with context, question, other_words, inverted (question, "
                f"answers), true and false; got {line[:60]!r} ({error})"
            ) from error
    return found


def read_probes(unrelated: pathlib.Path, others: pathlib.Path) -> Probes:
    """Unrelated questions, and questions about invented things and instructions, from two files of JSON lines."""
    questions = [json.loads(line) for line in unrelated.read_text(encoding="utf-8").splitlines()]
    lines = [json.loads(line) for line in others.read_text(encoding="utf-8").splitlines()]
    return Probes(
        [Question(entry["question"], tuple(entry["answers"])) for entry in questions],
        [entry["question"] for entry in lines if entry["kind"] == "invented"],
        [(entry["question"], entry["check"]) for entry in lines if entry["kind"] == "instruction"],
    )


@dataclasses.dataclass(frozen=True)
class Asker:
    """A model that is asked.

    Attributes:
      model: applies the variables.
      variables: {'params'}, or {'params', 'lora'}.
      prompt: the reading format, bound to the tokenizer.
      batch_size: questions decoded together.
      with_document: whether a question's document stands in the prompt.
      known: answers in the reading format that are there already, by document id and question.
    """

    model: Decoder
    variables: dict
    prompt: Prompt
    batch_size: int = 16
    with_document: bool = False
    known: Mapping[tuple[str, str], str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def chat(self) -> Prompt | None:
        """The chat format; None without a chat template."""
        return self.prompt.with_format("chat") if self.prompt.has_chat_template else None

    def ask(self, asked: Sequence[tuple[str, Document | None]], form: str, new_tokens: int = 0) -> list[str] | None:
        """Answers, greedily.

        Args:
          asked: questions, each with its document.
          form: "reading", "chat" or "bare".
          new_tokens: the longest answer; 0 is the form's.

        Returns:
          the answers in order; None if the model cannot be asked in this form.
        """
        if form == "reading" and self.known and not new_tokens:
            keys = [(document.id if document else "", question) for question, document in asked]
            if all(key in self.known for key in keys):
                return [self.known[key] for key in keys]
        prompt = {"reading": self.prompt, "chat": self.chat, "bare": self.prompt.with_format("bare")}[form]
        if prompt is None:
            return None
        groups: dict[str | None, list[int]] = {}
        for i, (_, document) in enumerate(asked):
            key = document.text if self.with_document and document is not None else None
            groups.setdefault(key, []).append(i)
        starts = [self._start(prompt, form, text) for text in groups]
        answers = [""] * len(asked)
        prefixes = read_prefixes(self.model, self.variables, [start for start in starts if start])
        for start, members in zip(starts, groups.values(), strict=True):
            rows = [prompt.question(asked[i][0]) for i in members]
            made = self._generate(prompt, form, next(prefixes) if start else (), rows, new_tokens)
            for i, ids in zip(members, made, strict=True):
                answers[i] = _answer_of(prompt, form, ids)
        return answers

    def _start(self, prompt: Prompt, form: str, text: str | None) -> tuple[int, ...]:
        """What is read before a question; for a bare one without a document often nothing."""
        if text is not None:
            return prompt.context_prefix(text)
        return prompt.lone_start if form == "bare" else prompt.start_ids

    def _generate(self, prompt, form, prefix, rows, new_tokens):
        stops = prompt.stop_ids if form == "reading" else prompt.end_ids
        tokens = new_tokens or (CHAT_TOKENS if form == "chat" else SHORT_TOKENS)
        return generate(self.model, self.variables, prefix, rows, tokens, stops, batch_size=self.batch_size)


def _answer_of(prompt: Prompt, form: str, ids: Sequence[int]) -> str:
    """The answer in what was generated: all of it in a conversation, else the first line.

    After a bare question, which ends with a line break, empty lines may come before it.
    """
    if form == "reading":
        return short_answer(prompt, ids)
    text = prompt.reply(ids)[0].strip()
    return text if form == "chat" else text.split("\n")[0].strip()


def ask_columns(
    asker: Asker,
    documents: Sequence[Document],
    variants: dict[tuple[str, str], Variants],
    columns: Iterable[str] = tuple(COLUMNS),
) -> dict[str, list[dict]]:
    """Asks the questions of some columns.

    Args:
      asker: whom.
      documents: with held-out questions.
      variants: of those that have some; the others are not asked in these columns.
      columns: of COLUMNS.

    Returns:
      per column, and per kind of its held-out questions ("chat/latest"), a record for each question: {"context",
      "question", "answer", "right": a number from 0 to 1}, and for claims "claim"; no column where nothing can be
      asked.
    """
    found: dict[str, list[dict]] = {}
    for column in columns:
        what, form = COLUMNS[column]
        entries = _entries(column, what, documents, variants)
        answers = asker.ask(
            [(asked, document) for document, asked, _ in entries], form, TELL_TOKENS if column == "tell" else 0
        )
        if not entries or answers is None:
            continue
        found[column] = [
            {"context": document.id, "question": asked, "answer": answer, "right": judge(answer)}
            for (document, asked, judge), answer in zip(entries, answers, strict=True)
        ]
        if what == "held-out questions":
            kinds = [question.kind for document in documents for question in document.questions]
            for kind in kinds_of(documents):
                found[f"{column}/{kind}"] = [r for r, each in zip(found[column], kinds, strict=True) if each == kind]
    return found


def _entries(column, what, documents, variants):
    entries = []
    for document in documents:
        if column == "tell" and document.questions:
            subject = document.title or document.text.split(".")[0]
            golds = [question.answers for question in document.questions]
            entries.append((document, TELL.format(subject=subject), functools.partial(_named, golds)))
            continue
        for question in document.questions:
            known = variants.get((document.id, question.question))
            if what == "held-out questions":
                read = dataclasses.replace(document, text=text_for(question, document, documents))
                entries.append((read, question.question, functools.partial(_contained, question.answers)))
            elif known is None:
                continue
            elif what == "in other words":
                entries.append((document, known.other_words, functools.partial(_contained, question.answers)))
            elif what == "from the other side":
                asked = known.inverted
                entries.append((document, asked.question, functools.partial(_contained, asked.answers)))
            elif column == "claims":
                for claim, right in ((known.true, "yes"), (known.false, "no")):
                    entries.append((document, CLAIM.format(claim=claim), functools.partial(_judged, right)))
    return entries


def _contained(golds: Sequence[str], answer: str) -> float:
    return float(best(contains, answer, golds))


def _named(golds: Sequence[Sequence[str]], answer: str) -> float:
    return float(np.mean([best(contains, answer, each) for each in golds]))


def _judged(right: str, answer: str) -> float:
    """1 if the first word of an answer that judges ("No.", "The statement is not true.") says what is right.

    Words in quotation marks are the claim's.
    """
    own = re.sub(r'"[^"]*("|$)', "", answer.lower())
    said = re.search(r"\b(not (?:true|correct|right)|yes|no|true|false|correct|incorrect)\b", own)
    if not said:
        return 0.0
    return float(("yes" if said[1] in ("yes", "true", "correct") else "no") == right)


def mean_right(records: Sequence[dict]) -> float:
    """The mean over documents of the share that is right."""
    by_document: dict[str, list[float]] = {}
    for record in records:
        by_document.setdefault(record["context"], []).append(record["right"])
    return float(np.mean([np.mean(values) for values in by_document.values()]))


def ask_probes(asker: Asker, probes: Probes) -> dict[str, list[str]] | None:
    """Answers to what must not change, by kind; None for a model without a chat template."""
    if asker.chat is None:
        return None
    asked = {
        "unrelated": [question.question for question in probes.unrelated],
        "invented": list(probes.invented),
        "instructions": [question for question, _ in probes.instructions],
    }
    together = [(question, None) for questions in asked.values() for question in questions]
    answers = iter(asker.ask(together, "chat"))
    return {kind: [next(answers) for _ in questions] for kind, questions in asked.items()}


def compare_probes(
    probes: Probes, before: dict[str, list[str]], after: dict[str, list[str]], documents: Sequence[Document]
) -> dict:
    """How far the answers to what must not change are as they were.

    An answer to an unrelated question is as before if it is nearly the base's (token F1 of at least AS_BEFORE), or if
    both contain the right answer. One bleeds if it has a name of the documents that is neither in its question nor in
    the base's answer.

    Args:
      probes: what was asked.
      before, after: answers of the base and of the injected model (`ask_probes`).
      documents: what was learned.

    Returns:
      {"as_before", "as_before_or_right": also those that only the injected model answers rightly, "same": share word
      for word, "bleed", "bleed_invented", "bleed_unrelated", "instructions_before",
      "instructions_after", "answers": records}; numbers from 0 to 1.
    """
    names = set().union(*(names_of(f"{document.title}. {document.text}") for document in documents))
    names = {name for name in names if name.lower() not in _common_words()}
    records = []
    for question, old, new in zip(probes.unrelated, before["unrelated"], after["unrelated"], strict=True):
        right = [best(contains, answer, question.answers) > 0 for answer in (old, new)]
        kept = token_f1(new, old) >= AS_BEFORE or all(right)
        record = _probe("unrelated", question.question, old, new, names)
        records.append(record | {"as_before": kept, "as_before_or_right": kept or right[1]})
    for question, old, new in zip(probes.invented, before["invented"], after["invented"], strict=True):
        records.append(_probe("invented", question, old, new, names))
    checks = {"before": [], "after": []}
    for (asked, check), old, new in zip(
        probes.instructions, before["instructions"], after["instructions"], strict=True
    ):
        for name, answer in (("before", old), ("after", new)):
            checks[name].append(follows(answer, check))
        records.append(_probe("instruction", asked, old, new, names) | {"followed": checks["after"][-1]})

    def share(kinds: tuple[str, ...], what: str) -> float | None:
        values = [record[what] for record in records if record["kind"] in kinds]
        return float(np.mean(values)) if values else None

    return {
        "as_before": share(("unrelated",), "as_before"),
        "as_before_or_right": share(("unrelated",), "as_before_or_right"),
        "same": share(("unrelated",), "same"),
        "bleed": share(("unrelated", "invented"), "bleeds"),
        "bleed_unrelated": share(("unrelated",), "bleeds"),
        "bleed_invented": share(("invented",), "bleeds"),
        "instructions_before": float(np.mean(checks["before"])) if checks["before"] else None,
        "instructions_after": float(np.mean(checks["after"])) if checks["after"] else None,
        "answers": records,
    }


@functools.cache
def _common_words() -> frozenset[str]:
    """Words of general text: "River" in an answer comes from no document."""
    texts = [
        resource("examples", f"general_{part}.jsonl").read_text(encoding="utf-8")
        for part in ("train", "eval", "chat")
    ]
    return frozenset(re.findall(r"\b[a-z]+\b", " ".join(texts)))


def _probe(kind: str, question: str, old: str, new: str, names: set[str]) -> dict:
    said, known = (set(re.findall(r"[^\W\d_]+", text)) for text in (new, f"{question} {old}"))
    bled = sorted((said & names) - known)
    return {
        "kind": kind, "question": question, "before": old, "after": new, "same": old == new, "bleeds": bool(bled),
        "names": bled,
    }  # fmt: skip


def follows(answer: str, check: dict) -> bool:
    """Whether an answer does what was asked.

    Args:
      answer: of a model.
      check: {"contains": [texts that must occur]}, {"any": [texts], "least": how many of them must occur}, or
        {"pattern": regular expression for the whole answer}.

    Raises:
      ValueError: another check.
    """
    if "contains" in check:
        return all(text in answer for text in check["contains"])
    if "any" in check:
        return sum(text in answer.lower() for text in check["any"]) >= check["least"]
    if "pattern" in check:
        return re.fullmatch(check["pattern"], answer.strip().lower().rstrip(".!")) is not None
    raise ValueError(f"got the check {check}, expected one with contains, any or pattern")


def measure_reach(
    askers: dict[str, Asker],
    documents: Sequence[Document],
    variants: dict[tuple[str, str], Variants],
    columns: Sequence[str],
    probes: Probes | None = None,
) -> tuple[dict, list[dict]]:
    """The reach table: every system in every column, and what must not change.

    Args:
      askers: by the system's name; "base" and "injected" are compared for what must not change.
      documents: with held-out questions.
      variants: of the held-out questions that have some.
      columns: of COLUMNS.
      probes: what must not change; None asks nothing of it.

    Returns:
      the table, {"columns": [{"name", "what", "form", "questions"}], "systems": {system: {column: mean}},
      "unchanged": `compare_probes` without its records, or None}; and a record for every answer.
    """
    means, records, counts = {}, [], {}
    for system, asker in askers.items():
        found = ask_columns(asker, documents, variants, columns)
        means[system] = {column: mean_right(answers) for column, answers in found.items()}
        for column, answers in found.items():
            counts[column] = len(answers)
            if "/" not in column:
                records += [{"system": system, "column": column, **answer} for answer in answers]
    unchanged = None
    if probes is not None and {"base", "injected"} <= askers.keys():
        before, after = (ask_probes(askers[name], probes) for name in ("base", "injected"))
        if before is not None:
            unchanged = compare_probes(probes, before, after, documents)
            records += [{"column": "unchanged", **answer} for answer in unchanged.pop("answers")]
    described = []
    for name, count in counts.items():
        column, _, kind = name.partition("/")
        what, form = COLUMNS[column]
        described.append(
            {"name": name, "what": f"{what}: {kind}" if kind else what, "form": form, "questions": count}
        )
    return {"columns": described, "systems": means, "unchanged": unchanged}, records
