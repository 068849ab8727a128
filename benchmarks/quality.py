"""Fits clips with presets, measures them, and shows them side by side.

    python benchmarks/quality.py --clips a.mp4 b.mp4 --presets preview standard --json out.json

Every fit is a ``gsavatar fit --resume`` of its own in ``--work``: an interrupted benchmark goes on
where it stopped, and a finished fit is not repeated. Besides the table there is one HTML page with
ten test frames beside the real ones, their mouths enlarged, and, where ``--speech`` is given, a
film of every avatar saying it along an orbit.
"""

from __future__ import annotations

import base64
import html
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import cv2
import tyro

MOUTH_SCALE = 3
SHOWN = (
    ("psnr_head", ".2f"), ("ssim_head", ".3f"), ("psnr_mouth", ".2f"), ("lmd_px", ".2f"),
    ("mouth_open_corr", ".2f"), ("mouth_open_lag_ms", ".0f"), ("closure_acc", ".2f"),
    ("mouth_sharpness", ".2f"), ("jitter_px", ".2f"), ("hold_px", ".2f"),
)  # fmt: skip
BASELINES = ("mean_frame", "nearest_pose_frame", "still_mouth", "previous_frame")

Row = dict[str, Any]


def fitted(clip: Path, preset: str, work: Path) -> Path:
    """The run of one clip and preset, finished; the program's own progress is shown.

    Stops the program if the work folder has a run of this name that another clip gave.
    """
    run = work / f"{clip.stem}-{preset}"
    if (run / "run.json").exists():
        made_of = json.loads((run / "run.json").read_text())["videos"]
        if made_of != [{"name": clip.name, "bytes": clip.stat().st_size}]:
            sys.exit(f"{run} was made of another {clip.name}; give another --work folder.")
    timing = run / "timing.json"
    if not (timing.exists() and json.loads(timing.read_text()).get("finished")):
        command = [sys.executable, "-m", "gsavatar", "fit", str(clip), "--out", str(run)]
        there = (run / "config.toml").exists()
        command += ["--resume"] if there else ["--preset", preset]
        subprocess.run(command, check=True)
    return run


def spoken(run: Path, speech: Path) -> Path:
    """A film of the run's avatar with this speech along an orbit, made once."""
    out = run / f"{speech.stem}.mp4"
    if not out.exists():
        command = [sys.executable, "-m", "gsavatar", "render", str(run), "--audio", str(speech)]
        subprocess.run([*command, "--camera", "orbit", "--out", str(out)], check=True)
    return out


def row(clip: Path, preset: str, run: Path) -> Row:
    """What ``metrics.json`` says, in one line of the table."""
    metrics = json.loads((run / "metrics.json").read_text())
    return {
        "clip": clip.stem, "preset": preset, "run": str(run), "test": metrics["test"],
        "pasted_psnr": (metrics.get("test_pasted") or {}).get("psnr"),
        "cv_open_corr": (metrics.get("speech") or {}).get("cv_open_corr"),
        "baselines": {name: metrics["baselines"].get(name) for name in BASELINES},
        "speed": metrics["speed"], "model": metrics["model"],
    }  # fmt: skip


def number(value: float | None, form: str) -> str:
    """A number for the table; a dash where it could not be measured."""
    return "-" if value is None else format(value, form)


def table(rows: list[Row]) -> str:
    """The rows as an aligned text table."""
    head = ["clip", "preset", *(name for name, _ in SHOWN), "lmd / still", "fit s", "RSS MB"]
    lines = [head]
    for r in rows:
        still = (r["baselines"]["still_mouth"] or {}).get("lmd_px")
        own = r["test"].get("lmd_px")
        ratio = own / still if own is not None and still else None
        lines.append([
            r["clip"], r["preset"], *(number(r["test"].get(n), f) for n, f in SHOWN),
            number(ratio, ".2f"), number(r["speed"].get("fit_seconds"), ".0f"),
            number(r["speed"].get("peak_rss_mb"), ".0f"),
        ])  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def page(rows: list[Row], films: dict[str, Path]) -> str:
    """One self-contained HTML page: the table, then frames and mouths, real above rendered."""
    parts = [
        "<!doctype html><meta charset=utf-8><title>gsavatar quality</title>",
        "<style>body{font:14px sans-serif;margin:2em}div{white-space:nowrap}img{width:9.8%}"
        "pre{overflow:auto}</style>",
        f"<h1>Quality</h1><pre>{html.escape(table(rows))}</pre>",
    ]
    for r in rows:
        run = Path(r["run"])
        parts.append(f"<h2>{html.escape(r['clip'])}, {html.escape(r['preset'])}</h2>")
        samples = json.loads((run / "evaluation" / "series.json").read_text())["samples"]
        whole, mouths = [], []
        for kind in ("real", "render"):
            frames = [(run / "evaluation" / f"{s['frame']:06d}_{kind}.png", s) for s in samples]
            whole.append("".join(_picture(path.read_bytes(), path) for path, _ in frames))
            mouths.append("".join(_mouth(path, s["mouth"]) for path, s in frames if s["mouth"]))
        parts += [f"<div>{row}</div>" for row in (*whole, *mouths)]
        if r["run"] in films:
            film = html.escape(str(films[r["run"]].resolve().as_uri()))
            parts.append(f'<video controls width=512 src="{film}"></video>')
    return "\n".join(parts)


def _picture(png: bytes, path: Path) -> str:
    data = base64.b64encode(png).decode()
    return f'<img src="data:image/png;base64,{data}" title="{path.stem}">'


def _mouth(path: Path, box: list[int]) -> str:
    """The mouth of a frame, three times its size."""
    top, left, bottom, right = box
    crop = cv2.imread(str(path))[top:bottom, left:right]
    large = cv2.resize(crop, None, fx=MOUTH_SCALE, fy=MOUTH_SCALE, interpolation=cv2.INTER_CUBIC)
    return _picture(cv2.imencode(".png", large)[1].tobytes(), path)


def main(
    clips: tuple[Path, ...],
    presets: tuple[str, ...] = ("preview",),
    work: Path = Path("runs/quality"),
    json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    speech: Path | None = None,
) -> None:
    """Fits what is not fitted yet, prints the table, and writes ``quality.html`` into ``work``."""
    work.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    films: dict[str, Path] = {}
    for clip in clips:
        for preset in presets:
            run = fitted(clip, preset, work)
            rows.append(row(clip, preset, run))
            if speech is not None and rows[-1]["cv_open_corr"] is not None:
                films[str(run)] = spoken(run, speech)
            if json_out is not None:  # after every fit: hours must not be lost to the last one
                json_out.write_text(json.dumps({"rows": rows}, indent=1))
            (work / "quality.html").write_text(page(rows, films), encoding="utf-8")
    print(table(rows))
    print(f"page    {work / 'quality.html'}")


if __name__ == "__main__":
    tyro.cli(main)
