"""Gradients that accumulate over the slices of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import CLASSES, CUTS, Residual, differing, images, perceptron, rows, seeded, state, trainer_of
from torch import Tensor, nn

import modulewise as mw

M = mw.methods
PARTS = ("0", "1")


def perceptron_of() -> nn.Sequential:
    return seeded(perceptron)


ACCUMULATED = [
    M.DGL(classes=CLASSES, head=mw.heads.linear),
    M.Greedy(classes=CLASSES),
    M.Backprop(),
    M.Checkpointed(),
    M.DeeplySupervised(M.DGL(classes=CLASSES, head=mw.heads.linear)),
    M.DirectFeedbackAlignment(outputs=CLASSES),
    M.FeedbackAlignment(),
    M.SyntheticGradients(classes=CLASSES, width=5),
]


class TestAccumulation:
    """A batch in slices is the whole batch, for losses that are means over samples, without batch statistics."""

    @pytest.fixture(autouse=True)
    def _in_double(self) -> Iterator[None]:
        """Everything in float64, the methods' own networks as well."""
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(torch.float32)

    def run(self, method: Any, slices: int, **settings: Any) -> tuple[dict[str, Tensor], list[dict[int, Tensor]]]:
        x, y = rows(10)
        trainer = trainer_of(
            perceptron_of(),
            method,
            PARTS,
            x,
            accumulate=slices,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
            **settings,
        )
        losses = [trainer.step(x, y) for _ in range(3)]
        return state(trainer.partition.model, *trainer.objectives), losses

    @pytest.mark.parametrize("method", ACCUMULATED, ids=lambda m: type(m).__name__)
    @pytest.mark.parametrize("slices", [2, 3, 7, 10, 16])
    def test_equals_the_whole_batch(self, method, slices):
        """Heads included; 10 samples in 3 slices are 4, 3 and 3, in 16 slices 10."""
        whole, whole_losses = self.run(method, 1)
        sliced, losses = self.run(method, slices)
        for name, expected in whole.items():
            torch.testing.assert_close(sliced[name], expected, rtol=1e-10, atol=1e-12, msg=name)
        if type(method).__name__ in ("DGL", "Greedy", "DeeplySupervised"):  # others show the norm of a gradient
            for a, b in zip(losses, whole_losses, strict=True):
                assert [float(v) for v in a.values()] == pytest.approx([float(v) for v in b.values()], rel=1e-10)

    def test_clipping_is_of_the_whole_gradient(self):
        method = M.DGL(classes=CLASSES, head=mw.heads.linear)
        whole, sliced = self.run(method, 1, clip_norm=0.01)[0], self.run(method, 3, clip_norm=0.01)[0]
        for name, expected in whole.items():
            torch.testing.assert_close(sliced[name], expected, rtol=1e-9, atol=1e-12, msg=name)

    def test_a_slice_holds_all_views_of_its_samples(self):
        """Two views stacked along the batch; a loss over pairs of views is exact only if pairs stay together."""
        x = torch.cat([rows(6, 1)[0], rows(6, 2)[0]])

        def agreement(output: Tensor, y: Tensor) -> Tensor:
            (first, second), (y, again) = output.chunk(2), y.chunk(2)
            assert torch.equal(y, again)
            return (first - second).square().sum(1).mean() + F.cross_entropy(first, y)

        results = []
        for slices in (1, 4):
            model = perceptron_of()
            trainer = trainer_of(model, M.Backprop(), PARTS, x, loss=agreement, accumulate=slices)
            trainer.step(x, torch.arange(6) % CLASSES, views=2)
            results.append(state(model))
        for name, expected in results[0].items():
            torch.testing.assert_close(results[1][name], expected, rtol=1e-10, atol=1e-12)

    def test_rows_that_hold_no_whole_number_of_views_are_refused(self):
        x, y = rows(9)
        trainer = trainer_of(perceptron_of(), M.Backprop(), PARTS, x, accumulate=2)
        with pytest.raises(mw.errors.DataError, match="views"):
            trainer.step(x, y[:4], views=2)

    def test_with_batch_statistics_it_is_not_exact_and_says_so(self):
        """Documented: statistics are those of a slice."""
        x, y = images(8)
        results = []
        for slices in (1, 2):
            model = seeded(Residual)
            trainer_of(model, M.Backprop(), CUTS, x, accumulate=slices).step(x, y)
            results.append(state(model))
        assert differing(*results) != []
        assert "without batch normalisation" in " ".join(mw.Trainer.__doc__.split())
