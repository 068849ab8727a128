"""The doctor: it finds this machine usable, and has a cure for what it does not like."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import pytest

from gsavatar import assets, cli, doctor, ops
from gsavatar.doctor import Finding, State


def test_this_machine_is_usable(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for name in ("system", "torch", "mediapipe", "kernels", "picture", "CUDA", "gsplat", "nerfacc",
                 "tinycudann", "landmarks", "speech"):  # fmt: skip
        assert any(line.split()[1] == name for line in shown.splitlines() if line.split()), name


def test_a_missing_package_is_named_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "soxr":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert cli.main(["doctor"]) == 2
    assert "-> pip install soxr" in capsys.readouterr().out


def test_a_wrong_picture_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("illegal instruction\nand more")

    monkeypatch.setattr(ops, "rasterize", broken)
    found = doctor._picture()
    assert found.state is State.BAD and found.cure and "\n" not in found.text


def test_without_kernels_there_are_no_avatars(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = ops.available() | {"native": None, "why": {"native": "no library was built"}}
    monkeypatch.setattr(ops, "available", lambda: facts)
    (found,) = doctor._kernels()
    assert found.state is State.BAD and "no library was built" in found.text
    assert "compiler" in found.cure


def test_fallbacks_are_notes_and_not_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "available", lambda name: False)
    findings = doctor._models()
    assert doctor.usable(findings)
    by_name = {f.name: f for f in findings}
    assert by_name["landmarks"].state is State.NOTE and "without blendshapes" in by_name[
        "landmarks"
    ].text  # fmt: skip
    assert by_name["face model"].cure and by_name["speech"].cure


def test_every_problem_has_a_cure() -> None:
    bad = [f for f in doctor.examine() if f.state is State.BAD]
    assert all(f.cure for f in bad)
    assert doctor.table([Finding("a", State.BAD, "b", "c")]).splitlines()[1].strip() == "-> c"


def test_the_reader_of_planes_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert doctor._planes().state is State.NOTE
    for name in ("tinycudann", "nerfacc"):
        monkeypatch.setenv("GSAVATAR_PLANES", name)
        found = doctor._planes()
        assert found.state is State.BAD and found.cure == "unset GSAVATAR_PLANES"
    monkeypatch.setenv("GSAVATAR_PLANES", "tinycudann")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert doctor._planes().state is State.GOOD
