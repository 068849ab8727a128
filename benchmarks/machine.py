"""What a machine gives: the times of a call, and the peaks that it is held against."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from gsavatar.ops import native


def median_ms(run: Callable[[], tuple[float, ...]], seconds: float) -> list[float]:
    """Medians of the parts of ``run``, after three warm-up calls."""
    for _ in range(3):
        run()
    rows, end = [], time.perf_counter() + seconds
    while len(rows) < 5 or (time.perf_counter() < end and len(rows) < 200):
        rows.append(run())
    return [1e3 * statistics.median(column) for column in zip(*rows, strict=True)]


def yardstick(seconds: float = 1.0) -> float:
    """Milliseconds of a 2048^3 float32 matrix product."""
    a = torch.randn(2048, 2048)

    def product() -> tuple[float, ...]:
        start = time.perf_counter()
        a @ a
        return (time.perf_counter() - start,)

    return median_ms(product, seconds)[0]


def fma_gflops(seconds: float = 0.3) -> float:
    """GFLOP/s of independent multiply-adds in registers, by the threads a call would take.

    The best of many short runs: it is what the machine can do, not what it did meanwhile.
    """
    library, threads, rounds = native.cpu(), native.threads(), 1_000_000
    flop = threads * 2.0 * rounds * library.gsa_fma_chains() * library.gsa_lanes()
    best, end = float("inf"), time.perf_counter() + seconds
    with ThreadPoolExecutor(threads) as pool:
        while time.perf_counter() < end:
            start = time.perf_counter()
            list(pool.map(library.gsa_fma, [rounds] * threads))
            best = min(best, time.perf_counter() - start)
    return flop / best / 1e9


def gb_per_s(seconds: float = 0.5) -> float:
    """GB/s that a sum over 256 MB reads from memory."""
    values = torch.ones(2**26)

    def read() -> tuple[float, ...]:
        start = time.perf_counter()
        values.sum()
        return (time.perf_counter() - start,)

    return values.nbytes / median_ms(read, seconds)[0] / 1e6
