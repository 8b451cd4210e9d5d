"""Operations of a step: counts by hand, formulas of linear algebra, and a trainer that is as before."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from small_networks import CLASSES, CUTS, Residual, differing, images, perceptron, rows, seeded, state, trainer_of
from torch import nn

import modulewise as mw
from modulewise.checks import flops
from modulewise.checks.flops import counted_flops

M = mw.methods
N, LAYERS = 8, (6 * 16, 16 * 12, 12 * CLASSES)  # rows() and perceptron()


def count(method, **settings):
    x, y = rows()
    return flops(trainer_of(seeded(perceptron), method, ("0", "1"), x, **settings), x, y)


class TestSteps:
    def test_a_linear_chain_by_hand(self):
        """Every layer forward and to its weights; to its input, all but the first: 2 N W each."""
        assert count(M.Backprop()) == 2 * N * (2 * sum(LAYERS) + sum(LAYERS[1:]))

    def test_cuts_slices_and_plain_torch_make_no_difference_to_backpropagation(self):
        x, y = rows()
        model = seeded(perceptron)
        plain = counted_flops(lambda: F.cross_entropy(model(x), y).backward())
        assert count(M.Backprop()) == count(M.Backprop(), accumulate=4) == plain

    def test_heads_are_counted_and_what_passes_between_parts_is_not(self):
        """Heads 16-4 and 12-4 forward, to their weights and to their input; parts pass nothing down."""
        heads = 3 * (16 + 12) * CLASSES
        assert count(M.DGL(classes=CLASSES, head=mw.heads.linear)) == 2 * N * (2 * sum(LAYERS) + heads)

    def test_what_is_computed_again_is_counted_again(self):
        again = sum(LAYERS[:2])  # all parts but the last
        assert count(M.Checkpointed()) == count(M.Backprop()) + 2 * N * again

    @pytest.mark.parametrize("method", [M.SGR(classes=CLASSES), M.CriticTraining(classes=CLASSES)])
    def test_a_step_that_differentiates_within_its_objectives_is_counted_too(self, method):
        assert count(method) > count(M.DGL(classes=CLASSES, head=mw.heads.linear))

    def test_convolutions_and_views(self):
        """A step on two views does twice the work of one on one view; a 3x3 convolution takes 2 * 9 * 3 * 6 a pixel."""
        x, y = images()
        trainer = trainer_of(seeded(Residual), M.Backprop(), CUTS, x)
        assert flops(trainer, torch.cat([x, x]), y, views=2) == 2 * flops(trainer, x, y)
        stem = nn.Conv2d(3, 6, 3, padding=1)
        assert counted_flops(lambda: stem(x)) == len(x) * 8 * 8 * 2 * 9 * 3 * 6

    def test_all_is_as_before(self):
        x, y = images()
        trainer = trainer_of(seeded(partial(Residual, dropout=0.3)), M.DGL(classes=CLASSES), CUTS, x)
        trainer.step(x, y)
        random = torch.get_rng_state()
        before = state(trainer.partition.model, *trainer.objectives)
        assert flops(trainer, x, y) > 0
        assert differing(before, state(trainer.partition.model, *trainer.objectives)) == []
        assert (trainer.steps, torch.equal(torch.get_rng_state(), random)) == (1, True)

    def test_a_closed_form_is_not_free(self):
        """Block coordinate descent solves systems: more than its matrix products alone."""
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, CLASSES))
        x, y = rows()
        trainer = mw.Trainer(mw.Partition(model, cuts=["1"], example=x), M.BCD(), loss=F.cross_entropy)
        counter = torch.utils.flop_counter.FlopCounterMode(display=False)
        found = flops(trainer, x, y)
        with counter:
            trainer.step(x, y)
        assert found > counter.get_total_flops() > 0


def positive(n, batch=()):
    a = torch.randn(*batch, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return a @ a.mT + n * torch.eye(n, dtype=torch.float64)


A, B, FIVE = positive(6), torch.ones(6, 4, dtype=torch.float64), positive(6, batch=(5,))
TALL = torch.ones(9, 6, dtype=torch.float64)


class TestLinearAlgebra:
    @pytest.mark.parametrize(
        ("run", "expected"),
        [
            (lambda: torch.linalg.solve(A, B), 2 / 3 * 216 + 2 * 36 * 4),
            (lambda: torch.linalg.solve(A, B[:, 0]), 2 / 3 * 216 + 2 * 36),
            (lambda: torch.linalg.solve(FIVE, torch.ones(5, 6, 4, dtype=A.dtype)), 5 * (2 / 3 * 216 + 2 * 36 * 4)),
            (lambda: torch.linalg.solve(FIVE, torch.ones(5, 6, dtype=A.dtype)), 5 * (2 / 3 * 216 + 2 * 36)),
            (lambda: torch.linalg.cholesky(A), 216 / 3),
            (lambda: torch.linalg.cholesky(FIVE), 5 * 216 / 3),
            (lambda: torch.cholesky_solve(B, A), 2 * 36 * 4),
            (lambda: torch.cholesky_inverse(A), 2 / 3 * 216),
            (lambda: torch.linalg.inv(A), 2 * 216),
            (lambda: torch.linalg.solve_triangular(A, B, upper=True), 36 * 4),
            (lambda: torch.linalg.lu_solve(*torch.linalg.lu_factor(A), B), 2 / 3 * 216 + 2 * 36 * 4),
            (lambda: torch.linalg.det(A), 2 / 3 * 216),
            (lambda: torch.linalg.slogdet(A), 2 / 3 * 216),
            (lambda: torch.linalg.eigh(A), 9 * 216),
            (lambda: torch.linalg.svd(TALL), 14 * 9 * 36 + 8 * 216),
            (lambda: torch.linalg.pinv(TALL), 14 * 9 * 36 + 8 * 216 + 2 * 9 * 36),
            (lambda: torch.linalg.qr(TALL), 4 * 9 * 36 - 4 / 3 * 216),
            (lambda: torch.linalg.lstsq(TALL, TALL[:, :4]), 2 * 9 * 36 - 2 / 3 * 216 + 4 * 9 * 6 * 4),
            (lambda: A @ B[:, 0], 2 * 36),
            (lambda: torch.addmv(B[:, 0], A, B[:, 0]), 2 * 36),
            (lambda: B[:, 0] @ B[:, 0], 2 * 6),
            (lambda: torch.cdist(A, TALL), 3 * 6 * 9 * 6),
        ],
    )
    def test_leading_terms(self, run, expected):
        """Golub and Van Loan's, for n = 6, m = 9 and four right sides; five systems cost five times one."""
        assert counted_flops(run) == round(expected)

    def test_gradients_through_a_solution_cost_more(self):
        system = A.clone().requires_grad_()
        forward = counted_flops(lambda: torch.linalg.solve(system, B))
        both = counted_flops(lambda: torch.linalg.solve(system, B).sum().backward())
        assert both >= forward + 2 * 36 * 4 + 2 * 36 * 4  # the transposed system, and the outer product

    def test_what_has_no_formula_alone_gives_none(self):
        assert counted_flops(lambda: torch.ones(3).exp().sum()) is None

    def test_what_cannot_be_watched_gives_none(self):
        def refuses():
            raise NotImplementedError("no mode")

        assert counted_flops(refuses) is None
