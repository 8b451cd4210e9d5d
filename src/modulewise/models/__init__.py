"""Built-in image classifiers, and models by name from torchvision, timm or the user's own code."""

from .builtin import Shape, cnn, lenet5, mlp, resnet32, resnet110, vgg8b, vgg11b
from .gated import gln
from .greedy import greedy_cnn
from .grouped import DivisiveNormalization, phsic_cnn, phsic_mlp
from .kernel_machines import (
    KernelMachine,
    gaussian_kernel,
    klenet5,
    kmlp,
    merged,
    place_centres,
    thinned,
)
from .named import build, names
from .normalized import rms_mlp
from .patching import patches
from .recurrent import Recurrent, RecurrentNetwork, lstm_rows, rnn_pixels, rnn_rows

__all__ = [
    "DivisiveNormalization",
    "KernelMachine",
    "Recurrent",
    "RecurrentNetwork",
    "Shape",
    "build",
    "cnn",
    "gaussian_kernel",
    "gln",
    "greedy_cnn",
    "klenet5",
    "kmlp",
    "lenet5",
    "lstm_rows",
    "merged",
    "mlp",
    "names",
    "patches",
    "phsic_cnn",
    "phsic_mlp",
    "place_centres",
    "resnet32",
    "resnet110",
    "rms_mlp",
    "rnn_pixels",
    "rnn_rows",
    "thinned",
    "vgg8b",
    "vgg11b",
]
