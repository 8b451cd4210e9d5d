"""What one training step holds in memory, by method, for a residual network in 1, 4 and 16 parts.

The measured step runs on tensors without memory: only the shapes are real, so that a model need not fit.
"""

import torch

import modulewise as mw

BATCH = 128


def peak(partition: mw.Partition, method: mw.Method) -> mw.metering.MemoryReport:
    """The peak of the second step, when the optimisers have their momentum."""
    trainer = mw.Trainer(
        partition,
        method,
        loss=torch.nn.functional.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    )
    return mw.checks.memory(trainer, torch.empty(BATCH, 3, 32, 32), torch.empty(BATCH, dtype=torch.long))


network = mw.models.resnet32((3, 32, 32), 10)
example = torch.zeros(BATCH, 3, 32, 32)
parts = {k: mw.Partition(network, parts=k, example=example) for k in (1, 4, 16)}
local = mw.methods.DGL(classes=10, head=mw.heads.linear)
whole = None
for name, method, k in [
    ("backprop, whole", mw.methods.Backprop(), 1),
    ("checkpointed, 4 parts", mw.methods.Checkpointed(), 4),
    ("local, 4 parts", local, 4),
    ("checkpointed, 16 parts", mw.methods.Checkpointed(), 16),
    ("local, 16 parts", local, 16),
]:
    report = peak(parts[k], method)
    whole = whole or report.peak_bytes
    split = ", ".join(f"{kind} {size / 1e6:.2f}" for kind, size in report.at_peak.items() if size)
    print(
        f"{name:22} {report.peak_bytes / 1e6:6.1f} MB, {report.peak_bytes / whole:.2f} of backprop; at the peak {split}"
    )
