"""Settings of the whole process, made before its first tensor: numerics and memory."""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def prepare_process() -> bool:
    """Sets what answers' sameness and speed rest on; returns whether glibc agreed.

    MKL is told to give a product the same last bits whatever its memory's alignment and its
    threads. glibc is told to reuse large freed blocks.
    By default each large CPU tensor is a fresh `mmap` whose pages fault on first touch, which
    slows a training step of the bundled base. One arena serves all threads, or else
    each thread of a pool would keep blocks of its own. Elsewhere than on glibc this does nothing.
    Also bounds oneDNN's cache of compiled shapes, which holds scratch memory for each and grows
    to gigabytes when texts of many lengths are learned; it is read at oneDNN's first use.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "512")
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = (
        (_M_ARENA_MAX, 1),
        (_M_MMAP_MAX, 0),
        (_M_TRIM_THRESHOLD, 2**31 - 1),
        (_M_TOP_PAD, 2**28),
    )
    return all([mallopt(name, value) == 1 for name, value in settings])
