"""The CUDA kernels on a GPU: against the CPU's, without waiting, and captured in a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gsavatar import fields_planes, ops
from gsavatar.avatar_packed import pack
from gsavatar.batches import Batches
from gsavatar.clip import Clip
from gsavatar.config import load_preset
from gsavatar.fields import PLANE_LEVELS
from gsavatar.fields_planes import AXES
from gsavatar.ops import cuda_backend
from gsavatar.ops.pose_gaussians import Pose
from gsavatar.render import render
from gsavatar.train import train
from gsavatar.types import Branch, Camera, Drive, to_device
from tests.test_avatar_packed import back, seen_avatar, seen_camera, turned
from tests.test_fields_planes import grids, places
from tests.test_ops_blend_motion import cloud as motion_cloud
from tests.test_ops_pose_gaussians import cloud as pose_cloud
from tests.test_ops_rasterize import OUTPUTS, assert_alike, call, scene, single
from tests.test_ops_ssim import pictures

pytestmark = pytest.mark.skipif(
    cuda_backend.why_not() is not None, reason=str(cuda_backend.why_not())
)
SIDE = 40


def both(function: Callable[..., tuple[Tensor, ...]], values: dict[str, Tensor]) -> None:
    """Outputs and gradients on the device are those on the CPU."""
    results = []
    for device in ("cpu", "cuda"):
        leaves = [t.float().to(device).requires_grad_() for t in values.values()]
        outputs = function(*leaves)
        g = torch.Generator().manual_seed(3)
        total = sum((t * torch.randn(t.shape, generator=g).to(device)).sum() for t in outputs)
        assert isinstance(total, Tensor)
        total.backward()
        grads = [leaf.grad for leaf in leaves]
        assert all(grad is not None for grad in grads)
        results.append([t.detach().cpu() for t in (*outputs, *grads) if t is not None])
    for want, got in zip(*results, strict=True):
        assert want.norm() > 0
        assert (got - want).norm() <= 5e-5 * want.norm()


@pytest.mark.parametrize("count", [1, 5000])
def test_device_moves_and_poses_as_the_cpu_does(count: int) -> None:
    both(ops.blend_motion, motion_cloud(count, 37))
    both(
        lambda means, quats, *pose: ops.pose_gaussians(means, quats, Pose(*pose)),
        pose_cloud(count),
    )


@pytest.mark.parametrize("terms", [4, 9, 16])
def test_device_colours_as_the_cpu_does(terms: int) -> None:
    g = torch.Generator().manual_seed(terms)
    values = {
        "means": torch.randn(3000, 3, generator=g),
        "sh": torch.randn(3000, terms, 3, generator=g),
        "centre": torch.randn(3, generator=g),
    }
    both(lambda *inputs: (ops.evaluate_sh(*inputs),), values)


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (37, 61), (512, 512)])
@pytest.mark.parametrize("masked", [False, True])
def test_device_compares_pictures_as_the_reference_does(
    size: tuple[int, int], masked: bool
) -> None:
    a, b, mask = pictures(*size)
    mask[0, 0] = 1.0
    chosen = mask if masked else None
    exact, leaf = a.clone().requires_grad_(), a.float().cuda().requires_grad_()
    want = ops.ssim_ref(exact, b, chosen)
    got = ops.ssim(leaf, b.float().cuda(), None if chosen is None else chosen.float().cuda())
    again = ops.ssim(leaf, b.float().cuda(), None if chosen is None else chosen.float().cuda())
    assert torch.equal(got, again)
    want.backward()
    got.backward()
    assert abs(float(got.detach()) - float(want.detach())) < 2e-6
    assert exact.grad is not None and leaf.grad is not None and exact.grad.norm() > 0
    assert (leaf.grad.cpu() - exact.grad).norm() < 1e-5 * exact.grad.norm()


def test_device_draws_as_the_cpu_does() -> None:
    s = single(scene(300, seed=5))
    on_device = {name: t.cuda() for name, t in s.items()}
    got, want = call(ops.rasterize, on_device, SIDE), call(ops.rasterize, s, SIDE)
    for name in OUTPUTS:
        assert_alike(name, getattr(got, name).cpu(), getattr(want, name), 2e-4)


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_device_draws_a_packed_avatar(degree: int) -> None:
    packed = pack(seen_avatar(degree))
    moved = to_device(packed, "cuda")
    moved = type(packed)(
        **{
            **moved.__dict__,
            "motions": tuple(
                type(m)(m.kind, m.basis.cuda(), None if m.share is None else m.share.cuda())
                for m in packed.motions
            ),
        }
    )
    drive, camera = Drive(torch.tensor([0.8, -0.5]), turned()), seen_camera()
    want = packed.draw(drive, camera, back())
    got = moved.draw(to_device(drive, "cuda"), to_device(camera, "cuda"), back().cuda())
    for name in OUTPUTS:
        assert_alike(name, getattr(got, name).cpu(), getattr(want, name), 1e-3)


def test_device_draws_extra_channels_as_the_cpu_does() -> None:
    s = single(scene(300, seed=5))
    extra = torch.rand(300, 11, generator=torch.Generator().manual_seed(1))
    results = []
    for device in ("cpu", "cuda"):
        leaves = {n: t.to(device).requires_grad_(n != "branch") for n, t in s.items()}
        more = extra.to(device).requires_grad_()
        seen = call(ops.rasterize, leaves, SIDE, extra_channels=more)
        assert seen.extras is not None
        seen.extras.square().sum().backward()
        results.append([seen.extras.detach(), more.grad, leaves["means"].grad])
    for want, got in zip(*results, strict=True):
        assert want is not None and got is not None
        assert_alike("extras", got.cpu(), want.cpu(), 1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device")
def test_a_device_that_is_not_the_current_one_serves() -> None:
    s = single(scene(300, seed=5))
    away = {name: t.to("cuda:1") for name, t in s.items()}
    with torch.cuda.device(0):
        got = call(ops.rasterize, away, SIDE)
    assert_alike("rgb", got.rgb.cpu(), call(ops.rasterize, s, SIDE).rgb, 2e-4)


def test_device_op_keeps_its_promises() -> None:
    s = {name: t.cuda() for name, t in single(scene(12, seed=4)).items()}
    inputs = [s[name].requires_grad_(name != "branch") for name in cuda_backend.NAMES]
    torch.library.opcheck(
        cuda_backend.rasterize_op, (*inputs, SIDE + 7, SIDE, s["background"], s["screen_probe"]),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )  # fmt: skip


class Step:
    """A training step of everything an avatar learns, on inputs that stay in their place."""

    def __init__(self) -> None:
        self.avatar = seen_avatar(1)
        for branch in self.avatar.branches:
            for tensor in branch.raw.parameters().values():
                tensor.data = tensor.data.cuda()
            for tensor in (branch.linear.basis, branch.head_weight):
                tensor.data = tensor.data.cuda()
        self.leaves = [
            t.requires_grad_()
            for b in self.avatar.branches
            for t in (*b.raw.parameters().values(), b.linear.basis)
        ]
        self.drive = to_device(Drive(torch.tensor([0.8, -0.5]), turned()), "cuda")
        self.camera: Camera = to_device(seen_camera(), "cuda")
        self.target, self.background = torch.full_like(back(), 0.5).cuda(), back().cuda()
        self.optimizer = torch.optim.Adam(self.leaves, 1e-3, fused=True, capturable=True)
        self.loss = torch.zeros((), device="cuda")

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        seen = render(self.avatar(self.drive), self.camera, self.background)
        loss = (seen.rgb - self.target).abs().mean() + 1.0 - ops.ssim(seen.rgb, self.target)
        loss.backward()
        self.optimizer.step()
        self.loss.copy_(loss.detach())


@pytest.fixture
def waits_forbidden() -> Iterator[Callable[[], None]]:
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def test_a_step_never_waits_for_the_device(waits_forbidden: Callable[[], None]) -> None:
    step = Step()
    for _ in range(3):  # the first learns how many pairs there are
        step()
    waits_forbidden()
    for _ in range(3):
        step()


def test_a_step_captured_in_a_graph_learns_as_an_eager_one() -> None:
    eager, captured = Step(), Step()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            captured()
    torch.cuda.current_stream().wait_stream(side)
    cuda_backend.forget_captured(torch.device("cuda", 0))
    graph = torch.cuda.CUDAGraph()
    captured.optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        captured()
    for _ in range(5):
        graph.replay()
    for _ in range(8):
        eager()
    torch.cuda.synchronize()
    assert not cuda_backend.overflowed(torch.device("cuda", 0))
    assert float(captured.loss) == pytest.approx(float(eager.loss), rel=1e-4)
    first = Step()
    first()
    assert float(eager.loss) < 0.98 * float(first.loss)


def test_a_replay_that_does_not_fit_is_told() -> None:
    device = torch.device("cuda", 0)
    s = {name: t.cuda() for name, t in single(scene(300, seed=5)).items()}
    call(ops.rasterize, s, SIDE)
    capacity = cuda_backend.capacity_of(device)
    torch.cuda.synchronize()
    cuda_backend.overflowed(device)
    known, capacity.pairs = capacity.pairs, 50
    cuda_backend.forget_captured(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(ops.rasterize, s, SIDE)
    graph.replay()
    torch.cuda.synchronize()
    assert cuda_backend.overflowed(device) and capacity.pairs > 50
    cuda_backend.forget_captured(device)
    capacity.pairs = max(known, capacity.pairs)


def test_training_learns_on_the_device(tiny_clip: Clip, tmp_path: Path) -> None:
    """It is noisier than a CPU (sums in another order), so pictures are compared, not numbers."""
    few = replace(
        load_preset("preview").train, size=64, steps=220, gaussians_max=700, face_init=300,
        mouth_init=80, torso_init=120, checkpoint_every=110, validate_every=220,
    )  # fmt: skip
    batches = Batches(tiny_clip, 64)
    samples = [
        batches.at(int(row), torch.Generator(), full_size=False) for row in batches.rows[::8]
    ]
    errors = []
    for device in ("cpu", "cuda"):
        avatar = train(tiny_clip, few, tmp_path / device, device=device)
        with torch.no_grad():
            shown = [
                render(avatar(s.frame.drive), s.frame.camera, s.background).rgb - s.frame.image
                for s in samples
            ]
        errors.append(float(torch.stack(shown).square().mean()))
    assert errors[1] == pytest.approx(errors[0], rel=0.2)
    assert errors[0] < 0.01


def test_tinycudann_reads_planes_as_torch_does_on_the_device() -> None:
    pytest.importorskip("tinycudann")
    levels, where = PLANE_LEVELS[Branch.FACE], places(1000)
    unit = 0.5 * (where.detach().cuda() + 1)
    at = torch.stack([unit[:, list(axes)] for axes in AXES]).requires_grad_()
    own = [grid.detach().cuda().requires_grad_() for grid in grids(levels)]
    results = []
    for read in (fields_planes._read_by_torch, fields_planes._read_by_tinycudann):
        code = read(own, at, levels)
        results.append((code, *torch.autograd.grad(code.square().sum(), [at, *own])))
    for want, got in zip(*results, strict=True):
        assert (got - want).norm() <= 1e-4 * want.norm()
