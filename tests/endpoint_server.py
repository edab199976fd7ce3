"""An OpenAI-compatible server for tests, as a process of its own: `python tests/endpoint_server.py [--model]`.

It prints its port. POST /script replaces what it does (see Script), GET /state says what has happened since.
With --model its answers are decoded by the program itself, from a model whose weights say which word follows which.
"""

import http.client
import http.server
import json
import os
import pathlib
import random
import subprocess
import sys
import threading
import time

TESTS = pathlib.Path(__file__).parent


class Running:
    """The process, and what it is told and asked about itself."""

    def __init__(self, *arguments):
        paths = [str(TESTS), str(TESTS.parent)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
        self.process = subprocess.Popen(
            [sys.executable, str(TESTS / "endpoint_server.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def _call(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)  # knows no proxies
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def script(self, **script):
        self._call("POST", "/script", script)

    def state(self):
        return self._call("GET", "/state")

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Script:
    """What the server does.

    delay: seconds before each answer.
    faults: one per request in the order of arrival, null for none; see `Handler._fail`.
    body: fields that replace those of every answer's body; `text` the text of every reply.
    usage: tokens that every answer reports; null leaves the field out.
    """

    def __init__(self, delay=0.0, faults=(), body=None, text=None, usage=(10, 5)):
        self.delay, self.faults, self.body, self.text, self.usage = delay, list(faults), body or {}, text, usage
        self.lock = threading.Lock()
        self.now = 0
        self.state = {"asked": 0, "answered": [], "most_at_once": 0, "keys": []}


def text_for(request):
    """A question and an answer that follow from the messages, the seed and nothing else."""
    draw = random.Random(json.dumps([request["messages"], request.get("seed")]))
    words = " ".join(draw.sample("abcdefghijklmnopqrstuvwxyz", 5))
    return f"Question: What about {words}?\nAnswer: 1742", "stop"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        script = self.server.script
        with script.lock:
            content = json.dumps(script.state)
        self._send(200, content)

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/script":
            self.server.script = Script(**request)
            return self._send(200, "{}")
        script = self.server.script
        with script.lock:
            script.now += 1
            script.state["asked"] += 1
            script.state["most_at_once"] = max(script.now, script.state["most_at_once"])
            script.state["keys"].append(self.headers["Authorization"])
            fault = script.faults.pop(0) if script.faults else None
        time.sleep(script.delay)
        with script.lock:  # before the answer: a client that has it may send the next request at once
            script.now -= 1
        if fault:
            self._fail(fault, request)
        else:
            self._answer(script, request)

    def _answer(self, script, request):
        text, finish = self.server.reply(request)
        body = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text if script.text is None else script.text},
                    "finish_reason": finish,
                }
            ],
        }
        if script.usage:
            prompt, completion = script.usage
            body["usage"] = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": 0}
        with script.lock:  # before the client has it, so that no answer is missed in the count
            script.state["answered"].append(request)
        self._send(200, json.dumps({**body, **script.body}))

    def _fail(self, fault, request):
        kind = fault["kind"]
        time.sleep(fault.get("seconds", 0))
        if kind == "slow":
            self._answer(self.server.script, request)
        elif kind == "hang":
            self.close_connection = True
        elif kind == "drop":  # in the middle of the body
            self._send(200, '{"choices": [{"mess', length=1000)
            self.close_connection = True
        elif kind == "drip":  # these: a little now and then, for as long as somebody listens
            self._send(fault.get("status", 200), "", length=1 << 20)
            self._drip(b" ")
        elif kind == "drip headers":
            self.wfile.write(b"HTTP/1.1 %d OK\r\nX-Padding: " % fault.get("status", 200))
            self._drip(b"x")
        elif kind == "drip interim":
            self._drip(b"HTTP/1.1 102 Processing\r\n\r\n")
        else:
            self._send(fault.get("status", 200), fault.get("content", "{}"), headers=fault.get("headers", {}))

    def _drip(self, data):
        while True:
            self.wfile.write(data)
            time.sleep(0.02)

    def _send(self, status, content, length=None, headers=()):
        data = content.encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **dict(headers)}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length or len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.reply = Script(), reply

    def handle_error(self, request, client_address):
        """A client that was killed, or has waited long enough, is expected."""


QUESTIONS = ("Question: Who built the mill?", "Question: Whose work is the mill at Orrin?", "Question: Built by?")
ANSWER, NAME = "\nAnswer: ", "Ana Bell"
CHAT = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def chain_model():
    """A LocalWriter for (temperature, top_p, tokens), over a model that knows pairs of tokens and nothing else.

    Attention and feed-forward give nothing, so a state is the embedding of the last token, and the head's row of a
    token is the embedding of the one before it. After the prompt three questions are equally likely.
    """
    import jax
    import numpy as np
    import tiny

    from selfparam_jax.models.decoder import Decoder, param_shapes
    from selfparam_jax.models.registry import model_config_from_hf
    from selfparam_jax.targets.config import GeneratorConfig
    from selfparam_jax.targets.writers import LocalWriter

    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.add_tokens([*QUESTIONS, ANSWER, NAME])
    hf_config = tiny.hf_config("gqa", max_position_embeddings=1024, vocab_size=288)
    config = model_config_from_hf(hf_config)
    embedding = np.random.default_rng(0).standard_normal((288, config.hidden_size)).astype(np.float32)
    head = np.zeros_like(embedding)
    ids = tokenizer.get_vocab()
    last = tokenizer("assistant:", add_special_tokens=False)["input_ids"][-1]
    questions = [ids[question] for question in QUESTIONS]
    head[questions] = embedding[last]
    head[ids[ANSWER]] = embedding[questions].sum(0)
    head[ids[NAME]] = embedding[ids[ANSWER]]
    head[tokenizer.eos_token_id] = embedding[ids[NAME]]

    def leaf(path, shape):
        names = [part.key for part in path]
        if "lm_head" in names:
            return head
        if "embed_tokens" in names:
            return embedding
        return np.full(shape.shape, 0.0 if names[-2] in ("o_proj", "down_proj") else 1.0, np.float32)

    params = jax.tree_util.tree_map_with_path(leaf, param_shapes(config))

    def writer(temperature, top_p, tokens):
        settings = GeneratorConfig(
            generator="local", form="chat", temperature=temperature, top_p=top_p, reply_tokens=tokens
        )
        return LocalWriter("chain", Decoder(config), params, tokenizer, settings)

    return writer


def model_reply(writer):
    """A function request -> (text, finish_reason) that decodes one request at a time."""
    lock = threading.Lock()

    def reply(request):
        with lock:
            made = writer(request["temperature"], request["top_p"], request["max_tokens"]).write(
                [request["messages"][0]["content"]], [1], request["seed"]
            )
        return made[0][0].text, "stop" if made[0][0].complete else "length"

    return reply


def main():
    server = Server(model_reply(chain_model()) if "--model" in sys.argv else text_for)
    print(server.server_port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # ends when the tests do, however they end


if __name__ == "__main__":
    main()
