"""Greedy layerwise learning: its heads, early exits and their ensemble, progressive improvement."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modulewise as mw
from modulewise import heads, losses
from modulewise.engine.exits import ensemble, exits
from modulewise.errors import DataError, MethodError, NonFiniteLossError
from modulewise.methods import DGL, Backprop, Greedy, KernelProxy
from modulewise.objective import Context, Site
from modulewise.partition.boundary import Boundary


def network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3)),
        nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU()),
        nn.Sequential(nn.Conv2d(5, 6, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
    )


def trained(method, *, model=None, cuts=("0", "1", "2"), steps=2):
    """A trainer after some steps, so that batch statistics and heads are not those of the start."""
    torch.manual_seed(5)
    x = torch.randn(8, 2, 6, 6)
    partition = mw.Partition(model or network(), cuts=list(cuts), example=x)
    trainer = mw.Trainer(
        partition, method, loss=F.cross_entropy, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    )
    for _ in range(steps):
        trainer.step(x, torch.arange(8) % 3)
    return trainer


def by_hand(trainer, x):
    """z_j for every part: the model's children one after another, each head on what its part gives, in eval mode."""
    model = trainer.partition.model
    model.eval()
    logits, h = [], x
    with torch.no_grad():
        for part, child in enumerate(model):
            h = child(h)
            last = part == len(model) - 1
            logits.append(h if last else trainer.objectives[part].head.eval()(h))
    return logits


def literal_ensemble(logits, parts):
    """Z_nc = sum_j 2^j z_jnc / sum_j 2^j by loops."""
    samples, classes = logits[0].shape
    total = sum(2**j for j in parts)
    return [[sum(2**j * float(logits[j][n, c]) for j in parts) / total for c in range(classes)] for n in range(samples)]


METHODS = [Greedy(3), Greedy(3, depth=3), DGL(3)]


@pytest.mark.parametrize("method", METHODS, ids=["k1", "k3", "dgl"])
@pytest.mark.parametrize("parts", [None, [0], [0, 1], [1, 3], range(3)])
def test_the_ensemble_is_the_literal_sum_over_exits_with_weights_2_to_the_j(method, parts):
    trainer = trained(method)
    x = torch.randn(5, 2, 6, 6)
    found = ensemble(trainer.partition, trainer.objectives, x, parts=parts)
    expected = torch.tensor(literal_ensemble(by_hand(trainer, x), range(4) if parts is None else parts))
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_exits_are_the_heads_on_each_part_and_the_model_itself():
    trainer = trained(Greedy(3, depth=2))
    x = torch.randn(5, 2, 6, 6)
    found = exits(trainer.partition, trainer.objectives, x)
    expected = by_hand(trainer, x)
    assert list(found) == [0, 1, 2, 3]
    assert all(torch.equal(found[j], z) for j, z in enumerate(expected))
    assert torch.equal(found[3], trainer.predict(x))


def test_an_early_exit_does_not_run_the_parts_above_it():
    trainer = trained(Greedy(3))
    ran = []
    for index, child in enumerate(trainer.partition.model):
        child[0].register_forward_hook(lambda *_, index=index: ran.append(index))
    exits(trainer.partition, trainer.objectives, torch.randn(5, 2, 6, 6), parts=[1])
    assert set(ran) == {0, 1}


def test_predicting_by_exits_leaves_state_modes_gradients_and_generators_alone():
    trainer = trained(DGL(3))
    model = trainer.partition.model
    model.train()
    model[1].eval()
    modules = [*model.modules(), *(m for o in trainer.objectives for m in o.modules())]
    modes = [m.training for m in modules]
    assert any(modes)
    tensors = [t.detach().clone() for m in (model, *trainer.objectives) for t in m.state_dict().values()]
    generator = torch.get_rng_state()
    z = ensemble(trainer.partition, trainer.objectives, torch.randn(5, 2, 6, 6, generator=torch.Generator()))
    assert torch.equal(generator, torch.get_rng_state())
    assert modes == [m.training for m in modules]
    after = [t for m in (model, *trainer.objectives) for t in m.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(tensors, after, strict=True))
    assert not z.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_with_one_part_the_only_exit_is_the_model():
    trainer = trained(Greedy(3), cuts=())
    x = torch.randn(4, 2, 6, 6)
    assert torch.equal(ensemble(trainer.partition, trainer.objectives, x), trainer.predict(x))


@pytest.mark.parametrize("parts", [[4], [-1], []])
def test_an_unknown_exit_is_refused(parts):
    trainer = trained(Greedy(3), steps=0)
    with pytest.raises(MethodError, match="0 to 3"):
        exits(trainer.partition, trainer.objectives, torch.randn(2, 2, 6, 6), parts=parts)


@pytest.mark.parametrize(("method", "says"), [(KernelProxy(), "PairwiseProxy"), (Backprop(), "classifier")])
def test_a_method_without_heads_has_no_early_exit_but_the_model(method, says):
    trainer = trained(method, steps=0)
    x = torch.randn(2, 2, 6, 6)
    assert torch.equal(exits(trainer.partition, trainer.objectives, x, parts=[3])[3], trainer.predict(x))
    with pytest.raises(MethodError, match=says):
        ensemble(trainer.partition, trainer.objectives, x)


class Named(nn.Module):
    """A model that returns a mapping instead of logits."""

    def __init__(self):
        super().__init__()
        self.body, self.end = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return {"scores": self.end(self.body(x))}


def test_a_model_without_logits_is_refused_where_its_own_exit_is_asked_for():
    x = torch.randn(4, 4)
    trainer = mw.Trainer(
        mw.Partition(Named(), cuts=["body"], example=x),
        Greedy(3),
        loss=lambda output, y: F.cross_entropy(output["scores"], y),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    assert exits(trainer.partition, trainer.objectives, x, parts=[0])[0].shape == (4, 3)
    with pytest.raises(MethodError, match=r"dict.*logits"):
        ensemble(trainer.partition, trainer.objectives, x)


def test_exits_of_different_shapes_have_no_ensemble():
    trainer = trained(Greedy(3, dense=True), steps=0)
    with pytest.raises(MethodError, match="equal ones"):
        ensemble(trainer.partition, trainer.objectives, torch.randn(2, 2, 6, 6))


def test_a_new_block_that_is_the_identity_gives_the_same_logits_as_the_part_below():
    """Proposition 3.1: with the head of part j, part j + 1 starts at the training error of part j."""
    model = mw.models.greedy_cnn((3, 8, 8), 5, width=4, blocks=3, down=(), normed=False)
    x = torch.randn(6, 3, 8, 8)
    partition = mw.Partition(model, cuts=["conv1", "conv2"], example=x)
    objectives = [Greedy(5).objective(Site(k, 3, None, partition.parts[k].output, F.cross_entropy)) for k in (0, 1)]
    with torch.no_grad():
        nn.init.dirac_(model.conv2.conv.weight)
        nn.init.zeros_(model.conv2.conv.bias)
        objectives[1].load_state_dict(objectives[0].state_dict())
    logits = exits(partition, objectives, x, parts=[0, 1])
    assert torch.equal(logits[1], logits[0])
    with torch.no_grad():
        model.conv2.conv.bias.fill_(0.1)  # the equality is not of any block
    assert not torch.equal(exits(partition, objectives, x, parts=[1])[1], logits[0])


LAYOUTS = [
    Boundary("image", (4, 6, 8, 8)),
    Boundary("last", (4, 8, 8, 6), channel_axis=-1),
    Boundary("tokens", (4, 5, 6), channel_axis=-1),
    Boundary("vector", (4, 6)),
]


def literal_linear_head(boundary, h, weight, bias, y):
    """CE of W avgpool(h) + b by loops: 2x2 means of an image, the mean of tokens, or the vector itself."""
    h = boundary.channels_first(h)
    total = 0.0
    for n, label in enumerate(y.tolist()):
        features = []
        for c in range(6):
            values = h[n, c]
            if values.dim() == 2:
                for i in (0, 4):
                    for j in (0, 4):
                        features.append(sum(values[i + a, j + b] for a in range(4) for b in range(4)) / 16)
            elif values.dim() == 1:
                features.append(sum(values) / len(values))
            else:
                features.append(values)
        logits = [sum(w * f for w, f in zip(weight[k], features, strict=True)) + bias[k] for k in range(3)]
        total = total + torch.log(sum(torch.exp(v) for v in logits)) - logits[label]
    return total / len(y)


@pytest.mark.parametrize("boundary", LAYOUTS, ids=lambda b: b.name)
def test_greedy_with_depth_1_is_the_literal_cross_entropy_in_every_layout(boundary):
    torch.manual_seed(0)
    exact = Boundary(boundary.name, boundary.shape, torch.float64, boundary.channel_axis)
    objective = Greedy(3).objective(Site(0, 2, None, exact, losses.classification))
    weight, bias = dict(objective.named_parameters()).values()
    h, y = torch.randn(boundary.shape, dtype=torch.float64), torch.tensor([0, 1, 0, 2])
    first, second = h.clone().requires_grad_(), h.clone().requires_grad_()
    loss = objective(Context(h_in=None, h_out=first, x=None, y=y, views=1, part=0, step=0)).loss
    literal = literal_linear_head(exact, second, weight, bias, y)
    actual = torch.autograd.grad(loss, [first, weight, bias])
    expected = torch.autograd.grad(literal, [second, weight, bias])
    assert abs(loss - literal) <= 1e-10 * abs(literal)
    assert all((a - b).abs().max() <= 1e-10 * b.abs().max() for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_head_of_depth_k_has_k_minus_1_convolutions_and_one_linear_layer(depth):
    head = heads.conv(Boundary("image", (4, 6, 8, 8)), 3, depth=depth)
    kinds = [type(m) for m in head.modules()]
    assert (kinds.count(nn.Conv2d), kinds.count(nn.Linear)) == (depth - 1, 1)


def test_labels_beyond_the_classes_and_nan_inputs_are_refused_by_the_trainer():
    trainer = trained(Greedy(3), steps=0)
    x = torch.randn(4, 2, 6, 6)
    with pytest.raises(DataError):
        trainer.step(x, torch.tensor([0, 1, 2, 3]))
    with pytest.raises(NonFiniteLossError):
        trainer.step(x * torch.nan, torch.tensor([0, 1, 2, 0]))
