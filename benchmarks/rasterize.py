"""Times of every op on head-like scenes: ``python benchmarks/rasterize.py --json out.json``.

Each number is the median of many warm runs, in milliseconds, in a process set up as every gsavatar
command is (glibc keeps freed memory: fresh pages would cost up to 3 ms a picture). Compare numbers
of one run only: the ``yardstick_ms`` of a 2048^3 float32 matrix product says how fast the machine
was meanwhile. ``peak_mb`` is what a call takes beside its inputs, results and gradients included.
``fma_gflops`` is what the vector units do when nothing keeps them waiting, by instruction set, and
``gb_per_s`` what the memory gives; ``benchmarks/roofline.py`` draws the rows under the two.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from machine import fma_gflops, gb_per_s, median_ms, yardstick
from torch import Tensor

from gsavatar import ops
from gsavatar.cli_env import prepare_process
from gsavatar.ops import machinery, native
from gsavatar.ops.evaluate_sh import SH_0
from gsavatar.ops.rasterize import rasterize_op, scene_of

PAIRS_PER_PIXEL = 25.0
SIZES, COUNTS = (256, 512, 1024), (5_000, 20_000, 50_000, 200_000)
COEFFICIENTS = 48
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
    names = ("rgb", "alpha", "branch_alpha", "depth", "extras", "records", "pair_start",
             "tile_start", "list")  # fmt: skip
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


def _peak_mb(
    run: Callable[[], object], device: torch.device, leaves: Sequence[Tensor] = ()
) -> float | None:
    """MB that a warm call adds to what is there; None where the system does not tell."""
    run()
    for leaf in leaves:
        leaf.grad = None  # else the call would only replace them
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    status = Path("/proc/self/status")
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # else what earlier rows left would be used again, unseen
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
        before = _kb(status, "VmRSS")
        run()
        return (_kb(status, "VmHWM") - before) / 1024
    except (OSError, AttributeError, KeyError):
        return None


def _kb(status: Path, name: str) -> int:
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines())
    return int(lines[name].split()[0])


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


Times = tuple[float, float, float, float | None]
"""Milliseconds forward, backward and both, and the peak in MB."""


def _timed(forward: Callable[[], Tensor], leaves: list[Tensor], seconds: float) -> Times:
    """Milliseconds of a forward pass that records, of its backward pass, and of both."""
    device = leaves[0].device
    v = torch.randn_like(forward())

    def step() -> tuple[float, ...]:
        for leaf in leaves:
            leaf.grad = None
        start = _now(device)
        result = forward()
        middle = _now(device)
        result.backward(v)
        end = _now(device)
        return middle - start, end - middle, end - start

    first, second, total = median_ms(step, seconds)
    return first, second, total, _peak_mb(step, device, leaves)


FLOATS = ("means", "quats", "scales", "opacities", "colors")


def time_rasterize(arguments: Scene, backend: str, seconds: float) -> Times:
    """Milliseconds of ``rasterize`` with gradients for the whole cloud."""
    leaves = {n: arguments[n].clone().requires_grad_() for n in FLOATS}
    trained = arguments | leaves
    return _timed(
        lambda: ops.rasterize(*trained.values(), backend=backend).rgb,
        list(leaves.values()),
        seconds,
    )


def time_blended(arguments: Scene, seconds: float) -> Times:
    """Milliseconds of blend, projection and compositing in one pass, for inference."""
    *cloud, basis, coefficients = motion_of(arguments)
    sh = ((arguments["colors"] - 0.5) / SH_0)[:, None]
    view = (arguments[n] for n in ("branch", "world_to_cam", "K", "width", "height", "background"))
    held = (*cloud, [ops.Part(basis, coefficients)], arguments["opacities"], sh, *view)

    device = cloud[0].device

    def run() -> tuple[float, ...]:
        start = _now(device)
        ops.rasterize_blended(*held)
        return (_now(device) - start,)

    alone = median_ms(run, seconds)[0]
    return alone, 0.0, alone, _peak_mb(run, device)


def time_blend(arguments: Scene, seconds: float) -> Times:
    """Milliseconds of ``blend_motion`` with gradients for everything that moves."""
    leaves = [t.clone().requires_grad_() for t in motion_of(arguments)]
    return _timed(lambda: torch.cat(ops.blend_motion(*leaves), dim=-1), leaves, seconds)


def motion_of(arguments: Scene) -> tuple[Tensor, ...]:
    """Means, quats, scales, and a basis of 48 coefficients with values for them."""
    g = torch.Generator().manual_seed(1)
    cloud = tuple(arguments[n] for n in ("means", "quats", "scales"))
    basis = 1e-3 * torch.randn(COEFFICIENTS, len(cloud[0]), 9, generator=g)
    return (*cloud, basis.to(cloud[0]), torch.rand(COEFFICIENTS, generator=g).to(cloud[0]))


def time_ssim(size: int, seconds: float, op: Callable[..., Tensor], device: str = "cpu") -> Times:
    """Milliseconds of SSIM of two pictures with the gradient of the first."""
    g = torch.Generator().manual_seed(2)
    a, b = (picture.clone() for picture in torch.rand(2, size, size, 3, generator=g).to(device))
    a.requires_grad_()
    return _timed(lambda: op(a, b), [a], seconds)


def time_sh(arguments: Scene, seconds: float, op: Callable[..., Tensor]) -> Times:
    """Milliseconds of colours by harmonics of degree 3 with gradients for means and harmonics."""
    g = torch.Generator().manual_seed(3)
    means = arguments["means"].clone().requires_grad_()
    sh = (0.3 * torch.randn(len(means), 16, 3, generator=g)).to(means.device).requires_grad_()
    centre = torch.tensor([0.0, 0.0, 1.0], device=means.device)
    return _timed(lambda: op(means, sh, centre), [means, sh], seconds)


SMALL = (64, 500)
"""Side and Gaussians of the one scene that the reference in torch draws: it is dense."""


def measure(sizes: tuple[int, ...], counts: tuple[int, ...], isas: tuple[str, ...],
            seconds: float) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of ``results`` for the CPU kernels, one instruction set after the other."""
    rows = []
    for isa in isas:
        os.environ["GSAVATAR_ISA"] = isa
        where = {"backend": "native", "isa": isa, "threads": native.threads()}
        where["peak_gflops"] = fma_gflops()
        times = time_rasterize(scene(*SMALL), "native", seconds)
        rows.append(row("rasterize", where, *SMALL, times, _scaled(*SMALL, 0)[1]))
        for size in sizes:
            for count in counts:
                arguments = scene(size, count)
                pairs = _scaled(size, count, 0)[1]
                times = time_rasterize(arguments, "native", seconds)
                rows.append(row("rasterize", where, size, count, times, pairs))
                times = time_blended(arguments, seconds)
                rows.append(row("rasterize_blended", where, size, count, times, pairs))
        for count in counts:
            times = time_blend(scene(256, count), seconds)
            rows.append(row("blend_motion", where, 0, count, times))
            times = time_sh(scene(256, count), seconds, ops.evaluate_sh)
            rows.append(row("evaluate_sh", where, 0, count, times))
        for size in sizes:
            times = time_ssim(size, seconds, ops.ssim)
            rows.append(row("ssim", where, size, 0, times))
    where = {"backend": "torch", "isa": "", "threads": torch.get_num_threads()}
    times = time_rasterize(scene(*SMALL), "torch", seconds)
    rows.append(row("rasterize", where, *SMALL, times, _scaled(*SMALL, 0)[1]))
    for count in counts:
        times = time_sh(scene(256, count), seconds, ops.evaluate_sh_ref)
        rows.append(row("evaluate_sh", where, 0, count, times))
    for size in sizes:
        rows.append(row("ssim", where, size, 0, time_ssim(size, seconds, ops.ssim_ref)))
    return rows


def measure_cuda(
    sizes: tuple[int, ...], counts: tuple[int, ...], seconds: float
) -> list[dict[str, Any]]:
    """Rows of ``results`` for the GPU: our kernels, and gsplat where it is installed."""
    facts = machinery.available()
    backends = [b for b, key in (("native", "cuda"), ("gsplat", "gsplat")) if facts[key]]
    rows = []
    for size in sizes:
        for count in counts:
            pairs = _scaled(size, count, 0)[1]
            moved = {
                k: v.cuda() if isinstance(v, Tensor) else v for k, v in scene(size, count).items()
            }
            for backend in backends:
                where = {"backend": backend, "isa": "cuda", "threads": 0}
                times = time_rasterize(moved, backend, seconds)
                rows.append(row("rasterize", where, size, count, times, pairs))
            if "native" not in backends:
                continue
            where = {"backend": "native", "isa": "cuda", "threads": 0}
            times = time_blended(moved, seconds)
            rows.append(row("rasterize_blended", where, size, count, times, pairs))
            if size == sizes[0]:
                rows.append(row("blend_motion", where, 0, count, time_blend(moved, seconds)))
                times = time_sh(moved, seconds, ops.evaluate_sh)
                rows.append(row("evaluate_sh", where, 0, count, times))
    for backend, op in (("native", ops.ssim), ("torch", ops.ssim_ref)):
        where = {"backend": backend, "isa": "cuda", "threads": 0}
        for size in sizes if facts["cuda"] or backend == "torch" else ():
            rows.append(row("ssim", where, size, 0, time_ssim(size, seconds, op, "cuda")))
    return rows


FLOP_PER_VALUE = {"ssim": (210.0, 150.0), "evaluate_sh": (110.0, 230.0)}
"""Of one channel of one pixel, and of the harmonics of degree 3 of one Gaussian, forward and
backward."""


def flop_of(op: str, size: int, count: int, pairs: int, backward: bool) -> float:
    """Useful arithmetic of a call."""
    if op == "blend_motion":  # forward; by the coefficients, and by the basis
        return 2.0 * COEFFICIENTS * 9 * count * (2.5 if backward else 1.0)
    first, second = FLOP_PER_VALUE.get(op, FLOP_PER_PAIR)
    items = {"ssim": 3 * size * size, "evaluate_sh": count}.get(op, pairs)
    return items * (first + (second if backward else 0.0))


def row(
    op: str, where: dict[str, Any], size: int, count: int,
    times: Times, pairs: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """One row of ``results``, printed as well."""
    forward, backward, total, peak_mb = times
    peak_gflops = where.get("peak_gflops")
    where = {name: where[name] for name in ("backend", "isa", "threads")}
    gflops = flop_of(op, size, count, pairs, backward > 0.0) / total / 1e6
    print(
        f"{op:18} {where['backend']:6} {where['isa']:6} {size:4}^2 {count:6}  "
        f"forward {forward:7.2f}  backward {backward:7.2f}  total {total:7.2f} ms  "
        f"{gflops:6.1f} GFLOP/s"
    )
    return {
        "op": op, **where, "size": size, "n": count, "forward_ms": forward,
        "backward_ms": backward, "total_ms": total, "pairs": pairs,
        "gflops": gflops, "pairs_per_s": pairs / total * 1e3, "peak_mb": peak_mb,
        "of_peak": gflops / peak_gflops if peak_gflops else None,
    }  # fmt: skip


def main() -> None:
    prepare_process()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--isas", nargs="+", default=[])
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on each row")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    sizes, counts = tuple(options.sizes), tuple(options.counts)
    peaks: dict[str, float] = {}
    if options.device == "cuda":
        rows = measure_cuda(sizes, counts, options.seconds)
    else:
        level = native.ISAS.index(native.machine_isa())
        isas = tuple(options.isas or reversed(native.ISAS[: level + 1]))
        rows = measure(sizes, counts, isas, options.seconds)
        for isa in isas:
            os.environ["GSAVATAR_ISA"] = isa
            peaks[isa] = fma_gflops()
    product_ms = yardstick()
    out = {
        "results": rows,
        "yardstick_ms": product_ms,
        "yardstick_gflops": 2 * 2048**3 / product_ms / 1e6,
        "fma_gflops": peaks,
        "gb_per_s": gb_per_s(),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(f"yardstick {product_ms:.1f} ms, {out['yardstick_gflops']:.0f} GFLOP/s")
    if options.json:
        options.json.write_text(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
