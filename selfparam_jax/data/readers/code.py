"""Source code and notebooks, as Markdown: code stands in a fence that names its language."""

import pathlib
import re

from selfparam_jax.data.readers.texts import Text, decode
from selfparam_jax.distributed.files import parse_json

# The language that a fence names, by the file's suffix.
LANGUAGES = {
    ".py": "python", ".pyi": "python", ".js": "javascript", ".mjs": "javascript", ".jsx": "jsx", ".ts": "typescript",
    ".tsx": "tsx", ".java": "java", ".kt": "kotlin", ".scala": "scala", ".c": "c", ".h": "c", ".cc": "cpp",
    ".cpp": "cpp", ".hpp": "cpp", ".cu": "cuda", ".cs": "csharp", ".go": "go", ".rs": "rust", ".swift": "swift",
    ".rb": "ruby", ".php": "php", ".pl": "perl", ".lua": "lua", ".r": "r", ".jl": "julia", ".hs": "haskell",
    ".ml": "ocaml", ".ex": "elixir", ".clj": "clojure", ".sh": "bash", ".ps1": "powershell", ".sql": "sql",
    ".css": "css", ".scss": "scss", ".vue": "vue", ".proto": "protobuf", ".cmake": "cmake", ".tf": "hcl",
    ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".ini": "ini", ".cfg": "ini", ".xml": "xml", ".tex": "latex",
}  # fmt: skip


def fence(code: str, language: str) -> str:
    """Code between marks that do not occur in it."""
    longest = max((len(run) for run in re.findall(r"`{3,}", code)), default=2)
    marks = "`" * (longest + 1)
    return f"{marks}{language}\n{code}\n{marks}"


def read_source(path: pathlib.Path) -> list[Text]:
    """A file of source code as one fenced block; the title is the file's name."""
    code = decode(path).strip("\n").rstrip()
    return [Text(fence(code, LANGUAGES[path.suffix.lower()]) if code.strip() else "", path.name)]


NOTEBOOK = "a Jupyter notebook of format 4; save it again in Jupyter"


def read_notebook(path: pathlib.Path) -> list[Text]:
    """A Jupyter notebook: its Markdown, its code in fences, and what the code printed; pictures are left out.

    Raises:
      ValueError: it is no notebook of format 4.
    """
    try:
        content = parse_json(decode(path), str(path), NOTEBOOK)
        cells = content["cells"]
        language = content.get("metadata", {}).get("kernelspec", {}).get("language", "python")
        parts = [part for cell in cells for part in _cell_parts(cell, language)]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: got {type(error).__name__}: {error}, expected {NOTEBOOK}") from error
    text = "\n\n".join(parts).strip()
    heading = re.search(r"(?m)^#{1,6} +(\S.*?)[ #]*$", text)
    return [Text(text, heading[1] if heading else "")]


def _cell_parts(cell: dict, language: str) -> list[str]:
    source = _joined(cell["source"]).strip()
    if not source:
        return []
    if cell["cell_type"] != "code":
        return [source]
    printed = []
    for output in cell.get("outputs", ()):
        shown = output.get("text") or output.get("data", {}).get("text/plain") or ""
        printed.append(_joined(shown))
    printed = "".join(printed).strip("\n")
    return [fence(source, language), *([fence(printed, "text")] if printed.strip() else [])]


def _joined(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)
