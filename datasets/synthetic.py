"""A synthetic talking head with known truth: ``python -m gsavatar.datasets.synthetic --help``.

Geometry and shapes come from ICT-FaceKit, speech and its phone times from flite, pictures from VTK.
The three are needed here only: nothing else in the program uses flite or VTK. The same options give
the same film on one machine; beside the film lies its truth (camera, poses, weights, phones).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsavatar import assets
from gsavatar.datasets.phones import RATE, speak
from gsavatar.datasets.synthetic_head import FACE_END, Head, identity_weights, load_head
from gsavatar.datasets.synthetic_motion import FPS, Motion, Performance, perform
from gsavatar.datasets.synthetic_render import (
    Renderer,
    View,
    distorted,
    focal_px,
    reduced,
    with_grain,
)
from gsavatar.errors import InputError
from gsavatar.frames import encode_png, write_text_atomic

Float = NDArray[np.float64]
UInt8 = NDArray[np.uint8]

VERSION = 3
"""Goes up with every change of the pictures, so that cached films are made anew."""
DEPTH_UNIT_M = 1e-4
EXPOSURES = 3
"""Moments averaged into a frame with motion blur."""
RIGID_M = 0.0005
"""Skin that no shape of a performance moves by more counts as rigid."""

SENTENCES = (
    "Hello, my name is Iris. I was made from a few thousand numbers. "
    "People move their lips and blink while they speak, and so do I. "
    "Maybe tomorrow we will both know why."
)
NOVEL_VIEWS = ((-45, 0), (-30, 0), (-15, 0), (15, 0), (30, 0), (45, 0), (0, 15), (0, -15))
"""Yaw and pitch in degrees of the cameras that no film shows."""


@dataclass(frozen=True)
class Shot:
    """A film: who, what they say, how they move, and how it is filmed."""

    seed: int = 7
    text: str = SENTENCES
    seconds: float | None = None
    size: int = 512
    focal_px: float | None = None  # at this size; by default a field of 20 degrees
    grain: float = 1.5  # camera noise in 8-bit units
    motion: Motion = field(default_factory=Motion)
    deviation_m: float = 0.0
    glasses: bool = False
    light: int = 0
    shutter: float = 0.0  # share of the frame's time that the shutter is open
    k1: float = 0.0  # radial distortion of the lens

    @property
    def view(self) -> View:
        """The film's camera."""
        return View(self.size, self.focal_px or focal_px(self.size))

    @property
    def key(self) -> str:
        """A name that changes with every option."""
        text = json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)
        return f"{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def head(self) -> Head:
        """The person. Raises ``InputError`` if the face model is not there."""
        path = assets.resolve("ict_facekit")
        return load_head(path, self.seed, self.deviation_m, self.glasses)

    def performance(self) -> Performance:
        """What the person does. Raises ``InputError`` if flite is not installed."""
        return perform(self.text, self.seed, self.seconds, FPS, self.motion)


def make_film(out: Path, shot: Shot, *, tell: Any = None) -> Performance:
    """Writes ``out`` (film with sound) and ``out`` with the suffix .truth.json."""
    from gsavatar.video import VideoWriter

    head, performance = shot.head(), shot.performance()
    renderer = Renderer(head, shot.view, shot.light)
    rng = np.random.default_rng([shot.seed, 2])
    count = len(performance.time_s)
    with VideoWriter(out, shot.size, shot.size, FPS, audio=performance.samples) as writer:
        for frame in range(count):
            writer.write(with_grain(_exposure(renderer, performance, frame, shot), shot.grain, rng))
            if tell is not None:
                tell(frame + 1, count)
    write_text_atomic(out.with_suffix(".truth.json"), json.dumps(truth(performance, shot)))
    return performance


def _exposure(renderer: Renderer, performance: Performance, frame: int, shot: Shot) -> UInt8:
    """A frame without its noise: the mean of the moments while the shutter is open."""
    at = float(performance.time_s[frame])
    if not shot.shutter:
        return reduced(distorted(renderer.picture(performance.instant(at)), shot.k1))
    opens = (np.arange(EXPOSURES) + 0.5) / EXPOSURES - 0.5
    moments = [
        renderer.picture(performance.instant(at + float(o) * shot.shutter / FPS)) for o in opens
    ]
    return reduced(distorted(np.mean(moments, axis=0), shot.k1))


def make_truth(folder: Path, shot: Shot, *, every: int = 1, novel: bool = False) -> None:
    """Writes what the film cannot say: label planes and depth per frame, views from elsewhere.

    ``regions/{frame:06d}.png`` (values of ``Region``), ``depth/{frame:06d}.png`` (16 bits of
    0.1 mm, 0 where nothing is), ``novel/yaw{+30}_pitch{+00}/{frame:06d}.png`` with its camera.
    Depth and labels go through the lens as the pictures do.
    """
    head, performance = shot.head(), shot.performance()
    frames = range(0, len(performance.time_s), every)
    views = [("", shot.view)]
    if novel:
        views += [
            (f"novel/yaw{yaw:+03d}_pitch{pitch:+03d}", replace(shot.view, yaw_deg=float(yaw),
                                                               pitch_deg=float(pitch)))
            for yaw, pitch in NOVEL_VIEWS
        ]  # fmt: skip
    for name, view in views:
        renderer = Renderer(head, view, shot.light)
        here = folder / name
        for part in ("regions", "depth", *(("pictures",) if name else ())):
            (here / part).mkdir(parents=True, exist_ok=True)
        for frame in frames:
            now = performance.instant(float(performance.time_s[frame]))
            labels, depth = renderer.truth(now)
            file = f"{frame:06d}.png"
            _save(here / "regions" / file, distorted(labels, shot.k1, nearest=True))
            packed = (depth / DEPTH_UNIT_M).round().astype(np.uint16)
            _save(here / "depth" / file, distorted(packed, shot.k1, nearest=True))
            if name:
                picture = reduced(distorted(renderer.picture(now), shot.k1))
                _save(here / "pictures" / file, picture)
        write_text_atomic(here / "camera.json", json.dumps(camera_truth(view)))


def _save(path: Path, picture: Any) -> None:
    path.write_bytes(encode_png(picture))


def cached(shot: Shot, cache: Path, *, labels_every: int = 0, novel: bool = False) -> Path:
    """The folder of a shot with ``film.mp4``, its truth and, if asked for, labels; made if missing.

    A folder is complete or not there: it is made beside its place and moved.
    """
    name = shot.key + (f"-l{labels_every}" if labels_every else "") + ("-n" if novel else "")
    folder = cache / name
    if folder.is_dir():
        return folder
    partial = cache / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    make_film(partial / "film.mp4", shot)
    if labels_every:
        make_truth(partial, shot, every=labels_every, novel=novel)
    partial.rename(folder)
    return folder


def rigid_skin(head: Head, names: set[str]) -> NDArray[np.int64]:
    """Vertices of bare skin on forehead, nose and temples that none of the named shapes moves."""
    skin = next(s for s in head.surfaces if s.name == "skin")
    hair = next(s for s in head.surfaces if s.name == "hair")
    assert skin.rows is not None and hair.rows is not None
    active = [i for i, name in enumerate(head.names) if name in names]
    reach = np.linalg.norm(head.shapes[active][:, skin.rows], axis=-1).max(0)
    x, y, z = skin.at_rest.T
    front = (skin.rows < FACE_END) & (z > 0.03) & (y > -0.02) & (y < 0.085) & (np.abs(x) < 0.068)
    bare = ~np.isin(skin.rows, hair.rows)
    return np.asarray(skin.rows[(reach < RIGID_M) & front & bare])


def camera_truth(view: View) -> dict[str, Any]:
    """A camera as plain numbers."""
    return {
        "size": view.size, "focal_px": view.focal_px,
        "room_to_camera": view.world_to_cam.round(9).tolist(),
    }  # fmt: skip


def truth(performance: Performance, shot: Shot) -> dict[str, Any]:
    """What a tracker should find, as plain numbers."""
    return {
        "seed": shot.seed, "fps": FPS, **camera_truth(shot.view),
        "shot": {k: v for k, v in asdict(shot).items() if k != "text"},
        "identity": identity_weights(np.random.default_rng(shot.seed)).round(6).tolist(),
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
    parser.add_argument("--focal", type=float, help="focal length in pixels; by default 20 degrees")
    parser.add_argument("--grain", type=float, default=1.5, help="camera noise in 8-bit units")
    parser.add_argument("--yaw", type=float, default=0.19, help="how far the head turns, radians")
    parser.add_argument("--deviation", type=float, default=0.0, help="departure from the model, m")
    parser.add_argument("--glasses", action="store_true", help="the person wears glasses")
    parser.add_argument("--light", type=int, default=0, help="number of another set of lights")
    parser.add_argument("--shutter", type=float, default=0.0, help="motion blur, share of a frame")
    parser.add_argument("--k1", type=float, default=0.0, help="radial distortion of the lens")
    parser.add_argument(
        "--truth", action="store_true", help="also write labels, depth and novel views beside it"
    )
    parser.add_argument("--sound-only", action="store_true", help="write only the spoken text")
    options = parser.parse_args()
    try:
        if options.sound_only:
            import soundfile

            soundfile.write(options.out, speak(options.text)[0], RATE)
            return 0
        shot = Shot(
            seed=options.seed, text=options.text, seconds=options.seconds, size=options.size,
            focal_px=options.focal, grain=options.grain, motion=Motion(yaw=options.yaw),
            deviation_m=options.deviation, glasses=options.glasses, light=options.light,
            shutter=options.shutter, k1=options.k1,
        )  # fmt: skip
        make_film(options.out, shot, tell=_count)
        if options.truth:
            make_truth(options.out.with_suffix(".truth"), shot, novel=True)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _count(done: int, total: int) -> None:
    sys.stderr.write(f"\rframe {done} of {total}" + ("\n" if done == total else ""))


if __name__ == "__main__":
    sys.exit(main())
