"""A partition leaves nothing of its own on the model: not when it is made, not when it runs, not when it fails."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from part_oracle import STEP, assert_same_picture, composed, identical, photograph, seeded, untouched, whole
from torch import Tensor, nn

from modulewise import Partition
from modulewise.partition.shadowing import scratch_attributes, scratch_buffers
from modulewise.seeding import seed_of


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Linear(6, 6),
        nn.BatchNorm1d(6),
        nn.Dropout(0.5),
        nn.Linear(6, 2),
    )


class Fails(nn.Module):
    """Raises at its n-th call."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.box = [at]
        self.remaining = iter(range(at))

    def forward(self, x: Tensor) -> Tensor:
        if next(self.remaining, None) is None:
            raise RuntimeError("the user's own words")
        return self.norm(self.layer(x))


def test_making_a_partition_leaves_the_model_as_it_was() -> None:
    """Modes of every module, hooks, buffers, identities, the generator's state."""
    model, x = network(), torch.randn(4, 4)
    model[4].eval()
    model[3].register_forward_hook(lambda *_: None)
    identities = [id(p) for p in [*model.parameters(), *model.buffers()]]
    with untouched(model):
        Partition(model, example=x, cuts=["2"])
        Partition(model, example=x, parts=3).measure()
    assert [id(p) for p in [*model.parameters(), *model.buffers()]] == identities


@pytest.mark.parametrize("at", range(9))
def test_an_error_in_the_users_forward_leaves_the_model_as_it_was(at: int) -> None:
    """Raised while recording, while comparing the whole, or while comparing the parts."""
    model, x = nn.Sequential(nn.Linear(4, 4), Fails(at), nn.Linear(4, 2)), torch.randn(4, 4)
    with untouched(model), pytest.raises((RuntimeError, ValueError), match="the user's own words"):
        Partition(model, example=x, cuts=["1"])


@pytest.mark.parametrize("part", [0, 1, 2])
def test_an_error_in_a_part_at_run_time_leaves_no_shadow(part: int) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Fails(10**6), nn.Linear(4, 4), Fails(10**6), nn.Linear(4, 2))
    x = torch.randn(4, 4)
    partition = Partition(model, example=x, cuts=["1", "2"])
    for module in model:
        if isinstance(module, Fails):
            module.remaining = iter(())
    fed = {part - 1: torch.randn(4, 4)} if part else {}
    before = photograph(model)
    if part == 1:
        partition.run(part, x, fed)
    else:
        with pytest.raises(RuntimeError, match="the user's own words"):
            partition.run(part, x, fed)
    assert_same_picture(before, photograph(model))


def test_an_error_before_the_boundary_is_fed_leaves_no_shadow() -> None:
    class Inline(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.broken = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), [False]

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            if self.broken[0]:
                raise RuntimeError("the user's own words")
            return self.c(self.b(h))

    model, x, h = Inline(), torch.randn(4, 4), torch.randn(4, 4)
    partition = Partition(model, example=x, cuts=["b"])
    model.broken[0] = True
    with untouched(model), pytest.raises(RuntimeError, match="the user's own words"):
        partition.run(1, x, {0: h})


def test_running_a_part_leaves_no_shadow_and_keeps_a_compiled_call() -> None:
    model, x = network(), torch.randn(4, 4)

    def called(*args: Any) -> Tensor:
        return model[3]._call_impl(*args)

    model[3]._compiled_call_impl = called
    partition = Partition(model, example=x, cuts=["2", "4"])
    composed(partition, x)
    assert model[3].__dict__["_compiled_call_impl"] is called
    assert all("_compiled_call_impl" not in module.__dict__ for module in model if module is not model[3])


class Keeps(nn.Module):
    """Counts its calls and keeps what it saw, in every way a module can."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.calls, self.seen, self.table, self.names = 0, [], {}, {"a"}
        self.mean = torch.zeros(4)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = h = self.layer(x)
        self.seen.append(self.calls)
        self.table[self.calls] = self.calls
        self.names.add("b")
        self.mean.add_(x.detach().flatten(0, -2).mean(0))
        self.new = "attribute"
        if not hasattr(self, "late"):
            self.register_buffer("late", torch.zeros(1))
        return h


def test_what_the_users_forward_keeps_on_its_modules_is_as_before() -> None:
    """Our passes over the model are not the user's: counters, lists, tensors and late buffers do not see them."""
    model, x = nn.Sequential(Keeps(), Keeps(), nn.Linear(4, 2)), torch.randn(4, 4)
    means = [module.mean for module in model[:2]]
    with untouched(model):
        Partition(model, example=x, cuts=["0"])
    assert all(torch.equal(mean, torch.zeros(4)) for mean in means)
    assert model[0].seen == []
    assert model[0].last is None
    assert "late" not in model[0]._buffers


class Average(nn.Module):
    """Puts a new tensor where its buffer was, at every forward in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x) - self.mean
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        return h


def test_buffers_that_are_replaced_rather_than_written() -> None:
    """Accepted, restored after construction and after recomputation, updated once by a composed pass."""
    model, x = nn.Sequential(Average(), Average(), nn.Linear(4, 2)), torch.randn(4, 4)
    twin = nn.Sequential(Average(), Average(), nn.Linear(4, 2))
    twin.load_state_dict(model.state_dict())
    with untouched(model):
        partition = Partition(model, example=x, cuts=["0", "1"])
        partition.run(0, x, {}, recomputing=True)
    composed(partition, x)
    twin(x)
    assert torch.equal(model[1].mean, twin[1].mean)
    assert model[1].mean.any()


def test_pythons_generator_is_as_before() -> None:
    """A Python draw of the user's after construction is the one it would have been."""
    random.seed(5)
    expected = random.random()
    random.seed(5)
    Partition(network(), example=torch.randn(4, 4), cuts=["2"])
    assert random.random() == expected


def test_hooks_on_modules_before_a_part_see_no_stand_ins() -> None:
    """Hooks, and the cut's own hook, fire once a composed pass, on true values."""
    model, x = network().eval(), torch.randn(4, 4)
    partition = Partition(model, example=x, cuts=["2", "4"])
    seen: list[tuple[int, Tensor]] = []
    for index, module in enumerate(model):
        module.register_forward_hook(lambda _, args, out, index=index: seen.append((index, out.clone())))
    composed(partition, x)
    ours, seen[:] = list(seen), []
    model(x)
    assert [index for index, _ in ours] == [index for index, _ in seen] == list(range(7))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(ours, seen, strict=True))


def test_a_hook_that_changes_the_output_of_a_cut_changes_the_boundary() -> None:
    model, x = network().eval(), torch.randn(4, 4)
    partition = Partition(model, example=x, cuts=["2"])
    model[2].register_forward_hook(lambda _, args, out: out * 2)
    assert torch.equal(partition.part(0)(x), 2 * torch.relu(model[1](model[0](x))))


def test_a_composed_pass_updates_statistics_once() -> None:
    model, twin, x = network(), network(), torch.randn(6, 4)
    twin.load_state_dict(model.state_dict())
    partition = Partition(model, example=x, parts=3)
    composed(partition, x)
    whole(twin, partition.cuts, x)
    assert model[1].num_batches_tracked == model[4].num_batches_tracked == 1
    for (name, ours), theirs in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert identical(ours, theirs), name
    assert model[1].running_mean.any()


def test_recomputing_leaves_buffers_untouched() -> None:
    """Values and identity, also where the forward fails; the numbers are those of the first run."""
    model, x = network(), torch.randn(6, 4)
    partition = Partition(model, example=x, cuts=["2", "4"])
    h = partition.run(0, x, {}, enter=seeded()).detach()
    first = partition.run(1, x, {0: h}, enter=seeded())
    with untouched(model):
        before = photograph(model)
        state = torch.get_rng_state()
        again = partition.run(1, x, {0: h}, enter=seeded(), recomputing=True)
        torch.set_rng_state(state)
    assert torch.equal(first, again)
    assert_same_picture(before, photograph(model))
    wrong = torch.randn(6, 5)
    with untouched(model), pytest.raises(RuntimeError):
        partition.run(1, x, {0: wrong}, recomputing=True)


def test_a_graph_made_while_recomputing_keeps_the_statistics_it_saved() -> None:
    """Backward after the block gives the gradients of an ordinary run."""
    model, x = network().eval(), torch.randn(6, 4)
    with scratch_buffers(model):
        out = model(x)
    out.sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).sum().backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), expected, strict=True))


def test_buffers_shared_by_two_modules_stay_shared_inside_and_out() -> None:
    a, b = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    b.running_mean = a.running_mean
    pair = nn.Sequential(a, b)
    original = a.running_mean
    with scratch_buffers(pair):
        assert a.running_mean is b.running_mean
        assert a.running_mean is not original
        a.running_mean.add_(1)
    assert a.running_mean is b.running_mean is original
    assert not original.any()


def test_attributes_are_put_back_after_an_error() -> None:
    model, x = nn.Sequential(Keeps(), Fails(0)), torch.randn(2, 4)
    before = photograph(model)
    with pytest.raises(RuntimeError), scratch_attributes(model), scratch_buffers(model):
        model(x)
    assert_same_picture(before, photograph(model))


def test_a_new_kind_of_input_leaves_the_model_as_it_was() -> None:
    model, x, longer = nn.Sequential(nn.Linear(4, 4), Keeps(), nn.Linear(4, 2)), torch.randn(4, 4), torch.randn(4, 4, 4)
    partition = Partition(model, example=x, cuts=["0"])
    with untouched(model):
        partition.plans(longer)


def test_draws_of_a_part_start_from_its_own_seed_whatever_came_before() -> None:
    model, x = network(), torch.randn(6, 4)
    partition = Partition(model, example=x, cuts=["4"])
    h = torch.randn(6, 6)
    torch.manual_seed(0)
    first = partition.run(1, x, {0: h}, enter=seeded())
    torch.manual_seed(1)
    assert torch.equal(first, partition.run(1, x, {0: h}, enter=seeded()))
    torch.manual_seed(seed_of(3, STEP, 1))
    assert torch.equal(first, model[6](model[5](h)))
