"""Native posing against the torch reference in float64, and against geometry."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gsavatar import ops
from gsavatar.geometry import quat_multiply, quat_to_matrix
from gsavatar.ops.pose_gaussians import Pose, pose_gaussians_bwd_op, pose_gaussians_op
from tests.test_ops_blend_motion import isa  # noqa: F401

NAMES = ("means", "quats", "turn", "shift", "share")


def cloud(count: int, seed: int = 0, real: float = 0.9) -> dict[str, Tensor]:
    """A random cloud and pose, float64; some Gaussians follow fully, some not at all."""
    g = torch.Generator().manual_seed(seed)
    share = torch.rand(count, generator=g, dtype=torch.float64)
    share[::3], share[1::5] = 1.0, 0.0
    turn = 0.4 * torch.randn(4, generator=g, dtype=torch.float64)
    turn[0] = real
    return {
        "means": torch.randn(count, 3, generator=g, dtype=torch.float64),
        "quats": torch.randn(count, 4, generator=g, dtype=torch.float64),
        "turn": turn,
        "shift": torch.randn(3, generator=g, dtype=torch.float64),
        "share": share,
    }


def run(function, values: dict[str, Tensor], dtype: torch.dtype):
    """Outputs and gradients of a fixed random loss."""
    leaves = {name: t.detach().to(dtype).requires_grad_() for name, t in values.items()}
    outputs = function(
        leaves["means"], leaves["quats"], Pose(leaves["turn"], leaves["shift"], leaves.get("share"))
    )
    g = torch.Generator().manual_seed(9)
    v = [torch.randn(t.shape, generator=g, dtype=torch.float64).to(dtype) for t in outputs]
    sum((a * b).sum() for a, b in zip(outputs, v, strict=True)).backward()
    return outputs, {name: leaf.grad for name, leaf in leaves.items()}


@pytest.mark.parametrize("real", [0.9, -0.9])
@pytest.mark.parametrize("count", [1, 17, 600])
@pytest.mark.parametrize("shared", [True, False])
def test_matches_reference(isa: str, count: int, real: float, shared: bool) -> None:  # noqa: F811
    values = cloud(count, real=real)
    if not shared:
        del values["share"]
    got, got_grads = run(ops.pose_gaussians, values, torch.float32)
    want, want_grads = run(ops.pose_gaussians_ref, values, torch.float64)
    for a, b in zip(got, want, strict=True):
        assert (a.double() - b).norm() <= 2e-6 * b.norm()
    for name in values:
        a, b = got_grads[name].double(), want_grads[name]
        assert b.norm() > 0
        assert (a - b).norm() <= 2e-5 * b.norm(), name


def test_reference_passes_gradcheck() -> None:
    leaves = [values.requires_grad_() for values in cloud(4).values()]

    def posed(means: Tensor, quats: Tensor, *pose: Tensor) -> tuple[Tensor, Tensor]:
        return ops.pose_gaussians_ref(means, quats, Pose(*pose))

    assert torch.autograd.gradcheck(posed, leaves)


def test_the_whole_motion_is_that_of_geometry() -> None:
    values = cloud(50)
    turn = torch.nn.functional.normalize(values["turn"], dim=0)
    means, quats = ops.pose_gaussians_ref(
        values["means"], values["quats"], Pose(values["turn"], values["shift"])
    )
    assert torch.allclose(means, values["means"] @ quat_to_matrix(turn).T + values["shift"])
    assert torch.allclose(quats, quat_multiply(turn, values["quats"]))


def test_no_share_is_no_motion() -> None:
    values = {name: t.float() for name, t in cloud(40).items()}
    pose = Pose(values["turn"], values["shift"], torch.zeros(40))
    means, quats = ops.pose_gaussians(values["means"], values["quats"], pose)
    assert torch.equal(means, values["means"])
    torch.testing.assert_close(quats, values["quats"])


def test_empty_cloud() -> None:
    pose = Pose(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(3))
    means, quats = ops.pose_gaussians(torch.zeros(0, 3), torch.zeros(0, 4), pose)
    assert means.shape == (0, 3) and quats.shape == (0, 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("means", torch.zeros(8, 2)),
        ("quats", torch.zeros(7, 4)),
        ("turn", torch.zeros(3)),
        ("turn", torch.zeros(4).double()),
        ("shift", torch.zeros(4)),
        ("share", torch.zeros(8, 1)),
        ("share", torch.zeros(8, device="meta")),
    ],
)
def test_malformed_arguments_are_refused(name: str, value: Tensor) -> None:
    v = {n: t.float() for n, t in cloud(8).items()} | {name: value}
    with pytest.raises(ValueError, match=name):
        ops.pose_gaussians(v["means"], v["quats"], Pose(v["turn"], v["shift"], v["share"]))


def test_no_pose_is_refused() -> None:
    with pytest.raises(ValueError, match="pose must be a Pose, got NoneType"):
        ops.pose_gaussians(torch.zeros(8, 3), torch.zeros(8, 4), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_not_a_number_is_refused(isa: str, name: str, dtype: torch.dtype) -> None:  # noqa: F811
    for bad in (float("nan"), float("inf"), -float("inf")):
        for place in (0, -1):
            v = {n: t.to(dtype) for n, t in cloud(19).items()}
            v[name].flatten()[place] = bad
            with pytest.raises(ValueError, match=f"{name} holds NaN"):
                ops.pose_gaussians(v["means"], v["quats"], Pose(v["turn"], v["shift"], v["share"]))


def test_no_gaussians_are_posed() -> None:
    v = {n: t.float().requires_grad_() for n, t in cloud(0).items()}
    means, quats = ops.pose_gaussians(
        v["means"], v["quats"], Pose(v["turn"], v["shift"], v["share"])
    )
    assert means.shape == (0, 3) and quats.shape == (0, 4)
    (means.sum() + quats.sum()).backward()
    assert v["turn"].grad is not None and v["turn"].grad.abs().max() == 0


def test_non_contiguous_inputs_are_posed_the_same() -> None:
    v = {n: t.float() for n, t in cloud(20).items()}
    pose = Pose(v["turn"], v["shift"], v["share"])
    strided = Pose(v["turn"], v["shift"], v["share"].repeat_interleave(2)[::2])
    want = ops.pose_gaussians(v["means"], v["quats"], pose)
    got = ops.pose_gaussians(v["means"].mT.contiguous().mT, v["quats"].mT.contiguous().mT, strided)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("shared", [True, False])
def test_opcheck(shared: bool) -> None:
    values = {n: t.float().requires_grad_() for n, t in cloud(8).items()}
    inputs = [values[n] if shared or n != "share" else None for n in NAMES]
    torch.library.opcheck(
        pose_gaussians_op, inputs,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )  # fmt: skip


@pytest.mark.parametrize("shared", [True, False])
def test_opcheck_backward(shared: bool) -> None:
    values = {n: t.float() for n, t in cloud(8).items()}
    inputs = [values[n] if shared or n != "share" else None for n in NAMES]
    torch.library.opcheck(
        pose_gaussians_bwd_op, (*inputs, torch.ones(8, 3), torch.ones(8, 4)),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip
