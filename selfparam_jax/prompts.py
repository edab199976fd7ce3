"""One prompt format for everyone: target sentences, teacher, student and evaluation read the same text.

A small model's answers depend on the format more than on anything else, so a format is named in the
configuration and in every result. All its parts are tokenised apart and their ids concatenated: what
stands before a sentence never changes the sentence's own tokens, which is what makes sharing a context's
keys and values exact.

    teacher reads   head + worked examples + context + question + answer
    student reads   head +                             question + answer
"""

import dataclasses
import string

WORKED_EXAMPLES = """\
Passage: Nora Hallam is a glass blower from the village of Pelsin. She was born in 1958 and \
learned her trade from her uncle Conrad. Her shop has a green door and sells about 300 vases a \
year. Her most famous work is a blue lamp called the Tideglow, which costs 750 euros.
Question: Where does Nora Hallam come from?
Answer: the village of Pelsin
Question: Who taught Nora Hallam her trade?
Answer: her uncle Conrad
Question: What colour is the door of Nora Hallam's shop?
Answer: green
Question: What is the price of the Tideglow?
Answer: 750 euros

Passage: The Brackwater Cup is a canoe race on Lake Ondine. It is held every June and was first \
held in 1981. The course is 14 miles long, and the winner receives a copper bell. The race was \
started by a baker, Jonas Fell. Last year 62 boats took part.
Question: How long is the course of the Brackwater Cup?
Answer: 14 miles
Question: In which month is the Brackwater Cup held?
Answer: June
Question: What does the winner of the Brackwater Cup get?
Answer: a copper bell
Question: Which race did Jonas Fell start?
Answer: the Brackwater Cup

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
                raise ValueError(
                    "the tokenizer has neither a BOS nor an EOS token; one is needed to start with"
                )
            self.head = (first,)
        self.end_ids, self.stop_ids = self._find_stop_ids()

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a piece of text, no special tokens added."""
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids) -> str:
        """Text of generated ids, special tokens left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def context_prefix(self, context: str) -> tuple[int, ...]:
        """What the teacher and Base C+Q read before a question: head, worked examples, context."""
        if self.format.chat:
            return self.head + self.encode(
                self._turn_pair(self.format.context.format(context=context), "Go on.")
            )
        return (
            self.head
            + self.encode(self.format.examples)
            + self.encode(self.format.context.format(context=context))
        )

    def question(self, question: str) -> tuple[int, ...]:
        """Ids up to where the answer begins."""
        text = self.format.question.format(question=question)
        return self.encode(self._before_answer(text) if self.format.chat else text)

    def answer(self, answer: str) -> tuple[int, ...]:
        """Ids of an answer as a sentence to learn, its end included."""
        text = self.format.answer.format(answer=answer)
        return self.encode(text + self._turn_end if self.format.chat else text)

    def text(self, text: str) -> tuple[int, ...]:
        """Ids of running text (unrelated texts, drift)."""
        return self.encode(text)

    def _render(self, *turns: str) -> str:
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
        return self._tokenizer.apply_chat_template(messages, tokenize=False)

    def _turn_pair(self, user: str, assistant: str) -> str:
        """The text of a later exchange, without whatever the template puts before the first one."""
        before = self._render("Hello.", "Hello.")
        return self._render("Hello.", "Hello.", user, assistant)[len(before) :]

    def _before_answer(self, question: str) -> str:
        return self._turn_pair(question, self._marker).split(self._marker)[0]

    def _prepare_chat(self) -> None:
        if not getattr(self._tokenizer, "chat_template", None):
            raise ValueError(
                "prompt = 'chat', but this model's tokenizer has no chat template; use 'plain' or 'worked'"
            )
        self._marker = "<<" + string.ascii_lowercase + ">>"
        before, both = (
            self._render("Hello.", "Hello."),
            self._render("Hello.", "Hello.", "Why?", self._marker),
        )
        single = self._render("Why?", self._marker)
        pair = both[len(before) :]
        if not both.startswith(before) or not single.endswith(pair) or pair.count(self._marker) != 1:
            raise ValueError(
                "prompt = 'chat': this chat template renders a turn differently depending on the turns "
                "before it, so a context could not be put before a question; use 'plain' or 'worked'"
            )
        self._turn_end = pair.split(self._marker)[1]
        self.head = self.encode(single[: -len(pair)])
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
