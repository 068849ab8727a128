"""What a motion field hears: the speech tokens around an instant, in the same layout everywhere.

The layout is TalkingGaussian's (Li et al. 2024): eight windows of 16 tokens, two tokens apart, from
0.32 s before the instant to 0.26 s after it. Where that reaches beyond what a stream knows with the
instant (``last_heard``), the last known token stands, in training as in rendering.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsavatar.speech_features import (
    TOKEN_RATE,
    FeatureSource,
    SpeechFeatures,
    instants,
    last_heard,
)
from gsavatar.speech_regression import TokenInputs, between_tokens, token_inputs

WINDOW_TOKENS = 16
STRIDE_TOKENS = 2
WINDOWS = 8
PAST_TOKENS = 16
TOKENS = WINDOW_TOKENS + STRIDE_TOKENS * (WINDOWS - 1)
"""L, the tokens of one instant."""
COMPONENTS = 64
"""Numbers a token is reduced to: enough for the lips, and small networks."""


@dataclass(frozen=True)
class Hearing:
    """How sound becomes ``Drive.audio``: tokens without their mean, on principal components."""

    encoder: str
    means: Tensor  # [P, A], of the tokens at each place of a block
    components: Tensor  # [A, C]
    silence: Tensor  # [C], what digital silence becomes

    @property
    def channels(self) -> int:
        """C, the numbers of one token."""
        return self.components.shape[1]

    def __call__(self, source: FeatureSource, time_s: Any) -> Tensor:
        """Tokens [N, L, C] around instants [N] in seconds.

        Raises ``ValueError`` if the features come from another encoder.
        """
        time = instants(source, self.encoder, time_s)
        if len(time) == 0:
            return torch.zeros(0, TOKENS, self.channels)
        left, right, share = between_tokens(source, time)
        reach = torch.arange(-PAST_TOKENS, TOKENS - PAST_TOKENS)
        known = last_heard(source.encoder, left)[:, None]
        before = torch.minimum(left[:, None] + reach, known)
        after = torch.minimum(right[:, None] + reach, known)
        first, last = int(before.min()), int(after.max())
        inputs = TokenInputs(self.means, self.components, torch.ones(1))
        tokens = inputs.at_tokens(source, first, last + 1 - first)
        return torch.lerp(tokens[before - first], tokens[after - first], share[..., None])

    def reach(self, time_s: float) -> tuple[int, int]:
        """The first token an instant reads, and how many must be known."""
        left = int(np.floor(time_s * TOKEN_RATE))
        known = int(last_heard(self.encoder, torch.tensor(left)))
        return left - PAST_TOKENS, min(left + TOKENS - PAST_TOKENS, known) + 1


def learn_hearing(features: SpeechFeatures, time_s: Any) -> Hearing:
    """The hearing that suits the tokens of a clip's training instants [T], from them alone."""
    time = np.asarray(time_s, np.float64)
    found = token_inputs(features, time, COMPONENTS, 1, 1.0)
    silence = (features.silence - found.means.mean(0)) @ found.components
    return Hearing(features.encoder, found.means, found.components, silence)
