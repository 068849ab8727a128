"""Work for a second core: parts done together, and what comes next made while a loop is busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T_ = TypeVar("T_")
R_ = TypeVar("R_")

HANDS = 2
"""Always two, whatever the machine: what is cut in parts must not differ between machines."""

_END: Any = object()


def ahead(items: Iterable[T_], depth: int = 4) -> Iterator[T_]:
    """The same items in the same order, made by another thread at most ``depth`` ahead.

    It pays where making an item waits for a device or for native code, which lets other threads
    run. What the making raises is raised here, in its turn; nothing more is made once the loop is
    left.
    """
    source = iter(items)
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, source, _END) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(thread.submit(next, source, _END))
                yield item
        finally:
            for made in waiting:
                made.cancel()


def together(function: Callable[[T_], R_], items: Sequence[T_]) -> list[R_]:
    """What a function makes of each item, in their order, two items at a time.

    It pays where the function is mostly native code that lets other threads run; it must not
    change what another call reads. The first error is raised.
    """
    with ThreadPoolExecutor(HANDS) as threads:
        return list(threads.map(function, items))
