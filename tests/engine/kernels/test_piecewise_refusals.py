"""Which operators the breakpoints kernel refuses, and which have kinks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from service.engine.graph.operators import NotPiecewiseLinear, has_kinks, kinked_operators
from service.engine.kernels.piecewise import PiecewiseLinear

Inner = Callable[[Tensor], Tensor]
ROW, COLUMNS = torch.linspace(-1, 1, 8).double(), torch.linspace(-1, 1, 40).double().reshape(8, 5)


def _reused(rows: Tensor) -> Tensor:
    changed = functional.relu(rows, inplace=True)
    return rows + changed


def _reused_view(rows: Tensor) -> Tensor:
    return rows.view(-1, 8).relu_() + rows


REFUSED: dict[str, tuple[str, Inner]] = {
    "a module": ("GELU", nn.GELU()),
    "elu": ("elu", functional.elu),
    "hardswish": ("Hardswish", nn.Hardswish()),
    "softmax": ("softmax", lambda h: functional.softmax(h, 1)),
    "Tensor.softmax": ("softmax", lambda h: h.softmax(dim=1)),
    "sigmoid twice": ("sigmoid", lambda h: torch.sigmoid(torch.sigmoid(h))),
    "LayerNorm": ("LayerNorm", nn.LayerNorm(8)),
    "product": ("mul", lambda h: h * torch.relu(h)),
    "square": ("mul", lambda h: h * h),
    "Tensor.mul": ("mul", lambda h: h.mul(h)),
    "power": ("pow", lambda h: h**2),
    "matmul": ("matmul", lambda h: h.view(-1, 2, 4) @ h.view(-1, 4, 2)),
    "quotient": ("truediv", lambda h: h / h.abs()),
    "reciprocal": ("div", lambda h: torch.div(1, h)),
    "rounded quotient": ("div", lambda h: torch.div(h, 2, rounding_mode="floor")),
    "weights that vary": ("linear", lambda h: functional.linear(ROW, h)),
    "a jump": ("threshold", lambda h: functional.threshold(h, 0.1, 0.5)),
    "hardshrink": ("Hardshrink", nn.Hardshrink()),
    "floor": ("floor", torch.floor),
    "integers": ("to", lambda h: h.to(torch.int64)),
    "comparison": ("gt", lambda h: torch.where(h > 0, h, 0.1 * h)),
    "sort": ("sort", lambda h: torch.sort(h, 1)[0]),
    "places of maxima": ("max", lambda h: h.max(1)[1]),
    "places in pools": ("MaxPool1d", nn.MaxPool1d(2, return_indices=True)),
    "detached": ("detach", lambda h: h.detach()),
    "NaN in a sum": ("isnan", lambda h: h + torch.isnan(h)),
    "batch norm over the chunk": ("batch_norm", lambda h: functional.batch_norm(h, None, None, training=True)),
    "BatchNorm without statistics": ("BatchNorm1d", nn.BatchNorm1d(8, track_running_stats=False)),
    "dropout in training": ("dropout", lambda h: functional.dropout(h)),
    "reused after a change": ("relu", _reused),
    "base reused after a change": ("relu_", _reused_view),
    "sum of all": ("sum", lambda h: h - h.sum()),
    "mean over rows": ("mean", lambda h: h - h.mean(0)),
    "mean over rows from the end": ("mean", lambda h: h - h.mean(-2, keepdim=True)),
    "maximum of all": ("max", lambda h: h - torch.max(h)),
    "amax of all": ("amax", lambda h: h - torch.amax(h, ())),
    "amax over rows": ("amax", lambda h: h - h.amax(dim=0)),
    "cumsum over rows": ("cumsum", lambda h: h.cumsum(0)),
    "flatten": ("flatten", torch.flatten),
    "a fixed number of rows": ("view", lambda h: h.view(4, -1)),
    "rows cut": ("view", lambda h: h.view(-1, 4)),
    "rows joined": ("reshape", lambda h: h.reshape(-1)),
    "arithmetic with rows": ("mul", lambda h: h.view(h.size(0) * 2, 4)),
    "transpose": ("transpose", lambda h: h.transpose(0, 1)),
    "T": ("T", lambda h: h.T),
    "permute": ("permute", lambda h: h.permute(1, 0)),
    "cat": ("cat", lambda h: torch.cat([h, h])),
    "stack": ("stack", lambda h: torch.stack([h, h], -3)),
    "unsqueeze": ("unsqueeze", lambda h: h.unsqueeze(0)),
    "chunk": ("chunk", lambda h: h.chunk(2)[0]),
    "one row": ("getitem", lambda h: h - h[0]),
    "some rows": ("getitem", lambda h: h[:3]),
    "rows from the end": ("getitem", lambda h: h - h[..., 0, :]),
    "rows repeated": ("repeat", lambda h: h.repeat(2, 1)),
    "rows padded": ("pad", lambda h: functional.pad(h, (0, 0, 1, -1))),
    "rows flipped": ("flip", lambda h: h.flip(-2)),
    "rows by columns": ("sub", lambda h: h.unsqueeze(1) - h),
    "matmul over rows": ("matmul", lambda h: COLUMNS[:2] @ h),
}  # fmt: skip


class First(nn.Module):
    def __init__(self, inner: Inner) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(8, 8).double(), inner

    def forward(self, rows: Tensor) -> Tensor:
        return self.inner(self.first(rows))


@pytest.mark.parametrize("name", REFUSED)
def test_other_operators_are_refused_and_named(name: str) -> None:
    operator_name, inner = REFUSED[name]
    with pytest.raises(NotPiecewiseLinear, match=f"^the operator {operator_name} is not piecewise linear$"):
        PiecewiseLinear(fx.symbolic_trace(First(inner).eval()), shape=(8,))


@pytest.mark.parametrize(("inner", "kinked"), [
    (nn.Identity(), ()),
    (nn.GELU(), ()),
    (lambda h: torch.softmax(h.view(h.size(0) // 2 * 2, 8), 1).mean(1), ()),
    (lambda h: h.clamp(None, None), ()),
    (nn.ELU(), ()),
    (nn.ELU(0.5), ("ELU",)),
    (nn.Sequential(nn.ReLU(), nn.Tanh(), nn.Hardswish(), nn.ReLU()), ("ReLU", "Hardswish")),
    (lambda h: torch.relu(h).relu_().clip(0, 1) + abs(h), ("relu", "relu_", "clip", "abs")),
    (lambda h: torch.maximum(h.max(1, keepdim=True).values, torch.max(h, ROW)), ("max", "maximum")),
    (lambda h: torch.where(h > 1, h, h.exp()), ("gt",)),
    (lambda h: h.norm(p=1, dim=1), ("norm",)),
    (lambda h: h.norm(dim=1), ()),
    (lambda h: h + torch.relu(-ROW), ()),
])  # fmt: skip
def test_kinked_operators_are_listed_in_order(inner: Inner, kinked: tuple[str, ...]) -> None:
    network = fx.symbolic_trace(First(inner).eval())
    assert kinked_operators(network) == kinked
    assert has_kinks(network) == bool(kinked)
