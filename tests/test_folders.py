"""Folders of other projects: what is read of them, in which convention, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gsavatar import cli, geometry, ingest_folder
from gsavatar.datasets import adnerf, transforms
from gsavatar.datasets.folders import read_folder
from gsavatar.errors import InputError
from gsavatar.film_sinks import write_wav
from gsavatar.footage import Lens, PictureFolder, VideoFile, as_footage, the_folder
from gsavatar.frames import encode_jpg, encode_png
from gsavatar.sequence import Sequence
from gsavatar.tracking_known import align
from gsavatar.tracking_solve import Poses, rotations
from gsavatar.types import Landmarks

SIDE = 32
FOCAL = 60.0
IDS = tuple(range(3, 25))  # the folder's first pictures and some of its last are lost


def camera_to_head(index: int) -> np.ndarray:
    """An OpenGL camera half a metre to a metre in front of a head that turns."""
    turn = rotations(np.array([[0.1 * math.sin(index), 0.02 * index, 0.05]]))[0]
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn, turn @ [0.01 * index, 0.02, 0.7]
    return pose


def picture(index: int, side: int = SIDE) -> np.ndarray:
    return np.full((side, side, 3), 5 * index % 256, np.uint8)


def adnerf_folder(root: Path) -> Path:
    """A fabricated folder of AD-NeRF's family; the last four frames are its test part."""
    (root / "ori_imgs").mkdir(parents=True)
    for index in IDS:
        (root / "ori_imgs" / f"{index}.jpg").write_bytes(encode_jpg(picture(index)))
        (root / "ori_imgs" / f"{index}.lms").write_text("1 2\n" * 68)
    (root / "bc.jpg").write_bytes(encode_jpg(np.full((SIDE, SIDE, 3), 77, np.uint8)))
    (root / "track_params.pt").write_bytes(b"\x80\x04 a pickle that nobody may open")
    write_wav(root / "aud.wav", np.full(16_000, 0.1, np.float32), 16_000)
    for name, ids in (("train", IDS[:-4]), ("val", IDS[-4:])):
        frames = [
            {"img_id": i, "aud_id": i, "transform_matrix": camera_to_head(i).tolist()} for i in ids
        ]
        content = {"focal_len": FOCAL, "cx": 16.5, "cy": 15.0, "frames": frames}
        (root / f"transforms_{name}.json").write_text(json.dumps(content))
    return root


def nerf_folder(root: Path, **common: Any) -> Path:
    """A fabricated folder with a transforms.json, transparent pictures and a mask for one."""
    (root / "images").mkdir(parents=True)
    frames = []
    for index in IDS:
        pixels = np.dstack((picture(index), np.full((SIDE, SIDE), 255, np.uint8)))
        pixels[:, : SIDE // 2, 3] = 0
        (root / "images" / f"{index:05d}.png").write_bytes(encode_png(pixels))
        matrix = camera_to_head(index).tolist()
        frames.append({"file_path": f"images/{index:05d}.png", "transform_matrix": matrix})
    (root / "mask.png").write_bytes(encode_png(np.full((SIDE, SIDE), 200, np.uint8)))
    frames[0]["fg_mask_path"] = "mask.png"
    lens = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": 16.5, "cy": 15.0, "w": SIDE, "h": SIDE}
    (root / "transforms.json").write_text(json.dumps({**lens, **common, "frames": frames}))
    return root


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def family(tmp_path: Path) -> Path:
    return adnerf_folder(tmp_path / "obama")


@pytest.fixture
def nerf(tmp_path: Path) -> Path:
    return nerf_folder(tmp_path / "person")


@pytest.mark.parametrize("make", [adnerf_folder, nerf_folder])
def test_both_conventions_see_a_point_of_the_head_at_one_pixel(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    """The layouts' own formula: OpenGL camera axes, looking along -z, x to the right, y up."""
    folder = read_folder(make(tmp_path / "x"))
    assert folder.lens == Lens(FOCAL, 16.5, 15.0) and folder.poses is not None
    assert folder.poses.frame_ids.tolist() == list(IDS)
    point = np.array([0.03, -0.05, 0.08])
    for row, index in enumerate(IDS):
        x, y, z = (np.linalg.inv(camera_to_head(index)) @ [*point, 1.0])[:3]
        assert z < 0  # in front of an OpenGL camera
        expected = [16.5 - FOCAL * x / z, 15.0 + FOCAL * y / z]
        K = geometry.pinhole(FOCAL, SIDE, (16.5, 15.0)).double()
        seen = geometry.project(torch.from_numpy(point)[None], folder.poses.head_to_cam[row], K)
        np.testing.assert_allclose(seen[0, :2], expected, atol=1e-9)
        assert float(seen[0, 2]) > 0


def test_the_family_is_read_with_its_ids_times_sound_and_plate(family: Path) -> None:
    folder = read_folder(family)
    decoded = list(folder.decode())
    assert [d[0] for d in decoded] == list(IDS)
    assert [d[1] for d in decoded] == pytest.approx([i / 25 for i in IDS])
    assert abs(int(decoded[4][2].mean()) - 5 * IDS[4]) <= 1
    info = folder.probe()
    assert (info.width, info.height, info.fps, info.frames) == (SIDE, SIDE, 25.0, IDS[-1] + 1)
    sound, plate = folder.sound(), folder.plate()
    assert sound is not None and len(sound) == 16_000
    assert plate is not None and abs(int(plate.mean()) - 77) <= 1
    assert folder.test_from_id == IDS[-4] and folder.notes == ()
    assert folder.mask(IDS[0]) is None


def test_pictures_of_a_folder_keep_their_order_whatever_their_names(family: Path) -> None:
    """9.jpg stands before 10.jpg, though not in the alphabet."""
    assert list(read_folder(family).pictures) == sorted(IDS)


def test_poses_numbered_without_lost_frames_are_put_back(family: Path) -> None:
    """The tracker of the family left out frames 5 and 9 and numbered the rest from 0."""
    for lost in (5, 9):
        (family / "ori_imgs" / f"{lost}.lms").unlink()
    left = [i for i in IDS if i not in (5, 9)]
    for name, start, stop in (("train", 0, len(left) - 4), ("val", len(left) - 4, len(left))):
        path = family / f"transforms_{name}.json"
        frames = [
            {"img_id": i, "transform_matrix": camera_to_head(left[i]).tolist()}
            for i in range(start, stop)
        ]
        edit(path, lambda content, frames=frames: content.update(frames=frames))
    folder = read_folder(family)
    assert folder.poses is not None and folder.poses.frame_ids.tolist() == left
    expected = geometry.opengl_to_opencv(torch.from_numpy(camera_to_head(10)))
    row = left.index(10)
    torch.testing.assert_close(folder.poses.head_to_cam[row], expected, atol=1e-9, rtol=0)
    assert folder.test_from_id == left[-4] and "put back" in folder.notes[0]


def test_a_mixed_split_is_not_kept(family: Path) -> None:
    """Chronological parts are the only ones without neighbours on both sides."""
    train, val = (
        json.loads((family / f"transforms_{n}.json").read_text()) for n in ("train", "val")
    )
    train["frames"][0], val["frames"][0] = val["frames"][0], train["frames"][0]
    (family / "transforms_train.json").write_text(json.dumps(train))
    (family / "transforms_val.json").write_text(json.dumps(val))
    folder = read_folder(family)
    assert folder.test_from_id is None and "mixed" in folder.notes[0]


def test_repainted_pictures_serve_where_there_are_no_others(family: Path) -> None:
    (family / "ori_imgs").rename(family / "gt_imgs")
    folder = read_folder(family)
    assert list(folder.pictures) == list(IDS) and "gt_imgs" in folder.notes[0]


def test_a_transforms_folder_is_read_with_masks_over_white(nerf: Path) -> None:
    folder = read_folder(nerf)
    index, time_s, pixels = next(iter(folder.decode()))
    assert index == 3 and time_s == pytest.approx(3 / 25)
    assert (pixels[:, : SIDE // 2] == 255).all() and (pixels[:, SIDE // 2 :] == 15).all()
    given, own = folder.mask(3), folder.mask(4)
    assert given is not None and (given == 200).all()
    assert own is not None and (own[:, : SIDE // 2] == 0).all() and own[0, -1] == 255
    assert folder.sound() is None and "sound" in folder.notes[0] and folder.test_from_id is None
    box = (0.0, 0.0, 16.0, 16.0)
    person = ingest_folder.person(folder, box, 3)
    assert person is not None and person.shape == (512, 512)
    assert float(person.mean()) == pytest.approx(200 / 255, abs=1e-3)


def test_lenses_are_read_in_every_way_they_are_written(tmp_path: Path) -> None:
    angle = 2 * math.atan(SIDE / 2 / FOCAL)
    plain = {"fl_x": None, "fl_y": None, "camera_angle_x": angle}
    made = nerf_folder(tmp_path / "angle")

    def only_angle(content: dict[str, Any]) -> None:
        content.update(plain)
        for key in ("fl_x", "fl_y", "cx", "cy"):
            del content[key]

    edit(made / "transforms.json", only_angle)
    lens = read_folder(made).lens
    assert lens is not None and lens.focal_px == pytest.approx(FOCAL) and lens.cx == SIDE / 2
    double = nerf_folder(tmp_path / "double", w=2 * SIDE, h=2 * SIDE)
    assert read_folder(double).lens == Lens(FOCAL / 2, 16.5 / 2, 7.5)
    without = nerf_folder(tmp_path / "without")
    edit(without / "transforms.json", lambda c: [c.pop(k) for k in ("fl_x", "fl_y")])
    assert read_folder(without).lens is None


def test_a_rate_that_is_stated_counts(tmp_path: Path) -> None:
    folder = read_folder(nerf_folder(tmp_path / "fast", fps=30))
    assert next(iter(folder.decode()))[1] == pytest.approx(0.1)


def test_stated_indices_come_before_file_names(nerf: Path) -> None:
    def number(content: dict[str, Any]) -> None:
        for place, frame in enumerate(content["frames"]):
            frame |= {"timestep_index": place, "timestep_index_original": 2 * place}

    edit(nerf / "transforms.json", number)
    assert list(read_folder(nerf).pictures) == [2 * i for i in range(len(IDS))]


def test_a_lens_follows_the_crop() -> None:
    lens = Lens(1000.0, 320.0, 240.0).cropped((100.0, 50.0, 356.0, 306.0))
    assert lens == Lens(2000.0, 540.0, 280.0)


def test_a_camera_that_stands_still_gives_no_path(nerf: Path) -> None:
    still = camera_to_head(0).tolist()
    edit(
        nerf / "transforms.json", lambda c: [f.update(transform_matrix=still) for f in c["frames"]]
    )
    folder = read_folder(nerf)
    assert folder.poses is None
    assert ingest_folder.known_poses([folder], "track") is None
    with pytest.raises(InputError, match=r"stands still.*leave --poses folder away"):
        ingest_folder.known_poses([folder], "folder")
    with pytest.raises(InputError, match="a video brings none"):
        ingest_folder.known_poses([VideoFile(Path("a.mp4"))], "folder")


def test_a_folder_must_come_alone(family: Path) -> None:
    folder = read_folder(family)
    assert the_folder([folder]) is folder and the_folder([as_footage(Path("a.mp4"))]) is None
    with pytest.raises(InputError, match="only input"):
        the_folder([folder, VideoFile(Path("a.mp4"))])


def sequence(ids: range) -> Sequence:
    count = len(ids)
    found = torch.ones(count, dtype=torch.bool)
    landmarks = Landmarks(torch.zeros(count, 478, 3), found, None)
    return Sequence(np.array(ids), np.array(ids) / 25.0, np.zeros(count, np.int64), landmarks)


def test_the_folders_split_is_kept_where_it_leaves_enough() -> None:
    folder = PictureFolder(Path("x"), {}, 25.0, test_from_id=60)
    start_s, said = ingest_folder.test_part(folder, sequence(range(100)))
    assert start_s == pytest.approx(2.4) and "from frame 60" in said[0]
    start_s, said = ingest_folder.test_part(folder, sequence(range(62)))
    assert start_s is None and "2 test frames" in said[0]


BROKEN: list[tuple[str, Callable[[Path], Any], str]] = [
    ("no train", lambda f: (f / "transforms_train.json").unlink(), "transforms_train.json"),
    ("no val", lambda f: (f / "transforms_val.json").unlink(), "transforms_val.json"),
    ("no json", lambda f: (f / "transforms_val.json").write_text("{"), "not valid JSON"),
    ("deep", lambda f: (f / "transforms_val.json").write_text("[" * 100_000), "not valid JSON"),
    ("a list", lambda f: (f / "transforms_val.json").write_text("[]"), "no list of frames"),
    ("no pictures", lambda f: [p.unlink() for p in f.glob("ori_imgs/*.jpg")], "no picture named"),
    ("focal", lambda f: edit(f / "transforms_train.json", lambda c: c.update(focal_len="x")),
     "focal_len is 'x'"),
    ("no focal", lambda f: edit(f / "transforms_train.json", lambda c: c.pop("focal_len")),
     "focal_len is None"),
    ("huge", lambda f: edit(f / "transforms_train.json", lambda c: c.update(focal_len=10**400)),
     "focal_len is 1000"),
    ("id", lambda f: edit(f / "transforms_val.json", lambda c: c["frames"][0].update(img_id=1e12)),
     "no frame id"),
    ("matrix", lambda f: edit(
        f / "transforms_val.json",
        lambda c: c["frames"][0].update(transform_matrix=[[2.0 * (i == j) for j in range(4)]
                                                          for i in range(4)])),
     "not a turn and a shift"),
    ("no matrix", lambda f: edit(
        f / "transforms_val.json", lambda c: c["frames"][0].pop("transform_matrix")),
     "not a turn and a shift"),
    ("version", lambda f: edit(f / "transforms_train.json", lambda c: c.update(gsavatar={})),
     "version 1"),
    ("unreadable", lambda f: (f / "ori_imgs" / "3.jpg").write_bytes(b""), "3.jpg"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "said"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_a_damaged_folder_is_one_sentence_and_leaves_nothing(
    family: Path, damage: Callable[[Path], Any], said: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(family.parent)
    damage(family)
    assert cli.main(["fit", "obama"]) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(lines) == 1 and said in lines[0] and lines[0].endswith(".")
    assert not (family.parent / "runs").exists()


@pytest.mark.parametrize(
    "name", ["../x.png", "images/../../x.png", "/etc/passwd", "..\\x.png", "C:\\x.png", "", 7, "\0"]
)
@pytest.mark.parametrize("key", ["file_path", "fg_mask_path"])
def test_paths_that_leave_the_folder_are_refused(nerf: Path, name: Any, key: str) -> None:
    (nerf.parent / "x.png").write_bytes(encode_png(picture(1)))
    edit(nerf / "transforms.json", lambda c: c["frames"][2].update(timestep_index=5, **{key: name}))
    with pytest.raises(InputError, match=r"outside of the folder|is no file name"):
        read_folder(nerf)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["frames"][1].update(file_path="images/99999.png"), "no such picture"),
        (lambda c: c["frames"][1].update(file_path="images/00003.png"), "two frames"),
        (lambda c: c["frames"][1].update(fl_x=2 * FOCAL, fl_y=2 * FOCAL), "the lens changes"),
        (lambda c: c.update(fl_y=2 * FOCAL), "square pixels"),
        (lambda c: [f.update(camera_index=i) for i, f in enumerate(c["frames"])], "22 cameras"),
        (lambda c: c.update(frames=c["frames"][:1]), "at least 2"),
        (lambda c: c.update(fps=0), "fps is 0"),
    ],
)
def test_a_transforms_file_that_cannot_serve(
    nerf: Path, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    edit(nerf / "transforms.json", change)
    with pytest.raises(InputError, match=said):
        read_folder(nerf)


def test_pictures_and_plate_must_have_one_size(family: Path) -> None:
    (family / "ori_imgs" / "7.jpg").write_bytes(encode_jpg(picture(7, 40)))
    with pytest.raises(InputError, match=r"7\.jpg: 40 x 40 px"):
        list(read_folder(family).decode())
    (family / "bc.jpg").write_bytes(encode_jpg(picture(7, 40)))
    with pytest.raises(InputError, match=r"bc\.jpg: 40 x 40 px"):
        read_folder(family).plate()


def test_another_folder_is_neither(tmp_path: Path) -> None:
    assert not adnerf.recognises(tmp_path) and not transforms.recognises(tmp_path)
    with pytest.raises(InputError, match="neither AD-NeRF's"):
        read_folder(tmp_path)


@pytest.mark.parametrize("free_unit", [True, False])
def test_poses_of_another_head_frame_are_brought_to_ours(free_unit: bool) -> None:
    s = np.arange(200) / 25.0
    R = rotations(np.stack((0.1 * np.sin(2 * s), 0.3 * np.sin(1.3 * s), 0.1 * np.cos(s)), 1))
    R = R @ np.diag([1.0, -1.0, -1.0])
    t = np.stack((0.05 * np.sin(0.9 * s), 0.02 * np.cos(s), 0.9 + 0.05 * np.sin(0.5 * s)), 1)
    known, unit = Poses(R, t / (0.1 if free_unit else 1.0)), 0.1 if free_unit else 1.0
    turn, shift = rotations(np.array([[0.1, -0.05, 0.2]]))[0], np.array([0.01, -0.03, 0.02])
    noise = 0.002 * np.random.default_rng(0).normal(size=t.shape)
    own = Poses(R @ turn, R @ shift + t + noise)
    own.t[7] += 0.5  # one frame went wrong
    found = align(own, known, free_unit=free_unit)
    np.testing.assert_allclose(found.turn, turn, atol=1e-6)
    np.testing.assert_allclose(found.shift, shift, atol=3e-3)
    assert found.unit_m == pytest.approx(unit, rel=5e-3)
    off = np.linalg.norm(found.applied(known).t - (R @ shift + t), axis=1)
    assert off.max() < 3e-3
