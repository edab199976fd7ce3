"""Questions about what hangs on a clause: why it is so, on what condition, what something means; about orders.

"X, because Y" is asked as "Why ...?" with Y as the answer, "If X, do Y" as "What should you do if X?".
"""

import re
from collections.abc import Iterator, Sequence

from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.clauses import Clause, Phrase
from selfparam_jax.targets.grounded.composer import Ask, Composer, Draft, worded
from selfparam_jax.targets.grounded.lexicon import WORDS
from selfparam_jax.targets.grounded.phrases import text_of
from selfparam_jax.targets.grounded.rendering import has_pronoun, is_kept, lower, mark, participle_of, verb_text
from selfparam_jax.targets.grounded.words import Word

LONGEST_REASON = 22  # words
_LONGEST_DEED = 18
_LONGEST_CONDITION = 14
_LONGEST_REPLY = 30
# The writer, whom a question outside of the document does not know; an answer that lies elsewhere.
_OURS = re.compile(r"(?i)\b(?:we|our|us|ours|your|it|they|he|she|this|these|those|here|above|below)\b")
_PARTICLES = frozenset(("off", "out", "up", "down", "away", "back", "on", "over", "in"))
_CONDITIONS = ("if", "when", "unless", "once", "after", "before", "to")
WEATHER = re.compile(
    r"\bit (?:rains|snows|freezes|is (?:raining|snowing|freezing|dark|windy|hot|cold|late|too late))\b"
)
_VAGUE = re.compile(r"(?i)(?:see|please see|it depends|that depends|he|she|they)\b")
_PERSONAL = frozenset(("he", "she", "him", "her", "his", "hers"))
_TELLING = WORDS["telling"]
_UNCLEAR = frozenset(("i", "me", "my", "we", "us", "our", "this", "these", "those", "here", "there's", "one"))


class LinkAsker(Composer):
    """Asks about reasons, conditions, meanings and orders."""

    def _about_reason(self, clause: Clause, n: int, phrase: Phrase) -> Iterator[Draft]:
        """ "The committee accepted the quote because the firm is cheap": why did it?"""
        if not self._reads_alone(clause, phrase.words) or len(phrase.words) > LONGEST_REASON:
            return
        text = reason_text(phrase.words)
        # The reason may be one for the day or the place, so the question names all.
        rests = self._whole(clause, n)
        ask = Ask(("Why",), text, "why")
        yield from self._inverted(clause, n, ask, echo=False, rests=rests, longest=LONGEST_REASON)
        if not clause.order and phrase.preposition == "because":
            for rest in rests:
                question = f"What is the reason that {self._subject(clause)} {verb_text(clause)} {rest}"
                yield Draft(mark(question), text, "why", "named", f"{phrase.kind} {n}")

    def _reads_alone(self, clause: Clause, words: Sequence[Word]) -> bool:
        """Whether all pronouns of some words stand for what the question about a clause names."""
        lows = [word.low for word in words]
        asked = [*(clause.subject.words if clause.subject is not None else ())]
        asked += [word for phrase in clause.rest if phrase.words != tuple(words) for word in phrase.words]
        several = any(word.tag in ("NNS", "NNPS") for word in asked)
        single = any(word.tag in ("NN", "NNP") for word in asked)
        person = any(word.text in self._people for word in asked)
        if any(low in _UNCLEAR for low in lows) or (any(low in _PERSONAL for low in lows) and not person):
            return False
        if any(low in ("they", "them", "their") for low in lows):
            own = any(word.tag == "NNS" for word in words)
            return several or (person and own)
        # "it" after what it stands for: in the words themselves, or in the question.
        at = next((n for n, low in enumerate(lows) if low in ("it", "its")), None)
        return at is None or single or any(word.tag in ("NN", "NNP") for word in words[:at])

    def _about_condition(self, clause: Clause, n: int, phrase: Phrase) -> Iterator[Draft]:
        """ "If the light is red, unplug the still": what should you do if the light is red?"""
        words = phrase.words
        if len(words) > _LONGEST_CONDITION or phrase.preposition not in _CONDITIONS:
            return
        unclear = w.PRONOUNS - {"you", "someone", "somebody", "anyone", "nobody", "everyone"}
        if any(word.low in unclear for word in words) and not WEATHER.search(phrase.text):
            return
        about = f"sub {n}"
        condition = lower(phrase.text, words)
        if clause.order and clause.source == "joined":
            return  # asked with the first order
        if clause.order and phrase.preposition != "unless":
            yield from self._what_to_do(clause, words, condition, about)
        elif clause.subject is None or clause.subject.pronoun or clause.verb.copula:
            return  # "If nobody is at home, the key is with Mr Bell": nothing happens
        elif phrase.preposition == "if":
            told = [k for k in range(len(clause.rest)) if k != n and clause.rest[k].kind != "reason"]
            parts = [self._subject(clause), verb_text(clause), *(clause.rest[k].text for k in told)]
            if any(has_pronoun(clause.rest[k].words) for k in told) or len(" ".join(parts).split()) > _LONGEST_DEED:
                return
            happens = "will happen" if "will" in verb_text(clause).split() else "happens"
            answer = " ".join(parts).replace(" ,", ",")
            yield Draft(mark(f"What {happens} {condition}"), answer, "what", "direct", about)
            yield Draft(mark(f"{condition}, what {happens}"), answer, "what", "prefix", about)

    def _what_to_do(self, clause: Clause, words: Sequence[Word], condition: str, about: str) -> Iterator[Draft]:
        """What an order says to do under a condition."""
        deed, you = lower(text_of(clause.deed), clause.deed), self._you
        if not 1 < len(clause.deed) <= _LONGEST_DEED or has_pronoun(clause.deed, ok=("it", "them", "us")):
            return
        if not self._reads_alone(clause, words) or not _points_back(clause.deed, words):
            return
        yield from worded(
            deed,
            "what",
            about,
            direct=f"What should {you} do {condition}",
            named=f"What must {you} do {condition}",
            prefix=f"{condition}, what should {you} do",
            indirect=f"Can you tell me what {you} should do {condition}",
        )

    def _about_meaning(self, clause: Clause, n: int, phrase: Phrase) -> Iterator[Draft]:
        """ "A red light means that the fan is blocked": what does a red light mean?"""
        if has_pronoun(phrase.words, ok=("it",)) or not self._reads_alone(clause, phrase.words):
            return
        answer = lower(phrase.text, phrase.words)
        yield from self._inverted(clause, n, Ask(("What",), answer, "what"), longest=_LONGEST_DEED)
        subject = self._subject(clause)
        yield Draft(mark(f"What is the meaning of {subject}"), answer, "what", "synonym", f"that {n}")

    def _about_label(self, clause: Clause, phrase: Phrase) -> Iterator[Draft]:
        """ "the pouch, part number VP-117": what is the part number of the pouch?"""
        thing, answer = self._subject(clause), text_of(phrase.words)
        yield from worded(
            answer,
            "what",
            "label",
            direct=f"What is {thing}",
            echo=f"{thing} is what",
            indirect=f"Can you tell me {thing}",
        )

    def answered(self, question: str, answer: str) -> Iterator[Draft]:
        """A question that stands in the document, with the first sentence of what stands below it."""
        if _OURS.search(question) or _OURS.search(answer) or len(answer.split()) > _LONGEST_REPLY:
            return
        if answer.endswith(("?", ":")) or _VAGUE.match(answer) or re.search(r"\b(?:I|my|me)\b", answer):
            return
        kind = "why" if question.startswith("Why") else "what"
        yield from self._named(Draft(question, answer.rstrip("."), kind, "direct", "question"))

    def _in_passive(self, clause: Clause, n: int, ask: Ask) -> Iterator[Draft]:
        """An order as what should be done: "How often should the tank be descaled?"."""
        thing = clause.rest[0] if clause.rest else None
        if not clause.order or thing is None or thing.kind != "np" or thing.phrase.pronoun or clause.verb.chain:
            return
        if thing.phrase.kind() in ("date", "time", "duration") or thing.phrase.determiner in ("every", "each"):
            return
        if clause.verb.lemma in ("have", "get"):
            return  # "have it signed"
        verb = clause.verb
        after = [word.text for word in verb.words[verb.main + 1 :] if is_kept(word)]
        negative = "never " if any(word.low == "never" for word in verb.words) else "not " if verb.negative else ""
        done = " ".join([participle_of(verb.lemma), *after])
        about = f"{clause.rest[n].kind} {n}"
        object_text = lower(thing.text, thing.words)
        particle = next((other.text for other in clause.rest[1:2] if other.text in _PARTICLES and n != 1), "")
        plain = [f"{object_text} {particle}"] if n and ask.kind in ("how often", "how long", "when") else []
        plain = [text.strip() for text in plain]
        rests = self._whole(clause, n) if ask.kind == "why" else self._telling(clause, n)
        for k, rest in enumerate(dict.fromkeys([*plain, *rests])):
            if n == 0:
                question = f"{ask.front[0]} should {negative}be {done} {rest}"
            elif rest.startswith(object_text):
                others = rest.removeprefix(object_text).strip()
                question = f"{ask.front[0]} should {object_text} {negative}be {done} {others} {ask.stranded}"
            else:
                continue
            yield Draft(mark(question), ask.answer, ask.kind, "passive" if k == 0 else "synonym", about)

    def _what_somebody_does(self, clause: Clause) -> Iterator[Draft]:
        """ "Ask people who need a lift to ring Dorrit": what should they do?"""
        if clause.verb.lemma not in _TELLING or len(clause.rest) < 2 or clause.verb.passive:
            return
        who, deed = clause.rest[:2]
        if who.kind != "np" or deed.kind != "inf" or who.phrase.pronoun or has_pronoun((*who.words, *deed.words)):
            return
        if clause.verb.negative or len(deed.words) > _LONGEST_DEED:
            return
        answer = text_of(deed.words[1:])
        person = lower(who.text, who.words)
        if not clause.order:
            if clause.subject is None or not self._is_person(clause.subject):
                return
            turned = f"{self._turned(clause)} {person}"
            yield from worded(
                answer,
                "what",
                "inf 1",
                direct=f"What {turned} to do",
                echo=f"{self._subject(clause)} {verb_text(clause)} {person} to do what",
                indirect=f"Can you tell me what {self._subject(clause)} {verb_text(clause)} {person} to do",
            )
            return
        be = "are" if who.phrase.plural else "is"
        yield from worded(
            answer, "what", "inf 1", direct=f"What should {person} do", named=f"What {be} {person} asked to do"
        )


def reason_text(words: Sequence[Word]) -> str:
    """A reason as an answer: "so that ..." whole, others without what joins them to the sentence."""
    kept = list(words)
    while kept and (kept[0].text == "," or kept[0].low in ("and", "but", "then", "also")):
        kept = kept[1:]
    return re.sub(r"\b([Cc])an not\b", r"\1annot", lower(text_of(kept), kept))


def _points_back(deed: Sequence[Word], condition: Sequence[Word]) -> bool:
    """Whether "it" and "them" in what is to be done stand for what the condition, or the deed itself, names."""
    for n, word in enumerate(deed):
        if word.low in ("it", "them"):
            tags = ("NN", "NNP") if word.low == "it" else ("NNS", "NNPS")
            if not any(each.tag in tags for each in (*condition, *deed[:n])):
                return False
    return True
