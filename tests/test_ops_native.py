"""Which kernels serve a call: instruction sets, threads, backends, other compilers' builds."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gsavatar import ops
from gsavatar.errors import InputError
from gsavatar.ops import check, cuda_backend, gsplat_backend, native
from gsavatar.ops.rasterize import choose_backend
from tests.test_ops_blend_motion import cloud as motion_cloud
from tests.test_ops_blend_motion import run as run_motion
from tests.test_ops_rasterize import (
    GRADIENTS,
    OUTPUTS,
    assert_alike,
    call,
    gradients,
    leaves,
    scene,
    single,
)
from tests.test_ops_ssim import pictures

SOURCES = Path(__file__).resolve().parent.parent / "cuda_ext"
SIDE = 40


def runnable() -> list[str]:
    """The instruction sets that are built and that this machine has."""
    level = native.ISAS.index(native.machine_isa())
    return [isa for isa in native.ISAS[: level + 1] if native.library_path(isa).exists()]


def everything() -> list[Tensor]:
    """Outputs and gradients of drawing, moving and comparing, float32, in a fixed order."""
    rendering, grads = gradients(ops.rasterize, scene(257, seed=21), torch.float32, SIDE)
    found = [getattr(rendering, name).detach() for name in OUTPUTS]
    found += [grads[name] for name in GRADIENTS]
    moved, moved_grads = run_motion(ops.blend_motion, motion_cloud(300, 7), torch.float32)
    found += [*(t.detach() for t in moved), *moved_grads.values()]
    a, b, mask = (t.float() for t in pictures(37, 61))
    value = ops.ssim(a.requires_grad_(), b, mask)
    value.backward()
    assert a.grad is not None
    return [*found, value.detach()[None], a.grad]


# They differ in the order of sums and in how a quotient is rounded, and where an alpha falls on the
# other side of 1/255.
def test_instruction_sets_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for isa in runnable():
        monkeypatch.setenv("GSAVATAR_ISA", isa)
        found[isa] = everything()
    base = found.pop("base")
    for isa, tensors in found.items():
        for i, (got, want) in enumerate(zip(tensors, base, strict=True)):
            assert_alike(f"{isa} {i}", got, want, 3e-3)


def test_gradients_need_not_come_from_the_instruction_set_of_the_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The forward pass keeps which blocks a Gaussian reaches; their size is that of a vector."""
    s = leaves(scene(60), torch.float32)
    moving = [s[name] for name in ("means", "quats", "scales", "opacities", "colors")]
    found = {}
    for drawn in runnable():
        for derived in runnable():
            monkeypatch.setenv("GSAVATAR_ISA", drawn)
            rgb = call(ops.rasterize, s).rgb
            monkeypatch.setenv("GSAVATAR_ISA", derived)
            found[drawn, derived] = torch.autograd.grad(rgb.square().sum(), moving)
    want = found["base", "base"]
    for pair, grads in found.items():
        for i, (got, expected) in enumerate(zip(grads, want, strict=True)):
            assert_alike(f"{pair} {i}", got, expected, 3e-3)


def test_calls_from_several_threads_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSAVATAR_THREADS", "2")  # helpers of one call beside those of another
    alone = everything()
    with ThreadPoolExecutor(4) as pool:
        together = [job.result() for job in [pool.submit(everything) for _ in range(12)]]
    for tensors in together:
        assert all(torch.equal(got, want) for got, want in zip(tensors, alone, strict=True))


def test_the_instruction_set_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    for isa in runnable():
        monkeypatch.setenv("GSAVATAR_ISA", isa)
        assert native.chosen_isa() == isa == ops.available()["native"]
    assert native.cpu().gsa_lanes() == {"base": 4, "avx2": 8, "avx512": 16}[runnable()[-1]]
    monkeypatch.delenv("GSAVATAR_ISA")
    assert native.chosen_isa() == runnable()[-1]


def test_an_impossible_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    s = single(scene(5))
    monkeypatch.setenv("GSAVATAR_ISA", "sse9")
    with pytest.raises(ValueError, match="sse9 is unknown; use one of base, avx2, avx512"):
        call(ops.rasterize, s)
    assert "sse9" in ops.available()["why"]["native"]
    native._isa_for.cache_clear()
    monkeypatch.setattr(native, "machine_isa", lambda: "base")
    monkeypatch.setenv("GSAVATAR_ISA", "avx512")
    try:
        with pytest.raises(native.NativeUnavailable, match="this CPU ends at base"):
            call(ops.rasterize, s)
    finally:
        native._isa_for.cache_clear()


@pytest.mark.parametrize("threads", ["0", "-1", "many", "1.5"])
def test_an_impossible_number_of_threads_is_refused(
    threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GSAVATAR_THREADS", threads)
    with pytest.raises(ValueError, match="must be a whole number from 1"):
        call(ops.rasterize, single(scene(5)))
    assert "whole number" in ops.available()["why"]["native"]


def test_threads_are_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSAVATAR_THREADS", "3")
    assert native.threads() == 3 == ops.available()["threads"]
    monkeypatch.setenv("GSAVATAR_THREADS", "100000")
    assert native.threads() == 256
    monkeypatch.delenv("GSAVATAR_THREADS")
    assert native.threads() == torch.get_num_threads()


def test_a_library_that_is_missing_broken_or_stale_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    path = native.library_path("base")
    with pytest.raises(native.NativeUnavailable, match="are not built; run pip install"):
        native._open(path)
    path.write_bytes(b"no library")
    with pytest.raises(native.NativeUnavailable, match="does not load"):
        native._open(path)
    monkeypatch.undo()
    monkeypatch.setattr(native, "ABI", native.ABI + 1)
    with pytest.raises(native.NativeUnavailable, match="run pip install again"):
        native._open(native.library_path("base"))


def test_the_reference_stands_in_for_tiny_scenes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds values for each Gaussian at each pixel: a whole avatar would fill the memory."""

    def missing() -> None:
        raise native.NativeUnavailable("not built")

    monkeypatch.setattr(native, "present", lambda: False)
    monkeypatch.setattr(native, "cpu", missing)
    assert call(ops.rasterize, single(scene(5)), SIDE).rgb.isfinite().all()
    with pytest.raises(InputError, match="not built"):
        call(ops.rasterize, single(scene(2_000)), 512)


def test_backends_that_are_not_there_say_why() -> None:
    s = single(scene(5))
    assert choose_backend(s["means"], "auto") == "native" == ops.available()["backend"]
    reason = gsplat_backend.why_not()
    if reason is not None:
        with pytest.raises(native.NativeUnavailable, match="backend gsplat"):
            call(ops.rasterize, s, backend="gsplat")
        assert ops.available()["why"]["gsplat"] == reason
    if not torch.cuda.is_available():
        assert "CUDA" in str(cuda_backend.why_not())
    with pytest.raises(ValueError, match=r"means must be torch\.float32"):
        call(ops.rasterize, scene(5), backend="native")


def test_billions_of_overlaps_have_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"2\^31 overlaps.*scales are too large"):
        check.raise_for(check.TOO_MANY)


def test_more_overlaps_than_memory_have_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "memory", lambda: 10_000)
    with pytest.raises(ValueError, match=r"overlaps of Gaussians and tiles need .* GiB"):
        call(ops.rasterize, single(scene(257, seed=21)))


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_portable_library_builds_without_threads(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither vectors of one processor nor pthreads: what arm64 and a plain libc get."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not on PATH")
    monkeypatch.setenv("GSAVATAR_ISA", "base")
    monkeypatch.setenv("GSAVATAR_THREADS", "2")
    want = everything()
    out = tmp_path / "plain.so"
    subprocess.run(
        [compiler, "-std=c++17", "-O1", "-fPIC", "-shared", "-w", "-ffp-contract=fast",
         "-fno-math-errno", "-fno-exceptions", "-fno-rtti", "-DGSA_NO_THREADS",
         f"-I{SOURCES / 'include'}", f"-I{SOURCES / 'cpu'}",
         *sorted(str(path) for path in (SOURCES / "cpu").glob("*.cpp")), "-o", str(out)],
        check=True,
    )  # fmt: skip
    plain = native._open(out)
    assert plain.gsa_has_threads() == 0 and plain.gsa_lanes() == 4
    monkeypatch.setattr(native, "cpu", lambda: plain)
    for i, (got, expected) in enumerate(zip(everything(), want, strict=True)):
        assert_alike(str(i), got, expected, 1e-3)


def test_kernels_keep_their_threads_while_torch_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GSAVATAR_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(RuntimeError), native.torch_on_one_thread():
            assert (torch.get_num_threads(), native.threads()) == (1, 3)
            raise RuntimeError
        assert (torch.get_num_threads(), native.threads()) == (3, 3)
    finally:
        torch.set_num_threads(before)
