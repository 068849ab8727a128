"""The command line: exit codes, sentences instead of tracebacks, runs that are not overwritten."""

from __future__ import annotations

import inspect
import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gsavatar import cli, cli_env, cli_options, cli_run, cli_words, pipeline
from gsavatar.config import load_preset, load_settings
from gsavatar.errors import InputError
from gsavatar.pipeline import FitResult
from gsavatar.progress import PlainReporter, clock, make_reporter, progress_words
from gsavatar.video import VideoWriter

COMMANDS = ("fit", "check", "track", "render", "view", "evaluate", "doctor", "assets")


def film(path: Path, frames: int = 5) -> Path:
    """A small real video without a face."""
    with VideoWriter(path, 64, 64, 25.0) as writer:
        for i in range(frames):
            writer.write(np.full((64, 64, 3), 40 * i % 256, np.uint8))
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with one video."""
    monkeypatch.chdir(tmp_path)
    film(tmp_path / "me.mp4")
    return tmp_path


Fitted = Callable[..., FitResult]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces the fit by one that only writes that it was called."""
    made: list[dict[str, Any]] = []

    def fit(
        videos: list[Path], run: Path, settings: Any, options: Any, reporter: Any, device: str,
        *, started_s: float,
    ) -> FitResult:  # fmt: skip
        made.append({"videos": videos, "run": run, "settings": settings, "options": options,
                     "device": device})  # fmt: skip
        with reporter.stage("pretend") as progress:
            progress(1, 1)
        (run / "clip").mkdir(exist_ok=True)
        (run / "clip" / "decode.json").write_text("{}")
        return FitResult(run / "x.gsavatar", run / "report.html", {}, speaks="mute" not in run.name)

    monkeypatch.setattr(pipeline, "fit", fit)
    return made


def run(*words: str) -> int:
    """The exit code of a command."""
    try:
        return cli.main(list(words))
    except SystemExit as leaving:  # the parser of arguments
        return int(leaving.code or 0)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    shown = capsys.readouterr().out
    assert f"usage: gsavatar {command}" in shown
    assert "None" not in shown and "``" not in shown
    if command != "doctor":
        assert f"gsavatar {command}" in shown.split("usage:")[1].split("\n", 1)[1]  # an example


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "doctor"])
def test_examples_can_be_copied(
    command: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = inspect.getdoc(getattr(cli_options, command.capitalize())) or ""
    examples = [line for line in text.splitlines() if line.startswith("  ")]
    assert examples and all(line.startswith(f"  gsavatar {command} ") for line in examples)
    assert run(command, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert set(examples) <= set(lines)
    prose = [line for line in lines if not line.startswith("usage:")]
    assert max(len(line) for line in prose) <= columns


def test_the_list_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)
    assert "me.mp4" not in shown  # one sentence each; the examples are with the command


def test_the_next_step_suits_the_avatar(
    here: Path, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "me.mp4") == 0 and "--audio SPEECH.wav" in capsys.readouterr().out
    assert run("fit", "me.mp4", "--out", "mute") == 0
    assert "--drive VIDEO" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("fut",), ("fit", "me.mp4", "--prest", "preview"), ("render",)])
def test_a_wrong_word_is_exit_2(words: tuple[str, ...]) -> None:
    assert run(*words) == 2


def test_a_fit_says_where_things_are(
    here: Path, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "me.mp4", "--seed", "7", "--set", "train.weights.color=0.5") == 0
    shown = capsys.readouterr()
    for words in ("runs/me/x.gsavatar", "runs/me/report.html", "took    0:0", "gsavatar view"):
        assert words in shown.out
    assert "pretend" in shown.err
    settings = calls[0]["settings"]
    assert settings.train.seed == 7 and settings.train.weights.color == 0.5
    assert settings.train.steps == load_preset("preview").train.steps
    assert load_settings(here / "runs/me/config.toml") == settings
    assert "stage: pretend" in (here / "runs/me/log.txt").read_text()
    assert str(here) not in (here / "runs/me/run.json").read_text()


def test_an_existing_run_is_left_alone(
    here: Path, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "me.mp4") == 0
    before = {p: p.read_bytes() for p in (here / "runs/me").rglob("*") if p.is_file()}
    assert run("fit", "me.mp4") == 2
    assert "--resume" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in (here / "runs/me").rglob("*") if p.is_file()} == before
    assert run("fit", "me.mp4", "--resume") == 0
    assert len(calls) == 2 and calls[0]["settings"] == calls[1]["settings"]


def test_the_same_film_twice_and_an_address_are_refused(
    here: Path, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "copy.mp4").write_bytes((here / "me.mp4").read_bytes())
    assert run("fit", "me.mp4", "copy.mp4") == 2
    assert "copy.mp4: is the same film as me.mp4" in capsys.readouterr().err
    assert run("fit", "https://example.com/me.mp4") == 2
    assert "me.mp4: is an address; download" in capsys.readouterr().err
    assert calls == [] and not (here / "runs").exists()


def test_work_goes_on_when_nobody_reads_the_progress() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with PlainReporter(Gone(), every_s=0.0).stage("work") as progress:
        progress(1, 2)


def test_resume_keeps_the_settings_of_the_run(here: Path, calls: list[dict[str, Any]]) -> None:
    assert run("fit", "me.mp4", "--preset", "fewshot", "--steps", "30") == 0
    assert run("fit", "me.mp4", "--resume") == 0
    assert calls[1]["settings"] == calls[0]["settings"]
    assert calls[1]["settings"].train.steps == 30


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("me.mp4", "--preset", "standard"), "preset preview"),
        (("me.mp4", "--steps", "31"), "train.steps = 3000, not 31; continue it without that"),
        (("me.mp4", "--face", "left"), "--face"),
        (("you.mp4", "--out", "runs/me"), "made from me.mp4 without --face"),
    ],
)
def test_resume_refuses_another_fit(
    here: Path, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...], said: str,
) -> None:  # fmt: skip
    film(here / "you.mp4", 7)
    assert run("fit", "me.mp4") == 0
    assert run("fit", *words, "--resume") == 2
    assert said in capsys.readouterr().err
    assert len(calls) == 1


def test_two_processes_do_not_work_in_one_run(
    here: Path, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "me.mp4") == 0
    with cli_run.alone_in(Path("runs/me")):
        assert run("fit", "me.mp4", "--resume") == 2
    assert "another gsavatar is at work there" in capsys.readouterr().err
    assert run("fit", "me.mp4", "--resume") == 0 and len(calls) == 2
    assert not Path("runs/me", cli_run.LOCK).exists()


def test_resume_of_nothing_is_a_fresh_start(here: Path, calls: list[dict[str, Any]]) -> None:
    assert run("fit", "me.mp4", "--resume") == 0
    assert len(calls) == 1


def test_a_folder_with_other_things_is_refused(
    here: Path, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "letter.txt").write_text("dear")
    assert run("fit", "me.mp4", "--out", "mine") == 2
    assert "letter.txt" in capsys.readouterr().err
    assert [p.name for p in (here / "mine").iterdir()] == ["letter.txt"] and not calls


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no video given"),
        (("gone.mp4",), "gone.mp4"),
        (("me.mp4", "--preset", "best"), "preview"),
        (("me.mp4", "--preset", "talkinggausian"), "talkinggaussian"),
        (("me.mp4", "--set", "train.steps"), "KEY=VALUE"),
        (("me.mp4", "--set", "train.stepz=3"), "stepz"),
        (("me.mp4", "--steps", "0"), "train.steps"),
        (("me.mp4", "--device", "cuda"), "--device"),
        (("me.mp4", "--out", "me.mp4"), "is a file"),
    ],
)
def test_wrong_words_make_no_run(
    here: Path, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...], said: str,
) -> None:  # fmt: skip
    assert run("fit", *words) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1 and told.startswith("error: ")
    assert [p.name for p in here.iterdir()] == ["me.mp4"] and not calls


def test_a_mistaken_reader_of_planes_makes_no_run(
    here: Path, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("GSAVATAR_PLANES", "nerf")
    assert run("fit", "me.mp4") == 2
    assert "set torch or tinycudann" in capsys.readouterr().err
    assert [p.name for p in here.iterdir()] == ["me.mp4"] and not calls


def failing(error: BaseException, *, after_decode: bool) -> Callable[..., FitResult]:
    def fit(videos: list[Path], run: Path, *_: Any, started_s: float) -> FitResult:
        (run / "clip").mkdir(exist_ok=True)
        (run / "clip" / "frames.bin.partial").write_text("half")
        if after_decode:
            (run / "clip" / "decode.json").write_text("{}")
        raise error

    return fit


def test_refused_footage_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = InputError("me.mp4: no face;\n  film one.")
    monkeypatch.setattr(pipeline, "fit", failing(refusal, after_decode=False))
    assert run("fit", "me.mp4") == 2
    told = capsys.readouterr().err
    assert "error: me.mp4: no face; film one.\n" in told and "Traceback" not in told
    assert [p.name for p in here.iterdir()] == ["me.mp4"]
    (here / "own").mkdir()
    assert run("fit", "me.mp4", "--out", "own/run") == 2
    assert [p.name for p in (here / "own").iterdir()] == []
    (here / "runs/me").mkdir(parents=True)
    (here / "runs/me/faces.png").write_bytes(b"thumbnails")
    assert run("fit", "me.mp4") == 2  # and a folder with thumbnails may be used again
    assert [p.name for p in (here / "runs/me").iterdir()] == ["faces.png"]
    assert "no face" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(28, "No space left on device", "runs/me/clip/frames.bin"), 2, "No space left"),
        (InputError("training stopped at step 9."), 2, "step 9"),
        (RuntimeError("tensor trouble"), 1, "log.txt"),
        (KeyboardInterrupt(), 130, "--resume"),
    ],
)
def test_a_run_with_a_clip_is_kept_for_resume(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    error: BaseException, code: int, said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(pipeline, "fit", failing(error, after_decode=True))
    assert run("fit", "me.mp4") == code
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told
    assert (here / "runs/me/config.toml").exists() and (here / "runs/me/clip").exists()
    log = (here / "runs/me/log.txt").read_text()
    assert code == 130 or "Traceback" in log


def test_a_full_disk_before_the_clip_is_kept_too(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(pipeline, "fit", failing(full, after_decode=False))
    assert run("fit", "me.mp4") == 2
    assert (here / "runs/me/config.toml").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--steps", "0"), "--steps 0: train.steps"),
        (("--size", "7"), "--size 7: train.size"),
        (("--set", "train.steps=0"), "--set: train.steps"),
        (("--steps", "50", "--set", "train.steps=0"), "--set: train.steps"),
    ],
)
def test_a_refused_value_is_blamed_on_the_option_that_gave_it(
    here: Path, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...], said: str,
) -> None:  # fmt: skip
    assert run("fit", "me.mp4", *words) == 2
    assert f"error: {said}" in capsys.readouterr().err
    assert not calls and [p.name for p in here.iterdir()] == ["me.mp4"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "no command given; name fit, track, check, render, view, evaluate, doctor or assets."),
        ("fitt me.mp4", "fitt: is no command; use fit."),
        ("speak me.mp4", "speak: is no command; use fit, track, check, render, view, evaluate, "
         "doctor or assets."),
        ("fit me.mp4 --preset previw", "--preset previw: no such preset; choose one of preview, "),
        ("fit me.mp4 --steps ten",
         "--steps ten: is not a whole number; name one, or leave --steps away."),
        ("render me --out a.mp4 --fps=fast",
         "--fps fast: is not a number; name one, or leave --fps away."),
        ("fit me.mp4 --device gpu",
         "--device gpu: is not auto, cpu or cuda; name one, or leave --device away."),
        ("fit me.mp4 --face_model itc", "--face_model itc: is not auto, ict, clip, flame or bfm; "),
        ("fit me.mp4 --prest preview",
         "--prest: gsavatar fit has no such option; use --preset."),
        ("fit me.mp4 --bogus 3",
         "--bogus: gsavatar fit has no such option; see gsavatar fit --help."),
        ("fit me.mp4 -o x", "-o: gsavatar fit has no such option; see gsavatar fit --help."),
        ("fit me.mp4 --out --resume",
         "--out: its value is missing; name one, as gsavatar fit --help tells."),
        ("fit me.mp4 --resume=yes", "--resume=yes: --resume takes no value; leave =yes away."),
        ("fit me.mp4 --resume b.mp4", "b.mp4: stands apart from me.mp4; name both together."),
        ("fit me.mp4 --resume true",
         "true: stands apart from me.mp4; switches take no value; leave true away."),
        ("fit me.mp4 --steps None --bogus",
         "--bogus: gsavatar fit has no such option; see gsavatar fit --help."),
        ("render me --out -x", "--out: its value is missing; name one, as gsavatar render --help "),
        ("render -- me", "gsavatar render needs --out; name it, as gsavatar render --help tells."),
        ("render me --audio a.wav",
         "gsavatar render needs --out; name it, as gsavatar render --help tells."),
        ("view", "gsavatar view needs AVATAR; name it, as gsavatar view --help tells."),
        ("view me you", "you: is more than gsavatar view takes; leave it away."),
    ],
)  # fmt: skip
def test_a_mistyped_command_line_is_told_in_one_sentence(
    here: Path, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], words: str,
    said: str,
) -> None:  # fmt: skip
    assert run(*words.split()) == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"error: {said}") and told.err.count("\n") == 1
    assert told.err.endswith(".\n") and not told.out
    assert not calls and [p.name for p in here.iterdir()] == ["me.mp4"]


def test_a_refusal_that_is_not_understood_keeps_the_parsers_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_words, "refuse", lambda _: None)
    assert run("fit", "me.mp4", "--steps", "ten") == 2
    assert "--steps" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["render", "view", "evaluate"])
def test_an_avatar_that_is_not_there(
    here: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    extra = ("--audio", "a.wav", "--out", "b.mp4") if command == "render" else ()
    assert run(command, "gone.gsavatar", *extra) == 2
    told = capsys.readouterr().err
    assert "gone.gsavatar" in told and told.count("\n") == 1
    assert [p.name for p in here.iterdir()] == ["me.mp4"]


def test_pasted_numbers_are_printed(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gsavatar import evaluate, report

    (here / "me" / "clip").mkdir(parents=True)
    (here / "me" / "clip" / "clip.json").write_text("{}")
    asked: list[str] = []

    def measured(run: Path, **options: Any) -> dict[str, Any]:
        asked.append(options["composite"])
        return {"test": {"psnr": 30.5}, "test_pasted": {"psnr": 33.25, "lpips": None}}

    monkeypatch.setattr(evaluate, "evaluate", measured)
    monkeypatch.setattr(report, "write_report", lambda run: run / "report.html")
    assert run("evaluate", "me", "--composite", "pasted") == 0
    said = capsys.readouterr().out.splitlines()
    assert asked == ["pasted"] and "pasted psnr             33.25" in said
    assert "psnr                    30.5" in said and "pasted lpips            -" in said
    assert run("evaluate", "me") == 0 and "pasted" not in capsys.readouterr().out


@pytest.mark.parametrize(("sound", "psnr", "pasted"), [("audio", 40, 44), ("expression", 30, 33)])
def test_pasted_numbers_are_those_of_the_drive(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, sound: str,
    psnr: int, pasted: int,
) -> None:  # fmt: skip
    from gsavatar import evaluate, report

    (here / "me" / "clip").mkdir(parents=True)
    (here / "me" / "clip" / "clip.json").write_text("{}")
    content = {"protocol": {"drive": sound}, "test": {"psnr": 30.0}, "test_pasted": {"psnr": 33.0}}
    if sound == "audio":
        content |= {"test_expression": {"psnr": 40.0}, "test_expression_pasted": {"psnr": 44.0}}
    monkeypatch.setattr(evaluate, "evaluate", lambda run, **options: content)
    monkeypatch.setattr(report, "write_report", lambda run: run / "report.html")
    assert run("evaluate", "me", "--drive", "expression", "--composite", "pasted") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [f"{'psnr':<24}{psnr}", f"{'pasted psnr':<24}{pasted}"]


def test_settings_from_words() -> None:
    parsed = cli._parsed(("a.b=3", "c=0.5", "d=true", "e=clip", 'f="3"', "g=x=y"))
    assert parsed == {"a.b": 3, "c": 0.5, "d": True, "e": "clip", "f": "3", "g": "x=y"}


def test_fingerprints_notice_another_file(tmp_path: Path) -> None:
    first, second = tmp_path / "a.mp4", tmp_path / "b.mp4"
    first.write_bytes(b"123")
    second.write_bytes(b"1234")
    assert cli_run._fingerprint(first) != cli_run._fingerprint(second)


def test_the_process_is_prepared_before_torch(tmp_path: Path) -> None:
    """Passive waiting is set when torch starts its threads, unless the user chose otherwise."""
    code = (
        "import sys\n"
        "from gsavatar import cli_env\n"
        "from gsavatar import cli\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
        "cli_env.prepare_process()\n"
        "import os; sys.stdout.write(os.environ['OMP_WAIT_POLICY'])\n"
    )
    for chosen in (None, "active"):
        env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
        env |= {} if chosen is None else {"OMP_WAIT_POLICY": chosen}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True,
            cwd=tmp_path,
        )  # fmt: skip
        assert done.stdout == (chosen or "passive")


@pytest.mark.parametrize(("chosen", "told"), [(None, True), ("4", False)])
def test_the_users_own_number_of_heaps_stays(
    chosen: str | None, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Library:
        def __init__(self, name: None) -> None: ...

        def mallopt(self, what: int, value: int) -> None:
            asked.append(what)

    monkeypatch.setattr(cli_env.ctypes, "CDLL", Library)
    monkeypatch.setattr(cli_env.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    if chosen is not None:
        monkeypatch.setenv("MALLOC_ARENA_MAX", chosen)
    cli_env._keep_freed_memory()
    assert (cli_env.M_ARENA_MAX in asked) is told
    assert cli_env.M_TRIM_THRESHOLD in asked


def test_lines_of_progress() -> None:
    stream = io.StringIO()
    reporter = PlainReporter(stream, every_s=0.0)
    with reporter.stage("train") as progress:
        progress(2, 4)
    reporter.note("The sound was late; corrected.")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "train ..." and "2 of 4 (50 %)" in lines[1] and "left" in lines[1]
    assert lines[2].startswith("train: done in 0:0")
    assert lines[3] == "note: The sound was late; corrected."
    assert isinstance(make_reporter(stream), PlainReporter)


def test_durations_as_words() -> None:
    assert [clock(s) for s in (0, 61.4, 3725)] == ["0:00", "1:01", "1:02:05"]
    assert progress_words(7, 0, 3.0) == "7, 0:03 elapsed"
    assert progress_words(2, 8, 10.0) == "2 of 8 (25 %), 0:10 elapsed, about 0:30 left"
    # The first step is slow: nothing is foretold from it, nor from a sliver of the work.
    assert progress_words(1, 4, 10.0) == "1 of 4 (25 %), 0:10 elapsed"
    assert progress_words(2, 4000, 1.0) == "2 of 4000 (0 %), 0:01 elapsed"


def test_the_log_is_given_back(here: Path, calls: list[dict[str, Any]]) -> None:
    before = list(logging.getLogger("gsavatar").handlers)
    assert run("fit", "me.mp4") == 0
    assert logging.getLogger("gsavatar").handlers == before


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert re.fullmatch(r"gsavatar \d+\.\d+\S*\n", capsys.readouterr().out)


def test_a_run_without_an_avatar_is_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracked = tmp_path / "tracked"
    (tracked / "clip").mkdir(parents=True)
    assert run("view", str(tracked)) == 2
    assert "no avatar here, and no fit at work on one; give gsavatar fit" in capsys.readouterr().err
    with cli_run.alone_in(tracked):  # as a fit is: its first avatar will come
        cli_run.check_shown(tracked)
    (tracked / "live.gsavatar").write_bytes(b"")
    cli_run.check_shown(tracked)
