"""The audit of the locked packages: what is not locked, and what a service of advisories says."""

import http.server
import importlib.util
import json
import threading
from pathlib import Path

import pytest

PLACE = Path(__file__).parents[2] / "constraints"
spec = importlib.util.spec_from_file_location("audit", PLACE / "audit.py")
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)


def test_the_locks_are_exact():
    locks = [audit.read_lock(path) for path in sorted(PLACE.glob("*.txt"))]
    assert len(locks) == 3 and all(lock["jax"] and len(lock) > 100 for lock in locks)


@pytest.mark.parametrize("line", ["jax>=0.9", "jax", "jax==0.9.*", "jax @ file:///x", "-e .", "JAX==1\njax==1"])
def test_a_lock_that_is_not_exact_is_refused(tmp_path, line):
    (tmp_path / "lock.txt").write_text(f"# made by a tool\n{line}\n")
    with pytest.raises(ValueError, match=r"lock.txt, line [23]: .*; run constraints/update.sh"):
        audit.read_lock(tmp_path / "lock.txt")


def test_what_is_not_locked_is_listed(monkeypatch, capsys):
    here = {"a-b": "1.0", "c": "2", "d": "3"}
    assert audit.unlocked(here, {"a-b": "1.0", "c": "1"}) == [
        "c 2 is installed, the lock has 1", "d 3 is installed, the lock has none",
    ]  # fmt: skip
    found = audit.installed()
    assert "selfparam-jax" not in found and found["jax"] and not any("+" in version for version in found.values())
    monkeypatch.setattr(audit, "installed", lambda: here)
    monkeypatch.setattr(audit, "advisories", lambda _: ["c 2: X-1"])
    assert audit.main() == 1 and "0 of 3 installed packages are" in capsys.readouterr().out


@pytest.fixture
def service():
    """A function: the address of a service that answers like this; what it was asked is in `asked`."""
    servers, asked = [], []

    def serve(answer):
        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(self):
                asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

        servers.append(http.server.HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/v1/querybatch"

    serve.asked = asked
    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_advisories_belong_to_their_packages(service):
    address = service({"results": [{}, {"vulns": [{"id": "GHSA-1", "modified": "x"}, {"id": "PYSEC-2"}]}]})
    assert audit.advisories({"b": "2", "a": "1"}, address) == [
        "b 2: GHSA-1, PYSEC-2 (https://osv.dev/vulnerability/GHSA-1)"
    ]
    assert service.asked == [
        {"queries": [{"package": {"name": name, "ecosystem": "PyPI"}, "version": version}
                     for name, version in (("a", "1"), ("b", "2"))]}
    ]  # fmt: skip


@pytest.mark.parametrize(
    "answer", [{"results": [{}]}, {}, [], {"results": [7, {}]}, {"results": [{"vulns": [1]}, {}]}]
)
def test_another_answer_is_no_audit(service, answer):
    with pytest.raises(OSError, match=r"not an answer of this service|got 1 results for 2 packages"):
        audit.advisories({"a": "1", "b": "2"}, service(answer))


def test_a_service_that_is_not_there_is_told(monkeypatch, capsys):
    lock = audit.read_lock(PLACE / "python{}.{}.txt".format(*audit.sys.version_info))
    monkeypatch.setattr(audit, "installed", lambda: {"jax": lock["jax"]})
    asked = audit.advisories
    monkeypatch.setattr(audit, "advisories", lambda here: asked(here, "http://127.0.0.1:9/"))
    assert audit.main() == 0
    said = capsys.readouterr().out
    assert "1 of 1 installed packages are those of" in said
    assert "WARNING: known holes were not looked for" in said and "0 of 1 packages have" not in said
