"""Memory that was freed, given back: what one stage needed for a while must not add to the next."""

from __future__ import annotations

import ctypes


def give_back_freed() -> None:
    """Returns freed memory to the system where the C library keeps it (glibc); elsewhere nothing.

    Arrays below some megabytes come from a heap that only ever grows by itself.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library
        return
    trim(0)
