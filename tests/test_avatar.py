"""Avatar, motion and Gaussians: what a drive does to the cloud."""

from __future__ import annotations

import math

import pytest
import torch

from gsavatar.avatar import Avatar, AvatarBranch, rotate_sh
from gsavatar.gaussians import from_points, neighbours
from gsavatar.motion import (
    TORSO_NAMES,
    LinearMotion,
    regularise,
    seeded,
    torso_coefficients,
)
from gsavatar.render import render, view_colors
from gsavatar.types import Branch, Camera, Drive, Gaussians


def turn(axis: int, angle: float) -> torch.Tensor:
    """A 4x4 rotation about one axis."""
    pose = torch.eye(4)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    pose[i, i] = pose[j, j] = math.cos(angle)
    pose[i, j], pose[j, i] = -math.sin(angle), math.sin(angle)
    return pose


def make_avatar(sh_degree: int = 0) -> Avatar:
    generator = torch.Generator().manual_seed(0)

    def branch(kind: Branch, columns: int, weight: float) -> AvatarBranch:
        points = torch.randn(7, 3, generator=generator) * 0.1
        raw = from_points(points, torch.rand(7, 3, generator=generator), torch.full((7,), 0.01),
                          sh_degree=sh_degree)  # fmt: skip
        seed = torch.randn(columns, 7, 3, generator=generator) * 0.01
        return AvatarBranch(kind, raw, seeded(seed), torch.full((7,), weight))

    return Avatar(
        ("jawOpen", "mouthPucker"),
        (branch(Branch.FACE, 2, 1.0), branch(Branch.MOUTH, 2, 1.0),
         branch(Branch.TORSO, len(TORSO_NAMES), 0.25)),
    )  # fmt: skip


def test_rest_is_the_canonical_cloud() -> None:
    avatar = make_avatar()
    posed = avatar(Drive(torch.zeros(2), torch.eye(4)))
    expected = torch.cat([b.raw.means for b in avatar.branches])
    torch.testing.assert_close(posed.means, expected)
    assert posed.branch.tolist() == [0] * 7 + [1] * 7 + [2] * 7


def test_motion_is_linear_and_reproduces_its_seed() -> None:
    avatar = make_avatar()
    coefficients = torch.tensor([0.7, -0.3])
    posed = avatar(Drive(coefficients, torch.eye(4)))
    face = avatar.branches[0]
    expected = face.raw.means + torch.einsum("k,knc->nc", coefficients, face.motion.seed)
    torch.testing.assert_close(posed.means[:7], expected)


def test_head_pose_moves_head_fully_and_torso_partly() -> None:
    avatar = make_avatar()
    still = Avatar(avatar.names, tuple(
        AvatarBranch(b.kind, b.raw, seeded(torch.zeros_like(b.motion.seed)), b.head_weight)
        for b in avatar.branches))  # fmt: skip
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor([0.01, 0.02, 0.04])
    rest, moved = (still(Drive(torch.zeros(2), p)).means for p in (torch.eye(4), pose))
    torch.testing.assert_close(moved[:14] - rest[:14], pose[:3, 3].expand(14, 3))
    torch.testing.assert_close(moved[14:] - rest[14:], 0.25 * pose[:3, 3].expand(7, 3))


def test_batches_give_what_single_drives_give() -> None:
    avatar = make_avatar(sh_degree=1)
    coefficients = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    poses = torch.stack([turn(1, 0.1 * i) for i in range(3)])
    batch = avatar(Drive(coefficients, poses))
    for i in range(3):
        one = avatar(Drive(coefficients[i], poses[i]))
        for name in ("means", "quats", "scales", "opacities", "sh"):
            torch.testing.assert_close(getattr(batch, name)[i], getattr(one, name))


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_colours_turn_with_the_head(degree: int) -> None:
    """A head and a camera that turn together show the same colours."""
    avatar = make_avatar(sh_degree=degree)
    face = avatar.branches[0]
    face.raw.sh[:, 1:] = (
        torch.randn(7, (degree + 1) ** 2 - 1, 3, generator=torch.Generator().manual_seed(2)) * 0.3
    )
    camera = Camera(turn(0, math.pi), torch.eye(3), 8, 8)
    camera.world_to_cam[2, 3] = 1.0
    for axis in range(3):
        pose = turn(axis, 0.6)
        turned = Camera(camera.world_to_cam @ torch.linalg.inv(pose), camera.K, 8, 8)
        seen = view_colors(avatar.only(Branch.FACE)(Drive(torch.zeros(2), pose)), turned)
        rest = view_colors(avatar.only(Branch.FACE)(Drive(torch.zeros(2), torch.eye(4))), camera)
        torch.testing.assert_close(seen, rest, atol=1e-5, rtol=1e-4)
        assert rest.std() > 0.05


def test_every_branch_is_seen() -> None:
    """Three blobs side by side, one of each branch, in red, green and blue."""
    means = torch.tensor([[-0.1, 0.0, 1.0], [0.0, 0.0, 1.0], [0.1, 0.0, 1.0]])
    constant = 0.5 / math.sqrt(math.pi)  # the harmonic of degree 0
    cloud = Gaussians(
        means, torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 3), torch.full((3, 3), 0.02),
        torch.full((3,), 0.95), ((torch.eye(3) - 0.5) / constant)[:, None],
        torch.tensor([int(kind) for kind in (Branch.FACE, Branch.MOUTH, Branch.TORSO)]).int(),
    )  # fmt: skip
    K = torch.tensor([[160.0, 0.0, 24.0], [0.0, 160.0, 24.0], [0.0, 0.0, 1.0]])
    seen = render(cloud, Camera(torch.eye(4), K, 48, 48), torch.zeros(3))
    for branch, column in enumerate((8, 24, 40)):
        color = seen.rgb[24, column]
        assert int(color.argmax()) == branch and float(color.max()) > 0.8
        assert float(seen.branch_alpha[24, column, branch]) > 0.8


def test_an_odd_number_of_harmonics_is_refused() -> None:
    with pytest.raises(ValueError, match="5 terms"):
        rotate_sh(torch.zeros(2, 5, 3), torch.eye(3))


def test_torso_coefficients_measure_the_head() -> None:
    assert torso_coefficients(torch.eye(4)).abs().max() == 0
    pose = turn(1, 0.1)
    pose[0, 3] = 0.02
    found = torso_coefficients(pose)
    torch.testing.assert_close(found[[1, 3]], torch.ones(2), atol=2e-3, rtol=0)
    assert found[[0, 2, 4, 5]].abs().max() < 1e-6


def test_neighbours_are_the_nearest() -> None:
    points = torch.rand(300, 3, generator=torch.Generator().manual_seed(3))
    distances, indices = neighbours(points, 4)
    full = torch.cdist(points, points).fill_diagonal_(float("inf"))
    torch.testing.assert_close(distances, full.topk(4, largest=False).values, atol=1e-4, rtol=1e-3)
    assert (indices != torch.arange(300)[:, None]).all()


def test_everything_learns() -> None:
    avatar = make_avatar()
    parameters = [
        t for b in avatar.branches for t in (*b.raw.parameters().values(), b.motion.basis)
    ]
    for parameter in parameters:
        parameter.requires_grad_()
    posed: Gaussians = avatar(Drive(torch.ones(2), turn(1, 0.2)))
    generator = torch.Generator().manual_seed(4)
    total = sum(
        (t * torch.randn(t.shape, generator=generator)).sum()
        for t in (posed.means, posed.quats, posed.scales, posed.opacities, posed.sh)
    )
    assert isinstance(total, torch.Tensor)
    total.backward()
    for parameter in parameters:
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_a_basis_returns_to_its_seed_but_keeps_the_sizes_it_learned() -> None:
    seed = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    start = seeded(seed).basis
    basis = start + 1.0
    around = torch.tensor([[1, 2], [0, 2], [0, 1], [4, 4], [3, 3]])
    regularise(LinearMotion(basis, seed), around, pull=0.25, blend=0.0)
    torch.testing.assert_close(basis[..., :3], start[..., :3] + 0.75)
    torch.testing.assert_close(basis[..., 3:6], torch.full((2, 5, 3), 0.75))
    torch.testing.assert_close(basis[..., 6:], torch.ones(2, 5, 3))
    alone = basis.clone()
    regularise(LinearMotion(basis, seed), around, pull=0.0, blend=0.5)
    torch.testing.assert_close(basis[:, 3], (alone[:, 3] + alone[:, 4]) / 2)
