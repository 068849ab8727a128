"""Regression from the tokens around an instant to a few numbers: kernel ridge, cross-validated.

A token's place in its block shifts the encoder's features, so the clip's mean at each place is
taken away first. What remains is projected on principal components, weighted down away from the
instant, and compared with a few hundred instants of the clip by a Gaussian kernel. Beside the
components stand the readings of ``speech_sounds``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsavatar.speech_encoders import BLOCK_TOKENS
from gsavatar.speech_features import WHISPER, FeatureSource, SpeechFeatures, last_heard
from gsavatar.speech_sounds import sound_axes

Array = NDArray[np.float64]

CONTEXT_TOKENS = 9
COMPONENTS = 64
TAPER_TOKENS = 2.0
CENTRES = 512
"""Instants of the clip that the kernel compares with: bounds time and the size of an avatar."""
MEDIAN_SAMPLE = 512
SOUNDS_GAIN = 2.0
"""Weight of the readings of what is said (``speech_sounds``) beside a principal component's 1."""
EIGEN_FLOOR = 1e-7
FOLDS = 5
GUARD_S = 0.5
"""Training frames this close to a held-out fold are left out: neighbours look alike."""
PENALTIES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Ridge penalties per frame, tried by cross-validation."""


@dataclass(frozen=True)
class TokenInputs:
    """How tokens become the numbers a regression reads."""

    means: Tensor  # [P, A], of the tokens at each place of a block (P = 1 without blocks)
    components: Tensor  # [A, C]
    taper: Tensor  # [L], weight of each token around the instant

    def at_tokens(self, source: FeatureSource, first: int, count: int) -> Tensor:
        """Inputs [count, L * C] at tokens first, first + 1, ... (also beyond the ends).

        Where a token's context reaches beyond what is known with it (``last_heard``), the last
        known token stands.
        """
        half = len(self.taper) // 2
        token = torch.arange(first, first + count)
        known = last_heard(source.encoder, token)
        start, end = first - half, min(first + count - 1 + half, int(known[-1]))
        rows = torch.arange(start, end + 1)
        outside = (rows < 0) | (rows >= source.length)
        means = self.means[rows % len(self.means)]
        means = torch.where(outside[:, None], self.means.mean(0), means)
        small = (source.rows(start, len(rows)) - means) @ self.components
        around = token[:, None] + torch.arange(-half, half + 1)
        around = torch.minimum(around, known[:, None]) - start
        return (small[around] * self.taper[:, None]).reshape(count, -1)

    def at_times(self, source: FeatureSource, time_s: Array) -> Array:
        """Inputs [T, L * C] at any instants [T], linear between the tokens."""
        left, right, share = between_tokens(source, torch.from_numpy(time_s))
        first = int(left.min())
        tokens = self.at_tokens(source, first, int(right.max()) + 1 - first)
        mixed = tokens[left - first] * (1.0 - share) + tokens[right - first] * share
        return mixed.double().numpy()


def between_tokens(source: FeatureSource, time_s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens [N] before and after instants [N], and how far [N, 1] the instant is on its way.

    At the end of a block the token after it is not known yet and the last one stands.
    """
    at = time_s * source.rate
    left = at.floor().long()
    right = torch.minimum(left + 1, last_heard(source.encoder, left))
    return left, right, (at - left).float()[:, None]


@dataclass(frozen=True)
class TokenRegression:
    """K numbers from the tokens around an instant."""

    inputs: TokenInputs
    centres: Tensor  # [M, L * C]
    weights: Tensor  # [M, K]
    bias: Tensor  # [K]

    def __call__(self, source: FeatureSource, first: int, count: int) -> Tensor:
        """Predictions [count, K] float32 at tokens first, first + 1, ..."""
        x = self.inputs.at_tokens(source, first, count)
        near = kernel(x.double(), self.centres.double())
        return (near @ self.weights.double()).float() + self.bias


def kernel(a: Tensor, b: Tensor) -> Tensor:
    """exp(-|a - b|^2) of rows [N, D] and [M, D], [N, M]."""
    square = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2.0 * a @ b.T
    return torch.exp(-square.clamp_min(0.0))


def token_inputs(
    features: SpeechFeatures, time_s: Array, components: int, context: int, taper: float
) -> TokenInputs:
    """The inputs that suit the tokens of a clip's span of time, from the features alone."""
    low = max(0, int(time_s.min() * features.rate) - context)
    high = int(time_s.max() * features.rate) + context
    tokens = features.values[low:high].double().numpy()
    places = BLOCK_TOKENS if features.encoder == WHISPER and len(tokens) >= 5 * BLOCK_TOKENS else 1
    place = np.arange(low, low + len(tokens)) % places
    means = np.stack([tokens[place == p].mean(0) for p in range(places)])
    centred = tokens - means[place]
    spread, axes = np.linalg.eigh(centred.T @ centred / len(tokens))
    kept = min(components, tokens.shape[1], max(1, len(tokens) // 4))
    # One scale for all: components keep their relative sizes, which is the regression's prior.
    axes = axes[:, ::-1][:, :kept] / np.sqrt(max(float(spread[::-1][:kept].mean()), 1e-12))
    offset = (np.arange(context) - context // 2) / taper
    parts = (means, axes, np.exp(-0.5 * offset**2))
    return TokenInputs(*(torch.from_numpy(part.astype(np.float32)) for part in parts))


@dataclass(frozen=True)
class KernelDesign:
    """A clip's frames as inputs of a linear ridge that equals a kernel ridge."""

    inputs: TokenInputs
    centres: Tensor  # [M, L * C]
    rotation: Array  # [M, R], kernel values to features
    features: Array  # [T, R]

    def regression(self, fitted: Array) -> TokenRegression:
        """The predictor of ridge weights [R + 1, K] whose last row is the bias."""
        weights, bias = self.rotation @ fitted[:-1], fitted[-1]
        return TokenRegression(
            self.inputs, self.centres,
            torch.from_numpy(weights).float(), torch.from_numpy(bias).float(),
        )  # fmt: skip


def with_sounds(inputs: TokenInputs, encoder: str) -> TokenInputs:
    """Inputs that also read what is said, which a short clip cannot find out by itself."""
    axes = SOUNDS_GAIN * sound_axes(encoder)
    return TokenInputs(inputs.means, torch.cat((inputs.components, axes), dim=1), inputs.taper)


def kernel_design(features: SpeechFeatures, time_s: Array) -> KernelDesign:
    """Kernel features of a clip's frames; nothing here looks at what is to be predicted."""
    inputs = token_inputs(features, time_s, COMPONENTS, CONTEXT_TOKENS, TAPER_TOKENS)
    inputs = with_sounds(inputs, features.encoder)
    x = inputs.at_times(features, time_s)
    sample = x[:: max(1, len(x) // MEDIAN_SAMPLE)]
    square = (sample**2).sum(1)
    distance = square[:, None] + square[None] - 2.0 * sample @ sample.T
    scale = 1.0 / np.sqrt(max(float(np.median(distance)), 1e-9))
    inputs = TokenInputs(inputs.means, inputs.components, inputs.taper * scale)
    rows = np.unique(np.linspace(0, len(x) - 1, min(len(x), CENTRES)).round().astype(int))
    # Half precision is what the avatar file keeps, so the fit sees the same centres.
    centres = torch.from_numpy(scale * x[rows]).half().double()
    spread, axes = np.linalg.eigh(kernel(centres, centres).numpy())
    kept = spread > EIGEN_FLOOR * spread[-1]
    rotation = axes[:, kept] / np.sqrt(spread[kept])
    values = kernel(torch.from_numpy(scale * x), centres).numpy() @ rotation
    return KernelDesign(inputs, centres.half(), rotation, values)


# Ridge


def ridge(
    inputs: Array, targets: Array, weight: Array, penalties: tuple[float, ...]
) -> list[Array]:
    """Weights with the bias as last row, [D + 1, K], for each penalty."""
    total = weight.sum()
    x_mean, y_mean = weight @ inputs / total, weight @ targets / total
    x, y = inputs - x_mean, targets - y_mean
    spread, axes = np.linalg.eigh((x * weight[:, None]).T @ x)
    moment = axes.T @ (x.T @ (y * weight[:, None]))
    found = []
    for penalty in penalties:
        w = axes @ (moment / (np.maximum(spread, 0.0) + penalty * total)[:, None])
        found.append(np.vstack((w, y_mean - x_mean @ w)))
    return found


def fold_edges(count: int, folds: int = FOLDS) -> list[tuple[int, int]]:
    """Equal chronological parts of a number of rows."""
    edges = np.linspace(0, count, folds + 1).astype(int)
    return [(int(a), int(b)) for a, b in pairwise(edges) if b > a]


def far_from(time_s: Array, start: int, stop: int) -> NDArray[np.bool_]:
    """Frames [T] that may teach what predicts the frames start ... stop - 1."""
    far = (time_s < time_s[start] - GUARD_S) | (time_s > time_s[stop - 1] + GUARD_S)
    if far.sum() < 10:
        far = np.ones(len(time_s), bool)
        far[start:stop] = False
    return np.asarray(far)


def held_out(
    inputs: Array, targets: Array, weight: Array, time_s: Array, penalties: tuple[float, ...]
) -> Array:
    """Predictions [len(penalties), T, K] of each chronological fold by a model of the others."""
    result = np.zeros((len(penalties), *targets.shape))
    for a, b in fold_edges(len(targets)):
        far = far_from(time_s, a, b)
        for i, w in enumerate(ridge(inputs[far], targets[far], weight[far], penalties)):
            result[i, a:b] = inputs[a:b] @ w[:-1] + w[-1]
    return result


def shrunk(fitted: Array, predicted: Array, targets: Array, weight: Array) -> Array:
    """Ridge weights [D + 1, K], each target's drawn towards its mean by as much as held-out
    predictions [T, K] went too far.

    A few seconds do not tell a smile that came with a sentence from one that belongs to its sounds.
    """
    mean = weight @ targets / weight.sum()
    off = predicted - mean
    power = np.maximum(weight @ off**2, 1e-12)
    gain = np.clip(weight @ (off * (targets - mean)) / power, 0.0, 1.0)
    less = gain * fitted
    less[-1] += (1.0 - gain) * mean
    return less


def cross_validated(
    inputs: Array, targets: Array, weight: Array, time_s: Array
) -> tuple[Array, Array]:
    """Ridge weights [D + 1, K], each target with the penalty that suits it, and its held-out
    predictions [T, K]."""
    tried = held_out(inputs, targets, weight, time_s, PENALTIES)
    errors = np.stack([weight @ (guess - targets) ** 2 for guess in tried])
    best = errors.argmin(axis=0)
    columns = np.arange(targets.shape[1])
    fitted = np.stack(ridge(inputs, targets, weight, PENALTIES))
    return fitted[best, :, columns].T, tried[best, :, columns].T
