"""The page at `/` of a server, and what it reads: documents, held-out questions with scores, written pairs, a ledger.

Documents are named by their number in a request, models by their names; no request names a file.
"""

import asyncio
import base64
import dataclasses
import hashlib
import pathlib
import re
from typing import Any

from selfparam_jax.data.documents import Document
from selfparam_jax.data.passages import Passage
from selfparam_jax.data.prompts import FORMATS
from selfparam_jax.distributed import files
from selfparam_jax.evaluation.questions import SHORT_TOKENS
from selfparam_jax.inference.openai_requests import ApiError, parse_body, read_wanted, refuse
from selfparam_jax.inference.replies import Asked
from selfparam_jax.inference.server import COMPLETION, Service
from selfparam_jax.jobs.inputs import Job
from selfparam_jax.jobs.served import Opened, ServedModels, ask_ids
from selfparam_jax.targets.filter_pairs import reasons
from selfparam_jax.targets.write_pairs import read_written, written_about

PAGE = pathlib.Path(__file__).with_name("page.html")


def page_policy(page: str) -> str:
    """The Content-Security-Policy of the page: its own script and styles, this server, and nothing else."""

    def hashes(tag: str) -> str:
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def title_of(document: Document) -> str:
    """What the page calls a document, or a passage of one."""
    if not isinstance(document, Passage):
        return document.title or document.id
    return f"{document.source_title or document.source}: {document.title or document.id}"


def describe_run(models: ServedModels) -> dict:
    """What the page shows first: models, systems with scores, documents by number, and the ledger's entries."""
    opened = models.opened
    results = _results(opened)
    f1 = {}
    for row in results.get("per_context", []):
        f1 |= {each["id"]: each for each in (row, *row.get("passages", ()))}
    systems = results.get("systems", [])
    active = {entry.id for entry in opened.ledger.active()} if opened.ledger else set()
    return {
        "model": opened.model.name,
        "job": opened.job.settings.job if opened.job else None,
        "prompt": opened.prompt.format.name,
        "chat": models.texts.converse is not None,
        "document_turn": FORMATS["chat"].context,
        "models": models.names(),
        "systems": systems,
        "scores": results.get("scores", {}),
        "documents": [
            {
                "number": number,
                "id": document.id,
                "title": title_of(document),
                "questions": len(document.questions),
                "injected": models.injected_name(document),
                "f1": {each["name"]: f1.get(document.id, {}).get(each["name"]) for each in systems},
            }
            for number, document in enumerate(opened.documents)
        ],
        "ledger": [
            {"id": entry.id, "number": entry.number, "name": entry.name, "active": entry.id in active}
            for entry in models.entries()
        ],
    }


def describe_document(opened: Opened, document: Document) -> dict:
    """A document's text, its held-out questions with every system's answer and F1, and its pairs.

    Raises:
      ValueError: pairs were written, and the package that says which are used is not installed.
    """
    results = _results(opened)
    names = [each["name"] for each in results.get("systems", [])]
    known = {}
    if names:
        for record in files.read_lines(opened.job.workdir / "predictions.jsonl"):
            known[record.get("passage", record["context"]), record["question"]] = record

    def answers(question: str) -> dict:
        record = known.get((document.id, question), {})
        return {
            name: {"answer": record[name]["answer"], "f1": record[name]["f1"]} for name in names if name in record
        }

    return {
        "id": document.id,
        "title": title_of(document),
        "text": document.text,
        "questions": [
            {"question": each.question, "answers": list(each.answers), "systems": answers(each.question)}
            for each in document.questions
        ],
        "pairs": [{**dataclasses.asdict(pair), "state": "given"} for pair in document.qa_pairs]
        + (_written_pairs(opened.job, document) if opened.job else []),
    }


def _results(opened: Opened) -> dict:
    """The content of results.json; {} where there is none yet, or none with questions to documents."""
    path = opened.job.workdir / "results.json" if opened.job else None
    found = files.read_json(path) if path and path.exists() else {}
    return found if found.get("job") in ("batch", "single", "sequential") else {}


def _written_pairs(job: Job, document: Document) -> list[dict]:
    """Pairs that a model wrote, and whether each was used."""
    path = job.workdir / "pairs.jsonl"
    if not path.exists():
        return []
    written = written_about(document, read_written(path))
    found = reasons(written, document.qa_pairs, job.recipe.generator)
    return [
        {"question": record["question"], "answer": record["answer"], "state": reason}
        for record, reason in zip(written, found, strict=True)
    ]


def add_page(app: Any, service: Service, models: ServedModels) -> None:
    """Adds the page and its routes to a FastAPI app (`make_app`'s `extend`)."""
    import fastapi
    from starlette.responses import HTMLResponse

    opened = models.opened
    page = PAGE.read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": page_policy(page),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }

    def document_of(number: Any) -> Document:
        if type(number) is not int or not 0 <= number < len(opened.documents):
            raise ApiError(404, f"there is no document {number!r:.40}", "document", "document_not_found")
        return opened.documents[number]

    @app.get("/")
    async def show_page():
        return HTMLResponse(page, headers=headers)

    @app.get("/api/run")
    async def show_run():
        return await asyncio.to_thread(describe_run, models)

    @app.get("/api/documents/{number}")
    async def show_document(number: str):
        document = document_of(int(number) if number.isascii() and number.isdigit() and len(number) < 10 else number)
        try:
            return await asyncio.to_thread(describe_document, opened, document)
        except ValueError as error:
            raise ApiError(500, str(error)) from error

    @app.post("/api/ask")
    async def ask(request: fastapi.Request):
        """A question in the job's prompt format, answered briefly, as the job's evaluation does."""
        body = parse_body(await request.body())
        wanted = read_wanted(body, ("question", "document"), service.limits)
        question, number = body.get("question"), body.get("document")
        if not isinstance(question, str) or not question.strip():
            raise refuse("question", "'question' is missing or empty; send a text")
        document = None if number is None else document_of(number)
        variant, prompt = await service.find(wanted.model, question), opened.prompt
        if wanted.new_tokens is None:
            wanted = dataclasses.replace(wanted, new_tokens=min(SHORT_TOKENS, service.limits.new_tokens))
        stop = ("\n", *wanted.stop, *models.texts.end_texts)
        asked = Asked(variant, (ask_ids(prompt, question, document),), wanted, prompt.stop_ids, stop, strip=True)
        return await service.answer(request, asked, COMPLETION)
