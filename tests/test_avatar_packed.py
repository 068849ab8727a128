"""An avatar drawn by the kernels alone gives the picture of the one posed in torch."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gsavatar.avatar import Avatar, AvatarBranch
from gsavatar.avatar_packed import open_draw, pack, why_not_packed
from gsavatar.fields import field_of, layout
from gsavatar.gaussians import RawGaussians
from gsavatar.hearing import Hearing
from gsavatar.motion import TORSO_NAMES, LinearMotion
from gsavatar.render import render
from gsavatar.types import Branch, Camera, Drive

SIZE = 96
COUNTS = {Branch.FACE: 500, Branch.MOUTH: 90, Branch.TORSO: 310}
NAMES = ("jawOpen", "mouthPucker")


def seen_avatar(degree: int, seed: int = 0) -> Avatar:
    """A ball of a head with a mouth inside on a sheet, in random colours; everything moves."""
    g = torch.Generator().manual_seed(seed)

    def branch(kind: Branch) -> AvatarBranch:
        count = COUNTS[kind]
        columns = len(TORSO_NAMES) if kind == Branch.TORSO else len(NAMES)
        means = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=-1)
        size = {Branch.FACE: (0.08, 0.1, 0.08), Branch.MOUTH: (0.03, 0.02, 0.07),
                Branch.TORSO: (0.2, 0.05, 0.05)}[kind]  # fmt: skip
        means = means * torch.tensor(size)
        means[:, 1] -= 0.13 if kind == Branch.TORSO else 0.0
        sh = torch.randn(count, (degree + 1) ** 2, 3, generator=g) * 0.3
        log_scales = math.log(0.008) + 0.5 * torch.randn(count, 3, generator=g)
        log_scales[::50] = -13.0  # below the least size
        log_scales[1::50] = -2.0  # above the greatest
        raw = RawGaussians(
            means, torch.randn(count, 4, generator=g), log_scales,
            torch.randn(count, generator=g), sh,
        )  # fmt: skip
        basis = 0.1 * torch.randn(columns, count, 9, generator=g)
        share = (
            torch.linspace(0.0, 1.0, count) if kind == Branch.TORSO else torch.full((count,), 0.5)
        )
        return AvatarBranch(kind, raw, LinearMotion(basis, torch.zeros(columns, count, 3)), share)

    return Avatar(NAMES, tuple(branch(kind) for kind in Branch))


def seen_camera(size: int = SIZE) -> Camera:
    """A frontal camera 0.7 m before the head."""
    world_to_cam = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    world_to_cam[2, 3] = 0.7
    K = torch.tensor([[2.0 * size, 0.0, size / 2], [0.0, 2.0 * size, size / 2], [0.0, 0.0, 1.0]])
    return Camera(world_to_cam, K, size, size)


def turned(angle: float = 0.4) -> Tensor:
    """A head pose [4, 4] about a slanted axis, with a shift."""
    axis = torch.tensor([0.3, 0.9, -0.2])
    axis = axis / axis.norm() * angle
    cross = torch.zeros(3, 3)
    cross[0, 1], cross[0, 2], cross[1, 2] = -axis[2], axis[1], -axis[0]
    pose = torch.eye(4)
    pose[:3, :3] = torch.linalg.matrix_exp(cross - cross.T)
    pose[:3, 3] = torch.tensor([0.02, -0.01, 0.03])
    return pose


def back(size: int = SIZE) -> Tensor:
    """A background [H, W, 3] that is another colour in every pixel."""
    return torch.rand(size, size, 3, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("angle", [0.0, 0.4, -3.0])
def test_gives_the_picture_of_the_torch_way(degree: int, angle: float) -> None:
    avatar, camera = seen_avatar(degree), seen_camera()
    packed = pack(avatar)
    for coefficients in (torch.tensor([0.8, -0.5]), torch.tensor([0.0, 1.0])):
        drive = Drive(coefficients, turned(angle))
        want, got = render(avatar(drive), camera, back()), packed.draw(drive, camera, back())
        assert want.branch_alpha.mean((0, 1)).min() > 0.005  # every branch is seen
        for name in ("rgb", "alpha", "branch_alpha", "depth"):
            off = (getattr(got, name) - getattr(want, name)).abs()
            # One contribution in some thousand pixels lies within rounding of the faintest alpha
            # that counts, 1/255: there the two differ by all of it. Elsewhere only by rounding.
            assert off.max() < 1.5 / 255, f"{name} {off.max():.5f}"
            assert (off > 1e-4).float().mean() < 1e-3 and off.mean() < 3e-6, name


def test_everything_that_moves_is_packed() -> None:
    """The pictures differ with every coefficient and with the pose, as the torch way's do."""
    avatar, camera = seen_avatar(1), seen_camera()
    draw = open_draw(avatar)
    rest = draw(Drive(torch.zeros(2), torch.eye(4)), camera, back()).rgb
    for drive in (
        Drive(torch.tensor([1.0, 0.0]), torch.eye(4)),
        Drive(torch.tensor([0.0, 1.0]), torch.eye(4)),
        Drive(torch.zeros(2), turned()),
    ):  # fmt: skip
        assert (draw(drive, camera, back()).rgb - rest).abs().mean() > 5e-3


def test_some_branches_alone() -> None:
    avatar, drive = seen_avatar(1), Drive(torch.tensor([0.8, -0.5]), turned())
    face = pack(avatar).only(frozenset({Branch.FACE})).draw(drive, seen_camera(), back())
    want = render(avatar.only(Branch.FACE)(drive), seen_camera(), back())
    assert (face.rgb - want.rgb).abs().max() < 2e-3
    assert face.branch_alpha[..., 1:].abs().max() == 0
    nothing = pack(avatar).only(frozenset()).draw(drive, seen_camera(), back())
    assert torch.equal(nothing.rgb, back())


def test_nothing_of_the_avatar_changes() -> None:
    avatar = seen_avatar(1)
    before = [b.motion.basis.clone() for b in avatar.branches if isinstance(b.motion, LinearMotion)]
    pack(avatar).draw(Drive(torch.ones(2), turned()), seen_camera(), back())
    for branch, basis in zip(avatar.branches, before, strict=True):
        assert torch.equal(branch.linear.basis, basis)


def test_a_field_is_drawn_the_torch_way_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    avatar = seen_avatar(0)
    hearing = Hearing("logmel", torch.zeros(2, 4), torch.zeros(4, 3), torch.zeros(3))
    face = avatar.branches[0]
    parameters = {n: torch.zeros(s) for n, s in layout(Branch.FACE, hearing.channels).items()}
    field = field_of(Branch.FACE, parameters, torch.zeros(3), torch.tensor(0.2), NAMES, hearing)
    heard = replace(avatar, branches=(replace(face, motion=field), *avatar.branches[1:]))
    assert "field" in str(why_not_packed(heard)) and why_not_packed(avatar) is None
    with pytest.raises(TypeError, match="field"):
        pack(heard)
    with caplog.at_level(logging.INFO, "gsavatar"):
        open_draw(avatar)
        assert not caplog.messages
        open_draw(heard)
    assert any("torch" in m and "field" in m for m in caplog.messages)
