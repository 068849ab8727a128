"""Fixtures shared by the tests: a tiny clip with known truth, made without video or tracker."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gsavatar import speech
from gsavatar.clip import Clip, open_clip, save_features, save_meta, save_track
from gsavatar.frames import FrameWriter, encode_png
from gsavatar.types import (
    PROTOCOL_SIZE,
    Camera,
    FacePart,
    FittedFace,
    Landmarks,
    Region,
    Track,
)

torch.set_num_threads(2)

FPS = 25.0
RATE = 16_000


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """Every test draws the same numbers, whichever ran before it."""
    torch.manual_seed(0)


def tiny_camera() -> Camera:
    """A frontal camera 1 m away that shows 40 cm of the room."""
    world_to_cam = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    world_to_cam[2, 3] = 1.0
    focal = PROTOCOL_SIZE / 0.4
    K = torch.tensor([[focal, 0.0, 256.0], [0.0, focal, 256.0], [0.0, 0.0, 1.0]])
    return Camera(world_to_cam, K, PROTOCOL_SIZE, PROTOCOL_SIZE)


def tiny_face() -> FittedFace:
    """A coarse half ellipsoid with a mouth: all parts that seeding asks for, two coefficients."""
    u, v = np.meshgrid(np.linspace(-1.2, 1.2, 17), np.linspace(-1.3, 1.3, 17))
    skin = np.stack(
        (0.08 * np.sin(u) * np.cos(v), 0.11 * np.sin(v), 0.09 * np.cos(u) * np.cos(v)), -1
    ).reshape(-1, 3)
    grid = np.arange(17 * 17).reshape(17, 17)
    quads = np.stack((grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]), -1).reshape(
        -1, 4
    )
    faces = np.concatenate((quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]))
    part = np.full(len(skin), int(FacePart.SKIN))
    lips = (np.abs(skin[:, 0]) < 0.03) & (np.abs(skin[:, 1] + 0.05) < 0.02)
    part[lips] = int(FacePart.LIPS)
    part[skin[:, 1] > 0.08] = int(FacePart.SCALP)
    inner = []
    for which, y in ((FacePart.UPPER_TEETH, -0.04), (FacePart.LOWER_TEETH, -0.055)):
        start = len(skin) + len(inner)
        inner += [
            [-0.02, y, 0.06],
            [0.02, y, 0.06],
            [0.02, y - 0.01, 0.06],
            [-0.02, y - 0.01, 0.06],
        ]
        faces = np.concatenate(
            (faces, [[start, start + 1, start + 2], [start, start + 2, start + 3]])
        )
        part = np.concatenate((part, np.full(4, int(which))))
    vertices = np.concatenate((skin, np.array(inner)))
    basis = np.zeros((2, *vertices.shape))
    low = vertices[:, 1] < -0.05
    basis[0, low, 1] = -0.02  # jawOpen
    basis[1, vertices[:, 1] > 0.03, 1] = -0.005  # eyeBlinkLeft
    return FittedFace(
        "tiny", ("jawOpen", "eyeBlinkLeft"), torch.from_numpy(vertices).float(),
        torch.from_numpy(basis).float(), torch.from_numpy(faces).long(),
        torch.from_numpy(part).to(torch.uint8),
    )  # fmt: skip


def _picture(opening: float, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """A cartoon head whose mouth opens and which moves sideways, with its labels."""
    y, x = np.mgrid[:PROTOCOL_SIZE, :PROTOCOL_SIZE].astype(np.float32)
    x = x - 256 - shift
    labels = np.full(x.shape, int(Region.BACKGROUND), np.uint8)
    labels[(np.abs(x + shift) < 200) & (y > 430)] = int(Region.TORSO)
    labels[(np.abs(x) < 55) & (y > 350) & (y < 450)] = int(Region.NECK)
    labels[(x / 105) ** 2 + ((y - 256) / 145) ** 2 < 1] = int(Region.SKIN)
    labels[((x / 112) ** 2 + ((y - 240) / 150) ** 2 < 1) & (y < 160)] = int(Region.HAIR)
    half = 4 + 22 * opening
    lips = (x / 40) ** 2 + ((y - 320) / (half + 10)) ** 2 < 1
    inner = (x / 30) ** 2 + ((y - 320) / half) ** 2 < 1
    labels[lips] = int(Region.LIPS)
    labels[inner] = int(Region.INNER_MOUTH)
    palette = np.array(
        [[60, 90, 120], [200, 160, 140], [50, 40, 30], [180, 80, 80], [40, 10, 10], [230, 230, 230],
         [190, 150, 130], [40, 60, 160]], np.uint8,
    )  # fmt: skip
    shade = (0.9 + 0.1 * np.cos(x / 60) * np.cos(y / 60))[..., None]
    return (palette[labels] * shade).astype(np.uint8), labels


def make_clip(root: Path, frames: int = 100) -> Clip:
    """A clip folder of the cartoon head: 4 s by default, no sound."""
    root.mkdir(parents=True, exist_ok=True)
    time_s = np.arange(frames) / FPS
    opening = (0.5 - 0.5 * np.cos(2 * np.pi * time_s * 1.5)).astype(np.float32)
    shift = 10 * np.sin(2 * np.pi * time_s / 3)
    size = (PROTOCOL_SIZE, PROTOCOL_SIZE)
    camera = tiny_camera()
    poses = torch.eye(4).repeat(frames, 1, 1)
    poses[:, 0, 3] = torch.from_numpy(shift).float() / float(camera.K[0, 0])
    points = torch.zeros(frames, 478, 3)
    with (
        FrameWriter(root / "frames.bin", (*size, 3), coded=False) as pictures,
        FrameWriter(root / "regions.bin", size, coded=True) as planes,
    ):
        for i in range(frames):
            picture, labels = _picture(float(opening[i]), float(shift[i]))
            pictures.append(picture)
            planes.append(labels)
            angle = torch.linspace(0, 2 * np.pi, 478)
            half = 14 + 22 * float(opening[i])
            points[i, :, 0] = 256 + float(shift[i]) + 40 * torch.cos(angle)
            points[i, :, 1] = 320 + half * torch.sin(angle)
            points[i, 10, 1], points[i, 152, 1] = 111, 401
            points[i, 13, 1], points[i, 14, 1] = 320 - (half - 10), 320 + (half - 10)
    (root / "plate0.png").write_bytes(encode_png(np.full((*size, 3), (60, 90, 120), np.uint8)))
    coefficients = torch.stack((torch.from_numpy(opening), torch.zeros(frames)), dim=-1)
    track = Track(
        torch.arange(frames), torch.from_numpy(time_s), torch.zeros(frames, dtype=torch.int64),
        (camera,), poses, coefficients, torch.ones(frames), tiny_face(),
    )  # fmt: skip
    landmarks = Landmarks(points, torch.ones(frames, dtype=torch.bool), None)
    save_track(root / "track.safetensors", track, landmarks, np.arange(frames))
    source = {"path": "tiny.mp4", "duration_s": frames / FPS, "fps": FPS}
    save_meta(root, {"sources": [source], "notes": [], "provider": "tiny", "av_offset_ms": None})
    return open_clip(root)


def babble(seconds: float) -> np.ndarray:
    """A tone whose loudness follows the cartoon's mouth."""
    time = np.arange(round(seconds * RATE)) / RATE
    loudness = 0.5 - 0.5 * np.cos(2 * np.pi * time * 1.5)
    return (0.4 * loudness * np.sin(2 * np.pi * 220 * time)).astype(np.float32)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    """The cartoon clip, made once."""
    return make_clip(tmp_path_factory.mktemp("tiny") / "clip")


@pytest.fixture(scope="session")
def spoken(tiny_clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Clip:
    """The cartoon clip with sound."""
    root = tmp_path_factory.mktemp("spoken") / "clip"
    shutil.copytree(tiny_clip.root, root)
    save_features(root / "features.safetensors", speech.extract(babble(4.0), encoder="log_mel"))
    return open_clip(root)
