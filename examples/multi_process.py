"""Two parts on two processes: started here on this machine, the way `torchrun --nproc-per-node 2` would."""

import os
import subprocess
import sys

import torch
from torch import nn

import modulewise as mw


def train() -> None:
    torch.manual_seed(0)  # every rank builds the same model and the same trainer
    digits = mw.data.load("digits")
    shape = (1, 8, 8)
    model = mw.models.build("cnn", shape=shape, classes=10)
    partition = mw.Partition(model, parts=2, example=torch.randn(8, *shape))
    trainer = mw.Trainer(
        partition,
        mw.methods.DGL(classes=10),
        loss=nn.functional.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
        ranks=mw.Ranks(timeout=120),
    )
    loader = mw.data.Loader(digits.train, batch_size=64)  # only rank 0 reads from it
    trainer.fit(loader, epochs=1, schedule=mw.schedules.pipelined)
    test = trainer.evaluate(mw.data.Loader(digits.test, batch_size=512, shuffle=False))
    timeline = trainer.crew.timeline()
    if trainer.crew.seat.reads:
        print(f"test accuracy {test.accuracy:.3f}, the same model on both ranks")
        for share in timeline.shares():
            print(f"rank {share.rank}: computed {share.compute:.0%} of the time, waited {share.wait:.0%}")
    trainer.close()


def main() -> None:
    if "RANK" in os.environ:
        train()
        return
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    loopback = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    # torch's own launcher may warn; this process was told to take warnings for errors.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "default"}
    if sys.platform != "linux":
        del environment["GLOO_SOCKET_IFNAME"]
    subprocess.run([*torchrun, *loopback, os.path.abspath(__file__)], env=environment, check=True, timeout=250)


if __name__ == "__main__":
    main()
