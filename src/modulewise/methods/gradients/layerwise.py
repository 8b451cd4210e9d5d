"""What methods with a rule for single layers share: refusals, seeds, and the chain rule between parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ...errors import MethodError
from ...layer_rules import layers_of
from ...objective import LayerRule, Objective, Site
from ..reference.backprop import ChainRule

__all__ = ["chain_rule_with", "layers_at", "rule_seed"]


def rule_seed() -> int:
    """A seed for a rule's draws, from torch's default generator, which is set for the part's heads."""
    return int(torch.randint(2**62, (), device="cpu"))


def layers_at(site: Site, method: str, *, instead: str = "cut elsewhere") -> dict[str, nn.Module]:
    """The layers of the part that a rule changes, by name; none where the site does not know its modules.

    Args:
        site: where the objective sits.
        method: the method's name, for the message.
        instead: what to do, for the message.

    Raises:
        MethodError: the part has modules, and no linear layer or convolution among them.
    """
    modules = [
        (f"{name}.{sub}" if name and sub else name or sub, module)
        for name, top in site.modules()
        for sub, module in top.named_modules()
    ]
    layers = layers_of(modules)
    if modules and not layers:
        kinds = ", ".join(dict.fromkeys(f"{name or 'the model'} ({type(module).__name__})" for name, module in modules))
        raise MethodError(
            f"{method} changes linear layers and convolutions, and part {site.part} has none of torch's own: "
            f"{kinds[:200]}; {instead}"
        )
    return layers


def chain_rule_with(site: Site, make: Callable[[int], LayerRule], method: str) -> Objective:
    """Backpropagation's share of the part, with a rule in its layers.

    Args:
        site: where the objective sits.
        make: seed -> the rule.
        method: the method's name, for messages.

    Raises:
        MethodError: the part has no layer that the rule changes.
    """
    layers_at(site, method)
    objective = ChainRule(site)
    objective.rule = make(rule_seed())
    return objective
