"""Scores of pictures against real ones: a sheet of numbers per frame, and what it comes to.

Nothing here knows where a picture comes from: a system is a function from the frame's position to
a picture, so an avatar, a baseline and a test's fake are all measured by the same lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gsavatar import metrics, metrics_motion, metrics_mouth
from gsavatar.landmarks import mouth_opening
from gsavatar.metrics import UInt8
from gsavatar.types import ARKIT_NAMES, is_upper_face

Array = NDArray[np.float64]
Painter = Callable[[int], "UInt8 | None"]
"""Position among the test frames -> uint8 [512, 512, 3]; None where there is no picture."""
Distance = Callable[[UInt8, UInt8], float]

PICTURE_COLUMNS = ("psnr", "ssim", "lpips", "psnr_head", "ssim_head", "psnr_mouth")
FACE_COLUMNS = ("lmd_px", "blendshape_mae_lower", "blendshape_mae_upper")
PASTED_COLUMNS = ("psnr", "ssim", "lpips")
OTHER_COLUMNS = ("opening", "gradient", "shift_x", "shift_y")
TEST_KEYS = (
    "psnr", "ssim", "lpips", "psnr_head", "ssim_head", "psnr_mouth", "lmd_px", "mouth_open_corr",
    "mouth_open_lag_ms", "closure_acc", "mouth_sharpness", "jitter_px", "hold_px",
    "blendshape_mae_lower", "blendshape_mae_upper", "frames",
)  # fmt: skip
SPEECH_KEYS = ("mouth_open_corr", "mouth_open_lag_ms", "closure_acc", "hold_px")

UPPER_SCORES = [i for i, name in enumerate(ARKIT_NAMES) if is_upper_face(name)]
LOWER_SCORES = [i for i, n in enumerate(ARKIT_NAMES) if n != "_neutral" and i not in UPPER_SCORES]

PICTURE_THREADS = 2
"""Systems whose pictures are compared at a time, while the landmarker looks for their faces."""

NO_FRAME = "no frame was measured"
REASONS = {
    "psnr": NO_FRAME,
    "ssim": NO_FRAME,
    "psnr_head": "no test frame shows a head",
    "ssim_head": "no test frame shows a head",
    "psnr_mouth": "no face was found in the real frames",
    "lmd_px": "no face was found in the rendered frames",
    "mouth_open_corr": "one of the two openings does not vary, or is known for too few frames",
    "mouth_open_lag_ms": "the correlation has no peak within 8 frames",
    "closure_acc": "the real mouth is not both closed and open in the measured frames",
    "mouth_sharpness": "no face was found in the real frames",
    "jitter_px": "forehead and nose could not be followed over three frames in a row",
    "hold_px": "it needs an avatar that speaks with its head held for three frames or more",
    "blendshape_mae_lower": "no scores: no face was found, or the landmarker gives none",
    "blendshape_mae_upper": "no scores: no face was found, or the landmarker gives none",
}
"""Why a value is null; ``lpips`` brings its own reason."""


@dataclass(frozen=True)
class Face:
    """One face in one picture."""

    points: NDArray[np.float32]  # [478, 3], pixels
    scores: NDArray[np.float32] | None  # [52]


Detector = Callable[[UInt8], Iterable[Face]]


@dataclass(frozen=True)
class TestFrames:
    """The real frames to measure against, by position 0 .. T-1."""

    __test__ = False  # not a test case, whatever its name

    time_s: Array
    picture: Callable[[int], UInt8]
    regions: Callable[[int], UInt8]

    def __len__(self) -> int:
        return len(self.time_s)


@dataclass
class Sheet:
    """Scores of one system, a row per frame; NaN where a score has no value."""

    columns: dict[str, Array]
    lost_faces: int = 0

    @staticmethod
    def empty(count: int) -> Sheet:
        """A sheet without a value."""
        names = [*PICTURE_COLUMNS, *FACE_COLUMNS, *OTHER_COLUMNS]
        names += [f"pasted_{name}" for name in PASTED_COLUMNS]
        return Sheet({name: np.full(count, np.nan) for name in names})


@dataclass
class Scores:
    """Sheets of all systems beside what the real frames show."""

    time_s: Array
    sheets: dict[str, Sheet]
    opening: Array
    gradient: Array
    lost_faces: int = 0


class _Truth:
    """One real frame, prepared once for all systems."""

    def __init__(self, picture: UInt8, regions: UInt8, faces: Iterable[Face]) -> None:
        self.picture = picture
        self.head = metrics.head_mask(regions)
        self.face = next(iter(faces), None)
        self.ssim = metrics.SsimTarget(picture)
        self.levels = metrics_motion.grey_levels(picture)
        self.mouth = None
        self.centres: Array = np.zeros((0, 2))
        if self.face is not None:
            self.mouth = metrics_mouth.mouth_box(self.face.points, picture.shape[:2])
            self.centres = metrics_motion.patch_centres(self.face.points, regions)


def opening_of(face: Face | None) -> float:
    """Mouth opening of a face, as a share of its height; NaN without one."""
    if face is None:
        return float("nan")
    return float(mouth_opening(face.points))


@dataclass
class Bench:
    """What measures: the landmarker, LPIPS if it is there, and who is pasted."""

    detect: Detector
    lpips: Distance | None = None
    pasted: tuple[str, ...] = ()
    _seen: dict[str, tuple[UInt8, Face | None]] = field(default_factory=dict)

    def score(
        self,
        frames: TestFrames,
        systems: Mapping[str, Painter],
        on_frame: Callable[[int, UInt8, Mapping[str, UInt8]], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Scores:
        """Measures every system on every frame, one frame in memory at a time.

        ``on_frame`` gets the position, the real picture and the systems' pictures.
        """
        count = len(frames)
        blank = np.full(count, np.nan)
        sheets = {name: Sheet.empty(count) for name in systems}
        scores = Scores(frames.time_s, sheets, blank.copy(), blank.copy())
        with ThreadPoolExecutor(PICTURE_THREADS) as pool:
            for i in range(count):
                picture = frames.picture(i)
                truth = _Truth(picture, frames.regions(i), self.detect(picture))
                scores.opening[i] = opening_of(truth.face)
                scores.lost_faces += truth.face is None
                if truth.mouth is not None:
                    scores.gradient[i] = metrics_mouth.gradient_energy(picture, truth.mouth)
                painted = {name: paint(i) for name, paint in systems.items()}
                drawn = {name: p for name, p in painted.items() if p is not None}
                # Every job has a sheet of its own; the landmarker is asked by this thread alone.
                jobs = [
                    pool.submit(self._fill_picture, sheets[name], i, name, rendered, truth)
                    for name, rendered in drawn.items()
                ]
                for name, rendered in drawn.items():
                    self._fill_face(sheets[name], i, name, rendered, truth.face)
                for job in jobs:
                    job.result()
                if on_frame is not None:
                    on_frame(i, picture, drawn)
                if progress is not None:
                    progress(i + 1, count)
        return scores

    def _fill_picture(
        self, sheet: Sheet, i: int, name: str, rendered: UInt8, truth: _Truth
    ) -> None:
        """One row of a sheet, but for what the landmarker says."""
        c = sheet.columns
        real, head, box = truth.picture, truth.head, truth.mouth
        similarity = truth.ssim.map(rendered)
        error = metrics.squared_error(rendered, real)
        c["psnr"][i] = metrics.psnr_of(error)
        c["psnr_head"][i] = metrics.psnr_of(error, head)
        c["ssim"][i] = metrics.masked_mean(similarity)
        c["ssim_head"][i] = metrics.masked_mean(similarity, head)
        if self.lpips is not None:
            c["lpips"][i] = self.lpips(rendered, real)
        if box is not None:
            top, left, bottom, right = box
            crop = (slice(top, bottom), slice(left, right))
            c["psnr_mouth"][i] = metrics.psnr_of(error[crop])
            c["gradient"][i] = metrics_mouth.gradient_energy(rendered, box)
        levels = metrics_motion.grey_levels(rendered)
        c["shift_x"][i], c["shift_y"][i] = metrics_motion.displacement(
            truth.levels, levels, truth.centres
        )
        if name in self.pasted:
            mixed = metrics.pasted(rendered, real, head)
            c["pasted_psnr"][i] = metrics.psnr_of(error, head, error.size)
            c["pasted_ssim"][i] = metrics.masked_mean(truth.ssim.map(mixed))
            if self.lpips is not None:
                c["pasted_lpips"][i] = self.lpips(mixed, real)

    def _fill_face(
        self, sheet: Sheet, i: int, name: str, rendered: UInt8, real: Face | None
    ) -> None:
        """What the landmarker says of one picture."""
        face = self._face(name, rendered, real)
        sheet.lost_faces += face is None
        if face is None:
            return
        c = sheet.columns
        c["opening"][i] = opening_of(face)
        if real is None:
            return
        c["lmd_px"][i] = metrics_mouth.lip_distance(face.points, real.points)
        if face.scores is not None and real.scores is not None:
            error = np.abs(face.scores.astype(np.float64) - real.scores)
            c["blendshape_mae_lower"][i] = error[LOWER_SCORES].mean()
            c["blendshape_mae_upper"][i] = error[UPPER_SCORES].mean()

    def _face(self, name: str, rendered: UInt8, real: Face | None) -> Face | None:
        """The face of a picture: the one nearest to the real face, else the largest."""
        seen = self._seen.get(name)
        if seen is not None and seen[0] is rendered:  # a system that repeats its picture
            return seen[1]
        faces = list(self.detect(rendered))
        if real is not None and len(faces) > 1:
            centre = real.points[:, :2].mean(0)
            faces.sort(key=lambda f: float(np.hypot(*(f.points[:, :2].mean(0) - centre))))
        face = faces[0] if faces else None
        self._seen[name] = (rendered, face)
        return face


@dataclass(frozen=True)
class Summary:
    """What a sheet comes to: values by key, 90 % intervals, and the keys that have no value."""

    values: dict[str, float | None]
    intervals: dict[str, list[float] | None]
    reasons: dict[str, str]


def hold_jerks(painter: Painter, centres: Array, time_s: Array) -> Array:
    """Jerks [T, 2] in px of forehead and nose between successive pictures of a held head."""
    shifts = np.full((len(time_s), 2), np.nan)
    before = None
    for i in range(len(time_s)):
        picture = painter(i)
        levels = None if picture is None else metrics_motion.grey_levels(picture)
        if before is not None and levels is not None:
            shifts[i] = metrics_motion.displacement(before, levels, centres)
        before = levels
    return metrics_motion.jerks(shifts, time_s)


def summarise(
    scores: Scores, name: str, *, held: Array | None = None, lpips_reason: str = ""
) -> Summary:
    """The numbers of one system under ``TEST_KEYS``, with intervals and reasons for nulls.

    ``held`` are the jerks of ``hold_jerks``.
    """
    sheet = scores.sheets[name]
    count = len(scores.time_s)
    step = float(np.median(np.diff(scores.time_s))) if count > 1 else 1.0
    block = max(1, min(round(metrics.BLOCK_S / step), max(count // 4, 1)))
    statistics = _statistics(scores, sheet, step)
    values = statistics(np.arange(count))
    spread = metrics.block_bootstrap(statistics, count, block)
    values["hold_px"], spread["hold_px"] = float("nan"), None
    if held is not None and len(held):
        values["hold_px"] = metrics_motion.rms(held)
        block = max(1, min(block, max(len(held) // 4, 1)))
        spread |= metrics.block_bootstrap(
            lambda rows: {"hold_px": metrics_motion.rms(held[rows])}, len(held), block
        )
    numbers: dict[str, float | None] = {
        key: float(values[key]) if np.isfinite(values[key]) else None
        for key in TEST_KEYS if key != "frames"
    }  # fmt: skip
    numbers["frames"] = int(np.isfinite(sheet.columns["psnr"]).sum())
    reasons = {
        key: (lpips_reason or "it could not be measured") if key == "lpips" else REASONS[key]
        for key, value in numbers.items() if value is None
    }  # fmt: skip
    intervals = {
        key: None if spread.get(key) is None else [float(v) for v in spread[key] or ()]
        for key in TEST_KEYS if key != "frames"
    }  # fmt: skip
    return Summary(numbers, intervals, reasons)


def _statistics(
    scores: Scores, sheet: Sheet, step: float
) -> Callable[[NDArray[np.int64]], dict[str, float]]:
    """All numbers of a sheet as a function of the frames that are used."""
    c = sheet.columns
    real, ours = scores.opening, c["opening"]
    shifted, _ = metrics_mouth.lagged(ours, scores.time_s)
    jerks = metrics_motion.jerks(np.stack((c["shift_x"], c["shift_y"]), -1), scores.time_s)
    both = np.isfinite(c["gradient"]) & np.isfinite(scores.gradient)
    rendered_gradient = np.where(both, c["gradient"], 0.0)
    real_gradient = np.where(both, scores.gradient, 0.0)

    def statistics(rows: NDArray[np.int64]) -> dict[str, float]:
        result = {key: _mean(c[key][rows]) for key in (*PICTURE_COLUMNS, *FACE_COLUMNS)}
        result["mouth_open_corr"] = metrics_mouth.pearson(real[rows], ours[rows])
        lag = metrics_mouth.lag_frames(real[rows], shifted[:, rows])
        result["mouth_open_lag_ms"] = 1000.0 * step * lag
        result["closure_acc"] = metrics_mouth.closure_accuracy(real[rows], ours[rows])
        below = real_gradient[rows].sum()
        result["mouth_sharpness"] = (
            float(rendered_gradient[rows].sum() / below) if below > 0 else float("nan")
        )
        result["jitter_px"] = metrics_motion.rms(jerks[rows])
        return result

    return statistics


def pasted_values(scores: Scores, name: str) -> dict[str, float | None]:
    """PSNR, SSIM and LPIPS of a system with the real pixels outside HEAD."""
    columns = scores.sheets[name].columns
    means = {key: _mean(columns[f"pasted_{key}"]) for key in PASTED_COLUMNS}
    return {key: value if np.isfinite(value) else None for key, value in means.items()}


def _mean(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")
