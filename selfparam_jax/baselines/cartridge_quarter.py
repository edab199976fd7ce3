"""Cartridge with a quarter of the adapter's storage."""

import dataclasses
from typing import Annotated

from selfparam_jax.baselines.cartridge import DIVIDE, Cartridge, CartridgeOptions
from selfparam_jax.evaluation.systems import SystemEntry


@dataclasses.dataclass(frozen=True)
class QuarterOptions(CartridgeOptions):
    """As `CartridgeOptions`, with a quarter of the adapter's storage."""

    divide: Annotated[int, DIVIDE] = 4


SYSTEM = SystemEntry(
    "cartridge_quarter",
    "Cartridge (1/4)",
    "question only, after trained keys and values with a quarter of the adapter's storage",
    "baseline",
    Cartridge,
    trained=True,
    in_sequence=False,
    options=QuarterOptions,
)
