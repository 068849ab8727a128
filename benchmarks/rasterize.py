"""Times of every op on head-like scenes: ``python benchmarks/rasterize.py --json out.json``.

Each number is the median of many warm runs, in milliseconds. Compare numbers of one run only: the
``yardstick_ms`` of a 2048^3 float32 matrix product says how fast the machine was meanwhile.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsavatar import ops
from gsavatar.ops import native
from gsavatar.ops.rasterize import rasterize_op, scene_of

PAIRS_PER_PIXEL = 25.0
SIZES, COUNTS = (256, 512, 1024), (5_000, 20_000, 50_000, 200_000)
FLOP_PER_PAIR = (45.0, 105.0)
"""Useful arithmetic of one contributing pair, forward and backward (projection left out)."""

Scene = dict[str, Any]


def _cloud(size: int, count: int, seed: int) -> Scene:
    """An ellipsoid shell the size of a head, 1 m away, over about 45 % of the picture."""
    g = torch.Generator().manual_seed(seed)
    toward = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=-1)
    thickness = 1.0 + 0.02 * torch.randn(count, 1, generator=g)
    world_to_cam = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    world_to_cam[2, 3] = 1.0
    focal = size / 0.245
    K = torch.tensor([[focal, 0.0, size / 2], [0.0, focal, size / 2], [0.0, 0.0, 1.0]])
    return {
        "means": toward * thickness * torch.tensor([0.075, 0.105, 0.09]),
        "quats": torch.nn.functional.normalize(torch.randn(count, 4, generator=g), dim=-1),
        "scales": torch.exp(0.4 * torch.randn(count, 3, generator=g)),
        "opacities": 0.05 + 0.9 * torch.rand(count, generator=g),
        "colors": torch.rand(count, 3, generator=g),
        "branch": torch.randint(0, 3, (count,), generator=g, dtype=torch.int32),
        "world_to_cam": world_to_cam,
        "K": K,
        "width": size,
        "height": size,
        "background": torch.full((3,), 0.5),
    }


def contributions(scene: Scene) -> int:
    """How many (Gaussian, pixel) pairs the picture is made of, after early stopping."""
    with torch.no_grad():
        outputs = rasterize_op(*scene.values(), None)
    tensors = {k: v for k, v in scene.items() if isinstance(v, Tensor)}
    names = ("rgb", "alpha", "branch_alpha", "depth", "records", "pair_start", "tile_start", "list")
    tensors |= dict(zip(names, outputs, strict=True))
    struct = scene_of(tensors, scene["width"], scene["height"])
    return int(native.cpu().gsa_count_contributions(ctypes.byref(struct)))


@lru_cache(maxsize=32)
def _scaled(size: int, count: int, seed: int) -> tuple[float, int]:
    """The common scale at which 25 +- 1 pairs per image pixel contribute, and the pairs."""
    cloud = _cloud(size, count, seed)
    low, high = 1e-5, 0.03
    for _ in range(40):
        middle = (low * high) ** 0.5
        pairs = contributions(cloud | {"scales": cloud["scales"] * middle})
        if abs(pairs / size**2 - PAIRS_PER_PIXEL) < 0.25:
            break
        low, high = (middle, high) if pairs / size**2 < PAIRS_PER_PIXEL else (low, middle)
    return middle, pairs


def scene(size: int, n: int, seed: int = 0) -> Scene:
    """Arguments of ``ops.rasterize``, in order: ``n`` Gaussians over ``size`` x ``size`` pixels."""
    cloud = _cloud(size, n, seed)
    cloud["scales"] = cloud["scales"] * _scaled(size, n, seed)[0]
    return cloud


def _median_ms(run: Callable[[], tuple[float, ...]], seconds: float) -> list[float]:
    """Medians of the parts of ``run``, after three warm-up calls."""
    for _ in range(3):
        run()
    rows, end = [], time.perf_counter() + seconds
    while len(rows) < 5 or (time.perf_counter() < end and len(rows) < 200):
        rows.append(run())
    return [1e3 * statistics.median(column) for column in zip(*rows, strict=True)]


def time_rasterize(arguments: Scene, backend: str, seconds: float) -> tuple[float, float, float]:
    """Milliseconds of inference, of the forward pass that records and of the backward pass."""
    floats = ("means", "quats", "scales", "opacities", "colors")
    leaves = {n: arguments[n].clone().requires_grad_() for n in floats}
    trained = arguments | leaves
    v = torch.randn(arguments["height"], arguments["width"], 3)

    def step() -> tuple[float, ...]:
        for leaf in leaves.values():
            leaf.grad = None
        start = time.perf_counter()
        rendering = ops.rasterize(*trained.values(), backend=backend)
        middle = time.perf_counter()
        rendering.rgb.backward(v)
        end = time.perf_counter()
        return middle - start, end - middle, end - start

    forward, backward, total = _median_ms(step, seconds)
    return forward, backward, total


def yardstick(seconds: float = 1.0) -> float:
    """Milliseconds of a 2048^3 float32 matrix product."""
    a = torch.randn(2048, 2048)

    def product() -> tuple[float, ...]:
        start = time.perf_counter()
        a @ a
        return (time.perf_counter() - start,)

    return _median_ms(product, seconds)[0]


def measure(sizes: tuple[int, ...], counts: tuple[int, ...], isas: tuple[str, ...],
            seconds: float) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of ``results`` for the native rasterizer."""
    rows = []
    for size in sizes:
        for count in counts:
            arguments = scene(size, count)
            pairs = _scaled(size, count, 0)[1]
            for isa in isas:
                os.environ["GSAVATAR_ISA"] = isa
                forward, backward, total = time_rasterize(arguments, "native", seconds)
                rows.append({
                    "op": "rasterize", "backend": "native", "isa": isa,
                    "threads": native.threads(), "size": size, "n": count,
                    "forward_ms": forward, "backward_ms": backward, "total_ms": total,
                    "pairs": pairs, "gflops": pairs * sum(FLOP_PER_PAIR) / total / 1e6,
                    "pairs_per_s": pairs / total * 1e3,
                })  # fmt: skip
                print(
                    f"rasterize {isa:6} {size:4}^2 {count:6}  forward {forward:7.2f}  "
                    f"backward {backward:7.2f}  total {total:7.2f} ms  {pairs / 1e6:.2f} M pairs"
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--isas", nargs="+", default=[])
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on each row")
    options = parser.parse_args()
    level = native.ISAS.index(native.machine_isa())
    isas = tuple(options.isas or reversed(native.ISAS[: level + 1]))
    rows = measure(tuple(options.sizes), tuple(options.counts), isas, options.seconds)
    out = {
        "results": rows,
        "yardstick_ms": yardstick(),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(f"yardstick {out['yardstick_ms']:.1f} ms")
    if options.json:
        options.json.write_text(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
