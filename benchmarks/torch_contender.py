"""torch's norms, eager or compiled, on the same numbers; features last in memory, as its `channels_last`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.contenders import EPSILON, Contender, numbers
from benchmarks.shapes import Case


def torch_norm(case: Case, dtype: str) -> Contender:
    x, dy, parameters = numbers(case, dtype)
    x, dy = (torch.from_dlpack(a) for a in (x, dy))
    if case.norm not in ("layer_norm", "rms_norm"):
        x, dy = (a.movedim(-1, 1) for a in (x, dy))
    p = {name: torch.tensor(np.asarray(value)) for name, value in parameters.items()}
    if case.norm == "rms_norm":
        p = {name: value.to(x.dtype) for name, value in p.items()}  # beside another dtype it loses its fused path
    state = (torch.zeros(case.features), torch.ones(case.features)) if case.norm == "batch_norm" else None

    def function(x, p, s):
        if case.norm == "layer_norm":
            return F.layer_norm(x, (case.features,), p["scale"], p["bias"], EPSILON)
        if case.norm == "rms_norm":
            return F.rms_norm(x, (case.features,), p["scale"], EPSILON)
        if case.norm == "batch_norm":
            return F.batch_norm(x, *s, p["scale"], p["bias"], training=True, momentum=0.1, eps=EPSILON)
        if case.norm == "group_norm":
            return F.group_norm(x, case.groups, p["scale"], p["bias"], EPSILON)
        return F.instance_norm(x, weight=p["scale"], bias=p["bias"], eps=EPSILON)

    return Contender(function, x, dy, p, state)


def torch_call(contender: Contender, mode: str, *, compile: bool = False) -> Callable[[], Any]:
    """One call of a mode, to be timed."""
    function, x, dy, parameters, state = contender
    function = torch.compile(function, dynamic=False) if compile else function

    def forward():
        with torch.no_grad():
            return function(x, parameters, state)

    leaves = [a.detach().requires_grad_() for a in (x, *parameters.values())]

    def forward_and_backward():
        y = function(leaves[0], dict(zip(parameters, leaves[1:], strict=True)), state)
        return y, torch.autograd.grad(y, leaves, dy)

    return {"forward": forward, "forward+backward": forward_and_backward}[mode]
