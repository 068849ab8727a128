"""``tracking.html`` and ``tracking.mp4``: what the tracker found in a clip, and how well.

The page holds everything but the film, which lies beside it; no path of the user's machine is in
it. It does show pictures of the person, as the film does.
"""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gsavatar.clip import Clip, open_clip
from gsavatar.frames import write_text_atomic
from gsavatar.progress import Reporter
from gsavatar.report_charts import Line, bars, density_map, line_chart
from gsavatar.report_page import (
    bullets,
    facts,
    heading,
    page,
    run_settings,
    section,
    table,
    tile_row,
    two_sides,
    versions,
)
from gsavatar.report_pictures import jpeg_uri
from gsavatar.report_words import SURE, sound_offset
from gsavatar.sequence import load_sequence
from gsavatar.tracking_measures import Measures, measure
from gsavatar.tracking_overlay import (
    REGION_COLOURS,
    Overlay,
    chosen_rows,
    write_overlay,
)
from gsavatar.tracking_sounds import ENOUGH, SoundKind, sound_kinds
from gsavatar.tracking_words import IN_SYNC_MS, SHOWN_REACH, findings, rows, tiles

PAGE, FILM = "tracking.html", "tracking.mp4"
STILLS = 4
MAX_POINTS = 1500
"""Points of a curve over time; of longer clips every n-th frame is drawn."""
MAX_DROPPED = 60
ANGLE_CELL_DEG, LEAST_MAP_DEG = 2.0, (30.0, 15.0)
"""Cells of the map of views, and how far it reaches at least: a dot must look like a dot."""


def write_tracking_report(run_dir: Path, reporter: Reporter) -> Path:
    """Writes the page and the film of a tracked run and returns the page's path.

    Raises ``InputError`` if the run has no finished clip.
    """
    clip = open_clip(run_dir / "clip")
    sequence, _ = load_sequence(run_dir / "clip")
    with reporter.stage("measure the tracking") as progress:
        measures = measure(clip, sequence, progress)
        sounds = sound_kinds(clip)
    with reporter.stage("draw the tracking") as progress:
        drawn = write_overlay(clip, run_dir / FILM, progress)
    name = run_dir.resolve().name
    body = [
        _head(name, clip, measures), two_sides(findings(measures, sounds, clip.meta)),
        _film(clip, drawn), _numbers(measures), _over_time(measures), _steadiness(measures),
        _angles(measures), _sounds(sounds), _expressions(measures), _dropped(clip, measures),
        _input(clip), _environment(run_dir),
    ]  # fmt: skip
    path = run_dir / PAGE
    write_text_atomic(path, page(f"{name} – tracking report", body))
    return path


def _head(name: str, clip: Clip, m: Measures) -> str:
    files = ", ".join(Path(str(s["path"])).name for s in clip.meta["sources"])
    lead = (
        f"What the tracker found in {files}: where the head is in every frame, how the face moves, "
        "through which lens it was seen, and how far to believe it. Pixels are those of the "
        f"512 x 512 crop. Face model: {clip.track.face.provider}."
    )
    return heading(name, lead) + tile_row(tiles(m, clip.meta))


def _film(clip: Clip, drawn: int) -> str:
    """The film, the meaning of its colours, and some of its frames."""
    overlay = Overlay(clip)
    chosen = chosen_rows(clip)
    picks = chosen[np.linspace(0, len(chosen) - 1, STILLS + 2).astype(int)[1:-1]]
    stills = "".join(
        f'<figure><img alt="mesh, landmarks and regions" src="{jpeg_uri(overlay(int(row)))}">'
        f"<figcaption>frame {int(clip.frame_ids[row])}</figcaption></figure>"
        for row in picks
    )
    keys = "".join(
        f'<span><i style="background: rgb{colour}"></i>'
        f"{html.escape(region.name.lower().replace('_', ' '))}</span>"
        for region, colour in REGION_COLOURS.items()
    )
    whole = int((clip.stored >= 0).sum())
    part = (
        "all frames"
        if drawn == whole
        else f"{drawn} of {whole} frames, in stretches from all over the clip"
    )
    lead = (
        f"{FILM} shows {part}, with the sound as it was put right. Left: the fitted mesh as lines "
        "1.5 cm apart (blue) and the landmarks (pink). The lines should stick to the skin "
        "when the head moves, and their outline should be that of the head. Right: the regions; "
        "their edges should be those of the picture."
    )
    first = jpeg_uri(overlay(int(chosen[0])))
    film = f'<video controls loop preload="none" poster="{first}" src="{FILM}"></video>'
    return section(
        "Mesh, landmarks and regions on the footage", lead, film, f'<div class="keys">{keys}</div>',
        f'<div class="pairs">{stills}</div>',
    )  # fmt: skip


def _numbers(m: Measures) -> str:
    heads = ("Measure", "Value", "What it means", "Good")
    return section(
        "All numbers", "", table(heads, [(r.name, r.value, r.means, r.good) for r in rows(m)])
    )


def _thinned(*series: NDArray[np.float64]) -> list[list[float]]:
    """Every n-th value of some series, so that a page of an hour stays small."""
    step = max(1, -(-len(series[0]) // MAX_POINTS))
    return [s[::step].tolist() for s in series]


def _over_time(m: Measures) -> str:
    charts = []
    if m.fit is not None:
        time, away = _thinned(m.time_s, m.fit.frame_px)
        charts.append(
            line_chart(time, [Line("landmarks from the mesh", away)], "time in the clip, s", "px",
                       height=190)
        )  # fmt: skip
    time, yaw, pitch = _thinned(m.time_s, m.yaw, m.pitch)
    charts.append(
        line_chart(
            time,
            [Line("yaw", yaw), Line("pitch", pitch, "real")],
            "time in the clip, s",
            "degrees",
            from_zero=False,
            height=190,
        )
    )
    lead = (
        "Peaks of the distance are frames to look at in the film. Yaw and pitch should be smooth "
        "curves; a comb of small teeth is jitter, a step is a cut."
    )
    return section("Over time", lead, *charts)


def _steadiness(m: Measures) -> str:
    s = m.steadiness
    if s is None:
        return section(
            "Jitter", "Not measured: there are too few neighbouring frames with pictures.", " "
        )
    if len(s.hz) == 0:
        return section(
            "Jitter", f"No spectrum: it needs 64 neighbouring frames, the longest stretch has "
            f"{s.frames}.", " ",
        )  # fmt: skip
    chart = line_chart(
        s.hz.tolist(),
        [Line("the head's path", s.ours_px.tolist()),
         Line("landmarks alone", s.landmarks_px.tolist(), "real")],
        "frequency, Hz", "px a frame",
    )  # fmt: skip
    lead = (
        f"What forehead and nose still move from frame to frame after the path was taken out, by "
        f"frequency ({s.frames} frames from {s.start_s:.1f} s on). Heads hardly move above 6 Hz: "
        "what stands there is trembling of the path, or noise of the video. A low line that does "
        "not rise to the right is good; brows that move show below 4 Hz."
    )
    return section("Jitter by frequency", lead, chart)


def _angles(m: Measures) -> str:
    yaw, pitch = _thinned(m.yaw, m.pitch)
    chart = density_map(
        yaw, pitch, "yaw, degrees", "pitch, degrees", cell=ANGLE_CELL_DEG, least=LEAST_MAP_DEG
    )
    lead = (
        "How often the head was seen from which side; an avatar is sharp from there and guesses "
        "elsewhere. Good footage fills an area, not a dot: look slowly left, right, up and down "
        "once."
    )
    return section("Views that were seen", lead, chart)


def _sounds(sounds: list[SoundKind]) -> str:
    lead = (
        "Groups of phones that look alike, told from the lips and, where there is sound, from its "
        "brightness; no words are recognised, so it holds for any language. Counts are coarse. "
        f"{ENOUGH} times or more is good; a kind that is missing will be guessed."
    )
    items = [
        (s.name, s.phones or "–", f"{s.times} ×", f"{s.seconds:.1f} s",
         "none" if not s.times else "enough" if s.times >= ENOUGH or not s.phones else "few")
        for s in sounds
    ]  # fmt: skip
    return section(
        "Speech sounds that were seen", lead,
        table(("Kind", "Phones", "Seen", "In all", ""), items),
    )  # fmt: skip


def _expressions(m: Measures) -> str:
    """Ranges of the coefficients; those that hardly moved by name."""
    order = sorted(m.reach, key=lambda r: r[1] - r[2])
    shown = [(n, high - low, f"{low:.2f} … {high:.2f}") for n, low, high in order]
    moved = [s for s in shown if s[1] >= SHOWN_REACH]
    still = [s[0] for s in shown if s[1] < SHOWN_REACH]
    lead = (
        "What every named shape covered between its 1 and 99 %: 0 is rest, 1 the face model's full "
        f"shape. {len(moved)} of {len(shown)} moved by {SHOWN_REACH} or more; the others an avatar "
        "takes from the face model rather than from this person."
    )
    names = f"<p>Hardly moved: {html.escape(', '.join(still))}.</p>" if still else ""
    half = -(-len(moved) // 2)
    widest = moved[0][1] if moved else 1.0
    parts = bars(moved[:half], widest) + bars(moved[half:], widest)
    columns = f'<div class="pairs narrow">{parts}</div>'
    return section("Expressions that were seen", lead, columns if moved else "", names)


def _dropped(clip: Clip, m: Measures) -> str:
    files = [Path(str(s["path"])).name for s in clip.meta["sources"]]
    if not m.dropped:
        return section(
            "Frames that were dropped", "None: every frame of the footage has a pose.", " "
        )
    items = [
        (f"{d.first}" if d.count == 1 else f"{d.first} – {d.last}", str(d.count),
         f"{d.start_s:.2f} s", files[d.source], d.reason)
        for d in m.dropped[:MAX_DROPPED]
    ]  # fmt: skip
    rest = sum(d.count for d in m.dropped[MAX_DROPPED:])
    more = f"<p>And {rest} more frames in shorter stretches.</p>" if rest else ""
    reasons: dict[str, int] = {}
    for d in m.dropped:
        reasons[d.reason] = reasons.get(d.reason, 0) + d.count
    lead = "; ".join(f"{count} frames: {reason}" for reason, count in reasons.items()) + "."
    return section(
        "Frames that were dropped", lead,
        table(("Frames", "Count", "From", "File", "Why"), items), more,
    )  # fmt: skip


def _input(clip: Clip) -> str:
    """What was given and what was noticed."""
    found = []
    for source in clip.meta["sources"]:
        crop = source.get("crop")
        words = [
            f"{source['width']} × {source['height']}" if "width" in source else "",
            f"{source['fps']:.4g} frames/s",
            f"{source['duration_s']:.1f} s",
            f"crop {', '.join(f'{v:.0f}' for v in crop)} (top, left, bottom, right)"
            if crop
            else "",
        ]
        found.append((Path(str(source["path"])).name, ", ".join(w for w in words if w)))
    offset = clip.meta.get("av_offset_ms")
    if offset is not None:
        told = sound_offset(offset, clip.meta.get("av_offset_confidence"))
        rule = f"from {IN_SYNC_MS:.0f} ms on and a confidence of {SURE:g} on it is put right"
        found.append(("Sound against picture", f"{told}; {rule}"))
    found.append(("Speech features", str(clip.meta.get("encoder") or "none")))
    noticed = [*clip.meta.get("notes", []), *clip.meta.get("speech_notes", [])]
    return section("The input", "", facts(found), bullets(noticed))


def _environment(run_dir: Path) -> str:
    return section("Environment", "", facts(versions()), run_settings(run_dir))
