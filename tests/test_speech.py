"""Features against direct definitions; the motion model on sound whose lips are known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.signal import lfilter

from gsavatar import assets, speech, speech_encoders, speech_motion
from gsavatar import voice as voice_module
from gsavatar.errors import InputError
from gsavatar.idle import IdlePath
from gsavatar.performance import Performer, SpeechStream
from gsavatar.speech import SpeechFeatures
from gsavatar.speech_regression import shrunk
from gsavatar.speech_repertoire import Repertoire
from gsavatar.types import Curves

RATE = 16_000
FPS = 25.0


def syllables(seconds: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Babble [S] whose loudness and timbre follow a known opening, and that opening at 100 Hz."""
    rng = np.random.default_rng(seed)
    steps = round(seconds * 100)
    wander = lfilter([1.0], [1.0, -1.7, 0.745], rng.normal(size=steps + 200))[200:]
    opening = np.clip(0.02 + 0.02 * wander / wander.std(), 0.0, None)
    time = np.arange(round(seconds * RATE)) / RATE
    level = np.interp(time, np.arange(steps) / 100, opening) / 0.06
    buzz = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 20))
    hiss = rng.normal(size=len(time)) * (1 - np.clip(level, 0, 1)) * 0.05
    return (0.2 * (level * buzz + hiss)).astype(np.float32), opening


def heard(seconds: float, seed: int = 0) -> tuple[SpeechFeatures, np.ndarray, np.ndarray]:
    """Log-mel features of babble, taken for a voice, with frame times and openings."""
    sound, opening = syllables(seconds, seed)
    features = speech.extract(sound, encoder="log_mel")
    time = np.arange(round(seconds * FPS)) / FPS
    known = np.interp(time, np.arange(len(opening)) / 100, opening)
    return replace(features, voice=torch.ones_like(features.voice)), time, known


@pytest.fixture(scope="module")
def talk() -> tuple[SpeechFeatures, np.ndarray, np.ndarray]:
    return heard(20.0)


NAMES = ("jawOpen", "mouthPucker", "mouthClose")


def coefficients(opening: np.ndarray) -> np.ndarray:
    """Three coefficients that an opening implies."""
    return np.stack([10 * opening, 0.3 - 4 * opening, 0.1 * np.exp(-opening / 0.01)], 1)


@pytest.fixture(scope="module")
def motion(talk: tuple[SpeechFeatures, np.ndarray, np.ndarray]) -> speech.SpeechMotion:
    features, time, opening = talk
    return speech.fit_speech_motion(features, time, coefficients(opening), NAMES, opening=opening)


# Features


def test_mel_filters_have_equal_area_and_cover_the_band() -> None:
    filters = speech_encoders.mel_filters()
    assert filters.shape == (80, 201)
    peaks = filters.argmax(axis=1) * 40.0
    assert (np.diff(peaks) >= 0).all() and peaks[0] < 80 and 7000 < peaks[-1] < 8000
    assert filters[40:].sum(axis=1) * 40.0 == pytest.approx(1.0, rel=0.1)


def test_log_mel_of_a_tone_by_a_direct_transform() -> None:
    time = np.arange(RATE) / RATE
    window = np.sin(2 * np.pi * 1000.0 * time).astype(np.float32)
    mel = speech_encoders.whisper_log_mel(window)
    assert mel.shape == (80, 100)
    level = (window - window.mean()) / np.sqrt(window.var() + 1e-7)
    piece = level[50 * 160 - 200 : 50 * 160 + 200]
    taper = np.hanning(401)[:400]
    turn = np.exp(-2j * np.pi * np.outer(np.arange(201), np.arange(400)) / 400)
    power = speech_encoders.mel_filters() @ np.abs(turn @ (piece * taper)) ** 2
    expected = np.log10(np.maximum(power, 1e-10))
    loud = (mel[:, 50] * 4 - 4) > mel.max() * 4 - 4 - 7.9  # those the floor has not touched
    assert loud.sum() >= 4
    assert (mel[:, 50] * 4 - 4)[loud] == pytest.approx(expected[loud], abs=1e-3)


def test_rows_cover_the_sound_and_ignore_what_comes_later() -> None:
    sound, _ = syllables(2.01)
    whole = speech.extract(sound, encoder="log_mel")
    assert len(whole.values) == len(whole.voice) == 101 and whole.values.shape[1] == 80
    cut = speech.extract(sound[:16_000], encoder="log_mel")
    # Row i reads no further than 30 ms after i / 50 s.
    assert torch.equal(whole.values[:48], cut.values[:48])
    assert not torch.equal(whole.values[:60], whole.values[10:70])


def test_level_does_not_matter() -> None:
    sound, _ = syllables(2.0)
    loud = speech.extract(sound, encoder="log_mel").values
    soft = speech.extract(np.float32(0.1) * sound, encoder="log_mel").values
    assert torch.allclose(loud[10:], soft[10:], atol=0.02)


def test_an_unknown_encoder_is_refused() -> None:
    with pytest.raises(InputError, match="'mfcc' is unknown"):
        speech.extract(np.zeros(RATE, np.float32), encoder="mfcc")


def test_without_the_encoder_auto_is_log_mel(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise InputError(f"{name} is not here.")

    monkeypatch.setattr(assets, "resolve", missing)
    monkeypatch.setattr(assets, "available", lambda _: False)
    features = speech.extract(syllables(1.0)[0])
    assert features.encoder == "log_mel" and 0.5 < float(features.voice.mean()) <= 1.0


def test_the_loudness_gate_knows_pauses_and_is_said_to_stand_in(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(assets, "available", lambda _: False)
    voice_module._warn_of_loudness.cache_clear()
    sound = np.pad(syllables(2.0)[0], RATE)
    voice = speech.extract(sound, encoder="log_mel").voice
    assert "by its loudness alone" in caplog.text
    assert (voice[:48] == 0).all() and voice[55:145].mean() > 0.6 and (voice[152:] == 0).all()


@pytest.fixture(params=["log_mel", "whisper_tiny"])
def encoder_name(request: pytest.FixtureRequest) -> str:
    if request.param == "whisper_tiny":
        request.getfixturevalue("encoder")
    return str(request.param)


def test_a_stream_hears_what_the_whole_recording_says(encoder_name: str) -> None:
    sound, _ = syllables(2.71)
    whole = speech.extract(sound, encoder=encoder_name)
    stream = speech.FeatureStream(encoder_name)
    rng = np.random.default_rng(0)
    rows, voice, at, row = [], [], 0, 0
    while not stream.ended:
        size = int(rng.integers(1, 6000))
        stream.push(sound[at : at + size])
        at += size
        if at >= len(sound):
            stream.finish()
        known = min(stream.length, stream.voice_length)
        rows.append(stream.rows(row, known - row))
        voice.append(stream.voice_rows(row, known - row))
        row = known
        stream.forget(row)
    assert torch.equal(torch.cat(rows), whole.values)
    assert torch.equal(torch.cat(voice), whole.voice)
    assert torch.equal(stream.rows(stream.length, 2), whole.silence.repeat(2, 1))
    with pytest.raises(IndexError, match="tokens 0 to 2"):
        stream.rows(0, 2)


def test_a_stream_does_not_guess() -> None:
    stream = speech.FeatureStream("log_mel")
    stream.push(np.zeros(8_000, np.float32))
    with pytest.raises(IndexError, match="at hand"):
        stream.rows(stream.length, 1)
    assert stream.length == 24  # token 24, at 0.48 s, reads 22.5 ms further


def test_a_graph_is_cut_at_an_inner_tensor() -> None:
    wrap = speech_encoders._wrapped

    def node(*outputs: str) -> bytes:
        return wrap(1, wrap(1, b"x") + b"".join(wrap(2, name.encode()) for name in outputs))

    graph = node("a") + node("b", "inner") + node("late") + wrap(5, b"w" * 200) + wrap(12, b"old")
    model = bytes([0x08, 0x08]) + wrap(7, graph)
    cut = speech_encoders.cut_graph(model, "inner")
    assert b"inner" in cut and b"late" not in cut and b"old" not in cut and b"w" * 200 in cut
    entry = wrap(12, wrap(1, b"inner") + wrap(2, wrap(1, bytes([8, 1]))))
    kept = node("a") + node("b", "inner") + wrap(5, b"w" * 200) + entry
    assert cut == model[:2] + wrap(7, kept)
    with pytest.raises(InputError, match="no tensor 'absent'"):
        speech_encoders.cut_graph(model, "absent")


@pytest.fixture(scope="module")
def encoder() -> None:
    try:
        assets.resolve("speech_encoder")
    except InputError as error:
        pytest.skip(f"the speech encoder is not at hand: {error}")


@pytest.mark.usefixtures("encoder")
def test_encoder_blocks_are_read_at_one_place_of_their_window() -> None:
    sound, _ = syllables(0.9)
    ticks: list[tuple[int, int]] = []
    features = speech.extract(sound, "auto", lambda done, total: ticks.append((done, total)))
    assert features.encoder == "whisper_tiny" and features.values.shape == (45, 384)
    assert ticks[-1] == (45, 45)
    # Block 2 (0.4-0.6 s) hears 7.3 s of nothing, then the sound up to 0.7 s.
    window = np.zeros(128_000, np.float32)
    window[-round(0.7 * RATE) :] = sound[: round(0.7 * RATE)]
    block = speech_encoders.encode_window(window)
    assert block.base is None  # the other 390 tokens are not kept with it
    expected = torch.from_numpy(block)
    assert torch.equal(features.values[20:30], expected)
    assert features.silence.shape == (384,) and bool(torch.isfinite(features.silence).all())


# Sound against picture


@pytest.mark.parametrize("late_s", [-0.2, 0.0, 0.12, 0.28, 0.56])
def test_a_shift_of_the_sound_is_found(
    talk: tuple[SpeechFeatures, np.ndarray, np.ndarray], late_s: float
) -> None:
    features, time, opening = talk
    inside = (time > 0.5) & (time < 19.0)
    # Frames stamped early by `late_s` are frames whose sound comes late.
    offset_ms, confidence = speech.estimate_av_offset(
        features, time[inside] - late_s, opening[inside]
    )
    lead_ms = 1000 * speech.LIP_LEAD_S
    assert offset_ms + lead_ms == pytest.approx(1000 * late_s, abs=15) and confidence > 0.5


def test_no_offset_is_claimed_without_a_relation(
    talk: tuple[SpeechFeatures, np.ndarray, np.ndarray],
) -> None:
    features, time, _ = talk
    noise = np.random.default_rng(1).normal(size=len(time))
    assert speech.estimate_av_offset(features, time, noise)[1] < 0.5
    assert speech.estimate_av_offset(features, time, np.zeros(len(time))) == (0.0, 0.0)
    assert speech.estimate_av_offset(features, time[:10], noise[:10]) == (0.0, 0.0)


def test_the_opening_is_explained_by_its_own_sound_only(
    talk: tuple[SpeechFeatures, np.ndarray, np.ndarray],
) -> None:
    features, time, opening = talk
    assert speech.cv_opening(features, time, opening) > 0.85
    assert abs(speech.cv_opening(features, time, np.roll(opening, 200))) < 0.35


# Motion


def test_motion_follows_a_speech_it_never_heard(motion: speech.SpeechMotion) -> None:
    features, time, opening = heard(8.0, seed=5)
    values = motion(features, time)
    assert values.shape == (200, 3) and values.dtype == torch.float32
    assert np.corrcoef(values[:, 0].numpy(), 10 * opening)[0, 1] > 0.85
    low, high = motion.limits.unbind(-1)
    assert bool((values >= low).all() and (values <= high).all())
    closed, shown = opening < 0.01, values[:, 0].numpy() < 0.1
    assert 0.5 * (shown[closed].mean() + (~shown)[~closed].mean()) > 0.8


def test_any_chunking_gives_the_same_numbers(
    motion: speech.SpeechMotion,
    talk: tuple[SpeechFeatures, np.ndarray, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = talk[0]
    time = np.arange(-5, 1250) / 60.0  # another rate, and past both ends
    whole = motion(features, time)
    monkeypatch.setattr(speech_motion, "CHUNK_FRAMES", 37)
    assert torch.allclose(whole, motion(features, time), atol=1e-6)
    one = torch.cat([motion(features, time[i : i + 1]) for i in range(300, 320)])
    assert torch.allclose(whole[300:320], one, atol=1e-6)
    assert motion(features, time[:0]).shape == (0, 3)


def test_a_speech_in_pieces_moves_the_same_mouth(
    motion: speech.SpeechMotion, encoder_name: str
) -> None:
    motion = heard_by(motion, encoder_name)
    sound, _ = syllables(3.37, seed=3)
    idle = Curves(NAMES, torch.zeros(1).double(), torch.zeros(1, 3), torch.eye(4)[None])
    performer = Performer(motion, IdlePath(idle), NAMES, 30.0)
    whole = performer.of(speech.extract(sound, encoder=encoder_name), len(sound) / RATE)
    stream = SpeechStream(performer)
    pieces, latest = [], 0.0
    for start in range(0, len(sound), 160):
        pieces.append(stream.push(sound[start : start + 160]))
        for time in pieces[-1].time_s.tolist():
            latest = max(latest, (start + 160) / RATE - time)
    pieces.append(stream.finish())
    values = torch.cat([p.values for p in pieces])
    assert values.shape == whole.values.shape
    assert torch.allclose(values, whole.values, atol=2e-5)
    assert torch.equal(torch.cat([p.time_s for p in pieces]), whole.time_s)
    assert latest <= (0.311 if encoder_name == "whisper_tiny" else 0.211)  # a push is 10 ms


@pytest.mark.parametrize("at_s", [1.02, 1.193, 1.2])
def test_nothing_later_than_the_look_ahead_matters(
    motion: speech.SpeechMotion, encoder_name: str, at_s: float
) -> None:
    motion = heard_by(motion, encoder_name)
    sound, _ = syllables(3.0, seed=4)
    other = sound.copy()
    limit_s = 0.3 if encoder_name == "whisper_tiny" else 0.2
    other[round((at_s + limit_s) * RATE) :] = 0.0
    a, b = (motion(speech.extract(s, encoder=encoder_name), [at_s]) for s in (sound, other))
    assert torch.equal(a, b)


def heard_by(motion: speech.SpeechMotion, encoder: str) -> speech.SpeechMotion:
    """The motion itself, or one learnt from another encoder's features of the same talk."""
    if encoder == motion.encoder:
        return motion
    sound, opening = syllables(6.0)
    features = speech.extract(sound, encoder=encoder)
    time = np.arange(150) / FPS
    known = np.interp(time, np.arange(len(opening)) / 100, opening)
    return speech.fit_speech_motion(features, time, coefficients(known), NAMES, opening=known)


def test_silence_closes_the_mouth_soon(
    motion: speech.SpeechMotion, talk: tuple[SpeechFeatures, np.ndarray, np.ndarray]
) -> None:
    features = talk[0]
    voice = features.voice.clone()
    voice[250:] = 0.0
    time = np.arange(500) / FPS
    values = motion(replace(features, voice=voice), time)
    opening = motion.shaping.opening(values)
    assert bool((opening[time >= 5.4] < 0.010).all())
    assert torch.equal(values[200], values[-1])
    assert float(opening[time < 4.9].std()) > 0.01


def test_a_single_dip_of_the_voice_does_not_close_it(
    motion: speech.SpeechMotion, talk: tuple[SpeechFeatures, np.ndarray, np.ndarray]
) -> None:
    features, time, _ = talk
    voice = features.voice.clone()
    voice[300:312] = 0.0
    assert torch.equal(motion(replace(features, voice=voice), time), motion(features, time))


def test_learning_repeats_and_the_state_comes_back(
    motion: speech.SpeechMotion, talk: tuple[SpeechFeatures, np.ndarray, np.ndarray]
) -> None:
    features, time, opening = talk
    again = speech.fit_speech_motion(features, time, coefficients(opening), NAMES, opening=opening)
    assert torch.equal(again(features, time), motion(features, time))
    tensors, meta = motion.state()
    back = speech.SpeechMotion.from_state(tensors, json.loads(json.dumps(meta)))
    assert back.names == NAMES and torch.equal(back(features, time), motion(features, time))


def test_a_damaged_state_is_refused(motion: speech.SpeechMotion) -> None:
    tensors, meta = motion.state()
    for name in tensors:
        with pytest.raises(ValueError, match=name):
            speech.SpeechMotion.from_state({k: v for k, v in tensors.items() if k != name}, meta)
        with pytest.raises(ValueError, match="do not fit"):
            wrong = {**tensors, name: tensors[name][None].repeat(2, *[1] * tensors[name].ndim)}
            speech.SpeechMotion.from_state(wrong, meta)
    with pytest.raises(ValueError, match="version"):
        speech.SpeechMotion.from_state(tensors, {**meta, "version": 99})
    with pytest.raises(ValueError, match="do not fit"):  # its tokens have other numbers
        narrow = {"means": tensors["means"][:, 5:], "components": tensors["components"][5:]}
        speech.SpeechMotion.from_state(tensors | narrow, meta)
    with pytest.raises(ValueError, match="do not fit"):
        speech.SpeechMotion.from_state(tensors, {**meta, "encoder": "foo"})


def test_an_avatar_of_an_older_version_has_no_repertoire(
    motion: speech.SpeechMotion, talk: tuple[SpeechFeatures, np.ndarray, np.ndarray]
) -> None:
    tensors, meta = motion.state()
    old = {k: v for k, v in tensors.items() if k not in ("frames", "spread")}
    back = speech.SpeechMotion.from_state(old, meta)
    plain = replace(motion, repertoire=Repertoire.none(len(NAMES)))
    assert torch.equal(back(talk[0], talk[1]), plain(talk[0], talk[1]))


def test_predictions_are_drawn_to_what_the_person_does() -> None:
    """The person moves on a curve in six dimensions; half of what leads off it is taken away."""
    s = np.linspace(0.0, 2.0 * np.pi, 400)
    waves = (np.sin(s), np.cos(s), np.sin(2 * s), np.cos(2 * s), np.sin(3 * s), np.cos(3 * s))
    curve = np.stack(waves, 1)
    own = Repertoire.of(curve)
    on_it = torch.from_numpy(curve[::7]).float()
    torch.testing.assert_close(own(on_it), on_it, atol=5e-3, rtol=0)
    off = on_it + 0.2 * torch.randn(on_it.shape, generator=torch.Generator().manual_seed(0))

    def away(points: torch.Tensor) -> float:
        return float(torch.cdist(points.double(), torch.from_numpy(curve)).amin(1).mean())

    assert away(own(off)) < 0.6 * away(off)
    with_opening = torch.cat((off, torch.ones(len(off), 1)), 1)
    assert torch.equal(own(with_opening)[:, :6], own(off))
    assert torch.equal(own(with_opening)[:, 6:], with_opening[:, 6:])
    assert torch.equal(torch.cat([own(off[i : i + 5]) for i in range(0, len(off), 5)]), own(off))
    few = Repertoire.of(curve[:10])  # too few to tell
    assert torch.equal(few(off), off)


def test_another_encoders_features_are_refused(
    motion: speech.SpeechMotion, talk: tuple[SpeechFeatures, np.ndarray, np.ndarray]
) -> None:
    with pytest.raises(ValueError, match="log_mel features, got whisper_tiny"):
        motion(replace(talk[0], encoder="whisper_tiny"), [0.0])


def test_frames_without_a_measurement_are_left_out(
    talk: tuple[SpeechFeatures, np.ndarray, np.ndarray],
) -> None:
    features, time, opening = talk
    holed = opening.copy()
    holed[100:130] = np.nan
    motion = speech.fit_speech_motion(
        features, time, coefficients(opening), NAMES, opening=holed, weight=np.ones(len(time))
    )
    assert bool(torch.isfinite(motion(features, time)).all())
    with pytest.raises(ValueError, match="instants"):
        speech.fit_speech_motion(features, time[:-1], coefficients(opening), NAMES)


def test_without_openings_nothing_is_corrected(
    talk: tuple[SpeechFeatures, np.ndarray, np.ndarray],
) -> None:
    features, time, opening = talk
    motion = speech.fit_speech_motion(features, time, coefficients(opening), NAMES)
    assert motion.regression.bias.shape == (3,) and len(motion.shaping.knots) == 0
    shown = motion(features, time)[:, 0].numpy()
    assert np.corrcoef(shown, opening)[0, 1] > 0.85
    assert float(motion.closed[0]) <= np.quantile(10 * opening, 0.1)


def test_only_predictions_that_tell_close_the_lips() -> None:
    """Six seconds of footage once gave a threshold that kept speaking lips shut."""
    rng = np.random.default_rng(0)
    real = np.where(rng.random(150) < 0.2, 0.003, 0.03 + 0.03 * rng.random(150))
    targets = np.stack((real, 0.1 * rng.random(150)), axis=1)
    telling = real + 0.004 * rng.standard_normal(150)
    blind = 0.04 + 0.01 * rng.random(150)
    assert speech_motion.separation(telling, real) > 0.9
    chance = speech_motion.chance_separation(real)
    assert speech_motion.separation(blind, real) < chance + speech_motion.LEAST_SEPARATION
    told = speech_motion.shape_opening(targets, real, np.ones(150), telling)
    assert len(told.knots) == 4 and float(told.knots[1]) < 0.03
    once = np.where(np.arange(150) < 12, 0.003, 0.05)  # one closure proves nothing
    assert len(speech_motion.shape_opening(targets, once, np.ones(150), once).knots) == 0
    untold = speech_motion.shape_opening(targets, real, np.ones(150), blind)
    values = torch.from_numpy(targets).float()
    torch.testing.assert_close(untold(values), values)


def test_predictions_that_went_too_far_are_drawn_to_the_mean() -> None:
    rng = np.random.default_rng(0)
    told, noise = rng.normal(size=(2, 400))
    targets = np.stack((3.0 + told, 1.0 + noise), 1)
    weight = np.ones(400)
    predicted = np.stack((3.0 + 2.0 * told, 1.0 + rng.normal(size=400)), 1)
    fitted = np.array([[2.0, 1.0], [0.5, 0.5]])  # one input, and the bias
    less = shrunk(fitted, predicted, targets, weight)
    assert less[0, 0] == pytest.approx(1.0, abs=0.05)  # half of the way is right
    assert abs(less[0, 1]) < 0.1  # nothing was told
    assert less[1, 1] == pytest.approx(targets[:, 1].mean(), abs=0.1)
    mean = targets.mean(0)
    for share in (0.5, 1.0):  # too little, or right: as it was
        timid = mean + share * (targets - mean)
        assert np.allclose(shrunk(fitted, timid, targets, weight), fitted)


@pytest.mark.parametrize(("seconds", "drawn"), [(10.0, True), (20.0, False)])
def test_only_a_few_seconds_are_drawn_to_the_mean_and_never_the_opening(
    talk: tuple[SpeechFeatures, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch,
    seconds: float, drawn: bool,
) -> None:  # fmt: skip
    features, time, opening = talk
    some = time < seconds
    shapes: list[tuple[int, ...]] = []

    def still(fitted: np.ndarray, *rest: np.ndarray) -> np.ndarray:
        shapes.append(fitted.shape)
        return 0.0 * fitted

    monkeypatch.setattr(speech_motion, "shrunk", still)
    model = speech.fit_speech_motion(
        features, time[some], coefficients(opening[some]), NAMES, opening=opening[some]
    )
    weights = model.regression.weights
    assert bool((weights[:, : len(NAMES)] == 0.0).all()) == drawn
    assert float(weights[:, -1].abs().max()) > 0.0
    assert [shape[1] for shape in shapes] == [len(NAMES)] * drawn
