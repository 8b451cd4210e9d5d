"""Output layers on frozen features against scikit-learn, a quadratic program, and what must not matter."""

import numpy as np
import pytest
import torch
from literal_oracles import draw
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from modulewise import losses
from modulewise.errors import DataError, MethodError
from modulewise.workflow import train_head
from modulewise.workflow.labels.heads import head_objective


def blobs(n=90, d=5, classes=3):
    """Classes that overlap."""
    y = torch.arange(n) % classes
    h = draw(n, d)
    h[torch.arange(n), y] += 1.5
    return h, y


def mean_square(h):
    return float(h.square().sum(1).mean())


def test_the_cross_entropy_head_is_scikit_learns_logistic_regression():
    """Weights, not only answers; C is 1 / (N penalty) where features have mean square 1."""
    h, y = blobs()
    h = h / mean_square(h) ** 0.5
    head = train_head(h, y, classes=3, penalty=0.02)
    oracle = LogisticRegression(C=1 / (len(y) * 0.02), tol=1e-12, max_iter=10_000).fit(h.numpy(), y.numpy())
    assert np.abs(head.weight.detach().numpy() - oracle.coef_).max() < 1e-5
    bias = head.bias.detach().numpy()
    assert np.abs(bias - bias.mean() - oracle.intercept_ + oracle.intercept_.mean()).max() < 1e-5


def quadratic_program(h, y, classes, penalty):
    """The least hinge objective, with a slack for every margin that is missed."""
    n, d = h.shape
    size = classes * d
    own = y.numpy()

    def objective(v):
        weight, slack = v[:size], v[size + classes :]
        return slack.sum() / (n * classes) + penalty / 2 * weight @ weight

    def gradient(v):
        return np.concatenate([penalty * v[:size], np.zeros(classes), np.full(n * classes, 1 / (n * classes))])

    def margins(v):
        scores = h.numpy() @ v[:size].reshape(classes, d).T + v[size : size + classes]
        slack = v[size + classes :].reshape(n, classes)
        kept = slack - (1 - scores[np.arange(n), own][:, None] + scores)
        kept[np.arange(n), own] = 0
        return np.concatenate([kept.ravel(), slack.ravel()])

    start = np.concatenate([np.zeros(size + classes), np.ones(n * classes)])
    found = minimize(
        objective,
        start,
        jac=gradient,
        method="SLSQP",
        constraints=[{"type": "ineq", "fun": margins}],
        options={"maxiter": 300, "ftol": 1e-12},
    )
    assert found.success
    return found.fun


def test_the_hinge_head_reaches_the_optimum_of_the_quadratic_program():
    """Within 0.1 %, although the search is made for smooth functions."""
    h, y = blobs(n=24, d=3)
    h = h / mean_square(h) ** 0.5
    head = train_head(h, y, classes=3, penalty=0.05, loss=losses.multi_margin)
    with torch.no_grad():
        reached = float(head_objective(head.weight, head.bias, h, y, loss=losses.multi_margin, penalty=0.05))
    assert reached <= 1.001 * quadratic_program(h, y, 3, 0.05)


@pytest.mark.parametrize("loss", [losses.classification, losses.multi_margin])
def test_the_same_call_gives_the_same_bits_and_moves_no_generator(loss):
    h, y = blobs()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, two = (train_head(h.float(), y, classes=3, loss=loss) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.bias, two.bias)


def test_the_seed_moves_the_optimum_by_no_more_than_the_tolerance():
    """The problem is convex: initial weights are forgotten."""
    h, y = blobs()
    one, two = (train_head(h, y, classes=3, seed=seed) for seed in (0, 1))
    assert (one.weight - two.weight).abs().max() < 1e-4 * one.weight.abs().max()


def test_features_times_a_constant_give_the_same_logits():
    """The penalty is relative to the features' length; and the scale is folded back into the weights."""
    h, y = blobs()
    one, two = train_head(h, y, classes=3), train_head(1000 * h, y, classes=3)
    assert torch.allclose(one(h), two(1000 * h), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(one.weight, two.weight)


def test_without_a_bias_the_class_does_not_depend_on_the_length_of_the_features():
    """What lets a head trained on unit features stand in the model, which gives features as they are."""
    h, y = blobs()
    unit = torch.nn.functional.normalize(h, dim=1)
    head = train_head(unit, y, classes=3, bias=False)
    assert head.bias is None
    assert torch.equal(head(h).argmax(1), head(unit).argmax(1))


def test_type_gradients_and_a_missing_class():
    """float32 in, float32 out; the head can learn on; a class without an example is not answered."""
    h, y = blobs()
    head = train_head(h.float()[y < 2], y[y < 2], classes=3)
    assert head.weight.dtype is torch.float32
    assert head.weight.requires_grad
    assert head.weight.grad is None
    assert set(head(h.float()).argmax(1).tolist()) == {0, 1}


def test_it_runs_inside_no_grad_and_leaves_the_features_alone():
    h, y = blobs()
    before = h.clone()
    with torch.no_grad():
        train_head(h, y, classes=3)
    assert torch.equal(h, before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.zeros(3, dtype=torch.int64)}, DataError, "do not fit"),
        ({"labels": torch.zeros(4)}, DataError, "int64"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, DataError, "0 to 2"),
        ({"features": torch.tensor([[0.0], [1.0], [float("nan")], [0.0]])}, DataError, "sample 2"),
        ({"features": torch.zeros(0, 2), "labels": torch.zeros(0, dtype=torch.int64)}, DataError, "N >= 1"),
        ({"classes": 1}, MethodError, "at least 2"),
        ({"epochs": 0}, MethodError, "epochs=0"),
        ({"penalty": -1.0}, MethodError, "penalty=-1.0"),
    ],
)
def test_bad_input_is_one_line(change, error, message):
    given = {"features": torch.zeros(4, 1), "labels": torch.tensor([0, 1, 2, 0]), "classes": 3} | change
    with pytest.raises(error, match=message) as caught:
        train_head(given.pop("features"), given.pop("labels"), **given)
    assert "\n" not in str(caught.value)
