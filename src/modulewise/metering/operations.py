"""Floating-point operations of whatever runs: matrix products, convolutions, and what linear algebra solves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

__all__ = ["counted_flops"]

Shape = tuple[int, ...]


def counted_flops(run: Callable[[], object]) -> int | None:
    """The operations of a function, as `flops` counts them; None where there are none or torch cannot watch it.

    >>> counted_flops(lambda: torch.ones(2, 3) @ torch.ones(3, 4))
    48
    """
    counter = FlopCounterMode(display=False, custom_mapping=dict(_FORMULAS))
    # Operations by module are not wanted, and torch's hooks for them refuse `autograd.grad` inside a step.
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    try:
        with counter:
            run()
    except NotImplementedError:  # an operator that refuses to be dispatched to a mode
        return None
    return counter.get_total_flops() or None


class _NoModules:
    """Stands in for `torch.utils.module_tracker.ModuleTracker` and puts everything down to the whole."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        """Install nothing."""

    def __exit__(self, *_: object) -> None:
        """Take out nothing."""


def _batches(shape: Shape) -> int:
    return prod(shape[:-2])


def _columns(system: Shape, right: Shape) -> int:
    """Right-hand sides of a system; a stack of vectors has one each."""
    vector = len(right) == 1 or (len(right) == len(system) - 1 and right == system[:-1])
    return 1 if vector else right[-1]


def _factorised(shape: Shape) -> float:
    """LU of (m, n): m n^2 - n^3 / 3 for m >= n."""
    m, n = max(shape[-2:]), min(shape[-2:])
    return _batches(shape) * (m * n**2 - n**3 / 3)


def _lu(a: Shape, *_: Any, **__: Any) -> int:
    return round(_factorised(a))


def _solve(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    return round(_factorised(a) + 2 * _batches(a) * a[-1] ** 2 * _columns(a, b))


def _lu_solve(factor: Shape, pivots: Shape, right: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(right) * factor[-1]


def _cholesky_solve(right: Shape, factor: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(right) * factor[-1]


def _triangular(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    return prod(b) * a[-1]


def _cubic(factor: float) -> Callable[..., int]:
    def formula(a: Shape, *_: Any, **__: Any) -> int:
        return round(factor * _batches(a) * a[-1] ** 3)

    return formula


def _svd(a: Shape, *_: Any, **__: Any) -> int:
    """With the vectors, which torch computes while it is watched even where the values alone are asked for."""
    m, n = max(a[-2:]), min(a[-2:])
    return _batches(a) * (14 * m * n**2 + 8 * n**3)


def _pseudoinverse(a: Shape, *_: Any, **__: Any) -> int:
    """By the singular vectors, put together again."""
    return _svd(a) + _batches(a) * 2 * a[-1] * a[-2] * min(a[-2:])


def _qr(a: Shape, *_: Any, **__: Any) -> int:
    m, n = max(a[-2:]), min(a[-2:])
    return round(_batches(a) * 4 * (m * n**2 - n**3 / 3))


def _least_squares(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    m, n = max(a[-2:]), min(a[-2:])
    return round(_batches(a) * (2 * (m * n**2 - n**3 / 3) + 4 * m * n * _columns(a, b)))


def _matrix_vector(a: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(a)


def _added_matrix_vector(_added: Shape, a: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(a)


def _distances(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    return 3 * prod(a) * b[-2]


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Scores and their product with the values, causal or not, as torch counts the other kernels."""
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(gradient: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Five products: the scores again, and the gradients of both products to both factors."""
    return int(sdpa_backward_flop_count(gradient, query, key, value))


_aten = torch.ops.aten
_FORMULAS: Mapping[Any, Callable[..., int]] = MappingProxyType(
    {
        _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        _aten.mv: _matrix_vector,
        _aten.addmv: _added_matrix_vector,
        _aten.dot: _matrix_vector,
        _aten.vdot: _matrix_vector,
        _aten._cdist_forward: _distances,
        _aten._linalg_solve_ex: _solve,
        _aten.linalg_lu_factor_ex: _lu,
        _aten._linalg_det: _lu,
        _aten._linalg_slogdet: _lu,
        _aten.linalg_lu_solve: _lu_solve,
        _aten.linalg_cholesky_ex: _cubic(1 / 3),
        _aten.cholesky_solve: _cholesky_solve,
        _aten.cholesky_inverse: _cubic(2 / 3),
        _aten.linalg_inv_ex: _cubic(2),
        _aten.linalg_solve_triangular: _triangular,
        _aten._linalg_eigh: _cubic(9),
        _aten._linalg_svd: _svd,
        _aten.linalg_pinv: _pseudoinverse,
        _aten.linalg_qr: _qr,
        _aten.linalg_lstsq: _least_squares,
    }
)
"""What torch's counter has no formula for, by operator."""
