"""What depends on the backend and the machine, and on nothing of ours: compilation cache, compilations, memory."""

import ctypes
import dataclasses
import os
import sys

import jax
import numpy as np

# glibc's mallopt: parameter numbers and values.
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1


@dataclasses.dataclass
class Compilations:
    """Programs that were asked of the compiler since `prepare`.

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
    """Sets the process up; call it before anything is computed. Later calls only return the count.

    Args:
      cache_directory: where compiled programs are kept from one run to the next; None keeps none. A directory
        that the user has set (JAX_COMPILATION_CACHE_DIR) comes first.
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
    """Lets the C allocator keep what is freed for the next step; True where that is possible (Linux with glibc).

    On CPU a step's arrays come from malloc, which gives large ones back to the system at once, and the next step
    has to fault them in again.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
    return all([mallopt(*setting) == 1 for setting in settings])


def copies_slices() -> bool:
    """Whether the backend copies what a scan takes out of its arrays, too dear where that is used once: CPU."""
    return jax.default_backend() == "cpu"


def unstacked(x: jax.Array | np.ndarray) -> list[jax.Array]:
    """x[0], x[1], ...: on CPU as views of its memory, wherever they are aligned as the backend wants it."""
    if jax.default_backend() != "cpu":
        return list(x)
    device = next(iter(x.devices())) if isinstance(x, jax.Array) else None
    return [jax.device_put(row, device, may_alias=True) for row in np.asarray(x)]
