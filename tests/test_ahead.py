"""Making things ahead: the same things, in order, with their errors, and no more than needed."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from gsavatar.ahead import ahead, together


def test_items_come_in_order_from_another_thread() -> None:
    threads = set()

    def made() -> Iterator[int]:
        for i in range(50):
            threads.add(threading.get_ident())
            yield i

    assert list(ahead(made())) == list(range(50))
    assert len(threads) == 1 and threading.get_ident() not in threads
    assert list(ahead([])) == []
    assert list(ahead([None, None])) == [None, None]


def test_an_error_comes_in_its_turn() -> None:
    def made() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("broken film")

    taken = []
    with pytest.raises(ValueError, match="broken film"):
        for item in ahead(made()):
            taken.append(item)
    assert taken == [1, 2]


def test_a_loop_that_is_left_makes_no_more() -> None:
    started: list[int] = []

    def made() -> Iterator[int]:
        for i in range(1000):
            started.append(i)
            yield i

    items = ahead(made(), depth=3)
    assert next(items) == 0
    items.close()
    assert len(started) <= 5


def test_parts_done_together_come_in_order_with_the_first_error() -> None:
    assert together(lambda n: n * n, range(20)) == [n * n for n in range(20)]
    assert together(len, []) == []
    with pytest.raises(ZeroDivisionError):
        together(lambda n: 1 // n, [1, 0, 2])
