"""Packages that only some work needs, imported where it is done."""

import importlib
import types


class MissingExtraError(ValueError):
    """A package of an extra is not installed; the message says how to install it."""


def import_extra(name: str, extra: str, use: str, otherwise: str = "") -> types.ModuleType:
    """Imports a package of an extra.

    Args:
      name: of the module.
      extra: of this package, which has it.
      use: what needs it, the beginning of the message: "reading .pdf files needs".
      otherwise: what else one can do, the end of the message.

    Returns:
      the module.

    Raises:
      MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        raise MissingExtraError(
            f"{use} the package {error.name}, which is not installed; run "
            f"pip install 'selfparam-jax[{extra}]'{otherwise}"
        ) from None
