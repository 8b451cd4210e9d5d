"""What tests of scores share: seeded clusters in float64, and classes as lists."""

from __future__ import annotations

import torch


def clusters(*, samples=24, features=5, classes=3, seed=0, apart=1.0):
    """Gaussian clusters of unequal sizes, every class at least twice, in a mixed order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat(
        [torch.arange(classes).repeat(2), torch.randint(classes, (samples - 2 * classes,), generator=generator)]
    )
    labels = labels[torch.randperm(samples, generator=generator)]
    means = apart * torch.randn(classes, features, generator=generator, dtype=torch.float64)
    noise = torch.randn(samples, features, generator=generator, dtype=torch.float64)
    return means[labels] + noise, labels


def probabilities(*, samples=24, classes=4, seed=0):
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.randn(samples, classes, generator=generator, dtype=torch.float64).softmax(1)


def rotation(features, seed=0):
    generator = torch.Generator().manual_seed(200 + seed)
    return torch.linalg.qr(torch.randn(features, features, generator=generator, dtype=torch.float64)).Q


def mean(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def by_class(x, y):
    """For every class its rows as lists."""
    rows = x.tolist()
    return [[rows[i] for i in range(len(rows)) if int(y[i]) == c] for c in range(int(y.max()) + 1)]
