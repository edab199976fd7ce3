"""The sentences of a text line by line: Markdown marks are left out, tables and lists are read as names and values.

A row of a table, and a line such as "Weight: 3.8 kg", says something without a verb. It is kept with its values;
`listed.py` makes the questions.
"""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence

from selfparam_jax.data.sentences import sentence_starts
from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.lexicon import WORDS
from selfparam_jax.targets.grounded.phrases import ROLES
from selfparam_jax.targets.grounded.records import Event, Task, event_of, owned_task, task_of
from selfparam_jax.targets.grounded.tagging import tag_words

LABEL = re.compile(r"^([A-Z][^:.?!]{1,40}):\s+(\S.*)$")
_BULLET = re.compile(r"^\s*(?:[-*+•–]|\d{1,2}[.)]|\(?[a-z]\))\s+")
_NUMBERED = re.compile(r"^\d{1,2}[.)]\s+")
_HASHES = re.compile(r"#{1,6}\s")
_RULE = re.compile(r"(?:[-=*_]\s*){3,}|={1,}|-{2,}")  # a line across the page, or under a heading
_FENCE = re.compile(r"(?:```|~~~)")
_DELIMITER = re.compile(r"\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?")
_BOLD = re.compile(r"(\*\*|__)[^*_]+:?\1:?")
_MARKS = (
    (re.compile(r"<!--.*?-->|</?(?:br|p|b|i|u|em|strong|span|div|a|img|su[bp]|code|kbd)\b[^<>]*>"), " "),
    (re.compile(r"!\[[^\]]*\]\([^)]*\)"), ""),
    (re.compile(r"\[([^\]]+)\]\([^)]*\)"), r"\1"),
    (re.compile(r"`+"), ""),
    (re.compile(r"(\*{2,3}|_{2,3})(?=\S)(.+?)(?<=\S)\1"), r"\2"),
    (re.compile(r"(?<!\w)([*_])(?=\S)([^*_]+)(?<=\S)\1(?!\w)"), r"\2"),
    (re.compile(r"\*{2,}"), ""),
    (re.compile(r"\\([*_`#\[\]])"), r"\1"),
)
# Headers that say no more than that a column holds names, or values.
_PROPERTIES, _VALUES, _POSITIONS = WORDS["property_headers"], WORDS["value_headers"], WORDS["position_headers"]
_NOTHING = frozenset(("", "-", "–", "—", "n/a", "none", "?"))
# Lines that say who was there.
PRESENT = frozenset(
    ("present", "attending", "attendees", "in attendance", "attendance", "participants", "also present")
)
_NAMING = PRESENT | {"apologies", "absent", "members", "board", "committee", "team", "staff", "crew", "contacts"}
_NO_ROLES = WORDS["no_roles"]
REMARKS = WORDS["remarks"]
_PERSON = re.compile(
    r"(?<![\w-])((?:[A-Z][\w'’-]+|[A-Z]\.)(?: (?:[A-Z][\w'’-]+|[A-Z]\.|von|van|de|der|da|di|du|la|le)){1,3})"
    r"(?: \(([a-z][a-z'’-]*(?: [a-z][a-z'’-]*){0,3})\))?(?=$|[,;.]| and )"
)
_LONGEST_VALUE = 25  # words
_ASKED = re.compile(r"(Q|A|Question|Answer)\s*\d{0,2}\s*[:.]\s+(\S.*)")
_ASKING = w.MODALS | w.BE | w.DO | w.HAVE | {"who", "what", "which", "when", "where", "why", "how", "whom", "whose"}
_KEPT = re.compile(
    r"(?:the |an? )?([^()]{2,60}?) \(((?:in|on|under|behind|beside|next to|at|inside|above) [^()]{3,60})\)\.?"
)
_NEEDED = re.compile(
    r"(?i)(?:what )?you(?: wi|['’])ll need|you need|what you need|(?:tools|materials|ingredients) needed"
)


@dataclasses.dataclass(frozen=True)
class Listed:
    """Something said without a verb.

    Attributes:
      name: what is given ("Tank capacity"), or the role of a person.
      value: as it stands in the text, or the person.
      of: whose it is; "" for what the document is about.
      role: whether it is a role and a person.
      place: whether the value says where what is named is.
    """

    name: str
    value: str
    of: str = ""
    role: bool = False
    place: bool = False


@dataclasses.dataclass(frozen=True)
class Mail:
    """The header of a memo or an e-mail.

    Attributes:
      sender: who sent it.
      role: of the sender, "" if it is not said.
      receiver: the person it is for, "" if it is for several.
      to: whom it is for, as it stands there.
      date, subject: as they stand there, "Re:" apart.
      noun: "memo" or "e-mail".
    """

    sender: str
    role: str
    receiver: str
    to: str
    date: str
    subject: str
    noun: str


@dataclasses.dataclass(frozen=True)
class Line:
    """A sentence, a row of a table or an entry of a list.

    Attributes:
      text: without Markdown marks.
      heading: the heading that it stands under, "" without one.
      listed: what it says without a verb.
      row: whether it is a row of a table.
      first: the first heading of the whole text.
      question: the question that stands above it and that it answers.
      speaker: who says it, in a chat or an e-mail.
      heard: whom it is said to, if that is one person.
      chat: whether it is part of a turn of a chat.
      header: whether it is a line of the header of an e-mail.
      mail: what that header says, with its first line.
      event: what it records, with a time.
      task: what it says is to be done, and by whom.
    """

    text: str
    heading: str = ""
    listed: tuple[Listed, ...] = ()
    row: bool = False
    first: str = ""
    question: str = ""
    speaker: str = ""
    heard: str = ""
    chat: bool = False
    header: bool = False
    mail: Mail | None = None
    event: Event | None = None
    task: Task | None = None


def plain(text: str) -> str:
    """The text without Markdown marks."""
    for pattern, put in _MARKS:
        text = pattern.sub(put, text)
    return text.strip()


def split_lines(text: str) -> list[Line]:
    """The sentences of a text, with what tables and labels in it say.

    A line that is an entry of a list or a label with its value ("Chair: Ana Volk") stands alone, and so does a row of
    a table; other lines are joined to paragraphs. Headings and blocks of code are left out.
    """
    found: list[Line] = []
    heading, first, paragraph, code, question = "", "", [], False, ""

    def flush() -> None:
        nonlocal question
        joined = " ".join(paragraph)
        paragraph.clear()
        if joined.strip() and _is_asked(joined):
            question = joined
            return
        made = [Line(sentence, heading) for sentence in _sentences(joined)]
        if made and question:
            made[0] = dataclasses.replace(made[0], question=question)
            question = ""
        found.extend(made)

    lines = [re.sub(r"^\s*(?:>\s?)+", "", line) for line in text.split("\n")]
    # What stands before a colon again and again is who speaks, and the turns of a chat are not split here.
    repeated = collections.Counter(match[1] for line in lines if (match := LABEL.match(plain(line))))
    at = 0
    while at < len(lines):
        n, raw = at, lines[at].strip()
        at += 1
        if _FENCE.match(raw):
            flush()
            code = not code and any(_FENCE.match(line.strip()) for line in lines[at:])
            continue
        if code:
            continue
        if end := _table_end(lines, n):
            flush()
            found.extend(dataclasses.replace(row, heading=heading) for row in _rows(lines[n:end]))
            at = end
            continue
        if not raw or _RULE.fullmatch(raw):
            if raw and len(paragraph) == 1 and _is_heading(paragraph[0], len(lines)):
                heading = paragraph.pop()
                first = first or heading
            flush()
            continue
        stripped = plain(raw)
        entry = _BULLET.sub("", raw) != raw
        if _HASHES.match(raw) or _stands_as_heading(lines, n, raw, stripped):
            flush()
            heading = _NUMBERED.sub("", stripped).strip("#:= *").strip()
            first = first or heading
            question = heading if _is_asked(heading) else ""
        elif entry:
            flush()
            bare = plain(_BULLET.sub("", raw))
            parts = _sentences(bare)
            owned = any(owned_task(before, part) for before, part in itertools.pairwise(parts))
            if bare and len(parts) > 1 and (owned or all(len(part.split()) > 2 for part in parts)):
                found.extend(
                    Line(part, heading, task=owned_task(before, part) if LABEL.match(part) else None)
                    for before, part in itertools.pairwise(["", *parts])
                )
            elif bare:
                found.append(Line(bare, heading, _listed(bare, heading, entry=True)))
        elif match := _ASKED.match(stripped):
            flush()
            if match[1][0] == "Q":
                question = match[2] if _is_asked(match[2]) else ""
            else:
                paragraph.append(match[2])
                flush()
        elif (
            (label := LABEL.match(stripped))
            and len(label[1].split()) <= 4
            and not paragraph
            and not question
            and len(lines) > 1
        ):
            parts = _sentences(label[2])
            if len(parts) > 1 and repeated[label[1]] < 2:  # "Day 1: The coach leaves at six. Lunch is in Sark."
                named = f"{label[1]}: {parts[0]}"
                first_part = (
                    Line(parts[0], label[1]) if _has_verb(parts[0]) else Line(named, heading, _listed(named, heading))
                )
                found += [first_part, *(Line(part, heading, _listed(part, heading)) for part in parts[1:])]
            else:
                found.append(Line(stripped, heading, _listed(stripped, heading)))
        elif _BOLD.fullmatch(raw) and _is_asked(stripped):
            flush()
            question = stripped  # "**How much does it hold?**" above its answer
        elif stripped:
            paragraph.append(stripped)
    flush()
    return _with_lists([dataclasses.replace(line, first=first) for line in found if re.search(r"\w", line.text)])


def _sentences(text: str) -> list[str]:
    starts = [*sentence_starts(text), len(text)] if text.strip() else []
    return [text[a:b].strip() for a, b in itertools.pairwise(starts)]


def _is_asked(text: str) -> bool:
    """Whether a line or a heading is one question, as in a list of frequent ones."""
    first = text.split()[0].lower().strip('“"*') if text.strip() else ""
    return text.endswith("?") and len(text.split()) > 2 and len(_sentences(text)) == 1 and first in _ASKING


def _stands_as_heading(lines: Sequence[str], n: int, raw: str, stripped: str) -> bool:
    """Whether a line without "#" is a heading: it stands alone, is bold, or a paragraph begins below it."""
    blank = n == 0 or not lines[n - 1].strip() or bool(_RULE.fullmatch(lines[n - 1].strip()))
    below = lines[n + 1].strip() if n + 1 < len(lines) else ""
    bare = _NUMBERED.sub("", stripped)
    if _BOLD.fullmatch(raw):
        return len(bare.split()) <= 9 and bare[-1:] not in (".", "!", "?", ",", ";")
    if not _is_heading(bare.rstrip(":"), len(lines)):
        return False
    if bare != stripped:  # "1. Finances", and no list of such entries
        following = next((line for line in lines[n + 1 :] if line.strip()), "")
        before = next((line for line in lines[:n][::-1] if line.strip()), "")
        listed = _BULLET.match(before) or _NUMBERED.match(following.strip())
        return bool(following) and blank and not listed and len(bare.split()) <= 6 and not _has_verb(bare)
    if raw.startswith(("-", "*", "+", "•", "–")) or _BULLET.match(raw):
        return False
    if blank and not below:
        return True
    opens = blank and (below[:1].isupper() or below[:1].isdigit() or bool(_BULLET.match(below)))
    return opens and len(bare) <= 45 and len(bare.split()) <= 6 and not _has_verb(bare)


def _has_verb(text: str) -> bool:
    return any(word.is_verb or (n == 0 and word.tag == "VB") for n, word in enumerate(tag_words(text)))


def _is_heading(line: str, lines: int) -> bool:
    return (
        lines > 2
        and 0 < len(line.split()) <= 9
        and line[-1] not in ".!?;,"
        and line[:1].isupper()
        and not LABEL.match(line)
    )


def _cells(line: str) -> list[str]:
    text = line.strip().replace(r"\|", "\0")
    text = text[1:] if text.startswith("|") else text
    text = text[:-1] if text.endswith("|") else text
    return [plain(re.sub(r"<br\s*/?>", ", ", cell)).replace("\0", "/") for cell in text.split("|")]


def _table_end(lines: Sequence[str], n: int) -> int:
    """The line after a table that begins at line `n`; 0 if none does."""
    first = lines[n].strip()
    below = lines[n + 1].strip() if n + 1 < len(lines) else ""
    framed = len(first) > 1 and first[0] == first[-1] == "|"
    if "|" not in first or not (framed or ("|" in below and _DELIMITER.fullmatch(below))):
        return 0
    end = n + 1
    while end < len(lines) and "|" in lines[end]:
        end += 1
    return end


def _rows(lines: Sequence[str]) -> Iterator[Line]:
    """The rows of a table, without its header."""
    marks = [n for n, line in enumerate(lines) if _DELIMITER.fullmatch(line.strip())]
    head = _cells(lines[0]) if marks[:1] == [1] else []
    for n, line in enumerate(lines):
        cells = _cells(line)
        if n in marks or (head and n == 0) or not any(cells):
            continue
        if len(cells) == 2 and not any(head):
            text = f"{cells[0]}: {cells[1]}"
        else:
            text = "; ".join(
                f"{name}: {cell}" if name else cell
                for name, cell in itertools.zip_longest(head[: len(cells)], cells, fillvalue="")
            )
        if len(head) == 2 and _says_values(head):
            text = f"{cells[0]}: {cells[-1]}"
        event, task = event_of(head, cells), task_of(head, cells)
        listed = () if event or task else tuple(_said_by(head, cells))
        yield Line(text, listed=listed, row=True, event=event, task=task)


def _says_values(head: Sequence[str]) -> bool:
    first, second = head[0].lower(), head[1].lower()
    return first in _PROPERTIES or second in _VALUES or not second


def _said_by(head: Sequence[str], cells: Sequence[str]) -> Iterator[Listed]:
    """What a row says: the value of its name, or what each column gives for it."""
    name = cells[0]
    if name.lower() in _NOTHING:
        return
    if len(cells) == 2 and (not any(head) or _says_values(head)):
        found = [(name, cells[1], "")]
    elif not any(head):
        return
    elif len(head) > 2 and _says_values(head) and head[1].lower() in _VALUES | {""}:
        unit = cells[2] if len(cells) > 2 and head[2].lower() in ("unit", "units") else ""
        found = [(name, f"{cells[1]} {unit}".strip(), "")]
        found += [(column, cell, name) for column, cell in list(zip(head, cells, strict=False))[3 if unit else 2 :]]
    elif head[0].lower() in _PROPERTIES:  # one column for each of several things
        found = [(name, cell, column) for column, cell in list(zip(head, cells, strict=False))[1:]]
    else:
        if name.isdigit() and head[0]:  # "the grind size of setting 1"
            name = f"{head[0].lower()} {name}"
        found = [(column, cell, name) for column, cell in list(zip(head, cells, strict=False))[1:]]
    for given, value, of in found:
        if value.lower() in _NOTHING or not given or len(value.split()) > _LONGEST_VALUE:
            continue
        if given.lower() in _POSITIONS and _PERSON.fullmatch(of):
            yield Listed(value[:1].lower() + value[1:], of, role=True)
        elif not of and given.lower() in ROLES and _PERSON.fullmatch(value):
            yield Listed(given.lower(), value, role=True)
        else:
            yield Listed(given, value if value.endswith(".m.") else value.rstrip("."), of)


def _listed(text: str, heading: str, entry: bool = False) -> tuple[Listed, ...]:
    """What a line of a list, or a label with its value, says; () for what is read as a sentence."""
    match = LABEL.match(text)
    if entry and (kept := _KEPT.fullmatch(text)) and not _has_verb(text):
        return (Listed(kept[1], kept[2], place=True),)
    label, value = (match[1].lower(), match[2].rstrip(".")) if match else ("", text)
    naming = label in _NAMING or heading.lower() in _NAMING
    if naming or (not label and entry) or (label and label.split()[-1] not in ROLES):
        found = tuple(
            Listed(role, person[1], role=True)
            for person in _PERSON.finditer(value)
            if (role := person[2]) and _is_role(role, certain=naming)
        )
        if label in PRESENT:
            found += _together([person[1] for person in _PERSON.finditer(value)])
        if found or label in _NAMING:
            return found
    if not match or label in REMARKS or label.split()[-1] in ROLES or len(value.split()) > 12:
        return ()
    named = all(word[:1].isupper() for word in value.split())
    dated = any(name in value for name in w.MONTHS + w.DAYS)
    if (named and not any(map(str.isdigit, value))) or dated or match[2].endswith((".", "!", "?", ",", ";")):
        return ()
    if "(" in value or "NOUN" not in w.forms(label.split()[-1]) or _has_verb(value):
        return ()
    return (Listed(match[1], value),)


def names_in(line: Line) -> list[str]:
    """The full names of persons in a line that says who they are, or who was there."""
    match = LABEL.match(line.text)
    found = [each.value for each in line.listed if each.role]
    if match and match[1].lower() in _NAMING:
        found += [person[1] for person in _PERSON.finditer(match[2])]
    if line.heading.lower() in _NAMING and (person := _PERSON.fullmatch(line.text)):
        found.append(person[1])
    return found


def is_naming(text: str) -> bool:
    """Whether a line only says who was there, or who belongs to something."""
    match = LABEL.match(text)
    return bool(match) and match[1].lower() in _NAMING


def _is_role(text: str, certain: bool) -> bool:
    """Whether words in brackets after a name are a role; `certain`: the name is known to be a person's."""
    first, last = text.split()[0], text.split()[-1]
    if last in _NO_ROLES or first in w.PREPOSITIONS | w.SUBORDINATORS | w.ADVERBS:
        return False
    return last in ROLES | WORDS["people_nouns"] or (certain and "NOUN" in w.forms(last))


def _together(names: Sequence[str]) -> tuple[Listed, ...]:
    """That these persons were present."""
    text = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
    return (Listed("present", text),) if text and len(text.split()) <= _LONGEST_VALUE else ()


def _with_lists(lines: list[Line]) -> list[Line]:
    """The lines; the first entry of a list under "Present" or "You will need" says what all of them are."""
    at = [n for n, line in enumerate(lines) if line.heading.lower() in PRESENT and _PERSON.fullmatch(line.text)]
    if at:
        listed = _together([_PERSON.fullmatch(lines[n].text)[1] for n in at])
        lines[at[0]] = dataclasses.replace(lines[at[0]], listed=(*lines[at[0]].listed, *listed))
    at = [n for n, line in enumerate(lines) if _NEEDED.fullmatch(line.heading.strip(": ")) and not line.row]
    texts = [re.sub(r"\s*\([^()]*\)", "", lines[n].text).rstrip(".;,") for n in at]
    entries = all(len(text.split()) < 12 and text[-1:] not in ("!", "?", ":") for text in texts)
    if 1 < len(at) < 12 and at[-1] - at[0] == len(at) - 1 and entries:
        joined = "; ".join(texts) if any("," in text for text in texts) else ", ".join(texts)
        if len(joined.split()) <= _LONGEST_VALUE:
            listed = (*lines[at[0]].listed, Listed("needed", joined))
            lines[at[0]] = dataclasses.replace(lines[at[0]], listed=listed)
    return lines
