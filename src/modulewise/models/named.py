"""Models by name: built in, from torchvision or timm, or from the user's own code."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType, ModuleType
from typing import Any

from torch import nn

from ..errors import ModulewiseError, suggest
from .builtin import Shape, cnn, lenet5, mlp, resnet32, resnet110, vgg8b, vgg11b
from .gated import gln
from .greedy import greedy_cnn
from .grouped import phsic_cnn, phsic_mlp
from .normalized import rms_mlp
from .patching import patches
from .recurrent import lstm_rows, rnn_pixels, rnn_rows

__all__ = ["build", "names"]

_BUILT_IN: Mapping[str, Callable[[Shape, int], nn.Module]] = MappingProxyType(
    {
        "cnn": cnn,
        "gln": gln,
        "greedy-cnn": greedy_cnn,
        "lenet5": lenet5,
        "lstm-rows": lstm_rows,
        "mlp": mlp,
        "patches": patches,
        "phsic-cnn": phsic_cnn,
        "phsic-mlp": phsic_mlp,
        "resnet110": resnet110,
        "resnet32": resnet32,
        "rms-mlp": rms_mlp,
        "rnn-pixels": rnn_pixels,
        "rnn-rows": rnn_rows,
        "vgg11b": vgg11b,
        "vgg8b": vgg8b,
    }
)

# Their auxiliary classifiers read the middle of the network from its end; leaving `init_weights` out warns.
_INCEPTIONS = frozenset({"googlenet", "inception_v3"})


def names() -> tuple[str, ...]:
    """Names of the built-in models.

    >>> names()[:2], names()[-2:]
    (('cnn', 'gln'), ('vgg11b', 'vgg8b'))
    """
    return tuple(_BUILT_IN)


def build(spec: str, *, shape: Shape, classes: int) -> nn.Module:
    """Make a model with random initial weights by name.

    Args:
        spec: a built-in name ('cnn'), 'torchvision:NAME', 'timm:NAME', or 'package.module:function' for the
            user's own, found on the import path or in the current directory and called with `shape` and
            `classes` where it takes arguments of those names.
        shape: (C, H, W) of one image.
        classes: number of classes, >= 1.

    Raises:
        ModulewiseError: the model is unknown, its extra is not installed, it does not take images of this
            shape, or the user's function does not return an nn.Module.

    >>> build("lenet5", shape=(1, 28, 28), classes=10).head
    Linear(in_features=84, out_features=10, bias=True)
    """
    if len(shape) != 3 or min(shape) < 1 or classes < 1:
        raise ModulewiseError(
            f"shape {tuple(shape)} with {classes} classes is no image task; expected (channels, height, "
            "width) and classes, all >= 1"
        )
    source, colon, name = spec.partition(":")
    if not colon:
        return _built_in(spec, shape, classes)
    if source == "torchvision":
        return _torchvision(name, shape, classes)
    if source == "timm":
        return _timm(name, shape, classes)
    return _own(source, name, shape, classes)


def _built_in(name: str, shape: Shape, classes: int) -> nn.Module:
    if name not in _BUILT_IN:
        raise ModulewiseError(
            f"unknown model {name!r}; expected one of {', '.join(names())}, 'torchvision:NAME', 'timm:NAME' "
            f"or 'package.module:function'{suggest(name, names())}"
        )
    return _BUILT_IN[name](shape, classes)


def _extra(package: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ModulewiseError(
            f"{spec!r} needs {package}, which cannot be imported; pip install 'modulewise[vision]'"
        ) from error


def _torchvision(name: str, shape: Shape, classes: int) -> nn.Module:
    models = _extra("torchvision.models", f"torchvision:{name}")
    known = models.list_models(module=models)
    if name not in known:
        raise ModulewiseError(f"torchvision has no classifier {name!r}{suggest(name, known)}")
    if shape[0] != 3:
        raise ModulewiseError(
            f"'torchvision:{name}' takes images of 3 channels, not {shape[0]}; use a timm or built-in model"
        )
    options: dict[str, Any] = {"num_classes": classes, "weights": None}
    if name in _INCEPTIONS:
        options |= {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        options["image_size"] = shape[1]
    return _made(f"torchvision:{name}", shape, lambda: models.get_model(name, **options))


def _timm(name: str, shape: Shape, classes: int) -> nn.Module:
    timm = _extra("timm", f"timm:{name}")
    if not timm.is_model(name):
        raise ModulewiseError(f"timm has no model {name!r}{suggest(name, timm.list_models())}")

    def make(**options: Any) -> nn.Module:
        return timm.create_model(name, num_classes=classes, in_chans=shape[0], **options)

    try:
        return _made(f"timm:{name}", shape, lambda: make(img_size=shape[1:]))
    except ModulewiseError as error:
        # Convolutional networks take any size and have no such argument; nothing else says so in advance.
        if isinstance(error.__cause__, TypeError) and "img_size" in str(error.__cause__):
            return _made(f"timm:{name}", shape, make)
        raise


def _made(spec: str, shape: Shape, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModulewiseError(f"{spec!r} cannot be made for images of shape {tuple(shape)}: {reason}") from error


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    directory = os.getcwd()
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        # What was imported may have changed the path itself.
        with suppress(ValueError):
            sys.path.remove(directory)


def _own(module: str, name: str, shape: Shape, classes: int) -> nn.Module:
    spec = f"{module}:{name}"
    with _current_directory_importable():
        function = _function(module, name)
        signature = inspect.signature(function)
        given = {"shape": shape, "classes": classes}
        taken = {key: value for key, value in given.items() if key in signature.parameters}
        try:
            signature.bind(**taken)
        except TypeError as error:
            raise ModulewiseError(
                f"{spec!r} cannot be called: {error}; give all but `shape` and `classes` a default"
            ) from error
        model = function(**taken)
    if not isinstance(model, nn.Module):
        raise ModulewiseError(f"{spec!r} returned a {type(model).__name__}; expected a torch.nn.Module")
    return model


def _function(module: str, name: str) -> Callable[..., Any]:
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise ModulewiseError(f"'{module}:{name}' names no model; expected 'package.module:function'")
    try:
        namespace = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A module of the user's that itself imports something missing must show that, not be called missing.
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise
        raise ModulewiseError(
            f"no module {module!r} on the import path or in {os.getcwd()}; expected 'package.module:function'"
            f"{suggest(module, ('torchvision', 'timm'))}"
        ) from error
    function = getattr(namespace, name, None)
    if not callable(function) or isinstance(function, nn.Module):
        found = "no" if function is None else f"a {type(function).__name__}, not a function, as"
        raise ModulewiseError(f"module {module!r} has {found} {name!r}{suggest(name, vars(namespace))}")
    return function
