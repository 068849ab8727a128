"""The readings of what is said, on a film whose phones are known, and what they are good for."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import speech_sounds as sounds
from gsavatar import assets, audio, speech, speech_motion, speech_regression
from gsavatar.datasets.phones import Phone
from gsavatar.errors import InputError
from gsavatar.speech_encoders import BLOCK_TOKENS
from gsavatar.speech_features import LOG_MEL, WHISPER, SpeechFeatures
from gsavatar.speech_sounds import NAMES, sound_axes

SAMPLE = Path(str(resources.files("gsavatar.datasets"))) / "sample"


def heard(encoder: str) -> SpeechFeatures:
    """The sample's speech; skips without the encoder's weights."""
    if encoder == WHISPER:
        try:
            assets.resolve("speech_encoder")
        except InputError:
            pytest.skip("the speech encoder's weights are not here")
    return speech.extract(audio.load(SAMPLE / "speaker.mp4"), encoder)


def phones() -> list[Phone]:
    known = json.loads((SAMPLE / "speaker.truth.json").read_text())
    return [Phone(*row) for row in known["phones"]]


def readings(features: SpeechFeatures) -> np.ndarray:
    """[T, 17], less the mean at each place of a block as everywhere."""
    values = features.values.double().numpy().copy()
    for place in range(BLOCK_TOKENS):
        values[place::BLOCK_TOKENS] -= values[place::BLOCK_TOKENS].mean(0)
    return values @ sound_axes(features.encoder).double().numpy()


def correlations(encoder: str) -> np.ndarray:
    """Of every reading of the sample [17] with every truth [17]."""
    features = heard(encoder)
    truth = sounds.truth_of(phones(), features.length)
    return np.corrcoef(readings(features).T, truth.T)[: len(NAMES), len(NAMES) :]


def test_a_text_never_heard_is_read() -> None:
    found = correlations(WHISPER)
    own = dict(zip(NAMES, np.diag(found), strict=True))
    assert min(own[n] for n in ("closed", "wide open", "round", "hissing", "jawOpen")) > 0.6
    for i, name in enumerate(NAMES[:11]):  # a reading is of its own sound, not of loudness
        assert found[i, :11].argmax() == i, name


def test_without_the_encoder_the_jaw_is_read() -> None:
    assert correlations(LOG_MEL)[NAMES.index("jawOpen"), NAMES.index("jawOpen")] > 0.6


def test_few_seconds_teach_more_with_them() -> None:
    features = heard(WHISPER)
    known = json.loads((SAMPLE / "speaker.truth.json").read_text())
    jaw = np.array(known["weights"]["jawOpen"])
    time = np.arange(len(jaw)) / 25.0
    taught, asked = time < 4.0, time > 5.0
    errors = {}
    for gain in (0.0, speech_regression.SOUNDS_GAIN):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(speech_regression, "SOUNDS_GAIN", gain)
            # Lips closed on sure evidence err more, and the evidence is surer with the readings.
            patch.setattr(speech_motion, "LEAST_SEPARATION", np.inf)
            model = speech.fit_speech_motion(
                features, time[taught], jaw[taught, None], ("jawOpen",), opening=0.05 * jaw[taught]
            )
        guess = model(features, time[asked])[:, 0].double().numpy()
        errors[gain] = float(np.square(guess - jaw[asked]).mean())
    assert errors[speech_regression.SOUNDS_GAIN] < 0.85 * errors[0.0]
    assert errors[speech_regression.SOUNDS_GAIN] < 0.5 * jaw[asked].var()


def test_axes_are_as_wide_as_their_encoders() -> None:
    assert sound_axes(WHISPER).shape == (384, len(NAMES))
    assert sound_axes(LOG_MEL).shape == (80, len(NAMES))
    assert len(sounds.GROUPS) + len(sounds.SHAPES) == len(NAMES)


def test_truth_is_smooth_and_where_the_phone_is() -> None:
    said = [Phone("pau", 0.0, 0.5), Phone("m", 0.5, 0.6), Phone("iy", 0.6, 1.3)]
    truth = sounds.truth_of(said, 60)
    closed, spread, pause = (truth[:, NAMES.index(n)] for n in ("closed", "spread", "pause"))
    assert closed.argmax() in (26, 27) and closed[10] == closed[45] == 0.0
    assert pause[:20].min() > 0.99 and spread[35:48].min() > 0.99
    assert np.abs(np.diff(truth, axis=0)).max() < 0.35


def test_a_linear_relation_is_learned() -> None:
    rng = np.random.default_rng(3)
    features = [rng.standard_normal((300, 5)) for _ in range(2)]
    weights = rng.standard_normal((5, 2))
    found = sounds.learned(features, [f @ weights for f in features])
    np.testing.assert_allclose(found, weights / (1.0 + sounds.PENALTY), rtol=0.05)


def test_a_voices_mean_at_each_place_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    place = rng.standard_normal((BLOCK_TOKENS, 3))
    found = [
        sounds.Reading(voice, place[np.arange(40) % BLOCK_TOKENS] + shift, np.zeros((40, 17)))
        for voice, shift in (("slt", 1.0), ("slt", 1.0), ("rms", -5.0))
    ]
    monkeypatch.setattr(sounds, "VOICES", ("slt", "rms"))
    for left in sounds.centred(found, WHISPER):
        np.testing.assert_allclose(left, 0.0, atol=1e-12)


def test_inputs_keep_their_own_components() -> None:
    inputs = speech_regression.TokenInputs(torch.zeros(1, 80), torch.eye(80)[:, :4], torch.ones(3))
    both = speech_regression.with_sounds(inputs, LOG_MEL)
    assert torch.equal(both.components[:, :4], inputs.components)
    assert both.components.shape == (80, 4 + len(NAMES))
