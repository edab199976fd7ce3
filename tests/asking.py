"""What the rules ask about a text."""

from selfparam_jax.data.documents import Document
from selfparam_jax.targets.grounded.facts import find_facts


def asked(text, title=""):
    """All questions about a text, with their answers."""
    return {(d.question, d.answer) for fact in find_facts(Document(text, title=title)).facts for d in fact.drafts}
