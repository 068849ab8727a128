"""Adam over named tensors whose rows may be added and removed between steps."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-15
BETAS = (0.9, 0.99)


class RowAdam:
    """Adam (Kingma and Ba 2015) for parameters that densification resizes.

    ``params`` are the leaf tensors themselves; they are updated in place. State is kept by name,
    so that it can be saved, restored and re-indexed together with the rows.
    """

    def __init__(self, params: dict[str, Tensor]) -> None:
        self.params = dict(params)
        groups = [{"params": [p], "name": name} for name, p in params.items()]
        self._adam = torch.optim.Adam(groups, betas=BETAS, eps=EPSILON, fused=True)

    def step(self, rates: dict[str, float]) -> None:
        """One update of the parameters named in ``rates``; the others keep value and state."""
        for group in self._adam.param_groups:
            name = group["name"]
            if name in rates:
                group["lr"] = rates[name]
            else:
                self.params[name].grad = None
        self._adam.step()

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        self._adam.zero_grad(set_to_none=True)

    def replace(self, name: str, value: Tensor, kept: Tensor, axis: int) -> None:
        """Puts ``value`` in place of a parameter; state of ``kept`` rows stays, new rows get none.

        The first ``len(kept)`` rows of ``value`` along ``axis`` are the old rows ``kept``.
        """
        old = self.params[name]
        new = value.detach().clone().requires_grad_()
        state = self._adam.state.pop(old, None)
        if state:
            shape = list(new.shape)
            shape[axis] -= len(kept)
            for key in ("exp_avg", "exp_avg_sq"):
                moments = state[key].index_select(axis, kept)
                state[key] = torch.cat((moments, moments.new_zeros(shape)), dim=axis)
            self._adam.state[new] = state
        self.params[name] = new
        for group in self._adam.param_groups:
            if group["name"] == name:
                group["params"] = [new]

    def state(self) -> dict[str, Tensor]:
        """Tensors that ``load`` restores exactly."""
        out: dict[str, Tensor] = {}
        for name, param in self.params.items():
            out[f"param.{name}"] = param.detach()
            for key, value in self._adam.state.get(param, {}).items():
                out[f"{key}.{name}"] = value
        return out

    @staticmethod
    def load(tensors: dict[str, Tensor], names: tuple[str, ...]) -> RowAdam:
        """The optimiser whose ``state`` was saved; ``names`` gives the order of its parameters."""
        adam = RowAdam({n: tensors[f"param.{n}"].clone().requires_grad_() for n in names})
        for name, param in adam.params.items():
            if f"step.{name}" in tensors:
                adam._adam.state[param] = {
                    key: tensors[f"{key}.{name}"].clone()
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
        return adam
