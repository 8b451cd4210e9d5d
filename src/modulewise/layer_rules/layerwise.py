"""Rules that shadow the forward of single layers, and a report of which layers those are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..objective import LayerRule
from .passing import passed_back

__all__ = ["LayerwiseRule", "RuleReport", "WeightRule", "layers_of", "report_of"]

# Exact types: a subclass may compute something else (standardised weights, quantisation), whose transpose is
# not its weight's.
_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


@dataclass(frozen=True)
class RuleReport:
    """Which modules a rule changes.

    Args:
        converted: names of the layers through which errors pass by the rule.
        left: the other modules with parameters of their own, which keep the chain rule, with the reason.
    """

    converted: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        left = [f"  {name or 'the model'}: {reason}" for name, reason in self.left.items()]
        return "\n".join([f"converted {len(self.converted)}, left {len(left)}", *left])


def layers_of(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, nn.Module]:
    """The layers that rules change among (name, module) pairs, each once, under its first name.

    >>> list(layers_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Conv1d(1, 1, 1)).named_modules()))
    ['0', '2']
    """
    found: dict[nn.Module, str] = {}
    for name, module in modules:
        if type(module) in _LAYERS:
            found.setdefault(module, name)
    return {name: module for module, name in found.items()}


def _reason(module: nn.Module) -> str:
    """Why a module with parameters keeps the chain rule."""
    kind = type(module).__name__
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return "attention computes with its weight itself, this module is never called"
    if isinstance(module, nn.MultiheadAttention):
        return "its projections are packed into one operation; attention made of nn.Linear is converted"
    if isinstance(module, _LAYERS):
        return f"{kind} is a subclass of a layer, which may compute something else"
    return f"{kind} is neither linear nor a convolution"


def report_of(modules: Iterable[tuple[str, nn.Module]]) -> RuleReport:
    """What a rule for layers changes among (name, module) pairs, and why the rest keeps the chain rule."""
    named: dict[nn.Module, str] = {}
    for name, module in modules:
        named.setdefault(module, name)
    owners = {name: module for module, name in named.items() if any(True for _ in module.parameters(recurse=False))}
    return RuleReport(
        converted=tuple(layers_of((name, module) for module, name in named.items())),
        left={name: _reason(module) for name, module in owners.items() if type(module) not in _LAYERS},
    )


class LayerwiseRule(LayerRule, ABC):
    """A rule for every linear layer and convolution, plain or transposed; of exactly these classes of torch.

    For the length of a forward each layer's own `forward` is shadowed: the value is the same, the graph to the
    layer's input is the rule's, and the weight's gradient stays the chain rule's. Hooks run as they would. An
    input that needs no gradient takes the plain forward. A layer that the model does not call, but whose
    weight it uses in a function, is not seen.
    """

    @abstractmethod
    def prepare(self, name: str, module: nn.Module) -> None:
        """Make ready what the layer needs, before any forward is shadowed."""

    @abstractmethod
    def passed(self, name: str, module: nn.Module, y: Tensor, x: Tensor) -> Tensor:
        """The output y, which the layer made of x without its graph, with the rule's way back to x."""

    @contextmanager
    def installed(self, modules: Iterable[tuple[str, nn.Module]]) -> Iterator[None]:
        """Shadow the layers' forwards for the duration of a `with` block."""
        undo: dict[nn.Module, Any] = {}
        try:
            for name, module in layers_of(modules).items():
                self.prepare(name, module)
                forward = self._shadow(name, module)
                undo[module] = module.__dict__.get("forward")
                module.__dict__["forward"] = forward
            yield
        finally:
            for module, previous in undo.items():
                if previous is None:
                    del module.__dict__["forward"]
                else:
                    module.__dict__["forward"] = previous

    def report(self, modules: Iterable[tuple[str, nn.Module]]) -> RuleReport:
        """Which of these modules the rule changes, and which modules with parameters it leaves, and why."""
        return report_of(modules)

    def _shadow(self, name: str, module: nn.Module) -> Callable[..., Tensor]:
        """A forward with the same value, whose error passes back by the rule."""
        original: Callable[..., Tensor] = module.forward

        def forward(input: Tensor, output_size: list[int] | None = None) -> Tensor:
            more = () if output_size is None else (output_size,)
            if not (torch.is_grad_enabled() and input.requires_grad):
                return original(input, *more)
            return self.passed(name, module, original(input.detach(), *more), input)

        return forward


class WeightRule(LayerwiseRule, ABC):
    """A rule by which errors pass back through B, of the shape of the layer's weight: delta_below = B^T delta."""

    @abstractmethod
    def weight(self, name: str, module: nn.Module) -> Tensor:
        """The layer's B as it is now."""

    def prepare(self, name: str, module: nn.Module) -> None:
        """Draw the layer's B, and refuse one that does not fit."""
        self.weight(name, module)

    def passed(self, name: str, module: nn.Module, y: Tensor, x: Tensor) -> Tensor:
        """The output y with a way back to x by B."""
        return passed_back(module, y, x, self.weight(name, module))
