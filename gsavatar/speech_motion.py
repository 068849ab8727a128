"""How one person's lower face moves when they speak: learned from a clip, played from features.

The regression (``speech_regression``) is evaluated on the 50 Hz token grid, smoothed with a
symmetric kernel, shaped so that the lips really meet and really open, closed in silence, and
interpolated at the frames' instants: any rate, any chunking, the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsavatar.speech_features import (
    ENCODERS,
    LOG_MEL,
    TOKEN_RATE,
    WHISPER,
    FeatureSource,
    SpeechFeatures,
    instants,
    last_heard,
)
from gsavatar.speech_regression import (
    Array,
    TokenInputs,
    TokenRegression,
    between_tokens,
    cross_validated,
    kernel_design,
    ridge,
    shrunk,
)
from gsavatar.speech_repertoire import Repertoire

CLOSED_OPENING = 0.010
"""Mouth opening (gap of the lips over the height of the face) below which the lips meet."""
REST_OPENING = 0.002
"""What silence shows: lips at rest, which a nod shows more open by up to .007."""
CUT_OPENING = 0.006
"""What the widest prediction that closes the lips becomes: drawn lips look a little more open than
their coefficients say."""
CLOSING_STEP = 0.005
"""Range of predicted openings over which the lips part."""
LEAST_SEPARATION = 0.3
"""Least share by which a threshold must tell closed from open lips, beyond what chance gives."""
CUT_SHARE = 0.5
"""Where the lips close: 0 at the best separation of held-out frames, 1 as often as in the clip."""
LIMIT_MARGIN = 0.10
SHORT_S = 15.0
"""Footage from which coefficients are told no more surely than their held-out predictions."""
SMOOTHING = (0.25, 0.5, 0.25)
"""Weights of neighbouring tokens (20 ms): symmetric, so nothing is delayed."""

VOICE_ON, VOICE_OFF = 0.5, 0.15
OPENING_TOKENS = {WHISPER: (7, 4), LOG_MEL: (3, 3)}
"""Lips have left rest this long before the sound, after a ramp: what the look-ahead allows."""
HANGOVER_TOKENS = 14
CLOSING_TOKENS = 6
GATE_REACH = 128
"""Tokens of history that decide the hysteresis at the start of a chunk."""
CHUNK_FRAMES = 1024
READING_PENALTY = 1e-5
"""Ridge penalty of the linear map from coefficients to the mouth's opening."""
STATE_VERSION = 3


@dataclass(frozen=True)
class Shaping:
    """A monotone correction of the mouth's opening, carried out along one direction."""

    reading: Tensor  # [K + 1], opening = reading[:K] . coefficients + reading[K]
    direction: Tensor  # [K], changes the opening by 1
    knots: Tensor  # [M] predicted openings, increasing
    targets: Tensor  # [M] openings to show instead

    def opening(self, values: Tensor) -> Tensor:
        """Opening that coefficients [N, K] read as, [N]."""
        return values @ self.reading[:-1] + self.reading[-1]

    def __call__(self, predicted: Tensor) -> Tensor:
        """Coefficients [N, K] whose opening is the corrected one.

        ``predicted`` is [N, K], or [N, K + 1] with the opening, predicted for itself, last.
        """
        k = len(self.direction)
        values = predicted[:, :k]
        if predicted.shape[1] == k:
            return values
        wanted = predicted[:, k]
        if len(self.knots):
            wanted = wanted + _interpolate(wanted, self.knots, self.targets - self.knots)
        return values + (wanted - self.opening(values))[:, None] * self.direction


def _interpolate(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear function at x [N], constant beyond the knots [M]."""
    x = x.clamp(knots[0], knots[-1])
    right = torch.searchsorted(knots, x).clamp(1, len(knots) - 1)
    left = right - 1
    share = (x - knots[left]) / (knots[right] - knots[left])
    return values[left] + share * (values[right] - values[left])


@dataclass(frozen=True)
class SpeechMotion:
    """Speech features in, lower-face coefficients out."""

    names: tuple[str, ...]
    encoder: str
    regression: TokenRegression
    shaping: Shaping
    closed: Tensor  # [K], the face at rest with its lips together
    limits: Tensor  # [K, 2]
    repertoire: Repertoire

    def __call__(self, source: FeatureSource, time_s: Any) -> Tensor:
        """Coefficients [N, K] float32 at instants [N], in the order of ``names``.

        Raises ``ValueError`` if the features come from another encoder.
        """
        time = instants(source, self.encoder, time_s)
        if len(time) == 0:
            return torch.zeros(0, len(self.names))
        return torch.cat([self._at(source, part) for part in time.split(CHUNK_FRAMES)])

    def _at(self, source: FeatureSource, time: Tensor) -> Tensor:
        left, right, share = between_tokens(source, time)
        first = int(left.min())
        tokens = self.tokens(source, first, int(right.max()) + 1 - first)
        return tokens[left - first] * (1.0 - share) + tokens[right - first] * share

    def tokens(self, source: FeatureSource, first: int, count: int) -> Tensor:
        """Coefficients [count, K] on the token grid, from token ``first`` on."""
        half = len(SMOOTHING) // 2
        token = torch.arange(first, first + count)
        known = last_heard(source.encoder, token)
        end = min(first + count - 1 + half, int(known[-1]))
        raw = self.repertoire(self.regression(source, first - half, end + 1 - (first - half)))
        smooth = torch.zeros(count, raw.shape[1])
        for offset, weight in enumerate(SMOOTHING, -half):
            smooth = smooth + weight * raw[torch.minimum(token + offset, known) - (first - half)]
        gate = voice_gate(source, first, count)[:, None]
        shaped = self.closed + gate * (self.shaping(smooth) - self.closed)
        return shaped.clamp(self.limits[:, 0], self.limits[:, 1])

    def reach(self, time_s: float) -> tuple[int, int, int]:
        """What an instant is made of: the first token read, and the numbers of tokens and of
        voice rows that must be known."""
        left = int(np.floor(time_s * TOKEN_RATE))
        known = int(last_heard(self.encoder, torch.tensor(left)))
        context = len(self.regression.inputs.taper) // 2 + len(SMOOTHING) // 2
        last = min(left + 1, known)
        ahead = min(last + context, known)
        return (
            left - max(context, _GATE_PAST),
            ahead + 1,
            last + 1 + sum(OPENING_TOKENS[self.encoder]),
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-able facts that ``from_state`` rebuilds the model from."""
        heard = self.regression
        tensors = {
            "means": heard.inputs.means, "components": heard.inputs.components,
            "taper": heard.inputs.taper, "centres": heard.centres, "weights": heard.weights,
            "bias": heard.bias, "reading": self.shaping.reading,
            "direction": self.shaping.direction, "knots": self.shaping.knots,
            "targets": self.shaping.targets, "closed": self.closed, "limits": self.limits,
            "frames": self.repertoire.frames, "spread": self.repertoire.spread,
        }  # fmt: skip
        meta = {"version": STATE_VERSION, "names": list(self.names), "encoder": self.encoder}
        return {k: v.contiguous() for k, v in tensors.items()}, meta

    @staticmethod
    def from_state(tensors: dict[str, Tensor], meta: dict[str, Any]) -> SpeechMotion:
        """The model that ``state`` described. Raises ``ValueError`` if the parts do not fit."""
        try:
            is_old = not any(key in tensors for key in _REPERTOIRE_KEYS)  # and so has none
            keys = _STATE_KEYS if is_old else _STATE_KEYS + _REPERTOIRE_KEYS
            t = {k: tensors[k].float() for k in keys}
            if is_old:
                own = Repertoire.none(len(t["closed"]))
                t |= {"frames": own.frames.float(), "spread": own.spread}
            names, encoder = tuple(map(str, meta["names"])), str(meta["encoder"])
            version = meta["version"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"the speech model lacks {error}") from None
        if version != STATE_VERSION:
            raise ValueError(f"speech model version {version}, this program reads {STATE_VERSION}")
        if not _fits(t, len(names)) or t["means"].shape[1] != ENCODERS.get(encoder):
            raise ValueError("the speech model's tensors do not fit together")
        inputs = TokenInputs(t["means"], t["components"], t["taper"])
        heard = TokenRegression(inputs, t["centres"].half(), t["weights"], t["bias"])
        shaping = Shaping(t["reading"], t["direction"], t["knots"], t["targets"])
        own = Repertoire(t["frames"].half(), t["spread"])
        return SpeechMotion(names, encoder, heard, shaping, t["closed"], t["limits"], own)


_STATE_KEYS = (
    "means", "components", "taper", "centres", "weights", "bias", "reading", "direction", "knots",
    "targets", "closed", "limits",
)  # fmt: skip


_REPERTOIRE_KEYS = ("frames", "spread")


def _fits(t: dict[str, Tensor], k: int) -> bool:
    """Whether the tensors of a state have the shapes of a model with K names."""
    if t["means"].ndim != 2 or t["components"].ndim != 2 or t["taper"].ndim != 1:
        return False
    (places, a), c, length = t["means"].shape, t["components"].shape[1], len(t["taper"])
    m, outputs = len(t["weights"]), len(t["bias"]) if t["bias"].ndim == 1 else 0
    shapes = {
        "components": (a, c), "centres": (m, length * c), "weights": (m, outputs),
        "reading": (k + 1,), "direction": (k,), "targets": t["knots"].shape, "closed": (k,),
        "limits": (k, 2), "frames": (len(t["frames"]), k), "spread": (k,),
    }  # fmt: skip
    return (
        outputs in (k, k + 1) and places >= 1 and length % 2 == 1 and c >= 1
        and all(tuple(t[name].shape) == tuple(shape) for name, shape in shapes.items())
        and t["knots"].ndim == 1 and len(t["knots"]) != 1 and bool((t["knots"].diff() > 0).all())
        and bool((t["spread"] > 0).all())
    )  # fmt: skip


def voice_gate(source: FeatureSource, first: int, count: int) -> Tensor:
    """How much of the motion to play at tokens first, first + 1, ...: 0 silence, 1 speech, [count].

    On above ``VOICE_ON``, off below ``VOICE_OFF``, a little early and a little late, with ramps.
    """
    early_tokens, opening_tokens = OPENING_TOKENS[source.encoder]
    level = source.voice_rows(
        first - _GATE_PAST, _GATE_PAST + count + early_tokens + opening_tokens
    ).numpy()
    on = _hysteresis(level)
    # The gate is open if speech is within reach, and a ramp away from it partly.
    index = np.arange(len(on))
    past = index - np.maximum.accumulate(np.where(on, index, -(10**6)))
    coming = np.minimum.accumulate(np.where(on, index, 10**6)[::-1])[::-1] - index
    late = 1.0 - (past - HANGOVER_TOKENS) / CLOSING_TOKENS
    early = 1.0 - (coming - early_tokens) / opening_tokens
    ramp = np.clip(np.maximum(late, early), 0.0, 1.0)
    gate = ramp * ramp * (3.0 - 2.0 * ramp)
    return torch.from_numpy(gate[_GATE_PAST : _GATE_PAST + count].astype(np.float32))


_GATE_PAST = GATE_REACH + HANGOVER_TOKENS + CLOSING_TOKENS


def _hysteresis(level: NDArray[Any]) -> NDArray[np.bool_]:
    """True from where the level reaches ``VOICE_ON`` until it falls below ``VOICE_OFF``."""
    decided = np.where(level >= VOICE_ON, 1, np.where(level < VOICE_OFF, 0, -1))
    last = np.maximum.accumulate(np.where(decided >= 0, np.arange(len(level)), 0))
    return decided[last] == 1


# Learning


def fit_speech_motion(
    features: SpeechFeatures, time_s: Any, targets: Any, names: tuple[str, ...],
    *, weight: Any = None, opening: Any = None, seed: int = 0,
) -> SpeechMotion:  # fmt: skip
    """Learns the motion of a clip's training part.

    ``targets`` [T, K] are fitted coefficients at ``time_s`` [T]; ``opening`` [T] the measured
    mouth opening of the same frames, which closures are shaped by and silence is anchored on.
    The same input gives the same model; ``seed`` is there for models that draw numbers.
    """
    del seed
    time = np.asarray(time_s, np.float64)
    y = np.asarray(targets, np.float64)
    w = np.ones(len(y)) if weight is None else np.asarray(weight, np.float64)
    if not len(time) == len(y) == len(w) or y.ndim != 2 or y.shape[1] != len(names):
        raise ValueError(f"{len(time)} instants, targets {y.shape}, {len(names)} names")
    measured = opening is not None
    gap = np.asarray(opening, np.float64) if measured else _proxy_opening(y, names)
    known = np.isfinite(gap) & np.isfinite(y).all(axis=1)
    time, y, w, gap = time[known], y[known], w[known], gap[known]
    design = kernel_design(features, time)
    wanted = np.hstack((y, gap[:, None])) if measured else y
    fitted, predicted = cross_validated(design.features, wanted, w, time)
    if np.ptp(time) < SHORT_S:  # but for the opening: lips that hardly open are no speech
        k = len(names)
        fitted[:, :k] = shrunk(fitted[:, :k], predicted[:, :k], y, w)
    low, high = np.quantile(y, (0.01, 0.99), axis=0)
    margin = LIMIT_MARGIN * (high - low)
    shaping = shape_opening(y, gap, w, predicted[:, -1] if measured else None)
    return SpeechMotion(
        tuple(names), features.encoder, design.regression(fitted), shaping,
        closed_anchor(y, gap, shaping, measured),
        torch.from_numpy(np.stack((low - margin, high + margin), -1)).float(),
        Repertoire.of(y),
    )  # fmt: skip


def _proxy_opening(targets: Array, names: tuple[str, ...]) -> Array:
    """Something that grows with the mouth's opening, for callers without landmarks."""
    if "jawOpen" not in names:
        return np.abs(targets).sum(1)
    opening = targets[:, names.index("jawOpen")]
    return opening - targets[:, names.index("mouthClose")] if "mouthClose" in names else opening


def shape_opening(
    targets: Array, opening: Array, weight: Array, predicted: Array | None
) -> Shaping:
    """How coefficients are brought to an opening, and which opening a prediction asks for.

    ``predicted`` [T] are held-out predictions of ``opening`` [T]; None where the opening is not
    measured, and then nothing is corrected.
    """
    reading = ridge(targets, opening[:, None], weight, (READING_PENALTY,))[0][:, 0]
    mean = weight @ targets / weight.sum()
    moved = ((targets - mean) * weight[:, None]).T @ ((targets - mean) @ reading[:-1])
    gain = float(moved @ reading[:-1])
    direction = moved / gain if gain > 1e-12 else np.zeros(targets.shape[1])
    knots, wanted = np.zeros(0), np.zeros(0)
    if predicted is not None:
        knots, wanted = _opening_map(predicted, opening)
    parts = (reading, direction, knots, wanted)
    return Shaping(*(torch.from_numpy(np.asarray(part)).float() for part in parts))


def _opening_map(seen: Array, real: Array) -> tuple[Array, Array]:
    """Knots and targets of the correction: what is likely closed closes, the rest hardly changes.

    The lips close below a prediction between the one that separates closed from open frames best
    and the one that closes them as often as in the clip (``CUT_SHARE``). The widest openings are
    brought half-way to the clip's. Predictions that do not tell closed lips from open ones, as
    those from a few seconds of footage, are left as they are: a cut among them closes lips that
    speak.
    """
    if separation(seen, real) - chance_separation(real) < LEAST_SEPARATION:
        return (np.zeros(0),) * 2
    low, high = np.quantile(seen, (0.02, 0.98))
    top = max(high, 0.5 * (high + float(np.quantile(real, 0.98))))
    often = float((real < CLOSED_OPENING).mean())
    best, usual = closure_threshold(seen, real), float(np.quantile(seen, often))
    cut = best + CUT_SHARE * (usual - best)
    if low < cut < high - CLOSING_STEP:
        knots = [low, cut, cut + CLOSING_STEP, high]
        return np.array(knots), np.array(
            [min(REST_OPENING, low), CUT_OPENING, max(cut + CLOSING_STEP, CLOSED_OPENING), top]
        )
    return (np.array([low, high]), np.array([low, top])) if low < high else (np.zeros(0),) * 2


def closure_threshold(seen: Array, real: Array) -> float:
    """The predicted opening that best separates closed from open lips (balanced accuracy); NaN
    where there are hardly any of either."""
    hit, wrong = _closing(seen, real)
    return float(np.sort(seen)[np.argmax(hit - wrong)]) if len(hit) else float("nan")


def separation(seen: Array, real: Array) -> float:
    """How well that threshold tells closed from open lips: 1 always, 0 by chance, NaN unknown."""
    hit, wrong = _closing(seen, real)
    return float((hit - wrong).max()) if len(hit) else float("nan")


def chance_separation(real: Array) -> float:
    """What the best threshold of predictions that know nothing separates, about: frames of one
    closure are no independent witnesses, so it falls with the number of closures."""
    closed = (real < CLOSED_OPENING).astype(int)
    closures = int((np.diff(closed, prepend=0) == 1).sum())
    return 1.0 / np.sqrt(max(closures, 1))


def _closing(seen: Array, real: Array) -> tuple[Array, Array]:
    """Shares [T] of the closed and of the open frames that each threshold in turn would close."""
    closed = real < CLOSED_OPENING
    if closed.sum() < 5 or (~closed).sum() < 5:
        return np.zeros(0), np.zeros(0)
    order = np.argsort(seen, kind="stable")
    return np.cumsum(closed[order]) / closed.sum(), np.cumsum(~closed[order]) / (~closed).sum()


def closed_anchor(targets: Array, opening: Array, shaping: Shaping, measured: bool) -> Tensor:
    """The face [K] that silence shows: the mean of the closed frames, lips brought together."""
    closed = opening < CLOSED_OPENING if measured else np.zeros(len(opening), bool)
    if closed.sum() < 5:
        closed = opening <= np.quantile(opening, 0.05)
    anchor = torch.from_numpy(targets[closed].mean(0)).float()
    if measured:
        gap = float(shaping.opening(anchor[None])[0])
        anchor = anchor + min(0.0, REST_OPENING - gap) * shaping.direction
    return anchor
