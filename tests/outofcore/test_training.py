"""Out of core equals in memory, bit for bit: every source of features, every setting that a trainer takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from runs import EPOCHS, in_memory, loader, on_meta, out_of_core, plain_model
from small_networks import CLASSES, Residual, Skipping, differing, images, rows, state
from torch import Tensor, nn

import modulewise as mw
from modulewise.outofcore import DiskCache, HostCache, Recompute
from modulewise.schedules import Sequential, sequential

M = mw.methods
AGAIN = Sequential(cache_bytes=0)


def noise(x: Tensor, *, generator: torch.Generator) -> Tensor:
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def adam(parameters: Any, *, part: int, role: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3 * (part + 1))


def halving(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)


def both(folder: Any, schedule: Sequential, features: Any, data: Any = None, **settings: Any) -> tuple[Any, Any, Any]:
    """The histories, and the run."""
    data = data or loader
    run = out_of_core(folder, **settings)
    trainer = in_memory(folder, **settings)
    expected = trainer.fit(data(), epochs=EPOCHS, schedule=schedule)
    found = run.fit(data(), epochs=EPOCHS, features=features)
    assert [(e.part, e.epoch, e.steps, e.losses) for e in found] == [
        (e.part, e.epoch, e.steps, e.losses) for e in expected
    ]
    model = plain_model(folder, settings["make"]) if "make" in settings else plain_model(folder)
    assert differing(state(trainer.partition.model), state(model)) == []
    for part, objective in enumerate(trainer.objectives):
        if objective.state_dict():
            assert differing(state(objective), state(run.objective(part))) == []
    return run, trainer, found


SOURCES = [
    (AGAIN, Recompute(batches=1)),
    (AGAIN, Recompute(batches=2)),
    (sequential, HostCache()),
    (sequential, DiskCache()),
    (sequential, None),
]


@pytest.mark.parametrize(("schedule", "features"), SOURCES, ids=lambda s: str(s))
def test_every_source_of_features_gives_the_numbers_of_training_in_memory(tmp_path, schedule, features):
    """Parameters, running statistics, heads and losses, with dropout and batch normalisation."""
    run, trainer, _ = both(tmp_path, schedule, features)
    test = [images(8, 70), images(6, 71)]
    assert run.evaluate(test) == trainer.evaluate(test)
    assert torch.equal(run.predict(test[0][0]), trainer.predict(test[0][0]))


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": adam, "scheduler": halving, "clip_norm": 0.5},
        {"accumulate": 2},
        {"precision": torch.bfloat16},
        {"precision": torch.float16},
        {"method": M.InfoPro(classes=CLASSES)},
        {"method": M.TRGL(classes=CLASSES)},
        {"method": M.LocalErrors(classes=CLASSES)},
    ],
    ids=lambda s: "-".join(s),
)
def test_every_setting_that_a_trainer_takes(tmp_path, settings):
    both(tmp_path, sequential, DiskCache(), **settings)


def test_augmented_samples_are_made_again(tmp_path):
    both(tmp_path, sequential, None, data=lambda: loader(augment=noise))


def test_any_list_of_batches(tmp_path):
    both(tmp_path, sequential, None, data=lambda: [images(8, seed) for seed in range(3)])


def test_views_of_the_loader_and_of_the_method(tmp_path):
    both(tmp_path / "a", sequential, None, data=lambda: loader(augment=noise, views=2), method=M.DGL(classes=CLASSES))


def test_a_skip_to_an_earlier_part_is_fed_again(tmp_path):
    def data() -> mw.data.Loader:
        return mw.data.Loader(mw.data.Split(*rows(20)), batch_size=8)

    both(
        tmp_path, sequential, None, data=data, make=Skipping, cuts=("a", "b", "c"), x=rows()[0],
        method=M.DGL(classes=CLASSES),
    )  # fmt: skip


class Masked(nn.Module):
    """A buffer that every part reads, one that is not saved, a tied weight, a parameter on the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(6))
        self.register_buffer("mask", torch.empty(6))
        self.register_buffer("shift", torch.empty(16), persistent=False)
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.c.weight = self.b.weight
        self.d = nn.Linear(16, CLASSES)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.scale, 0.5, 1.5)
        self.mask.copy_(torch.tensor([1.0, 0, 1, 1, 0, 1]))
        self.shift.fill_(0.25)

    def forward(self, x: Tensor) -> Tensor:
        keep = (x * self.mask).sum(1, keepdim=True).sign()
        h = torch.tanh(self.a(x * self.scale))
        h = torch.tanh(self.c(self.b(h) * keep + self.shift))
        return self.d(h * keep)


def test_what_several_parts_read_what_is_not_saved_and_what_is_tied(tmp_path):
    def data() -> mw.data.Loader:
        return mw.data.Loader(mw.data.Split(*rows(20)), batch_size=8)

    run, _, _ = both(
        tmp_path, sequential, None, data=data, make=Masked, cuts=("a", "c"), x=rows()[0], method=M.DGL(classes=CLASSES)
    )
    assert set(run.holdings.names[0]) == {"scale", "mask", "a.weight", "a.bias"}
    assert set(run.holdings.borrowed[2]) == {"scale", "mask", "shift"}
    assert set(run.holdings.names[1]) == {"shift", "b.weight", "b.bias", "c.bias"}
    assert torch.equal(run.tensors(1)["shift"], torch.full((16,), 0.25))


def test_the_model_is_left_as_it_was(tmp_path):
    """On the meta device, the same objects, without gradients, each module in its own mode."""
    run = out_of_core(tmp_path)
    model = run.partition.model
    model.two.eval()
    before = {name: (id(t), t.device.type) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    modes = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    run.fit(loader(), epochs=1)
    run.evaluate([images()])
    with pytest.raises(RuntimeError, match="stop"):
        out_of_core(tmp_path / "other").fit(
            loader(), epochs=1, callbacks=[lambda e: (_ for _ in ()).throw(RuntimeError("stop"))]
        )
    after = {name: (id(t), t.device.type) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    assert before == after
    assert modes == [module.training for module in model.modules()]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(generator, torch.get_rng_state())


def test_a_callback_evaluates_the_model_as_it_is(tmp_path):
    run, test = out_of_core(tmp_path), [images(8, 70)]
    trainer, seen, expected = in_memory(tmp_path), [], []
    trainer.fit(loader(), epochs=2, schedule=sequential, callbacks=[lambda e: expected.append(trainer.evaluate(test))])
    run.fit(loader(), epochs=2, callbacks=[lambda e: seen.append(run.evaluate(test))])
    assert seen == expected


def test_optimiser_state_and_gradients_are_those_of_one_part(tmp_path):
    run, seen = out_of_core(tmp_path, optimizer=adam), []

    def look(_: Any) -> None:
        seen.append({part for part, _ in run.learner.updater.optimizers})
        assert [not p.is_meta for p in run.partition.model.parameters()].count(True) == len(
            list(run.partition.part(seen[-1].copy().pop()).parameters())
        )

    run.fit(loader(), epochs=1, callbacks=[look])
    assert seen == [{0}, {1}, {2}, {3}]
    assert run.learner.updater.optimizers == {}


def test_a_whole_model_of_one_part(tmp_path):
    both(tmp_path, sequential, None, cuts=(), method=M.DGL(classes=CLASSES))


def test_on_meta_a_partition_finds_the_cuts_that_a_real_model_has():
    for parts in (2, 3):
        x = images()[0]
        real = mw.Partition(Residual(), parts=parts, example=x)
        assert mw.Partition(on_meta(Residual), parts=parts, example=x).cuts == real.cuts


def test_loss_functions_with_parameters_stay_where_they_are(tmp_path):
    both(tmp_path, sequential, None, loss=nn.CrossEntropyLoss(label_smoothing=0.1))


@pytest.mark.parametrize(
    ("memory", "disk", "kind"), [(10**9, 10**9, HostCache), (0, 0, Recompute), (0, 10**9, (DiskCache, Recompute))]
)
def test_the_source_of_features_is_planned_from_what_is_free_and_kept_for_later(
    tmp_path, monkeypatch, memory, disk, kind
):
    monkeypatch.setattr("modulewise.outofcore.choosing.free_bytes", lambda folder: (memory, disk))
    run, stop = out_of_core(tmp_path), RuntimeError("stop")

    def raises(_: Any) -> None:
        raise stop

    with pytest.raises(RuntimeError, match="stop"):
        run.fit(loader(), epochs=1, callbacks=[raises])
    saved = run.saved.read().facts["features"]
    assert saved["type"] in {k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,))}
    monkeypatch.setattr("modulewise.outofcore.choosing.free_bytes", lambda folder: (10**9 - memory, 0))
    out_of_core(tmp_path).fit(loader(), epochs=1)
    assert run.saved.read().facts["features"] == saved


def test_parts_are_read_to_memory_aligned_as_torch_aligns_it(tmp_path):
    """Else sums could be rounded by where a mapped tensor happens to begin."""
    run = out_of_core(tmp_path)
    assert all(t.data_ptr() % 64 == 0 for part in range(4) for t in run.tensors(part).values() if t.numel())
