"""What depends on the backend and the machine alone: compilation cache, count of compilations, memory."""

import contextlib
import contextvars
import ctypes
import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Iterator

import jax
import numpy as np

# glibc's mallopt: parameter numbers and values.
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1


@dataclasses.dataclass
class Compilations:
    """Programs that the compiler was asked for since `prepare`.

    Attributes:
      programs: how many.
      from_cache: how many of them were found in the persistent cache.
      seconds: spent compiling or reading the cache.
    """

    programs: int = 0
    from_cache: int = 0
    seconds: float = 0.0

    def on_duration(self, event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.programs += 1
            self.seconds += duration

    def on_event(self, event: str, **_) -> None:
        self.from_cache += event == "/jax/compilation_cache/cache_hits"


_COMPILATIONS: list[Compilations] = []


def prepare(cache_directory: str | os.PathLike | None) -> Compilations:
    """Sets up this process; call it before anything is computed. Later calls only return the count.

    Args:
      cache_directory: where compiled programs are kept from one run to the next; None keeps none. A directory
        that the user has set (JAX_COMPILATION_CACHE_DIR) takes precedence.

    Returns:
      the count of compilations, which grows as programs are compiled.
    """
    if _COMPILATIONS:
        return _COMPILATIONS[0]
    if cache_directory is not None and not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", os.fspath(cache_directory))
        # The many small programs of a start cost more together than one large one.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    keep_freed_memory()
    _COMPILATIONS.append(Compilations())
    jax.monitoring.register_event_duration_secs_listener(_COMPILATIONS[0].on_duration)
    jax.monitoring.register_event_listener(_COMPILATIONS[0].on_event)
    return _COMPILATIONS[0]


def keep_freed_memory() -> bool:
    """Makes the C allocator keep freed memory for the next step; True where that is possible (Linux with glibc).

    On CPU a step's arrays come from malloc, which returns large ones to the system at once, and the next step has to
    fault their pages in again.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
    return all([mallopt(*setting) == 1 for setting in settings])


_PLATFORM = contextvars.ContextVar("platform", default="")


def platform() -> str:
    """What programs are traced for, "cpu", "gpu" or "tpu": as `traced_for` says, or else what JAX computes on."""
    return _PLATFORM.get() or jax.default_backend()


@contextlib.contextmanager
def traced_for(other: str) -> Iterator[None]:
    """Within it, programs are traced for a platform that need not be there."""
    if other == platform():
        yield
        return
    jax.clear_caches()  # what was traced for this one
    token = _PLATFORM.set(other)
    try:
        yield
    finally:
        _PLATFORM.reset(token)
        jax.clear_caches()


def multiplies_bfloat16() -> bool:
    """Whether this is a processor with instructions for products of bfloat16: Intel's AMX or AVX-512 BF16."""
    return platform() == "cpu" and not _cpu_flags().isdisjoint(("amx_bf16", "avx512_bf16"))  # as Linux names them


@functools.cache
def _cpu_flags() -> frozenset[str]:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # another system
        return frozenset()
    return frozenset(next((line.split(":")[1] for line in lines if line.startswith("flags")), "").split())


def copies_slices() -> bool:
    """Whether a scan copies the slices of its arrays, which is too slow where a slice is used once: on CPU."""
    return platform() == "cpu"


def unstacked(x: jax.Array | np.ndarray) -> list[jax.Array]:
    """x[0], x[1], ...: on CPU as views of its memory, wherever their alignment allows it."""
    if jax.default_backend() != "cpu":
        return list(x)
    device = next(iter(x.devices())) if isinstance(x, jax.Array) else None
    return [jax.device_put(row, device, may_alias=True) for row in np.asarray(x)]
