"""What a server and a chat answer as: work directories, ledgers, adapters; and the page."""

import dataclasses
import io
import json
import shutil
import sys
import types
import urllib.error
import urllib.request

import jax
import numpy as np
import pytest
from extras import need, require
from serving import serving

from selfparam_jax.baselines.registry import SYSTEMS
from selfparam_jax.checkpoints import peft
from selfparam_jax.commands import chat
from selfparam_jax.data.documents import Document, QAPair, Question
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed import files
from selfparam_jax.evaluation import questions
from selfparam_jax.inference import batches, decoding
from selfparam_jax.jobs import served
from selfparam_jax.jobs.ask import ask
from selfparam_jax.jobs.inputs import prepare
from selfparam_jax.jobs.page import add_page, describe_document, describe_run
from selfparam_jax.jobs.served import Opened, ServedModels, open_source
from selfparam_jax.jobs.single import injection_directory
from selfparam_jax.models.lora import LoraConfig, init_lora
from selfparam_jax.sequential.ledger import Ledger, write_composed
from selfparam_jax.training.checkpoints import Checkpoints
from selfparam_jax.training.recipe import Recipe

need("fastapi")


@pytest.fixture(scope="module", autouse=True)
def layers_stacked():
    """Programs with the layers apart take longest to compile."""
    patch = pytest.MonkeyPatch()
    for module in (batches, decoding):
        patch.setattr(module, "copies_slices", lambda: False)
    yield
    patch.undo()


def random_lora(model, seed, rank=2, target_modules=("q_proj", "up_proj"), **_):
    config = LoraConfig(rank=rank, target_modules=target_modules)
    shapes = jax.eval_shape(lambda: init_lora(jax.random.key(0), model.params, config))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32) * np.float32(0.5), shapes)


@pytest.fixture(scope="module")
def ledger(tiny_model, tmp_path_factory):
    """A ledger of three injections, the second undone."""
    made = Ledger.open(tmp_path_factory.mktemp("ledger"), tiny_model.fingerprint)
    entries = [made.append(f"doc-{n}", f"{n}", "", {}, random_lora(tiny_model, n), 1.0 / n) for n in (1, 2, 3)]
    made.undo(entries[1].id)
    return made


DOCUMENTS = [
    Document(
        "Ava lies on the Om.", "Ava", "doc-1", (Question("Where is Ava?", ("Om",)),), (QAPair("Which river?", "Om"),)
    ),
    Document("Bor </script> lies <b>on</b> the Nil.", id="doc-2"),
]


@pytest.fixture(scope="module")
def opened(tiny_model, ledger):
    prompt = Prompt("plain", tiny_model.tokenizer)
    return Opened(tiny_model, prompt, DOCUMENTS, ledger.directory.parent, None, ledger)


@pytest.fixture(scope="module")
def models(opened, ledger, tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    peft.save_adapter(random_lora(tiny_model, 9), 2.0, tiny_model, folder / "peft")
    first, _, third = (entry.id for entry in ledger.entries())
    write_composed(folder / "composed", ledger, [first, third])
    return ServedModels(opened, [f"mine={folder / 'peft'}", f"both={folder / 'composed'}"])


def deltas(*adapters):
    """What (adapter, scale)s add to each kernel, together."""
    found = {}
    for lora, scale in adapters:
        for block, projections in lora["layers"].items():
            for name, pair in projections.items():
                a, b = (np.asarray(pair[part], np.float64) for part in "ab")
                found[block, name] = found.get((block, name), 0) + scale * a @ b
    return found


def added(variant):
    """What a variant adds to the base's kernels."""
    return deltas((variant.variables["lora"], variant.decoder.lora_scale))


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], atol=1e-5)


def test_one_process_answers_as_every_choice_of_a_ledger(models, ledger, tiny_model):
    ids = [entry.id for entry in ledger.entries()]
    assert models.names() == ["base", "injected", *(f"ledger:{id}" for id in ids), "mine", "both"]
    wanted = {"injected": [ids[0], ids[2]], "both": [ids[0], ids[2]]} | {f"ledger:{id}": [id] for id in ids}
    for name, chosen in (wanted | {f"ledger:{ids[1][:6]}+{ids[0][:6]}": ids[:2]}).items():
        assert_same(added(models.find(name)), deltas(*ledger.adapters(chosen)))
    assert_same(added(models.find("mine")), deltas((random_lora(tiny_model, 9), 2.0)))
    assert set(models.find("base").variables) == {"params"}
    shapes = {str(jax.tree.map(np.shape, models.find(name).variables)) for name in wanted if name != "both"}
    assert len(shapes) == 1  # so one program serves all choices
    assert models.find("injected") is models.find(f"ledger:{ids[2]}+{ids[0]}")


def test_choices_and_adapters_share_the_memory(opened, ledger, tiny_model, tmp_path):
    """What was given is read again, but only as it was given."""
    peft.save_adapter(random_lora(tiny_model, 9), 2.0, tiny_model, tmp_path / "peft")
    few = ServedModels(opened, [f"mine={tmp_path / 'peft'}"], most_adapters=1)
    mine, (id, *_) = few.find("mine"), (f"ledger:{entry.id}" for entry in ledger.entries())
    assert few.find("mine") is mine
    assert few.find(id) is few.find(id) and few.find("mine") is not mine
    assert_same(added(few.find("mine")), added(mine))
    few.find(id)
    shutil.rmtree(tmp_path / "peft")
    peft.save_adapter(random_lora(tiny_model, 8), 2.0, tiny_model, tmp_path / "peft")
    with pytest.raises(ValueError, match="has changed since it was given as 'mine'; start the server again"):
        few.find("mine")


def test_an_undo_meanwhile_is_seen(opened, tiny_model, ledger, tmp_path):
    shutil.copytree(ledger.directory, tmp_path / "ledger")
    copy = Ledger.open(tmp_path / "ledger")
    served = ServedModels(Opened(tiny_model, opened.prompt, DOCUMENTS, tmp_path, None, copy))
    first, _, third = (entry.id for entry in copy.entries())
    copy.undo(first)
    assert served.find("injected") is served.find(f"ledger:{third}")
    copy.undo(third)
    assert served.find("injected") is served.find("base")


@pytest.mark.parametrize(
    "name, message",
    [
        ("bse", "did you mean 'base'"),
        ("/etc/passwd", "there is no model '/etc/passwd'; expected one of base, injected"),
        ("ledger:../../x", "expected an entry's id"),
        ("ledger:", "there is no model"),
    ],
)
def test_names_that_mean_nothing(models, name, message):
    with pytest.raises(ValueError, match=message):
        models.find(name)


def test_adapters_that_cannot_be_served(opened, tmp_path):
    for given, message in (
        ("mine", "expected NAME=DIR"),
        (f"base={tmp_path}", "the name 'base' is taken"),
        (f"mine={tmp_path}", "is no adapter"),
    ):
        with pytest.raises(ValueError, match=message):
            ServedModels(opened, [given])


# --- a work directory ---------------------------------------------------------------------------------


@pytest.fixture
def workdir(config, tmp_path):
    """What a job leaves, with a random adapter in place of a trained one."""
    job = prepare(config, tmp_path / "run")
    record = files.read_json(job.workdir / "config.json")
    record["config"]["mesh"]["data"] = 1  # of eight: one device answers, which compiles in less time
    files.write_json(job.workdir / "config.json", record)
    with Checkpoints(job.workdir / "checkpoints") as checkpoints:
        lora = random_lora(job.model, 5, **dataclasses.asdict(job.recipe.lora))
        checkpoints.save(2, lora, {"step": np.int32(2)}, {"steps": 2})
    names = ("base_q", "injected", "base_cq")
    given = {name: [[{"answer": "x", "f1": 0.5}]] * 3 for name in names}
    files.write_lines(job.workdir / "predictions.jsonl", questions.predictions(job.documents, given))
    systems = [SYSTEMS[name].record() for name in names]
    per_context = [{"id": "doc-1", "title": "Bor", "base_q": 0.5, "base_cq": 0.5, "injected": 0.5}]
    results = {"job": "batch", "systems": systems, "scores": {}, "per_context": per_context}
    files.write_json(job.workdir / "results.json", results)
    return job.workdir


def test_a_work_directory_is_served_and_talked_to(workdir, monkeypatch, capsys):
    """The answers are those of `selfparam ask`."""
    models = ServedModels(open_source(str(workdir)))
    assert models.names() == ["base", "injected"]
    run, document = describe_run(models), describe_document(models.opened, models.opened.documents[1])
    assert [each["name"] for each in run["systems"]] == ["base_q", "injected", "base_cq"]
    assert run["documents"][1]["injected"] == "injected" and run["documents"][1]["title"] == "Bor"
    assert run["documents"][1]["f1"] == {"base_q": 0.5, "base_cq": 0.5, "injected": 0.5}
    assert document["text"] == "Bor lies on the Nil. It was founded by Re Mo."
    (question,) = document["questions"]
    assert question["question"] == "Who founded Bor?" and question["answers"] == ["Re Mo"]
    assert question["systems"]["base_cq"] == {"answer": "x", "f1": 0.5}
    assert document["pairs"][0] == {"question": "Which river runs by Bor?", "answer": "Nil", "state": "given"}

    expected = ask(workdir, ["Who founded Bor?"], "doc-1", "reading")[0]
    with serving(models, extend=lambda app, service: add_page(app, service, models)) as url:
        for name, number, system in (
            ("base", None, "base_q"),
            ("base", 1, "base_cq"),
            ("injected", None, "injected"),
        ):
            body = {"model": name, "question": "Who founded Bor?", "document": number}
            assert post(f"{url}/api/ask", body)[1]["choices"][0]["text"] == expected[system], system
    assert len({expected[name] for name in ("base_q", "base_cq", "injected")}) == 3

    lines = ["/models", "/document doc-1", "Who?", "/model base", "/nothing", "/quit", "never read"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    with pytest.raises(SystemExit) as end:  # a line that could not be answered, and nobody at a terminal
        chat.main([str(workdir), "--max_tokens=5"])
    assert end.value.code == 1
    out, err = capsys.readouterr()
    printed = out.split("\n")
    assert printed[0].endswith(": injected answers. /help lists the commands.")
    assert printed[1:4] == ["base", "injected", "before the conversation: Bor"] and "base answers" in printed
    assert "error: there is no command /nothing; /help lists them" in err
    assert err.endswith("error: 1 line of standard input could not be answered; see above\n")


def test_a_directory_that_is_moved_while_it_is_served(workdir, ledger, opened, tmp_path):
    """Models in memory keep answering; for the others the error says that their files are gone."""
    models = ServedModels(open_source(str(workdir)))
    workdir.rename(tmp_path / "moved")
    assert models.names() == ["base", "injected"] and models.find("injected") is models.find("injected")
    assert describe_run(models)["scores"] == {}
    shutil.copytree(ledger.directory, tmp_path / "ledger")
    copy = Ledger.open(tmp_path / "ledger")
    chosen = ServedModels(dataclasses.replace(opened, directory=tmp_path, ledger=copy))
    with serving(chosen, extend=lambda app, service: add_page(app, service, chosen)) as url:
        (tmp_path / "ledger").rename(tmp_path / "gone")
        for path, body in (("/v1/models", None), ("/api/ask", {"model": "injected", "question": "Who?"})):
            status, answer = post(f"{url}{path}", body)
            assert status == 503 and answer["error"]["code"] == "files_not_there"
            assert answer["error"]["message"].startswith(
                "what this server answers from can no longer be read (No such"
            )
            assert str(tmp_path / "ledger") in answer["error"]["message"]
        (tmp_path / "gone").rename(tmp_path / "ledger")
        assert post(f"{url}/v1/models")[0] == 200, "once it is back, it is served again"


@pytest.fixture
def single(config, tmp_path):
    """What a job `single` leaves that was stopped before its second document was finished."""
    config.job = "single"
    job = prepare(config, tmp_path / "run")
    record = files.read_json(job.workdir / "config.json")
    record["config"]["mesh"]["data"] = 1
    files.write_json(job.workdir / "config.json", record)
    for place in range(3):
        directory = injection_directory(job.workdir, place)
        with Checkpoints(directory / "checkpoints") as checkpoints:
            lora = random_lora(job.model, place, **dataclasses.asdict(job.recipe.lora))
            checkpoints.save(2, lora, {"step": np.int32(2)}, {"steps": 2})
        if place != 1:
            files.write_json(directory / "injected.json", {})
    return job


def test_a_model_for_each_document(single, monkeypatch, capsys):
    workdir, scale = single.workdir, single.recipe.lora.scale
    models = ServedModels(open_source(str(workdir)))
    assert models.names() == ["base", "bank", "injected:doc-0", "injected:doc-2"]
    # The bank answers as the model of the document that a text matches, if it is there and any does.
    for text, name in (
        ("Who founded Cy?", "injected:doc-2"),
        ("What lies on the Om?", "injected:doc-0"),
        ("Hm", "base"),
    ):
        assert models.find("bank", text) is models.find(name)
    assert models.find("bank", "Bor") is models.find("base"), "its document is not finished"
    for place in (0, 2):
        lora = random_lora(single.model, place, **dataclasses.asdict(single.recipe.lora))
        assert_same(added(models.find(f"injected:doc-{place}")), deltas((lora, scale)))
    for name in ("injected:doc-1", "injected"):
        with pytest.raises(ValueError, match=f"there is no model '{name}'; did you mean 'injected:doc-"):
            models.find(name)
    shown = [each["injected"] for each in describe_run(models)["documents"]]
    assert shown == ["injected:doc-0", None, "injected:doc-2"]

    one = ServedModels(open_source(str(workdir / "contexts" / "002")))
    assert one.names() == ["base", "injected:doc-2"] and [each.id for each in one.opened.documents] == ["doc-2"]
    with pytest.raises(ValueError, match=r"contexts/009 is no injection of this job; it has 000, 001, 002 in"):
        open_source(str(workdir / "contexts" / "009"))
    with pytest.raises(ValueError, match="no finished injection"):
        ServedModels(open_source(str(workdir / "contexts" / "001")))

    expected = ask(workdir, ["Who founded Cy?"], "doc-2", "reading")[0]["injected"]
    with serving(models, extend=lambda app, service: add_page(app, service, models)) as url:
        asked = {"question": "Who founded Cy?", "document": None}
        found = [post(f"{url}/api/ask", asked | {"model": f"injected:doc-{n}"})[1] for n in (0, 2)]
        assert found[1]["choices"][0]["text"] == expected != found[0]["choices"][0]["text"]
        status, refused = post(f"{url}/api/ask", asked | {"model": "injected:doc-1"})
        assert status == 404 and "there is no model" in refused["error"]["message"]

    monkeypatch.setattr(sys, "stdin", io.StringIO("/models\n/model injected:doc-2\n/document doc-2\n/quit"))
    chat.main([str(workdir)])
    printed = capsys.readouterr().out.split("\n")
    assert printed[0].endswith(": injected:doc-0 answers. /help lists the commands.")
    assert printed[1:7] == [*models.names(), "injected:doc-2 answers", "before the conversation: Cy"]


def post(url, body=None):
    """Status and JSON; without a body it is asked by GET."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


# --- the page, in a browser ---------------------------------------------------------------------------


@pytest.fixture
def browser():
    """A headless Chromium; a system's program, which is not everywhere."""
    require("selenium")
    from selenium import webdriver

    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not (chromium and driver):
        pytest.skip("needs the programs chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,900"):
        options.add_argument(argument)
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield made
    made.quit()


@pytest.mark.browser
def test_the_page_in_a_browser(models, browser, ledger):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select, WebDriverWait

    def find(name, text=""):
        return browser.find_element(By.ID, name)

    def wait(condition):
        return WebDriverWait(browser, 60).until(lambda _: condition())

    def answers():
        wait(lambda: browser.find_elements(By.CLASS_NAME, "answer"))
        wait(lambda: not browser.find_elements(By.CLASS_NAME, "waiting"))
        return {each.get_attribute("id"): each.text for each in browser.find_elements(By.CLASS_NAME, "answer")}

    with serving(models, key="sesame", extend=lambda app, service: add_page(app, service, models)) as url:
        browser.get(url)
        wait(lambda: find("key").is_displayed())
        find("key").send_keys("wrong", Keys.ENTER)
        wait(lambda: "API key is missing or wrong" in find("key-error").text)
        find("key").clear()
        find("key").send_keys("sesame", Keys.ENTER)
        wait(lambda: find("document-text").is_displayed())
        assert find("document-text").text == "Ava lies on the Om." and find("document-title").text == "Ava"

        # Asked by keyboard, answered by all, each in its place.
        assert browser.switch_to.active_element == find("question")
        Select(find("way")).select_by_value("short")
        find("question").send_keys("Where?", Keys.ENTER)
        first = answers()
        assert list(first) == [
            f"answer-{each}" for each in ("base", "document", "injected", "adapter-mine", "adapter-both")
        ]
        shown = find("answer-injected").find_element(By.CLASS_NAME, "text").get_attribute("textContent")
        body = {"model": "injected", "question": "Where?"}
        assert api(url, "/api/ask", body)["choices"][0]["text"] == shown != ""
        assert "2 of 3 injections" in first["answer-injected"]

        # The ledger's entries, off and on; the ledger stays as it is.
        boxes = browser.find_elements(By.CSS_SELECTOR, "#entries input")
        assert [box.is_selected() for box in boxes] == [True, False, True]
        boxes[2].send_keys(Keys.SPACE)
        wait(lambda: "1 of 3 injections" in find("answer-injected").text)
        assert answers()["answer-base"] == first["answer-base"]
        assert len(ledger.active()) == 2

        # Tabs by keyboard; a question there is asked by a click.
        find("tab-text").send_keys(Keys.ARROW_RIGHT)
        assert find("panel-questions").is_displayed() and not find("panel-text").is_displayed()
        find("panel-questions").find_element(By.TAG_NAME, "button").click()
        assert find("question").get_attribute("value") == "Where is Ava?"
        answers()
        find("tab-questions").send_keys(Keys.ARROW_RIGHT)
        assert "Which river? Om given" in find("panel-pairs").text

        # Another document, with text that looks like HTML; and a narrow screen without sideways scrolling.
        Select(find("document")).select_by_value("1")
        wait(lambda: find("document-title").text == "doc-2")
        find("tab-text").click()
        assert find("document-text").text == "Bor </script> lies <b>on</b> the Nil."
        size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
        loaded = browser.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)")
        assert loaded and all(each.startswith(url) for each in loaded)
        refused = [entry for entry in browser.get_log("browser") if "401" not in entry["message"]]
        assert refused == []


def api(url, path, body):
    """What a request with the key gives."""
    headers = {"Content-Type": "application/json", "Authorization": "Bearer sesame"}
    with urllib.request.urlopen(urllib.request.Request(url + path, json.dumps(body).encode(), headers)) as response:
        return json.load(response)


def test_a_bank_chooses_a_model_for_each_text(tiny_model, tmp_path, monkeypatch):
    """By the last question of a conversation, a prompt, or a question of the page."""
    for place in range(3):
        path = injection_directory(tmp_path, place)
        path.mkdir(parents=True)
        (path / "injected.json").write_text("{}")
    documents = [*DOCUMENTS, Document("Cy is old.", "Cy", "doc-3")]
    settings, recipe = types.SimpleNamespace(job="single"), Recipe(rank=2)
    job = types.SimpleNamespace(settings=settings, recipe=recipe, workdir=tmp_path, documents=documents)
    read = []
    monkeypatch.setattr(
        served,
        "read_adapter",
        lambda job, path, unfinished: read.append(int(path.name)) or random_lora(tiny_model, read[-1]),
    )
    opened = Opened(tiny_model, Prompt("plain", tiny_model.tokenizer), documents, tmp_path, job)
    models = ServedModels(opened)
    assert models.names() == ["base", "bank", *(f"injected:doc-{n}" for n in (1, 2, 3))]
    assert models.find("bank", "Who lies on the Nil?") is models.find("injected:doc-2")
    assert read == [1], "an adapter is read when it is needed"
    assert models.find("bank", "What is Ava?") is models.find("injected:doc-1")
    assert models.find("bank", "Hm?") is models.find("bank") is models.find("base")
    assert models.injected_name(documents[2]) == "injected:doc-3"
    few = ServedModels(opened, most_adapters=2)
    read.clear()
    first = few.find("injected:doc-1")
    for name in ("injected:doc-2", "injected:doc-1", "base", "injected:doc-3", "injected:doc-1", "injected:doc-2"):
        assert few.find(name).name == name
    assert read == [0, 1, 2, 1], "the one that was not asked for longest has made room"
    assert few.find("injected:doc-1") is first
    with pytest.raises(ValueError, match="most_adapters = 0, expected a whole number from 1"):
        ServedModels(opened, most_adapters=0)
    one = ServedModels(dataclasses.replace(opened, documents=documents[2:]))
    assert one.names() == ["base", "injected:doc-3"], "a single document needs no bank"
    with pytest.raises(ValueError, match="the name 'bank' is taken"):
        ServedModels(opened, [f"bank={tmp_path}"])
    asked = []

    def refuse(name, text=""):
        asked.append((name, text))
        raise ValueError("it is not read")

    monkeypatch.setattr(models, "find", refuse)
    turns = [
        {"role": role, "content": text} for role, text in (("user", "Bor?"), ("assistant", "Ava."), ("user", "Cy?"))
    ]
    bodies = {
        "/v1/chat/completions": {"messages": turns},
        "/v1/completions": {"prompt": "Bor?"},
        "/api/ask": {"question": "Ava?"},
    }
    with serving(models, extend=lambda app, service: add_page(app, service, models)) as url:
        assert [post(url + path, {"model": "bank", **body})[0] for path, body in bodies.items()] == [404] * 3
    assert asked == [("bank", "Cy?"), ("bank", "Bor?"), ("bank", "Ava?")]
