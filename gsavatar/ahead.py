"""Work for a second core: what a loop will need next is made while it is busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T_ = TypeVar("T_")

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
