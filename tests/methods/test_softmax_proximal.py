"""The minimum of cross entropy plus a squared distance: scipy's, and stationary to rounding at any scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import wrightomega

from modulewise.methods.auxiliary.softmax_proximal import softmax_proximal, wright_omega


def test_it_is_scipys_minimum():
    generator = torch.Generator().manual_seed(0)
    centre = 2 * torch.randn(5, 4, generator=generator, dtype=torch.float64)
    targets = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 3, 1]]
    found = softmax_proximal(centre, targets, 0.7).numpy()
    for c, y, z in zip(centre.numpy(), targets.numpy(), found, strict=True):

        def cost(z: np.ndarray, c: np.ndarray = c, y: np.ndarray = y) -> float:
            return float(np.log(np.exp(z).sum()) - z @ y + 0.35 * ((z - c) ** 2).sum())

        best = minimize(cost, c, method="BFGS", options={"gtol": 1e-10})
        assert cost(z) <= best.fun + 1e-13
        assert np.allclose(z, best.x, atol=1e-5)


@pytest.mark.parametrize("rho", [1e-6, 1e-3, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("classes", [2, 10, 300])
def test_it_is_stationary_to_rounding(rho, scale, classes):
    generator = torch.Generator().manual_seed(1)
    centre = scale * torch.randn(40, classes, generator=generator, dtype=torch.float64)
    targets = torch.eye(classes, dtype=torch.float64)[torch.arange(40) % classes]
    z = softmax_proximal(centre, targets, rho)
    slope = z.softmax(1) - targets + rho * (z - centre)
    assert slope.abs().max() < 1e-13 * (1 + rho * scale * 10 + scale)


def test_the_wright_omega_function_is_scipys():
    w = torch.cat([torch.linspace(-690, 5, 2001), torch.logspace(-3, 8, 2001)]).double()
    assert np.allclose(wright_omega(w).numpy(), wrightomega(w.numpy()), rtol=1e-14, atol=0)
