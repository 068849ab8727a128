"""A clip written in AD-NeRF's layout and read back: poses, ids, split, pictures, sound."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gsavatar import audio, cli, geometry, ingest, tracking, video
from gsavatar.clip import Clip, open_clip
from gsavatar.config import load_preset, save_settings
from gsavatar.datasets import export_adnerf
from gsavatar.datasets.folders import read_folder
from gsavatar.errors import InputError
from gsavatar.footage import PictureFolder
from gsavatar.frames import decode_png
from gsavatar.ingest import IngestOptions
from gsavatar.progress import SilentReporter
from gsavatar.tracking_observations import observed
from gsavatar.types import HEAD_REGIONS, KnownPoses, Region

SAMPLE = Path(__file__).resolve().parents[1] / "datasets" / "sample" / "speaker.mp4"
FRAMES = 54
POSE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Exported:
    """A clip and the folder that was made of it."""

    run: Path
    clip: Clip
    path: Path
    folder: PictureFolder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The first 2.4 s of the bundled sample at half its size, off the middle of a wider picture."""
    root = tmp_path_factory.mktemp("exported")
    source = root / "wide.mp4"
    sound = audio.load(SAMPLE)[: FRAMES * 640]
    with video.VideoWriter(source, 320, 256, 25.0, audio=sound) as writer:
        for _, _, rgb in islice(video.decode(SAMPLE), FRAMES):
            writer.write(np.pad(rgb[::2, ::2], ((0, 0), (0, 64), (0, 0)), mode="edge"))
    run = root / "run"
    clip = ingest.ingest([source], run / "clip", IngestOptions(), SilentReporter())
    save_settings(run / "config.toml", load_preset("preview"))
    assert cli.main(["track", str(run), "--export-adnerf", str(root / "out")]) == 0
    return Exported(run, clip, root / "out", read_folder(root / "out"))


def content(exported: Exported, part: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((exported.path / f"transforms_{part}.json").read_text())
    return found


def test_it_comes_back_with_its_own_poses_ids_and_split(exported: Exported, tmp_path: Path) -> None:
    options = IngestOptions(poses="folder")
    again = ingest.ingest([exported.folder], tmp_path / "clip", options, SilentReporter())
    clip = exported.clip
    rows = np.concatenate((clip.train_rows, clip.test_rows))
    assert again.frame_ids.tolist() == clip.frame_ids[torch.from_numpy(rows)].tolist()
    off = again.track.head_pose - clip.track.head_pose[torch.from_numpy(rows)]
    assert float(off.abs().max()) < POSE_TOLERANCE
    view, before = again.camera(0).world_to_cam, clip.camera(0).world_to_cam
    assert float((view - before).abs().max()) < POSE_TOLERANCE
    for part in ("train_rows", "test_rows"):
        ids = [c.frame_ids[torch.from_numpy(getattr(c, part))].tolist() for c in (again, clip)]
        assert ids[0] == ids[1], part
    top, left, bottom, _ = again.meta["sources"][0]["crop"]
    canvas = content(exported, "train")
    scale = 512 / (bottom - top)
    assert float(again.camera(0).K[0, 0]) == pytest.approx(canvas["focal_len"] * scale, rel=1e-5)
    assert float(again.camera(0).K[0, 2]) == pytest.approx((canvas["cx"] - left) * scale, rel=1e-5)
    assert again.audio is not None and clip.audio is not None
    assert abs(len(again.audio) - len(clip.audio)) <= 640
    said = " ".join(again.meta["notes"])
    assert "jumps" not in said  # the half second between the parts is a pause, not a cut
    assert "path is the folder's own" in said and "test part is the folder's" in said
    assert abs(again.plates[0].astype(int).mean() - clip.plates[0].astype(int).mean()) < 6


def test_without_asking_the_head_is_tracked_anew(exported: Exported, tmp_path: Path) -> None:
    """All pictures are tracked then, those between the parts too, and the lens is the folder's."""
    again = ingest.ingest([exported.folder], tmp_path / "clip", IngestOptions(), SilentReporter())
    assert again.frame_ids.tolist() == exported.clip.frame_ids.tolist()
    turn = geometry.angle_deg(
        again.track.head_pose[:, :3, :3].mT @ exported.clip.track.head_pose[:, :3, :3]
    )
    assert 0.0 < float(turn.max()) < 2.0


def test_the_layouts_readers_see_the_same_pixels(exported: Exported) -> None:
    """A vertex of the face, by the formula of the layout: OpenGL camera, focal length, middle."""
    clip = exported.clip
    table = content(exported, "train")
    shown = decode_png((exported.path / "gt_imgs" / "0.jpg").read_bytes())
    height, width = shown.shape[:2]
    assert (width, height) == (table["w"], table["h"])
    assert (2 * int(table["cx"]), 2 * int(table["cy"])) == (width, height)
    assert width > 512, "the sample's optical axis lies off the crop's middle"
    frames = table["frames"]
    assert isinstance(frames, list)
    for frame in frames[:: len(frames) // 4]:
        row = clip.frame_ids.tolist().index(frame["img_id"])
        camera_to_head = np.array(frame["transform_matrix"])
        vertex = clip.track.face.vertices[10].double().numpy()
        x, y, z = (np.linalg.inv(camera_to_head) @ [*vertex, 1.0])[:3]
        seen = [table["cx"] - table["focal_len"] * x / z, table["cy"] + table["focal_len"] * y / z]
        camera = clip.camera(row)
        in_room = geometry.transform_points(
            clip.track.head_pose[row], clip.track.face.vertices[10][None]
        )
        expected = geometry.project(in_room, camera.world_to_cam, camera.K)[0, :2].numpy()
        margin = table["cx"] - float(camera.K[0, 2]), table["cy"] - float(camera.K[1, 2])
        np.testing.assert_allclose(seen, expected + margin, atol=0.01)


def test_every_frame_has_its_pictures_and_landmarks(exported: Exported) -> None:
    clip, path = exported.clip, exported.path
    ids = {str(i) for i in clip.frame_ids.tolist()}
    for folder, suffix in (
        ("ori_imgs", ".jpg"), ("ori_imgs", ".lms"), ("gt_imgs", ".jpg"), ("parsing", ".png"),
        ("torso_imgs", ".png"),
    ):  # fmt: skip
        assert {p.stem for p in (path / folder).glob(f"*{suffix}")} == ids
    row = len(clip) // 2
    index = int(clip.frame_ids[row])
    shown = decode_png((path / "ori_imgs" / f"{index}.jpg").read_bytes())
    left = shown.shape[1] - 512  # the wide picture lies to the right of the crop, or to its left
    for start in (0, left):
        same = shown[:512, start : start + 512].astype(int) - clip.frame(row)
        if np.abs(same).mean() < 2.0:
            break
    else:
        pytest.fail("the protocol picture is not in the exported one")
    points = np.loadtxt(path / "ori_imgs" / f"{index}.lms")
    assert points.shape == (68, 2)
    np.testing.assert_allclose(
        points[48] - (start, 0), clip.landmarks.points[row, 61, :2].numpy(), atol=1e-3
    )
    jaw, lips, right_eye = points[:17], points[48:60], points[36:42]
    assert (np.diff(jaw[1:-1, 0]) > 0).all() and jaw[8, 1] == points[:, 1].max()
    assert jaw[0, 0] < right_eye[:, 0].min() and right_eye[:, 1].max() < lips[:, 1].min()
    heard = audio.load(path / "aud.wav")
    assert clip.audio is not None and np.abs(heard - clip.audio).max() < 1e-4


def test_a_path_in_another_head_frame_and_unit_is_followed(exported: Exported) -> None:
    """The same path told by another project: decimetres, an origin 3 cm away, axes turned by 5°."""
    K = exported.clip.camera(0).K
    options: dict[str, Any] = {
        "provider": exported.clip.track.face.provider, "focal_px": float(K[0, 0]),
        "principal_point": (float(K[0, 2]), float(K[1, 2])),
    }  # fmt: skip
    clip = exported.clip
    files = torch.zeros(len(clip), dtype=torch.int64)
    # A known path is placed by landmarks, so the track it is compared with is one of landmarks.
    seen = observed(clip.landmarks, clip.time_s, files, clip.frame_ids)
    by_landmarks = tracking.fit_track(seen, **options)
    clip = replace(clip, track=by_landmarks)
    ours = export_adnerf.poses(clip)
    turn = geometry.so3_exp(torch.tensor([0.05, -0.07, 0.02], dtype=torch.float64))
    other = geometry.rigid(turn, torch.tensor([0.02, -0.01, 0.02], dtype=torch.float64))
    theirs = ours @ geometry.se3_invert(other)
    theirs[:, :3, 3] *= 10.0
    track = tracking.fit_track(seen, **options, known=KnownPoses(clip.frame_ids, theirs))
    moved = geometry.se3_invert(clip.track.head_pose) @ track.head_pose
    assert float(geometry.angle_deg(moved[:, :3, :3]).max()) < 0.3
    assert float(moved[:, :3, 3].norm(dim=-1).max()) < 0.003
    for row in range(0, len(clip), 15):
        away = tracking.project_mesh(track, row) - tracking.project_mesh(clip.track, row)
        assert float(away.norm(dim=-1).median()) < 2.0
    mixed = KnownPoses(clip.frame_ids, theirs.roll(25, dims=0) @ torch.diag(
        torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)))  # fmt: skip
    mixed.head_to_cam[::2, 0, 3] += 1.5
    with pytest.raises(InputError, match="the given poses miss the face"):
        tracking.fit_track(seen, provider=clip.track.face.provider, known=mixed)


def test_the_command_refuses_what_it_cannot_export(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(exported.path.rglob("*"))
    words = ["track", str(exported.run), "--export-adnerf", str(exported.path)]
    assert cli.main(words) == 2 and "already there" in capsys.readouterr().err
    assert sorted(exported.path.rglob("*")) == before
    clip = exported.clip
    slow = replace(clip, track=replace(clip.track, time_s=clip.track.time_s * 1.2))
    two = replace(clip, track=replace(clip.track, cameras=clip.track.cameras * 2))
    for bad, said in ((slow, "25 frames a second"), (two, "holds 2 files")):
        with pytest.raises(InputError, match=said):
            export_adnerf.export(bad, tmp_path / "out", lambda done, total: None)
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_nothing(
    tiny_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_adnerf, "_write_frame", full)
    with pytest.raises(OSError, match="No space"):
        export_adnerf.export(tiny_clip, tmp_path / "out", lambda done, total: None)
    assert not list(tmp_path.iterdir())


def test_labels_become_the_layouts_colours(tiny_clip: Clip) -> None:
    """As TalkingGaussian reads them: face blue, hair black, inner mouth grey, background white."""
    labels = tiny_clip.regions(10)
    colours = export_adnerf.parsing(labels).astype(int)
    red, green, blue = colours[..., 0], colours[..., 1], colours[..., 2]
    face = (blue > 254) & (red == 0) & (green == 0)
    np.testing.assert_array_equal(
        face, np.isin(labels, [int(r) for r in (Region.SKIN, Region.LIPS, Region.EYES)])
    )
    np.testing.assert_array_equal(colours.max(-1) < 1, labels == int(Region.HAIR))
    np.testing.assert_array_equal((colours == 100).all(-1), labels == int(Region.INNER_MOUTH))
    np.testing.assert_array_equal((colours == 255).all(-1), labels == int(Region.BACKGROUND))
    np.testing.assert_array_equal((green == 255) & (red == 0), labels == int(Region.NECK))
    np.testing.assert_array_equal((red == 255) & (green == 0), labels == int(Region.TORSO))


def test_the_torso_reaches_under_the_head(tiny_clip: Clip) -> None:
    picture, labels = tiny_clip.frame(10), tiny_clip.regions(10)
    cut = export_adnerf.torso(picture, labels)
    body = np.isin(labels, (int(Region.NECK), int(Region.TORSO)))
    assert (cut[body, 3] == 255).all() and (cut[body, :3] == picture[body]).all()
    extra = (cut[..., 3] == 255) & ~body
    head = np.isin(labels, [int(r) for r in HEAD_REGIONS])
    assert extra.sum() > 500 and (head | ~extra).all()
    rows, columns = np.nonzero(extra)
    assert rows.max() > 380 and rows.min() >= 379 - export_adnerf.FILL_PX  # the chin's rim
    neck = picture[labels == int(Region.NECK)].mean(0)
    assert np.abs(cut[extra, :3].mean(0) / neck - 0.75).max() < 0.2  # darkened neck, not head
    assert set(np.unique(cut[..., 3])) == {0, 255}
    nobody = export_adnerf.torso(picture, np.zeros_like(labels))
    assert not nobody.any() and columns.size


@pytest.mark.parametrize("centre", [256.0, 255.9999, 255.6, 256.4, 250.3, 300.0, 190.2])
def test_the_canvas_puts_the_optical_axis_in_its_middle(centre: float) -> None:
    before, after, moved = export_adnerf._margins(centre)
    side = 512 + before + after
    assert 2 * int(moved) == side and 0.0 <= moved - side / 2 < 1.0
    assert moved == pytest.approx(centre + before, abs=1e-3)
    assert min(before, after) == 0 and before + after <= 2 * math.ceil(abs(centre - 256)) + 2


def test_a_clip_that_states_no_split_keeps_the_projects(tiny_clip: Clip) -> None:
    assert "test_from_s" not in tiny_clip.meta
    again = open_clip(tiny_clip.root)
    assert again.test_rows.tolist() == tiny_clip.test_rows.tolist()
