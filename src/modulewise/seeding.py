"""Randomness belongs to (seed, step, part): generators set before a part runs, the user's own put back after.

A part that is recomputed, run on another rank or run alone draws the same numbers, because its draws start from
a seed that is a pure function of the run's seed, the step and the part. A plain-torch loop reproduces a run by
calling :func:`set_generators` at the same places.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["preserved_generators", "seed_of", "set_generators"]


def seed_of(seed: int, *where: int | str) -> int:
    """Mix a seed with indices and names to a 63-bit seed, the same on every machine.

    Args:
        seed: the run's seed, any integer.
        *where: what the draws belong to, e.g. step and part.

    >>> seed_of(0, 1, 2) == seed_of(0, 1, 2), seed_of(0, 1, 2) == seed_of(0, 2, 1)
    (True, False)
    """
    digest = hashlib.blake2b(repr((seed, *where)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def set_generators(seed: int) -> None:
    """Set torch's default generators, on the CPU and on CUDA where it is in use, to one seed."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Put torch's default generators back on exit, so that the user's own random stream goes on undisturbed."""
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
