"""One prompt format for everyone: target sentences, teacher, student and evaluation read the same text.

A small model's answers depend on the format more than on anything else, so a format is named in the
configuration and in every result. All its parts are tokenised apart and their ids concatenated: what
stands before a sentence never changes the sentence's own tokens, which is what makes sharing a context's
keys and values exact.

    teacher reads   head + worked examples + context + question + answer
    student reads   head +                             question + answer
"""

import dataclasses
import re

WORKED_EXAMPLES = """\
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


@dataclasses.dataclass(frozen=True)
class PromptFormat:
    """How a context, a question and an answer become text.

    Attributes:
      name: what configurations and results call it.
      context: template with `{context}`; text formats only.
      question: template with `{question}`, up to where the answer begins.
      answer: template with `{answer}`; its end is what the model learns to stop with.
      examples: worked examples that a reader *with* context sees before the context.
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
            name="worked",
            context="Passage: {context}\n",
            question="Question: {question}\nAnswer:",
            answer=" {answer}\n",
            examples=WORKED_EXAMPLES,
        ),
        # The released code's strings: nothing between the parts but what tokenising apart gives.
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
    )
}


class Prompt:
    """A format bound to a tokenizer: text in, token ids out.

    Attributes:
      format: the PromptFormat.
      head: ids that every reader starts with (BOS; for chat also the template's default system turn).
      end_ids: ids of end of text and end of turn; nothing after them is an answer.
      stop_ids: ids at which a short answer ends: `end_ids`, and every token with a line break in it.
    """

    def __init__(self, name: str, tokenizer):
        """Raises ValueError for an unknown format, or one that the tokenizer cannot render."""
        if name not in FORMATS:
            raise ValueError(f"prompt = {name!r}, expected one of {', '.join(sorted(FORMATS))}")
        self.format = FORMATS[name]
        self._tokenizer = tokenizer
        if self.format.chat:
            self._prepare_chat()
        else:
            first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
            if first is None:
                raise ValueError("the tokenizer has neither a BOS nor an EOS token; one is needed to start with")
            self.head = (first,)
        self.end_ids, self.stop_ids = self._find_stop_ids()

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text as data: nothing is added, and what looks like a special token is only text."""
        return self._ids(text, split_special_tokens=True)

    def decode(self, ids) -> str:
        """Text of generated ids, special tokens left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def context_prefix(self, context: str) -> tuple[int, ...]:
        """What the teacher and Base C+Q read before a question: head, worked examples, context."""
        text = self.format.context.format(context=context)
        if self.format.chat:
            return self.head + self._turn(self._open, text, self._middle) + self._turn("", "Go on.", self._close)
        return self.head + self.encode(self.format.examples) + self.encode(text)

    def context_span(self, context: str) -> tuple[int, int]:
        """Where in `context_prefix(context)` the turn or passage with the context itself begins and ends."""
        start = len(self.head) + len(self.encode(self.format.examples))
        end = len(self.context_prefix(context))
        return start, end - (len(self._turn("", "Go on.", self._close)) if self.format.chat else 0)

    def question(self, question: str) -> tuple[int, ...]:
        """Ids up to where the answer begins."""
        text = self.format.question.format(question=question)
        return self._turn(self._open, text, self._middle) if self.format.chat else self.encode(text)

    def answer(self, answer: str) -> tuple[int, ...]:
        """Ids of an answer as a sentence to learn, its end included."""
        text = self.format.answer.format(answer=answer)
        return self._turn("", text, self._close) if self.format.chat else self.encode(text)

    def text(self, text: str) -> tuple[int, ...]:
        """Ids of running text (unrelated texts, drift)."""
        return self.encode(text)

    def _ids(self, text: str, split_special_tokens: bool) -> tuple[int, ...]:
        made = self._tokenizer(text, add_special_tokens=False, split_special_tokens=split_special_tokens)
        return tuple(made["input_ids"])

    def _turn(self, before: str, content: str, after: str) -> tuple[int, ...]:
        """Ids of the template's marks around some content; marks inside the content stay text."""
        if any(mark in content for mark in self._marks):
            return self._ids(before, False) + self.encode(content) + self._ids(after, False)
        return self._ids(before + content + after, False)  # as the model has seen it: one text

    def _render(self, *turns: str) -> str:
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
        return self._tokenizer.apply_chat_template(messages, tokenize=False)

    def _prepare_chat(self) -> None:
        """Takes the template apart: what stands before the first turn, and around user and assistant text."""
        if not getattr(self._tokenizer, "chat_template", None):
            raise ValueError(
                "prompt = 'chat', but this model's tokenizer has no chat template; use 'plain' or 'worked'"
            )
        user, assistant = "USER-TEXT", "ASSISTANT-TEXT"
        first, both = self._render("Hello.", "Hello."), self._render("Hello.", "Hello.", user, assistant)
        single, pair = self._render(user, assistant), both[len(first) :]
        parts = re.split(f"{user}|{assistant}", pair)
        if not both.startswith(first) or not single.endswith(pair) or len(parts) != 3:
            raise ValueError(
                "prompt = 'chat': this chat template renders a turn differently depending on the turns "
                "before it, so a context could not be put before a question; use 'plain' or 'worked'"
            )
        self._open, self._middle, self._close = parts
        self._marks = (*self._tokenizer.get_added_vocab(), *self._tokenizer.all_special_tokens)
        self.head = self._ids(single[: -len(pair)], False)
        if not self.head:
            raise ValueError("prompt = 'chat': the template puts nothing before the first turn (no BOS)")

    def _find_stop_ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        tokenizer, vocabulary = self._tokenizer, self._tokenizer.get_vocab()
        ends = {tokenizer.eos_token, tokenizer.pad_token, "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "</s>"}
        end_ids = {vocabulary[token] for token in ends if token in vocabulary}
        # A byte-level vocabulary writes a line break as a visible character, SentencePiece as "<0x0A>".
        marks = ("\u010a", "\n", "<0x0A>")
        breaks = {index for token, index in vocabulary.items() if any(mark in token for mark in marks)}
        return tuple(sorted(end_ids)), tuple(sorted(end_ids | breaks))
