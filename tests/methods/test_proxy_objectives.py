import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modulewise import heads, losses
from modulewise.errors import MethodError
from modulewise.method import Family, Reach
from modulewise.methods.objectives import HeadLoss, TaskLoss
from modulewise.methods.proxy import DGL, AugLocal, Greedy, KernelProxy, PredSim
from modulewise.objective import Context, Site
from modulewise.partition.boundary import Block, Boundary

IMAGE = Boundary("layer1", (4, 6, 8, 8))
IMAGE_LAST = Boundary("stage1", (4, 8, 8, 6), channel_axis=-1)
TOKENS = Boundary("encoder", (4, 5, 6), channel_axis=-1)
VECTOR = Boundary("fc1", (4, 6))
METHODS = [Greedy(3), DGL(3), PredSim(3), KernelProxy(), AugLocal(3)]
Y = torch.tensor([0, 1, 0, 2])
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)


def later_blocks():
    module = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    return (Block("layer2", module, IMAGE, IMAGE),)


def site(boundary=IMAGE, *, part=0, parts=3, loss=losses.classification, blocks=tuple):
    output = None if part == parts - 1 else boundary
    return Site(part, parts, None, output, loss, blocks)


def context(h, y=Y):
    return Context(h_in=None, h_out=h, x=None, y=y, views=1, part=0, step=0)


def double(boundary):
    return Boundary(boundary.name, boundary.shape, torch.float64, boundary.channel_axis)


@every_method
def test_last_part_minimises_the_task_loss_and_nothing_else(method):
    objective = method.objective(site(part=2, loss=lambda output, y: (output["logits"] - y).square().sum()))
    h = torch.tensor([1.0, 2.0, 3.0, 5.0])
    assert isinstance(objective, TaskLoss)
    assert objective(context({"logits": h})).loss == 1 + 1 + 9 + 9
    assert not list(objective.parameters())


@every_method
@pytest.mark.parametrize("boundary", [IMAGE, IMAGE_LAST, TOKENS, VECTOR], ids=lambda b: b.name)
def test_objective_gives_a_loss_that_reaches_the_part_in_every_layout(method, boundary):
    torch.manual_seed(0)
    objective = method.objective(site(boundary, blocks=later_blocks))
    for parameter in objective.parameters():  # PredSim's decoder starts at zero, where it passes no gradient yet
        nn.init.normal_(parameter, std=0.1)
    h = torch.randn(boundary.shape, requires_grad=True)
    signal = objective(context(h))
    signal.loss.backward()
    assert signal.loss.shape == ()
    assert signal.gradient is None
    assert h.grad.abs().sum() > 0
    assert all(p.grad is not None for p in objective.parameters())


@every_method
def test_strictly_local_methods_declare_no_message(method):
    objective = method.objective(site(blocks=later_blocks))
    assert method.locality.reach is Reach.STRICT
    assert not method.locality.sends_feedback
    assert method.family is Family.PROXY
    assert method.references
    assert not (objective.waits)
    assert not (objective.hears)
    assert not (objective.reads_input_gradient)
    assert objective.messages(context(torch.zeros(IMAGE.shape))) == {}


@every_method
def test_same_seed_gives_identical_heads(method):
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(method.objective(site(blocks=later_blocks)).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("dense", [Greedy(3, depth=2, dense=True), DGL(3, dense=True), AugLocal(3, dense=True)])
@pytest.mark.parametrize(("boundary", "shape"), [(IMAGE, (4, 16, 16)), (TOKENS, (4, 5))], ids=["pixels", "tokens"])
def test_dense_methods_take_one_label_per_position(dense, boundary, shape):
    blocks = later_blocks if boundary is IMAGE else tuple
    objective = dense.objective(site(boundary, blocks=blocks))
    assert objective(context(torch.randn(boundary.shape), torch.randint(3, shape))).loss.shape == ()


def test_head_loss_is_the_criterion_on_the_logits_of_the_head():
    head, h = nn.Linear(6, 3), torch.randn(4, 6)
    assert torch.equal(HeadLoss(head, F.cross_entropy)(context(h)).loss, F.cross_entropy(head(h), Y))


def test_greedy_and_dgl_minimise_the_loss_of_the_head_that_was_asked_for():
    """The same seed gives the same head, made by hand."""
    h = torch.randn(IMAGE.shape)
    pairs = [
        (Greedy(3, depth=3, width=5), lambda: heads.conv(IMAGE, 3, depth=3, width=5)),
        (Greedy(3), lambda: heads.linear(IMAGE, 3)),
        (DGL(3), lambda: heads.mlp_sr(IMAGE, 3)),
        (DGL(3, head=heads.mlp), lambda: heads.mlp(IMAGE, 3)),
    ]
    for method, make in pairs:
        torch.manual_seed(1)
        objective = method.objective(site())
        torch.manual_seed(1)
        assert torch.equal(objective(context(h)).loss, F.cross_entropy(make()(h), Y))


def literal_predsim(h, y, weight, bias, kernel, beta, classes):
    """(1 - beta) CE(W h, y) + beta mean (R - R*)^2 by loops, for a boundary that needs no pooling."""
    n = len(y)
    prediction = 0.0
    for i in range(n):
        logits = [(weight[c] * h[i].flatten()).sum() + bias[c] for c in range(classes)]
        prediction = prediction + torch.log(sum(torch.exp(v) for v in logits)) - logits[y[i]]
    mapped = F.conv2d(h, kernel, padding=1)
    rows = []
    for i in range(n):
        deviation = [mapped[i, c].std() for c in range(h.shape[1])]
        mean = sum(deviation) / len(deviation)
        norm = sum((d - mean) ** 2 for d in deviation) ** 0.5
        rows.append([(d - mean) / norm for d in deviation])
    similarity = 0.0
    for i in range(n):
        for j in range(n):
            cosine = sum(a * b for a, b in zip(rows[i], rows[j], strict=True))
            similarity = similarity + (cosine - (1.0 if y[i] == y[j] else -1 / (classes - 1))) ** 2
    return (1 - beta) * prediction / n + beta * similarity / n**2


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.99, 1.0])
def test_predsim_equals_the_literal_formula(beta):
    torch.manual_seed(0)
    objective = PredSim(3, beta=beta).objective(site(double(IMAGE)))
    named = dict(objective.named_parameters())
    weight = torch.randn(3, IMAGE.features, dtype=torch.float64)
    bias = torch.randn(3, dtype=torch.float64)
    kernel = torch.randn(6, 6, 3, 3, dtype=torch.float64)
    given = {(3, IMAGE.features): weight, (3,): bias, (6, 6, 3, 3): kernel}
    with torch.no_grad():
        for parameter in named.values():
            parameter.copy_(given[tuple(parameter.shape)])
    assert len(named) == {0.0: 2, 1.0: 1}.get(beta, 3)  # a term that does not count has no parameters either
    h = torch.randn(IMAGE.shape, dtype=torch.float64)
    first, second = h.clone().requires_grad_(), h.clone().requires_grad_()
    loss = objective(context(first)).loss
    literal = literal_predsim(second, Y, weight, bias, kernel, beta, 3)
    loss.backward()
    literal.backward()
    assert abs(loss - literal) <= 1e-10 * abs(literal)
    assert (first.grad - second.grad).abs().max() <= 1e-10 * second.grad.abs().max()


def test_predsim_decoder_starts_at_zero_and_stays_within_its_features():
    boundary = Boundary("conv1", (4, 128, 32, 32))
    objective = PredSim(10, beta=0.5).objective(site(boundary))
    decoder = next(m for m in objective.modules() if isinstance(m, nn.Linear))
    assert decoder.in_features == 2048
    assert torch.equal(decoder.weight, torch.zeros(10, 2048))
    assert torch.equal(decoder.bias, torch.zeros(10))


@pytest.mark.parametrize("kernel", [losses.TANH, losses.RELU, losses.gaussian(2.0)], ids=lambda k: k.name)
@pytest.mark.parametrize("maximise", [losses.alignment, losses.nmse, losses.contrastive, losses.raw])
def test_kernel_proxy_descends_minus_the_objective(kernel, maximise):
    objective = KernelProxy(kernel=kernel, maximise=maximise).objective(site(VECTOR))
    h = torch.randn(VECTOR.shape)
    value = maximise(kernel.gram(h), Y, minimum=kernel.minimum, maximum=kernel.maximum)
    assert torch.equal(objective(context(h)).loss, -value)


def test_auglocal_depth_falls_linearly_from_first_part_to_last_but_one():
    depths = [AugLocal(10, depth=5).depth_at(part, parts=6) for part in range(5)]
    assert depths == [5, 4, 3, 2, 1]
    assert AugLocal(10, depth=4).depth_at(0, parts=2) == 4
    assert [AugLocal(10, depth=3, minimum_depth=3).depth_at(p, parts=4) for p in range(3)] == [3, 3, 3]


def test_auglocal_copies_as_many_blocks_as_its_depth():
    def blocks():
        return later_blocks() * 5

    counts = []
    for part in range(4):
        objective = AugLocal(10, depth=4).objective(site(part=part, parts=5, blocks=blocks))
        counts.append(sum(isinstance(m, nn.BatchNorm2d) for m in objective.modules()))
    assert counts == [4, 3, 2, 1]


def test_auglocal_updates_do_not_move_the_network_it_copies():
    blocks = later_blocks()
    before = {name: value.clone() for name, value in blocks[0].module.state_dict().items()}
    objective = AugLocal(3).objective(site(blocks=lambda: blocks))
    objective(context(torch.randn(IMAGE.shape))).loss.backward()
    torch.optim.SGD(objective.parameters(), lr=1.0).step()
    assert all(torch.equal(value, before[name]) for name, value in blocks[0].module.state_dict().items())
    assert all(p.grad is None for p in blocks[0].module.parameters())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Greedy(0), "classes=0"),
        (lambda: Greedy(3, depth=0), "depth=0"),
        (lambda: DGL(0), "classes=0"),
        (lambda: PredSim(1), "classes=1"),
        (lambda: PredSim(3, beta=1.5), "beta=1.5"),
        (lambda: PredSim(3, decoder_features=0), "decoder_features=0"),
        (lambda: KernelProxy(pool=0), "pool=0"),
        (lambda: AugLocal(3, depth=0), "depth=0"),
        (lambda: AugLocal(3, depth=1, minimum_depth=2), "minimum_depth=2"),
        (lambda: AugLocal(3, shrink=0), "shrink=0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(make, says):
    with pytest.raises(MethodError, match=says):
        make()
