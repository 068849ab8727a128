"""What each part of the model and of its training is worth, on frames kept for choices.

    python benchmarks/ablation.py runs/me --steps 2000 --json out.json

Trains the clip of a run again, one part changed at a time, and measures the validation frames: they
are spread over the training part and never drawn; test frames are not read. Expressions are the
tracked ones, so that the numbers speak of the picture and not of the speech model (except for the
tri-plane field, which hears). Every variant writes its result before the next one starts.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from ablation_embedding import EmbeddingRecipe

from gsavatar import metrics, metrics_mouth
from gsavatar.avatar import Avatar
from gsavatar.batches import Batches
from gsavatar.clip import Clip, open_clip
from gsavatar.config import TrainSettings, load_preset, load_settings
from gsavatar.losses import LossWeights
from gsavatar.render import render, to_uint8
from gsavatar.train import REGULARISE_EVERY, train
from gsavatar.types import PROTOCOL_SIZE

Row = dict[str, Any]


def variants(base: TrainSettings) -> dict[str, TrainSettings]:
    """Settings by name; the first is the preset itself.

    What views from beside are worth (``surround_color``) is not among them: validation frames are
    seen from the camera and cannot tell. ``free_view.py`` measures that.
    """

    def without(*terms: str) -> LossWeights:
        return replace(base.weights, **dict.fromkeys(terms, 0.0))

    held = 1.0 / REGULARISE_EVERY  # all of the way back; a larger share would shoot past the seed
    start = base.face_init + base.mouth_init + base.torso_init
    field = load_preset("talkinggaussian").train
    return {
        "as it is": base,
        "face model's shapes alone (basis held)": replace(base, basis_pull=held, basis_blend=0.0),
        "embedding and small decoder": replace(base, model="embedding"),
        "no structure term (SSIM)": replace(base, weights=without("structure")),
        "no perceptual term (contrast)": replace(base, weights=without("contrast")),
        "no mouth rendered alone": replace(base, weights=without("mouth_color", "mouth_fill")),
        "no growing": replace(base, gaussians_max=start),
        "tri-plane field (talkinggaussian)": replace(field, steps=base.steps),
    }


@torch.no_grad()
def measured(avatar: Avatar, clip: Clip) -> Row:
    """Scores over the validation frames at full size."""
    scores = []
    batches = Batches(clip, PROTOCOL_SIZE, avatar.hearing)
    for sample in batches.validation():
        frame = sample.frame
        drawn = to_uint8(render(avatar(frame.drive), frame.camera, sample.background).rgb).numpy()
        real = to_uint8(frame.image).numpy()
        head = metrics.head_mask(frame.regions.numpy())
        row = int((clip.frame_ids == frame.index).nonzero()[0])
        box = metrics_mouth.mouth_box(clip.landmarks.points[row].numpy(), real.shape[:2])
        mouth = float("nan")
        if box is not None:
            mouth = metrics.psnr_of(
                metrics.squared_error(drawn, real)[box[0] : box[2], box[1] : box[3]]
            )
        scores.append((metrics.psnr(drawn, real, head), metrics.ssim(drawn, real, head), mouth))
    psnr, ssim, mouth = np.nanmean(np.array(scores), axis=0).tolist()
    return {"psnr_head": psnr, "ssim_head": ssim, "psnr_mouth": mouth, "frames": len(scores)}


def main(
    run: Annotated[Path, tyro.conf.Positional],
    steps: int = 2000,
    only: tuple[str, ...] = (),
    work: Path = Path("runs/ablation"),
    json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> int:
    """Trains and measures every variant, or those whose names hold a word of ``only``."""
    clip = open_clip(run / "clip")
    base = replace(load_settings(run / "config.toml").train, steps=steps, validate_every=steps)
    rows: list[Row] = []
    for number, (name, settings) in enumerate(variants(base).items()):
        if only and not any(word in name for word in only):
            continue
        started = time.monotonic()
        recipe = EmbeddingRecipe(clip, settings) if settings.model == "embedding" else None
        avatar = train(clip, settings, work / f"{number}", recipe=recipe)
        row = {"name": name, "seconds": time.monotonic() - started, **measured(avatar, clip)}
        rows.append(row)
        print(
            f"{name:40} psnr_head {row['psnr_head']:.2f}  ssim_head {row['ssim_head']:.3f}  "
            f"psnr_mouth {row['psnr_mouth']:.2f}  {row['seconds']:.0f} s", flush=True,
        )  # fmt: skip
        if json_out is not None:
            json_out.write_text(
                json.dumps({"run": str(run), "steps": steps, "rows": rows}, indent=1)
            )
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
