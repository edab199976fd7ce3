"""What MkDocs fills in: settings from their dataclasses, commands from their --help, the measurements of benchmarks/.

A page says where with a mark, such as `<!-- settings -->` on a line of its own.
"""

import contextlib
import dataclasses
import importlib
import inspect
import io
import os
import pathlib
import re
import typing

from selfparam_jax.baselines.registry import RECOMMENDERS, SYSTEMS
from selfparam_jax.commands.cli import VERBS, usage
from selfparam_jax.data.prompts import FORMATS
from selfparam_jax.distributed.ranges import ranges_of
from selfparam_jax.jobs.settings import RENAMED, RENAMED_VALUES, Settings, fields_of
from selfparam_jax.models.registry import support_matrix

ROOT = pathlib.Path(__file__).resolve().parent.parent


def attributes(section: type) -> dict[str, str]:
    """The text about every attribute in the `Attributes:` section of a class's docstring, on one line each."""
    _, _, rest = inspect.getdoc(section).partition("\nAttributes:\n")
    found, names = {}, []
    for line in rest.splitlines():
        if line and not line.startswith(" "):  # the next section
            break
        if match := re.match(r"  (\w+(?:, \w+)*): (.*)", line):
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def describe_settings(section: type, prefix: str = "") -> dict[str, tuple[str, str, str]]:
    """Type, default and description of every setting of a class and of the classes in it, by dotted name.

    Raises:
      ValueError: the docstring does not describe one of the fields.
    """
    texts, types, found = {}, typing.get_type_hints(section), {}
    for each in reversed(section.__mro__):  # a class describes what it inherits, or leaves that to its base
        texts |= attributes(each) if dataclasses.is_dataclass(each) else {}
    for field in fields_of(section):
        if not texts.get(field.name):
            raise ValueError(f"{section.__name__}.{field.name} has no line under Attributes: in its docstring")
        kind, name = types[field.name], prefix + field.name
        if dataclasses.is_dataclass(kind):
            found |= describe_settings(kind, f"{name}.")
        else:
            called = "tuple of str" if typing.get_origin(kind) is tuple else kind.__name__
            _, within = ranges_of(section).get(field.name, (kind, None))
            called = within.words(kind) if within else called
            found[name] = called, repr(field.default), texts[field.name]
    return found


def settings_reference() -> str:
    """A table of all settings, a section of `Settings` each."""
    described, texts = describe_settings(Settings), attributes(Settings)
    sections = [field.name for field in fields_of(Settings) if dataclasses.is_dataclass(field.default)]
    blocks = [_table("## The job", "", {name: entry for name, entry in described.items() if "." not in name})]
    for section in sections:
        own = {name: entry for name, entry in described.items() if name.startswith(f"{section}.")}
        intro = texts[section]
        blocks.append(_table(f"## {section}", intro[0].upper() + intro[1:], own))
    return "\n\n".join(blocks)


def _table(heading: str, intro: str, entries: dict[str, tuple[str, str, str]]) -> str:
    lines = ["| setting | type | default | |", "| --- | --- | --- | --- |"]
    for name, (kind, default, text) in entries.items():
        lines.append(f"| `{name}`{{ #{name} }} | {kind} | `{default}` | {_cell(text)} |")
    return "\n\n".join(part for part in (heading, intro, "\n".join(lines)) if part)


def _cell(text: str) -> str:
    return text[0].upper() + text[1:].replace("|", "\\|")


def renamed_settings() -> str:
    """A table of the settings that had other names before."""
    lines = ["| before 0.2 | now |", "| --- | --- |"]
    lines += [f"| `{old}` | `{new}` |" for old, new in RENAMED.items()]
    lines += [f"| `{name}={old}` | `{name}={new}` |" for (name, old), new in RENAMED_VALUES.items()]
    return "\n".join(lines)


def help_of(verb: str) -> str:
    """What `selfparam VERB --help` prints."""
    main, written = importlib.import_module(f"selfparam_jax.commands.{verb}").main, io.StringIO()
    before, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "110"
    try:
        with contextlib.redirect_stdout(written), contextlib.suppress(SystemExit):
            main(["--help"])
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
    return written.getvalue().strip()


def command_reference() -> str:
    """The help of `selfparam` and of all its verbs."""
    blocks = [f"```text\n{usage()}\n```"]
    blocks += [f"## selfparam {verb}\n\n```text\n{help_of(verb)}\n```" for verb in VERBS]
    return "\n\n".join(blocks)


def systems() -> str:
    """A table of what answers questions, and one of what recommends titles."""
    tables = []
    for what, entries in (("answers questions", SYSTEMS), ("recommends titles", RECOMMENDERS)):
        lines = [f"| {what} | in reports | reads | role |", "| --- | --- | --- | --- |"]
        lines += [f"| `{e.name}` | {e.label} | {e.meaning} | {e.role} |" for e in entries.values()]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def families() -> str:
    """The support matrix: a table of the model families."""
    code = ("model_type", "HF class", "GGUF architecture")
    rows = [
        {name: f"`{text}`" if text and name in code else text for name, text in row.items()}
        for row in support_matrix()
    ]
    header = list(rows[0])
    lines = [f"| {' | '.join(header)} |", f"| {' | '.join('---' for _ in header)} |"]
    lines += [f"| {' | '.join(row.values())} |" for row in rows]
    return "\n".join(lines)


def formats() -> str:
    """A table of the prompt formats."""
    lines = ["| `prompt` | document | question | answer |", "| --- | --- | --- | --- |"]
    for entry in FORMATS.values():
        parts = (repr(part).strip("'") for part in (entry.context, entry.question, entry.answer))
        note = " (worked examples first)" if entry.examples else " (chat template)" if entry.chat else ""
        lines.append(f"| `{entry.name}`{note} | " + " | ".join(f"`{part}`" for part in parts) + " |")
    return "\n".join(lines)


def faults() -> str:
    """benchmarks/FAULTS.md, the table of `python -m benchmarks.faults`."""
    return (ROOT / "benchmarks/FAULTS.md").read_text()


def measurements() -> str:
    """benchmarks/RESULTS.md without its title, its links as seen from docs/."""
    _, _, text = (ROOT / "benchmarks/RESULTS.md").read_text().partition("\n")
    return text.replace("](../docs/", "](")


MARKS = {
    "<!-- settings -->": settings_reference,
    "<!-- renamed settings -->": renamed_settings,
    "<!-- commands -->": command_reference,
    "<!-- systems -->": systems,
    "<!-- families -->": families,
    "<!-- formats -->": formats,
    "<!-- measurements -->": measurements,
    "<!-- faults -->": faults,
}


def on_page_markdown(markdown: str, **_) -> str:
    """Puts what is made from the code in place of the marks of a page; MkDocs calls this."""
    for mark, make in MARKS.items():
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown
