"""Questions put together from the parts of a clause, and named after what the document is about."""

import dataclasses
import re
from collections.abc import Iterator, Sequence

from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.clauses import Clause
from selfparam_jax.targets.grounded.lexicon import WORDS
from selfparam_jax.targets.grounded.phrases import TITLES, NounPhrase, place_of, text_of, type_noun
from selfparam_jax.targets.grounded.rendering import (
    has_pronoun,
    is_kept,
    is_needed,
    lower,
    mark,
    participle_of,
    same_form,
    synonyms,
    verb_text,
)
from selfparam_jax.targets.grounded.topics import Topic
from selfparam_jax.targets.grounded.words import Word

LONGEST_ANSWER = 9  # words
_ALWAYS_NAMED = re.compile(r"\b[A-Z0-9][\w'’&-]*")
_RELATIONAL = WORDS["relational"]
_LEADS = {
    "group": "At", "place": "In", "product": "With", "person": "Concerning", "event": "For", "talk": "In",
}  # fmt: skip
_AREAS = frozenset(
    ("town", "city", "village", "street", "road", "lane", "county", "country", "valley", "region", "district")
)
# A noun phrase to which "of ..." can be joined: at the end of a question, or before its verb.
_DEFINITE = re.compile(
    r"\b(?:is|are|was|were|do|does|did|can|could|should|must|may|will|has|have|had) "
    r"(the (?:[\w-]+ ){0,2}?[\w-]+)(?=$|(?: (?:made|held|led|cost|rise|last|begin|start|take|weigh|open|hold|run"
    r"|closed|covered|due|valid|available|be)\b))"
)


_STRANDED = w.PREPOSITIONS - {"up", "off", "out", "over", "down"}  # "who are complaints made to"
_WHAT_IS = re.compile(r"(?:What|Who|Which \w+|How \w+) (?:is|are|was|were) the (?:\w+ )?\w+$")
# What no noun phrase holds, and what begins another clause.
_VERBAL = w.BE | w.HAVE | w.DO | w.MODALS | w.PREPOSITIONS | {"not"}
_LINKING = w.SUBORDINATORS | {"not", "that", "who", "which", "until", "means"}


@dataclasses.dataclass(frozen=True)
class Draft:
    """A question with its answer.

    Attributes:
      question: as it is asked.
      answer: words of the document.
      kind: of the answer: "who", "what", "when", "where", "how many", "how much", "how long", "how often", "why".
      form: how it is put: "direct", "echo", "indirect", "synonym", "passive", "named".
      about: which part of the clause is asked for; drafts with the same one ask for the same fact.
    """

    question: str
    answer: str
    kind: str
    form: str
    about: str


def worded(answer: str, kind: str, about: str, **questions: str) -> Iterator[Draft]:
    """Drafts of one fact.

    Args:
      answer, kind, about: of `Draft`.
      **questions: by their `form`, without a capital and a question mark.

    Yields:
      A draft for each.
    """
    for form, question in questions.items():
        yield Draft(mark(question), answer, kind, form, about)


@dataclasses.dataclass(frozen=True)
class Ask:
    """How one part is asked for: question words that stand in front, and at its place."""

    front: tuple[str, ...]
    answer: str
    kind: str
    stranded: str = ""  # a preposition that stays behind


class Composer:
    """Puts questions about the clauses of one document together."""

    def __init__(self, topic: Topic, people: frozenset[str]):
        self._topic, self._people = topic, people
        self._you = "you"  # whom orders are for

    def _inverted(
        self,
        clause: Clause,
        n: int,
        ask: Ask,
        form: str = "direct",
        echo: bool = True,
        rests: Sequence[str] | None = None,
        longest: int = LONGEST_ANSWER + 4,
    ) -> Iterator[Draft]:
        """Questions for the n-th phrase of `rest`: inverted, in the order of a statement, and indirect."""
        if not ask.answer or len(ask.answer.split()) > longest:
            return
        yield from self._in_passive(clause, n, ask)
        about = f"{clause.rest[n].kind} {n}"
        prep = clause.rest[n].preposition if clause.rest[n].kind == "pp" else ""
        for k, (front, rest) in enumerate(
            (front, rest) for front in ask.front for rest in (self._rests(clause, n) if rests is None else rests)
        ):
            name = form if k == 0 else "named" if front != ask.front[0] else form
            end = f"{rest} {ask.stranded}".strip() if ask.stranded else rest
            before = n and rest.startswith(clause.rest[0].text)  # "invoiced directly to"
            if ask.stranded and rest and clause.rest[n].kind == "pp" and not before and not _core_before(clause, n):
                end = f"{ask.stranded} {rest}"
            turned = self._turned(clause)
            yield Draft(mark(f"{front} {turned} {end}"), ask.answer, ask.kind, name, about)
            if k == 0 and not clause.order:
                subject = self._subject(clause)
                low = front[:1].lower() + front[1:]
                yield Draft(
                    mark(f"Can you tell me {low} {subject} {verb_text(clause)} {end}"),
                    ask.answer,
                    ask.kind,
                    "indirect",
                    about,
                )
                for other in synonyms(clause, plain=True):
                    yield Draft(
                        mark(f"{front} {self._turned(clause, other)} {end}"), ask.answer, ask.kind, "synonym", about
                    )
        if echo and not clause.order and clause.subject is not None:
            subject = self._subject(clause)
            front = ask.front[-1]
            lead = front[:1].lower() + front[1:]
            if ask.stranded:
                lead = f"{ask.stranded} {lead}" if not lead.startswith("who") else f"{ask.stranded} whom"
            before, after = self._around(clause, n)
            clear = not has_pronoun([word for k in self._needed(clause, n) for word in clause.rest[k].words])
            plain = lead in ("when", "where", "why", "how often", "how long", "who", "what") or not prep
            if clear and (plain or lead.split()[0] in (prep, *ask.stranded.split())):
                yield Draft(
                    mark(f"{subject[:1].upper() + subject[1:]} {verb_text(clause)} {before} {lead} {after}"),
                    ask.answer,
                    ask.kind,
                    "echo",
                    about,
                )

    def _in_passive(self, clause: Clause, n: int, ask: Ask) -> Iterator[Draft]:
        """Questions about what should be done, of an order."""
        return iter(())

    def _turned(self, clause: Clause, other: str = "") -> str:
        """Auxiliary, subject and the rest of the verb; `other` is another verb's infinitive."""
        group, subject = clause.verb, self._subject(clause)
        chain = " " + text_of(group.chain) if group.chain else ""
        if clause.order:
            negative = "not " if group.negative else ""
            verb = other or w.verb_lemma(group.words[group.main].text)
            after = text_of(group.words[group.main + 1 :])
            return f"should {self._you} {negative}{verb} {after}{chain}".strip()
        lead = [
            word.text for word in group.words[: group.aux if group.aux is not None else group.main] if is_kept(word)
        ]
        if group.aux is not None:
            if other and group.passive:
                rest = [word.text for word in group.words[group.aux + 1 : group.main] if is_kept(word)] + [
                    participle_of(other)
                ]
            elif other:
                rest = [word.text for word in group.words[group.aux + 1 : group.main] if is_kept(word)] + [
                    same_form(other, group.words[group.main].tag)
                ]
            else:
                rest = [word.text for word in group.words[group.aux + 1 :] if is_kept(word)]
            return " ".join([group.words[group.aux].text.lower(), subject, *lead, *rest]) + chain
        main = group.words[group.main]
        auxiliary = {"VBD": "did", "VBZ": "does"}.get(main.tag, "do")
        if clause.there:
            return f"{main.text} there"
        after = [word.text for word in group.words[group.main + 1 :]] if not other else []
        return " ".join([auxiliary, subject, *lead, other or w.verb_lemma(main.text), *after]) + chain

    def _subject(self, clause: Clause) -> str:
        if clause.there:
            return "there"
        if clause.subject is None:
            return self._you
        words = _without_title(clause.subject.words)
        text = lower(text_of(words), words)
        return text + "".join(" " + phrase.text for phrase in clause.tail)

    def _whole(self, clause: Clause, asked: int) -> list[str]:
        """All that else follows the verb; [] where a word in it is unclear."""
        phrases = [phrase for k, phrase in enumerate(clause.rest) if k != asked and phrase.kind != "reason"]
        if has_pronoun([word for phrase in phrases for word in phrase.words], ok=("itself", "themselves")):
            return []
        return self._rests(clause, asked)[-1:]

    def _telling(self, clause: Clause, asked: int) -> list[str]:
        """What else follows the verb, and nothing only where there is nothing else."""
        found = self._rests(clause, asked)
        return [rest for rest in found if rest] or found

    def _rests(self, clause: Clause, asked: int | None) -> list[str]:
        """What else follows the verb: all of it, and only what the verb needs."""
        whole = [
            k
            for k in range(len(clause.rest))
            if k != asked and clause.rest[k].kind != "reason" and not _adds_little(clause, k)
        ]
        needed = [k for k in whole if is_needed(clause, k)]
        if clause.verb.negative:
            needed = whole  # "Do not water the seedlings at noon": at other times it may be right
        if asked is None and not needed:
            needed = whole[:1]
        fronted = [
            k for k in whole if clause.rest[k].words[0].text[:1].isupper() and not _proper(clause.rest[k].words[0])
        ]
        found = []
        for chosen in (needed, whole):
            order = [k for k in chosen if k not in fronted] + [k for k in chosen if k in fronted]
            text = " ".join(lower(clause.rest[k].text, clause.rest[k].words) for k in order)
            if has_pronoun(
                [word for k in order for word in clause.rest[k].words],
                ok=("itself", "themselves", "himself", "herself"),
            ):
                continue
            if text not in found:
                found.append(text)
        return found

    def _needed(self, clause: Clause, n: int) -> list[int]:
        return [k for k in range(len(clause.rest)) if k != n and is_needed(clause, k) and not _adds_little(clause, k)]

    def _around(self, clause: Clause, n: int) -> tuple[str, str]:
        needed = self._needed(clause, n)
        before = " ".join(lower(clause.rest[k].text, clause.rest[k].words) for k in needed if k < n)
        after = " ".join(lower(clause.rest[k].text, clause.rest[k].words) for k in needed if k > n)
        return before, after

    def _answer(self, found: NounPhrase) -> str:
        """A noun phrase as an answer: without article; of "the engineer Dorota Finch" the name."""
        kind = self._kind(found)
        name = found.name
        whole = len(found.words) > found.core
        if place_of(found):
            return text_of(place_of(found))
        if name and type_noun(found) and not whole and found.words[-1] is name[-1] and found.words[0].tag != "NNP":
            return text_of(name)
        if kind == "person" and name and not whole and not found.joined and found.words[-1] is name[-1]:
            return text_of(_without_title(name))
        words = without_article(found.words)
        return lower(text_of(words), words)

    def _whose(self, found: NounPhrase) -> bool:
        """Whether a noun phrase leaves open whose owner, brother or the like it means."""
        owned = any(word.tag in ("POS", "PRP$") for word in found.words) or len(found.words) > found.core
        at_topic = self._topic.kind in ("group", "place")  # "the founder at the Orrin Club"
        return found.noun in _RELATIONAL and not owned and not found.name and not at_topic

    def _kind(self, found: NounPhrase) -> str:
        return found.kind(self._people)

    def _is_person(self, found: NounPhrase) -> bool:
        return self._kind(found) == "person" or (
            found.joined
            and found.has_name
            and all(word.text in self._people for word in found.words if word.tag == "NNP")
        )

    def _named(self, draft: Draft) -> Iterator[Draft]:
        """The draft, or where it names nothing, with the document's topic in it."""
        question = draft.question
        if not question or _says(question, draft.answer) or len(draft.answer) < 1:
            return
        found = [
            match[0] for match in _ALWAYS_NAMED.finditer(question) if match.start() and not match[0][0].isdigit()
        ]
        found = [name for name in found if name not in ("I", "I've", "I’ve")]
        found = [name for name in found if name not in w.MONTHS and name.rstrip("s") not in w.DAYS]
        first = question.split()[0]
        if (
            not found
            and first.isalpha()
            and first not in w.MONTHS + w.DAYS
            and not w.is_known(first)
            and first.lower() not in ("who", "what", "which", "whom")
        ):
            found = [first]  # "Quenbarrow was founded ..."
        if draft.answer.lower() == self._topic.bare.lower() and (draft.form != "direct" or _content(question) < 3):
            return
        part = self._topic.kind != "talk" and draft.answer.lower() in self._topic.name.lower()
        asks_for_topic = part or draft.answer.lower() == self._topic.bare.lower()
        if found or not self._topic.name or asks_for_topic or self._topic.bare.lower() in question.lower():
            yield draft
            return
        topic = self._topic
        whole = draft.about.startswith(("sub", "reason", "that", "question", "event"))
        if topic.bare.lower() in draft.answer.lower() and not whole:
            return  # "Concerning Ana Volk, what does it bear?", her name
        lead = _LEADS[topic.kind]
        last = topic.bare.split()[-1].lower()
        kinds = {last} if last in topic.nouns else topic.nouns
        lead = "At" if lead == "In" and kinds and not kinds & _AREAS else lead
        lead = "For" if draft.kind == "where" and topic.kind not in ("talk", "group", "place") else lead
        lead = "In" if topic.bare.lower().endswith("project") else lead
        if draft.form == "indirect":
            if topic.kind in ("group", "place") and draft.kind != "where":
                yield dataclasses.replace(draft, question=f"{question[:-1]} {lead.lower()} {topic.name}?")
            return
        yield from self._placed(draft, lead)

    def _placed(self, draft: Draft, lead: str) -> Iterator[Draft]:
        """The draft with the topic's name where it reads best; a plain question also with it in front."""
        topic, body = self._topic, draft.question[:-1]
        front = f"{lead} {topic.name}, {draft.question[:1].lower()}{draft.question[1:]}"
        inside = ""
        if topic.kind in ("group", "place"):
            ends = body.split()[-1].lower() in _STRANDED
            inside = (
                ""
                if draft.kind == "where" or ends or len(body.split()) > 12
                else f"{body} {lead.lower()} {topic.name}?"
            )
        elif topic.kind == "product":
            inside = self._with_owner(draft, body)
        yield dataclasses.replace(draft, question=inside or front)
        if inside and draft.form == "direct":
            yield dataclasses.replace(draft, question=front, form="prefix")
        elif draft.form == "direct" and topic.kind != "talk":
            other = {"For": "Regarding", "Concerning": "Regarding"}.get(lead, "For")
            other = front.replace(lead, other, 1)
            yield dataclasses.replace(draft, question=other, form="prefix")

    def _with_owner(self, draft: Draft, body: str) -> str:
        """ "How often should the tank be descaled" as "... the tank of the Velm K3 ..."; "" where none fits."""
        topic = self._topic
        match = _DEFINITE.search(body)
        told = topic.bare in draft.answer
        if match is None or told or match[1].split()[-1].lower() in topic.nouns:
            return ""  # "the balance" of "the Morvane T3 balance" is itself
        words = {*match[1].split()}
        if _VERBAL & words or _LINKING & {*body[: match.start()].lower().split()[1:]}:
            return ""  # more than a noun phrase, or a part of another clause
        if match.end() == len(body) and not _WHAT_IS.match(body):
            return ""  # what ends the question is its verb
        return f"{body[: match.end()]} of {topic.name}{body[match.end() :]}?"


def without_article(words: Sequence[Word]) -> list[Word]:
    """The words without an article at the beginning; "a little heat" stays."""
    little = [word.low for word in words[:2]] in (["a", "little"], ["a", "few"], ["a", "lot"], ["a", "couple"])
    return list(words[1:] if words[0].low in ("the", "a", "an") and not little else words)


def _content(question: str) -> int:
    """How many words of a question say something: numbers and names, nouns, verbs."""
    little = (
        w.PREPOSITIONS
        | w.DETERMINERS
        | w.BE
        | w.HAVE
        | w.DO
        | w.MODALS
        | w.ADVERBS
        | {"who", "what", "which", "to", "you", "and", "is"}
    )
    found = [word for word in re.findall(r"[\w'’.,]+", question) if word.lower().strip(".,") not in little]
    return len(found) + sum(word[0].isdigit() or word[0].isupper() for word in found[1:])


def _without_title(words: Sequence[Word]) -> list[Word]:
    """The words without "Dr" and the like before a name of more than one word."""
    return [
        word
        for n, word in enumerate(words)
        if not (word.text in TITLES and [each.tag for each in words[n + 1 : n + 3]] == ["NNP", "NNP"])
    ]


def _proper(word: Word) -> bool:
    return word.tag == "NNP"


def _adds_little(clause: Clause, k: int) -> bool:
    """Whether a word may be left out: "also", but not the "too" of "too narrow"."""
    low = clause.rest[k].text.lower()
    intensifies = low == "too" and k + 1 < len(clause.rest) and clause.rest[k + 1].kind == "adj"
    loose = low in ("late", "early") and not clause.verb.copula  # "She married late"
    return loose or (low in ("only", "again", "too", "also") and not intensifies)


def _core_before(clause: Clause, n: int) -> bool:
    return any(is_needed(clause, k) for k in range(len(clause.rest)) if k < n)


def _says(question: str, answer: str) -> bool:
    """Whether a question gives its answer away."""
    plain = re.sub(r"\W+", " ", question.lower()).strip()
    wanted = re.sub(r"\W+", " ", answer.lower()).strip()
    return bool(wanted) and f" {wanted} " in f" {plain} "
