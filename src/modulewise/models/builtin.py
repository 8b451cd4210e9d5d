"""Built-in image classifiers: chains of named blocks, each called exactly once, so that each can be a cut."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Shape", "cnn", "lenet5", "mlp", "resnet32", "resnet110", "vgg8b", "vgg11b"]

Shape = tuple[int, int, int]
"""(C, H, W) of one image."""


def _linear(features: int, out: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(linear=nn.Linear(features, out), relu=nn.ReLU()))


def _normed_linear(features: int, out: int, dropout: float) -> nn.Sequential:
    layers = OrderedDict[str, nn.Module](
        linear=nn.Linear(features, out, bias=False), norm=nn.BatchNorm1d(out), relu=nn.ReLU()
    )
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    return nn.Sequential(layers)


def _normed_conv(channels: int, out: int, dropout: float = 0.0) -> nn.Sequential:
    layers = OrderedDict[str, nn.Module](
        conv=nn.Conv2d(channels, out, 3, padding=1, bias=False), norm=nn.BatchNorm2d(out), relu=nn.ReLU()
    )
    if dropout:
        layers["dropout"] = nn.Dropout2d(dropout)
    return nn.Sequential(layers)


def _conv_stack(shape: Shape, plan: tuple[int | None, ...], dropout: float) -> tuple[dict[str, nn.Module], Shape]:
    """Blocks conv1, conv2, pool2, ... of a plan in which None is a 2x2 pool, unless a side would vanish."""
    channels, height, width = shape
    blocks: dict[str, nn.Module] = {}
    count = 0
    for out in plan:
        if out is not None:
            count += 1
            blocks[f"conv{count}"] = _normed_conv(channels, out, dropout)
            channels = out
        elif min(height, width) >= 2:
            blocks[f"pool{count}"] = nn.MaxPool2d(2)
            height, width = height // 2, width // 2
    return blocks, (channels, height, width)


def mlp(shape: Shape, classes: int, *, width: int = 256, depth: int = 3) -> nn.Sequential:
    """A perceptron with hidden blocks fc1, fc2, ... (Linear, ReLU) and a linear head.

    Args:
        shape: (C, H, W) of one image.
        classes: number of classes.
        width: units of a hidden block, >= 1.
        depth: number of hidden blocks, >= 0.

    >>> [name for name, _ in mlp((1, 8, 8), 10).named_children()]
    ['flatten', 'fc1', 'fc2', 'fc3', 'head']
    """
    features = shape[0] * shape[1] * shape[2]
    blocks = OrderedDict[str, nn.Module](flatten=nn.Flatten())
    for i in range(1, depth + 1):
        blocks[f"fc{i}"] = _linear(features, width)
        features = width
    blocks["head"] = nn.Linear(features, classes)
    return nn.Sequential(blocks)


def cnn(shape: Shape, classes: int, *, width: int = 32) -> nn.Sequential:
    """A small convolutional network: conv, conv, pool, conv, pool, conv, mean over space, linear head.

    Every convolution is 3x3 with batch norm and ReLU; channels are width, 2 width, 4 width, 4 width.

    Args:
        shape: (C, H, W) of one image, any size.
        classes: number of classes.
        width: channels of the first block, >= 1.

    >>> [name for name, _ in cnn((1, 8, 8), 10).named_children()]
    ['conv1', 'conv2', 'pool2', 'conv3', 'pool3', 'conv4', 'mean', 'flatten', 'head']
    """
    plan = (width, 2 * width, None, 4 * width, None, 4 * width)
    blocks, (channels, _, _) = _conv_stack(shape, plan, 0.0)
    blocks |= {"mean": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": nn.Linear(channels, classes)}
    return nn.Sequential(OrderedDict(blocks))


def lenet5(shape: Shape, classes: int) -> nn.Sequential:
    """LeNet-5: conv 5x5 with 6 maps, pool, conv 5x5 with 16 maps, pool, 120, 84, head.

    ReLU and max pooling stand for the paper's tanh and trained average pooling, as in present use. Images of
    28x28 up to the paper's 32x32 are zero-padded in the first convolution; smaller ones in both, so that they
    keep their size, and pools that would make a side vanish are left out.

    Args:
        shape: (C, H, W) of one image, any size.
        classes: number of classes.

    References:
        LeCun, Bottou, Bengio, Haffner, Gradient-based learning applied to document recognition,
        Proceedings of the IEEE 1998, http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf

    >>> sum(p.numel() for p in lenet5((1, 28, 28), 10).parameters())
    61706
    """
    channels, height, width = shape
    paddings = (0 if min(height, width) >= 32 else 2, 0 if min(height, width) >= 28 else 2)
    blocks: dict[str, nn.Module] = {}
    for i, (out, padding) in enumerate(zip((6, 16), paddings, strict=True), start=1):
        conv = nn.Conv2d(channels, out, 5, padding=padding)
        blocks[f"conv{i}"] = nn.Sequential(OrderedDict(conv=conv, relu=nn.ReLU()))
        channels, height, width = out, height + 2 * padding - 4, width + 2 * padding - 4
        if min(height, width) >= 2:
            blocks[f"pool{i}"] = nn.MaxPool2d(2)
            height, width = height // 2, width // 2
    blocks |= {
        "flatten": nn.Flatten(),
        "fc1": _linear(channels * height * width, 120),
        "fc2": _linear(120, 84),
    }
    return nn.Sequential(OrderedDict(blocks, head=nn.Linear(84, classes)))


def _vgg(shape: Shape, classes: int, plan: tuple[int | None, ...], multiplier: float, dropout: float) -> nn.Sequential:
    scaled = tuple(None if out is None else max(1, int(out * multiplier)) for out in plan)
    blocks, (channels, height, width) = _conv_stack(shape, scaled, dropout)
    fc1 = _normed_linear(channels * height * width, 1024, dropout)
    blocks |= {"flatten": nn.Flatten(), "fc1": fc1, "head": nn.Linear(1024, classes)}
    return nn.Sequential(OrderedDict(blocks))


def vgg8b(shape: Shape, classes: int, *, multiplier: float = 1.0, dropout: float = 0.0) -> nn.Sequential:
    """VGG8B: 128, 256, pool, 256, 512, pool, 512, pool, 512, pool, fc 1024, head; 8.9 M parameters for CIFAR.

    Convolutions are 3x3; batch norm stands before every ReLU. Convolutions and hidden layers have no bias,
    which batch norm would cancel; pools that would make a side vanish are left out.

    Args:
        shape: (C, H, W) of one image, any size.
        classes: number of classes.
        multiplier: factor on the channels of all convolutions, > 0; the hidden layer keeps 1024 units.
        dropout: probability of dropping a map or unit after each ReLU, in [0, 1).

    References:
        Nøkland, Eidnes, Training neural networks with local error signals, ICML 2019,
        https://arxiv.org/abs/1901.06656

    >>> vgg8b((1, 8, 8), 10, multiplier=0.125).conv6.conv.weight.shape
    torch.Size([64, 64, 3, 3])
    """
    plan = (128, 256, None, 256, 512, None, 512, None, 512, None)
    return _vgg(shape, classes, plan, multiplier, dropout)


def vgg11b(shape: Shape, classes: int, *, multiplier: float = 1.0, dropout: float = 0.0) -> nn.Sequential:
    """VGG11B: 128 x3, 256, pool, 256, 512, pool, 512 x2, pool, 512, pool, fc 1024, head; 11.6 M on CIFAR-10.

    Nine convolutions and two linear layers, built as in :func:`vgg8b`.

    Args:
        shape: (C, H, W) of one image, any size.
        classes: number of classes.
        multiplier: factor on the channels of all convolutions, > 0; the hidden layer keeps 1024 units.
        dropout: probability of dropping a map or unit after each ReLU, in [0, 1).

    References:
        Nøkland, Eidnes, Training neural networks with local error signals, ICML 2019,
        https://arxiv.org/abs/1901.06656

    >>> vgg11b((1, 8, 8), 10, multiplier=0.125).conv9.conv.weight.shape
    torch.Size([64, 64, 3, 3])
    """
    plan = (128, 128, 128, 256, None, 256, 512, None, 512, 512, None, 512, None)
    return _vgg(shape, classes, plan, multiplier, dropout)


class _Residual(nn.Module):
    """relu(f(x) + shortcut(x)); the shortcut subsamples and pads new channels with zeros: no parameters."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.padding = stride, out - channels
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu1(self.norm1(self.conv1(x)))
        # Made after the first convolution, so that a cut at relu1 has x alone to read as a port.
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.padding))
        return self.relu2(self.norm2(self.conv2(h)) + shortcut)


def _resnet(shape: Shape, classes: int, *, blocks: int, width: int) -> nn.Sequential:
    chain = OrderedDict[str, nn.Module](stem=_normed_conv(shape[0], width))
    channels = width
    for i in range(3):
        out = width * 2**i
        chain[f"layer{i + 1}"] = nn.Sequential(
            _Residual(channels, out, 1 if i == 0 else 2), *(_Residual(out, out, 1) for _ in range(blocks - 1))
        )
        channels = out
    chain |= {"mean": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": nn.Linear(channels, classes)}
    model = nn.Sequential(chain)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def resnet32(shape: Shape, classes: int, *, width: int = 16) -> nn.Sequential:
    """ResNet-32 in CIFAR form: a 3x3 stem, three stages of 5 blocks of two convolutions, mean, head.

    Args:
        shape: (C, H, W) of one image, any size.
        classes: number of classes.
        width: channels of the stem and the first stage, >= 1; the next stages have 2 and 4 times as many.

    References:
        He, Zhang, Ren, Sun, Deep residual learning for image recognition, CVPR 2016 (section 4.2, option A),
        https://arxiv.org/abs/1512.03385

    >>> sum(p.numel() for p in resnet32((3, 32, 32), 10).parameters())
    464154
    """
    return _resnet(shape, classes, blocks=5, width=width)


def resnet110(shape: Shape, classes: int, *, width: int = 16) -> nn.Sequential:
    """ResNet-110 in CIFAR form: :func:`resnet32` with 18 blocks a stage.

    Args:
        shape: (C, H, W) of one image, any size.
        classes: number of classes.
        width: channels of the stem and the first stage, >= 1.

    >>> len(resnet110((3, 32, 32), 10, width=2).layer3)
    18
    """
    return _resnet(shape, classes, blocks=18, width=width)
