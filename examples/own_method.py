"""A method written outside the library, held to the same contract suite as the library's own.

Every part but the last classifies through a fixed random linear map (H. Mostafa, V. Ramesh, G. Cauwenberghs, Deep
Supervised Learning Using Local Errors, Frontiers in Neuroscience 2018, https://arxiv.org/abs/1711.06756).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

import modulewise as mw


class RandomClassifier(mw.Objective):
    """CE(B h_out, y) with B drawn once and never trained."""

    def __init__(self, site: mw.Site, classes: int) -> None:
        super().__init__()
        features = site.boundary.features
        self.register_buffer("feedback", torch.randn(features, classes) / features**0.5)

    def forward(self, context: mw.Context) -> mw.Signal:
        """The part's loss; the engine differentiates it at once."""
        return mw.Signal(loss=functional.cross_entropy(context.h_out.flatten(1) @ self.feedback, context.y))


class Task(mw.Objective):
    """The last part minimises the task loss on the model's raw output."""

    def __init__(self, site: mw.Site) -> None:
        super().__init__()
        self.loss = site.loss

    def forward(self, context: mw.Context) -> mw.Signal:
        """The task loss."""
        return mw.Signal(loss=self.loss(context.h_out, context.y))


@dataclass(frozen=True)
class LocalErrors(mw.PartwiseMethod):
    """Each part minimises CE(B_k h_k, y), B_k fixed and random; the last the task loss."""

    classes: int
    family: ClassVar = mw.Family.PROXY
    locality: ClassVar = mw.Locality(mw.Reach.STRICT)
    references: ClassVar = (mw.Reference("H. Mostafa et al.", "Local Errors", "Frontiers", 2018, "arXiv:1711.06756"),)

    def objective(self, site: mw.Site) -> mw.Objective:
        """What the part at this site minimises."""
        return Task(site) if site.last else RandomClassifier(site, self.classes)


for check in mw.checks.conformance(LocalErrors(classes=3)):
    print("ok  " if check.passed else "FAIL", check.name, check.detail)
