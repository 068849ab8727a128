"""A synthetic talking head with known truth: ``python -m gsavatar.datasets.synthetic --help``.

Geometry and shapes come from ICT-FaceKit, speech and its phone times from flite, pictures from VTK.
The three are needed here only: nothing else in the program uses flite or VTK. The same seed gives
the same film on one machine; beside the film lies its truth (camera, poses, weights, phones).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsavatar import assets
from gsavatar.datasets.phones import RATE, Phone, mouth_track, speak
from gsavatar.datasets.synthetic_head import NECK_BASE, NECK_TOP, Head, load_head, rotation
from gsavatar.errors import InputError
from gsavatar.frames import write_text_atomic

Float = NDArray[np.float64]

FPS = 25.0
FIELD_DEG, DISTANCE_M, LOOK_AT_Y = 20.0, 1.18, -0.035
LEAD_S = 0.4
"""Closed-mouth silence before the first and after the last word."""
BLINK_S, BLINK_EVERY_S = 0.22, (1.8, 3.6)
YAW_RAD, PITCH_RAD, ROLL_RAD, SWAY_M = 0.19, 0.07, 0.04, 0.008
SUPERSAMPLE = 2

SENTENCES = (
    "Hello, my name is Iris. I was made from a few thousand numbers. "
    "People move their lips and blink while they speak, and so do I. "
    "Maybe tomorrow we will both know why."
)


@dataclass(frozen=True)
class Performance:
    """Everything that moves, at every frame."""

    time_s: Float  # [T]
    weights: dict[str, Float]  # each [T]
    gaze: Float  # [T, 2], yaw and pitch in radians
    head_pose: Float  # [T, 4, 4], head -> room
    samples: NDArray[np.float32]
    phones: list[Phone]


def perform(text: str, seed: int, seconds: float | None, fps: float = FPS) -> Performance:
    """A performance of a text: speech-timed mouth, blinks, brows, gaze and head motion."""
    rng = np.random.default_rng([seed, 1])
    samples, phones = speak(text)
    lead = round(LEAD_S * RATE)
    samples = np.pad(samples, (lead, lead))
    phones = [Phone(p.name, p.start_s + LEAD_S, p.end_s + LEAD_S) for p in phones]
    length = len(samples) / RATE if seconds is None else seconds
    wanted = round(length * RATE)
    samples = np.pad(samples[:wanted], (0, max(0, wanted - len(samples)))).astype(np.float32)
    time_s = np.arange(int(length * fps)) / fps
    track_s, mouth = mouth_track(phones, length)
    weights = {name: np.interp(time_s, track_s, curve) for name, curve in mouth.items()}
    blink = _blinks(time_s, rng)
    weights["eyeBlinkLeft"] = weights["eyeBlinkRight"] = blink
    loud = np.interp(time_s, track_s, mouth["jawOpen"])
    weights["browInnerUp"] = np.clip(0.25 * _wander(time_s, 0.6, rng) + 0.25 * loud, 0, 0.6)
    for side in ("Left", "Right"):
        weights[f"mouthSmile{side}"] = weights[f"mouthSmile{side}"] + 0.08
    gaze = np.stack((0.10 * _wander(time_s, 0.5, rng), 0.05 * _wander(time_s, 0.5, rng)), -1)
    poses = np.tile(np.eye(4), (len(time_s), 1, 1))
    angles = [a * _wander(time_s, 0.22, rng) for a in (YAW_RAD, PITCH_RAD, ROLL_RAD)]
    for i, (yaw, pitch, roll) in enumerate(zip(*angles, strict=True)):
        poses[i, :3, :3] = rotation(yaw, pitch, roll)
    for axis, share in enumerate((1.0, 0.5, 0.7)):
        poses[:, axis, 3] = share * SWAY_M * _wander(time_s, 0.2, rng)
    return Performance(time_s, weights, gaze, poses, samples, phones)


def _wander(time_s: Float, hz: float, rng: np.random.Generator) -> Float:
    """A smooth random path within about -1 and 1."""
    parts = [
        np.sin(2 * np.pi * hz * f * time_s + rng.uniform(0, 2 * np.pi)) / np.sqrt(f)
        for f in (0.6, 1.0, 1.7, 2.6)
    ]
    return np.asarray(sum(parts) / 2.2)


def _blinks(time_s: Float, rng: np.random.Generator) -> Float:
    """Closure of the lids: a quick bump every few seconds."""
    closed = np.zeros(len(time_s))
    at = rng.uniform(0.8, 1.6)
    while at < time_s[-1]:
        closed = np.maximum(closed, np.clip(1.25 * np.cos((time_s - at) / BLINK_S * np.pi), 0, 1)
                            * (np.abs(time_s - at) < BLINK_S / 2))  # fmt: skip
        at += rng.uniform(*BLINK_EVERY_S)
    return closed


def in_room(points: Float, rest: Float, pose: Float) -> Float:
    """Points of the head frame in the room: the neck fades from the head's pose to none."""
    height = np.clip((rest[:, 1] - NECK_BASE) / (NECK_TOP - NECK_BASE), 0, 1)
    share = (height * height * (3 - 2 * height))[:, None]
    moved = points @ pose[:3, :3].T + pose[:3, 3]
    return np.asarray(share * moved + (1 - share) * points)


def room_to_camera() -> Float:
    """The OpenCV camera of every film, [4, 4]."""
    matrix = np.diag([1.0, -1.0, -1.0, 1.0])
    matrix[1, 3] = LOOK_AT_Y
    matrix[2, 3] = DISTANCE_M
    return matrix


def focal_px(size: int) -> float:
    """Focal length in pixels of a square picture."""
    return float(0.5 * size / np.tan(np.radians(FIELD_DEG) / 2))


class Renderer:
    """Pictures of the head by VTK, off screen. Raises ``InputError`` if VTK is missing."""

    def __init__(self, head: Head, size: int, yaw_deg: float = 0.0, pitch_deg: float = 0.0) -> None:
        try:
            import vtkmodules.all as vtk
        except ImportError:
            raise InputError("vtk: the renderer is not installed; pip install vtk.") from None
        self._vtk, self.head, self.size = vtk, head, size
        self._scene = vtk.vtkRenderer()
        self._scene.SetBackground(0.50, 0.56, 0.60)
        self._scene.SetBackground2(0.36, 0.42, 0.47)
        self._scene.GradientBackgroundOn()
        self._meshes = [self._mesh(s) for s in head.surfaces]
        self._lights()
        camera = self._scene.GetActiveCamera()
        direction = rotation(np.radians(yaw_deg), -np.radians(pitch_deg), 0.0) @ [0, 0, DISTANCE_M]
        camera.SetPosition(direction[0], direction[1] + LOOK_AT_Y, direction[2])
        camera.SetFocalPoint(0, LOOK_AT_Y, 0)
        camera.SetViewUp(0, 1, 0)
        camera.SetViewAngle(FIELD_DEG)
        camera.SetClippingRange(0.3, 3.0)
        self._window = vtk.vtkRenderWindow()
        self._window.SetOffScreenRendering(1)
        self._window.SetSize(SUPERSAMPLE * size, SUPERSAMPLE * size)
        self._window.AddRenderer(self._scene)

    def _mesh(self, surface: Any) -> Any:
        from vtkmodules.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray

        vtk = self._vtk
        mesh = vtk.vtkPolyData()
        points = vtk.vtkPoints()
        points.SetData(numpy_to_vtk(surface.vertices, deep=True))
        mesh.SetPoints(points)
        cells = vtk.vtkCellArray()
        table = np.concatenate((np.full((len(surface.faces), 1), 3), surface.faces), 1)
        cells.SetCells(len(surface.faces), numpy_to_vtkIdTypeArray(table.ravel(), deep=True))
        mesh.SetPolys(cells)
        colors = numpy_to_vtk((surface.colors * 255).astype(np.uint8), deep=True)
        mesh.GetPointData().SetScalars(colors)
        smooth = vtk.vtkPolyDataNormals()
        smooth.SetInputData(mesh)
        smooth.SplittingOff()
        smooth.ConsistencyOff()
        mapper = vtk.vtkPolyDataMapper()
        mapper.SetInputConnection(smooth.GetOutputPort())
        actor = vtk.vtkActor()
        actor.SetMapper(mapper)
        shiny = {"eyes": (0.6, 60), "teeth": (0.35, 30), "gums": (0.3, 20), "hair": (0.18, 12),
                 "skin": (0.10, 14), "cloth": (0.0, 1)}[surface.name]  # fmt: skip
        look = actor.GetProperty()
        look.SetInterpolationToPhong()
        look.SetAmbient(0.22)
        look.SetDiffuse(0.85)
        look.SetSpecular(shiny[0])
        look.SetSpecularPower(shiny[1])
        self._scene.AddActor(actor)
        return surface, points, mesh

    def _lights(self) -> None:
        for place, power in (
            ((-0.6, 0.8, 1.4), 0.72),
            ((1.0, 0.3, 1.0), 0.32),
            ((0.2, -0.3, 1.5), 0.10),
        ):
            light = self._vtk.vtkLight()
            light.SetLightTypeToSceneLight()
            light.SetPosition(*place)
            light.SetFocalPoint(0, -0.02, 0)
            light.SetIntensity(power)
            self._scene.AddLight(light)
        self._scene.SetAmbient(1, 1, 1)

    def picture(self, performance: Performance, frame: int) -> NDArray[np.uint8]:
        """The frame of a performance, uint8 RGB [size, size, 3]."""
        from vtkmodules.util.numpy_support import numpy_to_vtk, vtk_to_numpy

        weights = {name: float(curve[frame]) for name, curve in performance.weights.items()}
        gaze = performance.gaze[frame]
        model = self.head.posed(weights, (float(gaze[0]), float(gaze[1])))
        pose = performance.head_pose[frame]
        for surface, points, mesh in self._meshes:
            if surface.rows is None:
                moved = surface.vertices + 0.12 * pose[:3, 3]
            else:
                rest = self.head.vertices[surface.rows]
                moved = in_room(model[surface.rows] + surface.offset, rest, pose)
            points.SetData(numpy_to_vtk(moved, deep=True))
            points.Modified()
            mesh.Modified()
        self._window.Render()
        grab = self._vtk.vtkWindowToImageFilter()
        grab.SetInput(self._window)
        grab.ReadFrontBufferOff()
        grab.Update()
        out = grab.GetOutput()
        side = SUPERSAMPLE * self.size
        large = vtk_to_numpy(out.GetPointData().GetScalars()).reshape(side, side, 3)[::-1]
        split = large.reshape(self.size, SUPERSAMPLE, self.size, SUPERSAMPLE, 3)
        return np.asarray(split.astype(np.float32).mean((1, 3)).round().astype(np.uint8))


def add_grain(
    picture: NDArray[np.uint8], sigma: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The picture with a camera's noise of ``sigma`` 8-bit units."""
    grain = rng.normal(0.0, sigma, picture.shape)
    return np.clip(picture + grain, 0, 255).round().astype(np.uint8)


def make_film(
    out: Path, text: str, seed: int, *, seconds: float | None, size: int, grain: float
) -> None:
    """Writes ``out`` (film with sound) and ``out`` with the suffix .truth.json."""
    from gsavatar.video import VideoWriter

    head = load_head(assets.resolve("ict_facekit"), seed)
    performance = perform(text, seed, seconds)
    renderer = Renderer(head, size)
    rng = np.random.default_rng([seed, 2])
    with VideoWriter(out, size, size, FPS, audio=performance.samples) as writer:
        for frame in range(len(performance.time_s)):
            writer.write(add_grain(renderer.picture(performance, frame), grain, rng))
            if frame % 25 == 0:
                sys.stderr.write(f"\rframe {frame} of {len(performance.time_s)}")
    sys.stderr.write("\n")
    write_text_atomic(out.with_suffix(".truth.json"), json.dumps(truth(performance, seed, size)))


def truth(performance: Performance, seed: int, size: int) -> dict[str, Any]:
    """What a tracker should find, as plain numbers."""
    return {
        "seed": seed, "fps": FPS, "size": size, "focal_px": focal_px(size),
        "room_to_camera": room_to_camera().tolist(),
        "head_pose": performance.head_pose.round(6).tolist(),
        "weights": {k: v.round(4).tolist() for k, v in performance.weights.items()},
        "gaze": performance.gaze.round(5).tolist(),
        "phones": [[p.name, round(p.start_s, 4), round(p.end_s, 4)] for p in performance.phones],
    }  # fmt: skip


def main() -> int:
    """The command: a film from a seed and a text."""
    parser = argparse.ArgumentParser(
        prog="python -m gsavatar.datasets.synthetic", description=__doc__
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="film to write (.mp4), or a .wav with --sound-only"
    )
    parser.add_argument("--seed", type=int, default=7, help="who it is and how they move")
    parser.add_argument("--text", default=SENTENCES, help="what is said")
    parser.add_argument("--seconds", type=float, help="length; by default as long as the text")
    parser.add_argument("--size", type=int, default=512, help="side of the pictures in pixels")
    parser.add_argument("--grain", type=float, default=1.5, help="camera noise in 8-bit units")
    parser.add_argument("--sound-only", action="store_true", help="write only the spoken text")
    options = parser.parse_args()
    try:
        if options.sound_only:
            import soundfile

            soundfile.write(options.out, speak(options.text)[0], RATE)
        else:
            make_film(options.out, options.text, options.seed, seconds=options.seconds,
                      size=options.size, grain=options.grain)  # fmt: skip
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
