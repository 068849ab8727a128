"""Builds the native kernels as plain shared libraries beside ``gsavatar/ops``.

They have a C interface and are loaded with ctypes, so one wheel serves every Python and torch; the
tag is therefore py3-none-PLATFORM. Environment: ``CXX`` (compiler), ``GSAVATAR_CXXFLAGS`` (added),
``GSAVATAR_CUDA`` (1 requires nvcc, 0 leaves CUDA out, unset builds it where nvcc is found).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "cuda_ext"
PACKAGE = Path("gsavatar") / "ops"

# -ffast-math is left out on purpose: it breaks the rounding trick of the exponential.
FLAGS = [
    "-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-math-errno",
    "-fno-trapping-math", "-ffp-contract=fast", "-fno-exceptions", "-fno-rtti", "-Wall", "-Wextra",
    "-Wno-psabi", "-Wno-ignored-attributes", "-Wno-uninitialized", "-Wno-unknown-warning-option",
]  # fmt: skip
AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx2", "-mfma"]
CPU_LIBRARIES = {
    "avx512": [*AVX512, "-mprefer-vector-width=512", "-DGSA_AVX512"],
    "avx2": ["-mavx2", "-mfma", "-DGSA_AVX2"],
    "base": [],
}
CUDA_ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")


def compiler() -> str:
    """The C++ compiler, or an error that names the cure."""
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and shutil.which(name):
            return name
    raise SystemExit("gsavatar: no C++ compiler found; install g++ or set CXX, then run pip again")


def compiles(command: list[str]) -> bool:
    """Whether the compiler takes these flags (linking an empty library)."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text('extern "C" int probe() { return 0; }\n')
        out = str(Path(folder) / "probe.so")
        done = subprocess.run([*command, str(source), "-o", out], capture_output=True, check=False)
        return done.returncode == 0


def is_current(target: Path) -> bool:
    """Whether a library is newer than everything it is made from."""
    made_from = [*SOURCES.rglob("*.*"), ROOT / "setup.py"]
    return target.exists() and target.stat().st_mtime > max(p.stat().st_mtime for p in made_from)


def build_cpu(out: Path) -> list[Path]:
    """Compiles the CPU libraries this compiler can make; the portable one always."""
    base = [compiler(), *FLAGS, f"-I{SOURCES / 'include'}", f"-I{SOURCES / 'cpu'}"]
    base.append("-pthread" if compiles([*base, "-pthread"]) else "-DGSA_NO_THREADS")
    extra = os.environ.get("GSAVATAR_CXXFLAGS", "").split()
    x86 = platform.machine().lower() in {"x86_64", "amd64", "i686"}
    wanted = {
        name: flags
        for name, flags in CPU_LIBRARIES.items()
        if not flags or (x86 and compiles([*base, *flags]))
    }
    sources = sorted(str(path) for path in (SOURCES / "cpu").glob("*.cpp"))

    def build(name: str) -> Path:
        target = out / f"libgsavatar_cpu_{name}.so"
        if is_current(target) and not extra:
            return target
        partial = target.with_suffix(".part")
        command = [*base, *wanted[name], *extra, *sources, "-o", str(partial)]
        subprocess.run(command, check=True)
        os.replace(partial, target)  # a running process keeps the old file
        return target

    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(build, wanted))


def build_cuda(out: Path) -> list[Path]:
    """Compiles the CUDA library where nvcc is found; nothing elsewhere."""
    choice = os.environ.get("GSAVATAR_CUDA", "")
    nvcc = shutil.which("nvcc")
    sources = sorted(str(path) for path in (SOURCES / "cuda").glob("*.cu"))
    if choice == "0" or not sources or (nvcc is None and choice != "1"):
        return []
    if nvcc is None:
        raise SystemExit("gsavatar: GSAVATAR_CUDA=1 needs nvcc on PATH; install the CUDA toolkit")
    target = out / "libgsavatar_cuda.so"
    if is_current(target):
        return [target]
    partial = target.with_suffix(".part")
    done = subprocess.run(cuda_command(nvcc, sources, partial), check=False)
    if done.returncode != 0:
        if choice == "1":
            raise SystemExit("gsavatar: nvcc failed; its messages are above")
        sys.stderr.write("gsavatar: nvcc failed, installing without CUDA\n")
        return []
    os.replace(partial, target)
    return [target]


def cuda_command(nvcc: str, sources: list[str], out: Path) -> list[str]:
    """The nvcc call for every architecture it knows, plus PTX of the newest for later ones."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    known = [a for a in CUDA_ARCHITECTURES if f"compute_{a}" in listed.stdout]
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in known]
    codes.append(f"-gencode=arch=compute_{known[-1]},code=compute_{known[-1]}")
    return [
        nvcc, "-std=c++17", "-O3", "--shared", "-Xcompiler=-fPIC,-fvisibility=hidden",
        "--expt-relaxed-constexpr", "--threads=2", f"-I{SOURCES / 'include'}", *codes,
        *sources, "-o", str(out),
    ]  # fmt: skip


class BuildKernels(build_ext):
    """Puts the libraries into the build tree, or into the source tree of an editable install."""

    def run(self) -> None:
        root = ROOT if self.inplace or self.editable_mode else Path(self.build_lib)
        out = root / PACKAGE
        out.mkdir(parents=True, exist_ok=True)
        self.built = build_cpu(out) + build_cuda(out)

    def get_outputs(self) -> list[str]:
        return [str(path) for path in getattr(self, "built", [])]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class PlatformWheel(bdist_wheel):
    """Tags the wheel for this platform and for every Python 3."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("gsavatar.ops.native_libraries", sources=[])],
        cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
    )
