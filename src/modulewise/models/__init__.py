"""Built-in image classifiers, and models by name from torchvision, timm or the user's own code."""

from .builtin import Shape, cnn, lenet5, mlp, resnet32, resnet110, vgg8b, vgg11b
from .named import build, names

__all__ = ["Shape", "build", "cnn", "lenet5", "mlp", "names", "resnet32", "resnet110", "vgg8b", "vgg11b"]
