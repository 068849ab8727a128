"""A training step of a whole avatar on a GPU: eager, and replayed from a CUDA graph.

    python benchmarks/graph_step.py [--size 512] [--gaussians 20000] [--json gpu.json]

The step poses three branches, evaluates harmonics of degree 1, rasterises, takes L1 and SSIM, goes
back and steps Adam. Drive and target are copied into the step's inputs before every run, as a
trainer would. It also says whether the eager step makes the host wait for the device (it must not).
With ``--json`` the result is written as ``step`` into that file, beside what is there. On a CPU
(``--device cpu``) only the eager step runs, which shows that the script works.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsavatar import ops
from gsavatar.avatar import Avatar, AvatarBranch
from gsavatar.gaussians import from_points
from gsavatar.motion import TORSO_NAMES, LinearMotion
from gsavatar.ops import cuda_backend
from gsavatar.render import render
from gsavatar.types import Branch, Camera, Drive, to_device

COEFFICIENTS = 48
SHARES = {Branch.FACE: 0.6, Branch.MOUTH: 0.15, Branch.TORSO: 0.25}
EXTENT_M = {
    Branch.FACE: (0.08, 0.11, 0.09), Branch.MOUTH: (0.03, 0.02, 0.02),
    Branch.TORSO: (0.2, 0.06, 0.06),
}  # fmt: skip
WARM_UP = 5


def avatar_of(gaussians: int, device: str) -> Avatar:
    """An avatar of random shells that fills a good part of the picture."""
    g = torch.Generator().manual_seed(0)

    def branch(kind: Branch) -> AvatarBranch:
        count = int(gaussians * SHARES[kind])
        columns = len(TORSO_NAMES) if kind == Branch.TORSO else COEFFICIENTS
        points = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=-1)
        points = points * torch.tensor(EXTENT_M[kind])
        points[:, 1] -= 0.14 if kind == Branch.TORSO else 0.0
        spacing = torch.full((count,), 0.35 / count**0.5)
        raw = from_points(points, torch.rand(count, 3, generator=g), spacing, sh_degree=1)
        basis = 0.02 * torch.randn(columns, count, 9, generator=g)
        share = torch.linspace(0.0, 1.0, count)
        motion = LinearMotion(basis.to(device), torch.zeros(columns, 0, 3))
        return AvatarBranch(kind, to_device(raw, device), motion, share.to(device))

    names = tuple(f"c{i}" for i in range(COEFFICIENTS))
    return Avatar(names, tuple(branch(kind) for kind in Branch))


class Step:
    """One training step; its inputs stay where they are, so that a graph can read them again."""

    def __init__(self, size: int, gaussians: int, device: str) -> None:
        self.avatar = avatar_of(gaussians, device)
        leaves = [
            t.requires_grad_()
            for b in self.avatar.branches
            for t in (*b.raw.parameters().values(), b.linear.basis)
        ]
        world_to_cam = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
        world_to_cam[2, 3] = 0.7
        K = torch.tensor([[2.0 * size, 0, size / 2], [0, 2.0 * size, size / 2], [0, 0, 1.0]])
        self.camera = Camera(world_to_cam.to(device), K.to(device), size, size)
        self.drive = to_device(Drive(torch.zeros(COEFFICIENTS), torch.eye(4)), device)
        self.target = torch.full((size, size, 3), 0.5, device=device)
        self.black = torch.zeros(3, device=device)
        self.optimizer = torch.optim.Adam(leaves, 1e-4, fused=True, capturable=device == "cuda")

    def take(self, coefficients: Tensor, target: Tensor) -> None:
        """Copies the next sample into the step's inputs."""
        self.drive.coefficients.copy_(coefficients, non_blocking=True)
        self.target.copy_(target, non_blocking=True)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        seen = render(self.avatar(self.drive), self.camera, self.black)
        loss = (seen.rgb - self.target).abs().mean() + 1.0 - ops.ssim(seen.rgb, self.target)
        loss.backward()
        self.optimizer.step()


def time_ms(run: Callable[[], object], step: Step, steps: int) -> float:
    """Median milliseconds of a sample's copy and a step, once the device has done them."""
    device = step.target.device
    samples = [torch.rand(COEFFICIENTS, device=device) for _ in range(4)]
    target = torch.full_like(step.target, 0.4)
    times = []
    for i in range(steps):
        started = time.perf_counter()
        step.take(samples[i % len(samples)], target)
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def captured(step: Step) -> torch.cuda.CUDAGraph:
    """The step as a graph, after the runs that torch asks for before a capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    cuda_backend.overflowed(step.target.device)  # takes what the runs have reported
    cuda_backend.forget_captured(step.target.device)
    graph = torch.cuda.CUDAGraph()
    step.optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        step()
    return graph


def why_it_waits(step: Step) -> str | None:
    """What makes the host wait in an eager step, or None if nothing does."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def measure(size: int, gaussians: int, device: str, steps: int) -> dict[str, Any]:
    """What is written as ``step``."""
    step = Step(size, gaussians, device)
    for _ in range(WARM_UP):
        step()
    found: dict[str, Any] = {
        "size": size, "gaussians": gaussians, "coefficients": COEFFICIENTS, "device": device,
        "eager_ms": time_ms(step, step, steps), "graph_ms": None, "waits": None, "overflowed": None,
    }  # fmt: skip
    if device == "cuda":
        found["device"] = torch.cuda.get_device_name()
        found["waits"] = why_it_waits(step)
        graph = captured(step)
        found["graph_ms"] = time_ms(graph.replay, step, steps)
        found["overflowed"] = cuda_backend.overflowed(step.target.device)
        found["ratio"] = found["eager_ms"] / found["graph_ms"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--gaussians", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.device == "cuda":
        reason = cuda_backend.why_not()
        if reason is not None:
            raise SystemExit(f"graph_step: {reason}")
    found = measure(options.size, options.gaussians, options.device, options.steps)
    print(json.dumps(found))
    if options.json:
        before = json.loads(options.json.read_text()) if options.json.exists() else {}
        options.json.write_text(json.dumps(before | {"step": found}, indent=1))


if __name__ == "__main__":
    main()
