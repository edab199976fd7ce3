"""Every system by name. A new system is a new file of this folder.

A file's `SYSTEM` answers questions, its `RECOMMENDER` recommends titles; it has one of the two, or both. A file whose
name begins with "_" holds what several systems share.
"""

import importlib
import pkgutil

from selfparam_jax import baselines
from selfparam_jax.evaluation.systems import ROLES, SystemEntry


def find_systems(attribute: str = "SYSTEM") -> dict[str, SystemEntry]:
    """Reads the folder: the entries that its files have under this name.

    Raises:
      ValueError: two files name the same system, one has an unknown role, or one has no entry at all.
    """
    found: dict[str, SystemEntry] = {}
    for module in sorted(pkgutil.iter_modules(baselines.__path__), key=lambda module: module.name):
        if module.name == "registry" or module.name.startswith("_"):
            continue
        file = importlib.import_module(f"{baselines.__name__}.{module.name}")
        if not hasattr(file, "SYSTEM") and not hasattr(file, "RECOMMENDER"):
            raise ValueError(f"baselines/{module.name}.py has neither SYSTEM nor RECOMMENDER, expected one of them")
        if not hasattr(file, attribute):
            continue
        entry = getattr(file, attribute)
        if entry.name in found or entry.role not in ROLES:
            raise ValueError(f"baselines/{module.name}.py: got name {entry.name!r} and role {entry.role!r}, expected "
                             f"a name of its own and one of {', '.join(ROLES)}")  # fmt: skip
        found[entry.name] = entry
    # Lower bounds first, then candidates, then upper bounds, then all others: the order in which reports draw them.
    order = ("lower bound", "candidate", "upper bound", "baseline")
    return dict(sorted(found.items(), key=lambda item: (order.index(item[1].role), item[0])))


def system_name(asked: str) -> str:
    """The name under which a system is recorded, given that name or another (`SystemEntry.also`).

    Raises:
      ValueError: there is no such system.
    """
    for name, entry in SYSTEMS.items():
        if asked == name or asked in entry.also:
            return name
    raise ValueError(f"systems has {asked!r}, expected some of {', '.join(SYSTEMS)}")


SYSTEMS = find_systems()
RECOMMENDERS = find_systems("RECOMMENDER")
