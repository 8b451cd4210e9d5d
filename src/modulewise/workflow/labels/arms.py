"""The arms of a few-labels experiment: what each trains, on which labels, and how it does on the test split."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import losses
from ...data import Split
from ...engine.features import evaluating
from ...methods import Backprop
from ...partition import Partition
from ...seeding import seed_of
from ...trainer import Trainer
from .heads import HeadCriterion, train_head
from .pairing import PairLoader, train_hidden
from .settings import Ingredients, output_layer

__all__ = [
    "Arm",
    "Network",
    "Outputs",
    "output_features",
    "outputs",
    "scratch",
    "trained",
    "with_new_output",
    "with_probe",
]


class Arm(StrEnum):
    """One way to a classifier from n labels a class."""

    PAIRS = "pairs"
    PROBE = "pairs, probe"
    RETRAINED = "E2EBP, new output"
    SCRATCH = "E2EBP from scratch"

    def seen(self, *, pairs: int | None) -> str:
        """Which labels the arm has read.

        Args:
            pairs: the length of the user's list; None where pairs came from all training labels.
        """
        if self is Arm.SCRATCH:
            return "n class labels a class, nothing else"
        if self is Arm.RETRAINED:
            return "all class labels of the training split for the hidden layers, then n a class for the output layer"
        hidden = (
            "same or not for the pairs of every batch, taken from all class labels of the training split"
            if pairs is None
            else f"same or not for the {pairs} pairs of a list"
        )
        return f"{hidden}; class labels: n a class for the output layer"


class Network(StrEnum):
    """The two networks that are trained once."""

    PAIRS = "pairs"
    BACKPROP = "backprop"


@dataclass(frozen=True, eq=False)
class Outputs:
    """What goes into the output layer of a trained network.

    Args:
        train: features (N, D) of the training samples.
        test: features (M, D) of the test samples.
        accuracy: of the network's own output layer on the test split, 0 to 1.
    """

    train: Tensor
    test: Tensor
    accuracy: float


def trained(network: Network, made: Ingredients) -> tuple[nn.Module, Partition]:
    """A network trained as its arm says, and its partition."""
    settings = made.settings
    model = made.model(settings.seed)
    partition = made.partition(model)
    if network is Network.BACKPROP:
        loader = made.loader(made.train, seed=settings.seed, batch_size=settings.batch_size)
        _backprop(partition, loader, epochs=settings.epochs, made=made, seed=settings.seed)
        return model, partition
    shared: dict[str, Any] = {"seed": settings.seed, "augment": made.augment, "normalize": made.normalize}
    batches: Any = made.loader(made.train, seed=settings.seed, batch_size=settings.batch_size)
    if made.pairs is not None:
        batches = PairLoader(made.train.x, made.pairs, batch_size=settings.batch_size, device=made.device, **shared)
    train_hidden(
        partition,
        batches,
        epochs=settings.epochs,
        optimizer=_optimizer(made, rate=settings.pairs_lr),
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=settings.epochs),
        proxy=made.proxy,
        pairs=made.pairs,
        seed=settings.seed,
    )
    return model, partition


def _optimizer(made: Ingredients, *, rate: float | None = None) -> Callable[..., torch.optim.Optimizer]:
    settings = made.settings
    lr = settings.lr if rate is None else rate
    return partial(torch.optim.SGD, lr=lr, momentum=0.9, weight_decay=settings.weight_decay, fused=True)


def _backprop(
    partition: Partition, loader: Any, *, epochs: int, made: Ingredients, seed: int, rate: float | None = None
) -> None:
    Trainer(
        partition,
        Backprop(),
        loss=losses.classification,
        optimizer=_optimizer(made, rate=rate),
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        seed=seed,
    ).fit(loader, epochs=epochs)


@torch.no_grad()
def output_features(model: nn.Module, layer: nn.Module, batches: Any) -> Tensor:
    """What goes into a layer of a model in eval mode, (N, D) on the CPU, for batches (x, y)."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, given: seen.append(given[0].flatten(1).cpu()))
    try:
        with evaluating(model):
            for x, _ in batches:
                model(x)
    finally:
        hook.remove()
    return torch.cat(seen)


def outputs(model: nn.Module, partition: Partition, made: Ingredients) -> Outputs:
    """The features of both splits, and the accuracy of the model as it is."""
    layer = output_layer(partition)
    train, test = (output_features(model, layer, made.plain(split)) for split in (made.train, made.test))
    with torch.no_grad():
        guess = F.linear(test, layer.weight.cpu(), None if layer.bias is None else layer.bias.cpu()).argmax(1)
    return Outputs(train, test, _share(guess, made.test.y))


def _share(guess: Tensor, y: Tensor) -> float:
    return float((guess == y.cpu()).double().mean())


def with_new_output(found: Outputs, made: Ingredients, chosen: Tensor, *, loss: HeadCriterion, penalty: float) -> float:
    """Test accuracy of an output layer trained on the chosen examples.

    It is trained on features of unit length and has no bias, as the part that the proxy's kernel stands for: the class
    it gives is then the same on the features as they are.
    """
    train, test = F.normalize(found.train[chosen], dim=1), F.normalize(found.test, dim=1)
    head = train_head(train, made.train.y[chosen].cpu(), classes=made.classes, loss=loss, penalty=penalty, bias=False)
    with torch.no_grad():
        return _share(head(test).argmax(1), made.test.y)


def with_probe(found: Outputs, made: Ingredients, chosen: Tensor) -> float:
    """Test accuracy of scikit-learn's logistic regression with its defaults, on the features as they are.

    The fit ends after 1000 iterations, converged or not: features of very different size are slow, and that is what a
    probe as one types it gives.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    y = made.train.y[chosen].cpu().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe = LogisticRegression(max_iter=1000).fit(found.train[chosen].numpy(), y)
    return _share(torch.from_numpy(probe.predict(found.test.numpy())), made.test.y)


def scratch(made: Ingredients, chosen: Tensor, *, draw: int) -> float:
    """Test accuracy of a network trained end to end on the chosen examples alone; every draw has its initial weights.

    Number, size and rate of the updates are its own; everything else is as in the training on all labels.
    """
    seed = seed_of(made.settings.seed, "scratch", len(chosen), draw)
    split = Split(made.train.x[chosen], made.train.y[chosen])
    settings = made.settings
    loader = made.loader(split, seed=seed, batch_size=settings.scratch_batch)
    model = made.model(seed)
    partition = made.partition(model)
    epochs = -(-settings.scratch_steps // len(loader))
    _backprop(partition, loader, epochs=epochs, made=made, seed=seed, rate=settings.scratch_lr)
    guesses: list[Tensor] = []
    with torch.no_grad(), evaluating(model):
        guesses = [model(x).argmax(1).cpu() for x, _ in made.plain(made.test)]
    return _share(torch.cat(guesses), made.test.y)
