"""Built-in models: shapes, sizes and that every block can be a cut; models by name."""

import sys
from math import prod

import pytest
import torch
from torch import nn

from modulewise import models
from modulewise.errors import ModulewiseError

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]
SMALL = {
    "greedy-cnn": {"width": 4},
    "vgg8b": {"multiplier": 0.0625},
    "vgg11b": {"multiplier": 0.0625},
    "resnet110": {"width": 2},
}


def function(name):
    return getattr(models, name.replace("-", "_"))


def small(name, shape, classes):
    return function(name)(shape, classes, **SMALL.get(name, {}))


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("shape", [*SHAPES, (2, 1, 3), (3, 30, 17)])
@pytest.mark.parametrize("name", models.names())
def test_images_of_any_size_give_one_row_of_logits_each_and_gradients_everywhere(name, shape):
    model = small(name, shape, 7)
    out = model(torch.rand(3, *shape))
    assert out.shape == (3, 7)
    out.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", models.names())
def test_every_named_module_is_called_exactly_once(name):
    model = small(name, (1, 8, 8), 10)
    calls = dict.fromkeys(dict(model.named_modules()), 0)
    for key, module in model.named_modules():
        module.register_forward_hook(lambda *_, key=key: calls.__setitem__(key, calls[key] + 1))
    model(torch.rand(2, 1, 8, 8))
    assert set(calls.values()) == {1}


@pytest.mark.parametrize("name", models.names())
def test_no_two_places_share_a_module(name):
    model = small(name, (1, 8, 8), 10)
    every = [id(m) for _, m in model.named_modules(remove_duplicate=False)]
    assert len(every) == len(set(every))


READ_OTHERWISE = {"gln", "lstm-rows", "rnn-pixels", "rnn-rows"}  # layers that read x as well, windows of time


@pytest.mark.parametrize("name", sorted(set(models.names()) - READ_OTHERWISE))
def test_the_chain_of_children_is_the_model(name):
    model = small(name, (1, 8, 8), 10).eval()
    x = h = torch.rand(2, 1, 8, 8)
    for child in model.children():
        h = child(h)
    assert torch.equal(h, model(x))


def conv_weights(channels, plan):
    return sum(9 * a * b for a, b in zip((channels, *plan[:-1]), plan, strict=True))


@pytest.mark.parametrize(
    ("name", "plan", "published"),
    [
        ("vgg8b", (128, 256, 256, 512, 512, 512), 8.9e6),
        ("vgg11b", (128, 128, 128, 256, 256, 512, 512, 512, 512), 11.6e6),
    ],
)
def test_vgg_parameters_equal_the_sum_by_hand_and_the_published_figure(name, plan, published):
    features = 512 * 2 * 2  # 32x32 after four pools
    linear = features * 1024 + 1024 * 10 + 10
    norms = 2 * (sum(plan) + 1024)
    with torch.device("meta"):
        model = getattr(models, name)((3, 32, 32), 10)
    assert count(model) == conv_weights(3, plan) + norms + linear
    assert abs(count(model) - published) < 0.05e6


@pytest.mark.parametrize(("multiplier", "published"), [(2, 42.0e6), (3, 91.3e6)])
def test_the_multiplier_widens_convolutions_alone_as_published(multiplier, published):
    with torch.device("meta"):
        model = models.vgg11b((3, 32, 32), 10, multiplier=multiplier)
    assert abs(count(model) - published) < 0.1e6
    assert model.fc1.linear.out_features == 1024


def test_vgg_weight_shapes_and_pools_by_image_size():
    with torch.device("meta"):
        found = {shape: models.vgg8b(shape, 10) for shape in SHAPES}
    for shape, features, pools in zip(SHAPES, (512, 512, 2048), (3, 4, 4), strict=True):
        model = found[shape]
        assert model.conv1.conv.weight.shape == (128, shape[0], 3, 3)
        assert model.fc1.linear.weight.shape == (1024, features)
        assert sum(isinstance(m, nn.MaxPool2d) for m in model) == pools


def test_vgg_norms_before_each_relu_and_drops_after_it():
    model = models.vgg8b((1, 8, 8), 10, multiplier=0.0625, dropout=0.2)
    kinds = [type(m) for m in model.conv1]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Dropout2d]
    assert [type(m) for m in model.fc1] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]
    assert not any(isinstance(m, nn.Dropout2d) for m in models.vgg8b((1, 8, 8), 10, multiplier=0.0625).modules())


@pytest.mark.parametrize(("name", "n"), [("resnet32", 5), ("resnet110", 18)])
@pytest.mark.parametrize(("channels", "classes"), [(3, 10), (1, 100)])
def test_resnet_parameters_equal_the_closed_form(name, n, channels, classes):
    """Stem and 2n convolutions a stage, the first of which changes width; two numbers a channel for each norm."""
    weights = 9 * channels * 16 + 9 * 2 * n * 16**2
    for width in (32, 64):
        weights += 9 * (width // 2) * width + 9 * (2 * n - 1) * width**2
    norms = 2 * (16 + 2 * n * (16 + 32 + 64))
    model = getattr(models, name)((channels, 32, 32), classes)
    assert count(model) == weights + norms + 64 * classes + classes


def test_resnet_sizes_are_the_published_ones():
    assert abs(count(models.resnet32((3, 32, 32), 10)) - 0.46e6) < 0.005e6
    assert abs(count(models.resnet110((3, 32, 32), 10)) - 1.7e6) < 0.05e6


def test_resnet_stages_halve_the_image_after_a_stem_without_pooling():
    model = models.resnet32((3, 32, 32), 10)
    h = torch.rand(2, 3, 32, 32)
    shapes = []
    for child in (model.stem, model.layer1, model.layer2, model.layer3):
        h = child(h)
        shapes.append(tuple(h.shape[1:]))
    assert shapes == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_a_residual_block_with_zero_weights_subsamples_and_pads_channels():
    block = models.resnet32((3, 32, 32), 10).layer2[0].eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 16, 7, 7)
    out = block(x)
    assert torch.equal(out[:, :16], x[:, :, ::2, ::2])
    assert torch.equal(out[:, 16:], torch.zeros(2, 16, 4, 4))


@pytest.mark.parametrize("shape", SHAPES)
def test_mlp_parameters_equal_the_closed_form(shape):
    model = models.mlp(shape, 10, width=20, depth=2)
    assert count(model) == prod(shape) * 20 + 20 + 20 * 20 + 20 + 20 * 10 + 10
    assert count(models.mlp(shape, 10, depth=0)) == prod(shape) * 10 + 10


def test_lenet5_at_28_and_32_is_the_same_network():
    gray = [models.lenet5((1, side, side), 10) for side in (28, 32)]
    assert [count(model) for model in gray] == [61_706, 61_706]
    x = torch.rand(2, 1, 28, 28)
    gray[1].load_state_dict(gray[0].state_dict())
    assert torch.equal(gray[0](x), gray[1](nn.functional.pad(x, (2, 2, 2, 2))))


def test_cnn_weight_shapes():
    model = models.cnn((3, 32, 32), 10, width=4)
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if p.ndim > 1]
    assert shapes == [(4, 3, 3, 3), (8, 4, 3, 3), (16, 8, 3, 3), (16, 16, 3, 3), (10, 16)]


@pytest.mark.parametrize("name", models.names())
def test_build_makes_the_built_in_model(name):
    with torch.device("meta"):
        built, direct = models.build(name, shape=(1, 8, 8), classes=3), function(name)((1, 8, 8), 3)
    assert str(built) == str(direct)


class TestNamed:
    @pytest.fixture(autouse=True)
    def here(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        yield
        for name in ("mine_of_test", "package_of_test"):
            sys.modules.pop(name, None)

    def write(self, tmp_path, body):
        (tmp_path / "mine_of_test.py").write_text(f"import torch\n{body}\n")

    def refused(self, spec, *parts, shape=(3, 32, 32), classes=10):
        with pytest.raises(ModulewiseError) as caught:
            models.build(spec, shape=shape, classes=classes)
        assert "\n" not in str(caught.value)
        for part in parts:
            assert part in str(caught.value)

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [("*, shape, classes", (3, 10)), ("classes", (1, 10)), ("shape, depth=1", (3, 1)), ("", (1, 1))],
    )
    def test_a_function_in_the_current_directory_gets_the_arguments_it_names(self, tmp_path, arguments, expected):
        self.write(
            tmp_path,
            f"def net({arguments}):\n"
            "    given = locals()\n"
            "    return torch.nn.Linear(given.get('shape', (1,))[0], given.get('classes', 1))",
        )
        before = list(sys.path)
        model = models.build("mine_of_test:net", shape=(3, 32, 32), classes=10)
        assert (model.in_features, model.out_features) == expected
        assert sys.path == before

    def test_a_class_is_a_function_too(self, tmp_path):
        self.write(
            tmp_path, "class Net(torch.nn.Linear):\n    def __init__(self, classes): super().__init__(2, classes)"
        )
        assert models.build("mine_of_test:Net", shape=(3, 8, 8), classes=4).out_features == 4

    @pytest.mark.parametrize(
        ("body", "parts"),
        [
            ("def net(): return 3", ("returned a int", "torch.nn.Module")),
            ("def ned(): return 3", ("no 'net'", "did you mean 'ned'?")),
            ("net = torch.nn.Linear(1, 1)", ("a Linear, not a function",)),
            ("def net(depth): return torch.nn.Linear(1, 1)", ("'depth'", "default")),
        ],
    )
    def test_a_function_that_does_not_fit_is_refused(self, tmp_path, body, parts):
        self.write(tmp_path, body)
        self.refused("mine_of_test:net", *parts)

    def test_errors_of_the_users_own_code_are_shown_as_they_are(self, tmp_path):
        self.write(tmp_path, "import not_there_of_test")
        with pytest.raises(ModuleNotFoundError, match="not_there_of_test"):
            models.build("mine_of_test:net", shape=(3, 8, 8), classes=2)
        self.write(tmp_path, "def net(): raise KeyError('mine')")
        with pytest.raises(KeyError, match="mine"):
            models.build("mine_of_test:net", shape=(3, 8, 8), classes=2)

    @pytest.mark.parametrize(
        ("spec", "parts"),
        [
            ("resnet23", ("unknown model 'resnet23'", "did you mean 'resnet32'?")),
            ("torchvison:resnet18", ("no module 'torchvison'", "did you mean 'torchvision'?")),
            ("package_of_test.models:net", ("no module 'package_of_test.models'",)),
            ("../models.py:net", ("package.module:function",)),
            (":net", ("package.module:function",)),
            ("torch.nn:", ("package.module:function",)),
        ],
    )
    def test_a_name_that_leads_nowhere_is_refused(self, spec, parts):
        self.refused(spec, *parts)

    @pytest.mark.parametrize(("shape", "classes"), [((32, 32), 10), ((0, 8, 8), 10), ((1, 8, 8), 0)])
    def test_a_task_without_images_or_classes_is_refused(self, shape, classes):
        self.refused("cnn", "expected", shape=shape, classes=classes)

    @pytest.mark.parametrize(("spec", "package"), [("torchvision:resnet18", "torchvision.models"), ("timm:x", "timm")])
    def test_a_missing_package_is_answered_by_the_extra_to_install(self, monkeypatch, spec, package):
        monkeypatch.setitem(sys.modules, package, None)
        self.refused(spec, package, "pip install 'modulewise[vision]'")


def forward(spec, shape):
    with torch.device("meta"):
        model = models.build(spec, shape=shape, classes=7)
        return model(torch.rand(2, *shape))


class TestTorchvision:
    @pytest.fixture(autouse=True)
    def torchvision(self):
        pytest.importorskip("torchvision", reason="the extra 'vision' is not installed")

    @pytest.mark.parametrize(
        ("name", "side"), [("resnet18", 32), ("googlenet", 32), ("inception_v3", 96), ("vit_b_32", 64)]
    )
    def test_one_tensor_of_logits_for_the_classes_asked_for(self, name, side):
        out = forward(f"torchvision:{name}", (3, side, side))
        assert isinstance(out, torch.Tensor)
        assert out.shape == (2, 7)

    @pytest.mark.parametrize(
        ("name", "shape", "part"),
        [
            ("resnet81", (3, 32, 32), "did you mean 'resnet"),
            ("resnet18", (1, 28, 28), "3 channels, not 1"),
            ("vit_b_32", (3, 33, 33), "patch size"),
        ],
    )
    def test_what_does_not_exist_or_fit_is_refused_in_one_line(self, name, shape, part):
        with pytest.raises(ModulewiseError, match=rf"^[^\n]*{part}[^\n]*$"):
            forward(f"torchvision:{name}", shape)


class TestTimm:
    @pytest.fixture(autouse=True)
    def timm(self):
        pytest.importorskip("timm", reason="the extra 'vision' is not installed")

    @pytest.mark.parametrize(
        ("name", "shape"),
        [("resnet18", (1, 28, 28)), ("vit_tiny_patch16_224", (3, 32, 32)), ("mixer_s32_224", (1, 64, 64))],
    )
    def test_logits_at_the_size_and_channels_of_the_images(self, name, shape):
        assert forward(f"timm:{name}", shape).shape == (2, 7)

    def test_a_model_that_does_not_exist_is_refused_with_the_closest(self):
        with pytest.raises(ModulewiseError, match=r"^[^\n]*did you mean 'resnet18'\?$"):
            forward("timm:resnet1", (3, 32, 32))
