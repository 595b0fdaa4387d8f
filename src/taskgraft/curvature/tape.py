"""Record which torch call of a forward pass read which parameter, whatever module made the call.

Calls are recorded, not modules: timm's subclasses pad, fuse activations and join bias terms inside their
forward methods, but all of them end in the same few torch functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from taskgraft.curvature.layer_rules import OPERATORS, RESHAPES, RULES, ParameterUse


class Call(NamedTuple):
    """A call that has a rule: role -> parameter name, what the rule read, rows of the output, version of the input."""

    names: dict[str, str]
    use: ParameterUse
    rows: int
    version: int


Receive = Callable[[Call, Tensor], None]  # (call, gradient at its output)


class Tape(TorchFunctionMode):
    """A context in which the calls that read parameters are recorded.

    With `receive`, the gradient at the output of each known call is handed over during backward, and
    `leaves` are the tensors to differentiate by; the parameters need no gradient, so autograd computes none.
    Without, `calls` and `unknown` (names read by calls without a rule) describe the model.
    """

    def __init__(self, params: Mapping[str, Tensor], receive: Receive | None = None) -> None:
        """Watch `params` (name -> the tensor that the model holds)."""
        super().__init__()
        self._names = {id(value): name for name, value in params.items()}
        self._views: list[Tensor] = []  # kept alive, else an id could come back as another tensor
        self._receive = receive
        self.calls: list[Call] = []
        self.unknown: set[str] = set()
        self.leaves: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the call; record it if it reads a watched parameter and returns a tensor made from it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        used = [self._names[id(x)] for x in _tensors((args, kwargs)) if id(x) in self._names]
        if not used or (args and out is args[0]) or next(_tensors(out), None) is None:
            return out  # such as reading a parameter's shape
        if func in RESHAPES and args and id(args[0]) in self._names:
            self._names[id(out)] = used[0]
            self._views.append(out)
            return out
        use = self._read(func, args, kwargs)
        if use is None or not isinstance(out, Tensor) or not torch.is_grad_enabled():
            self.unknown.update(used)
            return out
        names = {r: self._names[id(p)] for r, p in use.params.items() if id(p) in self._names}
        if sorted(names.values()) != sorted(used):
            self.unknown.update(used)
            return out
        version = 0 if use.input is None else use.input._version
        return self._record(Call(names, use, out.shape[0] if out.dim() else 0, version), out)

    def _read(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> ParameterUse | None:
        if func in RULES:
            return RULES[func](*args, **kwargs)
        if func in OPERATORS and not kwargs:
            return OPERATORS[func](*args, is_parameter=lambda x: id(x) in self._names)
        return None

    def _record(self, call: Call, out: Tensor) -> Tensor:
        receive = self._receive
        if receive is None:
            self.calls.append(call)
            return out
        if not out.requires_grad:
            self.leaves.append(out.detach().requires_grad_())
            out = self.leaves[-1].clone()  # a copy, because the model may change it in place
        # The hook sees the gradient at the value as it is now, even if the model changes it in place later.
        out.register_hook(lambda g: receive(call, g))
        return out


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
