"""What a method's layer rules change in a model, and how far their feedback weights are from the weights."""

from __future__ import annotations

from ..layer_rules import LayerwiseRule, RuleReport, WeightRule, angle, layers_of
from ..trainer import Trainer

__all__ = ["converted", "feedback_angles"]


def converted(trainer: Trainer) -> RuleReport:
    """Which layers pass errors back by the method's rule, and which modules with parameters do not, and why.

    Args:
        trainer: with any method; one without layer rules converts nothing.

    >>> import torch
    >>> import modulewise as mw
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3))
    >>> trainer = mw.Trainer(
    ...     mw.Partition(model, cuts=["1"], example=torch.randn(2, 4)),
    ...     mw.methods.FeedbackAlignment(),
    ...     loss=torch.nn.functional.cross_entropy,
    ...     optimizer=torch.optim.SGD,
    ... )
    >>> print(mw.checks.converted(trainer))
    converted 2, left 1
      1: LayerNorm is neither linear nor a convolution
    """
    changed: list[str] = []
    left: dict[str, str] = {}
    for part in range(len(trainer.partition)):
        modules = [(name.removeprefix("."), module) for name, module in trainer.engine.modules(part)]
        rule = trainer.objectives[part].rule if trainer.objectives else None
        if isinstance(rule, LayerwiseRule):
            report = rule.report(modules)
            changed += report.converted
            left |= report.left
            continue
        reason = (
            f"{type(trainer.method).__name__} has no layer rule"
            if rule is None
            else f"{type(rule).__name__} does not say what it changes"
        )
        left |= {name: reason for name, module in modules if any(True for _ in module.parameters(recurse=False))}
    return RuleReport(tuple(changed), left)


def feedback_angles(trainer: Trainer) -> dict[str, float]:
    """The angle between W and the B that carries errors back, in degrees from 0 to 180, by layer name.

    Args:
        trainer: with a method whose errors pass back by B, of the shape of W; others have no angles.

    >>> import torch
    >>> import modulewise as mw
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> trainer = mw.Trainer(
    ...     mw.Partition(model, cuts=["1"], example=torch.randn(2, 4)),
    ...     mw.methods.FeedbackAlignment(feedback=lambda name, module: module.weight),
    ...     loss=torch.nn.functional.cross_entropy,
    ...     optimizer=torch.optim.SGD,
    ... )
    >>> {name: round(angle) for name, angle in mw.checks.feedback_angles(trainer).items()}
    {'0': 0, '2': 0}
    """
    found: dict[str, float] = {}
    for part, objective in enumerate(trainer.objectives):
        rule = objective.rule
        if isinstance(rule, WeightRule):
            for name, module in layers_of(trainer.engine.modules(part)).items():
                weight = module.weight
                found[name.removeprefix(".")] = float(angle(rule.weight(name, module), weight))  # type: ignore[arg-type]
    return found
