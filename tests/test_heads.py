import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modulewise import heads
from modulewise.errors import MethodError
from modulewise.heads.fitting import adapter
from modulewise.heads.layers import pooled
from modulewise.partition.boundary import Block, Boundary

VECTOR = Boundary("vector", (2, 12))
TOKENS = Boundary("tokens", (2, 5, 12), channel_axis=-1)
SEQUENCE = Boundary("sequence", (2, 12, 9))
IMAGE = Boundary("image", (2, 12, 8, 6))
IMAGE_LAST = Boundary("image_last", (2, 8, 6, 12), channel_axis=-1)
POINT = Boundary("point", (2, 12, 1, 1))
VOLUME = Boundary("volume", (2, 12, 4, 4, 4))
BOUNDARIES = [VECTOR, TOKENS, SEQUENCE, IMAGE, IMAGE_LAST, POINT, VOLUME]
FACTORIES = {
    "linear": heads.linear,
    "mlp": heads.mlp,
    "mlp_sr": heads.mlp_sr,
    "conv": heads.conv,
    "conv depth 3": partial(heads.conv, depth=3, width=7),
    "downstream without blocks": partial(heads.downstream, blocks=()),
}
by_name = {"ids": lambda b: b.name}
factories = pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES.keys())


def batch(boundary, n):
    return torch.randn(n, *boundary.shape[1:], dtype=boundary.dtype)


@factories
@pytest.mark.parametrize("boundary", BOUNDARIES, **by_name)
@pytest.mark.parametrize("n", [1, 5])
def test_head_gives_one_row_per_sample_in_every_layout_and_batch_size(factory, boundary, n):
    h = batch(boundary, n).requires_grad_()
    logits = factory(boundary, 10)(h)
    assert logits.shape == (n, 10)
    logits.square().sum().backward()
    assert h.grad.abs().sum() > 0


@factories
@pytest.mark.parametrize(
    ("boundary", "sizes"),
    [(TOKENS, (5, 10)), (SEQUENCE, (9, 10)), (IMAGE, (10, 8, 6)), (IMAGE_LAST, (10, 8, 6))],
    ids=lambda b: getattr(b, "name", ""),
)
def test_dense_head_gives_logits_per_position(factory, boundary, sizes):
    if factory is heads.mlp_sr and len(sizes) == 3:
        sizes = (10, 2, 2)  # its point is to work at a reduced resolution
    assert factory(boundary, 10, dense=True)(batch(boundary, 3)).shape == (3, *sizes)


@factories
def test_dense_head_without_positions_is_refused(factory):
    with pytest.raises(MethodError, match="positions"):
        factory(VECTOR, 10, dense=True)


@pytest.mark.parametrize("name", [n for n in FACTORIES if "downstream" not in n])
def test_dense_head_on_tokens_looks_at_one_position_alone(name):
    """A language model's label is its next token: a head that mixes positions would read the answer."""
    head = FACTORIES[name](TOKENS, 10, dense=True)
    h = batch(TOKENS, 3)
    changed = h.clone()
    changed[:, 2] += 1.0
    same = (head(h) == head(changed)).all(-1).all(0)
    assert same.tolist() == [True, True, False, True, True]


@factories
def test_channels_last_head_equals_its_channels_first_twin(factory):
    torch.manual_seed(0)
    first = factory(IMAGE, 10)
    torch.manual_seed(0)
    last = factory(IMAGE_LAST, 10)
    h = batch(IMAGE, 4)
    torch.testing.assert_close(last(h.movedim(1, -1)), first(h))


@factories
def test_same_seed_gives_the_same_head_and_another_seed_another(factory):
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(list(factory(IMAGE, 10).parameters()))
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(states[0], states[2], strict=True))


@factories
def test_head_has_the_element_type_of_the_boundary(factory):
    boundary = Boundary("double", (2, 12, 8, 6), torch.float64)
    assert factory(boundary, 10)(batch(boundary, 2)).dtype == torch.float64


def test_linear_is_an_affine_map_of_the_average_over_a_2x2_grid():
    head = heads.linear(IMAGE, 10)
    h, (weight, bias) = batch(IMAGE, 3), head.parameters()
    cells = [h[:, :, i : i + 4, j : j + 3].mean((2, 3)) for i in (0, 4) for j in (0, 3)]
    features = torch.stack(cells, dim=2).flatten(1)
    torch.testing.assert_close(head(h), features @ weight.T + bias)


def test_linear_averages_tokens_to_one():
    head = heads.linear(TOKENS, 10)
    h, (weight, bias) = batch(TOKENS, 3), head.parameters()
    torch.testing.assert_close(head(h), h.mean(1) @ weight.T + bias)


def test_conv_of_depth_one_is_linear():
    torch.manual_seed(0)
    a = heads.linear(IMAGE, 10)
    torch.manual_seed(0)
    b = heads.conv(IMAGE, 10, depth=1)
    h = batch(IMAGE, 3)
    assert torch.equal(a(h), b(h))


def test_conv_of_depth_k_has_k_minus_1_convolutions():
    modules = list(heads.conv(IMAGE, 10, depth=3, width=7).modules())
    kernels = [(m.in_channels, m.out_channels, m.kernel_size) for m in modules if isinstance(m, nn.Conv2d)]
    assert kernels == [(12, 7, (3, 3)), (7, 7, (3, 3))]


def test_mlp_sr_has_the_published_shape():
    """Three 1x1 convolutions at a quarter of the resolution, then three linear layers, 4 C units wide."""
    boundary = Boundary("layer1", (2, 16, 32, 32))
    head, seen = heads.mlp_sr(boundary, 10), []
    for module in head.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda m, args, out: seen.append((tuple(args[0].shape[1:]), out.shape[1])))
    head(batch(boundary, 2))
    assert seen == [((16, 8, 8), 16)] * 3 + [((64,), 64), ((64,), 64), ((64,), 10)]


@pytest.mark.parametrize("sizes", [(4, 3), (2, 2), (1, 1), (3, 5), (8, 6)])
def test_pooled_equals_adaptive_average_pooling(sizes):
    h = batch(IMAGE, 2).double()
    torch.testing.assert_close(pooled(h, sizes), F.adaptive_avg_pool2d(h, sizes))


@pytest.mark.parametrize("boundary", BOUNDARIES, **by_name)
@pytest.mark.parametrize("shape", [(3, 16, 16), (7,), (2, 11)])
def test_decoder_gives_the_shape_of_the_target(boundary, shape):
    assert heads.decoder(boundary, shape)(batch(boundary, 3)).shape == (3, *shape)


def test_decoder_of_an_image_has_the_published_layers():
    kinds = [type(m).__name__ for m in heads.decoder(IMAGE, (3, 16, 16))]
    assert kinds == ["ResizedConvolution", "BatchNorm2d", "ReLU", "Conv2d"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: heads.linear(IMAGE, 0), "outputs=0"),
        (lambda: heads.conv(IMAGE, 10, depth=0), "depth=0"),
        (lambda: heads.mlp(IMAGE, 10, width=0), "width=0"),
        (lambda: heads.downstream(IMAGE, 10, blocks=(), shrink=0), "shrink=0"),
        (lambda: heads.decoder(IMAGE, ()), r"\(\)"),
        (lambda: heads.linear(Boundary("five", (2, 3, 1, 1, 1, 1)), 10), "3 spatial axes"),
    ],
)
def test_heads_refuse_sizes_that_make_no_sense(make, says):
    with pytest.raises(MethodError, match=says):
        make()


@pytest.mark.parametrize("here", BOUNDARIES, **by_name)
@pytest.mark.parametrize("needed", BOUNDARIES, **by_name)
@pytest.mark.parametrize("channels", [12, 4])
def test_adapter_leads_from_every_layout_to_every_other(here, needed, channels):
    shape = [channels if size == 12 else size for size in needed.shape]
    needed = Boundary(needed.name, tuple(shape), channel_axis=needed.channel_axis)
    assert nn.Sequential(*adapter(here, needed))(batch(here, 3)).shape == (3, *shape[1:])


def test_adapter_is_nothing_where_shapes_agree():
    assert adapter(IMAGE, IMAGE) == []


class Residual(nn.Module):
    """A block with a raw kernel, a layer scale, dropout and a buffer."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.mix = nn.Parameter(torch.ones(outputs, outputs))
        self.scale = nn.Parameter(torch.full((outputs, 1, 1), 1e-5))
        self.dropout = nn.Dropout(0.1)

    def forward(self, h):
        h = self.dropout(self.norm(self.conv(h)).relu())
        return torch.einsum("nchw,dc->ndhw", h, self.mix) * self.scale + h


class Positions(nn.Module):
    """A block that accepts one resolution alone."""

    def __init__(self, channels, height, width):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(channels, height, width))

    def forward(self, h):
        return h + self.table


def blocks_of(modules, x):
    found, h = [], x
    for name, module in modules.items():
        with torch.no_grad():
            after = module.eval()(h)
        found.append(Block(name, module, Boundary(name, tuple(h.shape)), Boundary(name, tuple(after.shape))))
        h = after
    return tuple(found)


@pytest.fixture
def blocks():
    modules = {"a": Residual(12, 12), "b": Residual(12, 20, 2), "act": nn.ReLU(), "c": Residual(20, 20)}
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 10))
    return blocks_of({**modules, "classifier": classifier}, torch.randn(2, 12, 8, 8))


HERE = Boundary("stem", (2, 6, 16, 16))


def copies(head):
    return [m for m in head.modules() if isinstance(m, Residual)]


@pytest.mark.parametrize(("depth", "expected"), [(1, [2]), (2, [0, 2]), (3, [0, 1, 2]), (9, [0, 1, 2])])
def test_downstream_samples_blocks_evenly_and_leaves_out_the_classifier(blocks, depth, expected):
    head = heads.downstream(HERE, 10, blocks=blocks, depth=depth)
    shapes = [(12, 12), (12, 20), (20, 20)]
    assert [(c.conv.in_channels, c.conv.out_channels) for c in copies(head)] == [shapes[i] for i in expected]
    assert head(batch(HERE, 3)).shape == (3, 10)


def test_downstream_copies_share_nothing_and_leave_the_originals_untouched(blocks):
    for block in blocks:
        block.module.requires_grad_(False)
    before = [copy.deepcopy(b.module.state_dict()) for b in blocks]
    own = {t.data_ptr() for b in blocks for t in (*b.module.parameters(), *b.module.buffers())}
    head = heads.downstream(HERE, 10, blocks=blocks, depth=3)
    assert not own & {t.data_ptr() for t in (*head.parameters(), *head.buffers())}
    head(batch(HERE, 4)).square().sum().backward()
    torch.optim.SGD(head.parameters(), lr=1.0).step()
    for block, state in zip(blocks, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in block.module.state_dict().items())
        assert all(p.grad is None and not p.requires_grad for p in block.module.parameters())
        assert not block.module.training
    assert head.training
    assert all(p.requires_grad and p.grad is not None for p in head.parameters())


def test_downstream_copies_start_afresh(blocks):
    """Weights and tables are drawn again, running statistics reset, layer scales kept."""
    with torch.no_grad():
        for block in blocks:
            for tensor in (*block.module.parameters(), *block.module.buffers()):
                tensor.fill_(3)
    (fresh,) = copies(heads.downstream(HERE, 10, blocks=blocks, depth=1))
    assert fresh.conv.weight.abs().max() <= (20 * 9) ** -0.5  # nn.Conv2d draws from U(-1/sqrt(fan_in), ..)
    assert fresh.conv.weight.std() > 0
    assert 0.015 < fresh.mix.std() < 0.025
    assert torch.equal(fresh.scale, torch.full((20, 1, 1), 3.0))
    assert torch.equal(fresh.norm.weight, torch.ones(20))
    assert torch.equal(fresh.norm.running_mean, torch.zeros(20))
    assert fresh.norm.num_batches_tracked == 0


def test_downstream_depends_on_the_seed_alone(blocks):
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(heads.downstream(HERE, 10, blocks=blocks, depth=2).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())


@pytest.mark.parametrize(("shrink", "sizes"), [(1, [(8, 8), (4, 4)]), (2, [(4, 4), (2, 2)]), (8, [(2, 2), (2, 2)])])
def test_downstream_copies_run_at_reduced_resolution(blocks, shrink, sizes):
    head, seen = heads.downstream(HERE, 10, blocks=blocks, depth=2, shrink=shrink), []
    for module in copies(head):
        module.register_forward_hook(lambda m, args, out: seen.append(tuple(args[0].shape[2:])))
    head(batch(HERE, 2))
    assert seen == sizes


def test_downstream_keeps_the_resolution_of_a_block_that_needs_it():
    blocks = blocks_of({"positions": Positions(12, 8, 8)}, torch.randn(2, 12, 8, 8))
    head = heads.downstream(HERE, 10, blocks=blocks, depth=1, shrink=4)
    assert head(batch(HERE, 3)).shape == (3, 10)
    table = next(m for m in head.modules() if isinstance(m, Positions)).table
    assert 0.015 < table.std() < 0.025


def test_downstream_resets_attention_and_runs_over_tokens():
    layer = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True)
    attention = layer.self_attn.in_proj_weight
    tokens = Boundary("tokens", (2, 5, 12), channel_axis=-1)
    with torch.no_grad():
        attention.fill_(7.0)
    head = heads.downstream(IMAGE, 10, blocks=[Block("layer", layer, tokens, tokens)], depth=1)
    fresh = next(m for m in head.modules() if isinstance(m, nn.MultiheadAttention))
    assert fresh.in_proj_weight.abs().max() <= (6 / 48) ** 0.5  # nn.MultiheadAttention draws Xavier-uniformly
    assert head(batch(IMAGE, 3)).shape == (3, 10)
    dense = heads.downstream(tokens, 10, blocks=[Block("layer", layer, tokens, tokens)], dense=True)
    assert dense(batch(tokens, 3)).shape == (3, 5, 10)


def test_downstream_says_which_block_does_not_run_by_itself():
    block = Block("odd", nn.Linear(5, 5), Boundary("odd", (2, 6)), Boundary("odd", (2, 6)))
    with pytest.raises(MethodError, match="'odd'"):
        heads.downstream(VECTOR, 10, blocks=[block])
