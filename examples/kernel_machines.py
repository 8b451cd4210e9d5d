"""A network of kernel machines, learned layer by layer without a backward pass through more than one of them.

The hidden layer learns to send pairs of one class together and pairs of two classes apart, as its successor's kernel
sees them; then the output layer learns on centres that are representations of training samples (S. Duan, S. Yu, Y.
Chen, J. C. Principe, Neural Computation 2020, https://arxiv.org/abs/1802.03774).
"""

import torch

import modulewise as mw

CENTRES, WIDTHS = 100, (8.0, 4.0)

data = mw.data.load("digits")
normalize = mw.data.normalization(data.train)
train = mw.data.Loader(data.train, batch_size=64, normalize=normalize, seed=0)
test = mw.data.Loader(data.test, batch_size=512, normalize=normalize, shuffle=False)

torch.manual_seed(0)
model = mw.models.kmlp((1, 8, 8), 10, units=(32,), centres=CENTRES, widths=WIDTHS)
x, y = next(iter(mw.data.Loader(data.train, batch_size=len(data.train), normalize=normalize, shuffle=False)))
samples = mw.models.thinned(x, y, per_class=CENTRES // 10)
mw.models.place_centres(model, samples)

trainer = mw.Trainer(
    mw.Partition(model, cuts=["kernel1"], example=samples),
    mw.methods.KernelProxy(kernel=mw.losses.gaussian(WIDTHS[1])),  # the kernel of the layer above the cut
    loss=torch.nn.functional.cross_entropy,
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=3e-2),
)
trainer.fit(
    train,
    epochs=8,
    schedule=mw.schedules.sequential,
    callbacks=[lambda epoch: mw.models.place_centres(model, samples)],  # the head's centres follow the layer below
)
accuracy = trainer.evaluate(test).accuracy
print(f"test accuracy {accuracy:.3f}")
assert accuracy > 0.9

# Samples of one class have come close, so that their centres can be merged: fewer kernels, much the same function.
model.head = mw.models.merged(model.head, distance=3.0)
print(f"{len(model.head.centres)} of {CENTRES} centres: test accuracy {trainer.evaluate(test).accuracy:.3f}")
assert trainer.evaluate(test).accuracy > accuracy - 0.02
