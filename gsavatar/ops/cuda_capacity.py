"""How many (Gaussian, tile) pairs the buffers of a device hold, and what its steps reported.

Threads may draw on one device at a time: the record of a device has a lock.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gsavatar.ops import check

FIRST_CAPACITY_PER_GAUSSIAN = 8
LEAST_PAIRS = 1 << 16
HEADROOM = 1.5
MOST_PAIRS = 2**31 - 1
CAPTURED_CALLS = 32
"""Calls of the rasterizer that captured steps of one device may hold."""


@dataclass
class Capacity:
    """How many pairs one device's buffers hold, and what its last steps reported."""

    pairs: int = 0
    pending: list[tuple[Any, Tensor]] = field(default_factory=list)
    overflow: bool = False
    replayed: Tensor | None = None  # [CAPTURED_CALLS, 4] int32 that captured calls write, pinned
    captured: int = 0
    memory: int | None = None  # bytes of the device, None if they do not matter
    lock: Any = field(default_factory=threading.RLock, repr=False, compare=False)

    def begin(self, gaussians: int) -> bool:
        """Whether this is the first step, of so many Gaussians: then there is a first guess."""
        with self.lock:
            first = self.pairs == 0
            if first:
                wanted = max(FIRST_CAPACITY_PER_GAUSSIAN * gaussians, LEAST_PAIRS)
                self.pairs = min(wanted, self._most())
            return first

    def _most(self) -> int:
        return MOST_PAIRS if self.memory is None else check.most_pairs(self.memory)

    def report(self, wanted: int, code: int) -> None:
        """Takes the status of a finished step. Raises ``ValueError`` for malformed input, and for
        more pairs than the device has memory for."""
        with self.lock:
            if wanted > self.pairs and code != check.TOO_MANY:
                if self.memory is not None:
                    check.pairs_fit(wanted, self.memory)
                self.pairs = min(int(wanted * HEADROOM), self._most())
                self.overflow = True
        check.raise_for(code)

    def learn(self, status: Tensor) -> bool:
        """Waits for the first step's status; whether it did not fit and is to be repeated."""
        with self.lock:
            self.replayed = torch.zeros(CAPTURED_CALLS, 4, dtype=torch.int32, pin_memory=True)
        wanted, code = status[:2].tolist()
        self.report(wanted, code)
        return self.taken()

    def watch(self, status: Tensor, stream: Any) -> None:
        """Has the status of a step copied, to be looked at when it has arrived."""
        copy = torch.empty(4, dtype=torch.int32, pin_memory=True)
        copy.copy_(status, non_blocking=True)
        event = torch.cuda.Event()
        event.record(stream)
        with self.lock:
            self.pending.append((event, copy))

    def poll(self) -> None:
        """Takes the status of every step the device has finished, without waiting."""
        with self.lock:
            while self.pending and self.pending[0][0].query():
                _, status = self.pending.pop(0)
                self.report(int(status[0]), int(status[1]))
            if self.replayed is None:
                return
            for row in self.replayed[: self.captured]:
                wanted, code = int(row[0]), int(row[1])
                row[1] = 0  # told once
                self.report(wanted, code)

    def taken(self) -> bool:
        """Whether a step did not fit since the last question."""
        with self.lock:
            seen, self.overflow = self.overflow, False
            return seen

    def next_captured(self) -> Tensor:
        """Where a call that is being captured leaves its status at every replay."""
        with self.lock:
            if self.replayed is None:
                raise RuntimeError("run the step at least once before it is captured in a graph")
            if self.captured == len(self.replayed):
                raise RuntimeError(
                    f"graphs hold more than {CAPTURED_CALLS} calls of the rasterizer; "
                    "call forget_captured before a step is captured anew"
                )
            self.captured += 1
            return self.replayed[self.captured - 1]

    def forget(self) -> None:
        """Stops watching captured calls."""
        with self.lock:
            self.captured = 0
            if self.replayed is not None:
                self.replayed.zero_()


_CAPACITIES: dict[int, Capacity] = {}
_LOCK = threading.Lock()


def capacity_of(device: torch.device) -> Capacity:
    """The record of one device, made on first use."""
    index = device.index if device.index is not None else torch.cuda.current_device()
    with _LOCK:
        if index not in _CAPACITIES:
            memory = torch.cuda.get_device_properties(index).total_memory
            _CAPACITIES[index] = Capacity(memory=memory)
        return _CAPACITIES[index]


def overflowed(device: torch.device) -> bool:
    """Whether a step since the last question did not fit; a trainer then repeats it."""
    capacity = capacity_of(device)
    capacity.poll()
    return capacity.taken()


def forget_captured(device: torch.device) -> None:
    """Stops watching the graphs captured so far: they are replayed no more."""
    capacity_of(device).forget()
