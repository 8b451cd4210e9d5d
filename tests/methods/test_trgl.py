"""TRGL: the transport of residual blocks, against a literal loop and plain torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import modulewise as mw
from modulewise import losses
from modulewise.methods import TRGL, Greedy
from modulewise.methods.proxy.trgl import candidates, is_composite, outermost

CLASSES = 3


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(inputs, outputs), nn.Tanh())
        self.same = inputs == outputs

    def forward(self, h: Tensor) -> Tensor:
        return h + self.inner(h) if self.same else self.inner(h)


def network() -> nn.Sequential:
    torch.manual_seed(3)
    first = nn.Sequential(nn.Linear(5, 8), Block(8, 8), Block(8, 8))
    return nn.Sequential(first, nn.Sequential(Block(8, 6), Block(6, 6)), nn.Linear(6, CLASSES)).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 5, generator=generator, dtype=torch.float64), torch.arange(7) % CLASSES


def trainer_of(method: mw.PartwiseMethod, model: nn.Module | None = None) -> mw.Trainer:
    partition = mw.Partition(model or network(), cuts=("0", "1"), example=batch()[0])
    return mw.Trainer(partition, method, loss=F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.5))


def test_transport_cost_is_the_literal_sum():
    generator = torch.Generator().manual_seed(0)
    moves = [
        (torch.randn(*shape, generator=generator).double(), torch.randn(*shape, generator=generator).double())
        for shape in ((3, 2), (3, 2, 2))
    ]
    literal = 0.0
    for before, after in moves:
        squares = [(b - a) ** 2 for a, b in zip(before.flatten().tolist(), after.flatten().tolist(), strict=True)]
        literal += sum(squares) / len(squares)
    assert losses.transport_cost(moves).item() == pytest.approx(literal, rel=1e-12)
    assert losses.transport_cost([]).item() == 0


def test_updates_are_those_of_the_formula_in_plain_torch():
    """Both blocks of part 0 count; of part 1 the one that keeps its shape."""
    (x, y), tau = batch(), 0.25
    trainer = trainer_of(TRGL(CLASSES, tau=tau, head=mw.heads.linear))
    heads = [objective.inner.head for objective in trainer.objectives[:-1]]
    model = network()
    expected = []
    h = x
    for k in range(3):
        h = h.detach()
        cost = torch.zeros((), dtype=torch.float64)
        for layer in model[k] if k < 2 else [model[2]]:
            after = layer(h)
            if isinstance(layer, Block) and after.shape == h.shape:
                cost = cost + (after - h).square().mean()
            h = after
        loss = F.cross_entropy(heads[k](h) if k < 2 else h, y) + cost / (2 * tau)
        gradients = torch.autograd.grad(loss, list(model[k].parameters()))
        expected += [p - 0.5 * g for p, g in zip(model[k].parameters(), gradients, strict=True)]
    trainer.step(x, y)
    for p, q in zip(trainer.partition.model.parameters(), expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)


def test_without_a_block_it_is_the_greedy_loss():
    """A network with no residual block has nothing to transport."""

    def plain() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)).double()

    x, y = batch()
    states = []
    for method in (TRGL(CLASSES, tau=0.01), Greedy(CLASSES, depth=2)):
        trainer = trainer_of(method, plain())
        trainer.step(x, y)
        states.append(trainer.partition.model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


def test_blocks_are_the_outermost_modules_made_of_others():
    nested = nn.Sequential(nn.Sequential(nn.TransformerEncoderLayer(4, 1)), nn.ReLU())
    names = list(candidates([("body", nested)], is_composite))
    assert names == ["body.0.0", "body.0.0.self_attn"]
    assert outermost(names) == ["body.0.0"]


class Stage(nn.Module):
    """A stage of its own class: it changes the shape, the blocks inside it keep theirs."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down, self.blocks = nn.Linear(inputs, outputs), nn.Sequential(Block(outputs, outputs))

    def forward(self, h: Tensor) -> Tensor:
        return self.blocks(self.down(h))


def test_blocks_inside_a_stage_that_changes_the_shape_count():
    """Otherwise tau would have no effect on networks whose stages are modules of their own."""
    x, y = batch()
    weights = []
    for tau in (1e-3, 1e3):
        torch.manual_seed(0)
        model = nn.Sequential(Stage(5, 8), Stage(8, 6), nn.Linear(6, CLASSES)).double()
        trainer_of(TRGL(CLASSES, tau=tau, head=mw.heads.linear), model).step(x, y)
        weights.append(model[0].down.weight.detach())
    assert not torch.allclose(*weights, rtol=1e-3)


def test_blocks_can_be_named_by_a_predicate():
    method = TRGL(CLASSES, block=lambda module: isinstance(module, nn.Tanh), head=mw.heads.linear)
    assert trainer_of(method).objectives[0].taps == ("0.1.inner.1", "0.2.inner.1")


def test_the_shown_loss_is_without_transport():
    x, y = batch()
    losses_shown = [trainer_of(TRGL(CLASSES, tau=tau, head=mw.heads.linear)).step(x, y)[0] for tau in (1e-3, 1e3)]
    assert torch.equal(*losses_shown)


def test_parts_that_are_run_twice_are_refused():
    partition = mw.Partition(network(), cuts=("0", "1"), example=batch()[0])
    with pytest.raises(mw.errors.MethodError, match=r"recompute=True.*part 0"):
        mw.Trainer(partition, TRGL(CLASSES), loss=F.cross_entropy, optimizer=torch.optim.SGD, recompute=True)


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan")])
def test_a_step_that_is_not_positive_is_refused(tau):
    with pytest.raises(mw.errors.MethodError, match="tau"):
        TRGL(CLASSES, tau=tau)
