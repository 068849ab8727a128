"""Shards of pictures: what is written comes back, damage is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from gsavatar.errors import InputError
from gsavatar.frames import FrameStore, FrameWriter, check_room, decode_png, encode_png


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3)])
def test_pictures_come_back_exactly(tmp_path: Path, coded: bool, shape: tuple[int, ...]) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)
    with FrameWriter(tmp_path / "a.bin", shape, coded=coded) as writer:
        for picture in pictures:
            writer.append(picture)
    store = FrameStore(tmp_path / "a.bin")
    assert len(store) == 5
    np.testing.assert_array_equal(np.stack([store[i] for i in range(5)]), pictures)
    with pytest.raises(IndexError):
        store[5]


def test_an_interrupted_shard_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError),
        FrameWriter(tmp_path / "a.bin", (4, 4), coded=False) as writer,
    ):
        writer.append(np.zeros((4, 4), np.uint8))
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_a_shortened_shard_is_refused(tmp_path: Path) -> None:
    with FrameWriter(tmp_path / "a.bin", (4, 4), coded=False) as writer:
        writer.append(np.zeros((4, 4), np.uint8))
    (tmp_path / "a.bin").write_bytes(b"123")
    with pytest.raises(InputError, match="3 bytes but its index says 16"):
        FrameStore(tmp_path / "a.bin")


def test_a_full_disk_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        "gsavatar.frames.shutil.disk_usage", lambda _: usage._replace(free=1_000_000_000)
    )
    check_room(tmp_path, 900, (512, 512, 3))
    with pytest.raises(InputError, match=r"1200 pictures need 1\.2 GB.* has 1\.0 GB left; make"):
        check_room(tmp_path, 1200, (512, 512, 3))


def test_a_wrong_shape_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"expected uint8 \(4, 4\)"),
        FrameWriter(tmp_path / "a.bin", (4, 4), coded=False) as writer,
    ):
        writer.append(np.zeros((4, 5), np.uint8))


def test_alpha_survives_png() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    np.testing.assert_array_equal(decode_png(encode_png(picture)), picture)
