"""The documentation: it builds without a warning, and every command, setting, file and name in it exists."""

import ast
import dataclasses
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from extras import require

import selfparam_jax as sp
from selfparam_jax.baselines.registry import SYSTEMS
from selfparam_jax.commands import command
from selfparam_jax.commands.cli import VERBS
from selfparam_jax.data.prompts import FORMATS
from selfparam_jax.evaluation.systems import ROLES, SystemEntry
from selfparam_jax.jobs.settings import RENAMED, read_settings, setting_names
from selfparam_jax.models.registry import FAMILIES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "benchmarks/RESULTS.md", *sorted((ROOT / "docs").rglob("*.md"))]
SCRIPTS = [*sorted((ROOT / "launch").iterdir()), *sorted((ROOT / "configs").rglob("*.py"))]
# Verbs that are modules, too: `python -m selfparam_jax.compare`.
PACKAGE = ROOT / "selfparam_jax"
MODULES = {
    f"selfparam_jax.{verb}": verb
    for verb in VERBS
    if (PACKAGE / f"{verb}.py").is_file() or (PACKAGE / verb / "__main__.py").is_file()
} | {"selfparam_jax.main": "run"}
# Programs of others that the documentation may use.
OTHERS = {"cat", "tail", "mkdocs", "vllm", "llama-server", "ollama"}
SECTIONS = sorted({name.partition(".")[0] for name in setting_names() if "." in name})


def read(path):
    return path.read_text(encoding="utf-8")


def name_of(path):
    return str(path.relative_to(ROOT))


def fenced(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def shell_blocks(path):
    """The shell commands of a file, a block at a time."""
    text = read(path)
    if path.suffix == ".md":
        blocks = fenced(text, "bash")
        if path.name == "RESULTS.md":
            indented = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
            blocks += ["\n".join(line[4:] for line in block.splitlines()) for block in indented]
        return blocks
    text = re.sub(r"\\\n(?:#   )?", "", text)
    lines = re.findall(r"^(?:#   )?((?:python -m|launch/|sbatch|bash launch/).*)$", text, re.MULTILINE)
    return [line for line in lines if "[" not in line and "--config=..." not in line]


def simple_commands(block):
    """The commands of a block, each a list of words; assignments are put in where they are used."""
    block, values, found = re.sub(r"\\\n", " ", block), {}, []
    for line in block.splitlines():
        for name, value in values.items():
            line = line.replace(f"${name} ", f"{value} ")
        if match := re.fullmatch(r'([A-Z])="(.*)"', line):
            values[match[1]] = match[2]
            continue
        reader = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
        reader.whitespace_split = True
        words = []
        for word in [*reader, ";"]:
            if set(word) <= set("&|;<>"):
                found.append(words)
                words = []
            else:
                words.append(word)
        # What follows > is a file, and no command.
        found = [each for each in found if each and not re.fullmatch(r"[\w./-]+\.(jsonl|log)", each[0])]
    for words in found:
        while words and (words[0] == "export" or re.match(r"[A-Z_]+=", words[0])):
            words.pop(0)
    return [words for words in found if words]


COMMANDS = [
    pytest.param(words, id=f"{name_of(path)}: {' '.join(words)}"[:150])
    for path in [*PAGES, *SCRIPTS]
    for block in shell_blocks(path)
    for words in simple_commands(block)
] + [
    pytest.param(shlex.split(example), id=f"{verb}: {example}")
    for verb in VERBS
    for example in re.findall(r'^Example: (.*?)(?:""")?$', read(ROOT / f"selfparam_jax/commands/{verb}.py"), re.M)
]


def check_verb(verb, arguments, monkeypatch):
    """Parses a command line as the verb does, without running it."""
    assert verb in VERBS
    given = []
    monkeypatch.setattr(command, "run", lambda function, *parsed: given.append(parsed[0]) or True)
    module = importlib.import_module(f"selfparam_jax.commands.{verb}")
    if arguments == ["--help"]:
        return
    try:
        module.main(arguments)
    except SystemExit as error:
        pytest.fail(f"selfparam {verb} ends with {error.code} for {arguments}")
    if isinstance(given[0], list):  # parsed by absl when it runs
        values = module.define_flags(given[0])
        rest = command.parse_flags(values, given[0])[1:]
        assert not rest or verb == "inject", f"unexpected arguments {rest}"
        if values["config"].value is not None:
            read_settings(values["config"].value)
        else:
            assert verb not in ("run", "plan"), "--config is missing"


def check_benchmark(module, arguments):
    source = read(ROOT / (module.replace(".", "/") + ".py"))
    for argument in arguments:
        if argument.startswith("--"):
            flag = argument[2:].partition("=")[0]
            assert f'"{flag}"' in source or f'"--{flag}"' in source, f"{module} has no flag --{flag}"


def check_launch(script, arguments, monkeypatch):
    assert (ROOT / script).is_file()
    flags = [argument for argument in arguments if argument.startswith("--") and argument != "--dry-run"]
    if flags:
        check_verb("run", flags, monkeypatch)


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_can_be_parsed(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *arguments = words
    if program == "selfparam":
        if arguments[0] not in ("--help", "--version"):
            check_verb(arguments[0], arguments[1:], monkeypatch)
    elif program == "python" and arguments[0] == "-m" and arguments[1] in MODULES:
        check_verb(MODULES[arguments[1]], arguments[2:], monkeypatch)
    elif program == "python" and arguments[0] == "-m" and arguments[1].startswith("benchmarks."):
        check_benchmark(arguments[1], arguments[2:])
    elif program == "python" and arguments[0].endswith(".py"):
        assert Path(arguments[0]).is_file()
    elif program == "pip":
        extras = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
        named = {name for argument in arguments for match in re.findall(r"\.?\[(.*?)\]", argument)
                 for name in match.split(",") if not argument.startswith("jax[")}  # fmt: skip
        assert named <= extras.keys()
    elif program.startswith("launch/"):
        check_launch(program, arguments, monkeypatch)
    elif program in ("sbatch", "bash"):
        check_launch(arguments[0], arguments[1:], monkeypatch)
    elif words[:3] == ["python", "-m", "pytest"]:
        assert all(Path(argument).exists() for argument in words[3:])
    else:
        assert program in OTHERS, f"unknown program {program}"


def test_the_checks_of_commands_find_mistakes(monkeypatch):
    monkeypatch.chdir(ROOT)
    for verb, arguments in (
        ("run", ["--config=batch", "--config.train.batch_rows=2"]),
        ("run", ["--config=no_such_file.py"]),
        ("run", ["--config=batch", "--workdri=x"]),
        ("run", ["--config=batch", "--config.train.epochs=0"]),
        ("targets", ["--contexts=x", "--sample=5"]),
    ):
        with pytest.raises(ValueError):
            check_verb(verb, arguments, monkeypatch)
    with pytest.raises(pytest.fail.Exception):
        check_verb("ledger", ["runs/sequential", "remove", "ID"], monkeypatch)
    with pytest.raises(AssertionError):
        check_benchmark("benchmarks.speed", ["--row_length=2"])
    assert simple_commands('R="selfparam run"\n$R --config=a \\\n  --b && cat x y > z.jsonl  # why\nA=1 tail z') == [
        ["selfparam", "run", "--config=a", "--b"],
        ["cat", "x", "y"],
        ["tail", "z"],
    ]


@pytest.mark.parametrize("path", [*PAGES, *SCRIPTS], ids=name_of)
def test_settings_commands_and_files_in_the_text_exist(path):
    text, known = re.sub(r"\$\(.*?\)", "*", read(path)), setting_names()
    for name in re.findall(r"--config\.([\w.]+)", text):
        assert name in known or name == "NAME", name
    for name in re.findall(rf"`((?:{'|'.join(SECTIONS)})\.\w+)", text):
        assert name in known or name.endswith((".md", ".json", ".jsonl")), name
    for verb in re.findall(r"`selfparam ([a-z]\w*)", text):
        assert verb in VERBS, verb
    for module in re.findall(r"python -m ((?:selfparam_jax|benchmarks)[\w.]*)", text):
        assert importlib.util.find_spec(module.rstrip(".")), module
    folders = "configs|launch|examples|benchmarks|docs|constraints|tests|selfparam_jax"
    for place in re.findall(rf"(?<![\w./-])((?:{folders})/[\w./-]*\w)(?![\w*])", text):
        if not place.startswith(("selfparam_jax/jax", "docs/site")):
            assert (ROOT / place).exists(), place


@pytest.mark.parametrize("path", [*PAGES, *SCRIPTS, ROOT / "mkdocs.yml"], ids=name_of)
def test_no_old_name_is_left(path):
    text = read(path)
    for old in RENAMED:
        assert not re.search(rf"\b{re.escape(old)}\b", text), old
    # What has only left its section is still called so.
    fields = {old.partition(".")[2] for old in RENAMED} - {"targets", *RENAMED.values()}
    for old in [*fields, "rehearsal", "--prompt=worked", "prompt=worked", "bounds.json"]:
        assert not re.search(rf"(?<!\w){re.escape(old)}\b", text, re.IGNORECASE), old
    for name in re.findall(r"\bselfparam_jax(?:\.\w+)+", text):
        if name.endswith((".json", ".toml", ".gz", ".egg")):
            continue
        module, _, attribute = name.rpartition(".")
        found = importlib.util.find_spec(module) and (
            importlib.util.find_spec(name) or hasattr(importlib.import_module(module), attribute)
        )
        assert found, name


def test_the_readme_is_short():
    assert len(read(ROOT / "README.md").splitlines()) <= 150


def test_the_readme_and_the_site_give_the_same_figures():
    rows = [line for line in read(ROOT / "README.md").splitlines() if line.startswith("|")]
    results = read(ROOT / "docs/results.md").splitlines()
    assert len(rows) == 5
    assert [line for line in rows if line not in results] == []


def test_links_of_the_readme_and_of_the_results_work():
    for path in PAGES[:2]:
        for target in re.findall(r"\]\(([^)]+)\)", read(path)):
            if not target.startswith("http"):
                assert (path.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("path", [path for path in PAGES if path.parent.name in ("docs", "jobs")], ids=name_of)
def test_every_page_starts_with_lines_that_run(path):
    head = read(path).split("\n\n")[:2]
    assert head[0].startswith("# ") and head[1].startswith(("```bash\n", "```python\n"))


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_python_in_the_text_uses_public_names(path):
    for block in fenced(read(path), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sp":
                assert node.attr in sp.__all__, node.attr
    for block in fenced(read(path), "json"):
        for record in re.split(r"(?<=\})\n", block.strip()):
            json.loads(record)


def test_the_system_of_the_page_about_extending_is_one():
    (block,) = fenced(read(ROOT / "docs/extending.md"), "python")
    made = {}
    exec(block, made)
    entry = made["SYSTEM"]
    assert isinstance(entry, SystemEntry) and entry.role in ROLES
    system = entry.make(None)
    assert system.prepare([]) is None and system.cost().keys() == {"storage_bytes", "extra_parameters"}


def test_every_kind_of_fault_has_its_test():
    rows = re.findall(r"^\|.*\| `([\w./]+)::(\w+)` \|$", read(ROOT / "docs/faults.md"), re.MULTILINE)
    table = read(ROOT / "docs/faults.md").partition("## Kinds of fault")[2].partition("\n## ")[0]
    assert len(rows) == len(set(rows)) == len(re.findall(r"^\|", table, re.MULTILINE)) - 2 > 40
    for file, name in rows:
        tree = ast.parse(read(ROOT / file))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"


def test_every_extra_is_explained():
    extras = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    explained = re.findall(r"^\| `([\w-]+)` \|", read(ROOT / "docs/install.md"), re.MULTILINE)
    assert sorted(explained) == sorted(extras)


# --- what is made from the code -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("hooks_of_docs", ROOT / "docs/hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_setting_is_described_with_type_and_default(hooks):
    described = hooks.describe_settings(hooks.Settings)
    assert sorted(described) == sorted(setting_names())
    assert all(len(text) > 10 for _, _, text in described.values())
    kind, default, text = described["train.batch_size"]
    assert (kind, default) == ("a whole number from 1 to 1048576", "2")
    assert text.startswith("rows per optimizer step")
    assert described["lora.target_modules"][0] == "tuple of str"
    page = hooks.settings_reference()
    assert all(f"`{name}`{{ #{name} }}" in page for name in setting_names())


def test_a_setting_without_description_is_refused(hooks):
    @dataclasses.dataclass
    class Some:
        """Some settings.

        Attributes:
          first, second: two of them,
            in two lines.

        Raises:
          third: not a setting.
        """

        first: int = 1
        second: int = 2

    assert hooks.attributes(Some) == dict.fromkeys(("first", "second"), "two of them, in two lines.")
    assert hooks.describe_settings(Some, "some.")["some.first"] == ("int", "1", "two of them, in two lines.")
    wider = dataclasses.make_dataclass("Wider", [("third", int, 3)], bases=(Some,))
    wider.__doc__ = Some.__doc__
    with pytest.raises(ValueError, match=r"Wider\.third has no line under Attributes"):
        hooks.describe_settings(wider)


def test_the_site_builds_without_a_warning_and_is_complete(tmp_path):
    require("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "JAX_PLATFORMS": "cpu", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    assert not (tmp_path / "hooks.py").exists()
    pages = {str(path.parent.relative_to(tmp_path)): read(path) for path in tmp_path.rglob("index.html")}
    assert {"api", "settings", "jobs/batch", "results"} <= pages.keys()
    assert not [name for name, text in pages.items() if "<!-- " in text.partition("<article")[2]]
    assert all(f'id="{name}"' in pages["settings"] for name in setting_names())
    assert all(f'id="selfparam_jax.{name}"' in pages["api"] for name in sp.__all__)
    assert all(f'id="selfparam-{verb}"' in pages["commands"] for verb in VERBS)
    assert all(old in pages["changes"] and new in pages["changes"] for old, new in RENAMED.items())
    assert all(f"<code>{name}</code>" in pages["extending"] for name in (*SYSTEMS, *FAMILIES, *FORMATS))
    assert "Twenty injections" in pages["results"]
    for name, text in pages.items():
        tags = re.findall(r"<(?:script|img|iframe|link)[^>]*>", text)
        loaded = [tag for tag in tags if re.search(r'(?:src|href)="https?:', tag) and "canonical" not in tag]
        assert not loaded, (name, loaded)
