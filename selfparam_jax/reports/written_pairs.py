"""Written pairs for people to read: how many there are, how many are used, and a sample with its scores."""

import collections
import random
from collections.abc import Sequence

from selfparam_jax.data.documents import Document
from selfparam_jax.reports.tables import counted, markdown_cell, markdown_table
from selfparam_jax.targets.config import GeneratorConfig
from selfparam_jax.targets.filter_pairs import REASONS, reasons
from selfparam_jax.targets.write_pairs import written_about

UNCOVERED = 6  # sentences without a question that a report shows of a document
WIDTH = 100  # characters of a document's beginning that are shown


def inspect_pairs(
    documents: Sequence[Document], written: dict[str, list[dict]], config: GeneratorConfig, count: int, seed: int = 0
) -> str:
    """Describes the pairs of some documents, with a random sample of each.

    Args:
      documents: whose pairs are shown.
      written: the pairs of a pairs file (`write_pairs.read_written`).
      config: the thresholds that decide which are used.
      count: how many pairs of each document are shown at most.
      seed: of the sample.

    Returns:
      the text, with a table of all pairs by kind at its end.
    """
    blocks, totals, by_kind = [], collections.Counter(), collections.defaultdict(collections.Counter)
    for document in documents:
        mine = written_about(document, written)
        found = reasons(mine, document.qa_pairs, config)
        totals.update(found)
        for record, reason in zip(mine, found, strict=True):
            by_kind[record["prompt"]][reason] += 1
        beginning = " ".join(document.text.split())
        shown = beginning[:WIDTH] + ("..." if len(beginning) > WIDTH else "")
        lines = [f"{document.id}: {found.count('kept')} of {len(mine)} pairs kept", f"  {shown}"]
        chosen = sorted(random.Random(f"{seed} {document.id}").sample(range(len(mine)), min(count, len(mine))))
        lines += [f"  {_line(mine[n], found[n])}" for n in chosen]
        blocks.append("\n".join(lines))
    total = sum(totals.values())
    rows = [("all kinds", totals), *sorted(by_kind.items())]
    table = [f"{'':22}" + "".join(f"{name:>13}" for name in ("written", *REASONS))]
    for name, counts in rows:
        numbers = (sum(counts.values()), *(counts[reason] for reason in REASONS))
        table.append(f"{name:22}" + "".join(f"{number:>13}" for number in numbers))
    share = f"{totals['kept'] / total:.0%} of {total} pairs kept" if total else "no pairs"
    return "\n\n".join([*blocks, "\n".join(table), f"{counted(len(documents), 'document')}, {share}"])


def written_parts(written: Sequence[dict]) -> list[str]:
    """The section of a report about pairs that rules made.

    Args:
      written: records of `write_pairs.describe_written`.

    Returns:
      its paragraphs in Markdown; [] where there are none.
    """
    if not written:
        return []
    rows = [
        (
            markdown_cell(each["id"]),
            f"{each['covered']} of {each['sentences']}",
            *(str(each[name]) for name in ("facts", "pairs", "held_out")),
        )
        for each in written
    ]
    header = ("document", "sentences asked about", "facts", "pairs trained on", "held out")
    parts = ["## Written pairs", markdown_table(header, rows)]
    if any(each["held_out"] for each in written):
        parts.append(
            "Questions held out are about facts that were trained on, in wordings that were not: documents without "
            "questions of their own are tested with them."
        )
    bare = [(each["id"], text) for each in written for text in each["uncovered"][:UNCOVERED]]
    if bare:
        parts.append("No question was found for these sentences; where it makes sense, their ends are trained on:")
        more = sum(len(each["uncovered"]) for each in written) - len(bare)
        lines = [f"- {markdown_cell(name)}: {markdown_cell(text)}" for name, text in bare]
        parts.append("\n".join([*lines, *([f"- and {more} more"] if more else [])]))
    sample = [
        (markdown_cell(each["id"]), markdown_cell(pair["question"]), markdown_cell(pair["answer"]))
        for each in written
        for pair in each["sample"]
    ]
    parts.append(
        "Some of the pairs that were trained on (all are in `pairs.jsonl`, or the file of pairs that was named):"
    )
    return [*parts, markdown_table(("document", "question", "answer"), sample)]


def _line(record: dict, reason: str) -> str:
    scores = f"support {record['support']:.2f}"
    if "likelihood" in record:
        scores += f"  likelihood {record['likelihood']:.2f} (without {record['likelihood_without']:.2f})"
    return f"[{reason}; {record['prompt']}; {scores}]\n    {record['question']}\n    {record['answer']}"
