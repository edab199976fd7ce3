"""Files that travel with the package: settings in `configs/`, example documents in `examples/`."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def resource(*parts: str) -> Path:
    """The path of a packaged file or folder, such as `resource("examples", "documents.jsonl")`.

    In a wheel `configs` and `examples` lie inside the package; in a checkout, beside it.
    """
    checkout = _PACKAGE.parent
    # Beside an installed package lie other projects' folders, which may have the same names.
    places = [_PACKAGE, checkout] if (checkout / "pyproject.toml").is_file() else [_PACKAGE]
    for place in places:
        if (path := place.joinpath(*parts)).exists():
            return path
    raise ValueError(f"{'/'.join(parts)} is missing from {_PACKAGE}; install it again: pip install selfparam-jax")
