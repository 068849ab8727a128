"""Native spherical harmonics against the torch reference in float64, and that against facts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gsavatar import ops
from gsavatar.avatar import rotate_sh
from gsavatar.ops.evaluate_sh import TERMS, evaluate_sh_bwd_op, evaluate_sh_op, sh_basis
from tests.test_ops_rasterize import assert_alike, isa  # noqa: F401  a fixture

NAMES = ("means", "sh", "centre")


def cloud(count: int, terms: int, seed: int = 0) -> dict[str, Tensor]:
    """A cloud around a camera's centre, float64; about a tenth of its colours is clamped."""
    g = torch.Generator().manual_seed(seed)
    return {
        "means": torch.randn(count, 3, generator=g, dtype=torch.float64),
        "sh": 0.5 * torch.randn(count, terms, 3, generator=g, dtype=torch.float64),
        "centre": torch.tensor([0.1, -0.2, 2.0], dtype=torch.float64),
    }


def run(function, values: dict[str, Tensor], dtype: torch.dtype):
    """Colours and gradients of a fixed random loss."""
    leaves = {n: values[n].detach().to(dtype).requires_grad_() for n in NAMES}
    colors = function(*leaves.values())
    g = torch.Generator().manual_seed(9)
    v = torch.randn(colors.shape, generator=g, dtype=torch.float64).to(dtype)
    (colors * v).sum().backward()
    return colors.detach(), {n: leaf.grad for n, leaf in leaves.items()}


@pytest.mark.parametrize("terms", TERMS[1:])
@pytest.mark.parametrize("count", [1, 17, 600])
@pytest.mark.usefixtures("isa")
def test_matches_reference(count: int, terms: int) -> None:
    values = cloud(count, terms)
    got, got_grads = run(ops.evaluate_sh, values, torch.float32)
    want, want_grads = run(ops.evaluate_sh_ref, values, torch.float64)
    assert count < 600 or 0.02 < float((want == 0).double().mean()) < 0.5
    assert_alike("colors", got, want, 1e-6)
    for name in NAMES:
        assert_alike(name, got_grads[name], want_grads[name], 3e-6)


@pytest.mark.parametrize("terms", TERMS)
def test_reference_passes_gradcheck(terms: int) -> None:
    values = cloud(5, terms)
    values["sh"] *= 0.1  # away from the clamp
    leaves = tuple(values[n].requires_grad_() for n in NAMES)
    assert torch.autograd.gradcheck(ops.evaluate_sh_ref, leaves)


def sphere(count: int) -> Tensor:
    """Evenly spread unit directions [count, 3], float64 (Fibonacci's spiral)."""
    i = torch.arange(count, dtype=torch.float64) + 0.5
    z, turn = 1 - 2 * i / count, i * math.pi * (3 - math.sqrt(5))
    flat = (1 - z * z).sqrt()
    return torch.stack((flat * turn.cos(), flat * turn.sin(), z), dim=-1)


def test_basis_is_orthonormal() -> None:
    basis = sh_basis(sphere(20_000), 16)
    gram = basis.mT @ basis * (4 * math.pi / 20_000)
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), atol=1e-3, rtol=0)


@pytest.mark.parametrize("terms", TERMS)
def test_rotated_harmonics_show_the_same_from_the_turned_side(terms: int) -> None:
    g = torch.Generator().manual_seed(3)
    sh = torch.randn(2, 7, terms, 3, generator=g, dtype=torch.float64)
    skew = torch.randn(2, 3, 3, generator=g, dtype=torch.float64)
    rotation = torch.linalg.matrix_exp(skew - skew.mT)
    turned = rotate_sh(sh, rotation)
    toward = sphere(50)
    for b in range(2):
        want = torch.einsum("ds,nsc->ndc", sh_basis(toward, terms), sh[b])
        got = torch.einsum("ds,nsc->ndc", sh_basis(toward @ rotation[b].mT, terms), turned[b])
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_degree_0_is_the_same_from_everywhere() -> None:
    values = {n: t.float() for n, t in cloud(20, 1).items()}
    seen = ops.evaluate_sh(*values.values())
    assert torch.equal(seen, ops.evaluate_sh(values["means"], values["sh"], torch.zeros(3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("isa")
def test_not_a_number_is_refused(name: str, terms: int, dtype: torch.dtype) -> None:
    """Minus infinity as well, which the clamp of the colours would hide."""
    for bad in (float("nan"), float("inf"), -float("inf")):
        for place in (0, -1):
            values = {n: t.to(dtype) for n, t in cloud(19, terms).items()}
            values[name].flatten()[place] = bad
            with pytest.raises(ValueError, match=f"{name} holds NaN"):
                ops.evaluate_sh(*values.values())


def test_a_gaussian_in_the_camera_stays_finite() -> None:
    values = {n: t.float() for n, t in cloud(20, 16).items()}
    values["means"][4] = values["centre"]
    colors, grads = run(ops.evaluate_sh, values, torch.float32)
    assert torch.isfinite(colors).all()
    assert all(torch.isfinite(g).all() for g in grads.values())


@pytest.mark.parametrize("count", [0, 300])
def test_threads_do_not_change_a_bit(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = cloud(count, 16)
    monkeypatch.setenv("GSAVATAR_THREADS", "1")
    one, one_grads = run(ops.evaluate_sh, values, torch.float32)
    monkeypatch.setenv("GSAVATAR_THREADS", "3")
    many, many_grads = run(ops.evaluate_sh, values, torch.float32)
    assert torch.equal(one, many)
    assert all(torch.equal(one_grads[n], many_grads[n]) for n in NAMES)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("means", torch.zeros(8, 2)),
        ("sh", torch.zeros(8, 5, 3)),
        ("sh", torch.zeros(7, 4, 3)),
        ("sh", torch.zeros(8, 4, 3).double()),
        ("sh", None),
        ("centre", torch.zeros(4)),
        ("centre", torch.zeros(3, device="meta")),
    ],
)
def test_malformed_arguments_are_refused(name: str, value: Tensor) -> None:
    values = {n: t.float() for n, t in cloud(8, 4).items()} | {name: value}
    with pytest.raises(ValueError, match=name):
        ops.evaluate_sh(*values.values())


def test_non_contiguous_inputs_look_the_same() -> None:
    values = {n: t.float() for n, t in cloud(20, 9).items()}
    strided = {n: t.mT.contiguous().mT if t.dim() > 1 else t for n, t in values.items()}
    got, got_grads = run(ops.evaluate_sh, strided, torch.float32)
    want, want_grads = run(ops.evaluate_sh, values, torch.float32)
    assert torch.equal(got, want)
    assert all(torch.equal(got_grads[n], want_grads[n]) for n in NAMES)


def test_opcheck_backward() -> None:
    values = [t.float() for t in cloud(8, 9).values()]
    torch.library.opcheck(
        evaluate_sh_bwd_op, (*values, torch.ones(8, 3)),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip


def test_opcheck() -> None:
    values = {n: t.float().requires_grad_() for n, t in cloud(8, 9).items()}
    torch.library.opcheck(
        evaluate_sh_op, tuple(values.values()),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )  # fmt: skip
