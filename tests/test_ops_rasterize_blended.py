"""Drawing that moves the cloud first, against moving it in torch and drawing that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gsavatar import ops
from gsavatar.avatar import rotate_sh
from gsavatar.geometry import quat_to_matrix
from gsavatar.ops.evaluate_sh import TERMS
from gsavatar.ops.native import NativeUnavailable
from gsavatar.ops.pose_gaussians import Pose
from gsavatar.ops.rasterize_blended import Part, moved_ref
from tests.test_ops_blend_motion import isa  # noqa: F401
from tests.test_ops_rasterize import scene, single

COUNTS = (190, 70, 40)  # parts that end inside a chunk of 256 and inside a vector
SIZE = (47, 40)


def parts_of(pose: bool, limits: bool) -> list[Part]:
    """Three parts of different numbers of coefficients; the last takes a share of the pose."""
    g = torch.Generator().manual_seed(1)
    turn, shift = torch.tensor([0.99, 0.1, -0.05, 0.02]), torch.tensor([0.02, -0.03, 0.05])
    made = []
    for count, terms in zip(COUNTS, (6, 6, 3), strict=True):
        share = torch.rand(count, generator=g) if count == COUNTS[-1] else None
        coefficients = torch.randn(terms, generator=g)
        coefficients[1] = 0.0
        made.append(
            Part(
                0.1 * torch.randn(terms, count, 9, generator=g),
                coefficients,
                Pose(turn, shift, share) if pose else None,
                mean_unit=0.05,
                scale_limits=(0.02, 0.03) if limits else (0.0, float("inf")),
                turns_sh=share is None,
            )
        )
    return made


def drawn(s: dict[str, Tensor], cloud: tuple[Tensor, ...], parts: Any = None) -> Any:
    view = (s["branch"], s["world_to_cam"], s["K"], *SIZE, s["background"])
    if parts is None:
        turn = s["world_to_cam"][:3, :3]
        centre = -turn.T @ s["world_to_cam"][:3, 3]
        return ops.rasterize(
            *cloud, s["opacities"], ops.evaluate_sh(cloud[0], s["sh"], centre), *view
        )
    return ops.rasterize_blended(*cloud, parts, s["opacities"], s["sh"], *view)


def harmonics(terms: int) -> Tensor:
    return 0.3 * torch.randn(sum(COUNTS), terms, 3, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize(("pose", "limits"), [(False, False), (True, False), (True, True)])
def test_is_moving_then_drawing(isa: str, terms: int, pose: bool, limits: bool) -> None:  # noqa: F811
    s = single(scene(sum(COUNTS), seed=2, image=True)) | {"sh": harmonics(terms)}
    cloud, parts = (s["means"], s["quats"], s["scales"]), parts_of(pose, limits)
    exact = [replace(p, basis=p.basis.double(), coefficients=p.coefficients.double(),
                     pose=None if p.pose is None else _double(p.pose))
             for p in parts]  # fmt: skip
    moved = moved_ref(*(t.double() for t in cloud), exact)
    want = drawn(_turned(s, parts), tuple(t.float() for t in moved))
    got, still = drawn(s, cloud, parts), drawn(s, cloud)
    assert (want.rgb - still.rgb).abs().mean() > 1e-3
    for name in ("rgb", "alpha", "branch_alpha"):
        off = (getattr(got, name) - getattr(want, name)).abs()
        assert off.max() < 5e-3, name  # an alpha at the 1/255 threshold
        assert off.mean() < 1e-5, name
    assert (got.depth - want.depth).abs().mean() < 1e-4


def _turned(s: dict[str, Tensor], parts: list[Part]) -> dict[str, Tensor]:
    """The scene with the harmonics of the parts that are posed turned as the avatar turns them."""
    turned = []
    for part, sh in zip(parts, s["sh"].split(COUNTS), strict=True):
        turn = torch.tensor([1.0, 0.0, 0.0, 0.0])
        if part.pose is not None and part.turns_sh:
            turn = torch.nn.functional.normalize(part.pose.turn, dim=0)
        turned.append(rotate_sh(sh, quat_to_matrix(turn)))
    return s | {"sh": torch.cat(turned)}


def _double(pose: Pose) -> Pose:
    share = None if pose.share is None else pose.share.double()
    return Pose(pose.turn.double(), pose.shift.double(), share)


def test_repeats_are_equal() -> None:
    s = single(scene(sum(COUNTS), seed=2)) | {"sh": harmonics(4)}
    cloud = (s["means"], s["quats"], s["scales"])
    first, second = (drawn(s, cloud, parts_of(True, True)).rgb for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["means", "quats", "opacities", "sh", "branch", "K", "background"])
def test_malformed_arguments_are_refused(name: str) -> None:
    s = single(scene(sum(COUNTS), seed=2)) | {"sh": harmonics(4)}
    for value in (None, torch.zeros(2, 2), s[name].to("meta")):
        bad = s | {name: value}
        with pytest.raises(ValueError, match=rf"{name}|is on"):
            drawn(bad, (bad["means"], bad["quats"], bad["scales"]), parts_of(False, False))


def test_a_device_without_kernels_is_refused() -> None:
    s = single(scene(sum(COUNTS), seed=2)) | {"sh": harmonics(4)}
    away = {name: t.to("meta") for name, t in s.items()}
    with pytest.raises(NativeUnavailable, match="no kernels for tensors on meta"):
        drawn(away, (away["means"], away["quats"], away["scales"]), parts_of(False, False))


@pytest.mark.parametrize(
    "bad", ["short", "coefficients", "turn", "basis", "share", "no basis", "no pose"]
)
def test_malformed_parts_are_refused(bad: str) -> None:
    s = single(scene(sum(COUNTS), seed=2)) | {"sh": harmonics(4)}
    parts = parts_of(True, False)
    last = parts[-1]
    assert last.pose is not None
    nan = float("nan")
    parts[-1] = {
        "short": replace(last, basis=last.basis[:, 1:],
                         pose=replace(last.pose, share=last.pose.share[1:])),
        "coefficients": replace(last, coefficients=last.coefficients * nan),
        "turn": replace(last, pose=replace(last.pose, turn=last.pose.turn * nan)),
        "basis": replace(last, basis=last.basis * nan),
        "share": replace(last, pose=replace(last.pose, share=last.pose.share[:-1])),
        "no basis": replace(last, basis=None),
        "no pose": replace(last, pose=()),
    }[bad]  # fmt: skip
    with pytest.raises(ValueError, match=r"parts hold|NaN|must have shape|must be a (Pose|tensor)"):
        drawn(s, (s["means"], s["quats"], s["scales"]), parts)
