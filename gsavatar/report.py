"""``report.html``: how good an avatar is and why, for a reader who has never seen the metrics."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from gsavatar import metrics_file
from gsavatar.config import load_settings
from gsavatar.errors import InputError
from gsavatar.evaluate_samples import FOLDER, SERIES
from gsavatar.frames import write_text_atomic
from gsavatar.metrics_mouth import CLOSED
from gsavatar.report_charts import Line, bars, line_chart
from gsavatar.report_notes import gathered
from gsavatar.report_page import (
    bullets,
    facts,
    heading,
    page,
    run_settings,
    section,
    tile_row,
    two_sides,
    versions,
)
from gsavatar.report_pictures import Sample, load_sample
from gsavatar.report_words import (
    COLUMNS,
    MEANINGS,
    ROWS,
    duration,
    few_seconds,
    findings,
    measure,
    number,
    sound_offset,
    tiles,
)

Content = dict[str, Any]


def write_report(run_dir: Path) -> Path:
    """Writes ``run_dir/report.html``, one file with everything in it, and returns its path.

    Parts whose data is not there are left out. Raises ``InputError`` if the run was never
    evaluated.
    """
    if not (run_dir / metrics_file.FILE).exists():
        raise InputError(f"{run_dir}: no metrics.json here; run `gsavatar evaluate {run_dir}`.")
    content = metrics_file.read(run_dir)
    series = _read(run_dir / FOLDER / SERIES)
    meta = _read(run_dir / "clip" / "clip.json")
    samples = _samples(run_dir / FOLDER, series)
    name = run_dir.resolve().name
    body = [
        _head(name, content), two_sides(findings(content)), _table(content), _frames(samples),
        _mouths(samples), _curves(series), _training(run_dir), _times(content),
        _input(content, meta, _preset(run_dir)), _notes(content), _environment(content, run_dir),
    ]  # fmt: skip
    path = run_dir / "report.html"
    write_text_atomic(path, page(f"{name} – avatar report", body))
    return path


def _read(path: Path) -> Content:
    """A JSON object, empty where there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _preset(run_dir: Path) -> str:
    """By which preset a run was fitted; "" if that is not known any more."""
    try:
        return load_settings(run_dir / "config.toml").preset
    except InputError:
        return ""


def _samples(folder: Path, series: Content) -> list[Sample]:
    found = []
    for item in series.get("samples", []):
        try:
            found.append(load_sample(folder, item))
        except (OSError, ValueError, KeyError):
            continue  # a picture that was deleted is one picture less
    return found


def _head(name: str, content: Content) -> str:
    test = content["test"]
    driven = (
        "Its mouth was moved by the sound alone"
        if content["protocol"]["drive"] == "audio"
        else "The video has no usable sound, so its mouth was moved by the tracked expression"
    )
    lead = (
        f"Measured on {test['frames'] or 0} test frames kept from training. {driven}; head "
        "pose and upper face are those of the video."
    )
    return heading(name, lead) + tile_row(tiles(content))


def _table(content: Content) -> str:
    """All measures beside the baselines; the best of what can be had without the truth is bold."""
    columns = {"avatar": content["test"], **content["baselines"]}
    lines = []
    for key, label, digits, better in ROWS:
        values = {name: measure(columns[name], name, key) for name, _ in COLUMNS}
        if all(v is None for v in values.values()):
            continue
        fair = [v for n, v in values.items() if v is not None and n != "previous_frame"]
        best = max(fair, key=lambda v: better * v) if fair and better else None
        cells = []
        for name, _ in COLUMNS:
            value = values[name]
            bold = ' class="best"' if value is not None and value == best else ""
            spread = content["ci"].get(key) if name == "avatar" else None
            small = (
                f"<small>{spread[0]:.{digits}f} … {spread[1]:.{digits}f}</small>" if spread else ""
            )
            cells.append(f"<td{bold}>{number(value, digits)}{small}</td>")
        lines.append(f"<tr><th>{html.escape(label)}</th>{''.join(cells)}</tr>")
    heads = "".join(f"<th>{html.escape(label)}</th>" for _, label in COLUMNS)
    table = f"<thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
    pasted = content["test_pasted"]
    others = [
        ("Head pasted on the real frame (as papers report)",
         f"PSNR {number(pasted['psnr'])} dB, SSIM {number(pasted['ssim'], 4)}"
         if pasted["psnr"] is not None else ""),
        ("Sound explains the opening (training part, five folds)",
         number(content["speech"]["cv_open_corr"])),
        ("Driven by the tracked expression instead", _expression(content["test_expression"])),
    ]  # fmt: skip
    return section(
        "Beside simple alternatives",
        "Small numbers are 90 % intervals. The mouth held still is this avatar with lips that "
        "never move, so what it lacks is what the sound adds. The real frame before is the video "
        "itself, one frame late: it shows how far the person moves in a frame, it is no method.",
        f'<div class="scroll"><table>{table}</table></div>', facts(others),
        f"<details><summary>What each number means</summary>{facts(list(MEANINGS))}</details>",
    )  # fmt: skip


def _expression(values: Content) -> str:
    if values.get("frames") is None:
        return ""
    return (
        f"head {number(values['psnr_head'])} dB, lips {number(values['lmd_px'], 3)} px, "
        f"mouth {number(values['psnr_mouth'])} dB"
    )


def _frames(samples: list[Sample]) -> str:
    if not samples:
        return ""
    heads = '<div class="heads"><span>Real</span><span>Avatar</span><span>Difference</span></div>'
    figures = "".join(
        f'<figure><div class="three"><img alt="real frame" src="{s.real}">'
        f'<img alt="avatar" src="{s.rendered}"><img alt="difference" src="{s.error}"></div>'
        f"<figcaption>{html.escape(s.caption)}</figcaption></figure>"
        for s in samples
    )
    return section(
        "Frames beside the truth",
        "Difference: black is none, yellow is 48 grey levels or more.", heads, figures,
    )  # fmt: skip


def _mouths(samples: list[Sample]) -> str:
    figures = "".join(
        f'<figure><div class="two"><img alt="real mouth" src="{s.real_mouth}">'
        f'<img alt="avatar\'s mouth" src="{s.rendered_mouth}"></div>'
        f"<figcaption>{html.escape(s.caption)}</figcaption></figure>"
        for s in samples if s.real_mouth is not None
    )  # fmt: skip
    if not figures:
        return ""
    return section(
        "The mouth, three times enlarged", "Left real, right avatar.",
        f'<div class="mouths">{figures}</div>',
    )  # fmt: skip


def _curves(series: Content) -> str:
    if not series.get("time_s"):
        return ""
    x = series["time_s"]
    opening = line_chart(
        x,
        [Line("real", series["opening_real"], "real"), Line("avatar", series["opening_render"])],
        "time in the clip, s", "mouth opening", level=(CLOSED, "closed below"),
    )  # fmt: skip
    jitter = line_chart(
        x, [Line("jitter of the head", series["jitter_px"])], "time in the clip, s", "px",
        height=170,
    )  # fmt: skip
    head = line_chart(
        x, [Line("PSNR of the head", series["psnr_head"])], "time in the clip, s", "dB",
        from_zero=False, height=170,
    )  # fmt: skip
    lead = "The gap of the lips as a share of the face's height, test part."
    return section("Over time", lead, opening, jitter, head)


def _training(run_dir: Path) -> str:
    """Validation and loss curves of the training log."""
    path = run_dir / "train_log.jsonl"
    rows: list[Content] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a line that was being written when the power went
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    steps = [row["step"] for row in rows]
    validation = line_chart(
        steps, [Line("validation, PSNR of the head", [r.get("psnr_val") for r in rows])], "step",
        "dB", from_zero=False, height=200,
    )  # fmt: skip
    loss = line_chart(
        steps, [Line("training loss", [r.get("loss") for r in rows])], "step", "loss", height=170
    )
    lead = "Validation frames belong to the training part and are not trained on."
    skipped = rows[-1].get("skipped") if rows else None  # counted over all resumes
    if skipped:
        lead += f" Steps skipped because their loss was not finite: {skipped} of {steps[-1]}."
    return section("Training", lead, validation, loss)


def _times(content: Content) -> str:
    speed = content["speed"]
    stages = speed["stages"] or {}
    items = [(name, float(s), duration(s)) for name, s in stages.items() if s is not None]
    rows = [
        ("Fit, all in all", duration(speed["fit_seconds"]) if speed["fit_seconds"] else ""),
        ("Training steps a second", _words(speed["train_iters_per_s"], "", 1)),
        ("Largest memory", _words(speed["peak_rss_mb"], " MB", 0)),
        ("Largest GPU memory", _words(speed["peak_vram_mb"], " MB", 0)),
        ("Pictures a second", _words(speed["render_fps"], "", 1)),
        ("Gaussians", _words(content["model"]["gaussians"], "", 0)),
        ("Motion coefficients", _words(content["model"]["coefficients"], "", 0)),
        ("Avatar file", _words(content["model"]["file_mb"], " MB", 1)),
    ]
    return section("Time, memory and size", "", bars(items), facts(rows))


def _words(value: Any, unit: str, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}{unit}"


def _input(content: Content, meta: Content, preset: str) -> str:
    """What the fit noticed about the footage."""
    rows = []
    for source in meta.get("sources", []):
        crop = source.get("crop")
        shape = [
            f"{source['width']} × {source['height']}" if "width" in source else "",
            f"{source['fps']:.4g} frames/s" if source.get("fps") else "",
            f"{source['duration_s']:.1f} s" if source.get("duration_s") else "",
            f"crop {', '.join(f'{v:.0f}' for v in crop)}" if crop else "",
        ]
        rows.append((Path(str(source.get("path", ""))).name, ", ".join(w for w in shape if w)))
    offset = content["av_offset_ms"]
    if offset is not None:
        words = sound_offset(offset, meta.get("av_offset_confidence"))
        rows.append(("Sound against picture", words))
    rows += [
        ("Frames tracked", str(meta["frames"]) if "frames" in meta else ""),
        ("Face model", str(meta.get("provider") or "")),
        ("Speech features", str(meta.get("encoder") or "none")),
    ]
    noticed = [
        *few_seconds(content["protocol"].get("train_s"), preset),
        *meta.get("notes", []), *meta.get("speech_notes", []),
    ]  # fmt: skip
    if not meta:
        return ""
    return section("The input", "", facts(rows), bullets(noticed))


def _notes(content: Content) -> str:
    if not content["notes"]:
        return ""
    return section(
        "What was not measured, and why", "",
        bullets(gathered([str(note) for note in content["notes"]])),
    )  # fmt: skip


def _environment(content: Content, run_dir: Path) -> str:
    rows = [*versions(), ("Device", content["device"])]
    rows.append(("Seed", str(content["protocol"]["seed"])))
    rows.append(("Split", str(content["protocol"]["split"])))
    return section("Environment", "", facts(rows), run_settings(run_dir))
