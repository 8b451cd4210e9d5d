"""The controls: backpropagation as messages equals autograd, and says so where it cannot run."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hand_driving import clear, drive, equal, gradients, objectives_of, sites
from torch import Tensor, nn

from modulewise.errors import MethodError
from modulewise.method import Family, Locality, PartwiseMethod, Reach
from modulewise.methods.reference import Backprop, Checkpointed, DeeplySupervised
from modulewise.methods.reference.backprop import received_gradient
from modulewise.objective import Context, Objective, Signal, Site


def mlp_parts() -> list[nn.Module]:
    torch.manual_seed(1)
    return [
        nn.Sequential(nn.Linear(6, 7), nn.Tanh()),
        nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Dropout(0.3)),
        nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5)),
        nn.Linear(5, 3),
    ]


def conv_parts() -> list[nn.Module]:
    torch.manual_seed(2)
    return [
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    ]


class Add(nn.Module):
    """A part that reads its input and earlier boundaries."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, h: Tensor, *ports: Tensor) -> Tensor:
        for port in ports:
            h = h * port.sigmoid()
        return self.layer(h)


def batch(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(shape), torch.randint(0, 3, (shape[0],))


def end_to_end(parts: list[nn.Module], x: Tensor, y: Tensor, ports: dict[int, list[int]] | None = None) -> list[Tensor]:
    """Gradients of plain autograd, seeding at the same places."""
    clear(parts)
    hs: list[Tensor] = []
    h = x
    for k, part in enumerate(parts):
        torch.manual_seed(k)
        h = part(h, *[hs[j] for j in (ports or {}).get(k, [])])
        hs.append(h)
    F.cross_entropy(h, y).backward()
    found = gradients(parts)
    clear(parts)
    return found


@pytest.mark.parametrize("method", [Backprop(), Checkpointed()])
@pytest.mark.parametrize(("make", "shape"), [(mlp_parts, (8, 6)), (conv_parts, (4, 3, 9, 9))])
def test_messages_give_the_gradients_of_autograd_bit_for_bit(make, shape, method):
    parts = make()
    x, y = batch(shape)
    expected = end_to_end(parts, x, y)
    drive(parts, objectives_of(method, sites(parts, x, F.cross_entropy)), x, y)
    assert equal(gradients(parts), expected)


def test_one_part_is_plain_training():
    parts = [nn.Sequential(*mlp_parts())]
    x, y = batch((8, 6))
    expected = end_to_end(parts, x, y)
    done = drive(parts, objectives_of(Backprop(), sites(parts, x, F.cross_entropy)), x, y)
    assert equal(gradients(parts), expected)
    assert done.messages == {0: {}}


@pytest.mark.parametrize("method", [Backprop(), Checkpointed()])
def test_a_boundary_read_by_three_later_parts_gets_the_bits_of_autograd(method):
    torch.manual_seed(4)
    parts = [nn.Linear(6, 5), Add(), Add(), Add(), nn.Linear(5, 3)]
    ports = {2: [0], 3: [0, 1]}
    x, y = batch((16, 6))
    expected = end_to_end(parts, x, y, ports)
    done = drive(parts, objectives_of(method, sites(parts, x, F.cross_entropy, ports=ports)), x, y, ports=ports)
    assert equal(gradients(parts), expected)
    assert {k: sorted(sent) for k, sent in done.messages.items()} == {4: [3], 3: [0, 1, 2], 2: [0, 1], 1: [0], 0: []}


def test_a_part_that_cuts_the_gradient_sends_zeros():
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, h: Tensor) -> Tensor:
            return self.layer(h.detach())

    parts = [nn.Linear(6, 4), Cut()]
    x, y = batch((8, 6))
    done = drive(parts, objectives_of(Backprop(), sites(parts, x, F.cross_entropy)), x, y)
    assert torch.equal(done.messages[1][0], torch.zeros(8, 4))
    assert not any(g.any() for g in gradients(parts[:1]))


def test_parts_below_the_last_show_the_norm_of_their_gradient():
    parts = mlp_parts()
    x, y = batch((8, 6))
    done = drive(parts, objectives_of(Backprop(), sites(parts, x, F.cross_entropy)), x, y)
    assert torch.equal(done.signals[0].shown(), done.messages[1][0].norm())
    last = done.signals[3].loss
    assert last is not None
    assert torch.equal(done.signals[3].shown(), last.detach())


def test_only_checkpointed_asks_for_recomputation_and_not_in_the_last_part():
    parts = mlp_parts()
    at = sites(parts, torch.zeros(2, 6), F.cross_entropy)
    assert [o.recompute for o in objectives_of(Checkpointed(), at)] == [True, True, True, False]
    assert not any(o.recompute for o in objectives_of(Backprop(), at))


def test_a_part_without_messages_is_refused():
    with pytest.raises(MethodError, match="part 1 received no gradient"):
        received_gradient(Context(None, None, None, None, 1, 1, 0))


class Headed(Objective):
    """A local linear classifier; in the last part the task loss."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site
        self.head = nn.Linear(site.boundary.channels, 3) if not site.last else nn.Identity()

    def forward(self, context: Context) -> Signal:
        return Signal(loss=self.site.loss(self.head(context.h_out), context.y))


@dataclass(frozen=True)
class Local(PartwiseMethod):
    family = Family.PROXY
    locality = Locality(Reach.STRICT)
    references = ()

    def objective(self, site: Site) -> Objective:
        return Headed(site)


def test_deep_supervision_is_one_backward_of_the_summed_losses():
    parts = mlp_parts()
    x, y = batch((8, 6))
    objectives = objectives_of(DeeplySupervised(Local()), sites(parts, x, F.cross_entropy))
    heads = [objective.inner.head for objective in objectives]
    losses = []
    h = x
    for k, (part, head) in enumerate(zip(parts, heads, strict=True)):
        torch.manual_seed(k)
        h = part(h)
        losses.append(F.cross_entropy(head(h), y))
    torch.stack(losses).sum().backward()
    expected, expected_heads = gradients(parts), gradients(heads)
    clear([*parts, *heads])
    done = drive(parts, objectives, x, y)
    assert equal(gradients(parts), expected)
    assert equal(gradients(heads), expected_heads)
    assert [done.signals[k].shown() for k in range(4)] == [loss.detach() for loss in losses]


def test_deep_supervision_differs_from_the_method_it_controls():
    """The control would be empty if no gradient crossed a boundary."""
    parts = mlp_parts()
    x, y = batch((8, 6))
    at = sites(parts, x, F.cross_entropy)
    drive(parts, objectives_of(Local(), at), x, y)
    local = gradients(parts)
    clear(parts)
    drive(parts, objectives_of(DeeplySupervised(Local()), at), x, y)
    assert not equal(gradients(parts[:1]), local[:2])
    assert equal(gradients(parts[3:]), local[-2:])


@pytest.mark.parametrize("flag", ["waits", "hears", "overlaps", "reads_input_gradient"])
def test_deep_supervision_refuses_methods_with_messages_of_their_own(flag):
    @dataclass(frozen=True)
    class Talking(Local):
        def objective(self, site: Site) -> Objective:
            objective = Headed(site)
            setattr(objective, flag, True)
            return objective

    at = sites(mlp_parts(), torch.zeros(2, 6), F.cross_entropy)
    with pytest.raises(MethodError, match="DeeplySupervised: part 0 of Talking learns from messages"):
        DeeplySupervised(Talking()).objective(at[0])


def test_locality_tells_what_the_controls_are():
    for method in (Backprop(), Checkpointed(), DeeplySupervised(Local())):
        assert method.family is Family.REFERENCE
        assert method.locality == Locality(Reach.GLOBAL)
        assert method.references
