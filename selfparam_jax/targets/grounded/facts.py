"""The facts of a document: each an answer with the questions that ask for it, and the sentences without any.

`find_facts` collects what the rules make. `choose_pairs` takes a few wordings of each fact to train on, and of some
facts one wording more that is never trained on.
"""

import dataclasses
import hashlib
import re
import statistics
from collections.abc import Callable, Sequence

from selfparam_jax.data.documents import Document, QAPair
from selfparam_jax.data.passages import Passage
from selfparam_jax.targets.grounded.discourse import ReadSentence, read_document
from selfparam_jax.targets.grounded.lines import is_naming
from selfparam_jax.targets.grounded.listed import listed_drafts
from selfparam_jax.targets.grounded.mails import mail_drafts
from selfparam_jax.targets.grounded.questions import Asker, Draft
from selfparam_jax.targets.grounded.records import choice_drafts, event_drafts, task_drafts
from selfparam_jax.targets.grounded.topics import Topic
from selfparam_jax.targets.grounded.words import forms, is_number

HELD_OUT = 10  # one fact of so many is asked for in a wording that is not trained on
# A fact whose answer the teacher, with the document, finds this much less likely in its best wording than those of
# half of the facts tells nothing ("What did she chair? meeting"), or was misread.
LEAST_SHARE = 0.05
ENOUGH = 3  # wordings of a fact
# How useful a kind of wording is to train on, best first; facts take turns through them.
_FORMS = ("direct", "named", "passive", "synonym", "echo", "prefix", "indirect")
_SOLID = ("who", "when", "where", "how many", "how much", "how long", "how often", "why")


@dataclasses.dataclass(frozen=True)
class Fact:
    """An answer, and questions that have it.

    Attributes:
      sentence: which sentence of the document says it.
      answer: words of the document.
      kind: of the answer ("who", "when", ...).
      weight: how much it tells: 3 for a name, a number, a date or a place; 2 for a thing; 1 for what only turns
        another fact around.
      drafts: the questions, the best wordings first.
    """

    sentence: int
    answer: str
    kind: str
    weight: int
    drafts: tuple[Draft, ...]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the rules found in a document.

    Attributes:
      topic: what it is about.
      sentences: all of its sentences.
      facts: in the order of the sentences.
    """

    topic: Topic
    sentences: tuple[ReadSentence, ...]
    facts: tuple[Fact, ...]

    @property
    def uncovered(self) -> tuple[int, ...]:
        """The sentences that no question asks about."""
        covered = {fact.sentence for fact in self.facts}
        return tuple(n for n in range(len(self.sentences)) if n not in covered)


def find_facts(document: Document) -> Facts:
    """Reads a document and makes all questions about it that the rules are sure of.

    A question with two answers in the document is none, and is left out.
    """
    title = document.title or (document.source_title if isinstance(document, Passage) else "")
    read = read_document(dataclasses.replace(document, title=title) if title != document.title else document)
    asker = Asker(read.topic, read.people)
    groups: dict[tuple, list[Draft]] = {}
    for n, sentence in enumerate(read.sentences):
        for k, clause in enumerate(sentence.reading.clauses):
            if clause.order and not sentence.you:
                continue
            for draft in asker.drafts(clause, sentence.you or "you"):
                groups.setdefault((n, k, draft.about, draft.answer), []).append(draft)
        if sentence.question:
            for draft in asker.answered(sentence.question, sentence.resolved):
                groups.setdefault((n, "question", draft.about, draft.answer), []).append(draft)
            for draft in choice_drafts(sentence.question, sentence.resolved):
                groups.setdefault((n, "choice", draft.about, draft.answer), []).extend(asker.checked(draft))
        for draft in event_drafts(sentence.event) if sentence.event is not None else ():
            groups.setdefault((n, "event", draft.about, draft.answer), []).extend(asker.checked(draft))
        for draft in task_drafts(sentence.task) if sentence.task is not None else ():
            groups.setdefault((n, "task", draft.about, draft.answer), []).extend(asker.checked(draft))
        if sentence.mail is not None:
            for draft in mail_drafts(sentence.mail, read.topic):
                groups.setdefault((n, "mail", draft.about, draft.answer), []).append(draft)
        for k, listed in enumerate(sentence.listed):
            for draft in listed_drafts(listed, read.topic):
                groups.setdefault((n, f"listed {k}", draft.about, draft.answer), []).append(draft)
    answers: dict[str, set[str]] = {}
    for drafts in groups.values():
        for draft in drafts:
            answers.setdefault(question_key(draft.question), set()).add(draft.answer.lower())
    facts, seen = [], set()
    for (n, part, about, answer), drafts in groups.items():
        fitting = []
        for draft in drafts:
            key = question_key(draft.question)
            if len(answers[key]) == 1 and (key, answer.lower()) not in seen and _fits(draft):
                seen.add((key, answer.lower()))
                fitting.append(draft)
        plain = [draft for draft in fitting if draft.form != "prefix"]
        # A question with the name of the document's topic elsewhere is hardly another wording.
        fitting = plain if len(plain) >= ENOUGH else fitting
        if fitting:
            kind = fitting[0].kind
            weight = 3 if isinstance(part, str) else _weight(kind, about, answer, read.topic)
            facts.append(Fact(n, answer, kind, weight, tuple(_in_turn(fitting))))
    return Facts(read.topic, read.sentences, tuple(facts))


def _fits(draft: Draft) -> bool:
    """Whether a question is short enough, and it and its answer hold no marks of Markdown."""
    return len(draft.question.split()) <= 32 and not _MARKUP.search(f"{draft.question} {draft.answer}")


def question_key(question: str) -> str:
    """A question without case and punctuation: what two equal ones share."""
    return " ".join(re.findall(r"[^\W_]+", question.lower()))


def _weight(kind: str, about: str, answer: str, topic: Topic) -> int:
    if answer.lower() == topic.bare.lower() or (about == "subject" and topic.bare in answer):
        return 1
    named = any(part[:1].isupper() or part[:1].isdigit() for part in answer.split())
    if kind in _SOLID or named or about.startswith(("material", "adj")):
        return 3
    if about == "subject" or (len(answer.split()) == 1 and kind == "what" and not named):
        return 2 if len(answer.split()) > 1 else 1
    return 2


def _in_turn(drafts: Sequence[Draft]) -> list[Draft]:
    """The drafts with their forms taking turns, short questions of a form first."""
    queues = {form: sorted((d for d in drafts if d.form == form), key=lambda d: len(d.question)) for form in _FORMS}
    # The plainest question comes first; what follows is as different from it as can be.
    made: list[Draft] = []
    while any(queues.values()):
        made += [queue.pop(0) for queue in queues.values() if queue]
    return made


def completion_pairs(facts: Facts) -> list[tuple[int, QAPair]]:
    """For each sentence without a question, its beginning to be completed with its end.

    Returns:
      (number of the sentence, pair); nothing for sentences that are too short, or do not say what they are about.
    """
    made = []
    for n in facts.uncovered:
        sentence = facts.sentences[n]
        words = sentence.resolved.split()
        if len(words) < 6 or _UNNAMED.match(sentence.resolved) or _MARKUP.search(sentence.resolved):
            continue
        if sentence.row or sentence.listed or not sentence.clear or is_naming(sentence.text):
            continue
        wanted = max(len(words) - max(3, len(words) // 3), 3)
        whole = [cut for cut in range(3, len(words) - 1) if not _parts_what_belongs(words, cut)]
        if not whole:
            continue
        cut = min(whole, key=lambda n: abs(n - wanted))
        beginning, end = " ".join(words[:cut]), " ".join(words[cut:]).rstrip(".")
        if sentence.you != "you" and (_SOMEBODY.search(sentence.resolved) or sentence.resolved.endswith("?")):
            continue
        about = f" about {facts.topic.name}" if facts.topic.name and facts.topic.bare not in beginning else ""
        if facts.topic.kind == "talk":
            about = f" in {facts.topic.name}"
        made.append((n, QAPair(f"How does this sentence{about} go on: {beginning} ...", end)))
    return made


def _parts_what_belongs(words: Sequence[str], cut: int) -> bool:
    """Whether a cut before word `cut` would split a name, or a number from what it counts."""
    last, following = words[cut - 1], words[cut]
    bare = re.sub(r"^\W+|\W+$", "", last)
    closed = last[-1:] in ",;:)" and not following[:1].isupper()
    closed |= last[-1:] in ("!", "?") or (last[-1:] == "." and len(bare) > 3)
    name = bare[:1].isupper() and (following[:1].isupper() or following[:1].isdigit())
    if cut + 1 < len(words) and following in _INSIDE_NAMES:
        name |= bare[:1].isupper() and words[cut + 1][:1].isupper()
    if last in _INSIDE_NAMES and cut > 1:
        name |= words[cut - 2][:1].isupper() and following[:1].isupper()
    before = words[cut - 2] if cut > 1 else ""
    # "two heaped spoons"
    counted = is_number(before) and bool(forms(bare.lower())) and "NOUN" not in forms(bare.lower())
    counted |= any(is_number(part) for part in bare.split("-")) or last[-1:].isdigit() or last in ("$", "€", "£")
    return not closed and (name or counted)


_MARKUP = re.compile(r"[|`]|\*\*|__|(?:^|\s)#{1,6}\s")
_INSIDE_NAMES = frozenset(("of", "van", "von", "de", "der", "da", "di", "du", "la", "le", "the"))
_SOMEBODY = re.compile(r"(?i)\b(?:he|she|it|they|we|i|you|us|them|him|her|his|its|their|our|your|this|that)\b")
_UNNAMED = re.compile(r"(?i)(?:he|she|it|they|we|i|this|these|those|that|there)\b")


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A pair that is used.

    Attributes:
      pair: question and answer.
      kind: "who", "when", ..., "completion".
      sentence: which sentence of the document says it.
      held_out: whether it is only asked, never trained on.
    """

    pair: QAPair
    kind: str
    sentence: int
    held_out: bool = False


# The teacher's likelihood of each pair's answer with the document in the prompt, and without it.
Score = Callable[[Sequence[QAPair]], Sequence[tuple[float, float]]]


def choose_pairs(
    facts: Facts, wordings: int, score: Score | None = None, hold_out: bool = True, seed: int = 0
) -> tuple[list[Chosen], list[tuple[float, float] | None]]:
    """Takes wordings of each fact to train on, and holds some out.

    Where there is a score, the plainest wording of a fact is always used; the others are those under which the
    teacher, with the document, finds the answer likeliest. A fact that it does not believe in any wording, or finds
    no likelier with the document than without it, is left out: it was misread, or tells nothing.

    Args:
      facts: of a document.
      wordings: of a fact of full weight; others get fewer.
      score: the teacher.
      hold_out: whether a tenth of the facts is asked for in a wording more.
      seed: decides which facts.

    Returns:
      the pairs in the order of the document, and the likelihoods of each (None where nothing was scored).
    """
    drafts = [(f, draft) for f, fact in enumerate(facts.facts) for draft in fact.drafts[: 2 * wordings + 2]]
    pairs = [QAPair(draft.question, draft.answer) for _, draft in drafts]
    completions = completion_pairs(facts)
    likelihoods: list = [None] * (len(pairs) + len(completions))
    if score is not None and likelihoods:
        likelihoods = [tuple(float(v) for v in both) for both in score([*pairs, *(pair for _, pair in completions)])]
    of_fact: dict[int, list[int]] = {}
    for n, (f, _) in enumerate(drafts):
        of_fact.setdefault(f, []).append(n)
    if score is not None:
        of_fact = _believed(of_fact, likelihoods)
    held = _held_out(facts, of_fact, drafts, seed) if hold_out else {}
    made: list[tuple[Chosen, tuple[float, float] | None]] = []
    for f, members in of_fact.items():
        fact = facts.facts[f]
        members = [n for n in members if n not in held.values()]
        count = max(1, round(wordings * fact.weight / 3))
        if score is not None:
            rest = sorted(members[1:], key=lambda n: -likelihoods[n][0])
            members = [*members[:1], *_varied(rest, drafts, count - 1)]
        for n in members[:count]:
            made.append((Chosen(pairs[n], fact.kind, fact.sentence), likelihoods[n]))
        if f in held:
            made.append((Chosen(pairs[held[f]], fact.kind, fact.sentence, held_out=True), likelihoods[held[f]]))
    for k, (sentence, pair) in enumerate(completions):
        made.append((Chosen(pair, "completion", sentence), likelihoods[len(pairs) + k]))
    made.sort(key=lambda item: item[0].sentence)
    return [chosen for chosen, _ in made], [likelihood for _, likelihood in made]


def _believed(of_fact: dict[int, list[int]], likelihoods: Sequence[tuple[float, float]]) -> dict[int, list[int]]:
    """The facts that the teacher believes; all of them if it believes less than half, as it cannot judge then."""
    best = {f: max(likelihoods[n][0] for n in members) for f, members in of_fact.items()}
    middle = statistics.median(best.values()) if best else 0.0
    kept = {
        f: members
        for f, members in of_fact.items()
        if best[f] >= LEAST_SHARE * middle and any(likelihoods[n][0] > likelihoods[n][1] for n in members)
    }
    return kept if 2 * len(kept) >= len(of_fact) else of_fact


def _varied(members: Sequence[int], drafts, count: int) -> list[int]:
    """The first `count`, no form a second time while another is left."""
    chosen: list[int] = []
    used: set[str] = set()
    left = list(members)
    while left and len(chosen) < count:
        n = next((n for n in left if drafts[n][1].form not in used), left[0])
        if drafts[n][1].form in used:
            used.clear()
        used.add(drafts[n][1].form)
        chosen.append(n)
        left.remove(n)
    return chosen


def _held_out(facts: Facts, of_fact: dict[int, list[int]], drafts, seed: int) -> dict[int, int]:
    """By fact, the draft that is held out: of a tenth of the telling facts with at least three wordings."""
    able = [f for f, members in of_fact.items() if facts.facts[f].weight == 3 and len(members) >= 3]
    if not able:
        return {}
    count = max(1, round(len(of_fact) / HELD_OUT))
    order = sorted(
        able, key=lambda f: hashlib.sha256(f"{seed} {drafts[of_fact[f][0]][1].question}".encode()).digest()
    )
    chosen: list[int] = []
    for f in order:  # different answers
        if len(chosen) < count and all(facts.facts[f].answer != facts.facts[g].answer for g in chosen):
            chosen.append(f)
    # The plainest wording is how people ask.
    return {f: of_fact[f][0] for f in chosen}
