"""Head removal and export: the user's model is the trained object, and the heads were never in it.

After training nothing has to be taken off. The trainer, its objectives and their heads are let go, and what is left is
the plain model: `torch.export` and, where its packages are installed, ONNX take it as any other.
"""

import importlib.util
import tempfile
from pathlib import Path

import torch
from torch.nn import functional

import modulewise as mw

data = mw.data.load("digits")
train = mw.data.Loader(data.train, batch_size=64, normalize=mw.data.normalization(data.train))
torch.manual_seed(0)
model = mw.models.mlp((1, 8, 8), 10, width=64)
before = list(model.state_dict())
trainer = mw.Trainer(
    mw.Partition(model, cuts=["fc1", "fc2"], example=torch.zeros(64, 1, 8, 8)),
    mw.methods.DGL(classes=10),
    loss=functional.cross_entropy,
    optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
)
trainer.fit(train, epochs=2)
heads = sum(parameter.numel() for objective in trainer.objectives for parameter in objective.parameters())
del trainer

model.eval()
assert list(model.state_dict()) == before  # no head, no wrapper, no new name
x = torch.randn(5, 1, 8, 8)
rows = torch.export.Dim("rows", min=1, max=1024)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "model.pt2"
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=({0: rows},)), path)
    exported = torch.export.load(path).module()
    same = torch.allclose(exported(x[:3]), model(x[:3]), atol=1e-6)
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"ONNX: left out, {' and '.join(missing)} not installed")
    else:
        torch.onnx.export(model, (x,), Path(folder) / "model.onnx", dynamo=True, external_data=False)
        print(f"ONNX: {(Path(folder) / 'model.onnx').stat().st_size} bytes")
parameters = sum(parameter.numel() for parameter in model.parameters())
print(f"torch.export: same outputs: {same}; {parameters} parameters, {heads} of heads were let go")
