"""Serves a job's models, or any model, to programs that speak OpenAI's protocol, and on a page for people.

    selfparam serve WORKDIR|MODEL [--port=8000] [--adapter=NAME=DIR ...]

One process answers as the base, as the injected model, as any choice of a ledger's entries and as every adapter:
`model` in a request is "base", "injected", "injected:DOCUMENT" (job `single`), "ledger:ID+ID" or NAME. The page is at
http://127.0.0.1:8000, the protocol below /v1. Answers are greedy where a request does not give a temperature.

Only this machine is answered. For others give --host and an API key, which is read from an environment variable.

Example: selfparam serve runs/batch
"""

import argparse
import functools
import os

from selfparam_jax.commands import command
from selfparam_jax.distributed.ranges import Range
from selfparam_jax.inference.engine import Engine
from selfparam_jax.inference.guard import import_serving, listen, make_server
from selfparam_jax.inference.openai_requests import Limits
from selfparam_jax.inference.server import Service, make_app
from selfparam_jax.jobs.page import add_page
from selfparam_jax.jobs.served import ADAPTERS, MOST_ADAPTERS, ServedModels, open_source

PORT, TOKENS, ROWS, WAITING, HELD = (
    Range(0, 65535), Range(1, 2**20), Range(1, 4096), Range(0, 2**20), Range(0, 4096)
)  # fmt: skip


def add_source(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which models there are."""
    parser.add_argument(
        "source", metavar="WORKDIR|MODEL", help="a job's work directory, or a model as --config.model"
    )
    parser.add_argument(
        "--adapter", action="append", default=[], metavar="NAME=DIR",
        help="an adapter in PEFT's layout, or one that was composed from a ledger; may be given several times",
    )  # fmt: skip
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of MODEL")
    command.add_unfinished(parser)


def main(argv: list[str] | None = None) -> None:
    """Serves until Ctrl-C; ends the process with 1 for input that cannot be used."""
    parser = command.make_parser("serve", __doc__)
    add_source(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=command.Number(int, PORT), default=8000, help="0 takes a free one (default: 8000)"
    )
    parser.add_argument(
        "--key_variable", default="", help="environment variable with the API key; needed for any other --host"
    )
    tokens, rows, waiting, held = (command.Number(int, each) for each in (TOKENS, ROWS, WAITING, HELD))
    parser.add_argument("--max_tokens", type=tokens, default=Limits.new_tokens, help="of one answer (default: 1024)")
    parser.add_argument("--max_rows", type=rows, default=8, help="answers made at the same time (default: 8)")
    parser.add_argument("--max_waiting", type=waiting, default=64, help="answers that may wait (default: 64)")
    parser.add_argument(
        "--max_held", type=held, default=4,
        help="prompts whose keys and values are kept, so that the next question about a document does not read it "
        "again; 0 keeps none (default: 4)",
    )  # fmt: skip
    parser.add_argument(
        "--max_adapters", type=command.Number(int, MOST_ADAPTERS), default=ADAPTERS,
        help="adapters that stay in memory besides the base; others are read again when they are asked for "
        f"(default: {ADAPTERS})",
    )  # fmt: skip
    command.run(_serve, parser.parse_args(argv))


def read_key(variable: str) -> str | None:
    """The API key in an environment variable; None if no variable is named.

    Raises:
      ValueError: the variable is not set, or empty.
    """
    if not variable:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"--key_variable={variable}: this environment variable is not set; put the API key into it")
    return key


def _serve(arguments: argparse.Namespace) -> None:
    import_serving()  # before a model is loaded
    key, limits = read_key(arguments.key_variable), Limits(new_tokens=arguments.max_tokens)
    with listen(arguments.host, arguments.port, key) as bound:
        opened = open_source(arguments.source, arguments.dtype, arguments.unfinished)
        models = ServedModels(opened, arguments.adapter, arguments.max_adapters)
        with Engine(arguments.max_rows, arguments.max_waiting, arguments.max_held) as engine:
            service = Service(engine, models, limits)
            app = make_app(service, key, functools.partial(add_page, service=service, models=models))
            host, port = bound.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            bound.listen()  # who reads the address may ask at once, and waits until the server takes it
            print(f"models: {', '.join(models.names())}")
            print(f"page:   http://{shown}:{port}\nAPI:    http://{shown}:{port}/v1\nCtrl-C ends it", flush=True)
            try:
                make_server(app).run(sockets=[bound])
            except KeyboardInterrupt:
                raise KeyboardInterrupt("the server has ended") from None
