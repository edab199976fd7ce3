"""Reads question-answer pairs, or a text, out of the replies of a language model.

A reply is untrusted text. It is only ever cut and matched; nothing in it is executed, and a chat marker in it ends
it, so the pairs can be put into a later prompt without opening a turn. The prompts that ask for pairs are in
`question_prompts.py`.
"""

import contextlib
import dataclasses
import json
import re
import unicodedata
from collections.abc import Iterator

from selfparam_jax.data.documents import QAPair
from selfparam_jax.data.sentences import sentence_starts
from selfparam_jax.targets.config import import_synthesis

# What chat templates mark turns with; the reply ends there, as the tokenizer that reads it next knows no difference.
_MARKER = re.compile(
    r"(?i)[<＜][|｜][^<>＜＞\n]{1,60}[|｜][>＞]|</?s>|\[/?(?:INST|SYSTEM_PROMPT|TOOL_CALLS|TOOL_RESULTS)\]|<</?SYS>>"
    r"|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk|mask)>|</?(?:tool_call|tool_response)>"
)
# The same in plain text, as base models run on.
_TURN = re.compile(r"(?im)^[ \t#*]*(?:user|human|system|assistant|instruction|response|passage)[ \t*]*:")
# With a name of the maker before it (<seed:think>), or other brackets (Kimi).
_THOUGHTS = r"((?:\w+:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad))"
_THOUGHT = re.compile(rf"(?is)(?:[<◁]{_THOUGHTS}[>▷]|(\[THINK\])).*?(?:[<◁]/\1[>▷]|\[/THINK\]|\Z)")
# Its end alone: templates often open the thought in the prompt.
_THOUGHT_END = re.compile(rf"(?is)\A.*(?:[<◁]/{_THOUGHTS}[>▷]|\[/THINK\])")
# XML: the pair's two elements, and elements around it.
_ELEMENT = re.compile(r"(?i)<(/?)(question|answer)>")
_WRAPPER = re.compile(
    r"(?im)^[ \t]*</?(?:output|response|result|final|answer|qa|pairs?|qa_pairs?)>|</\w{2,10}>[ \t]*$"
)
# A code fence on the line of other text.
_INLINE_FENCE = re.compile(r"(?m)`{3,}(?![\w+-]*[ \t]*$)|(?<=[^\s`])`{3,}")
# OpenAI's harmony: the last message of the final channel is the reply. Decoders that leave special tokens out leave
# the channels' names in the text.
_FINAL = re.compile(r"(?is)\A.*<\|channel\|>\s*final\b[^<]{0,60}(?:<\|constrain\|>[^<]{0,60})?<\|message\|>")
_CHANNEL = re.compile(r"(?is)<\|channel\|>\s*(?:analysis|commentary)\b.*")
_BARE_FINAL = re.compile(
    r"(?s)\A\s*(?:analysis|commentary)\w?.*\bassistant\s?final|\A\s*(?:analysis).*?assistantfinal"
    r"|\A\s*analysis(?=[A-Z]).*"  # cut off before its end
)
# Words for question and answer in other languages, as models label their pairs.
_QUESTION = (
    r"question|ques|pregunta|pergunta|domanda|frage|vraag|fråga|spørgsmål|spørsmål|kysymys|întrebare|kérdés|pytanie"
    r"|otázka|pitanje|вопрос|питання|запитання|въпрос|ερώτηση|soru|pertanyaan|soalan|câu hỏi|प्रश्न|প্রশ্ন|คำถาม|질문"
    r"|السؤال|سؤال|پرسش|سوال|שאלה|问题|問題|質問|提问|问|問"
)
_ANSWER = (
    r"answer|ans|respuesta|réponse|reponse|resposta|risposta|antwort|antwoord|svar|vastaus|răspuns|válasz|odpowiedź"
    r"|odpověď|odgovor|ответ|відповідь|отговор|απάντηση|cevap|jawaban|jawapan|trả lời|câu trả lời|उत्तर|উত্তর|คำตอบ"
    r"|답변|답|الإجابة|إجابة|الجواب|جواب|پاسخ|תשובה|答案|回答|答え|解答|答"
)
# A label in any language: one or two words before a colon.
_WORD = r"[^\W\d_][^\s\d:：*_()\[\]{}\"'|`]{0,19}"
_ANY_LABEL = re.compile(
    rf"^[\s>*_#•-]*+(?P<word>{_WORD}(?: {_WORD})?)(?P<number>\s?\d{{0,3}})[*_]*\s*[:：][*_]*[ \t]*(?P<rest>\S.*)$"
)
_LABEL = re.compile(
    r"(?i)^[\s>*_#•-]*+(?:\(?\d{1,3}[.)\]:]\s*)?[*_]*(?=[^\W\d_])"
    r"(?:(?P<asks>" + _QUESTION + r"|q)|(?P<answers>" + _ANSWER + r"|a))(?P<number>\s?#?\s?\d{1,3})?"
    r"[*_]*\s*(?:(?P<mark>[:：]|[.)\]](?!\d)|[–—-](?=\s))[*_]*\s*(?P<rest>.*)|)$"
)
_INLINE_ANSWER = re.compile(
    r"(?i)(?P<open>[\s(\[*_–—|-]{1,8}|(?<=[?？؟。]))(?=[^\W\d_])(?:" + _ANSWER + r")\s*\d{0,3}[*_]*\s*[:：][*_]*\s*"
    r"|(?<=[?？؟])[\s*_–—|-]{0,8}a(?:\d{1,3}[*_]*[:.)]|[*_]*[:：])[*_]*\s+"
)
# The next pair on the same line, after an answer.
_INLINE_QUESTION = re.compile(
    r"(?i)(?<=\S)\s+(?=[*_]*(?=[^\W\d_])(?:" + _QUESTION + r"|q)\s?\d{0,3}[*_]*\s?[:：]"
    r"|\d{1,3}[.)]\s[^?\n]{3,300}\?[\s*_(–-]*(?:answer|ans|a)\s*:)"
)
_BOLD = re.compile(r"(?<![\w*])\*\*(?=\S)(.{1,500}?)(?<=\S)\*\*(?![\w*])")
_BULLET = re.compile(r"^(?:[-*+•▪◦‣·–]\s+)+")
_NUMBERED = re.compile(r"^\(?(\d{1,3})[.)\]:](?!\d)\s*")
_QUESTION_END = re.compile(r"[?？؟][\"”’')\]*_]*$")
_QUESTION_THEN_TEXT = re.compile(r"^(.*[?？؟][\"”’')\]*_]*)\s+(?:[-–—:=|→>]+\s+)?(\S.*)$")
_QUESTION_WORD = re.compile(
    r"(?i)(?:who|whom|whose|what|when|where|which|why|how|is|are|was|were|did|do|does|can|could|will|would|has|have"
    r"|had|should|may|in|on|at|for|from|to|by|under|during|after|before|according)\b"
)
_OPENING = re.compile(r"(?i)(?:sure|here|below|ok|okay|of course|certainly|the following|questions?|answers?)\b.*:$")
# What a text begins with that names its kind, and what a sentence ends with.
_TEXT_LABEL = re.compile(
    r"(?i)^(?:(?:short )?summary|rewritten (?:text|version|document)|rewrite|(?:list of )?facts|implications"
    r"|(?:study )?notes|text|result|answer)\s*[:：]\s*"
)
_SENTENCE_END = re.compile(r"[.!?…:;。！？؟।][\"”’»」』)\]]*$")
# Lines that end an answer and belong to no pair: closing words, rulers, fences, headings, remarks on a pair.
_REMARK = re.compile(
    r"(?i)(?:let me know|i hope|hope (?:this|these|that)|feel free|these (?:questions|pairs)|please (?:let|note)"
    r"|would you like|do you (?:want|need)|if you (?:need|want|would)|is there anything|note\s*:"
    r"|(?:source|difficulty|type|category|topic|reference|evidence|level)\s*:|`{3}"
    r"|(?:[-*_=~]{3,}|answers\W*|questions\W*|(?:q&a |qa )?(?:pairs?|q&a|qa|example|set|part|section)\s*#?\d*\W*)$)"
)


def parse_pairs(text: str, complete: bool = True) -> list[QAPair]:
    """Reads the questions and answers out of a model's reply, whatever its form.

    That is labelled lines (`Question:`, `Q:`, `Q1.`), numbered lists, lines that end in a question mark and what
    follows them, markdown, tables, JSON, whole or damaged. Text around the pairs and questions without an answer
    are left out. The reply ends at the first chat marker.

    Args:
      text: the reply.
      complete: whether the model ended the reply itself. False, the reply was cut at a limit: a last answer that
        nothing follows, not even a line break, may be half an answer and is left out.

    Returns:
      the pairs in the reply's order; every question and answer is one line of text that is not empty and holds
      no control characters, markdown emphasis or chat markers.
    """
    text, complete = _own_turn(text, complete)
    text = _known_labels(_INLINE_FENCE.sub("\n", _without_elements(text)))
    text, complete = _before_turn(text, complete)
    for reader in (_json_pairs, _table_pairs, _line_pairs):
        found, finished = reader(text)
        # Read as JSON or table only if that gives a pair; an answer may hold a bracket or a bar.
        if any(answer for _, answer in found):
            break
    if found and not complete and not finished:
        found.pop()
    pairs = []
    for question, answer in found:
        question, answer = _clean(question), _clean(answer)
        # Again, as JSON escapes and markdown may have hidden one.
        cleaned = [_MARKER.split(question, 1), _MARKER.split(answer, 1)]
        # Without a letter or digit it is a placeholder such as "...", not text.
        if len(cleaned[0]) == 1 and all(re.search(r"[^\W_]", parts[0]) for parts in cleaned):
            pairs.append(QAPair(question, cleaned[1][0].strip()))
        if max(map(len, cleaned)) > 1:
            break
    return pairs


def parse_text(text: str, complete: bool = True) -> str:
    """Reads a reply that is a text; paragraphs and the entries of lists become sentences in a row.

    Headings, rulers, what introduces the text ("Here is a summary:") and remarks are left out. The reply ends at the
    first chat marker.

    Args:
      text: the reply.
      complete: whether the model ended the reply itself. False, the reply was cut at a limit: its last sentence is
        left out, unless a line break follows it.

    Returns:
      one line of text without control characters, markdown emphasis or chat markers; "" for a reply without a whole
      sentence.
    """
    text, complete = _before_turn(*_own_turn(text, complete))
    lines = text.split("\n")
    found = []
    for number, line in enumerate(lines):
        said = _text_line(line)
        if said and not complete and number == len(lines) - 1:
            said = said[: sentence_starts(said)[-1]].strip()
        elif said and not _SENTENCE_END.search(said):
            said += "."
        found += [said] if said else []
    return _MARKER.split(" ".join(found), 1)[0].strip()


def _text_line(line: str) -> str:
    """A line of a text without marks of lists and emphasis; "" for one that says nothing of its own."""
    bare = re.sub(r"^\s*(?:>\s*)*", "", line)
    if bare.startswith("#") or re.fullmatch(r"\*\*[^*]+\*\*:?\s*", bare) or _OPENING.fullmatch(bare.strip()):
        return ""
    bare = _NUMBERED.sub("", _BULLET.sub("", bare))
    said = re.sub(_TEXT_LABEL, "", _clean(bare))
    return said if re.search(r"[^\W_]", said) and not _REMARK.match(said) else ""


def _own_turn(text: str, complete: bool) -> tuple[str, bool]:
    """A reply without reasoning and hidden characters, up to the first chat marker, and whether it is whole."""
    text = _visible(text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n"))
    text = _without_thoughts(text)
    if marker := _MARKER.search(text):  # the turn was ended, so its last answer is whole
        text, complete = text[: marker.start()], True
    return re.sub(r"(?i)^\s*+[#*]*+[ \t]*(?:assistant|response)[ \t*]*:", "", text), complete


def _before_turn(text: str, complete: bool) -> tuple[str, bool]:
    """A reply up to a next turn in plain text, and whether it is whole."""
    turn = _TURN.search(text)
    return (text[: turn.start()], True) if turn else (text, complete)


def _without_thoughts(text: str) -> str:
    """The reply itself, without the reasoning that a model writes before it."""
    text = _FINAL.sub("", text, count=1) if "<|channel|>" in text else _BARE_FINAL.sub("", text, count=1)
    text = _CHANNEL.sub("", text)
    return _THOUGHT_END.sub("", _THOUGHT.sub("\n", text), count=1)


def _without_elements(text: str) -> str:
    """With labels in the place of XML elements."""
    if {found[2].lower() for found in _ELEMENT.finditer(text)} == {"question", "answer"}:
        text = _ELEMENT.sub(lambda found: "\n" if found[1] else f"\n{found[2]}: ", text)
    return _WRAPPER.sub("\n", text)


def _known_labels(text: str) -> str:
    """With English labels where two others stand before all questions and all answers, whatever their language."""
    lines = text.split("\n")
    places = [n for n, line in enumerate(lines) if line.strip()]
    found = [(n, _ANY_LABEL.match(lines[n])) for n in places]
    asked = [i for i, (_, match) in enumerate(found) if match and _QUESTION_END.search(match["rest"])]
    pairs = [(found[i], found[i + 1]) for i in asked if i + 1 < len(found) and found[i + 1][1]]
    words = {tuple(match["word"].casefold() for _, match in pair) for pair in pairs}
    if not pairs or len(pairs) < len(asked) or len(words) > 1 or len(set(*words)) == 1:
        return text
    for pair in pairs:
        for (n, match), label in zip(pair, ("Question", "Answer"), strict=True):
            lines[n] = f"{label}{match['number']}: {match['rest']}"
    return "\n".join(lines)


def _visible(text: str) -> str:
    """Without invisible characters, so that none can hide a marker; control characters become spaces."""
    # Joiners belong to the spelling of some scripts; beside ASCII they only hide something.
    text = re.sub(r"(?<=[\x00-\x7f])[\u200c\u200d]+|[\u200c\u200d]+(?=[\x00-\x7f])", "", text)
    text = re.sub(r"[^\S\n]|[\u2028\u2029]", " ", text)
    # C: control characters, lone surrogates and the like; Cf: format characters.
    kinds = [(character, unicodedata.category(character)) for character in text]
    hidden = {c: "" if kind == "Cf" else " " for c, kind in kinds if kind[0] == "C" and c not in "\n\u200c\u200d"}
    return text.translate(str.maketrans(hidden))


def _clean(text: str) -> str:
    """One line of visible text, without emphasis."""
    text = _BOLD.sub(r"\1", " ".join(_visible(text).split()))
    text = re.sub(r"^\*\*+(?=\S)|(?<=\S)\*\*+$", "", text)
    single = re.fullmatch(r"([*_`])([^*_`]+)\1", text)
    return (single.group(2) if single else text).strip()


# A bracket that is soon followed by a string and then by a colon or comma; bounded, so that it stays linear.
_JSON_START = re.compile(r"[\[{][\s\[{]{0,40}[\"'“][^\"'“”\n]{1,400}[\"'”]\s*[:,]")
_NEXT_OBJECT = re.compile(r"\n[ \t]*(?:\{|```)")
# Numbers stay as they are written: 1.50 is not 1.5.
_DECODER = json.JSONDecoder(strict=False, parse_float=str, parse_int=str, parse_constant=str)
_DEEPEST = 50
_JSON_KEY = re.compile(rf"(?i)\W*(?:({_QUESTION}|query|q)|{_ANSWER}|response|a)s?[ _#-]*(\d*)\W*")


def _json_pairs(text: str) -> tuple[list[tuple[str, str]], bool]:
    """Pairs of all JSON values in the text, and whether the last one was written to its end."""
    found, position, finished = [], 0, True
    while start := _JSON_START.search(text, position):
        try:
            value, position = _DECODER.raw_decode(text, start.start())
            finished = True
        except (ValueError, RecursionError):
            # Up to the next object: one damaged object must not take the others with it.
            following = _NEXT_OBJECT.search(text, start.end())
            position = following.start() if following else len(text)
            piece = text[start.start() : position]
            value, repair = None, import_synthesis("json_repair")
            with contextlib.suppress(ValueError, RecursionError):  # nested too deep for any list of pairs
                value = repair.loads(piece, skip_json_loads=True)
            ended = piece.rstrip(" ,\n").endswith(("}", "]")) and len(re.findall(r'(?<!\\)"', piece)) % 2 == 0
            finished = ended or position < len(text)
        found.extend(_value_pairs(value, 0))
    return found, finished


def _value_pairs(value: object, depth: int) -> Iterator[tuple[str, str]]:
    if depth > _DEEPEST:
        return
    if isinstance(value, dict):
        yield from _object_pairs(value, depth)
    elif isinstance(value, list):
        strings = [item for item in value if isinstance(item, str)]
        if len(value) == len(strings) == 2 and _QUESTION_END.search(strings[0].strip()):
            yield _unlabelled(strings[0]), _unlabelled(strings[1])
        elif value and len(value) == len(strings):
            yield from _line_pairs("\n".join(" ".join(item.split()) for item in strings))[0]
        else:
            for item in value:
                yield from _value_pairs(item, depth + 1)


def _object_pairs(value: dict, depth: int) -> Iterator[tuple[str, str]]:
    questions, answers = {}, {}
    for key, item in value.items():
        if match := _JSON_KEY.fullmatch(str(key)):
            (questions if match[1] else answers)[match[2]] = item
    for number, question in questions.items():
        answer = answers.get(number, "")
        if isinstance(question, str):
            yield _unlabelled(question), _unlabelled(_scalar(answer))
        elif isinstance(question, list) and isinstance(answer, list) and len(question) == len(answer):
            for one, other in zip(question, answer, strict=True):
                yield _unlabelled(_scalar(one)), _unlabelled(_scalar(other))
    for key, item in value.items():
        if _QUESTION_END.search(str(key).strip()) and not isinstance(item, dict):
            yield _unlabelled(str(key)), _unlabelled(_scalar(item))
        elif isinstance(item, dict | list) and not (questions and answers):
            yield from _value_pairs(item, depth + 1)


def _scalar(value: object) -> str:
    """A JSON value as an answer's text; "" for what is none."""
    if isinstance(value, bool):
        return "Yes" if value else "No"
    values = value if isinstance(value, list) else [value]
    return ", ".join(str(item) for item in values if isinstance(item, str | int | float))


def _unlabelled(text: str) -> str:
    """Without a label or, for a question, a number before it."""
    text = " ".join(text.split())
    label = _label(text)
    without_number = _NUMBERED.sub("", text) if _QUESTION_END.search(text) else text
    return label[2] if label and label[2] else without_number


_RULER = re.compile(r"\s*\|?\s*:?-{2,}:?\s*(?:\|\s*:?-{2,}:?\s*)*\|?\s*")


def _table_pairs(text: str) -> tuple[list[tuple[str, str]], bool]:
    """Pairs of the rows of markdown tables, and whether the last row was written to its end."""
    lines = text.split("\n")
    ruled = any("|" in line and _RULER.fullmatch(line) for line in lines)
    found, finished = [], True
    for index, line in enumerate(lines):
        stripped = line.strip()
        if "|" not in stripped or not (ruled or stripped.startswith("|")):
            continue
        row = re.split(r"(?<!\\)\|", re.sub(r"^\||(?<!\\)\|$", "", stripped))
        cells = [_clean(cell.replace("\\|", "|")) for cell in row]
        # The question is the cell that asks; a head, a ruler and a row's number do not.
        asking = next((place for place, cell in enumerate(cells) if _QUESTION_END.search(cell)), None)
        if asking is not None:
            answer = cells[asking + 1] if asking + 1 < len(cells) else ""
            found.append((_unlabelled(cells[asking]), _unlabelled(answer)))
            finished = stripped.endswith("|") or index + 1 < len(lines)
    return found, finished


def _label(line: str) -> tuple[str, str, str] | None:
    """("q" or "a", number or "", what follows) if a line begins with a label."""
    match = _LABEL.match(line)
    if not match:
        return None
    word, mark, number = match["asks"] or match["answers"], match["mark"], match["number"] or ""
    # "A. Smith", "A) red", "A 4.5 km walk" and a lone "A" are no labels.
    if len(word) == 1 and not (mark and (number[:1].isdigit() or (mark in ":：" and (not number or word > "~")))):
        return None
    return "q" if match["asks"] else "a", number.strip(" #"), match["rest"] or ""


def _divide(text: str, at_mark: bool) -> tuple[str, str]:
    """Question and answer of one line, "" if there is none; `at_mark`: what follows a question mark is one too."""
    asked = re.search(r"[?？؟]", text)
    match = _INLINE_ANSWER.search(text, asked.start() if asked else 0)
    if match:
        bracketed = re.search(r"[(\[]", match["open"] or "")
        return text[: match.start()], re.sub(r"[)\]]\s*$" if bracketed else r"$^", "", text[match.end() :])
    match = _QUESTION_THEN_TEXT.match(text) if at_mark else None
    return (match.group(1), match.group(2)) if match else (text, "")


@dataclasses.dataclass
class _Lines:
    """The state while the lines of a reply are read."""

    questions_labelled: bool  # whether the reply labels its questions
    answers_labelled: bool
    found: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # an answer may be ""
    waiting: dict[str, str] = dataclasses.field(default_factory=dict)  # numbered questions without an answer
    question: str | None = None  # the pair at hand, its label's number and its answer's lines
    number: str = ""
    answer: list[str] = dataclasses.field(default_factory=list)
    answering: bool = False  # the answer's label has been read
    closed: bool = False  # the answer has ended

    def finish(self) -> None:
        """Ends the pair at hand."""
        if self.question is not None:
            if self.number and not self.answer:
                self.waiting[self.number] = self.question
            else:
                self.found.append((self.question, " ".join(self.answer)))
        self.question, self.number, self.answer, self.answering, self.closed = None, "", [], False, False

    def ask(self, text: str, number: str = "") -> None:
        """Begins a question, perhaps with its answer on the same line."""
        self.finish()
        self.question, answer = _divide(text, at_mark=not self.answers_labelled)
        self.number, self.answering = number, bool(answer)
        self.answer = [answer] if answer else []

    def reply(self, text: str, number: str) -> None:
        """Begins a labelled answer; a number says to which question it belongs."""
        if number and number != self.number and (self.number or number in self.waiting):
            self.finish()
            self.question, self.number = self.waiting.pop(number, None), number
        elif self.answer and self.answering:  # a second answer; a line without a label was only a guess
            self.closed = True
            return
        self.answering, self.closed = True, False
        self.answer = [text] if text else []

    def pause(self) -> None:
        """Ends an answer that has begun, as a blank line does."""
        self.closed = self.closed or bool(self.answer)

    def plain(self, line: str, before_answer: bool) -> None:
        """A line without a label; `before_answer`: the next one is labelled as an answer."""
        text = _BULLET.sub("", line)
        numbered = _NUMBERED.match(text)
        if not self.questions_labelled and self._asks(text, numbered, before_answer):
            self.ask(text[numbered.end() :] if numbered else text, numbered.group(1) if numbered else "")
        elif self.question is None or self.closed:
            return
        elif self.answer:
            self.answer.append(text)
        elif self.answering or not self.answers_labelled:
            if not _OPENING.match(text):
                self.answer = [text]
        elif _QUESTION_END.search(self.question) and not _QUESTION_END.search(text):
            if not before_answer:  # the label was forgotten
                self.answer = [text]
        else:
            self.question, inline = _divide(f"{self.question} {text}", at_mark=False)
            self.answer = [inline] if inline else []

    def _asks(self, text: str, numbered: re.Match | None, before_answer: bool) -> bool:
        """Whether a line without a label is a question."""
        if _QUESTION_END.search(text) or not _divide(text, at_mark=not self.answers_labelled)[1]:
            return bool(_QUESTION_END.search(text) or (numbered and before_answer))  # "1. Name the founder."
        if numbered or (self.question is not None and not self.answer):
            return bool(numbered)
        return self.question is None or self.closed or bool(_QUESTION_WORD.match(text))


def _line_pairs(text: str) -> tuple[list[tuple[str, str]], bool]:
    """Pairs of labelled, numbered or bare lines, and whether the last answer was written to its end."""
    lines = [part for line in text.split("\n") for part in _one_pair_each(line)]
    labels = [_label(line) for line in lines]
    kinds = {label[0] for label in labels if label}
    state = _Lines("q" in kinds, "a" in kinds or bool(_INLINE_ANSWER.search(text)))
    for index, (line, label) in enumerate(zip(lines, labels, strict=True)):
        bare = re.sub(r"^\s*(?:>\s*)*(?:#{1,6}\s+)?", "", line)  # no quotation, heading or emphasis
        bare = _BOLD.sub(r"\1", bare).strip().removeprefix("**")
        if index + 1 == len(lines) and _begins_label(bare, state):
            state.pause()
        elif label and label[0] == "q":
            state.ask(label[2], label[1])
        elif label:
            state.reply(label[2], label[1])
        elif not bare or _REMARK.match(bare) or (line.lstrip().startswith("#") and not _QUESTION_END.search(bare)):
            if bare.lower().startswith("answers"):
                state.finish()  # a list of answers apart: none is known to belong to the last question
            state.pause()
        else:
            following = next((n for n in range(index + 1, len(lines)) if lines[n].strip()), None)
            state.plain(bare, following is not None and labels[following] is not None and labels[following][0] == "a")
    finished = not state.answer or state.closed or lines[-1].strip() == ""
    state.finish()
    return state.found, finished


def _one_pair_each(line: str) -> list[str]:
    """A line with several pairs, cut before all but its first."""
    answer, label = _INLINE_ANSWER.search(line), _label(line)
    begin = answer.end() if answer else 0 if label and label[0] == "a" else len(line)
    return (line[:begin] + _INLINE_QUESTION.sub("\n", line[begin:])).split("\n")


def _begins_label(text: str, state: _Lines) -> bool:
    """Whether a reply's last line is the beginning of the next pair's first word or number."""
    if not text or not state.question:
        return False
    word = text.strip("*_# ").lower()
    if not state.answer:
        return state.answers_labelled and not state.answering and _begins_one_of(_ANSWER, word)
    next_number = re.fullmatch(r"\d{1,3}[.)]?|[-*•]", text)
    return bool(next_number) or (state.questions_labelled and _begins_one_of(_QUESTION, word))


def _begins_one_of(words: str, text: str) -> bool:
    return any(word.startswith(text) for word in words.split("|"))
