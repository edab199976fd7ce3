"""Who says what: memos and e-mails with their sender, chats and transcripts with the speaker of each turn.

"I've hired a van" in a turn of Tamsin's is read as "Tamsin has hired a van". What a speaker says about "you" and "we"
is left alone, as it is seldom certain who that is.
"""

import collections
import dataclasses
import re
from collections.abc import Sequence

from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.lexicon import WORDS
from selfparam_jax.targets.grounded.lines import Line, Mail
from selfparam_jax.targets.grounded.phrases import TIMES
from selfparam_jax.targets.grounded.tagging import spelled_out, tag_words
from selfparam_jax.targets.grounded.words import Word

_HEADER = re.compile(r"(From|To|Cc|Date|Sent|Subject|Re):\s+(\S.*)")
_NAME = r"(?:(?:Dr|Mr|Mrs|Ms|Prof)\.? )?[A-Z][\w'’-]+(?: (?:[A-Z][\w'’-]+|[A-Z]\.|von|van|de|der|da|di|la|le)){0,3}"
_SENDER = re.compile(rf"({_NAME})(?:\s*<[^>]*>|\s*\([^)]*@[^)]*\))?(?:,\s*(\S.*))?")
_TURN = re.compile(rf"({_NAME}):\s+(\S.*)")
_NO_SPEAKERS = WORDS["no_speakers"]
LEAST_TURNS = 4
_BEGINS_TURN = re.compile(
    r"(?i)(?:(?:yes|no|ok|okay|oh|well|sure|great|thanks|sorry|hey|hi|please|and|but|so)[ ,!.]+)+"
)


def with_speakers(lines: Sequence[Line]) -> list[Line]:
    """The lines of a text, each with who says it and to whom; headers and turns are read as such."""
    chat = _turns(lines)
    return chat if chat else _mails(lines)


# --- memos and e-mails ------------------------------------------------------------------------------------


def _mails(lines: Sequence[Line]) -> list[Line]:
    made: list[Line] = []
    speaker, heard, n = "", "", 0
    while n < len(lines):
        end, fields = n, {}
        while end < len(lines) and (match := _HEADER.fullmatch(lines[end].text)) and match[1] not in fields:
            fields[match[1]] = match[2].strip()
            end += 1
        mail = _mail(fields, lines[n])
        if mail is None:
            made.append(dataclasses.replace(lines[n], speaker=speaker, heard=heard))
            n += 1
            continue
        speaker, heard = mail.sender, mail.receiver
        made += [
            dataclasses.replace(line, listed=(), mail=mail if k == 0 else None, header=True)
            for k, line in enumerate(lines[n:end])
        ]
        n = end
    return made


def _mail(fields: dict[str, str], line: Line) -> Mail | None:
    """What the fields of a header say; None without a sender and another field."""
    sender = _SENDER.fullmatch(fields.get("From", ""))
    if sender is None or len(fields) < 2:
        return None
    to = fields.get("To", "")
    receiver = _SENDER.fullmatch(to)
    memo = any("memo" in each.lower() for each in (line.heading, line.first))
    subject = re.sub(r"(?i)^(?:(?:re|fwd?|aw|wg):\s*)+", "", fields.get("Subject", fields.get("Re", "")))
    date = fields.get("Date", fields.get("Sent", ""))
    role = sender[2] or ""
    person = receiver is not None and (len(receiver[1].split()) > 1 or not w.is_known(receiver[1]))
    return Mail(
        sender[1],
        role.strip() if "@" not in role else "",
        receiver[1] if person else "",
        to,
        date,
        subject,
        "memo" if memo else "e-mail",
    )


# --- chats ------------------------------------------------------------------------------------------------


def _turns(lines: Sequence[Line]) -> list[Line]:
    """The lines of a chat, each a sentence of a turn; [] for another text."""
    found = [_TURN.fullmatch(line.text) if not line.row else None for line in lines]
    count = collections.Counter(match[1] for match in found if match and match[1].lower() not in _NO_SPEAKERS)
    speakers = [name for name, times in count.items() if times > 1]
    turns = sum(count[name] for name in speakers)
    if len(speakers) < 2 or turns < LEAST_TURNS or 2 * turns < len(lines):
        return []
    made: list[Line] = []
    for line, match in zip(lines, found, strict=True):
        if match is None or match[1] not in speakers:
            made.append(line)
            continue
        others = [name for name in speakers if name != match[1]]
        heard = others[0] if len(others) == 1 else ""
        for sentence in re.split(r"(?<=[.!?])\s+(?=\S)", match[2]):
            made.append(Line(sentence, line.heading, speaker=match[1], heard=heard, chat=True, first=line.first))
    return made


# --- "I" and "you" ----------------------------------------------------------------------------------------

_OF_YOU = frozenset(("you", "yours", "yourself", "yourselves", "u"))
_OF_US = frozenset(("we", "us", "our", "ours", "ourselves", "let's", "let’s"))


def named(line: Line) -> str:
    """What a speaker says, with names in place of "I" and "your"; "" where it is not clear who is meant."""
    text = spelled_out(line.text)
    if line.chat:
        begin = _BEGINS_TURN.match(text)
        text = text[begin.end() :] if begin and begin.end() < len(text) else text
        text = text[:1].upper() + text[1:]
    words = tag_words(text)
    lows = [word.low for word in words]
    if line.chat and any(low in _OF_YOU | _OF_US for low in lows):
        return ""
    if line.heard and any(low in _OF_YOU for low in lows):
        return ""
    with_me = any(low == "me" and n and lows[n - 1] == "with" for n, low in enumerate(lows))
    if (
        (with_me and "i" in lows)
        or any(low in ("myself", "mine") for low in lows)
        or (not line.heard and line.chat and "your" in lows)
    ):
        return ""
    pieces: list[tuple[int, int, str]] = []
    for n, word in enumerate(words):
        if word.text == "I":
            pieces += _as_third_person(words, n, line.speaker)
        elif word.low == "me":
            pieces.append((word.begin, word.end, line.speaker))
        elif word.low == "my" or (word.low == "your" and line.heard):
            owner = line.speaker if word.low == "my" else line.heard
            pieces.append((word.begin, word.end, f"{owner}'s"))
    return w.with_pieces(text, pieces)


def _as_third_person(words: Sequence[Word], n: int, speaker: str) -> list[tuple[int, int, str]]:
    """The pieces of a sentence that change where "I" becomes a name: the word itself, and its verb."""
    before = words[n - 1] if n else None
    # "For food I would suggest": without a comma the name would belong to the food.
    comma = ", " if before is not None and before.tag in ("NN", "NNS", "NNP", "CD") else ""
    begin = before.end if comma else words[n].begin
    pieces = [(begin, words[n].end, f"{comma}{speaker}")]
    at = n + 1
    while at < len(words) and (words[at].tag == "RB" or words[at].low in w.ADVERBS):
        at += 1
    if at < len(words):
        verb = words[at]
        changed = {"am": "is", "have": "has", "do": "does", "'m": "is"}.get(verb.low, "")
        turned = before is not None and (before.tag == "MD" or before.low in w.DO | w.BE | w.HAVE)  # "should I bring"
        changed = "" if turned else changed
        if (
            not changed
            and not turned
            and (
                verb.tag in ("VBP", "VB")
                or (at == n + 1 and verb.tag in ("NN", "JJ", "IN") and w.may_be(verb.low, "VB"))
            )
            and verb.low not in w.MODALS
            and verb.low not in w.BE
        ):
            changed = w.inflect(w.verb_lemma(verb.low), "VBZ")
        if changed:
            pieces.append((verb.begin, verb.end, changed))
    return pieces


def is_talk(lines: Sequence[Line]) -> bool:
    """Whether a text is a chat."""
    return any(line.chat for line in lines)


def talk_name(lines: Sequence[Line]) -> str:
    """What a question calls a chat: by who takes part in it."""
    names = list(dict.fromkeys(line.speaker for line in lines if line.chat))
    if not 2 <= len(names) <= 4:
        return ""
    return f"the chat between {', '.join(names[:-1])} and {names[-1]}"


def carried(text: str, words: Sequence[Word], before: str, same_speaker: bool) -> str:
    """What is said, with "one", "it" and "they" replaced where the sentence before leaves one thing for them.

    Args:
      text: a sentence.
      words: its words.
      before: the sentence before it.
      same_speaker: whether that is of the same speaker; what another calls "it" may be something else.

    Returns:
      The sentence.
    """
    things = _indefinite(before)
    pieces = []
    firms = re.findall(r"(?:from|by|with|at) ((?:[A-Z][\w'’]+ )+[A-Z][\w]+s)\b(?!['’])", before)
    if len(firms) == 1 and same_speaker:
        pieces += [(word.begin, word.end, firms[0]) for word in words if word.low == "they"]
    if len(things) != 1:
        things = []
    for n, word in enumerate(words):
        if not things or not n or not (words[n - 1].is_verb or words[n - 1].tag in ("VB", "VBN", "VBG")):
            continue
        following = words[n + 1].tag if n + 1 < len(words) else "."
        if word.low == "one" and following in ("IN", ".", ",", "TO"):
            pieces.append((word.begin, word.end, things[0]))
        elif word.low == "it" and same_speaker and words[n - 1].low not in w.BE:
            pieces.append((word.begin, word.end, f"the {things[0].split(maxsplit=1)[1]}"))
    return w.with_pieces(text, pieces)


def _indefinite(text: str) -> list[str]:
    """The things with "a" or "an" that a sentence speaks of, those that only measure apart."""
    words = tag_words(text)
    found = []
    for n, word in enumerate(words[:-1]):
        if word.low in ("a", "an"):
            end = n + 1
            while end < len(words) and words[end].tag in ("NN", "JJ"):
                end += 1
            noun = words[end - 1]
            if noun.tag == "NN" and noun.low not in TIMES and end > n + 1 and "NOUN" in w.forms(noun.low):
                found.append(" ".join(each.text for each in words[n:end]))
    return found
