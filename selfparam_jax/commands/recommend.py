"""Scores recommendations exactly as the LLM conversational-recommendation benchmark does.

    selfparam recommend score --replies=R.jsonl --records=test.jsonl --entities=entity2id.json --out=DIR
                              [--items=item_ids.json --strict] [--against=OTHER.jsonl] [--partial]

R.jsonl has a line per record: {"index", "prompt", "resp": {"choices": [{"message": {"content": "..."}}]}}, as the
benchmark's files have it, or {"index", "content"}. DIR gets the benchmark's CSV files, scores.md and health.json.
--strict adds columns in which the benchmark's known flaws are mended. --against compares with the replies of another
system to the same records: McNemar's exact test and a bootstrap over dialogues, in significance.json.

Example: selfparam recommend score --replies=R.jsonl --records=test.jsonl --entities=entity2id.json --out=scores
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from selfparam_jax.commands import command
from selfparam_jax.distributed import files
from selfparam_jax.evaluation.recommendation import (
    Scores,
    read_entities,
    read_items,
    read_turns,
    score_replies,
    summarize_rows,
)
from selfparam_jax.evaluation.replies import read_replies
from selfparam_jax.evaluation.significance import compare_rows
from selfparam_jax.reports.recommend import scores_markdown, variant_name, write_scores


def main(argv: Sequence[str] | None = None) -> None:
    """Scores a file of replies; ends the process with 1 for input that cannot be used.

    Args:
      argv: the arguments without the program's name; None means those of the process.
    """
    parser = command.make_parser("recommend", __doc__)
    verbs = parser.add_subparsers(dest="verb", metavar="score", required=True)
    score = verbs.add_parser(
        "score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, help="score replies"
    )
    score.add_argument("--replies", required=True, help="JSONL file of replies")
    score.add_argument("--records", required=True, help="JSONL file of turns, with rec and prev_entity")
    score.add_argument("--entities", required=True, help="JSON file {name: id}")
    score.add_argument("--items", help="JSON file with the ids of titles; needed by --strict")
    score.add_argument("--out", required=True, help="directory for the scores")
    score.add_argument("--strict", action="store_true", help="also score with the benchmark's flaws mended")
    score.add_argument("--against", help="JSONL file of another system's replies to the same records")
    score.add_argument("--partial", action="store_true", help="score only the records that have a reply")
    command.run(_score, parser.parse_args(sys.argv[1:] if argv is None else list(argv)))


def _score(arguments: argparse.Namespace) -> None:
    if arguments.strict and not arguments.items:
        raise ValueError("--strict needs --items, the ids of titles, as only these are candidates then")
    out = pathlib.Path(arguments.out)
    if problem := files.refuse_folder(out):
        raise ValueError(f"--out={problem}")
    entities = read_entities(arguments.entities)
    items = read_items(arguments.items, entities) if arguments.items else None
    turns = read_turns(arguments.records, entities)
    names = set(entities.values())

    def scored(path: str) -> Scores:
        return score_replies(read_replies(path), turns, names, items if arguments.strict else None, arguments.partial)

    scores = scored(arguments.replies)
    significance = None
    if arguments.against:
        other = scored(arguments.against)
        significance = {
            variant_name(*variant): compare_rows(other.rows[variant], rows, turns)
            for variant, rows in scores.rows.items()
        }
        if scores.strict:
            significance["strict"] = {
                variant_name(*variant): compare_rows(other.strict[variant], rows, turns)
                for variant, rows in scores.strict.items()
            }
    before = out / "significance.json"
    if not significance and before.exists() and (out / "health.json").exists():
        before.unlink()  # of other replies, which were scored into this folder before
    write_scores(scores, out)
    files.write_text(out / "scores.md", scores_markdown(scores))
    if significance:
        files.write_json(out / "significance.json", significance)
    _print(scores, significance, out)


def _print(scores: Scores, significance: dict | None, out: pathlib.Path) -> None:
    health = scores.health
    print(f"{health['replies']} replies, {health['lines']} lines, {health['tied']:.1%} of them tied")
    for variant, rows in scores.rows.items():
        summary = summarize_rows(rows)["recommendation"]
        name = variant_name(*variant)
        line = f"{name}: new titles, recall@1 {summary['recall@1'][0]:.4f}, recall@10 {summary['recall@10'][0]:.4f}"
        if significance:
            found = significance[name]["recommendation"]["recall@10"]
            if found["difference"] is not None:
                low, high = found["ci95"]
                line += f"; recall@10 {found['difference']:+.4f} against the other ({low:+.4f} to {high:+.4f}, "
                line += f"McNemar p {found['mcnemar']['p']:.3g})"
        print(line)
    print(f"scores: {out / 'scores.md'}")
