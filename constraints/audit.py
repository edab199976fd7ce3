"""Audits the packages of this environment: are they those of the lock, and is a hole known in one of them?

    python constraints/audit.py

Every installed package must be pinned in constraints/pythonX.Y.txt with the version that is installed; otherwise the
exit code is 1. Their advisories are then asked for at osv.dev, all in one request (pip-audit would send one for each,
and bring 25 packages). One that is found is a warning, as it may be published any day; where osv.dev is out of reach,
a line says that nothing was asked. It needs no package itself.
"""

import importlib.metadata
import json
import pathlib
import re
import sys
import urllib.request

SERVICE = "https://api.osv.dev/v1/querybatch"
TIMEOUT_S = 8.0
OURS = ("pip", "selfparam-jax")  # not among what is locked


def normalised(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(path: pathlib.Path) -> dict[str, str]:
    """The versions of a constraints file by package.

    Raises:
      ValueError: a line is no exact pin, or a package has two.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        pin = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!]*)", line.strip())
        if pin is None:
            raise ValueError(f"{path}, line {number}: {line!r} is not NAME==VERSION; run constraints/update.sh")
        if (name := normalised(pin[1])) in found:
            raise ValueError(f"{path}, line {number}: {name} is there twice; run constraints/update.sh")
        found[name] = pin[2]
    return found


def installed() -> dict[str, str]:
    """The versions of this environment's packages by name; parts that say how one was built (+cpu) left out."""
    found = {normalised(each.name): each.version.partition("+")[0] for each in importlib.metadata.distributions()}
    return {name: version for name, version in found.items() if name not in OURS}


def unlocked(here: dict[str, str], lock: dict[str, str]) -> list[str]:
    """What is installed and not locked like this, a line each."""
    return [
        f"{name} {version} is installed, the lock has {lock.get(name, 'none')}"
        for name, version in sorted(here.items())
        if lock.get(name) != version
    ]


def advisories(here: dict[str, str], service: str = SERVICE) -> list[str]:
    """Advisories for packages, a line each.

    Raises:
      OSError: the service cannot be reached, or does not answer as described.
    """
    names = sorted(here)
    queries = [{"package": {"name": name, "ecosystem": "PyPI"}, "version": here[name]} for name in names]
    content = json.dumps({"queries": queries}).encode()
    request = urllib.request.Request(service, content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        said = response.read(16 << 20)
    try:
        results = json.loads(said)["results"]
        found = [[each["id"] for each in result.get("vulns", ())] for result in results]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OSError(f"not an answer of this service: {said[:60]!r}") from error
    if len(found) != len(names):
        raise OSError(f"got {len(found)} results for {len(names)} packages")
    return [
        f"{name} {here[name]}: {', '.join(ids)} (https://osv.dev/vulnerability/{ids[0]})"
        for name, ids in zip(names, found, strict=True)
        if ids
    ]


def main() -> int:
    """Prints what was found; returns the exit code."""
    path = pathlib.Path(__file__).with_name("python{}.{}.txt".format(*sys.version_info))
    try:
        lock = read_lock(path)
    except (OSError, ValueError) as error:
        print(f"audit: {error}")
        return 1
    here = installed()
    wrong = unlocked(here, lock)
    for line in wrong:
        print(f"audit: {line}")
    print(f"audit: {len(here) - len(wrong)} of {len(here)} installed packages are those of {path.name}")
    try:
        found = advisories(here)
    except OSError as error:
        print(f"audit: WARNING: known holes were not looked for: {error}")
    else:
        for line in found:
            print(f"audit: WARNING: {line}")
        print(f"audit: {len(found)} of {len(here)} packages have a known hole, says osv.dev")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
