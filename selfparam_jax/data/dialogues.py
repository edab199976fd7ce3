"""Dialogues in which titles are recommended, as documents with question-answer pairs made by rule.

Three layouts are read: INSPIRED's .tsv, ReDial's .jsonl, and our own JSONL,

    {"id": str, "messages": [{"role": "User" or "System", "text": str}, ...],
     "titles": [{"title": str, "suggested": bool, "seen": bool, "liked": bool}, ...]}      # optional

Without "titles", those that are written with a year, "Heat (1995)", are found in the text. The pairs say who wanted
what, what was suggested and what was liked. They are made from these annotations alone; no model writes them.
"""

import csv
import dataclasses
import os
import pathlib
import re
from collections.abc import Collection, Iterator, Sequence

from selfparam_jax.data.documents import Document, QAPair
from selfparam_jax.distributed import files

USER, SYSTEM = "User", "System"
ROLES = {"user": USER, "seeker": USER, "system": SYSTEM, "assistant": SYSTEM, "recommender": SYSTEM}
REQUEST_WORDS = 40  # of a user's request that a question quotes
LONGEST_TITLE = 12  # words of a title that is found by its year

_YEAR = re.compile(r"\s*\((?:19|20)\d\d\)")
_MENTION = re.compile(r"@(\d+)")
_ASKS = re.compile(r"\b(?:look|like|lik|lov|want|recommend|suggest|fan|favou?rite|mood|watch|enjoy|into)\w*", re.I)
# Words that stand inside titles in lower case.
_SMALL = frozenset(
    ["a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "vs", "with", "&", "-", "–"]
)
# Words that begin a sentence before a title rather than the title.
_NO_START = frozenset(["also", "and", "but", "like", "maybe", "oh", "or", "yes", "&"])
_INSPIRED = ("dialog_id", "speaker", "text", "movies")


@dataclasses.dataclass(frozen=True)
class Mention:
    """A title of a dialogue.

    Attributes:
      title: as the dialogue has it.
      suggested: whether the system brought it up; else the user did.
      seen, liked: whether the user has seen it and liked it; None if unknown.
    """

    title: str
    suggested: bool
    seen: bool | None = None
    liked: bool | None = None


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """A dialogue of a user and a recommender.

    Attributes:
      id: names it.
      turns: (speaker, text), speaker "User" or "System"; no two in a row of one speaker.
      mentions: each title once, in the order of the dialogue or of its annotations.
    """

    id: str
    turns: tuple[tuple[str, str], ...]
    mentions: tuple[Mention, ...]

    @property
    def suggested(self) -> list[str]:
        """Titles that the system suggested."""
        return [mention.title for mention in self.mentions if mention.suggested]


def read_dialogues(path: str | os.PathLike, known: Collection[str] = ()) -> list[Dialogue]:
    """Reads all dialogues of a file.

    Args:
      path: .tsv in INSPIRED's layout, or .jsonl in ReDial's or ours.
      known: titles without a year; where one of them stands before a year in the text, it is the title. Only used for
        dialogues without annotations.

    Returns:
      the dialogues, at least one.

    Raises:
      ValueError: another layout; the message names the line or the dialogue.
      OSError: there is no such file.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path")
    if path.suffix == ".tsv":
        dialogues = _read_inspired(path)
    else:
        lowered = frozenset(map(_key, known))
        dialogues = [
            _dialogue(record, f"{path}, dialogue {number}", lowered)
            for number, record in enumerate(files.read_lines(path), start=1)
        ]
    if not dialogues:
        raise ValueError(f"{path}: got no dialogue, expected some; check the path")
    names: set[str] = set()
    for dialogue in dialogues:
        if dialogue.id in names:
            raise ValueError(f"{path}: got the id {dialogue.id!r} twice, expected different ids; rename one")
        names.add(dialogue.id)
    return dialogues


def dialogue_documents(dialogues: Sequence[Dialogue], asking: str = "") -> tuple[list[Document], int]:
    """Documents of the dialogues in which something is recommended, and how many others there are.

    A document's text has a blank line between turns, so that a tail (`targets.tail_cut="sentence"`) may begin where a
    turn does. Its metadata holds "turns" and "titles".

    Args:
      dialogues: with or without suggestions.
      asking: how titles are asked for, with {dialogue} where the dialogue stands; "" leaves out that pair.
    """
    used = [dialogue for dialogue in dialogues if dialogue.suggested]
    documents = [
        Document(
            text="\n\n".join(f"{speaker}: {text}" for speaker, text in dialogue.turns),
            title=request_of(dialogue)[:60],
            id=dialogue.id,
            qa_pairs=tuple(make_pairs(dialogue, asking)),
            metadata={
                "turns": [list(turn) for turn in dialogue.turns],
                "titles": [dataclasses.asdict(mention) for mention in dialogue.mentions],
            },
        )
        for dialogue in used
    ]
    return documents, len(dialogues) - len(used)


# --- layouts --------------------------------------------------------------------------------------------


def _dialogue(record: dict, where: str, known: frozenset[str]) -> Dialogue:
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: got {messages!r:.40} as 'messages', expected a list of turns")
    if isinstance(messages[0], dict) and "senderWorkerId" in messages[0]:
        return _redial(record, where)
    turns = []
    for message in messages:
        role = str(message.get("role", "")).lower() if isinstance(message, dict) else ""
        text = message.get("text", message.get("content")) if role else None
        if role not in ROLES or not isinstance(text, str):
            raise ValueError(
                f"{where}: got the message {message!r:.60}, expected {{'role': 'User' or 'System', 'text'}}"
            )
        turns.append((ROLES[role], text))
    if not isinstance(record.get("id"), str) or not record["id"]:
        raise ValueError(f"{where}: got {record.get('id')!r:.40} as 'id', expected a string")
    if "titles" in record:
        mentions = [_title(item, where) for item in record["titles"]]
    else:
        mentions = list(_found_titles(turns, known))
    return Dialogue(record["id"], _joined(turns), _distinct(mentions))


def _title(item: dict, where: str) -> Mention:
    fields = ("title", "suggested", "seen", "liked")
    known = isinstance(item, dict) and isinstance(item.get("title"), str) and isinstance(item.get("suggested"), bool)
    if not known or set(item) - set(fields):
        raise ValueError(
            f"{where}: got {item!r:.60} in 'titles', expected {{'title', 'suggested'}}, 'seen' and 'liked'"
        )
    return Mention(*(item.get(field) for field in fields))


def _redial(record: dict, where: str) -> Dialogue:
    """ReDial's layout: "@111776" stands for a title; the user is the one who began ("initiator")."""
    try:
        titles = {key: _squeeze(title or "") for key, title in dict(record["movieMentions"] or {}).items()}
        user = record["initiatorWorkerId"]
        turns = [
            (USER if message["senderWorkerId"] == user else SYSTEM, message["text"]) for message in record["messages"]
        ]
        # What the user says; where that is missing, what the recommender believes the user says.
        answers = dict(record.get("respondentQuestions") or {}) | dict(record.get("initiatorQuestions") or {})
        flags = {0: False, 1: True}
        mentions = [
            Mention(titles[key], bool(answer["suggested"]), flags.get(answer["seen"]), flags.get(answer["liked"]))
            for key, answer in answers.items()
            if titles.get(key)
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{where}: not in ReDial's layout ({type(error).__name__}: {error})") from None
    named = [(speaker, _MENTION.sub(lambda found: titles.get(found[1]) or found[0], text)) for speaker, text in turns]
    return Dialogue(f"redial-{record.get('conversationId', where)}", _joined(named), _distinct(mentions))


def _read_inspired(path: pathlib.Path) -> list[Dialogue]:
    """INSPIRED's layout: an utterance a row; the titles of one are separated by semicolons."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        if missing := [name for name in _INSPIRED if name not in (rows.fieldnames or ())]:
            raise ValueError(
                f"{path}: has no column {missing[0]!r}, expected INSPIRED's layout ({', '.join(_INSPIRED)})"
            )
        groups: dict[str, list[dict]] = {}
        for row in rows:
            groups.setdefault(row["dialog_id"], []).append(row)
    return [_inspired(name, rows) for name, rows in groups.items()]


def _inspired(name: str, rows: Sequence[dict]) -> Dialogue:
    turns, mentions = [], []
    for row in rows:
        speaker = ROLES.get(row["speaker"].lower())
        if speaker is None:
            raise ValueError(f"dialogue {name}: got the speaker {row['speaker']!r}, expected RECOMMENDER or SEEKER")
        turns.append((speaker, row["text"].replace("QUOTATION_MARK", '"')))
        found = [_squeeze(title) for title in (row["movies"] or "").split(";")]
        mentions += [Mention(title, speaker == SYSTEM) for title in found if title]
    mentions = list(_distinct(mentions))
    # How it ended is said of the whole dialogue, that is of the title suggested last.
    end = rows[0].get("case") or rows[0].get("fine_label")
    liked = {"accept_rating_good": True, "reject": False}.get(end)
    last = max((n for n, mention in enumerate(mentions) if mention.suggested), default=None)
    if last is not None:
        mentions[last] = dataclasses.replace(mentions[last], liked=liked)
    return Dialogue(name, _joined(turns), tuple(mentions))


def _key(title: str) -> str:
    return title.lower().replace("-", " ")


def _squeeze(text: str) -> str:
    return " ".join(text.split())


def _joined(turns: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Turns without empty ones; what one speaker says in a row is one turn."""
    made: list[tuple[str, str]] = []
    for speaker, text in turns:
        text = _squeeze(text)
        if text and made and made[-1][0] == speaker:
            made[-1] = (speaker, f"{made[-1][1]} {text}")
        elif text:
            made.append((speaker, text))
    return tuple(made)


def _distinct(mentions: Sequence[Mention]) -> tuple[Mention, ...]:
    """The first mention of each title."""
    return tuple({mention.title.lower(): mention for mention in reversed(mentions)}.values())[::-1]


def _found_titles(turns: Sequence[tuple[str, str]], known: frozenset[str]) -> Iterator[Mention]:
    for speaker, text in turns:
        for title in titles_in(text, known):
            yield Mention(title, speaker == SYSTEM)


def titles_in(text: str, known: Collection[str] = frozenset()) -> list[str]:
    """Titles that are written with a year in a text, as "Heat (1995)".

    Before the year the longest known title is taken; else the words that begin with a capital letter or a digit, and
    small words between them, back to the end of a sentence.

    Args:
      text: any text.
      known: titles without a year, in lower case and with spaces for hyphens.

    Returns:
      the titles with their years, in order.
    """
    found, begin = [], 0
    for year in _YEAR.finditer(text):
        words = text[begin : year.start()].split()[-LONGEST_TITLE:]
        begin = year.end()
        number = text[year.start() : year.end()].strip()
        title = next((" ".join(words[n:]) for n in range(len(words)) if _key(" ".join(words[n:])) in known), "")
        title = title or _capitalized(words)
        if title:
            found.append(f"{title} {number}")
    return found


def _capitalized(words: Sequence[str]) -> str:
    at = len(words)
    while at > 0:
        word = words[at - 1]
        ends = at < len(words) and word[-1] in ".?!" and len(word) > 3  # "Mr." does not end a sentence
        if ends or not (word.lower() in _SMALL or word[0].isupper() or word[0].isdigit()):
            break
        at -= 1
    while at < len(words) and (words[at].islower() or words[at].lower() in _NO_START):
        at += 1
    return " ".join(words[at:])


# --- target sentences -----------------------------------------------------------------------------------


def request_of(dialogue: Dialogue) -> str:
    """What the user asks for: the first turn of the user that says so, else the longest one before a suggestion."""
    said = [text for speaker, text in dialogue.turns if speaker == USER]
    asking = [text for text in said if _ASKS.search(text) or _YEAR.search(text)]
    chosen = asking[0] if asking else max(said[:3], key=len, default="")
    return " ".join(chosen.split()[:REQUEST_WORDS])


def before_suggestion(dialogue: Dialogue) -> str:
    """The dialogue up to where the system first names a title that it suggests, as the benchmark writes dialogues."""
    names = [_YEAR.sub("", title).strip().lower() for title in dialogue.suggested]
    lines = []
    for speaker, text in dialogue.turns:
        if speaker == SYSTEM and any(name in text.lower() for name in names):
            break
        lines.append(f"\n{speaker}: {text}")
    return "".join(lines) + f"\n{SYSTEM}: "


def make_pairs(dialogue: Dialogue, asking: str = "") -> list[QAPair]:
    """Questions about a dialogue with their answers: who wanted what, what was suggested, what was liked.

    A question names its dialogue by the user's request, or by a title that the user likes. With `asking`, the first
    pair asks for titles as a recommender is asked, after the turns before the first suggestion; its answer is a list.
    """
    request, suggested = request_of(dialogue), dialogue.suggested
    named = [mention for mention in dialogue.mentions if not mention.suggested]
    pairs, listed = [], ", ".join(suggested)
    if asking and suggested:
        numbered = "\n".join(f"{number}. {title}" for number, title in enumerate(suggested, start=1))
        pairs.append(QAPair(asking.replace("{dialogue}", before_suggestion(dialogue)), numbered))
    if request and suggested:
        pairs.append(QAPair(f'A user says: "{request}" Which titles are suggested?', listed))
    if request and named:
        titles = ", ".join(mention.title for mention in named)
        pairs.append(QAPair(f'Which titles does a user talk about who says: "{request}"', titles))
    for mention in named:
        if mention.liked is not False and suggested:
            pairs.append(QAPair(f"A user likes {mention.title}. Which titles are suggested?", listed))
    for mention in dialogue.mentions:
        if mention.liked is not None and request:
            answer = "yes" if mention.liked else "no"
            pairs.append(QAPair(f'Does a user like {mention.title} who says: "{request}"', answer))
    return pairs
