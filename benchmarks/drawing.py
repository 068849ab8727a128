"""Frames a second of an avatar: posed in torch and drawn, against drawn by the kernels alone.

    python benchmarks/drawing.py AVATAR.gsavatar [--size 512] [--frames 60] [--json out.json]

The two take turns frame by frame, so that a busy neighbour slows both alike: judge by the ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gsavatar.avatar import Avatar, AvatarBranch
from gsavatar.avatar_packed import pack
from gsavatar.ops import native
from gsavatar.package import Package, load_package
from gsavatar.render import render, to_uint8
from gsavatar.types import Drive

WARM_UP = 5


def with_degree(avatar: Avatar, degree: int) -> Avatar:
    """The avatar with harmonics of a higher degree, small random ones, to time their colours."""
    g = torch.Generator().manual_seed(0)

    def raised(branch: AvatarBranch) -> AvatarBranch:
        sh = 0.05 * torch.randn(len(branch.raw), (degree + 1) ** 2, 3, generator=g)
        sh[:, :1] = branch.raw.sh[:, :1]
        return replace(branch, raw=replace(branch.raw, sh=sh))

    return replace(avatar, branches=tuple(raised(b) for b in avatar.branches))


@torch.no_grad()
def measure(package: Package, avatar: Avatar, size: int, frames: int) -> dict[str, float]:
    """Milliseconds a frame of both ways from coefficients to uint8, of posing alone, and how far
    the pictures are apart."""
    camera, packed = package.camera.resized(size, size), pack(avatar)
    behind = package.plate if size == len(package.plate) else torch.zeros(3)

    def timed(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
        started = time.perf_counter()
        result = work()
        return (time.perf_counter() - started) * 1e3, result

    rows, apart = [], []
    for i in range(WARM_UP + frames):
        row = 3 * i % len(package.idle.time_s)
        drive = Drive(package.idle.values[row], package.idle.head_pose[row])
        posing, cloud = timed(lambda: avatar(drive))  # noqa: B023
        longer, want = timed(lambda: to_uint8(render(avatar(drive), camera, behind).rgb))  # noqa: B023
        shorter, got = timed(lambda: to_uint8(packed.draw(drive, camera, behind).rgb))  # noqa: B023
        del cloud
        rows.append((longer, shorter, longer / shorter, posing / longer))
        apart.append((want.int() - got.int()).abs())
    middle = [statistics.median(column) for column in zip(*rows[WARM_UP:], strict=True)]
    off = torch.stack(apart)
    return {
        "torch_ms": middle[0], "packed_ms": middle[1], "ratio": middle[2],
        "posing_share": middle[3], "differing_share": float((off > 0).float().mean()),
        "largest_difference": float(off.max()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("avatar", type=Path)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    package = load_package(options.avatar)
    results = []
    for degree in (None, 1, 3):
        avatar = package.avatar if degree is None else with_degree(package.avatar, degree)
        found = measure(package, avatar, options.size, options.frames)
        name = "as it is" if degree is None else f"degree {degree}"
        print(
            f"{name:9} {len(avatar)} Gaussians, {options.size}^2, {native.threads()} threads: "
            f"torch {found['torch_ms']:.1f} ms ({1e3 / found['torch_ms']:.1f} fps), "
            f"packed {found['packed_ms']:.1f} ms ({1e3 / found['packed_ms']:.1f} fps), "
            f"ratio {found['ratio']:.2f}, posing {100 * found['posing_share']:.0f} % of torch, "
            f"{100 * found['differing_share']:.3f} % of values differ, by at most "
            f"{found['largest_difference']:.0f} of 255"
        )
        results.append({"harmonics": name, "size": options.size, **found})
    if options.json:
        options.json.write_text(json.dumps({"results": results}, indent=1))


if __name__ == "__main__":
    main()
