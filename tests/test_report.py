"""The report: whole, self-contained, honest about what is missing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from gsavatar import metrics_file, report_charts, report_words, scoring
from gsavatar.config import ClipSettings, load_preset, save_settings
from gsavatar.errors import InputError
from gsavatar.frames import encode_png
from gsavatar.report import write_report
from gsavatar.report_notes import gathered
from gsavatar.report_pictures import error_map


class Checker(HTMLParser):
    """Collects text, addresses and unclosed tags of a page."""

    VOID = ("meta", "img", "br", "line", "path")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(path: Path) -> tuple[str, Checker]:
    page = Checker()
    page.feed(path.read_text())
    assert not page.open
    return " ".join(" ".join(page.text).split()), page


def measured() -> dict:
    """Metrics of a good avatar with one weakness: the mouth is late."""
    content = metrics_file.skeleton()
    good = {
        "psnr": 30.0, "ssim": 0.95, "psnr_head": 31.0, "ssim_head": 0.93, "psnr_mouth": 28.0,
        "lmd_px": 1.5, "mouth_open_corr": 0.81, "mouth_open_lag_ms": 120.0, "closure_acc": 0.84,
        "mouth_sharpness": 0.97, "jitter_px": 0.11, "hold_px": 0.03, "blendshape_mae_lower": 0.02,
        "blendshape_mae_upper": 0.01, "frames": 4,
    }  # fmt: skip
    content["test"] |= good
    for name in metrics_file.BASELINES:
        content["baselines"][name] |= good | {"psnr_head": 22.0, "ssim_head": 0.72, "lmd_px": 2.4}
    content["ci"]["psnr_head"] = [30.5, 31.5]
    content["speed"] |= {"fit_seconds": 400.0, "stages": {"decode": 30.0, "train": 300.0}}
    content["notes"] = ["test.lpips: the optional package lpips is not installed"]
    return content


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with everything a report reads, and a hostile name."""
    folder = tmp_path / "me & <you>"
    shown = folder / "evaluation"
    (folder / "clip").mkdir(parents=True)
    shown.mkdir()
    metrics_file.write(folder, measured())
    rng = np.random.default_rng(0)
    for kind in ("real", "render"):
        picture = rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)
        (shown / f"000042_{kind}.png").write_bytes(encode_png(picture))
    series = {
        "time_s": [1.0, 1.04, 1.08, 1.12], "opening_real": [0.0, 0.02, None, 0.01],
        "opening_render": [0.0, 0.01, 0.02, 0.01], "psnr_head": [30.0, 31.0, 32.0, 31.0],
        "jitter_px": [None, 0.1, 0.2, None],
        "samples": [{"frame": 42, "row": 1, "mouth": [300, 200, 360, 260], "why": "",
                     "psnr_head": 31.0, "time_s": 1.04}],
    }  # fmt: skip
    (shown / "series.json").write_text(json.dumps(series))
    lines = [
        {"step": 500, "loss": 0.05, "psnr_val": 28.0},
        {"step": 1000, "loss": 0.04, "skipped": 2},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"step": 15'  # cut off by a kill
    (folder / "train_log.jsonl").write_text(text)
    meta = {
        "sources": [{"path": "/private/a <b>clip.mp4", "width": 640, "height": 480, "fps": 29.97,
                     "duration_s": 12.0, "crop": [0.0, 10.0, 480.0, 490.0]}],
        "notes": ["3 of 360 frames show no face and are skipped (the first is frame 7)."],
        "speech_notes": ["The sound was 75 ms late; corrected."], "av_offset_confidence": 0.9,
        "provider": "ict", "encoder": "log_mel", "frames": 360,
    }  # fmt: skip
    (folder / "clip" / "clip.json").write_text(json.dumps(meta))
    settings = replace(load_preset("preview"), clip=ClipSettings(model_file="/private/flame.pkl"))
    save_settings(folder / "config.toml", settings)
    return folder


def test_the_report_is_one_whole_page(run: Path) -> None:
    path = write_report(run)
    text, page = read(path)
    assert path == run / "report.html"
    assert len(page.addresses) == 5  # real, avatar, difference, two mouths
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert "me & <you>" in text and "a <b>clip.mp4" in text  # escaped, not interpreted
    assert "/private" not in path.read_text()
    for words in (
        "31.0 dB", "30.50 … 31.50", "frame 42, 1.04 s", "mouth opening", "decode", "6.7 min",
        "gaussians_max",
        "3 of 360 frames show no face", "75 ms late", "log_mel", "not finite: 2 of 1000.",
        "LPIPS: the optional package lpips is not installed",
    ):  # fmt: skip
        assert words in text, words
    assert not list(run.glob("*.partial"))


def test_good_and_weak_are_told_apart(run: Path) -> None:
    found = {finding.title: finding for finding in report_words.findings(measured())}
    assert found["Likeness"].good and "9.0 dB" in found["Likeness"].text
    assert not found["Timing"].good and "120 ms late" in found["Timing"].text
    assert all(finding.good for title, finding in found.items() if title != "Timing")
    worse = measured()
    worse["test"] |= {"psnr_head": 20.0, "lmd_px": 2.5, "mouth_open_corr": 0.2, "closure_acc": 0.5,
                      "mouth_sharpness": 0.6, "jitter_px": 0.9}  # fmt: skip
    assert not any(finding.good for finding in report_words.findings(worse))
    assert "Footage" not in found
    repeated = measured()
    repeated["baselines"]["nearest_pose_frame"]["psnr_head"] = 60.0
    told = {finding.title: finding for finding in report_words.findings(repeated)}
    assert not told["Footage"].good and "Give each recording once" in told["Footage"].text
    assert "Likeness" not in told


@pytest.mark.parametrize(
    ("psnr", "lips", "moved", "lip_words"),
    [
        (31.0, 2.20, "1.0 dB closer than", "hardly closer to the truth than"),
        (29.9, 2.47, "0.1 dB farther than", "farther from the truth than"),
        (30.0, 2.40, "as close as", "as far from the truth as"),
    ],
)
def test_a_mouth_that_had_better_held_still_is_weak(
    psnr: float, lips: float, moved: str, lip_words: str
) -> None:
    content = measured()
    content["test"] |= {"psnr_head": psnr, "lmd_px": lips}
    content["baselines"]["still_mouth"] |= {"psnr_head": 30.0, "lmd_px": 2.4}
    found = {finding.title: finding for finding in report_words.findings(content)}
    assert found["Moving the mouth"].good == (psnr > 30.0)
    assert moved in found["Moving the mouth"].text
    assert not found["Lip shapes"].good and lip_words in found["Lip shapes"].text
    assert "still" not in found["Likeness"].text


def test_noise_and_a_better_still_mouth_are_not_called_good() -> None:
    noisy = measured()
    noisy["test"]["ssim_head"] = 0.31
    told = {finding.title: finding for finding in report_words.findings(noisy)}
    assert not told["Likeness"].good and "SSIM 0.31 against 0.72" in told["Likeness"].text
    shut = measured()
    shut["test"]["mouth_open_corr"] = 0.1
    told = {finding.title: finding for finding in report_words.findings(shut)}
    assert not told["Lip shapes"].good and "38 % closer" in told["Lip shapes"].text


def test_a_mouth_that_never_moves_follows_nothing(run: Path) -> None:
    content = measured()
    noise = {"mouth_open_corr": 0.24, "mouth_open_lag_ms": -154.0, "closure_acc": 0.52}
    content["baselines"]["still_mouth"] |= noise
    content["baselines"]["nearest_pose_frame"] |= {"mouth_open_corr": 0.36}
    metrics_file.write(run, content)
    text, _ = read(write_report(run))
    assert "0.240" not in text and "-154" not in text and "mouth held still –" in text
    assert "0.360" in text and "0.520" in text  # another mouth that moves, and a fair guess


@pytest.mark.parametrize(
    ("lag", "r", "spread", "said"),
    [
        (-187.0, 0.7, [-240.0, 119.0], "between 240 ms early and 119 ms late"),
        (60.0, 0.7, [-5.0, 75.0], "cannot be told"),
        (10.0, 0.7, [-150.0, 30.0], "cannot be told"),
        (120.0, 0.39, [100.0, 140.0], "cannot be told"),
        (120.0, 0.7, [100.0, 140.0], "120 ms late, which people notice"),
        (-10.0, 0.9, [-25.0, 12.0], "in time (10 ms early)"),
        (-10.0, 0.9, None, "in time (10 ms early)"),
    ],
)
def test_timing_that_chance_explains_is_not_told(
    lag: float, r: float, spread: list[float] | None, said: str
) -> None:
    content = measured()
    content["test"] |= {"mouth_open_lag_ms": lag, "mouth_open_corr": r}
    content["ci"]["mouth_open_lag_ms"] = spread
    found = {finding.title: finding for finding in report_words.findings(content)}["Timing"]
    assert said in found.text and found.good == ("in time" in said)


def test_sound_that_could_not_be_compared_has_no_offset(run: Path) -> None:
    assert report_words.sound_offset(0.0, 0.9) == "in time, confidence 0.90 of 1"
    assert report_words.sound_offset(-39.2, None) == "39 ms early"
    metrics_file.write(run, measured() | {"av_offset_ms": 0.0})
    path = run / "clip" / "clip.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"av_offset_confidence": 0.0}))
    text, _ = read(write_report(run))
    assert "could not be told (confidence 0.00 of 1)" in text and "0 ms early" not in text


def test_a_fit_from_seconds_is_told_of_the_preset_for_it(run: Path) -> None:
    for train_s, preset, said in (
        (5.52, "preview", True), (5.52, "fewshot", False), (60.0, "preview", False)
    ):  # fmt: skip
        save_settings(run / "config.toml", load_preset(preset))
        content = measured()
        content["protocol"]["train_s"] = train_s
        metrics_file.write(run, content)
        text, _ = read(write_report(run))
        assert ("Only 5.5 s of footage" in text) == said
        assert ("`--preset fewshot` suits that better" in text) == said


def test_a_bare_run_still_has_a_report(tmp_path: Path) -> None:
    metrics_file.write(tmp_path, metrics_file.skeleton())
    text, page = read(write_report(tmp_path))
    assert not page.addresses and "Environment" in text
    assert "nan" not in text.lower() and "None" not in text


def test_missing_pictures_are_left_out(run: Path) -> None:
    (run / "evaluation" / "000042_real.png").unlink()
    _, page = read(write_report(run))
    assert not page.addresses


def test_a_run_that_was_never_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gsavatar evaluate"):
        write_report(tmp_path)


def test_charts_leave_gaps_and_stay_inside() -> None:
    chart = report_charts.line_chart(
        [0.0, 1.0, 2.0, 3.0], [report_charts.Line("a", [1.0, None, 2.0, 3.0])], "x", "y"
    )
    path = re.search(r'<path class="ours" d="([^"]+)"', chart)
    assert path is not None and path.group(1).count("M") == 2 and path.group(1).count("L") == 1
    numbers = [float(v) for v in re.findall(r"\d+\.\d", path.group(1).replace("h0.1", ""))]
    assert all(0 <= v <= report_charts.WIDTH for v in numbers)
    assert (
        report_charts.line_chart([0.0, 1.0], [report_charts.Line("a", [None, None])], "", "") == ""
    )


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.061), (54.5, 59.9), (-3.0, 1200.0), (7.0, 7.0)])
def test_ticks_are_round_and_cover(low: float, high: float) -> None:
    found = report_charts.ticks(low, high, 5)
    assert found[0] <= low + 1e-9 and found[-1] >= high - 1e-9 and 1 <= len(found) <= 9


def test_the_error_map_grows_brighter() -> None:
    real = np.zeros((1, 4, 3), np.uint8)
    rendered = np.array([[[0] * 3, [12] * 3, [30] * 3, [200] * 3]], np.uint8)
    brightness = error_map(rendered, real).astype(int).sum(-1)[0]
    assert (np.diff(brightness) > 0).all()


def test_notes_of_one_reason_are_one_line() -> None:
    notes = ["test.lpips: not installed", "baselines.mean_frame.lpips: not installed",
             "test.lmd_px: no face", "The sound was late: corrected."]  # fmt: skip
    assert gathered(notes) == [
        "Whole picture, LPIPS: not installed", "Lip landmark distance in px: no face",
        "The sound was late: corrected.",
    ]  # fmt: skip


def test_notes_name_what_they_are_about() -> None:
    scores = "blendshape_mae_lower, {0}.blendshape_mae_upper"
    notes = [
        f"{name}.{scores.format(name)}: no scores: no face"
        for name in ("test", "baselines.still_mouth")
    ]
    notes += [
        "baselines.mean_frame.mouth_open_corr: does not vary",
        "baselines.still_mouth.mouth_open_lag_ms: no peak",
        "baselines.previous_frame.hold_px: needs an avatar",
        "baselines.previous_frame.lmd_px: hidden",
        "baselines.nearest_pose_frame.lmd_px: hidden",
        "baselines.mean_frame: no face was found in 2 of 9 rendered frames",
        "speed.fit_seconds, speed.peak_rss_mb: only a finished fit knows this",
        "av_offset_ms: the clip has no sound to compare with the lips",
        "test_expression: not measured; run it",
    ]
    assert gathered(notes) == [
        "Lower-face scores, mean error; Upper-face scores, mean error: no scores: no face",
        "Lip landmark distance in px (real frame before, nearest training frame): hidden",
        "Time of the fit; Largest memory: only a finished fit knows this",
        "Sound against picture: the clip has no sound to compare with the lips",
        "Mean training frame: no face was found in 2 of 9 rendered frames",
        "Driven by the tracked expression: not measured; run it",
    ]


def test_every_key_of_the_metrics_has_words() -> None:
    for name in (*scoring.TEST_KEYS, *metrics_file.SPEED_KEYS, "cv_open_corr", "av_offset_ms"):
        assert name == "frames" or name not in gathered([f"test.{name}: reason"])[0].split(":")[0]
