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
from gsavatar.ops.rasterize_blended import Part, _flat, moved_ref, rasterize_blended_op
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


BAD = (float("nan"), float("inf"), -float("inf"))


@pytest.mark.parametrize(
    "name",
    ["means", "quats", "scales", "opacities", "sh", "world_to_cam", "K", "background"],
)
def test_not_a_number_is_refused(isa: str, name: str) -> None:  # noqa: F811
    """Also where limits of the scales or the clamp of the colours would hide it."""
    named = "colors" if name == "sh" else name  # the harmonics stand in the place of the colours
    for bad in BAD:
        s = single(scene(sum(COUNTS), seed=2, image=True)) | {"sh": harmonics(4)}
        s[name].flatten()[-1] = bad
        with pytest.raises(ValueError, match=f"{named} holds NaN"):
            drawn(s, (s["means"], s["quats"], s["scales"]), parts_of(True, True))


@pytest.mark.parametrize("column", range(9))
def test_a_basis_that_holds_no_numbers_is_refused(isa: str, column: int) -> None:  # noqa: F811
    for bad in BAD:
        s = single(scene(sum(COUNTS), seed=2)) | {"sh": harmonics(4)}
        parts = parts_of(True, True)
        parts[1].basis[0, -1, column] = bad
        with pytest.raises(ValueError, match="holds NaN"):
            drawn(s, (s["means"], s["quats"], s["scales"]), parts)


@pytest.mark.parametrize("count", [0, 3])
def test_no_gaussians_show_the_background(count: int) -> None:
    """Without parts, and with parts that hold nothing."""
    s = single(scene(0, image=True)) | {"sh": torch.zeros(0, 4, 3)}
    parts = [Part(torch.zeros(2, 0, 9), torch.ones(2))] * count
    seen = drawn(s, (s["means"], s["quats"], s["scales"]), parts)
    assert torch.equal(seen.rgb, s["background"]) and seen.alpha.max() == 0


def test_impossible_sizes_are_refused() -> None:
    s = single(scene(sum(COUNTS), seed=2)) | {"sh": harmonics(4)}
    for size in ((0, 8), (8, 0), (8, 10**9)):
        with pytest.raises(ValueError, match="whole number"):
            ops.rasterize_blended(
                s["means"], s["quats"], s["scales"], parts_of(False, False), s["opacities"],
                s["sh"], s["branch"], s["world_to_cam"], s["K"], *size, s["background"],
            )  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"mean_unit": float("nan")}, "mean_unit must be a finite number"),
        ({"scale_limits": (0.03, 0.02)}, "scale_limits must be"),
        ({"scale_limits": (float("nan"), 1.0)}, "scale_limits must be"),
        ({"scale_limits": (-1.0, 1.0)}, "scale_limits must be"),
        (None, "must be a sequence of Part"),
    ],
)
def test_impossible_parts_are_refused(bad: dict[str, Any] | None, sentence: str) -> None:
    s = single(scene(sum(COUNTS), seed=2)) | {"sh": harmonics(4)}
    parts: list[Any] = list(parts_of(False, False))
    parts[0] = None if bad is None else replace(parts[0], **bad)
    with pytest.raises(ValueError, match=sentence):
        drawn(s, (s["means"], s["quats"], s["scales"]), parts)


def test_non_contiguous_inputs_give_the_same_picture() -> None:
    s = single(scene(sum(COUNTS), seed=2, image=True)) | {"sh": harmonics(4)}
    parts = parts_of(True, True)
    want = drawn(s, (s["means"], s["quats"], s["scales"]), parts).rgb
    strided = {k: v.mT.contiguous().mT if v.dim() > 1 else v for k, v in s.items()}
    apart = [replace(p, basis=p.basis.mT.contiguous().mT) for p in parts]
    assert not apart[0].basis.is_contiguous() and not strided["means"].is_contiguous()
    cloud = (strided["means"], strided["quats"], strided["scales"])
    assert torch.equal(drawn(strided, cloud, apart).rgb, want)


@pytest.mark.parametrize("pose", [True, False])
def test_opcheck(pose: bool) -> None:
    s = single(scene(sum(COUNTS), seed=2)) | {"sh": harmonics(4)}
    names = ("means", "quats", "scales", "opacities", "sh", "branch", "world_to_cam", "K")
    torch.library.opcheck(
        rasterize_blended_op,
        (*(s[n] for n in names), *SIZE, s["background"],
         *_flat(parts_of(pose, True), s["means"])),
    )  # fmt: skip


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
