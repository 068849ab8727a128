"""The native rasterizer against the torch reference in float64: forward and every gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gsavatar import ops
from gsavatar.ops import native
from gsavatar.ops.rasterize import rasterize_bwd_op, rasterize_op

OUTPUTS = ("rgb", "alpha", "branch_alpha", "depth")
GRADIENTS = (
    "means", "quats", "scales", "opacities", "colors", "world_to_cam", "K", "background",
    "screen_probe",
)  # fmt: skip

Scene = dict[str, Tensor]


def scene(
    count: int, seed: int = 0, side: int = 40, *, image: bool = False, size: float = 0.02
) -> Scene:
    """A random blob about 1 m in front of a slightly turned camera, float64."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    turn = torch.linalg.matrix_exp(0.2 * torch.tensor([[0, -1, 2], [1, 0, -1], [-2, 1, 0.0]]))
    world_to_cam = torch.eye(4, dtype=torch.float64)
    world_to_cam[:3, :3] = turn
    world_to_cam[:3, 3] = torch.tensor([0.02, -0.01, 1.0])
    focal = 2.5 * side
    K = torch.tensor([[focal, 0, side / 2 - 1], [0, 1.1 * focal, side / 2 + 2], [0, 0, 1.0]])
    return {
        "means": 0.09 * normal(count, 3),
        "quats": normal(count, 4),
        "scales": size * torch.exp(0.7 * normal(count, 3)),
        "opacities": 0.05 + 0.95 * uniform(count),
        "colors": uniform(count, 3),
        "branch": torch.randint(0, 3, (count,), generator=g, dtype=torch.int32),
        "world_to_cam": world_to_cam,
        "K": K.double(),
        "background": uniform(side, side + 7, 3) if image else uniform(3),
        "screen_probe": 0.3 * normal(count, 2),
    }


def call(function, s: Scene, side: int = 40, **options):
    """``function`` of the scene at ``side`` + 7 by ``side`` pixels."""
    return function(
        s["means"], s["quats"], s["scales"], s["opacities"], s["colors"], s["branch"],
        s["world_to_cam"], s["K"], side + 7, side, s["background"],
        screen_probe=s["screen_probe"], **options,
    )  # fmt: skip


def single(s: Scene) -> Scene:
    """The scene in float32."""
    return {name: t if name == "branch" else t.float() for name, t in s.items()}


def leaves(s: Scene, dtype: torch.dtype) -> Scene:
    """A copy whose float tensors are leaves of ``dtype``."""
    return {
        name: t.clone() if name == "branch" else t.to(dtype).requires_grad_()
        for name, t in s.items()
    }


def cotangents(side: int, seed: int = 5) -> dict[str, Tensor]:
    """Smooth gradients of the four outputs: noise would hide a bias."""
    g = torch.Generator().manual_seed(seed)
    made = {}
    for name, channels in zip(OUTPUTS, (3, 1, 3, 1), strict=True):
        coarse = torch.randn(1, channels, 5, 5, generator=g, dtype=torch.float64)
        fine = torch.nn.functional.interpolate(coarse, (side, side + 7), mode="bicubic")
        made[name] = fine[0].permute(1, 2, 0)
    return made


def gradients(function, s: Scene, dtype: torch.dtype, side: int, outputs=OUTPUTS, **options):
    """Outputs and gradients of a smooth loss over the chosen outputs."""
    inputs = leaves(s, dtype)
    rendering = call(function, inputs, side, **options)
    v = cotangents(side)
    sum((getattr(rendering, name) * v[name].to(dtype)).sum() for name in outputs).backward()
    return rendering, {name: inputs[name].grad for name in GRADIENTS}


def assert_alike(name: str, got: Tensor, want: Tensor, limit: float) -> None:
    """Relative L2 error and cosine of two tensors; the wanted one must not vanish."""
    got, want = got.double().flatten(), want.double().flatten()
    assert torch.isfinite(got).all(), name
    norm = want.norm()
    assert norm > 0, f"{name}: the reference is zero, the scene proves nothing"
    assert (got - want).norm() <= limit * norm, (name, float((got - want).norm() / norm))
    assert (got @ want) / (norm * got.norm()) > 0.9999, name


@pytest.fixture(params=native.ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if native.ISAS.index(request.param) > native.ISAS.index(native.machine_isa()):
        pytest.skip(f"this CPU has no {request.param}")
    if not native.library_path(request.param).exists():
        pytest.skip(f"the compiler could not build {request.param}")
    monkeypatch.setenv("GSAVATAR_ISA", request.param)
    return request.param


# Float32 against float64. A pixel whose alpha falls on the other side of 1/255 changes by that much
# times the transmittance, which is why the limits are not those of rounding alone.
@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("count", [1, 257])
def test_matches_reference(isa: str, count: int, image: bool) -> None:
    s = scene(count, seed=count, image=image, size=0.02 if count > 1 else 0.1)
    got, got_grads = gradients(ops.rasterize, s, torch.float32, 40)
    want, want_grads = gradients(ops.rasterize_ref, s, torch.float64, 40)
    assert want.alpha.mean() > 0.01
    for name in OUTPUTS:
        assert_alike(name, getattr(got, name), getattr(want, name), 2e-4)
    for name in GRADIENTS:
        assert_alike(name, got_grads[name], want_grads[name], 3e-3)


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_extra_channels_are_composited_as_colours_are(backend: str) -> None:
    s = single(scene(80, seed=9))
    s["background"] = torch.zeros(3)
    extra = torch.cat((s["colors"].flip(1), s["colors"][:, :1] * 2.0), dim=1).requires_grad_()
    seen = call(ops.rasterize, s, 40, extra_channels=extra, backend=backend)
    assert seen.extras is not None and seen.extras.shape == (40, 47, 4)
    torch.testing.assert_close(seen.extras[..., :3], seen.rgb.flip(-1))
    torch.testing.assert_close(seen.extras[..., 3], 2.0 * seen.rgb[..., 0])
    seen.extras[..., 3].sum().backward()
    extra_grad = extra.grad
    assert extra_grad is not None and bool((extra_grad[:, :3] == 0).all())
    colors = s["colors"].clone().requires_grad_()
    again = call(ops.rasterize, s | {"colors": colors}, 40, backend=backend)
    again.rgb[..., 0].sum().backward()
    assert colors.grad is not None
    torch.testing.assert_close(extra_grad[:, 3], colors.grad[:, 0])
    with pytest.raises(ValueError, match="extra_channels"):
        call(ops.rasterize, s, 40, extra_channels=extra[1:])


def with_extras(function, s: Scene, channels: int, dtype: torch.dtype, outputs=OUTPUTS):
    """Extras and gradients of a smooth loss over them and ``outputs``; "extras" is among the
    gradients."""
    g = torch.Generator().manual_seed(channels)
    extra = torch.randn(len(s["means"]), channels, generator=g, dtype=torch.float64)
    coarse = torch.randn(1, channels, 5, 5, generator=g, dtype=torch.float64)
    v = torch.nn.functional.interpolate(coarse, (40, 47), mode="bicubic")[0].permute(1, 2, 0)
    inputs, extra = leaves(s, dtype), extra.to(dtype).requires_grad_()
    rendering = call(function, inputs, 40, extra_channels=extra)
    loss = (rendering.extras * v.to(dtype)).sum()
    shown = cotangents(40)
    for name in outputs:
        loss = loss + (getattr(rendering, name) * shown[name].to(dtype)).sum()
    loss.backward()
    return rendering.extras, {n: inputs[n].grad for n in GRADIENTS} | {"extras": extra.grad}


# More Gaussians than a batch holds, so that some lie behind pixels that are opaque already.
@pytest.mark.parametrize("outputs", [OUTPUTS, ()])
@pytest.mark.parametrize("channels", [1, 4, 5, 19])
def test_extra_channels_match_reference(isa: str, channels: int, outputs: tuple[str, ...]) -> None:
    s = scene(400, seed=12, size=0.05)
    got, got_grads = with_extras(ops.rasterize, s, channels, torch.float32, outputs)
    want, want_grads = with_extras(ops.rasterize_ref, s, channels, torch.float64, outputs)
    assert_alike("extras", got, want, 2e-4)
    for name, expected in want_grads.items():
        if expected is None:  # background and colours, which the channels have nothing to do with
            assert not outputs and (got_grads[name] is None or got_grads[name].abs().max() == 0)
        else:
            assert_alike(name, got_grads[name], expected, 3e-3)


def test_extra_channels_do_not_change_the_picture() -> None:
    s = single(scene(120, seed=9))
    plain = call(ops.rasterize, s)
    seen = call(ops.rasterize, s, extra_channels=torch.ones(120, 3))
    assert all(torch.equal(getattr(plain, n), getattr(seen, n)) for n in OUTPUTS)
    torch.testing.assert_close(seen.extras, seen.alpha.expand(-1, -1, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_do_not_change_a_bit_of_extra_channels(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = scene(300, seed=11)
    monkeypatch.setenv("GSAVATAR_THREADS", "1")
    first, first_grads = with_extras(ops.rasterize, s, 5, torch.float32)
    monkeypatch.setenv("GSAVATAR_THREADS", str(threads))
    again, again_grads = with_extras(ops.rasterize, s, 5, torch.float32)
    assert torch.equal(first, again)
    assert all(torch.equal(first_grads[n], again_grads[n]) for n in first_grads)


@pytest.mark.parametrize(("count", "channels"), [(0, 3), (5, 0), (0, 0)])
def test_no_extra_channels(count: int, channels: int) -> None:
    extra = torch.zeros(count, channels, requires_grad=True)
    seen = call(ops.rasterize, single(scene(count)), extra_channels=extra)
    assert seen.extras is not None and seen.extras.shape == (40, 47, channels)
    if channels:
        seen.extras.sum().backward()
        assert extra.grad is not None and extra.grad.shape == extra.shape


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_malformed_extra_channels_are_refused(isa: str, backend: str) -> None:
    s = single(scene(20))
    bad: list[Any] = [torch.ones(20, 5).double(), torch.ones(19, 5), torch.ones(5), "colours",
           torch.ones(20, 5, device="meta")]  # fmt: skip
    for value in bad:
        with pytest.raises((ValueError, TypeError), match="extra_channels"):
            call(ops.rasterize, s, extra_channels=value, backend=backend)
    for place in (0, -1):
        for number in (float("nan"), float("inf"), -float("inf")):
            extra = torch.ones(20, 5)
            extra.flatten()[place] = number
            with pytest.raises(ValueError, match="NaN"):
                call(ops.rasterize, s, extra_channels=extra, backend=backend)


@pytest.mark.parametrize("output", OUTPUTS)
def test_each_output_alone_has_the_right_gradients(output: str) -> None:
    s = scene(64, seed=3)
    _, got = gradients(ops.rasterize, s, torch.float32, 40, (output,))
    _, want = gradients(ops.rasterize_ref, s, torch.float64, 40, (output,))
    for name in GRADIENTS:
        if want[name] is None or want[name].norm() == 0:
            assert got[name] is None or got[name].norm() == 0, name
        else:
            assert_alike(name, got[name], want[name], 3e-3)


def test_reference_passes_gradcheck() -> None:
    blob = scene(6, seed=1, side=6, size=0.12)
    blob["means"] = 0.3 * blob["means"]  # inside: the Jacobian's limits count as constants
    s = leaves(blob, torch.float64)

    def outputs(*values: Tensor) -> tuple[Tensor, ...]:
        r = call(ops.rasterize_ref, dict(zip(GRADIENTS, values, strict=True)) | {
            "branch": s["branch"]}, 6)  # fmt: skip
        return r.rgb, r.alpha, r.branch_alpha, r.depth

    assert outputs(*(s[n] for n in GRADIENTS))[1].mean() > 0.2
    assert torch.autograd.gradcheck(outputs, tuple(s[n] for n in GRADIENTS), atol=1e-4)


def fuzzed(seed: int) -> tuple[Scene, int]:
    """One of very many small scenes and its side: points to walls, also off screen and behind."""
    rng = np.random.default_rng(seed)
    side, count = (int(n) for n in rng.integers(1, 24, 2))
    s = scene(count, seed, side, size=float(np.exp(rng.uniform(-7, -1.5))))
    s["means"] *= float(rng.uniform(0.1, 8))
    s["screen_probe"] *= 0
    return s, side


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For tensors so small that threads would wait for each other longer than they work."""
    threads = torch.get_num_threads()
    monkeypatch.setenv("GSAVATAR_THREADS", "1")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_thousands_of_random_small_scenes_match() -> None:
    seen = 0
    for seed in range(2000):
        s, side = fuzzed(seed)
        got = call(ops.rasterize, single(s), side)
        want = call(ops.rasterize_ref, s, side)
        seen += bool(want.alpha.max() > 0.1)
        for name in OUTPUTS:
            error = (getattr(got, name) - getattr(want, name)).abs()
            assert error.max() < 0.012, (seed, name)  # one alpha at the 1/255 threshold, depth <= 3
            assert error.mean() < 2e-4, (seed, name)
    assert seen > 1000


@pytest.mark.usefixtures("one_thread")
def test_gradients_of_random_small_scenes_match() -> None:
    errors = []
    for seed in range(200):
        s, side = fuzzed(seed)
        _, got = gradients(ops.rasterize, s, torch.float32, side)
        _, want = gradients(ops.rasterize_ref, s, torch.float64, side)
        for name in GRADIENTS:
            norm = float(want[name].norm())
            errors.append(float((got[name] - want[name]).norm()) / (norm or 1.0))
            assert norm > 0 or errors[-1] == 0, (seed, name)
            assert errors[-1] < 3e-3, (seed, name)
    assert float(np.quantile(errors, 0.95)) < 1e-4  # above are alphas at the 1/255 threshold


def test_degenerate_gaussians_stay_finite() -> None:
    s = scene(64, seed=9)
    s["scales"][:16, 2] = 0.0  # discs
    s["scales"][16:24] = 0.0  # points
    s["scales"][24:28] = 30.0  # larger than the room
    s["scales"][28:30] = 1e30
    s["quats"][30] = 0.0
    s["means"][31:40] = torch.tensor([0.0, 0.0, -1.0])  # around the camera's centre
    s["opacities"][40:44] = 0.0
    s["means"][44] = 1e20
    rendering, grads = gradients(ops.rasterize, s, torch.float32, 40)
    for name in OUTPUTS:
        assert torch.isfinite(getattr(rendering, name)).all(), name
    for name, grad in grads.items():
        assert torch.isfinite(grad).all(), name


def test_disc_seen_edge_on_matches_reference() -> None:
    s = scene(32, seed=2)
    s["scales"][:, 2] = 1e-5
    got, got_grads = gradients(ops.rasterize, s, torch.float32, 40)
    want, want_grads = gradients(ops.rasterize_ref, s, torch.float64, 40)
    assert_alike("rgb", got.rgb, want.rgb, 2e-4)
    for name in GRADIENTS:
        assert_alike(name, got_grads[name], want_grads[name], 1e-2)


def test_no_gaussians_show_the_background() -> None:
    s = scene(0, image=True)
    rendering, grads = gradients(ops.rasterize, s, torch.float32, 40)
    assert torch.equal(rendering.rgb, s["background"].float())
    assert rendering.alpha.max() == 0
    assert torch.allclose(grads["background"], cotangents(40)["rgb"].float())
    assert grads["world_to_cam"].abs().max() == 0


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_runs_are_bit_equal(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    s = scene(300, seed=11)
    monkeypatch.setenv("GSAVATAR_THREADS", "1")
    first, first_grads = gradients(ops.rasterize, s, torch.float32, 40)
    monkeypatch.setenv("GSAVATAR_THREADS", str(threads))
    for _ in range(3):
        again, again_grads = gradients(ops.rasterize, s, torch.float32, 40)
        assert all(torch.equal(getattr(first, n), getattr(again, n)) for n in OUTPUTS)
        assert all(torch.equal(first_grads[n], again_grads[n]) for n in GRADIENTS)


def test_the_share_of_branches_adds_up() -> None:
    rendering = call(ops.rasterize, single(scene(200)))
    assert torch.allclose(rendering.branch_alpha.sum(-1, keepdim=True), rendering.alpha, atol=1e-5)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("name", [*GRADIENTS])
def test_not_a_number_is_refused(name: str, backend: str) -> None:
    for bad in (float("nan"), float("inf")):
        s = single(scene(20))
        s[name].flatten()[-1] = bad
        with pytest.raises(ValueError, match="NaN"):
            call(ops.rasterize, s, backend=backend)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("means", torch.zeros(20, 2)),
        ("quats", torch.zeros(19, 4)),
        ("scales", torch.zeros(20, 3, dtype=torch.float64)),
        ("opacities", torch.zeros(20, 1)),
        ("colors", torch.zeros(20)),
        ("branch", torch.zeros(20, dtype=torch.int64)),
        ("branch", torch.full((20,), 3, dtype=torch.int32)),
        ("branch", torch.full((20,), -1, dtype=torch.int32)),
        ("world_to_cam", torch.eye(3)),
        ("K", torch.eye(4)),
        ("background", torch.zeros(40, 40, 3)),
        ("background", torch.zeros(3, device="meta")),
        ("screen_probe", torch.zeros(20, 3)),
        ("means", None),
    ],
)
def test_malformed_arguments_are_refused(name: str, value: Tensor) -> None:
    s = single(scene(20)) | {name: value}
    with pytest.raises(ValueError, match=name):
        call(ops.rasterize, s)


@pytest.mark.parametrize("size", [(0, 8), (8, 0), (-1, 8), (8, 10**9), (8.0, 8)])
def test_impossible_sizes_are_refused(size: tuple[int, int]) -> None:
    s = single(scene(20))
    with pytest.raises(ValueError, match="whole number"):
        ops.rasterize(
            s["means"], s["quats"], s["scales"], s["opacities"], s["colors"], s["branch"],
            s["world_to_cam"], s["K"], *size, torch.zeros(3),
        )  # fmt: skip


def test_non_contiguous_inputs_give_the_same_picture() -> None:
    s = single(scene(50, image=True))
    strided = {k: v.mT.contiguous().mT if v.dim() == 2 else v for k, v in s.items()}
    strided["background"] = s["background"].permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.equal(call(ops.rasterize, s).rgb, call(ops.rasterize, strided).rgb)


@pytest.mark.parametrize("axes", [(3,), (2, 1)])
@pytest.mark.parametrize("moving", ["cloud", "camera", "everything"])
def test_batches_are_their_elements(axes: tuple[int, ...], moving: str) -> None:
    s = single(scene(40, seed=6, image=True))
    count = int(np.prod(axes))
    g = torch.Generator().manual_seed(8)
    cloud, camera = GRADIENTS[:5], ("world_to_cam", "K")
    batched = {"cloud": cloud, "camera": camera, "everything": GRADIENTS}[moving]
    stacked = {n: s[n].expand(*axes, *s[n].shape).clone() for n in batched}
    for name in batched:
        if name != "K":
            stacked[name] += 0.003 * torch.randn(stacked[name].shape, generator=g)
    together = {n: t if n == "branch" else t.requires_grad_() for n, t in (s | stacked).items()}
    rendering = call(ops.rasterize, together)
    v = torch.randn(40, 47, 3, generator=g)
    (rendering.rgb * v).sum().backward()
    shared = {n: torch.zeros_like(s[n]) for n in GRADIENTS if n not in batched}
    for i, place in enumerate(np.ndindex(*axes)):
        one = {n: t[place] if n in batched else t for n, t in together.items()}
        one = {n: t if n == "branch" else t.detach().requires_grad_() for n, t in one.items()}
        alone = call(ops.rasterize, one)
        (alone.rgb * v).sum().backward()
        for name in OUTPUTS:
            assert torch.equal(getattr(rendering, name)[place], getattr(alone, name)), (i, name)
        for name in batched:
            assert torch.equal(together[name].grad[place], one[name].grad), (i, name)
        for name in shared:
            shared[name] += one[name].grad
    assert count == 1 or not torch.equal(rendering.rgb[(0,) * len(axes)], alone.rgb)
    for name, total in shared.items():
        torch.testing.assert_close(together[name].grad, total)


def test_batch_axes_that_differ_are_refused() -> None:
    s = single(scene(5))
    two, three = s["means"].expand(2, -1, -1), s["K"].expand(3, -1, -1)
    with pytest.raises(ValueError, match=r"agree.*means \[2\].*K \[3\]"):
        call(ops.rasterize, s | {"means": two, "K": three})
    with pytest.raises(ValueError, match="nothing"):
        call(ops.rasterize, s | {"means": s["means"].expand(0, -1, -1)})


def test_extra_channels_of_a_batch() -> None:
    s = single(scene(30, seed=4))
    extra = torch.rand(2, 30, 2, generator=torch.Generator().manual_seed(1))
    seen = call(ops.rasterize, s, extra_channels=extra)
    assert seen.extras is not None and seen.extras.shape == (2, 40, 47, 2)
    alone = call(ops.rasterize, s, extra_channels=extra[1])
    assert alone.extras is not None and torch.equal(seen.extras[1], alone.extras)


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="backend"):
        call(ops.rasterize, scene(3), backend="vulkan")


def test_opcheck_backward() -> None:
    s = single(scene(12, seed=4))
    cloud = (
        s["means"], s["quats"], s["scales"], s["opacities"], s["colors"], s["branch"],
        s["world_to_cam"], s["K"], 47, 40, s["background"],
    )  # fmt: skip
    channels, v_rgb, v_extras = torch.ones(12, 5), torch.ones(40, 47, 3), torch.ones(40, 47, 5)
    for extra in (None, channels):
        saved = list(rasterize_op(*cloud, s["screen_probe"], extra))
        v = (v_rgb, None, None, None, extra is None, None if extra is None else v_extras, extra)
        torch.library.opcheck(
            rasterize_bwd_op, (*cloud, saved, *v), test_utils=("test_schema", "test_faketensor")
        )


def test_the_short_way_is_the_op(monkeypatch: pytest.MonkeyPatch) -> None:
    s = scene(40, seed=8)
    rendering, grads = gradients(ops.rasterize, s, torch.float32, 40)
    monkeypatch.setattr("gsavatar.ops.shortcut.is_plain", lambda _: False)
    by_op, grads_by_op = gradients(ops.rasterize, s, torch.float32, 40)
    assert all(torch.equal(getattr(rendering, name), getattr(by_op, name)) for name in OUTPUTS)
    assert all(torch.equal(grads[name], grads_by_op[name]) for name in GRADIENTS)


def test_a_second_derivative_is_refused() -> None:
    s = leaves(scene(10, seed=9), torch.float32)
    (grad,) = torch.autograd.grad(call(ops.rasterize, s).rgb.sum(), s["means"], create_graph=True)
    with pytest.raises(RuntimeError, match=r"not differentiable|no autograd"):
        grad.sum().backward()


@pytest.mark.parametrize("channels", [None, 5])
def test_opcheck(channels: int | None) -> None:
    s = leaves(scene(12, seed=4), torch.float32)
    extra = None if channels is None else torch.ones(12, channels, requires_grad=True)
    arguments = (
        s["means"], s["quats"], s["scales"], s["opacities"], s["colors"], s["branch"],
        s["world_to_cam"], s["K"], 47, 40, s["background"], s["screen_probe"], extra,
    )  # fmt: skip
    torch.library.opcheck(
        rasterize_op, arguments,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )  # fmt: skip
