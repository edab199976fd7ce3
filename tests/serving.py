"""A real uvicorn in a thread, on a free port, for tests of the server and of its page."""

import contextlib
import threading
import time

from selfparam_jax.inference.engine import Engine
from selfparam_jax.inference.guard import listen, make_server
from selfparam_jax.inference.openai_requests import Limits
from selfparam_jax.inference.server import Service, make_app


@contextlib.contextmanager
def serving(catalogue, key=None, limits=None, extend=None, **options):
    """The address of a server that answers as a catalogue's models; `options` are the engine's."""
    with Engine(**options) as engine, listen("127.0.0.1", 0, key) as bound:
        service = Service(engine, catalogue, limits or Limits())
        server = make_server(make_app(service, key, extend and (lambda app: extend(app, service))))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
