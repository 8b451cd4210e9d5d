"""What every score promises: invariances, bad input in one line, and inputs left as they are."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from score_cases import clusters, probabilities, rotation

from modulewise import losses, scores
from modulewise.errors import DataError

seeds = settings(max_examples=10, deadline=None, database=None)
every = pytest.mark.parametrize("name", sorted(scores.SCORES))

TO_ORDER = set(scores.SCORES) - {"n-leep"}
TO_ROTATION = {"h-score", "n-leep", "logme", "transrate", "sfda", "gbc", "ncti", "cka", "linear-probe", "k-nn"}
TO_SCALE = {"h-score", "n-leep", "logme", "parc", "cka", "linear-probe", "k-nn"}
TO_SCALE |= {name for name, score in scores.SCORES.items() if isinstance(score, scores.Proxy)}
SOURCE = {"nce", "leep"}


def value(name, x, y, theta):
    return scores.SCORES[name](x, y, source_probabilities=theta)


def same(a, b):
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-7)


@every
@seeds
@given(seed=st.integers(0, 10**6))
def test_the_order_of_samples_does_not_matter(name, seed):
    x, y = clusters(seed=seed)
    theta = probabilities(seed=seed)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    if name in TO_ORDER:
        assert same(value(name, x, y, theta), value(name, x[order], y[order], theta[order]))


@pytest.mark.parametrize("name", sorted(TO_ROTATION))
@seeds
@given(seed=st.integers(0, 10**6))
def test_rotations_and_shifts_of_the_features_do_not_matter(name, seed):
    x, y = clusters(seed=seed)
    moved = x @ rotation(5, seed)
    if name != "logme":  # its linear model has no constant
        moved = moved + 3.0
    assert same(value(name, x, y, None), value(name, moved, y, None))


@pytest.mark.parametrize("name", sorted(TO_SCALE))
@seeds
@given(seed=st.integers(0, 10**6), exponent=st.integers(-6, 6))
def test_the_unit_of_the_features_does_not_matter(name, seed, exponent):
    x, y = clusters(seed=seed)
    assert same(value(name, x, y, None), value(name, x * 2.0**exponent, y, None))


@pytest.mark.parametrize("name", sorted(set(scores.SCORES) - TO_ROTATION - SOURCE))
def test_what_is_not_said_to_be_invariant_to_rotations_is_not(name):
    """The list above is not too short."""
    x, y = clusters()
    assert not same(value(name, x, y, None), value(name, x @ rotation(5), y, None))


@pytest.mark.parametrize("name", sorted(set(scores.SCORES) - TO_SCALE - SOURCE))
def test_what_is_not_said_to_be_invariant_to_scale_is_not(name):
    x, y = clusters()
    assert not same(value(name, 0.01 * x, y, None), value(name, x, y, None))


def test_scaled_transrate_does_not_depend_on_the_unit():
    x, y = clusters()
    assert same(scores.TransRate(scaled=True)(x, y), scores.TransRate(scaled=True)(64 * x, y))


@every
def test_the_names_of_classes_do_not_matter(name):
    x, y = clusters()
    renamed = torch.tensor([7, -3, 40])[y]
    assert same(value(name, x, y, probabilities()), value(name, x, renamed, probabilities()))


@every
def test_classes_that_are_apart_score_higher_than_mixed_ones(name):
    """Higher is better: the same features with shuffled labels are worse."""
    x, y = clusters(samples=60, apart=4.0)
    theta = (x @ rotation(5)).softmax(1)
    mixed = y[torch.randperm(60, generator=torch.Generator().manual_seed(1))]
    assert value(name, x, y, theta) > value(name, x, mixed, theta)


@every
def test_inputs_and_generators_stay_as_they_are(name):
    x, y = clusters()
    theta, before = probabilities(), torch.get_rng_state()
    kept = x.clone(), y.clone(), theta.clone()
    first = value(name, x, y, theta)
    assert all(torch.equal(a, b) for a, b in zip(kept, (x, y, theta), strict=True))
    assert torch.equal(before, torch.get_rng_state())
    assert value(name, x, y, theta) == first


@every
def test_dead_and_repeated_features_give_a_number(name):
    """Features of zeros, constants, more of them than samples: finite all the same."""
    y = torch.tensor([0, 0, 1, 1, 1, 0])
    theta = probabilities(samples=6)
    for x in (
        torch.zeros(6, 3),
        torch.ones(6, 3),
        torch.eye(6).repeat(1, 3),
        torch.zeros(6, 2).index_fill(0, y[:2], 1),
    ):
        assert math.isfinite(value(name, x, y, theta))


@every
def test_float32_is_computed_in_float64(name):
    x, y = clusters()
    assert same(value(name, x.float(), y, probabilities()), value(name, x.float().double(), y, probabilities()))


def refused(score, *arguments, says, **keywords):
    with pytest.raises(DataError) as caught:
        score(*arguments, **keywords)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@every
def test_bad_input_is_refused_in_one_line(name):
    x, y = clusters()
    score = scores.SCORES[name]
    refused(score, x, torch.zeros_like(y), says="two or more classes")
    refused(score, x[:0], y[:0], says="two or more classes")
    refused(score, x[:3], torch.arange(3), says="more samples than classes")
    refused(score, x.index_fill(0, torch.tensor([4]), float("nan")), y, says="sample 4 are not finite")
    refused(score, x, y[:-1], says="one integer a sample")
    refused(score, x, y.double(), says="one integer a sample")
    refused(score, x[:, :, None], y, says="expected floats (N, D)")
    refused(score, x.long(), y, says="expected floats (N, D)")


@pytest.mark.parametrize("name", sorted(SOURCE))
def test_bad_source_probabilities_are_refused_in_one_line(name):
    x, y = clusters()
    score, theta = scores.SCORES[name], probabilities()
    refused(score, x, y, says="source_probabilities")
    refused(score, x, y, source_probabilities=theta[:-1], says="expected (N, Z)")
    refused(score, x, y, source_probabilities=theta.log(), says="negative, not finite or do not sum to 1")
    refused(score, x, y, source_probabilities=theta * float("nan"), says="negative, not finite or do not sum to 1")
    refused(score, x, y, source_probabilities=2 * theta, says="negative, not finite or do not sum to 1")


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        (scores.Alignment, {"kernel": losses.LINEAR}),
        (scores.NLEEP, {"ratio": 0}),
        (scores.NLEEP, {"energy": 1.5}),
        (scores.TransRate, {"epsilon": 0.0}),
        (scores.SFDA, {"strength": -1.0}),
        (scores.GBC, {"components": 0}),
        (scores.LinearProbe, {"penalty": 0.0}),
        (scores.KNN, {"k": 0}),
    ],
)
def test_settings_out_of_range_are_refused(kind, setting):
    refused(kind, says="expected", **setting)


def test_an_unknown_score_is_refused_with_the_nearest_name():
    with pytest.raises(DataError, match="did you mean 'logme'"):
        scores.named(["logmee"])


@every
def test_a_score_says_what_it_is(name):
    """A name, references with links where it was published, and whether it reads the source head."""
    score = scores.SCORES[name]
    assert score.name == name
    assert score.reads_source == (name in SOURCE)
    assert score.references
    assert all(reference.link.startswith("https://") for reference in score.references)
    assert inspect.getdoc(type(score))
