"""The CUDA kernels: nvcc compiles them, and an emulator on the CPU runs them against the reference.

The emulator (cuda_ext/cuda/emulator.h) runs the same source, one fiber per thread. It proves the
logic of the kernels, not their speed or freedom from races; those need a GPU.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from gsavatar import ops
from gsavatar.ops import check, cuda_capacity, launch, native
from gsavatar.ops import cuda_backend as cuda
from gsavatar.ops.rasterize_blended import structures
from gsavatar.ops.ssim import ssim_op
from tests.test_ops_blend_motion import cloud as motion_cloud
from tests.test_ops_blend_motion import run as run_motion
from tests.test_ops_pose_gaussians import cloud as pose_cloud
from tests.test_ops_pose_gaussians import run as run_pose
from tests.test_ops_rasterize import (
    GRADIENTS,
    OUTPUTS,
    assert_alike,
    call,
    cotangents,
    leaves,
    scene,
    single,
)
from tests.test_ops_rasterize import gradients as autograd_gradients
from tests.test_ops_rasterize_blended import COUNTS, SIZE, drawn, harmonics, parts_of
from tests.test_ops_ssim import pictures

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "cuda_ext"
KERNELS = sorted(str(path) for path in (SOURCES / "cuda").glob("*.cu"))
SIDE = 40


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
def test_nvcc_compiles_the_kernels(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("gsavatar_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    command = setup.cuda_command("nvcc", KERNELS, tmp_path / "kernels.so")
    # one architecture here: every one of them is built at install, and takes a minute
    command = [c for c in command if not c.startswith("-gencode")] + ["-arch=sm_75"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    library = cuda.declare(ctypes.CDLL(str(tmp_path / "kernels.so")))
    assert library.gsa_abi() == native.ABI


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    out = tmp_path_factory.mktemp("cuda") / "emulated.so"
    subprocess.run(
        [compiler, "-std=c++17", "-O1", "-fPIC", "-shared", "-w", "-DGSA_EMULATE", "-x", "c++",
         f"-I{SOURCES / 'include'}", *KERNELS, "-o", str(out)],
        check=True,
    )  # fmt: skip
    return cuda.declare(ctypes.CDLL(str(out)))


def inputs_of(s: dict[str, Tensor]) -> dict[str, Tensor | None]:
    return dict(single(s))


def emulated_gradients(
    library: ctypes.CDLL, s: dict[str, Tensor], capacity: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs and gradients by the emulated kernels, of the loss of the rasterizer's tests."""
    inputs, size = inputs_of(s), (SIDE + 7, SIDE)
    made = cuda.forward(library, inputs, *size, capacity, 0)
    v: dict[str, Tensor | None] = {
        name: t.float() if t.shape[-1] == 3 else t[..., 0].float()
        for name, t in cotangents(SIDE).items()
    }
    return made, cuda.backward(library, inputs, made, v, *size, 0)


@pytest.mark.parametrize("image", [False, True])
def test_kernels_match_reference(emulated: ctypes.CDLL, image: bool) -> None:
    s = scene(60, seed=3, image=image)
    made, grads = emulated_gradients(emulated, s, 4000)
    want, want_grads = autograd_gradients(ops.rasterize_ref, s, torch.float64, SIDE)
    assert int(made["status"][1]) == 0
    for name in OUTPUTS:
        expected = getattr(want, name)
        got = made[name] if expected.shape[-1] == 3 else made[name][..., None]
        assert_alike(name, got, expected.detach(), 2e-4)
    for name in GRADIENTS:
        if name != "background":
            assert_alike(name, grads[name], want_grads[name], 3e-3)


@pytest.mark.parametrize("channels", [2, 9])
def test_channel_kernels_match_reference(emulated: ctypes.CDLL, channels: int) -> None:
    """Two groups of eight, some Gaussians behind opaque pixels, tiles longer than a batch."""
    s = scene(300, seed=12, size=0.05)
    g = torch.Generator().manual_seed(channels)
    extra = torch.randn(300, channels, generator=g, dtype=torch.float64)
    coarse = torch.randn(1, channels, 5, 5, generator=g, dtype=torch.float64)
    v_extras = torch.nn.functional.interpolate(coarse, (SIDE, SIDE + 7), mode="bicubic")
    v_extras = v_extras[0].permute(1, 2, 0)
    inputs, size = inputs_of(s) | {"channels": extra.float()}, (SIDE + 7, SIDE)
    made = cuda.forward(emulated, inputs, *size, 8000, 0)
    assert int(made["status"][1]) == 0
    cotangents: dict[str, Tensor | None] = {"extras": v_extras.float()}
    grads = cuda.backward(emulated, inputs, made, cotangents, *size, 0)
    exact = leaves(s, torch.float64)
    extra.requires_grad_()
    want = call(ops.rasterize_ref, exact, SIDE, extra_channels=extra)
    (want.extras * v_extras).sum().backward()
    assert_alike("extras", made["extras"], want.extras.detach(), 2e-4)
    assert extra.grad is not None
    assert_alike("channels", grads["channels"], extra.grad, 3e-3)
    for name in GRADIENTS:
        if name == "colors":
            assert grads[name].abs().max() == 0
        elif name != "background":
            assert_alike(name, grads[name], exact[name].grad, 3e-3)


def test_kernels_report_malformed_channels(emulated: ctypes.CDLL) -> None:
    extra = torch.ones(20, 3)
    extra[7, 2] = -float("inf")
    inputs = inputs_of(scene(20)) | {"channels": extra}
    made = cuda.forward(emulated, inputs, SIDE + 7, SIDE, 4000, 0)
    with pytest.raises(ValueError, match="extra_channels holds NaN"):
        check.raise_for(int(made["status"][1]))


def test_kernels_count_what_does_not_fit(emulated: ctypes.CDLL) -> None:
    s = scene(60, seed=3)
    inputs, size = inputs_of(s), (SIDE + 7, SIDE)
    full = cuda.forward(emulated, inputs, *size, 4000, 0)
    wanted = int(full["status"][0])
    small = cuda.forward(emulated, inputs, *size, wanted // 2, 0)
    assert int(small["status"][0]) == wanted
    assert torch.isfinite(small["rgb"]).all()
    assert small["alpha"].sum() < full["alpha"].sum()
    exact = cuda.forward(emulated, inputs, *size, wanted, 0)
    assert torch.equal(exact["rgb"], full["rgb"])


def test_kernels_draw_nothing(emulated: ctypes.CDLL) -> None:
    s = scene(0, image=True)
    made, grads = emulated_gradients(emulated, s, 64)
    assert torch.equal(made["rgb"], s["background"].float())
    assert grads["world_to_cam"].abs().max() == 0


def test_kernels_report_malformed_values(emulated: ctypes.CDLL) -> None:
    for name, code in (("means", 1), ("scales", 3), ("background", 8)):
        s = single(scene(20))
        s[name].flatten()[-1] = float("nan")
        made = cuda.forward(emulated, dict(s), SIDE + 7, SIDE, 4000, 0)
        assert int(made["status"][1]) == code, name


@pytest.fixture
def on_emulator(emulated: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs the ops on the emulated kernels; the list gets the names of those that ran."""
    ran: list[str] = []

    def launcher(tensor: Tensor) -> launch.Launch:
        del tensor

        def run(name: str, *structures: ctypes.Structure) -> None:
            ran.append(name)
            launch.launcher_of(emulated, 0)(name, *structures)

        return run

    monkeypatch.setattr(launch, "launcher", launcher)
    monkeypatch.setattr(launch, "on_cuda", lambda tensor: True)
    return ran


@pytest.mark.parametrize("count", [1, 300])
@pytest.mark.parametrize("terms", [3, 37])
def test_motion_kernels_match_reference(on_emulator: list[str], count: int, terms: int) -> None:
    values = motion_cloud(count, terms)
    got, got_grads = run_motion(ops.blend_motion, values, torch.float32)
    want, want_grads = run_motion(ops.blend_motion_ref, values, torch.float64)
    assert on_emulator == ["blend", "blend_bwd"]
    for a, b in zip(got, want, strict=True):
        assert (a.double() - b).norm() <= 3e-6 * b.norm()
    for name, b in want_grads.items():
        assert b.norm() > 0
        assert (got_grads[name].double() - b).norm() <= 2e-5 * b.norm(), name


@pytest.mark.parametrize("count", [1, 300])
@pytest.mark.parametrize("shared", [True, False])
def test_pose_kernels_match_reference(on_emulator: list[str], count: int, shared: bool) -> None:
    values = pose_cloud(count, real=-0.8)
    if not shared:
        del values["share"]
    got, got_grads = run_pose(ops.pose_gaussians, values, torch.float32)
    want, want_grads = run_pose(ops.pose_gaussians_ref, values, torch.float64)
    assert on_emulator == ["pose", "pose_bwd"]
    for a, b in zip(got, want, strict=True):
        assert (a.double() - b).norm() <= 3e-6 * b.norm()
    for name, b in want_grads.items():
        assert b.norm() > 0
        assert (got_grads[name].double() - b).norm() <= 2e-5 * b.norm(), name


@pytest.mark.parametrize("terms", [4, 9, 16])
@pytest.mark.parametrize("count", [1, 300])
def test_harmonics_kernels_match_reference(on_emulator: list[str], count: int, terms: int) -> None:
    g = torch.Generator().manual_seed(terms)
    inputs = [torch.randn(*shape, generator=g, dtype=torch.float64)
              for shape in ((count, 3), (count, terms, 3), (3,))]  # fmt: skip
    v = torch.randn(count, 3, generator=g, dtype=torch.float64)
    leaves = [t.float().requires_grad_() for t in inputs]
    exact = [t.requires_grad_() for t in inputs]
    got, want = ops.evaluate_sh(*leaves), ops.evaluate_sh_ref(*exact)
    (got * v.float()).sum().backward()
    (want * v).sum().backward()
    assert on_emulator == ["sh", "sh_bwd"]
    assert (got - want).abs().max() < 1e-5 and want.std() > 0.1
    for a, b in zip(leaves, exact, strict=True):
        assert a.grad is not None and b.grad is not None and b.grad.norm() > 0
        assert (a.grad - b.grad).norm() <= 1e-4 * b.grad.norm()


# Smaller than the window of 11, around a tile of 16, odd rests, and more tiles than a block of 256.
SSIM_SIZES = [(1, 1), (3, 2), (5, 40), (16, 16), (17, 21), (37, 61), (1, 4100)]


@pytest.mark.parametrize("size", SSIM_SIZES)
@pytest.mark.parametrize("masked", [False, True])
def test_similarity_kernels_match_reference(
    on_emulator: list[str], size: tuple[int, int], masked: bool
) -> None:
    a, b, mask = pictures(*size)
    mask[0, 0] = 1.0
    chosen = mask if masked else None
    exact, leaf = a.clone().requires_grad_(), a.float().requires_grad_()
    want = ops.ssim_ref(exact, b, chosen)
    got = ops.ssim(leaf, b.float(), None if chosen is None else chosen.float())
    want.backward()
    (3 * got).backward()
    assert on_emulator == ["ssim"]
    assert abs(float(got.detach()) - float(want.detach())) < 2e-6
    assert exact.grad is not None and leaf.grad is not None and exact.grad.norm() > 0
    assert (leaf.grad / 3 - exact.grad).norm() < 1e-5 * exact.grad.norm()
    with torch.no_grad():
        assert torch.equal(ops.ssim(leaf, b.float(), None if chosen is None else mask.float()), got)


def test_similarity_kernels_take_an_empty_mask_and_strided_pictures(on_emulator: list[str]) -> None:
    a, b, mask = (t.float() for t in pictures(20, 18))
    a.requires_grad_()
    value = ops.ssim(a, b, torch.zeros(20, 18))
    value.backward()
    assert float(value.detach()) == 0.0 and a.grad is not None and a.grad.abs().max() == 0
    planes, turned = a.detach().permute(2, 0, 1).contiguous(), mask.mT.contiguous().mT
    strided = ops.ssim(planes.permute(1, 2, 0), b, turned)
    assert torch.equal(strided, ops.ssim(a.detach(), b, mask))
    assert on_emulator == ["ssim"] * 3


def test_similarity_op_keeps_its_promises_on_the_emulator(on_emulator: list[str]) -> None:
    a, b, mask = (t.float() for t in pictures(14, 18))
    torch.library.opcheck(
        ssim_op, (a.requires_grad_(), b, mask, True),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )  # fmt: skip
    assert on_emulator


@pytest.mark.parametrize("terms", [1, 4])
def test_kernels_move_a_cloud_before_they_draw_it(emulated: ctypes.CDLL, terms: int) -> None:
    """The same picture as that of the CPU kernels, which are proven against the reference."""
    s = single(scene(sum(COUNTS), seed=2, image=True)) | {"sh": harmonics(terms)}
    cloud, parts = (s["means"], s["quats"], s["scales"]), parts_of(True, True)
    want = drawn(s, cloud, parts)
    inputs: dict[str, Tensor | None] = {
        k: v for k, v in s.items() if k not in {"colors", "screen_probe"}
    }
    made = cuda.forward(emulated, inputs, *SIZE, 8000, 0, structures(parts))
    assert made["status"][1] == 0 and 0 < made["status"][0] <= 8000
    assert want.alpha.mean() > 0.05
    for name in ("rgb", "branch_alpha", "depth"):
        expected = getattr(want, name)
        got = made[name] if expected.shape[-1] == 3 else made[name][..., None]
        assert_alike(name, got, expected, 2e-4)


def test_a_malformed_part_is_reported(emulated: ctypes.CDLL) -> None:
    s = single(scene(sum(COUNTS), seed=2)) | {"sh": harmonics(4)}
    inputs: dict[str, Tensor | None] = {
        k: v for k, v in s.items() if k not in {"colors", "screen_probe"}
    }
    parts = parts_of(True, False)
    parts[0].basis[0, 0, 0] = float("nan")
    made = cuda.forward(emulated, inputs, *SIZE, 8000, 0, structures(parts))
    assert int(made["status"][1]) == 1  # the means


@pytest.mark.parametrize("bad", ["stretch", "scales", "sh"])
def test_what_limits_and_clamps_hide_is_reported(emulated: ctypes.CDLL, bad: str) -> None:
    s = single(scene(sum(COUNTS), seed=2)) | {"sh": harmonics(4)}
    parts = parts_of(True, True)
    if bad == "stretch":
        parts[0].basis[0, 0, 8] = float("nan")
    elif bad == "scales":
        s["scales"][3, 1] = float("inf")
    else:
        s["sh"][3, 1, 2] = -float("inf")
    inputs: dict[str, Tensor | None] = {
        k: v for k, v in s.items() if k not in {"colors", "screen_probe"}
    }
    made = cuda.forward(emulated, inputs, *SIZE, 8000, 0, structures(parts))
    named = {"stretch": "basis", "sh": "colors"}.get(bad, bad)
    with pytest.raises(ValueError, match=f"{named} holds NaN"):
        check.raise_for(int(made["status"][1]))


def test_more_pairs_than_memory_have_a_sentence() -> None:
    capacity = cuda.Capacity(memory=2**30)
    assert capacity.begin(10**9) and capacity.pairs == check.most_pairs(2**30) < 10**7
    capacity.pairs = 100
    with pytest.raises(ValueError, match=r"need 1\.0 GiB of 1\.0; the scales are too large"):
        capacity.report(check.most_pairs(2**30) + 1, 0)
    assert capacity.pairs == 100 and not capacity.begin(5)
    capacity.report(check.most_pairs(2**30), 0)
    assert capacity.pairs == check.most_pairs(2**30)


def test_threads_share_the_record_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """One record for all, and every step's report is taken once."""
    properties = SimpleNamespace(total_memory=2**40)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(cuda_capacity, "_CAPACITIES", {})
    done = SimpleNamespace(query=lambda: True)
    taken: list[int] = []
    monkeypatch.setattr(
        cuda_capacity.Capacity, "report", lambda self, wanted, code: taken.append(wanted)
    )

    def work(thread: int) -> cuda_capacity.Capacity:
        capacity = cuda.capacity_of(torch.device("cuda", 3))
        for i in range(50):
            with capacity.lock:
                capacity.pending.append((done, torch.tensor([100 * thread + i, 0])))
            capacity.poll()
        return capacity

    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(work, range(8)))
    assert all(record is records[0] for record in records)
    assert sorted(taken) == sorted(100 * t + i for t in range(8) for i in range(50))


def test_a_captured_step_tells_that_it_did_not_fit() -> None:
    capacity = cuda.Capacity(pairs=100)
    with pytest.raises(RuntimeError, match="once before"):
        capacity.next_captured()
    capacity.replayed = torch.zeros(2, 4, dtype=torch.int32)
    first, second = capacity.next_captured(), capacity.next_captured()
    with pytest.raises(RuntimeError, match="forget_captured"):
        capacity.next_captured()
    first[0], second[0] = 90, 100  # as replays would write
    capacity.poll()
    assert (capacity.pairs, capacity.overflow) == (100, False)
    second[0] = 200
    capacity.poll()
    assert (capacity.pairs, capacity.overflow) == (300, True)
    second[1] = 3
    with pytest.raises(ValueError, match="scales"):
        capacity.poll()
    capacity.poll()  # told once


def test_capacity_grows_after_an_overflow() -> None:
    capacity = cuda.Capacity(pairs=100)
    capacity.report(90, 0)
    assert (capacity.pairs, capacity.overflow) == (100, False)
    capacity.report(200, 0)
    assert (capacity.pairs, capacity.overflow) == (300, True)
    with pytest.raises(ValueError, match="scales"):
        capacity.report(10, 3)
    with pytest.raises(ValueError, match=r"2\^31"):
        capacity.report(cuda.MOST_PAIRS, check.TOO_MANY)
    assert capacity.pairs == 300  # more than that never fits, and other clouds need no more
