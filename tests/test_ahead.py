"""Work for two hands: the same results, in order, with their errors, and no more than needed."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from gsavatar.ahead import in_halves, in_turns, together


def test_workers_take_turns_and_results_come_in_order() -> None:
    threads: dict[str, set[int]] = {"even": set(), "odd": set()}

    def worker(name: str, remainder: int):  # type: ignore[no-untyped-def]
        def work(n: int) -> int:
            assert n % 2 == remainder
            threads[name].add(threading.get_ident())
            return n * n

        return work

    found = list(in_turns([worker("even", 0), worker("odd", 1)], range(51)))
    assert found == [n * n for n in range(51)]
    own = threads["even"] | threads["odd"]
    assert len(own) == 2 and threading.get_ident() not in own
    assert list(in_turns([str], [])) == []


def test_an_error_comes_in_its_turn() -> None:
    taken = []
    with pytest.raises(ZeroDivisionError):
        for value in in_turns([lambda n: 6 // n, lambda n: 6 // n], [1, 2, 3, 0, 6]):
            taken.append(value)
    assert taken == [6, 3, 2]

    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("broken film")

    with pytest.raises(ValueError, match="broken film"):
        list(in_turns([abs], broken()))


def test_a_loop_that_is_left_makes_no_more() -> None:
    taken: list[int] = []

    def made() -> Iterator[int]:
        for i in range(1000):
            taken.append(i)
            yield i

    results = in_turns([abs, abs], made(), depth=2)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert len(taken) <= 6


def test_parts_done_together_come_in_order_with_the_first_error() -> None:
    assert together(lambda n: n * n, range(20)) == [n * n for n in range(20)]
    assert together(len, []) == []
    with pytest.raises(ZeroDivisionError):
        together(lambda n: 1 // n, [1, 0, 2])


def test_halves_go_on_together_and_stop_together() -> None:
    assert in_halves(list, range(5)) == [[0, 1], [2, 3, 4]]
    assert in_halves(list, []) == [[], []]
    begun, broken = threading.Event(), threading.Event()
    taken: list[int] = []

    def walk(items: Iterator[int]) -> None:
        for item in items:
            if item < 1000:
                begun.wait(10)
                broken.set()
                raise ValueError("broken film")
            taken.append(item)
            begun.set()
            broken.wait(10)

    with pytest.raises(ValueError, match="broken film"):
        in_halves(walk, range(2_000_000))
    assert 1 <= len(taken) < 900_000
