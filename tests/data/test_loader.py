"""Order, augmentation draws and the position of a loader."""

import itertools

import pytest
import torch

from modulewise.data import Compose, Crop, Flip, Jitter, Loader, Normalize, Split
from modulewise.errors import CheckpointError, DataError
from modulewise.seeding import seed_of

AUGMENT = Compose((Crop(padding=2), Flip(), Jitter(brightness=0.3)))


def split(count=23):
    g = torch.Generator().manual_seed(3)
    return Split(torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=g), torch.arange(count))


def make(**options):
    return Loader(split(), **{"batch_size": 5, "seed": 1, "augment": AUGMENT, "views": 2, **options})


def same(batches, others):
    return len(batches) == len(others) and all(
        all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))
        for batch, other in zip(batches, others, strict=True)
    )


def test_an_epoch_hands_out_every_sample_once_in_an_order_of_its_own():
    loader = make()
    orders = [torch.cat([y for _, y in loader]) for _ in range(3)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(23))
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(orders, 2))
    assert torch.equal(orders[2], make().indices(2))


def test_the_order_depends_on_the_seed():
    assert not torch.equal(make(seed=1).indices(0), make(seed=2).indices(0))


def test_without_shuffling_the_order_is_that_of_the_split():
    loader = make(shuffle=False)
    for _ in range(2):
        assert torch.equal(torch.cat([y for _, y in loader]), torch.arange(23))


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [5, 5, 5, 5, 3]), (True, [5, 5, 5, 5])])
def test_length_and_batch_sizes(drop_last, sizes):
    loader = make(drop_last=drop_last)
    assert len(loader) == len(sizes)
    assert [len(y) for _, y in loader] == sizes


def test_batches_are_the_samples_scaled_normalized_and_otherwise_untouched():
    loader = make(augment=None, views=1, normalize=((0.5,), (0.25,)))
    for indices, x, y in loader.with_indices():
        assert torch.equal(x, (split().x[indices].float() / 255 - 0.5) / 0.25)
        assert torch.equal(y, indices)
        assert torch.equal(loader.last_indices, indices)


def test_views_are_drawn_one_after_the_other_from_seed_epoch_and_batch_then_normalized():
    loader = make(normalize=Normalize(mean=(0.5,), std=(0.25,)))
    list(loader)
    for batch, (indices, x, _) in enumerate(loader.with_indices()):
        g = torch.Generator().manual_seed(seed_of(1, "augment", 1, batch))
        plain = split().x[indices].float() / 255
        views = torch.cat([AUGMENT(plain, generator=g), AUGMENT(plain, generator=g)])
        assert torch.equal(x, (views - 0.5) / 0.25)
        assert not torch.equal(*x.chunk(2))


def test_draws_are_new_in_every_epoch():
    loader = make(shuffle=False)
    assert not torch.equal(next(iter(loader))[0], (list(loader), next(iter(loader))[0])[1])


@pytest.mark.parametrize("taken", range(11))
def test_a_loader_restored_after_any_batch_goes_on_as_if_never_stopped(taken):
    whole = make()
    expected = [batch for _ in range(3) for batch in whole.with_indices()]
    first = make()
    stream = itertools.chain.from_iterable(first.with_indices() for _ in range(3))
    for _ in range(taken):
        next(stream)
    second = make()
    second.load_state_dict(first.state_dict())
    rest = []
    while second.epoch < 3:
        rest += list(second.with_indices())
    assert same(rest, expected[taken:])


def test_an_epoch_left_early_goes_on_at_the_next_iter_and_ends_with_itself():
    loader = make()
    taken = [next(iter(loader)) for _ in range(2)]
    rest = list(loader)
    assert len(rest) == 3
    assert same(taken + rest, list(make()))
    assert (loader.epoch, loader.batch) == (1, 0)


def test_iterating_with_indices_advances_as_iterating_does():
    plain, indexed = make(), make()
    for _ in range(2):
        pairs = [(x, y) for _, x, y in indexed.with_indices()]
        assert same(pairs, list(plain))
        assert indexed.state_dict() == plain.state_dict()


def test_indexed_passes_over_all_samples_in_order_unaugmented_without_moving():
    loader = make(drop_last=True, normalize=((0.5,), (0.25,)))
    next(iter(loader))
    before = loader.state_dict()
    parts = [torch.cat(part) for part in zip(*loader.indexed(), strict=True)]
    assert torch.equal(parts[0], torch.arange(23))
    assert torch.equal(parts[1], (split().x.float() / 255 - 0.5) / 0.25)
    assert torch.equal(parts[2], split().y)
    assert loader.state_dict() == before


def test_the_default_generator_is_neither_read_nor_moved():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = list(make())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert same(list(make()), first)


def test_augmented_says_whether_samples_change():
    assert make().augmented
    assert not make(augment=None).augmented


@pytest.mark.parametrize(
    ("given", "taken"),
    [(torch.float64, torch.float32), (torch.float32, torch.float32), (torch.int64, torch.int64)],
)
def test_floats_become_float32_unscaled_and_tokens_stay_integers(given, taken):
    x = torch.arange(6).view(3, 2).to(given)
    [(out, _)] = Loader(Split(x, torch.arange(3)), batch_size=3, shuffle=False)
    assert out.dtype == taken
    assert torch.equal(out, x.to(taken))


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))],
)
def test_a_split_moved_to_the_device_gives_the_same_batches_there(device):
    moved = Loader(split().to(device), batch_size=5, seed=1, augment=AUGMENT, views=2, device=device)
    batches = list(moved)
    assert all(x.device.type == device and y.device.type == device for x, y in batches)
    for (x, y), (x_cpu, y_cpu) in zip(batches, make(), strict=True):
        torch.testing.assert_close(x.cpu(), x_cpu, rtol=0, atol=1e-6)
        assert torch.equal(y.cpu(), y_cpu)


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"views": 0}, {"batch_size": 24, "drop_last": True}, {"normalize": ((0.0,), (0.0,))}],
)
def test_options_that_leave_nothing_to_do_are_refused(options):
    with pytest.raises(DataError, match=r"^[^\n]+$"):
        make(**options)


def test_an_empty_split_is_refused():
    with pytest.raises(DataError, match="no samples"):
        Loader(split(0), batch_size=1)


@pytest.mark.parametrize(
    "other", [{"seed": 2}, {"batch_size": 4}, {"shuffle": False}, {"drop_last": True}, {"views": 1}]
)
def test_a_state_of_another_loader_is_refused_and_changes_nothing(other):
    loader = make()
    (changed,) = other
    with pytest.raises(CheckpointError, match=changed):
        loader.load_state_dict(make(**other).state_dict())
    assert (loader.epoch, loader.batch) == (0, 0)


@pytest.mark.parametrize("damage", [{"batch": 5}, {"batch": -1}, {"epoch": -1}])
def test_a_position_that_does_not_exist_is_refused(damage):
    with pytest.raises(CheckpointError, match="epoch"):
        make().load_state_dict({**make().state_dict(), **damage})
