"""Native motion blending against the torch reference in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gsavatar import ops
from gsavatar.geometry import quat_multiply, rotvec_to_quat
from gsavatar.ops import native
from gsavatar.ops.blend_motion import blend_motion_bwd_op, blend_motion_op

NAMES = ("means", "quats", "scales", "basis", "coefficients")


def cloud(count: int, terms: int, seed: int = 0, turn: float = 0.3) -> dict[str, Tensor]:
    """A random cloud with a basis, float64; some coefficients are at rest."""
    g = torch.Generator().manual_seed(seed)
    basis = turn * torch.randn(terms, count, 9, generator=g, dtype=torch.float64)
    coefficients = torch.randn(terms, generator=g, dtype=torch.float64)
    coefficients[::3] = 0.0
    return {
        "means": torch.randn(count, 3, generator=g, dtype=torch.float64),
        "quats": torch.randn(count, 4, generator=g, dtype=torch.float64),
        "scales": torch.rand(count, 3, generator=g, dtype=torch.float64) + 0.1,
        "basis": basis,
        "coefficients": coefficients,
    }


@pytest.fixture(params=native.ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if native.ISAS.index(request.param) > native.ISAS.index(native.machine_isa()):
        pytest.skip(f"this CPU has no {request.param}")
    if not native.library_path(request.param).exists():
        pytest.skip(f"the compiler could not build {request.param}")
    monkeypatch.setenv("GSAVATAR_ISA", request.param)
    return request.param


def run(function, values: dict[str, Tensor], dtype: torch.dtype):
    """Outputs and gradients of a fixed random loss."""
    leaves = {name: values[name].detach().to(dtype).requires_grad_() for name in NAMES}
    outputs = function(*leaves.values(), mean_unit=0.05)
    g = torch.Generator().manual_seed(9)
    v = [torch.randn(t.shape, generator=g, dtype=torch.float64).to(dtype) for t in outputs]
    sum((a * b).sum() for a, b in zip(outputs, v, strict=True)).backward()
    return outputs, {name: leaf.grad for name, leaf in leaves.items()}


@pytest.mark.parametrize("turn", [1e-6, 0.3, 1.2])
@pytest.mark.parametrize("count", [1, 17, 600])
def test_matches_reference(isa: str, count: int, turn: float) -> None:
    values = cloud(count, 5, turn=turn)
    got, got_grads = run(ops.blend_motion, values, torch.float32)
    want, want_grads = run(ops.blend_motion_ref, values, torch.float64)
    for a, b in zip(got, want, strict=True):
        assert (a.double() - b).norm() <= 3e-6 * b.norm()
    for name in NAMES:
        a, b = got_grads[name].double(), want_grads[name]
        assert b.norm() > 0
        assert (a - b).norm() <= 2e-5 * b.norm(), name


def test_reference_passes_gradcheck() -> None:
    values = cloud(3, 4)
    leaves = tuple(values[name].requires_grad_() for name in NAMES)
    assert torch.autograd.gradcheck(ops.blend_motion_ref, leaves)


def test_reference_turns_as_geometry_does() -> None:
    values = cloud(50, 3)
    offsets = torch.einsum("k,kno->no", values["coefficients"], values["basis"])
    _, quats, _ = ops.blend_motion_ref(*values.values())
    want = quat_multiply(rotvec_to_quat(offsets[:, 3:6]), values["quats"])
    assert torch.allclose(quats, want, atol=1e-9)


def test_rest_changes_nothing() -> None:
    values = {name: t.float() for name, t in cloud(40, 3).items()}
    values["coefficients"] = torch.zeros(3)
    means, quats, scales = ops.blend_motion(*values.values())
    assert torch.equal(means, values["means"])
    assert torch.equal(quats, values["quats"])
    assert torch.allclose(scales, values["scales"], rtol=1e-6)


@pytest.mark.parametrize(("count", "terms"), [(0, 3), (5, 0), (0, 0)])
def test_empty_inputs(count: int, terms: int) -> None:
    values = {name: t.float() for name, t in cloud(count, terms).items()}
    means, _, _ = ops.blend_motion(*values.values())
    assert torch.equal(means, values["means"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("means", torch.zeros(8, 2)),
        ("quats", torch.zeros(7, 4)),
        ("basis", torch.zeros(3, 8, 8)),
        ("basis", torch.zeros(3, 8, 9).double()),
        ("coefficients", torch.zeros(3, 1)),
        ("coefficients", None),
        ("means", None),
        ("scales", torch.zeros(8, 3, device="meta")),
    ],
)
def test_malformed_arguments_are_refused(name: str, value: Tensor) -> None:
    values = {n: t.float() for n, t in cloud(8, 3).items()} | {name: value}
    with pytest.raises(ValueError, match=name):
        ops.blend_motion(*values.values())


BAD = (float("nan"), float("inf"), -float("inf"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_not_a_number_is_refused(isa: str, name: str, dtype: torch.dtype) -> None:
    """Wherever it stands: at the end, which no whole vector holds, and in every column."""
    for bad in BAD:
        for place in (0, -1, *(range(-9, 0) if name == "basis" else ())):
            values = {n: t.to(dtype) for n, t in cloud(19, 5).items()}
            values[name].flatten()[place if name != "coefficients" else 1] = bad
            values["coefficients"][values["coefficients"] == 0] = 0.5
            with pytest.raises(ValueError, match=f"{name} holds NaN"):
                ops.blend_motion(*values.values())


def test_a_coefficient_at_rest_reads_no_basis() -> None:
    values = {n: t.float() for n, t in cloud(19, 4).items()}
    values["basis"][0] = float("nan")
    assert values["coefficients"][0] == 0
    assert all(torch.isfinite(t).all() for t in ops.blend_motion(*values.values()))


@pytest.mark.parametrize("unit", [float("nan"), float("inf"), None])
def test_an_impossible_unit_is_refused(unit: float) -> None:
    values = {n: t.float() for n, t in cloud(8, 3).items()}
    with pytest.raises(ValueError, match="mean_unit must be a finite number"):
        ops.blend_motion(*values.values(), mean_unit=unit)


def test_non_contiguous_inputs_move_the_same() -> None:
    values = {n: t.float() for n, t in cloud(20, 3).items()}
    strided = {n: t.mT.contiguous().mT if t.dim() > 1 else t for n, t in values.items()}
    strided["coefficients"] = values["coefficients"].repeat_interleave(2)[::2]
    assert not any(t.is_contiguous() for t in strided.values())
    got, got_grads = run(ops.blend_motion, strided, torch.float32)
    want, want_grads = run(ops.blend_motion, values, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert all(torch.equal(got_grads[n], want_grads[n]) for n in NAMES)


def test_a_great_stretch_stays_finite() -> None:
    values = {name: t.float() for name, t in cloud(20, 1).items()}
    values["basis"][0, :, 6:] = 1e4
    values["coefficients"] = torch.ones(1)
    _, _, scales = ops.blend_motion(*values.values())
    assert (scales > 1e30).all()


@pytest.mark.parametrize("needed", [True, False])
def test_opcheck_backward(needed: bool) -> None:
    values = [t.float() for t in cloud(8, 3).values()]
    given = [torch.ones_like(t) for t in values[:3]]
    torch.library.opcheck(
        blend_motion_bwd_op, (*values, 0.05, *given, needed, needed),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip


def test_opcheck() -> None:
    values = {n: t.float().requires_grad_() for n, t in cloud(8, 3).items()}
    torch.library.opcheck(
        blend_motion_op, (*values.values(), 0.05),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )  # fmt: skip
