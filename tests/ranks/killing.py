"""A run on ranks that is killed at chosen moments and goes on; as a program, under torchrun: `killing.py FOLDER`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from small_networks import CLASSES, CUTS, Residual, differing, images, seeded, state, trainer_of

import modulewise as mw
from modulewise.engine import state_files
from modulewise.engine.ranks.transport import Outbox

EPOCHS = 4
"""Of six batches each."""
MOMENTS = [("forward", 5, 1), ("backward", 8, 0), ("saving", 12, 1), ("sending", 15, 0), ("saving", 18, 0)]
"""Of each attempt: where it ends, in which step, on which rank."""


def trainer(ranks: mw.Ranks | None) -> mw.Trainer:
    model = seeded(lambda: Residual(dropout=0.2))
    method = mw.methods.DGL(classes=CLASSES)
    return trainer_of(model, method, CUTS, images()[0], seed=4, optimizer=adam, ranks=ranks)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def loader() -> mw.data.Loader:
    return mw.data.Loader(mw.data.Split(*images(46)), batch_size=8, seed=2)


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at(where: str, step: int, subject: mw.Trainer) -> None:
    """Kill this process in the middle of something, in a step."""
    module = subject.partition.model.get_submodule("stem" if subject.crew.seat.share == 0 else "head")

    def forward(_: Any, __: Any, output: torch.Tensor) -> None:
        if subject.steps == step and torch.is_grad_enabled():
            if where == "forward":
                die()
            output.register_hook(die)

    def within(call: Callable[..., Any], before: bool) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            there = subject.steps >= step
            if there and before:
                die()
            result = call(*args, **kwargs)
            if there:
                die()
            return result

        return run

    if where in ("forward", "backward"):
        module.register_forward_hook(forward)
    elif where == "saving":  # with one of the files of a state written
        state_files.save_file = within(state_files.save_file, before=False)
    elif where == "sending":  # with the header of a packet sent
        Outbox._send = within(Outbox._send, before=False)


def killed(rank: int, folder: Path) -> dict[str, Any]:
    """Train on ranks to the end, killed on the way as the attempt says; then compare with one process."""
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", os.environ.get("ATTEMPT", "0")))
    moments = MOMENTS[: int(os.environ.get("KILLS", len(MOMENTS)))]
    there, batches = trainer(mw.Ranks(timeout=30)), loader()
    assert there.crew is not None
    found = mw.engine.ranks.saving.complete(folder / "state")
    if any(found.values()):
        there.load(folder / "state", loader=batches)
    began = there.steps
    if attempt < len(moments) and moments[attempt][2] == rank:
        _at(*moments[attempt][:2], there)
    there.fit(batches, epochs=EPOCHS, schedule=mw.schedules.pipelined, checkpoint=folder / "state", every=2)
    here = trainer(None)
    here.fit(loader(), epochs=EPOCHS)
    different = differing(*(state(t.partition.model, *t.objectives) for t in (here, there)))
    left = [sorted(p.name for p in path.iterdir()) for path in sorted((folder / "state").iterdir())]
    there.close()
    return {"attempt": attempt, "began": began, "steps": there.steps, "differing": different, "left": left}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    said = killed(int(os.environ["RANK"]), place)
    (place / f"said-{os.environ['RANK']}.txt").write_text(str(said["differing"]) + str(said["attempt"]))
