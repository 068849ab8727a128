"""Avatar files: exact round trip, and every kind of damage refused by a sentence."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from gsavatar.clip import Clip
from gsavatar.config import Settings
from gsavatar.errors import InputError
from gsavatar.package import MEMBERS, load_package, save_package
from gsavatar.pipeline import build_package, find_avatar
from gsavatar.seeding import SeedCounts, seed_avatar
from gsavatar.types import Drive


@pytest.fixture(scope="module")
def saved(tiny_clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    avatar = seed_avatar(tiny_clip, SeedCounts(200, 50, 80), 1, torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("package") / "tiny.gsavatar"
    save_package(path, build_package(tiny_clip, avatar, None, Settings()))
    return path


def rewritten(path: Path, out: Path, **members: bytes | None) -> Path:
    """A copy of the file with some members replaced (``None`` leaves one out)."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = members.get(name, old.read(name)) if name in members else old.read(name)
            if content is not None:
                new.writestr(name, content)
        for name in set(members) - set(old.namelist()):
            extra = members[name]
            assert extra is not None
            new.writestr(name, extra)
    return out


def test_an_avatar_survives_its_file(saved: Path, tmp_path: Path) -> None:
    first = load_package(saved)
    save_package(tmp_path / "again.gsavatar", first)
    second = load_package(tmp_path / "again.gsavatar")
    drive = Drive(torch.tensor([0.5, 0.2]), torch.eye(4))
    a, b = first.avatar(drive), second.avatar(drive)
    for name in ("means", "quats", "scales", "opacities", "sh"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    assert first.card == second.card and torch.equal(first.idle.values, second.idle.values)
    assert {p.name for p in tmp_path.iterdir()} == {"again.gsavatar"}


def test_the_same_avatar_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    package = load_package(saved)
    for name in ("a", "b"):
        save_package(tmp_path / name, package)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def changed_tensor(saved: Path, name: str, value: torch.Tensor | None) -> bytes:
    with zipfile.ZipFile(saved) as archive:
        tensors = load(archive.read("tensors.safetensors"))
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    return save(tensors)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("FACE.means", None, "FACE.means"),
        ("FACE.means", torch.full((200, 3), float("nan")), "not finite"),
        ("FACE.means", torch.full((200, 3), 1e9), "beyond"),
        ("FACE.log_scales", torch.full((200, 3), 90.0), "beyond"),
        ("FACE.means", torch.zeros(200, 4), r"\(200, 4\)"),
        ("FACE.means", torch.zeros(2_000_000, 3), "2000000 Gaussians"),
        ("FACE.raw_opacities", torch.zeros(199), r"\(199,\)"),
        ("FACE.basis", torch.zeros(3, 200, 9), r"\(3, 200, 9\)"),
        ("FACE.sh", torch.zeros(200, 5, 3), "5 terms"),
        ("idle.head_pose", torch.zeros(50, 4, 4), "not a rigid motion"),
        ("idle.time_s", torch.zeros(1, dtype=torch.float64), "lengths differ"),
        ("camera.K", torch.zeros(3, 3), "focal length"),
        ("rest", torch.zeros(2, dtype=torch.float64), "float64"),
    ],
)
def test_bad_tensors_are_refused(
    saved: Path, tmp_path: Path, name: str, value: torch.Tensor | None, reason: str
) -> None:
    data = changed_tensor(saved, name, value)
    bad = rewritten(saved, tmp_path / "bad.gsavatar", **{"tensors.safetensors": data})
    with pytest.raises(InputError, match=reason) as caught:
        load_package(bad)
    assert str(bad) in str(caught.value) and "fit it again" in str(caught.value)


def test_hostile_members_are_refused(saved: Path, tmp_path: Path) -> None:
    escape = rewritten(saved, tmp_path / "a.gsavatar", **{"../../evil": b"x"})
    with pytest.raises(InputError, match="unexpected member"):
        load_package(escape)
    lost = rewritten(saved, tmp_path / "b.gsavatar", **{"plate.png": None})
    with pytest.raises(InputError, match=r"plate.png is missing"):
        load_package(lost)
    pickle = rewritten(saved, tmp_path / "c.gsavatar", **{"tensors.safetensors": b"\x80\x04K."})
    with pytest.raises(InputError, match=r"tensors\.safetensors"):
        load_package(pickle)
    odd = json.dumps({"format": "gsavatar", "version": 99}).encode()
    with pytest.raises(InputError, match="version 99"):
        load_package(rewritten(saved, tmp_path / "d.gsavatar", **{"avatar.json": odd}))


def test_times_that_stand_still_and_crossed_limits_are_refused(saved: Path, tmp_path: Path) -> None:
    package = load_package(saved)
    still = torch.zeros(len(package.idle.time_s), dtype=torch.float64)
    crossed = torch.tensor([[1.0, 0.0]]).repeat(len(package.names), 1)
    for name, value, reason in (
        ("idle.time_s", still, "times do not rise"), ("limits", crossed, "lower end above"),
    ):  # fmt: skip
        data = changed_tensor(saved, name, value)
        bad = rewritten(saved, tmp_path / "bad.gsavatar", **{"tensors.safetensors": data})
        with pytest.raises(InputError, match=reason):
            load_package(bad)


def test_an_avatar_made_for_another_renderer_is_refused(saved: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        info = json.loads(archive.read("avatar.json"))
    for key, value in (("blur_px2", 5.0), ("antialiased", False)):
        other = json.dumps(info | {key: value}).encode()
        bad = rewritten(saved, tmp_path / "bad.gsavatar", **{"avatar.json": other})
        with pytest.raises(InputError, match=f"made to be drawn with.*{value}"):
            load_package(bad)


def test_a_bomb_is_refused_before_it_is_unpacked(saved: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("avatar.json", b" " * (MEMBERS["avatar.json"] + 1))
    path = tmp_path / "bomb.gsavatar"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="unpacks to"):
        load_package(path)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.gsavatar"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a valid avatar file"):
        load_package(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such avatar"):
        load_package(tmp_path / "none.gsavatar")
    with pytest.raises(InputError, match="no avatar here"):
        find_avatar(tmp_path)
