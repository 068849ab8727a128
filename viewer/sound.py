"""Speech for the viewer: sounds to choose from, the curves they drive, the page's player."""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gsavatar.errors import InputError
from gsavatar.types import Curves
from gsavatar.viewer.source import PackageLike

SAMPLE_RATE = 16_000
FPS = 25.0
CLIP_SOUND_S = 60.0
PLAYER = "gsavatar-sound"
SETTLING_S = 3.0
"""A sound that has just begun is brought into step; later it is only kept there."""
REST_S, JUMP_S = 0.02, 0.12
"""Errors below the first are left alone, above the second the sound jumps."""
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")

Float = NDArray[np.float32]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sound:
    """A piece of speech and, once heard, what the avatar does while it plays."""

    name: str
    samples: Float  # [S], 16 kHz mono
    features: Any | None = None  # SpeechFeatures, where they are known already
    curves: Curves | None = None
    version: int = 0  # of the avatar the curves belong to


def chosen_sounds(files: Sequence[Path], run: Path) -> dict[str, Callable[[], Sound]]:
    """Sounds on offer by name: given files, those beside the avatar, and the clip's own."""
    folder = run if run.is_dir() else run.parent
    beside = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    offers: dict[str, Callable[[], Sound]] = {}
    for path in (*files, *beside):
        offers.setdefault(path.name, lambda path=path: _from_file(path))  # type: ignore[misc]
    if run.is_dir() and (run / "clip" / "clip.json").exists():
        offers["the clip's own sound"] = lambda: _from_clip(run / "clip")
    return offers


def _from_file(path: Path) -> Sound:
    from gsavatar import audio

    return Sound(path.name, audio.load(path))


def _from_clip(folder: Path) -> Sound:
    """The beginning of a run's own sound, with its features as the fit stored them."""
    from gsavatar.clip import open_clip

    clip = open_clip(folder)
    if clip.audio is None:
        raise InputError(f"{folder}: this clip has no sound; upload a sound file.")
    samples = np.asarray(clip.audio[: int(CLIP_SOUND_S * SAMPLE_RATE)], np.float32)
    return Sound("the clip's own sound", samples, clip.features)


@torch.no_grad()
def heard(
    sound: Sound, package: PackageLike, version: int, progress: Progress | None = None
) -> Sound:
    """The sound with the curves it drives. Raises ``InputError`` for an avatar without speech."""
    if sound.curves is not None and sound.version == version:
        return sound
    if package.speech is None:
        raise InputError(
            "this avatar's video had no sound, so speech cannot drive it; move it with the sliders."
        )
    from gsavatar import film, speech

    features = sound.features
    if features is None or features.encoder != package.speech.encoder:
        features = speech.extract(sound.samples, encoder=package.speech.encoder, progress=progress)
    duration_s = len(sound.samples) / SAMPLE_RATE
    curves = film.performer(package, FPS).of(features, duration_s)  # type: ignore[arg-type]
    curves = film.within_limits(curves, package)  # type: ignore[arg-type]
    return replace(sound, features=features, curves=curves, version=version)


def wav(samples: Float) -> bytes:
    """A 16-bit mono 16 kHz WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((np.clip(samples, -1.0, 1.0) * 32767).round().astype("<i2").tobytes())
    return buffer.getvalue()


def player(samples: Float) -> str:
    """HTML that holds a sound, loaded and silent until a cue starts it; it has no controls."""
    data = base64.b64encode(wav(samples)).decode()
    return f'<audio id="{PLAYER}" preload="auto" src="data:audio/wav;base64,{data}"></audio>'


def cue_after_s(position_s: float) -> float:
    """Time from a cue at ``position_s`` until the next one."""
    return 0.5 if position_s < SETTLING_S else 2.0


def cue(position_s: float, run: int) -> str:
    """HTML that starts the page's sound, or keeps it, at the server's position in a performance.

    A cue is late by an unknown time, never early. So the page holds the server's clock against its
    own and trusts the least late cue of the ``run`` (the number of a click on play). Small errors
    are made up by playing up to 5 % faster or slower until the next cue, large ones by a jump. A
    picture that cannot load is the one element whose handler a page runs when it is inserted.
    """
    script = (
        f"const a=document.getElementById('{PLAYER}');if(a){{"
        f"const now=performance.now()/1000,begun=now-{position_s:.3f};"
        f"a.begun=a.run==={run}?Math.min(a.begun,begun):begun;a.run={run};"
        "const want=now-a.begun,late=want-a.currentTime;"
        f"if(Math.abs(late)>{JUMP_S}){{a.currentTime=want;a.playbackRate=1}}"
        f"else a.playbackRate=Math.abs(late)<{REST_S}?1"
        f":1+Math.max(-0.05,Math.min(0.05,late/{cue_after_s(position_s)}));"
        "if(a.paused&&!a.ended)a.play()}"
    )
    return _run(script)


def hush(number: int) -> str:
    """HTML that stops the page's sound; ``number`` tells it from an earlier one."""
    return _run(f"const a=document.getElementById('{PLAYER}');if(a)a.pause()/*{number}*/")


def _run(script: str) -> str:
    return f'<img src="data:," alt="" style="display:none" onerror="{script}">'
