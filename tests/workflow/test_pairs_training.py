"""Hidden parts that learn from pairs: batches hold every pair, lists and labels train alike, the output stays."""

import copy

import pytest
import torch
from torch import nn

import modulewise as mw
from modulewise import losses
from modulewise.data import Loader, Split
from modulewise.errors import DataError, MethodError
from modulewise.workflow import PairLoader, Pairs, drawn_pairs, train_hidden
from modulewise.workflow.labels.pairing import pair_batches

SGD = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)}


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def parted(model, cuts=("3",)):
    return mw.Partition(model, cuts=list(cuts), example=torch.zeros(4, 4))


def samples(n=24):
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(n) % 3
    return torch.randn(n, 4, generator=generator) + 2 * nn.functional.one_hot(y, 4), y


def every_pair(y):
    first, second = torch.triu_indices(len(y), len(y), offset=1)
    return Pairs(first, second, y[first] == y[second], len(y))


@pytest.mark.parametrize("size", [2, 3, 5, 64])
def test_an_epoch_holds_every_pair_and_every_batch_both_kinds(size):
    """Batches of one size; of both kinds as many as their share of the list, at least one."""
    pairs = drawn_pairs(samples()[1], count=61)
    loader = PairLoader(samples()[0], pairs, batch_size=2 * size)
    batches = pair_batches(pairs, size=size, seed=0, epoch=1)
    assert batches.shape == (len(loader), size)
    for rows in batches:
        alike = int(pairs.same[rows].sum())
        assert alike == min(size - 1, max(1, round(size * float(pairs.same.double().mean()))))
    assert set(batches.flatten().tolist()) == set(range(61))
    kinds = int(pairs.same.sum()), int((~pairs.same).sum())
    assert len(loader) == max(-(-kind // int(n)) for kind, n in zip(kinds, (alike, size - alike), strict=True))


def test_batches_are_the_samples_of_the_pairs_normalized_and_no_generator_moves():
    """x[i] is sample indices[i]; an epoch has an order of its own, a seed the same ones."""
    x, y = samples()
    pairs = drawn_pairs(y, count=40)
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    images = x.view(-1, 1, 2, 2)
    loader = PairLoader(images, pairs, batch_size=8, normalize=mw.data.Normalize(mean=(1.0,), std=(2.0,)))
    first, second = list(loader), list(loader)
    assert torch.equal(torch.rand(2), expected)
    for fed, indices in first:
        assert torch.equal(fed, (images[indices] - 1) / 2)
        relation = pairs.relation(indices)
        assert bool((relation[torch.arange(4), torch.arange(4, 8)] != 0).all())  # the batch's own pairs stand opposite
    assert [i.tolist() for _, i in first] != [i.tolist() for _, i in second]
    again = PairLoader(images, pairs, batch_size=8)
    assert [i.tolist() for _, i in first] == [i.tolist() for _, i in again]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 7}, "even"),
        ({"batch_size": 2}, "at least 4"),
        ({"pairs": Pairs(torch.tensor([0]), torch.tensor([1]), torch.tensor([True]), 24)}, "one of two"),
        ({"pairs": Pairs(torch.tensor([0]), torch.tensor([1]), torch.tensor([False]), 24)}, "one pair of one class"),
        ({"pairs": drawn_pairs(torch.arange(5) % 2, count=9)}, "pairs of 5 samples"),
    ],
)
def test_lists_that_cannot_be_trained_on_are_refused(options, message):
    x, y = samples()
    given = {"pairs": drawn_pairs(y, count=40), "batch_size": 8} | options
    with pytest.raises(DataError, match=message):
        PairLoader(x, **given)


class Indexed:
    """The batches of a loader with sample indices in place of labels."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        for indices, x, _ in self.loader.with_indices():
            yield x, indices


@pytest.mark.parametrize("cuts", [("3",), ("1", "3")])
def test_a_list_of_all_pairs_trains_as_labels_do_bit_for_bit(cuts):
    """Full labels are the case in which every pair is known; momentum, decay and two hidden parts included."""
    x, y = samples()
    models = []
    for pairs in (None, every_pair(y)):
        model = network()
        loader = Loader(Split(x, y), batch_size=8, seed=2)
        train_hidden(parted(model, cuts), loader if pairs is None else Indexed(loader), epochs=3, pairs=pairs, **SGD)
        models.append(model.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not torch.equal(models[0]["0.weight"], network().state_dict()["0.weight"])


def test_the_hidden_part_takes_the_step_of_plain_autograd_on_the_pairs_that_are_known():
    """One step of SGD on minus the alignment over known pairs alone."""
    x, _ = samples(6)
    pairs = Pairs(torch.tensor([0, 1, 2]), torch.tensor([3, 4, 4]), torch.tensor([True, True, False]), 6)
    model, twin = network(), network()
    optimizer = torch.optim.SGD(twin[:4].parameters(), lr=0.1)
    gram = losses.RELU.gram(twin[:4](x))
    known = pairs.relation(torch.arange(6))
    ideal = (known > 0).float()
    counted = (known != 0).float()
    value = (gram * ideal * counted).sum() / ((gram * counted).norm() * (ideal * counted).norm())
    (-value).backward()
    optimizer.step()
    train_hidden(
        parted(model),
        [(x, torch.arange(6))],
        epochs=1,
        pairs=pairs,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    assert int(counted.sum()) < 36
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-7)


def test_the_output_part_stays_as_it_is_and_modes_are_put_back():
    """In spite of weight decay and momentum; the labels' numbers do not matter, only which are equal."""
    x, y = samples()
    model = network().eval()
    before = copy.deepcopy(model.state_dict())
    train_hidden(parted(model), Loader(Split(x, y), batch_size=8), epochs=2, **SGD)
    assert torch.equal(model[4].weight, before["4.weight"])
    assert torch.equal(model[4].bias, before["4.bias"])
    assert not torch.equal(model[2].weight, before["2.weight"])
    assert not model.training
    renamed = network()
    train_hidden(parted(renamed), Loader(Split(x, (2 - y) * 50), batch_size=8), epochs=2, **SGD)
    assert torch.equal(renamed[2].weight, model[2].weight)


def test_pairs_of_a_list_come_to_look_alike_and_unlike():
    """Alignment over all pairs rises, most of which the list never compared."""
    x, y = samples(60)
    pairs = drawn_pairs(y, count=120)
    model = network()
    partition = parted(model)

    def value():
        with torch.no_grad():
            return float(losses.alignment(losses.RELU.gram(model[:4](x)), y, minimum=0.0, maximum=1.0))

    before = value()
    train_hidden(partition, PairLoader(x, pairs, batch_size=16), epochs=20, pairs=pairs, **SGD)
    assert len(pairs) < 0.1 * 60 * 59 / 2
    assert value() > before + 0.2


def test_one_part_alone_is_refused():
    x, y = samples()
    partition = mw.Partition(network(), parts=1, example=x)
    with pytest.raises(MethodError, match="one part was given"):
        train_hidden(partition, Loader(Split(x, y), batch_size=8), epochs=1, **SGD)
