"""The words that the rules know by what they are: nouns of places, roles, verbs of saying, and so on."""

import pathlib
import tomllib

_TABLE = tomllib.loads(pathlib.Path(__file__).with_name("lexicon.toml").read_text(encoding="utf-8"))
WORDS: dict[str, frozenset[str]] = {
    name: frozenset(text.split()) for name, text in _TABLE.items() if isinstance(text, str)
}
SYNONYMS: dict[str, tuple[str, ...]] = {verb: tuple(others) for verb, others in _TABLE["synonyms"].items()}
