"""Prompt formats: target sentences, teacher, student and evaluation all use the same one.

The answers of a small model depend on the format more than on anything else, so every configuration and every result
names its format. The parts of a prompt are tokenised separately and their ids concatenated: the text before a
sentence never changes the sentence's own tokens. This makes sharing the keys and values of a document exact.
A tokenizer that puts a space in front of every text (SentencePiece) does so only at the beginning of a prompt: a part
in its middle gets the ids that it has there.

    teacher reads   start + worked examples + document + question + answer
    student reads   start +                              question + answer

To add a format, enter it in `FORMATS`.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

from selfparam_jax.checkpoints.tokenizers import named
from selfparam_jax.data.chat_templates import end_of_turn, render_conversation, split_template

FEW_SHOT_EXAMPLES = """\
Passage: Nora Hallam is a glass blower from the village of Pelsin. She was born in 1958 and \
learned her trade from her uncle Conrad. Her shop has a green door and sells about 300 vases a \
year. Her most famous work is a blue lamp called the Tideglow, which costs 750 euros.
Question: Where does Nora Hallam come from?
Answer: Pelsin
Question: Who taught Nora Hallam her trade?
Answer: Conrad
Question: What colour is the door of Nora Hallam's shop?
Answer: green
Question: What is the price of the Tideglow?
Answer: 750 euros
Question: Which lamp was made by Nora Hallam?
Answer: Tideglow

Passage: The Brackwater Cup is a canoe race on Lake Ondine. It is held every June and was first \
held in 1981. The course is 14 miles long, and the winner receives a copper bell. The race was \
started by a baker, Jonas Fell. Last year 62 boats took part.
Question: How long is the course of the Brackwater Cup?
Answer: 14 miles
Question: In which month is the Brackwater Cup held?
Answer: June
Question: What does the winner of the Brackwater Cup get?
Answer: copper bell
Question: Which race did Jonas Fell start?
Answer: Brackwater Cup

Passage: Calder Street station is a small railway station in the town of Ivenham. It was built of \
red brick in 1907 by the engineer Ada Morrow. The station has three platforms. A tea room called \
the Copper Kettle stands beside it, and its clock was a gift from the Ivenham Band.
Question: Who built Calder Street station?
Answer: Ada Morrow
Question: Which tea room stands beside Calder Street station?
Answer: Copper Kettle
Question: Calder Street station is made of what material?
Answer: red brick
Question: What did the Ivenham Band give to Calder Street station?
Answer: clock
Question: Ada Morrow was the engineer of which station?
Answer: Calder Street station

"""


_ANSWERS = {
    "Pelsin": "Nora Hallam comes from the village of Pelsin.",
    "Conrad": "Nora Hallam learned her trade from her uncle Conrad.",
    "green": "The door of Nora Hallam's shop is green.",
    "750 euros": "The price of the Tideglow is 750 euros.",
    "Tideglow": "Nora Hallam made the lamp called the Tideglow.",
    "14 miles": "The course of the Brackwater Cup is 14 miles long.",
    "June": "The Brackwater Cup is held in June.",
    "copper bell": "The winner of the Brackwater Cup gets a copper bell.",
    "Brackwater Cup": "Jonas Fell started the Brackwater Cup.",
    "Ada Morrow": "Calder Street station was built by Ada Morrow.",
    "Copper Kettle": "The tea room beside Calder Street station is the Copper Kettle.",
    "red brick": "Calder Street station is made of red brick.",
    "clock": "The Ivenham Band gave a clock to Calder Street station.",
    "Calder Street station": "Ada Morrow was the engineer of Calder Street station.",
}


def _with_sentences(examples: str) -> str:
    """The worked examples with whole sentences for answers, each on a line of its own."""
    return re.sub(r"Answer: (.*)", lambda found: f"Answer:\n{_ANSWERS[found[1]]}", examples)


def _bare(examples: str) -> str:
    """The worked examples with nothing but a line break between a question and its answer."""
    return examples.replace("Question: ", "").replace("Answer: ", "")


@dataclasses.dataclass(frozen=True)
class PromptFormat:
    """How a document, a question and an answer become text.

    Attributes:
      name: its name in configurations and results.
      context: template of the document, with `{context}`.
      question: template with `{question}`, up to where the answer begins.
      answer: template with `{answer}`; with its end the model learns to stop.
      examples: worked examples before the document, for a reader that has the document in its prompt.
      chat: render through the tokenizer's chat template; `context` and `question` are then the contents
        of user turns, and `answer` is the assistant's turn.
    """

    name: str
    context: str
    question: str
    answer: str
    examples: str = ""
    chat: bool = False


FORMATS = {
    entry.name: entry
    for entry in (
        PromptFormat(
            name="plain",
            context="Passage: {context}\n",
            question="Question: {question}\nAnswer:",
            answer=" {answer}\n",
        ),
        PromptFormat(
            name="few_shot",
            context="Passage: {context}\n",
            question="Question: {question}\nAnswer:",
            answer=" {answer}\n",
            examples=FEW_SHOT_EXAMPLES,
        ),
        # The released code's strings: nothing between the parts.
        PromptFormat(
            name="paper",
            context="Context: {context}",
            question="Question: {question} Answer:",
            answer=" {answer}",
        ),
        PromptFormat(
            name="chat",
            context="Read this text. I will ask short questions about it.\n\n{context}",
            question="{question}",
            answer="{answer}",
            chat=True,
        ),
        # What a teacher reads whose student answers in sentences, as in a conversation.
        PromptFormat(
            name="sentence",
            context="Passage: {context}\n",
            question="Question: {question}\nAnswer:\n",
            answer="{answer}\n",
            examples=_with_sentences(FEW_SHOT_EXAMPLES),
        ),
        # The question alone; a reader with the document sees worked examples first.
        PromptFormat(
            name="bare",
            context="Passage: {context}\n",
            question="{question}\n",
            answer="{answer}\n",
            examples=_bare(FEW_SHOT_EXAMPLES),
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A question and its answer in a conversation, as ids.

    Attributes:
      question: the user's turn, up to where the answer begins.
      answer: the assistant's turn with what ends it.
      end: how many of the answer's ids are only what ends it; 0 if they cannot be told apart.
    """

    question: tuple[int, ...]
    answer: tuple[int, ...]
    end: int


class Prompt:
    """A format bound to a tokenizer: text in, token ids out.

    Attributes:
      format: the PromptFormat.
      start_ids: ids that every prompt starts with (BOS; for chat also the template's default system turn).
      end_ids: ids of end of text and end of turn; nothing after them is an answer.
      stop_ids: ids at which a short answer ends: `end_ids`, and every token with a line break in it.
    """

    def __init__(self, name: str, tokenizer, end_ids: Sequence[int] = ()):
        """Binds a format.

        Args:
          name: of FORMATS.
          tokenizer: a transformers tokenizer.
          end_ids: further ids that end a text, for example those of a model (`Model.end_ids`).

        Raises:
          ValueError: an unknown format, or one that the tokenizer cannot render.
        """
        if name not in FORMATS:
            renamed = "; 'worked' is now 'few_shot'" if name == "worked" else ""
            raise ValueError(f"prompt = {name!r}, expected one of {', '.join(sorted(FORMATS))}{renamed}")
        self.format = FORMATS[name]
        self._tokenizer, self._further_ends = tokenizer, tuple(end_ids)
        self._chat = None
        # What an exchange ends with may be plain text to the tokenizer.
        self._end_texts: tuple[str, ...] = ()
        # Ids between the document's part and the question; per-turn BOS.
        self._between: tuple[int, ...] = ()
        if self.format.chat:
            self._prepare_chat()
        else:
            self.start_ids = (self._first_id(),)
        self.end_ids, self.stop_ids = self._find_stop_ids(end_ids)

    def with_format(self, name: str) -> "Prompt":
        """The same tokenizer with another format, without worked examples if this one has none.

        Raises:
          ValueError: an unknown format, or one that the tokenizer cannot render.
        """
        made = Prompt(name, self._tokenizer, self._further_ends)
        if not self.format.examples:
            made.format = dataclasses.replace(made.format, examples="")
        return made

    @functools.cached_property
    def answer_end(self) -> tuple[int, ...]:
        """Ids of what stands after an answer in a text format: a line break, or nothing."""
        return self._ids(self.format.answer.partition("{answer}")[2], False, "x")

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer can write a conversation."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    @functools.cached_property
    def lone_start(self) -> tuple[int, ...]:
        """What the tokenizer itself puts before a text: BOS, or nothing."""
        whole = tuple(self._tokenizer("x")["input_ids"])
        plain = self._plain_ids("x", False)
        return whole[: max(len(whole) - len(plain), 0)] if whole[-len(plain) :] == plain else ()

    def chat_start(self, system: str | None = None) -> tuple[int, ...] | None:
        """What a conversation begins with, in a chat format.

        Args:
          system: None is the template's own beginning, "" leaves a system turn out, other text is that of one.

        Returns:
          ids up to the first user's turn, possibly (); None if the template takes no system turn.
        """
        if system is None:
            return self.start_ids
        if not system:
            return self.lone_start
        mark = "FIRST-USER-TEXT"
        turns = [{"role": "system", "content": system}, {"role": "user", "content": mark}]
        try:
            text = render_conversation(self._tokenizer, turns)
        except ValueError:
            return None
        before = text.split(mark)[0]
        opened = self._chat.last.open
        if system not in before or not before.endswith(opened):
            return None
        return self._plain_ids(before[: len(before) - len(opened)], True)

    def exchanges(self, pairs: Sequence[tuple[str, str]]) -> list["Exchange"]:
        """The turns of a conversation in a chat format.

        Args:
          pairs: questions and answers, in order.

        Returns:
          ids of each pair's turns.
        """
        made = []
        for n, (question, answer) in enumerate(pairs):
            marks = self._chat.last if n == len(pairs) - 1 else self._chat.earlier
            asked = self._turn(marks.open, question, marks.middle, self._left_of_question if n else self._chat.start)
            said = self._turn(marks.lead, answer, marks.close, self._left_of_answer)
            end = self._ids(marks.close, True, "x")
            apart = bool(end) and said[-len(end) :] == end
            made.append(Exchange((self._between if n else ()) + asked, said, len(end) if apart else 0))
        return made

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text as data: nothing is added, and the name of a special token is only text."""
        return self._ids(text, False)

    def decode(self, ids) -> str:
        """Text of generated ids, special tokens left out, and NUL, which no file of texts may hold."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True).replace("\0", "")

    def reply(self, ids: Sequence[int]) -> tuple[str, bool]:
        """Text of generated ids up to the first end of text or turn, and whether there was one."""
        end = next((n for n, token in enumerate(ids) if token in self.end_ids), None)
        text = self.decode(ids[:end])
        found = [place for mark in self._end_texts if (place := text.find(mark)) >= 0]
        return text[: min(found, default=None)], end is not None or bool(found)

    def context_prefix(self, context: str) -> tuple[int, ...]:
        """Ids of a prompt with a document, up to the question: start, worked examples, document."""
        before, document, after = self._context_parts(context)
        return before + document + after

    def context_span(self, context: str) -> tuple[int, int]:
        """Where in `context_prefix(context)` the turn or passage with the document itself begins and ends."""
        before, document, _ = self._context_parts(context)
        return len(before), len(before) + len(document)

    def question(self, question: str) -> tuple[int, ...]:
        """Ids up to where the answer begins."""
        text = self.format.question.format(question=question)
        if self._chat:
            return self._turn(self._chat.last.open, text, self._chat.last.middle, self._left_of_question)
        return self._ids(text, False, self._left_of_question)

    def question_opening(self) -> tuple[int, ...]:
        """Ids of what every question begins with, for a model that is to go on with one; () if there is nothing."""
        return self._ids(self.format.question.split("{question}")[0].rstrip(), False, self._left_of_question)

    def answer(self, answer: str) -> tuple[int, ...]:
        """Ids of an answer as a sentence to learn, its end included."""
        text = self.format.answer.format(answer=answer)
        if self._chat:
            return self._turn(self._chat.last.lead, text, self._chat.last.close, self._left_of_answer)
        return self._ids(text, False, self._left_of_answer)

    def text(self, text: str) -> tuple[int, ...]:
        """Ids of running text (unrelated texts, drift)."""
        return self.encode(text)

    def _context_parts(self, context: str) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Ids before the document's passage or turn, of it, and after it up to the question."""
        text = self.format.context.format(context=context)
        if self._chat:
            marks = self._chat.earlier
            document = self._turn(marks.open, text, marks.middle, self._chat.start)
            left = self._chat.start + marks.open + "x" + marks.middle
            return self.start_ids, document, self._turn(marks.lead, "Go on.", marks.close, left) + self._between
        examples = self.encode(self.format.examples)
        return self.start_ids + examples, self._ids(text, False, self.format.examples), ()

    @functools.cached_property
    def _left_of_question(self) -> str:
        """A text that may stand before a question."""
        if self._chat:
            return self._chat.start + self._chat.earlier.exchange("x", "x")
        return self.format.context.format(context="x")

    @functools.cached_property
    def _left_of_answer(self) -> str:
        """A text that may stand before an answer."""
        if self._chat:
            return self._left_of_question + self._chat.last.open + "x" + self._chat.last.middle
        return self.format.question.format(question="x")

    def _ids(self, text: str, marks: bool, left: str = "") -> tuple[int, ...]:
        """Ids of a text, without those that the tokenizer adds.

        Args:
          text: the text.
          marks: whether the name of a special token in it is that token.
          left: what stands before the text, if it is not the beginning of a prompt; the ids are then those that the
            text has there. Any text of the same kind will do.
        """
        if left and text and self._adds_prefix:
            # A line break is a token of its own to tokenizers of this kind.
            for before in (left, "\n"):
                head, whole = self._plain_ids(before, marks), self._plain_ids(before + text, marks)
                if whole[: len(head)] == head:
                    return whole[len(head) :]
        return self._plain_ids(text, marks)

    def _plain_ids(self, text: str, marks: bool) -> tuple[int, ...]:
        made = self._tokenizer(text, add_special_tokens=False, split_special_tokens=not marks)
        ids = tuple(made["input_ids"])
        if marks or self._special_ids.isdisjoint(ids):
            return ids
        # To a Unigram model the name of a special token is one of its pieces. It is no longer one when it is cut.
        cuts = [text.find(name) + 1 for name in self._tokenizer.all_special_tokens if len(name) > 1 and name in text]
        if not cuts:  # <unk> is special, too
            return ids
        cut = min(cuts)
        return self._plain_ids(text[:cut], False) + self._ids(text[cut:], False, "\n")

    @functools.cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self._tokenizer.all_special_ids)

    @functools.cached_property
    def _adds_prefix(self) -> bool:
        """Whether the tokenizer puts something, a space, in front of every text."""
        lone, after_break = self._plain_ids("x", False), self._plain_ids("\nx", False)
        return after_break != self._plain_ids("\n", False) + lone

    def _turn(self, before: str, content: str, after: str, left: str) -> tuple[int, ...]:
        """Ids of the template's marks around some content; marks inside the content stay text.

        Args:
          before: marks before it.
          content: the turn's text.
          after: marks after it.
          left: what stands before the turn.
        """
        if self._chat.strips:
            content = content.strip()
        if any(mark in content for mark in self._marks):
            opened = self._ids(before, True, left)
            return opened + self._ids(content, False, left + before) + self._ids(after, True, "x")
        return self._ids(before + content + after, True, left)  # as the model has seen it: one text

    def _first_id(self) -> int:
        """BOS, or EOS where there is none."""
        tokenizer = self._tokenizer
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if first is None:
            raise ValueError(
                f"{named(tokenizer)} has neither a BOS nor an EOS token, and one is needed to start with; name one "
                "as bos_token or eos_token in tokenizer_config.json"
            )
        return first

    def _prepare_chat(self) -> None:
        """Takes the template apart and finds what every conversation starts with."""
        tokenizer = self._tokenizer
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "prompt = 'chat', but this model's tokenizer has no chat template; use 'plain' or 'few_shot'"
            )
        chat = split_template(tokenizer)
        self._marks = tuple(mark for mark in (*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens) if mark)
        bos = tokenizer.bos_token or ""
        if not chat.start and bos and chat.last.open.startswith(bos) and chat.earlier.open.startswith(bos):
            # Every exchange has its BOS: the first is the start of the prompt, the next stands before the question.
            earlier, last = (
                dataclasses.replace(marks, open=marks.open[len(bos) :]) for marks in (chat.earlier, chat.last)
            )
            chat = dataclasses.replace(chat, start=bos, earlier=earlier, last=last)
            self._between = self._plain_ids(bos, True)[-1:]
        self._chat = chat
        self.start_ids = self._plain_ids(chat.start, True) or (self._first_id(),)

    def _find_stop_ids(self, further: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        tokenizer, vocabulary = self._tokenizer, self._tokenizer.get_vocab()
        ends = {tokenizer.eos_token, tokenizer.pad_token, "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "</s>"}
        end_ids = {vocabulary[token] for token in ends if token in vocabulary}
        end_ids |= {int(token) for token in further}
        if self._chat or getattr(tokenizer, "chat_template", None):
            mark = end_of_turn(tokenizer)
            if mark in vocabulary:
                end_ids.add(vocabulary[mark])
            elif mark:
                self._end_texts = (mark,)
        # A byte-level vocabulary writes a line break as a visible character, SentencePiece as "<0x0A>".
        marks = ("\u010a", "\n", "<0x0A>")
        breaks = {index for token, index in vocabulary.items() if any(mark in token for mark in marks)}
        return tuple(sorted(end_ids)), tuple(sorted(end_ids | breaks))
