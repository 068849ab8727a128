"""What is said, read off the speech encoder's features: what every clip may know beforehand.

A few seconds of footage do not tell which of an encoder's features are about the lips. The axes
here do: linear readings, learned once from synthetic voices whose phones are known
(``benchmarks/speech_sounds.py``), of groups of phones and of the mouth shapes that go with
them. What a person's lips make of them is still learned from the person.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

NAMES = (
    "closed", "lip on teeth", "wide open", "half open", "spread", "round", "hissing",
    "tip of tongue", "back of tongue", "r", "pause",
    "jawOpen", "mouthPucker", "mouthFunnel", "mouthSmile", "mouthPress", "mouthRollLower",
)  # fmt: skip
"""What the axes read: eleven groups of phones, six mouth shapes."""
FILE = Path(str(resources.files("gsavatar"))) / "data" / "speech_sounds.npz"


@cache
def sound_axes(encoder: str) -> Tensor:
    """Axes [A, 17] in an encoder's features, less their mean: the readings vary by about 1."""
    with np.load(FILE, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays[encoder].astype(np.float32))
