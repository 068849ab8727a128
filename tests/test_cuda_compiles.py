"""The CUDA kernels: nvcc compiles them, and an emulator on the CPU runs them against the reference.

The emulator (cuda_ext/cuda/emulator.h) runs the same source, one fiber per thread. It proves the
logic of the kernels, not their speed or freedom from races; those need a GPU.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gsavatar import ops
from gsavatar.ops import cuda_backend as cuda
from gsavatar.ops import native
from tests.test_ops_rasterize import (
    GRADIENTS,
    OUTPUTS,
    assert_alike,
    call,
    cotangents,
    scene,
    single,
)
from tests.test_ops_rasterize import gradients as autograd_gradients

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "cuda_ext"
SIDE = 40


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
def test_nvcc_compiles_the_kernels(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("gsavatar_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    command = setup.cuda_command("nvcc", [str(SOURCES / "cuda" / "rasterize.cu")],
                                 tmp_path / "kernels.so")  # fmt: skip
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
         f"-I{SOURCES / 'include'}", str(SOURCES / "cuda" / "rasterize.cu"), "-o", str(out)],
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


def test_capacity_grows_after_an_overflow() -> None:
    capacity = cuda.Capacity(pairs=100)
    capacity.report(90, 0)
    assert (capacity.pairs, capacity.overflow) == (100, False)
    capacity.report(200, 0)
    assert (capacity.pairs, capacity.overflow) == (300, True)
    with pytest.raises(ValueError, match="scales"):
        capacity.report(10, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device_matches_cpu() -> None:
    s = single(scene(300, seed=5))
    on_device = {name: t.cuda() for name, t in s.items()}
    got, want = call(ops.rasterize, on_device, SIDE), call(ops.rasterize, s, SIDE)
    for name in OUTPUTS:
        assert_alike(name, getattr(got, name).cpu(), getattr(want, name), 2e-4)
