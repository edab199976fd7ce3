"""Conversations: records with `messages` (OpenAI's and TRL's), ShareGPT's, TRL's prompt and completion; transcripts.

Each conversation is a text of its own: who spoke and when in its first line, then a turn a paragraph.
"""

import collections
import contextlib
import dataclasses
import datetime
import json
import pathlib
import re
from collections.abc import Iterator, Sequence

from absl import logging

from selfparam_jax.data.readers.texts import Text, decode
from selfparam_jax.distributed.files import kind_of

SPEAKERS = {
    "user": "User", "human": "User", "assistant": "Assistant", "gpt": "Assistant", "chatgpt": "Assistant",
    "bot": "Assistant", "model": "Assistant", "system": "System", "tool": "Tool", "function": "Tool",
    "observation": "Tool", "developer": "System",
}  # fmt: skip
TURN_LISTS = ("messages", "conversations", "conversation")  # fields of a record that hold its turns
LATEST_S = 1e11  # the year 5138; more is no number of seconds
_DATES = ("date", "timestamp", "created_at", "create_time", "time", "datetime")
_TITLES = ("title", "subject")
_NAMES = ("id", "conversation_id", "dialogue_id", "dialog_id")

# Fields of records that are no conversations.
_OTHERS = ("context", "text", "questions", "qa_pairs")

# --- records --------------------------------------------------------------------------------------------


def is_conversation(record: object) -> bool:
    """Whether a JSON object is a conversation in one of the layouts that are known here."""
    if not isinstance(record, dict):
        return False
    listed = any(isinstance(record.get(name), list) for name in TURN_LISTS)
    return listed or {"prompt", "completion"} <= record.keys()


def refuse_turns(record: object, where: str) -> None:
    """Raises ValueError for a record whose turns are no list; `is_conversation` is False for it."""
    for name in TURN_LISTS if isinstance(record, dict) else ():
        if name in record:
            raise ValueError(
                f"{where}: {name!r}: got {kind_of(record[name])}, expected a list of turns; correct the value"
            )


def read_conversation(record: dict, where: str) -> Text:
    """A record as a text.

    A prompt with its completion, both strings, is an exchange of two turns and also a pair to train on; where the
    record has a `context` or `text` besides, that is the text.

    Args:
      record: `is_conversation`.
      where: file and line, for messages.

    Returns:
      the text; its name is the record's id, "" if it has none.

    Raises:
      ValueError: a turn that cannot be read; nothing but empty turns.
    """
    paired = {"prompt", "completion"} <= record.keys()
    if unread := [field for field in _OTHERS if field in record and not (paired and field in ("context", "text"))]:
        raise ValueError(
            f"{where}: got {unread[0]!r} beside a conversation, where it would be lost; expected one of the two"
        )
    name = next((str(record[field]) for field in _NAMES if record.get(field) not in (None, "")), "")
    title = next((record[field] for field in _TITLES if isinstance(record.get(field), str)), "")
    pairs = ()
    if paired:
        asked, said = record["prompt"], record["completion"]
        if isinstance(asked, str) and isinstance(said, str):
            if not asked.strip() or not said.strip():
                raise ValueError(f"{where}: got an empty 'prompt' or 'completion', expected text; remove the line")
            pairs = ((asked.strip(), said.strip()),)
            text = record.get("context", record.get("text"))
            if isinstance(text, str) and text.strip():
                return Text(text.strip(), title, name, {}, pairs)
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        elif isinstance(asked, list) and isinstance(said, list):
            messages = [*asked, *said]
        else:
            raise ValueError(f"{where}: 'prompt' and 'completion', expected two strings or two lists of messages")
    else:
        messages = next(record[field] for field in TURN_LISTS if isinstance(record.get(field), list))
    turns, silent = [], 0
    for number, message in enumerate(messages, start=1):
        turn = _turn(message, f"{where}, message {number}")
        silent += turn is None
        turns += [turn] if turn else []
    if not turns:
        raise ValueError(f"{where}: got a conversation without text, expected turns; remove the line")
    if silent:
        logging.warning("%s: %d of %d messages hold no text (calls of tools, pictures)", where, silent, len(messages))
    stamps = [record, *(message for message in messages if isinstance(message, dict))]
    date = next((found for each in stamps if (found := _date_of(each, where))), "")
    made = conversation_text(turns, date, title)
    return dataclasses.replace(made, name=name, pairs=pairs)


def _turn(message: object, where: str) -> tuple[str, str] | None:
    """(speaker, text) of a message; None if it holds no text."""
    if not isinstance(message, dict):
        raise ValueError(f"{where}: got {message!r:.40}, expected an object with 'role' and 'content'")
    role = message.get("role", message.get("from", message.get("speaker")))
    content = message.get("content", message.get("value", message.get("text")))
    if not isinstance(role, str) or not role.strip():
        raise ValueError(f"{where}: got no 'role' (or 'from'), expected who speaks; add it")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        content = "\n".join(part["text"] for part in parts)
    if content is not None and not isinstance(content, str):
        raise ValueError(f"{where}: got {content!r:.40} as 'content' (or 'value'), expected a string")
    name = message.get("name")
    speaker = name if isinstance(name, str) and name.strip() else SPEAKERS.get(role.strip().lower(), role)
    return (speaker.strip(), content.strip()) if content and content.strip() else None


def _date_of(record: dict, where: str) -> str:
    """The first date of a record; a number is seconds since 1970 (or thousandths and so on), in UTC, or YYYYMMDD.

    Raises:
      ValueError: a number that is no time; `where` names its record.
    """
    for field in _DATES:
        value = record.get(field)
        if isinstance(value, str) and value.strip():
            return value.strip()
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            with contextlib.suppress(ValueError):  # no seconds of a conversation: all of these days are in 1970
                return datetime.datetime.strptime(f"{value}", "%Y%m%d").strftime("%Y-%m-%d")
            powers = (1, 1e3, 1e6, 1e9)  # milliseconds, microseconds, nanoseconds
            seconds = next((value / power for power in powers if value / power <= LATEST_S), None)
            if seconds is None:
                raise ValueError(
                    f"{where}: {field!r}: got {value:.3g}, expected seconds since 1970, or a date as text; correct it"
                )
            return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M")
    return ""


def conversation_text(turns: Sequence[tuple[str, str]], date: str = "", title: str = "") -> Text:
    """Turns as a text that says first who spoke and when; what a speaker says in a row is one turn."""
    joined: list[tuple[str, str]] = []
    for speaker, text in turns:
        if joined and joined[-1][0] == speaker:
            joined[-1] = (speaker, f"{joined[-1][1]}\n{text}")
        else:
            joined.append((speaker, text))
    speakers = list(dict.fromkeys(speaker for speaker, _ in joined))
    named = " and ".join([", ".join(speakers[:-1]), speakers[-1]] if len(speakers) > 1 else speakers)
    kind = "Conversation between" if len(speakers) > 1 else "Text by"
    heading = f"{f'{title}: ' if title else ''}{kind} {named}{f', {date}' if date else ''}"
    text = "\n\n".join([f"{heading}.", *(f"{speaker}: {said}" for speaker, said in joined)])
    metadata = {"speakers": speakers} | ({"date": date} if date else {})
    return Text(text, heading, "", metadata)


def read_json(path: pathlib.Path) -> list[Text] | None:
    """The conversations of a JSON file: one, or a list of them (ShareGPT's layout); None for another layout.

    Raises:
      ValueError: one of them cannot be read, or is none.
    """
    try:
        content = json.loads(decode(path))
    except (ValueError, RecursionError):
        return None
    texts, others = [], []
    for number, record in enumerate(content if isinstance(content, list) else [content], start=1):
        where = f"{path}, entry {number}"
        if is_conversation(record):
            texts.append(read_conversation(record, where))
        else:
            refuse_turns(record, where)
            others.append(where)
    if texts and others:
        raise ValueError(f"{others[0]}: got no conversation, expected one as in other entries; remove the entry")
    return texts or None


# --- transcripts ----------------------------------------------------------------------------------------

# "[12.03.24, 10:15:32] Ann: hello", "12/03/24, 10:15 - Ann: hello", "10:15 Ann: hello", "Ann: hello".
_STAMP = (
    r"(?:\[?(?:(?P<date>\d{1,4}[./-]\d{1,2}[./-]\d{1,4})(?:,? +|T))?"
    r"(?P<time>\d{1,2}:\d{2}(?::\d{2})?(?: ?[AaPp]\.?[Mm]\.?)?)\]?(?: -)? +)?"
)
_TURN = re.compile(rf"{_STAMP}(?P<name>[^\W\d_][\w.'’-]*(?: [\w.'’-]+){{0,3}}) ?: +(?P<text>\S.*)")
_FIELDS = frozenset(
    ["date", "participants", "present", "attendees", "subject", "topic", "title", "time", "place", "location", "from",
     "to", "cc"]
)  # fmt: skip
_NO_SPEAKERS = frozenset(["q", "a", "question", "answer", "note", "notes", "warning", "todo", "example"])
_RULE = re.compile(r"\s*([-=*_])(?:\s*\1){2,}\s*")
_DATE_LINE = re.compile(
    r"\W*((?:\w+, )?(?:\d{4}-\d{2}-\d{2}|\d{1,2}[./]\d{1,2}[./]\d{2,4}|\d{1,2}\.? [A-Z]\w+ \d{4}|"
    r"[A-Z]\w+ \d{1,2}, \d{4}))\W*"
)
LEAST_TURNS, MOST_SPEAKERS = 4, 20


def read_text(path: pathlib.Path) -> list[Text]:
    """A plain text; a transcript is read as its conversations."""
    text = decode(path).strip()
    return read_transcript(text) or [Text(text)]


def read_transcript(text: str) -> list[Text]:
    """The conversations of a transcript with turns "Name: text"; [] if the text is none.

    A conversation ends at a line of dashes, at a line that is a date, and where the day of its time stamps changes.
    A text is a transcript if three fifths of its lines begin a turn, four or more, and nearly all turns are of two to
    twenty speakers who speak at least twice.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    if not _is_transcript(lines):
        return []
    made = []
    for date, fields, turns in _conversations(lines):
        date = date or fields.get("date", "")
        title = next((fields[name] for name in ("title", "subject", "topic") if name in fields), "")
        made.append(conversation_text(turns, date, title))
        others = {name: value for name, value in fields.items() if name not in ("date", "title", "subject", "topic")}
        if others:  # said before the first turn: it stays in the text
            heading, rest = made[-1].text.split("\n", 1)
            told = "\n".join(f"{name.capitalize()}: {value}" for name, value in others.items())
            made[-1] = dataclasses.replace(made[-1], text=f"{heading}\n{told}\n{rest}")
    return made


def _is_transcript(lines: Sequence[str]) -> bool:
    lines = [line.strip() for line in lines]
    found = [_TURN.fullmatch(line) for line in lines if not _RULE.fullmatch(line) and not _DATE_LINE.fullmatch(line)]
    spoken = [match["name"] for match in found if match and match["name"].lower() not in _FIELDS]
    counts = collections.Counter(spoken)
    often = {name: count for name, count in counts.items() if count > 1}
    return (
        len(spoken) >= LEAST_TURNS
        and 2 <= len(often) <= MOST_SPEAKERS
        and sum(often.values()) >= 0.8 * len(spoken)
        and not {name.lower() for name in often} <= _NO_SPEAKERS
        and all(not name[0].islower() for name in often)
        and sum(match is not None for match in found) >= 0.6 * len(found)
    )


def _conversations(lines: Sequence[str]) -> Iterator[tuple[str, dict, list[tuple[str, str]]]]:
    """(date, fields of the head, turns) of each conversation."""
    date, fields, turns = "", {}, []
    for line in map(str.strip, lines):
        match, alone = _TURN.fullmatch(line), _DATE_LINE.fullmatch(line)
        stamped = match["date"] if match else None
        new_day = bool(stamped and date and stamped != date)
        if turns and (_RULE.fullmatch(line) or alone or new_day):
            yield date, fields, turns
            date, fields, turns = "", {}, []
        if alone:
            date = alone[1]
        elif match and not turns and match["name"].lower() in _FIELDS:
            fields[match["name"].lower()] = match["text"]
        elif match:
            date = date or stamped or ""
            turns.append((match["name"], match["text"]))
        elif turns and not _RULE.fullmatch(line):
            speaker, said = turns[-1]
            turns[-1] = (speaker, f"{said}\n{line}")
        elif not _RULE.fullmatch(line):  # before the first turn
            fields["title"] = f"{fields['title']} {line}" if "title" in fields else line
    if turns:
        yield date, fields, turns
