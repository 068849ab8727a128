"""Chooses the settings of the speech model on training parts, and only there.

    python benchmarks/speech_settings.py RUN [RUN ...] [--json out.json]

Each RUN is the folder of a ``gsavatar track`` or ``fit``. Its training part is cut into five
chronological folds; a whole speech model is learnt on four and predicts the fifth, half a second
of guard between them. One setting at a time is changed from the shipped ones. The test part of a
clip is never read: a table of ``gsavatar evaluate`` stays a blind measurement of what is chosen
here.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from gsavatar import speech_motion, speech_regression, speech_repertoire
from gsavatar.clip import open_clip
from gsavatar.landmarks import mouth_opening
from gsavatar.speech import pearson
from gsavatar.speech_features import LOG_MEL, WHISPER, SpeechFeatures
from gsavatar.types import is_upper_face

Array = NDArray[np.float64]
Values = dict[str, Any]

MODULE = {
    "speech_regression": speech_regression, "speech_motion": speech_motion,
    "speech_repertoire": speech_repertoire,
}  # fmt: skip
TRIED: dict[str, list[Values]] = {
    "context": [
        {"speech_regression.CONTEXT_TOKENS": n, "speech_regression.TAPER_TOKENS": t}
        for n, t in ((5, 1.0), (9, 2.0), (13, 3.0), (17, 4.0))
    ],
    "repertoire": [
        {"speech_repertoire.SHARE": s, "speech_repertoire.NEIGHBOURS": n}
        for s, n in ((0.0, 20), (0.3, 20), (0.6, 10), (0.6, 20), (0.6, 40), (1.0, 20))
    ],
    "components": [{"speech_regression.COMPONENTS": n} for n in (16, 32, 64, 96)],
    "sounds": [{"speech_regression.SOUNDS_GAIN": g} for g in (0.0, 1.0, 2.0, 4.0)],
    "centres": [{"speech_regression.CENTRES": n} for n in (256, 512, 1024)],
    "smoothing": [
        {"speech_motion.SMOOTHING": w}
        for w in ((1.0,), (0.25, 0.5, 0.25), (0.1, 0.2, 0.4, 0.2, 0.1))
    ],
    "cut": [{"speech_motion.CUT_SHARE": x} for x in (0.0, 0.5, 1.0)],
    "closing step": [{"speech_motion.CLOSING_STEP": x} for x in (0.0025, 0.005, 0.01)],
    "opening": [
        {"speech_motion.OPENING_TOKENS": {WHISPER: (a, b), LOG_MEL: (3, 3)}}
        for a, b in ((4, 3), (7, 4), (12, 6))
    ],
    "closing": [
        {"speech_motion.HANGOVER_TOKENS": h, "speech_motion.CLOSING_TOKENS": r}
        for h, r in ((7, 6), (14, 6), (21, 6), (28, 8))
    ],
    "penalties": [
        {"speech_regression.PENALTIES": tuple(float(x) for x in np.geomspace(1e-5, top, n))}
        for top, n in ((1e-2, 7), (1e-1, 9), (1.0, 11))
    ],
    "voice": [
        {"speech_motion.VOICE_ON": a, "speech_motion.VOICE_OFF": b}
        for a, b in ((0.5, 0.05), (0.5, 0.15), (0.5, 0.3), (0.3, 0.15))
    ],
}


@dataclass(frozen=True)
class Part:
    """The training part of one clip."""

    name: str
    features: SpeechFeatures
    time_s: Array
    values: Array  # [T, K], coefficients of the lower face
    names: tuple[str, ...]
    weight: Array
    opening: Array


def training_part(run: Path) -> Part | None:
    """What a clip offers for learning; None if it is silent."""
    clip = open_clip(run / "clip")
    if clip.features is None:
        return None
    last = float(clip.time_s[int(clip.train_rows[-1])])
    rows = torch.nonzero(clip.time_s <= last)[:, 0]
    names = clip.track.face.names
    columns = [i for i, name in enumerate(names) if not is_upper_face(name)]
    return Part(
        run.name, clip.features, clip.time_s[rows].numpy(),
        clip.track.coefficients[rows][:, columns].double().numpy(),
        tuple(names[i] for i in columns), clip.track.weight[rows].double().numpy(),
        np.asarray(mouth_opening(clip.landmarks.points[rows]), np.float64),
    )  # fmt: skip


def score(part: Part) -> dict[str, float]:
    """How well folds are predicted: explained variance of the coefficients, correlation of the
    mouth's opening, balanced accuracy of closure."""
    guess = np.zeros_like(part.values)
    gap = np.zeros(len(part.values))
    for a, b in speech_regression.fold_edges(len(part.values)):
        early, late = part.time_s[a] - speech_regression.GUARD_S, part.time_s[b - 1] + 0.5
        far = (part.time_s < early) | (part.time_s > late)
        model = speech_motion.fit_speech_motion(
            part.features, part.time_s[far], part.values[far], part.names,
            weight=part.weight[far], opening=part.opening[far],
        )  # fmt: skip
        played = model(part.features, part.time_s[a:b])
        guess[a:b] = played.double().numpy()
        gap[a:b] = model.shaping.opening(played).double().numpy()
    w = part.weight / part.weight.sum()
    error = float((w @ (guess - part.values) ** 2).sum())
    spread = float((w @ (part.values - w @ part.values) ** 2).sum())
    known = np.isfinite(part.opening)
    real = part.opening[known] < speech_motion.CLOSED_OPENING
    seen = gap[known] < speech_motion.CLOSED_OPENING
    hits = [float((seen[real == x] == x).mean()) for x in (True, False) if (real == x).any()]
    return {
        "explained": 1.0 - error / spread,
        "correlation": pearson(gap[known], part.opening[known]),
        "closure": float(np.mean(hits)),
    }


def main(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    only: str = "",
) -> None:
    """Prints a table: the mean over the clips for every value tried, shipped values marked."""
    parts = [part for run in runs if (part := training_part(run)) is not None]
    table = []
    for setting, choices in TRIED.items():
        if only and setting != only:
            continue
        for choice in choices:
            with ExitStack() as stack:
                shipped = True
                for place, value in choice.items():
                    module, name = place.split(".")
                    shipped &= getattr(MODULE[module], name) == value
                    stack.enter_context(patch.object(MODULE[module], name, value))
                found = {part.name: score(part) for part in parts}
            mean = {k: float(np.mean([f[k] for f in found.values()])) for k in found[parts[0].name]}
            value_text = ", ".join(str(v) for v in choice.values())
            table.append({"setting": setting, "value": value_text, "shipped": shipped,
                          "mean": mean, "clips": found})  # fmt: skip
            numbers = "  ".join(f"{k} {v:.3f}" for k, v in mean.items())
            print(f"{setting:13s} {value_text:28s} {numbers}{'  shipped' if shipped else ''}")
    if json_out is not None:
        json_out.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
