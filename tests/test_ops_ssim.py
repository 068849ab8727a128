"""The native SSIM against the torch reference in float64, and that against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gsavatar import ops
from gsavatar.ops import native
from gsavatar.ops.ssim import ssim_bwd_op, ssim_map_ref, ssim_op


def pictures(height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Two similar pictures in 0..1 and a mask, float64."""
    g = torch.Generator().manual_seed(seed)
    a = torch.rand(height, width, 3, generator=g, dtype=torch.float64)
    b = (a + 0.2 * torch.randn(height, width, 3, generator=g, dtype=torch.float64)).clamp(0, 1)
    mask = (torch.rand(height, width, generator=g) > 0.6).double() * 2.0
    return a, b, mask


@pytest.fixture(params=native.ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if native.ISAS.index(request.param) > native.ISAS.index(native.machine_isa()):
        pytest.skip(f"this CPU has no {request.param}")
    if not native.library_path(request.param).exists():
        pytest.skip(f"the compiler could not build {request.param}")
    monkeypatch.setenv("GSAVATAR_ISA", request.param)
    return request.param


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (11, 40), (37, 61), (64, 16)])
@pytest.mark.parametrize("masked", [False, True])
def test_matches_reference(isa: str, size: tuple[int, int], masked: bool) -> None:
    a, b, mask = pictures(*size)
    chosen = mask if masked else None
    if masked and mask.sum() == 0:
        pytest.skip("empty mask is another test")
    want_in = a.clone().requires_grad_()
    want = ops.ssim_ref(want_in, b, chosen)
    want.backward()
    got_in = a.float().requires_grad_()
    got = ops.ssim(got_in, b.float(), None if chosen is None else chosen.float())
    (3 * got).backward()
    assert abs(float(got.detach()) - float(want.detach())) < 2e-5
    assert want_in.grad is not None
    assert got_in.grad is not None
    error = got_in.grad.double() / 3 - want_in.grad
    assert want_in.grad.norm() > 0
    assert error.norm() < 1e-3 * want_in.grad.norm()


def test_reference_is_the_definition() -> None:
    a, b, _ = pictures(13, 12)
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    x, y = (np.pad(t.numpy()[..., 1], 5) for t in (a, b))
    for row, column in ((6, 6), (0, 3), (12, 11)):
        p, q = x[row : row + 11, column : column + 11], y[row : row + 11, column : column + 11]
        mp, mq = (window * p).sum(), (window * q).sum()
        vp, vq = (window * p * p).sum() - mp**2, (window * q * q).sum() - mq**2
        cov = (window * p * q).sum() - mp * mq
        want = (2 * mp * mq + 1e-4) * (2 * cov + 9e-4)
        want /= (mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)
        assert float(ssim_map_ref(a, b)[row, column, 1]) == pytest.approx(want, rel=1e-9)


def test_reference_passes_gradcheck() -> None:
    a, b, mask = pictures(5, 4)
    assert torch.autograd.gradcheck(lambda t: ops.ssim_ref(t, b, mask), a.requires_grad_())


def test_a_picture_is_like_itself() -> None:
    a = pictures(30, 30)[0].float()
    assert float(ops.ssim(a, a)) == pytest.approx(1.0, abs=1e-5)


def test_flat_pictures_stay_finite() -> None:
    a = torch.full((24, 24, 3), 0.5).requires_grad_()
    value = ops.ssim(a, torch.zeros(24, 24, 3))
    value.backward()
    assert torch.isfinite(value)
    assert a.grad is not None
    assert torch.isfinite(a.grad).all()


def test_an_empty_mask_gives_nothing() -> None:
    a = pictures(20, 20)[0].float().requires_grad_()
    value = ops.ssim(a, torch.zeros(20, 20, 3), torch.zeros(20, 20))
    value.backward()
    assert float(value.detach()) == 0.0
    assert a.grad is not None
    assert a.grad.abs().max() == 0


@pytest.mark.parametrize("threads", [2, 7])
def test_threads_do_not_change_a_bit(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, mask = (t.float() for t in pictures(50, 33))
    monkeypatch.setenv("GSAVATAR_THREADS", "1")
    one = ssim_op(a, b, mask, True)
    monkeypatch.setenv("GSAVATAR_THREADS", str(threads))
    assert all(torch.equal(u, v) for u, v in zip(one, ssim_op(a, b, mask, True), strict=True))


def test_no_gradient_without_grad_mode() -> None:
    a, b, _ = (t.float() for t in pictures(20, 20))
    with torch.no_grad():
        assert not ops.ssim(a.requires_grad_(), b).requires_grad


@pytest.mark.parametrize(
    ("a", "b", "mask"),
    [
        (torch.zeros(4, 4), torch.zeros(4, 4), None),
        (torch.zeros(0, 4, 3), torch.zeros(0, 4, 3), None),
        (torch.zeros(4, 4, 3), torch.zeros(4, 5, 3), None),
        (torch.zeros(4, 4, 3), torch.zeros(4, 4, 3).double(), None),
        (torch.zeros(4, 4, 3), torch.zeros(4, 4, 3), torch.zeros(4, 4, 1)),
        (torch.zeros(4, 4, 3), torch.zeros(4, 4, 3), torch.zeros(4, 4, dtype=torch.bool)),
        (torch.zeros(4, 4, 3).byte(), torch.zeros(4, 4, 3).byte(), None),
        (torch.zeros(4, 4, 3), None, None),
        (None, torch.zeros(4, 4, 3), None),
        (torch.zeros(4, 4, 3), torch.zeros(4, 4, 3, device="meta"), None),
        (torch.zeros(4, 4, 3), torch.zeros(4, 4, 3), torch.zeros(4, 4, device="meta")),
    ],
)
def test_malformed_arguments_are_refused(a: Tensor, b: Tensor, mask: Tensor | None) -> None:
    with pytest.raises(ValueError, match=r"must|is on"):
        ops.ssim(a, b, mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["a", "b", "mask"])
def test_not_a_number_is_refused(isa: str, name: str, dtype: torch.dtype) -> None:
    """Also where the mask is zero."""
    for bad in (float("nan"), float("inf"), -float("inf")):
        for place in (0, -1):
            values = dict(zip(("a", "b", "mask"), pictures(37, 19), strict=True))
            values = {n: t.to(dtype) for n, t in values.items()}
            values["mask"][0, 0] = values["mask"][-1, -1] = 0.0
            values[name].flatten()[place] = bad
            with pytest.raises(ValueError, match=rf"{name}\b.* holds NaN"):
                ops.ssim(*values.values())


def test_non_contiguous_pictures_compare_the_same() -> None:
    a, b, mask = (t.float() for t in pictures(20, 18))
    want = ssim_op(a, b, mask, True)
    planes = [t.permute(2, 0, 1).contiguous().permute(1, 2, 0) for t in (a, b)]
    got = ssim_op(*planes, mask.mT.contiguous().mT, True)
    assert all(torch.equal(u, v) for u, v in zip(got, want, strict=True))


def test_opcheck() -> None:
    a, b, mask = (t.float() for t in pictures(14, 15))
    torch.library.opcheck(ssim_op, (a.requires_grad_(), b, mask, True),
                          test_utils=("test_schema", "test_autograd_registration",
                                      "test_faketensor"))  # fmt: skip


def test_opcheck_backward() -> None:
    v_a = pictures(14, 15)[0].float()
    torch.library.opcheck(
        ssim_bwd_op, (v_a, torch.tensor(2.0)), test_utils=("test_schema", "test_faketensor")
    )
