"""What tests of losses share: seeded float64 draws, and a comparison with the formula written out."""

from __future__ import annotations

import torch


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def assert_same_value_and_gradient(actual, literal, h):
    """Both functions of h agree, values and gradients, to 1e-10 of the largest entry."""
    first, second = h.clone().requires_grad_(), h.clone().requires_grad_()
    a, b = actual(first), literal(second)
    weight = draw(*b.shape, seed=9) if b.dim() else torch.tensor(1.0, dtype=torch.float64)
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    for x, y in ((a.detach(), b.detach()), (first.grad, second.grad)):
        assert y.abs().max() > 0
        assert (x - y).abs().max() <= 1e-10 * y.abs().max()


def matrix(rows):
    return torch.stack([torch.stack(row) for row in rows])


def dot(u, v):
    return sum(a * b for a, b in zip(u, v, strict=True))


def literal_kernel(name, u, v):
    if name == "linear":
        return dot(u, v)
    if name == "cosine":
        return dot(u, v) / (dot(u, u) ** 0.5 * dot(v, v) ** 0.5)
    return torch.exp(-sum((a - b) ** 2 for a, b in zip(u, v, strict=True)) / (2 * 1.5**2))
