"""The rules of the tree: arrows one way, one owner per heavy package, small modules, no prints."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"gsavatar": "gsavatar", "viewer": "gsavatar.viewer", "datasets": "gsavatar.datasets"}

OWNERS = {
    "av": {"gsavatar.video"},
    "cv2": {
        "gsavatar.datasets.synthetic_render",
        "gsavatar.video", "gsavatar.landmarks", "gsavatar.segmentation", "gsavatar.tracking",
        "gsavatar.frames", "gsavatar.plate", "gsavatar.batches", "gsavatar.crop",
        "gsavatar.metrics", "gsavatar.report", "gsavatar.check", "gsavatar.visibility",
    },
    "mediapipe": {"gsavatar.landmarks", "gsavatar.segmentation"},
    "onnxruntime": {"gsavatar.speech_encoders"},
    "viser": {"gsavatar.viewer"},
    "soundfile": {"gsavatar.audio", "gsavatar.datasets"},
    "soxr": {"gsavatar.audio"},
    "scipy": {
        "gsavatar.tracking", "gsavatar.morphable", "gsavatar.speech", "gsavatar.gaussians",
    },
    "gsplat": {"gsavatar.ops"},
    "nerfacc": {"gsavatar.ops"},
    "tinycudann": {"gsavatar.fields"},
    "lpips": {"gsavatar.lpips_network"},
    "safetensors": {
        "gsavatar.package", "gsavatar.clip", "gsavatar.train_state", "gsavatar.sequence",
        "gsavatar.frames",
    },
    "tyro": {"gsavatar.cli"},
    "rich": {"gsavatar.progress", "gsavatar.viewer"},
}  # fmt: skip
"""Who may import a heavy package: the module, what lies below it, or its ``name_*`` parts."""

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
LONGER: dict[str, str] = {}
"""Modules past the limit, each with its reason."""


def modules() -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every module of the package."""
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            yield ".".join((package, *parts)), path


MODULES = dict(modules())


def imported(path: Path) -> list[tuple[str, bool]]:
    """Dotted names a file imports, and whether the import stands inside a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in inner) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found += [(f"{node.module}.{alias.name}", id(node) in inner) for alias in node.names]
    return found


def within(name: str, package: str) -> bool:
    """Whether a dotted name is a package or lies inside it."""
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_one_way(module: str) -> None:
    """The library knows nothing of viewer, datasets, tests or benchmarks; the cli only lazily."""
    for name, lazy in imported(MODULES[module]):
        assert not within(name, "tests") and not within(name, "benchmarks"), f"{module}: {name}"
        for outer in ("gsavatar.viewer", "gsavatar.datasets"):
            if within(name, outer) and not within(module, outer):
                assert module == "gsavatar.cli" and lazy, f"{module} imports {name}"
        if within(name, "gsavatar.cli"):
            inside = within(module, "gsavatar.cli") or module == "gsavatar.__main__"
            assert inside, f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_heavy_packages_have_one_owner(module: str) -> None:
    """A heavy package is imported by its owner alone."""
    for name, _ in imported(MODULES[module]):
        owners = OWNERS.get(name.split(".")[0])
        if owners is not None:
            allowed = any(within(module, o) or module.startswith(o + "_") for o in owners)
            assert allowed, f"{module} imports {name}; its owners are {sorted(owners)}"


@pytest.mark.parametrize("module", OWNERS["mediapipe"])
def test_mediapipe_is_imported_apart_first(module: str) -> None:
    """It may keep the frames of who imports it (``memory.import_apart``)."""
    text = MODULES[module].read_text(encoding="utf-8")
    first, then = text.find('import_apart("mediapipe'), text.find("import mediapipe")
    assert 0 <= first < then


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_are_small(module: str) -> None:
    """At most 400 lines a module and 60 a function, without its docstring."""
    text = MODULES[module].read_text(encoding="utf-8")
    if module not in LONGER:
        lines = len(text.splitlines())
        assert lines <= MAX_MODULE_LINES, f"{module}: {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        first = node.body[0]
        if ast.get_docstring(node) is not None and len(node.body) > 1:
            first = node.body[1]
        lines = (node.body[-1].end_lineno or 0) - first.lineno + 1
        assert lines <= MAX_FUNCTION_LINES, f"{module}.{node.name}: {lines} lines"


@pytest.mark.parametrize("module", MODULES)
def test_the_library_is_quiet_and_explains_itself(module: str) -> None:
    """No print, no star import, no bare except; a docstring in every module."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert not tree.body or ast.get_docstring(tree), f"{module} has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{module}:{node.lineno} prints"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"{module}: star import"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{module}:{node.lineno}: bare except"


def test_names_say_what_is_inside() -> None:
    """No module called utils, helpers, misc or common."""
    vague = {"utils", "util", "helpers", "misc", "common"}
    assert not [m for m in MODULES if m.split(".")[-1] in vague]


def test_there_is_something_to_check() -> None:
    """The walk finds the package: an empty list would pass everything."""
    assert {"gsavatar.cli", "gsavatar.types", "gsavatar.viewer"} <= set(MODULES)
