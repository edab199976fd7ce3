"""Questions about the headers of memos and e-mails: who sent one, to whom, when, and what it is about."""

import re
from collections.abc import Iterator

from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.composer import Draft, worded
from selfparam_jax.targets.grounded.lines import Mail
from selfparam_jax.targets.grounded.rendering import mark
from selfparam_jax.targets.grounded.tagging import tag_words
from selfparam_jax.targets.grounded.topics import Topic

_DAY = re.compile(
    r"\d{1,2}\.? [A-Z][a-z]+ \d{4}|[A-Z][a-z]+ \d{1,2}, \d{4}|\d{4}-\d\d-\d\d|\d{1,2}[./]\d{1,2}[./]\d{4}"
)
_LONGEST_ANSWER = 12  # words


def mail_drafts(mail: Mail, topic: Topic) -> Iterator[Draft]:
    """All questions about a header; those for one fact have the same `about`."""
    found = _DAY.search(mail.date)
    day = found[0] if found else ""
    on, to = f" on {day}" if day else "", f" to {mail.receiver}" if mail.receiver else ""
    if mail.subject:
        thing = mail_name(mail, topic)
        yield from _about_sender(mail, thing, to, on)
        yield from _about_day_and_receiver(mail, thing, to, day)
    if mail.subject and day and len(mail.subject.split()) <= _LONGEST_ANSWER:
        yield from worded(
            _small(mail.subject),
            "what",
            "mail subject",
            direct=f"What was the {mail.noun} about that {mail.sender} sent{to}{on}",
            named=f"What was the subject of the {mail.noun} that {mail.sender} sent{to}{on}",
        )
    if mail.role and len(mail.role.split()) <= 8:
        at = f" at {topic.name}" if topic.kind == "group" and topic.bare not in mail.role else ""
        yield from worded(
            mail.role,
            "what",
            "mail role",
            direct=f"What is the role of {mail.sender}{at}",
            named=f"What is {mail.sender}'s position{at}",
        )
        if at:
            yield Draft(mark(f"Who is the {mail.role}{at}"), mail.sender, "who", "direct", "mail person")


def mail_name(mail: Mail, topic: Topic) -> str:
    """What a question calls an e-mail: by its subject."""
    subject = mail.subject
    if topic.name and subject.lower() == topic.bare.lower():
        return f"the {mail.noun} about {topic.name}"
    first = next((word for word in tag_words(subject) if word.tag in ("NN", "NNS", "NNP", "VBG", "DT")), None)
    # "about boiler in flat 12" lacks an article; "about changes to expenses" does not.
    if first is None or first.tag == "NN":
        return f'the {mail.noun} with the subject "{subject}"'
    at = f" at {topic.name}" if topic.kind == "group" and topic.bare.lower() not in subject.lower() else ""
    return f"the {mail.noun} about {_small(subject)}{at}"


def _about_sender(mail: Mail, thing: str, to: str, on: str) -> Iterator[Draft]:
    """Who sent it. E-mails go to and fro: where the plain question has two answers, it is left out later."""
    yield from worded(
        mail.sender,
        "who",
        "mail sender",
        direct=f"Who sent {thing}",
        named=f"Who wrote {thing}{on}",
        synonym=f"Who sent {thing}{to}",
        passive=f"By whom was {thing} sent{to}{on}",
        indirect=f"Can you tell me who sent {thing}{to}{on}",
    )


def _about_day_and_receiver(mail: Mail, thing: str, to: str, day: str) -> Iterator[Draft]:
    if day:
        yield from worded(
            day,
            "when",
            "mail day",
            direct=f"When did {mail.sender} send {thing}{to}",
            named=f"On what date did {mail.sender} send {thing}{to}",
            passive=f"When was {thing} sent by {mail.sender}{to}",
        )
    if mail.to and len(mail.to.split()) <= _LONGEST_ANSWER and "@" not in mail.to:
        receiver = mail.receiver or mail.to[:1].lower() + mail.to[1:]
        on = f" on {day}" if day else ""
        yield from worded(
            receiver,
            "who",
            "mail receiver",
            direct=f"Who did {mail.sender} send {thing} to{on}",
            passive=f"To whom was {thing} sent by {mail.sender}{on}",
        )


def _small(subject: str) -> str:
    first = subject.split()[0]
    proper = first[1:] != first[1:].lower() or not w.is_known(first) or any(map(str.isdigit, first))
    following = subject.split()[1:2]
    named = bool(following) and following[0][:1].isupper()
    return subject if proper or named else subject[:1].lower() + subject[1:]
