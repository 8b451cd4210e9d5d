"""Networks of papers that are no built-in models, by the name `modulewise.recipes.networks:FUNCTION`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from .. import models
from ..methods.targets import orthogonal_
from ..models import Shape
from ..models.greedy import greedy_cnn
from ..models.patching import patches

__all__ = [
    "dni_cnn",
    "dni_mlp",
    "feedback_mlp",
    "gim_patches_4",
    "gim_patches_16",
    "greedy_cnn_linear",
    "hsic_mlp",
    "local_loss_mlp",
    "local_loss_mlp_leaky",
    "local_loss_vgg8b",
    "local_loss_vgg8b_leaky",
    "local_loss_vgg11b",
    "local_loss_vgg11b_leaky",
    "orthogonal_mlp",
    "resnet18_small",
    "resnet20",
    "simple_vgg",
    "tanh_mlp",
]


def local_loss_mlp(shape: Shape, classes: int) -> nn.Sequential:
    """The perceptron of Nøkland and Eidnes: fc1, fc2, fc3 of 1024 (Linear, batch norm, ReLU), dropout 0.1, head.

    Dropout stands at the beginning of the next block, so that a local loss on a block reads what was not dropped.

    >>> [name for name, _ in local_loss_mlp((1, 8, 8), 10).named_children()]
    ['flatten', 'fc1', 'fc2', 'fc3', 'head']
    """
    return _local_loss_mlp(shape, classes, nn.ReLU)


def local_loss_mlp_leaky(shape: Shape, classes: int) -> nn.Sequential:
    """`local_loss_mlp` with leaky ReLU, as published for `sim` and `predsim`."""
    return _local_loss_mlp(shape, classes, nn.LeakyReLU)


def _local_loss_mlp(shape: Shape, classes: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    features = shape[0] * shape[1] * shape[2]
    blocks = OrderedDict[str, nn.Module](flatten=nn.Flatten())
    for index in range(1, 4):
        layers = OrderedDict[str, nn.Module]()
        if index > 1:
            layers["dropout"] = nn.Dropout(0.1)
        layers |= {"linear": nn.Linear(features, 1024), "norm": nn.BatchNorm1d(1024), "activation": activation()}
        blocks[f"fc{index}"] = nn.Sequential(layers)
        features = 1024
    head = OrderedDict[str, nn.Module](dropout=nn.Dropout(0.1), linear=nn.Linear(features, classes))
    return nn.Sequential(OrderedDict(blocks, head=nn.Sequential(head)))


def local_loss_vgg8b(shape: Shape, classes: int) -> nn.Sequential:
    """VGG8B with dropout 0.2 at the beginning of every block but the first, where no local loss reads it.

    >>> [type(layer).__name__ for layer in local_loss_vgg8b((1, 8, 8), 10).conv2]
    ['Dropout2d', 'Conv2d', 'BatchNorm2d', 'ReLU']
    """
    return _dropping(models.vgg8b(shape, classes), nn.ReLU)


def local_loss_vgg8b_leaky(shape: Shape, classes: int) -> nn.Sequential:
    """`local_loss_vgg8b` with leaky ReLU, as published for `sim` and `predsim`."""
    return _dropping(models.vgg8b(shape, classes), nn.LeakyReLU)


def local_loss_vgg11b(shape: Shape, classes: int) -> nn.Sequential:
    """VGG11B with dropout 0.2, as `local_loss_vgg8b`."""
    return _dropping(models.vgg11b(shape, classes), nn.ReLU)


def local_loss_vgg11b_leaky(shape: Shape, classes: int) -> nn.Sequential:
    """`local_loss_vgg11b` with leaky ReLU, as published for `sim` and `predsim`."""
    return _dropping(models.vgg11b(shape, classes), nn.LeakyReLU)


def _dropping(network: nn.Sequential, activation: Callable[[], nn.Module]) -> nn.Sequential:
    """The chain with other activations, and dropout before every convolution and linear layer but the first."""
    made = OrderedDict[str, nn.Module]()
    first = True
    for name, block in network.named_children():
        layers = OrderedDict[str, nn.Module]()
        for inner, layer in block.named_children() or ():
            layers[inner] = activation() if isinstance(layer, nn.ReLU) else layer
        if name == "head":
            layers["linear"] = block
        if not layers:  # pooling and flattening
            made[name] = block
            continue
        before = nn.Dropout2d(0.2) if "conv" in layers else nn.Dropout(0.2)
        made[name] = nn.Sequential(layers if first else OrderedDict({"dropout": before, **layers}))
        first = False
    return nn.Sequential(made)


def greedy_cnn_linear(shape: Shape, classes: int) -> nn.Sequential:
    """The network that Belilovsky et al. train with linear auxiliary classifiers (k = 1): five blocks from 256 on.

    >>> [name for name, _ in greedy_cnn_linear((3, 8, 8), 10).named_children()]
    ['conv1', 'conv2', 'down3', 'conv3', 'down4', 'conv4', 'conv5', 'pool', 'flatten', 'head']
    """
    return greedy_cnn(shape, classes, width=256, blocks=5, down=(3, 4), normed=False)


def hsic_mlp(shape: Shape, classes: int) -> nn.Sequential:
    """The perceptron of the HSIC bottleneck: fc1 to fc5 of 128 (Linear, batch norm, ReLU) and a linear head.

    >>> [name for name, _ in hsic_mlp((1, 8, 8), 10).named_children()]
    ['flatten', 'fc1', 'fc2', 'fc3', 'fc4', 'fc5', 'head']
    """
    features = shape[0] * shape[1] * shape[2]
    blocks = OrderedDict[str, nn.Module](flatten=nn.Flatten())
    for index in range(1, 6):
        blocks[f"fc{index}"] = nn.Sequential(
            OrderedDict(linear=nn.Linear(features, 128), norm=nn.BatchNorm1d(128), relu=nn.ReLU())
        )
        features = 128
    return nn.Sequential(OrderedDict(blocks, head=nn.Linear(features, classes)))


def gim_patches_16(shape: Shape, classes: int) -> nn.Sequential:
    """`models.patches` on patches of 8 x 8 pixels, half overlapping, from 16 channels on.

    >>> [name for name, _ in gim_patches_16((1, 28, 28), 10).named_children()]
    ['patches', 'conv1', 'conv2', 'conv3', 'conv4', 'mean', 'head']
    """
    return patches(shape, classes, patch=8, stride=4, width=16)


def resnet18_small(shape: Shape, classes: int) -> nn.Module:
    """ResNet-18 of torchvision for small images: a 3x3 stem of stride 1, and no pooling behind it.

    Raises:
        ModulewiseError: torchvision is not installed, or images have not three channels.
    """
    network = models.build("torchvision:resnet18", shape=shape, classes=classes)
    stem = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    network.conv1, network.maxpool = stem, nn.Identity()
    return network


def feedback_mlp(shape: Shape, classes: int) -> nn.Sequential:
    """The perceptron of Akrout et al., one hidden block fc1 of 500 units (Linear, Tanh) and a linear head.

    >>> [name for name, _ in feedback_mlp((1, 8, 8), 10).named_children()]
    ['flatten', 'fc1', 'head']
    """
    hidden = OrderedDict[str, nn.Module](linear=nn.Linear(shape[0] * shape[1] * shape[2], 500), tanh=nn.Tanh())
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), fc1=nn.Sequential(hidden), head=nn.Linear(500, classes)))


def resnet20(shape: Shape, classes: int) -> nn.Sequential:
    """ResNet-20 in CIFAR form: `models.resnet32` with 3 blocks a stage.

    >>> sum(p.numel() for p in resnet20((3, 32, 32), 10).parameters())
    269722
    """
    network = models.resnet32(shape, classes)
    for stage in ("layer1", "layer2", "layer3"):
        setattr(network, stage, getattr(network, stage)[:3])
    return network


def gim_patches_4(shape: Shape, classes: int) -> nn.Sequential:
    """`models.patches` on patches of 4 x 4 pixels, at every place, from 16 channels on.

    >>> [name for name, _ in gim_patches_4((1, 8, 8), 10).named_children()]
    ['patches', 'conv1', 'conv2', 'conv3', 'conv4', 'mean', 'head']
    """
    return patches(shape, classes, patch=4, stride=1, width=16)


def tanh_mlp(shape: Shape, classes: int, *, width: int = 256) -> nn.Sequential:
    """A perceptron with hidden blocks fc1, fc2, fc3 (Linear, Tanh) and a linear head, as target propagation uses.

    Args:
        shape: (C, H, W) of one image.
        classes: number of classes.
        width: units of a hidden block, >= 1.

    >>> [name for name, _ in tanh_mlp((1, 8, 8), 10).named_children()]
    ['flatten', 'fc1', 'fc2', 'fc3', 'head']
    """
    features = shape[0] * shape[1] * shape[2]
    blocks = OrderedDict[str, nn.Module](flatten=nn.Flatten())
    for index in range(1, 4):
        blocks[f"fc{index}"] = nn.Sequential(OrderedDict(linear=nn.Linear(features, width), tanh=nn.Tanh()))
        features = width
    return nn.Sequential(OrderedDict(blocks, head=nn.Linear(features, classes)))


def orthogonal_mlp(shape: Shape, classes: int, *, width: int = 256) -> nn.Module:
    """`tanh_mlp` with orthogonal initial weights and no initial biases, as target propagation is published with.

    >>> network = orthogonal_mlp((1, 8, 8), 10, width=4)
    >>> [bool(network.get_parameter(f"fc{k}.linear.bias").any()) for k in (1, 2, 3)]
    [False, False, False]
    """
    return orthogonal_(tanh_mlp(shape, classes, width=width))


def simple_vgg(shape: Shape, classes: int) -> nn.Sequential:
    """The network of Ernoult et al.: conv1 to conv5 of 128, 128, 256, 256, 512 (conv 3x3, ELU, max pool 2), head.

    Images of 32 x 32 are one pixel at the end; pools that would make a side vanish are left out.

    >>> [tuple(block.conv.weight.shape[:2]) for block in list(simple_vgg((3, 32, 32), 10).children())[:5]]
    [(128, 3), (128, 128), (256, 128), (256, 256), (512, 256)]
    """
    channels, height, width = shape
    blocks = OrderedDict[str, nn.Module]()
    for index, out in enumerate((128, 128, 256, 256, 512), start=1):
        layers = OrderedDict[str, nn.Module](conv=nn.Conv2d(channels, out, 3, padding=1), elu=nn.ELU())
        if min(height, width) >= 2:
            layers["pool"] = nn.MaxPool2d(2)
            height, width = height // 2, width // 2
        blocks[f"conv{index}"] = nn.Sequential(layers)
        channels = out
    head = OrderedDict[str, nn.Module](flatten=nn.Flatten(), linear=nn.Linear(channels * height * width, classes))
    return nn.Sequential(OrderedDict(blocks, head=nn.Sequential(head)))


def dni_mlp(shape: Shape, classes: int) -> nn.Sequential:
    """The perceptron of decoupled neural interfaces: fc1, fc2, fc3 of 256 (Linear, batch norm, ReLU) and a head.

    >>> [name for name, _ in dni_mlp((1, 8, 8), 10).named_children()]
    ['flatten', 'fc1', 'fc2', 'fc3', 'head']
    """
    features = shape[0] * shape[1] * shape[2]
    blocks = OrderedDict[str, nn.Module](flatten=nn.Flatten())
    for index in range(1, 4):
        layers = OrderedDict(linear=nn.Linear(features, 256), norm=nn.BatchNorm1d(256), relu=nn.ReLU())
        blocks[f"fc{index}"] = nn.Sequential(layers)
        features = 256
    return nn.Sequential(OrderedDict(blocks, head=nn.Linear(features, classes)))


def dni_cnn(shape: Shape, classes: int) -> nn.Sequential:
    """The network of decoupled neural interfaces: conv1 to conv3 (conv 5x5 of 128, batch norm, ReLU, pool 3x3), head.

    The first pool takes the maximum, the others the mean; pools that would make a side vanish are left out.

    >>> [name for name, _ in dni_cnn((3, 8, 8), 10).named_children()]
    ['conv1', 'conv2', 'conv3', 'head']
    """
    channels, height, width = shape
    blocks = OrderedDict[str, nn.Module]()
    for index, pool in enumerate((nn.MaxPool2d(3), nn.AvgPool2d(3), nn.AvgPool2d(3)), start=1):
        conv = nn.Conv2d(channels, 128, 5, padding=2)
        layers = OrderedDict[str, nn.Module](conv=conv, norm=nn.BatchNorm2d(128), relu=nn.ReLU())
        if min(height, width) >= 3:
            layers["pool"] = pool
            height, width = height // 3, width // 3
        blocks[f"conv{index}"] = nn.Sequential(layers)
        channels = 128
    head = OrderedDict[str, nn.Module](flatten=nn.Flatten(), linear=nn.Linear(128 * height * width, classes))
    return nn.Sequential(OrderedDict(blocks, head=nn.Sequential(head)))
