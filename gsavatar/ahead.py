"""Work for a second core, in parts and orders that do not depend on how many cores there are."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

T_ = TypeVar("T_")
R_ = TypeVar("R_")

HANDS = 2
"""Always two, whatever the machine: what is cut in parts must not differ between machines."""


def in_turns(
    workers: Sequence[Callable[[T_], R_]], items: Iterable[T_], depth: int = 2
) -> Generator[R_, None, None]:
    """What workers make of items, in the items' order: the first, fifth, ... by the first of four.

    Each worker has a thread of its own and is at most ``depth`` items ahead; items are taken in the
    caller's thread. It pays where the work waits for a device or is native code, which lets other
    threads run. What a worker raises is raised in its turn, what taking an item raises at once.
    Nothing more is made once the loop is left; close the generator before what the workers use.
    """
    threads = [ThreadPoolExecutor(1) for _ in workers]
    waiting: deque[Future[R_]] = deque()
    try:
        for i, item in enumerate(items):
            if len(waiting) == depth * len(workers):
                yield waiting.popleft().result()
            hand = i % len(workers)
            waiting.append(threads[hand].submit(workers[hand], item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        for thread in threads:
            thread.shutdown(cancel_futures=True)


def together(function: Callable[[T_], R_], items: Sequence[T_]) -> list[R_]:
    """What a function makes of each item, in their order, two items at a time.

    It pays where the function is mostly native code that lets other threads run; it must not
    change what another call reads. The first error is raised.
    """
    with ThreadPoolExecutor(HANDS) as threads:
        return list(threads.map(function, items))


def in_halves(function: Callable[[Iterator[T_]], R_], items: Sequence[T_]) -> list[R_]:
    """What a function makes of the first and of the second half of some items, both at once.

    As ``together``, for work that goes from item to item. If one half fails or the caller is
    interrupted, the other is given no more items.
    """
    stopped = threading.Event()

    def given(part: Sequence[T_]) -> Iterator[T_]:
        for item in part:
            if stopped.is_set():
                return
            yield item

    edges = [len(items) * i // HANDS for i in range(HANDS + 1)]
    with ThreadPoolExecutor(HANDS) as threads:
        halves = [threads.submit(function, given(items[a:b])) for a, b in pairwise(edges)]
        try:
            return [half.result() for half in halves]
        except BaseException:
            stopped.set()
            raise
