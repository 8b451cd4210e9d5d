"""Hard forwards: whatever is accepted composes to the whole, bit for bit, forward and backward."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from part_oracle import STEP, assert_composes, composed, identical, leaves, ordinary, seeded, untouched, whole
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import modulewise as mw
from modulewise import Partition
from modulewise.errors import PartitionError
from modulewise.partition.tree import rebatch
from modulewise.seeding import seed_of


def assert_learns(partition: Partition, x: Any) -> None:
    """Gradients passed from part to part by hand equal autograd's through the whole, bit for bit, in train mode."""
    model = partition.model.train()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.zero_grad()
    _, out = whole(model, partition.cuts, x)
    total = sum(leaf.double().square().sum() for leaf in leaves(out) if leaf.requires_grad)
    total.backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    model.zero_grad(set_to_none=True)

    kept: list[tuple[dict[int, Tensor], Any]] = []
    boundaries: list[Tensor] = []
    for part in range(len(partition)):
        fed = {index: boundaries[index].detach().requires_grad_() for index in partition.reads(x, part)}
        kept.append((fed, partition.run(part, x, fed, enter=seeded())))
        boundaries.append(kept[-1][1].detach() if part < len(partition) - 1 else kept[-1][1])
    messages: dict[int, Tensor] = {}
    for part in reversed(range(len(partition))):
        fed, out = kept[part]
        if part == len(partition) - 1:
            sum(leaf.double().square().sum() for leaf in leaves(out) if leaf.requires_grad).backward()
        elif part in messages and out.requires_grad:
            out.backward(messages[part])
        for index, h in fed.items():
            if h.grad is not None:
                messages[index] = h.grad if index not in messages else messages[index] + h.grad
    for name, p in model.named_parameters():
        if expected[name] is None:
            assert p.grad is None or not p.grad.any(), name
        else:
            assert p.grad is not None, name
            assert identical(p.grad, expected[name]), name


def assert_sound(model: nn.Module, x: Any, *, batches: tuple[int, ...] = (2, 5), **how: Any) -> Partition:
    """A partition of the model, made and tried at two batch sizes; at construction nothing is left behind."""
    with untouched(model):
        partition = Partition(model, example=x, **how)
    for n in batches:
        assert_composes(partition, rebatch(x, n))
        assert_learns(partition, rebatch(x, n))
    return partition


class Functional(nn.Module):
    """A shared pooling module, functional activations and dropout, in-place operations, a sum of two paths."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.side = nn.Conv2d(8, 8, 1)
        self.pool = nn.MaxPool2d(2)
        self.fc1, self.fc2 = nn.Linear(8 * 4 * 4, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(self.conv1(x))
        h.relu_()
        h = self.pool(h)
        h = F.dropout(h, 0.3, self.training)
        side = self.side(h)
        h = self.norm2(self.conv2(h))
        h += side
        h = self.pool(F.relu(h, inplace=True))
        h = self.fc1(h.flatten(1))
        h.mul_(1.5).clamp_(min=0)
        h = F.dropout(h, 0.5, self.training, inplace=True)
        return self.fc2(h)


@pytest.mark.parametrize("cuts", [["norm1"], ["norm1", "fc1"], ["conv1", "norm1"], ["fc1"], ["conv1", "norm1", "fc1"]])
def test_a_network_with_functional_and_in_place_operations(cuts: list[str]) -> None:
    """A shared pool, F.relu, F.dropout and in-place operations, also right after a cut."""
    assert_sound(Functional(), torch.randn(2, 3, 16, 16), cuts=cuts)


def test_an_in_place_module_right_after_a_cut_leaves_the_boundary_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))
    partition = assert_sound(model, torch.randn(2, 4), cuts=["0"])
    h = torch.randn(5, 6)
    before = h.clone()
    partition.part(1)(h)
    assert torch.equal(h, before)


def sequential() -> nn.Sequential:
    layers = OrderedDict(
        a=nn.Linear(4, 8), n=nn.BatchNorm1d(8), r=nn.ReLU(), d=nn.Dropout(0.5), i=nn.Identity(), b=nn.Linear(8, 3)
    )
    return nn.Sequential(layers)


@pytest.mark.parametrize("cut", ["a", "n", "r", "d", "i"])
def test_a_sequential_cut_at_any_kind_of_module(cut: str) -> None:
    """A layer, a normalisation, an activation, a dropout, an identity."""
    assert_sound(sequential(), torch.randn(2, 4), cuts=[cut])


def test_dropout_draws_from_the_generator_of_its_own_part() -> None:
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 64), nn.Dropout(0.5), nn.Linear(64, 2))
    partition = Partition(model, example=torch.randn(2, 4), cuts=["1", "3"])
    x = torch.randn(3, 4)
    (first, second), _ = composed(partition, x)
    torch.manual_seed(seed_of(3, STEP, 0))
    kept = torch.empty(3, 64).bernoulli_(0.5).bool()
    assert torch.equal(first != 0, kept)
    torch.manual_seed(seed_of(3, STEP, 1))
    assert torch.equal(second != 0, torch.empty(3, 64).bernoulli_(0.5).bool())


class Works(nn.Module):
    """A container that goes on after its last child."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.first, self.last, self.scale = nn.Linear(4, 4), nn.Linear(4, 4), scale

    def forward(self, x: Tensor) -> Tensor:
        h = self.last(torch.tanh(self.first(x)))
        return F.gelu(h) * self.scale + 1


@pytest.mark.parametrize("cut", ["one.first", "one.last", "one", "two.first", "two.last"])
def test_a_container_that_works_on_after_its_last_child(cut: str) -> None:
    model = nn.Sequential(OrderedDict(one=Works(2.0), two=Works(-1.0), head=nn.Linear(4, 2)))
    assert_sound(model, torch.randn(2, 4), cuts=[cut])


class Pair(NamedTuple):
    h: Tensor
    size: torch.Size
    n: int
    scale: float


class Wraps(nn.Module):
    """Returns one tensor among numbers, some of which go with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Pair:
        h = self.layer(x)
        return Pair(h, h.shape, len(h), 0.5)


class Unwraps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = Wraps(), Wraps(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        first = self.one(x)
        second = self.two(first.h.reshape(first.size) * first.scale)
        h = second.h + torch.ones(first.size) * first.n + torch.arange(second.n).unsqueeze(1)
        return {"logits": self.head(h.view(first.n, -1)), "n": first.n}


def test_one_tensor_in_a_tuple_with_sizes_and_numbers() -> None:
    """What a stubbed module says of sizes follows the batch."""
    model = Unwraps()
    partition = assert_sound(model, torch.randn(4, 4), cuts=["one"])
    assert_sound(model, torch.randn(4, 4), cuts=["one", "two"])
    assert partition.run(1, torch.randn(7, 4), {0: torch.randn(7, 4)})["n"] == 7


class Repeated(nn.Module):
    """One module called for the input, for side inputs and for activations."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4, elementwise_affine=False)
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.norm(x)
        y = self.norm(y)
        h = self.norm(self.a(x))
        y = self.norm(y * 2)
        h = self.norm(self.b(h + y))
        return self.c(self.norm(h) * y + self.norm(y + 1))


def test_a_module_called_for_side_inputs_and_for_activations() -> None:
    """Calls for side inputs are made again, the others are stood in for, each in its place."""
    assert_sound(Repeated(), (torch.randn(2, 4), torch.randn(2, 4)), cuts=["a", "b"])


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.table = nn.Parameter(torch.randn(16, 8), requires_grad=False)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.embed(ids)
        keep = torch.ones_like(ids) if mask is None else mask
        keep = keep.unsqueeze(-1) / keep.sum(1, keepdim=True).unsqueeze(-1)
        for block in self.blocks:
            h = torch.tanh(block(h + self.table[: ids.shape[1]])) * keep
        return self.head(h.sum(1))


def test_a_mask_and_a_frozen_position_table_are_read_in_every_part() -> None:
    model = Masked()
    ids, mask = torch.randint(0, 20, (2, 6)), torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    partition = assert_sound(model, {"ids": ids, "mask": mask}, cuts=["blocks.0", "blocks.1"])
    assert partition.part(0).parameter_names == ("table", "embed.weight", "blocks.0.weight", "blocks.0.bias")
    h = torch.randn(2, 6, 8)
    with pytest.raises(PartitionError, match=r"part 1 reads side inputs.*give x="):
        partition.part(1)(h)
    masked = partition.part(1)(h, x={"ids": ids, "mask": mask})
    assert not torch.equal(masked, partition.part(1)(h, x={"ids": ids, "mask": torch.ones_like(mask)}))


def test_a_longer_sequence_than_the_examples_is_recorded_anew() -> None:
    model = Masked()
    partition = Partition(model, example=torch.randint(0, 20, (2, 6)), cuts=["blocks.0", "blocks.1"])
    for length in (9, 3, 16):
        assert_composes(partition, torch.randint(0, 20, (3, length)))
    assert_composes(partition, (torch.randint(0, 20, (3, 5)), torch.ones(3, 5)))


class Looks(nn.Module):
    """Drops a mask of ones, as a real mask module does, and asks its input how long the longest sample is."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, mask: Tensor) -> tuple[Tensor | None, int]:
        return (None if mask.all() else mask.unsqueeze(-1)), int(mask.sum(1).max())


class Peeks(Masked):
    def __init__(self) -> None:
        super().__init__()
        self.looks = Looks()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        keep, longest = self.looks(mask)
        h = self.embed(ids)
        for block in self.blocks:
            h = torch.tanh(block(h))
            h = h if keep is None else h * keep
        return self.head(h.sum(1) / longest)


@pytest.mark.parametrize("example", ["ones", "zeros and ones"])
def test_what_a_mask_tells_python_is_told_again_for_every_batch(example: str) -> None:
    """A mask that the example's all-ones let the model drop is back for the batch that needs it, and the reverse."""
    ids, ones = torch.randint(0, 20, (4, 6)), torch.ones(4, 6, dtype=torch.long)
    some = ones.clone()
    some[:, 4:] = 0
    some[3, 2:] = 0
    model = Peeks()
    partition = Partition(
        model, example={"ids": ids, "mask": ones if example == "ones" else some}, cuts=["blocks.0", "blocks.1"]
    )
    for mask in (ones, some):
        assert_composes(partition, {"ids": ids, "mask": mask})
    with pytest.raises(PartitionError, match="give x="):
        partition.part(1)(torch.randn(4, 6, 8))


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_transformer_recorded_without_padding_then_trained_with_it(name: str) -> None:
    hf = pytest.importorskip("transformers")
    if name == "gpt2":
        ends = {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False}
        model = hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=2, n_head=2, **ends))
    else:
        small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
        small |= {"vocab_size": 50, "tie_word_embeddings": False}
        kind, config = {
            "bert": (hf.BertForSequenceClassification, hf.BertConfig),
            "llama": (hf.LlamaForCausalLM, hf.LlamaConfig),
        }[name]
        model = kind(config(**small))
    ids, mask = torch.randint(0, 50, (4, 10)), torch.ones(4, 10, dtype=torch.long)
    partition = Partition(model, example={"input_ids": ids, "attention_mask": mask}, parts=2)
    mask[2:, 6:] = 0
    assert_composes(partition, {"input_ids": ids, "attention_mask": mask})
    assert_composes(partition, {"input_ids": ids[:, :7], "attention_mask": mask[:, :7]})
    assert_learns(partition, {"input_ids": ids, "attention_mask": mask})


class UNet(nn.Module):
    """Two skips from the encoder to the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.mid, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.up2, self.up1 = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(F.relu(one), 2))
        h = self.norm(self.mid(F.max_pool2d(F.relu(two), 2)))
        h = self.up2(torch.cat([F.interpolate(F.relu(h), scale_factor=2.0), two], 1))
        h = self.up1(torch.cat([F.interpolate(F.dropout(F.relu(h), 0.2, self.training), scale_factor=2.0), one], 1))
        return self.head(h.mean((2, 3)))


def test_skips_from_earlier_boundaries_are_ports() -> None:
    partition = assert_sound(UNet(), torch.randn(2, 1, 8, 8), cuts=["down1", "down2", "norm", "up2"])
    assert partition.ports == {3: (1,), 4: (0,)}
    assert partition.reads(torch.randn(2, 1, 8, 8), 3) == (1, 2)
    h, x = torch.randn(2, 4, 2, 2), torch.randn(2, 1, 8, 8)
    with pytest.raises(PartitionError, match=r"part 3 reads earlier boundaries \[1\]"):
        partition.part(3)(h, x=x)
    assert partition.part(3)(h, x=x, ports={1: torch.randn(2, 4, 4, 4)}).shape == (2, 4, 4, 4)


class Encoder(nn.Module):
    """Returns what it made on the way as well."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> list[Tensor]:
        one = self.one(x)
        return [one, self.two(torch.relu(one))]


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.mid, self.low, self.head = Encoder(), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.encoder(x)
        h = self.low(torch.relu(self.mid(torch.relu(two))))
        return self.head(torch.cat([h, torch.tanh(one)], 1))


@pytest.mark.parametrize("later", [[], ["mid"], ["mid", "low"]])
def test_ports_that_come_out_of_a_container_of_cuts(later: list[str]) -> None:
    """The container is called again for what it hands on; its layers are stood in for, its cuts are fed."""
    partition = assert_sound(Pyramid(), torch.randn(2, 4), cuts=["encoder.one", "encoder.two", *later])
    assert partition.ports == {2 + len(later): (0,)}


def test_backpropagation_by_messages_through_ports_equals_autograd_bit_for_bit() -> None:
    """Five momentum steps of the trainer beside five of a plain loop."""

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)

    torch.manual_seed(0)
    plain, model = UNet(), UNet()
    model.load_state_dict(plain.state_dict())
    x, y = torch.randn(6, 1, 8, 8), torch.randint(0, 3, (6,))
    partition = Partition(model, example=x, cuts=["down1", "down2", "norm", "up2"])
    trainer = mw.Trainer(partition, mw.methods.Backprop(), loss=F.cross_entropy, optimizer=sgd, seed=11)
    optimizer = sgd(plain.parameters())
    for step in range(5):
        trainer.step(x, y)

        def enter(part: int, step: int = step) -> None:
            torch.manual_seed(seed_of(11, step, part))

        handles = [
            plain.get_submodule(name).register_forward_hook(lambda *_, part=part: enter(part + 1))
            for part, name in enumerate(partition.cuts)
        ]
        enter(0)
        out = plain(x)
        for handle in handles:
            handle.remove()
        optimizer.zero_grad()
        F.cross_entropy(out, y).backward()
        optimizer.step()
    ours, theirs = model.state_dict(), plain.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_boundary_that_is_also_returned_is_a_port() -> None:
    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            h = self.a(x)
            return {"logits": self.c(self.b(h)), "early": h}

    partition = assert_sound(Early(), torch.randn(2, 4), cuts=["a", "b"])
    assert partition.ports == {2: (0,)}


class Residual(nn.Module):
    """One storage for the whole stream, changed in place by every block, marked by identities."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.marks = nn.ModuleList(nn.Identity() for _ in range(3))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block, mark in zip(self.blocks, self.marks, strict=True):
            h += torch.tanh(block(h.clone()))
            h = mark(h)
        return self.head(h)


@pytest.mark.parametrize("cuts", [["stem", "marks.0", "marks.1"], ["marks.0", "marks.2"]])
def test_a_stream_that_every_part_changes_in_place(cuts: list[str]) -> None:
    """All boundaries are one storage; each part is fed a copy of the latest."""
    assert_sound(Residual(), torch.randn(2, 4), cuts=cuts)


class Spans(nn.Module):
    """A context manager of the user's, on gradients, that opens before the cut and closes behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            h = self.b(self.a(x))
        with torch.autocast("cpu", enabled=False):
            return self.c(h)


def test_a_users_gradient_context_that_spans_a_cut() -> None:
    """What is learned behind it in the whole is learned in the part."""
    assert_sound(Spans(), torch.randn(2, 4), cuts=["a"])


def test_a_frozen_backbone_under_no_grad_can_be_cut() -> None:
    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).requires_grad_(False)
            self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                h = self.backbone(x)
            return self.head(h)

    assert_sound(Probe(), torch.randn(2, 4), cuts=["backbone", "head.0"])
    assert_sound(Probe(), torch.randn(2, 4), cuts=["backbone.0", "head.0"])


def test_frozen_parameters_stay_owned_and_untrained() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    partition = assert_sound(model, torch.randn(2, 4), cuts=["1", "3"])
    assert partition.part(0).parameter_names == ("0.weight", "0.bias")
    assert [p.requires_grad for p in partition.part(1).parameters()] == [True, False]


def test_checkpointing_inside_a_part() -> None:
    class Checkpoints(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.d, self.b, self.c = nn.Linear(4, 4), nn.Dropout(0.3), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = checkpoint(lambda h: self.d(torch.tanh(self.a(h))), x, use_reentrant=False)
            h = checkpoint(self.b, h, use_reentrant=False)
            return checkpoint(lambda h: self.c(torch.tanh(h)), h, use_reentrant=False)

    assert_sound(Checkpoints(), torch.randn(2, 4), cuts=["b"])


def test_gradient_checkpointing_of_a_transformer() -> None:
    hf = pytest.importorskip("transformers")
    config = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    model = hf.BertForSequenceClassification(hf.BertConfig(**config, vocab_size=50))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert all(layer.gradient_checkpointing for layer in model.bert.encoder.layer)
    x = {"input_ids": torch.randint(0, 50, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    partition = Partition(model, example=x, parts=3)
    assert_composes(partition, x)
    assert_learns(partition, x)


class Reads(nn.Module):
    """An LSTM inside; only its sequence goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Linear(4, 6), nn.LSTM(6, 6, 2, batch_first=True, dropout=0.2)
        self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, (_, cell) = self.lstm(self.embed(x))
        return self.head(self.mix(h)[:, -1]) if x.shape[1] else cell[-1]


def test_a_recurrent_network() -> None:
    assert_sound(Reads(), torch.randn(2, 5, 4), cuts=["embed", "mix"])


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, dropout=0.1)
        self.norm, self.mix, self.head = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        h = self.embed(x)
        mixed, weights = self.attention(h, h, h, key_padding_mask=padding)
        return self.head(self.mix(self.norm(h + mixed)).mean(1)) + 0 * weights.sum()


def padding() -> Tensor:
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 3:] = True
    return mask


def test_attention_that_returns_its_weights() -> None:
    partition = Partition(Attends(), example=(torch.randn(2, 5, 4), padding()), cuts=["embed"])
    assert_composes(partition, (torch.randn(2, 5, 4), padding()))
    with pytest.raises(PartitionError, match="skip from 'attention'"):
        Partition(Attends(), example=(torch.randn(2, 5, 4), padding()), cuts=["norm"])


class Encodes(nn.Module):
    """torch's own encoder, whose eval mode takes another path through fused kernels and nested tensors."""

    def __init__(self, *, nested: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1)
        self.embed = nn.Linear(4, 8)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=nested)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(self.embed(x), src_key_padding_mask=padding)[:, 0])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cuts", [["embed"], ["encoder.layers.0", "encoder.layers.1"], ["encoder"]])
def test_the_fast_path_of_an_encoder_in_eval_mode(nested: bool, masked: bool, cuts: list[str]) -> None:
    """Sound, or refused in one line where the fast path's nested tensors would cross a cut.

    Compared with a forward without hooks, for hooks keep a layer off the fast path.
    """
    x: Any = (torch.randn(2, 5, 4), padding()) if masked else torch.randn(2, 5, 4)
    model = Encodes(nested=nested)
    if nested and masked and len(cuts) == 2:
        with pytest.raises(PartitionError, match=r"'encoder.layers.0' returns a nested tensor in eval mode"):
            Partition(model, example=x, cuts=cuts)
        return
    partition = Partition(model, example=x, cuts=cuts)
    model.eval()
    with torch.no_grad():
        assert identical(composed(partition, x)[1], ordinary(model, x))
    assert_composes(partition, x, modes=(True,))
    assert_learns(partition, x)


def test_autocast_around_whole_and_parts() -> None:
    model = sequential()
    partition = Partition(model, example=torch.randn(2, 4), cuts=["r"])
    x = torch.randn(3, 4)
    for cached in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cached):
            assert_composes(partition, x)
            assert composed(partition, x)[1].dtype is torch.bfloat16


def test_double_precision() -> None:
    model = Functional().double()
    partition = assert_sound(model, torch.randn(2, 3, 16, 16, dtype=torch.float64), cuts=["norm1", "fc1"])
    assert partition.part(0).output.dtype is torch.float64


def test_channels_last() -> None:
    model = UNet().to(memory_format=torch.channels_last)
    x = torch.randn(2, 1, 8, 8).to(memory_format=torch.channels_last)
    partition = Partition(model, example=x, cuts=["down1", "down2", "norm", "up2"])
    for n in (2, 5):
        assert_composes(partition, rebatch(x, n).to(memory_format=torch.channels_last))


@pytest.mark.parametrize(
    "norm", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_parametrised_weights(norm: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(norm(nn.Linear(4, 6)), nn.ReLU(), norm(nn.Linear(6, 6)), nn.ReLU(), norm(nn.Linear(6, 3)))
    assert_sound(model, torch.randn(2, 4), cuts=["1", "2"])


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_kept_as_plain_attributes_by_hooks() -> None:
    model = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(4, 6)), torch.nn.utils.spectral_norm(nn.Linear(6, 6)))
    model.append(nn.Linear(6, 2))
    assert_sound(model, torch.randn(2, 4), cuts=["0", "1"])


def test_a_module_under_two_names() -> None:
    model = nn.Sequential(OrderedDict(a=nn.Linear(4, 4), r=nn.ReLU(), b=nn.Linear(4, 4), c=nn.Linear(4, 2)))
    model.a.alias = model.r
    assert_sound(model, torch.randn(2, 4), cuts=["b"])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_modules_inside_parts() -> None:
    model = nn.Sequential(OrderedDict(a=nn.Linear(4, 4), r=nn.ReLU(), b=nn.Linear(4, 4), c=nn.Linear(4, 2)))
    model.b.compile(backend="eager")
    model.c = torch.compile(model.c, backend="eager")
    partition = Partition(model, example=torch.randn(2, 4), cuts=["r", "b"])
    assert_composes(partition, torch.randn(3, 4))
    assert model.b._compiled_call_impl is not None
    assert "_compiled_call_impl" not in model.a.__dict__


class Branches(nn.Module):
    """A branch on values inside one module."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return h * 2 if h.sum() > 0 else h - 1


def test_a_branch_on_values_inside_a_module() -> None:
    """It may go either way in any part."""
    model = nn.Sequential(Branches(), Branches(), nn.Linear(4, 2))
    partition = Partition(model, example=torch.randn(2, 4), cuts=["0", "1"])
    for _ in range(4):
        assert_composes(partition, 3 * torch.randn(3, 4))


class Grows(nn.Module):
    """Writes into a tensor that it laid out before the first layer, and reads a length from the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(len(x), 8)
        h = self.b(self.a(x))
        out[:, :4] = h
        out[:, 4:] = self.c(h)
        return out


def test_a_tensor_laid_out_early_and_written_late() -> None:
    assert_sound(Grows(), torch.randn(2, 4), cuts=["a", "b"])


def test_random_draws_that_do_not_matter_before_a_cut() -> None:
    """A layer-drop of probability zero, as several language models draw it."""

    class Drops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                if self.training and torch.rand([]) < 0.0:
                    continue
                x = torch.tanh(layer(x))
            return x

    model = Drops()
    partition = Partition(model, example=torch.randn(2, 4), cuts=["layers.0", "layers.1"])
    assert_composes(partition, torch.randn(3, 4))


def test_a_sparse_side_input() -> None:
    class Graph(nn.Module):
        def __init__(self, adjacency: Tensor) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.register_buffer("adjacency", adjacency)

        def forward(self, x: Tensor) -> Tensor:
            for layer in (self.a, self.b, self.c):
                x = layer(torch.stack([torch.sparse.mm(self.adjacency, row) for row in x]))
            return x

    model = Graph(torch.eye(3).to_sparse())
    partition = Partition(model, example=torch.randn(2, 3, 4), cuts=["a", "b"])
    x = torch.randn(4, 3, 4)
    assert identical(composed(partition, x)[1], whole(model, partition.cuts, x)[1])


def test_a_model_that_takes_batches_of_its_own_multiple() -> None:
    """Frames of a clip folded into the batch: no batch of 2 or 3 runs."""

    class Clips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.b(self.a(x))
            return self.c(h.view(-1, 4, 4).mean(1))

    assert_sound(Clips(), torch.randn(8, 4), cuts=["a", "b"], batches=(8, 16, 4))


def test_pairs_within_a_batch() -> None:
    """Outputs of shape (N, N) before a cut's part ends."""

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.b(self.a(x))
            return F.softmax(h @ h.T, 1) @ self.c(h)

    assert_sound(Pairs(), torch.randn(2, 4), cuts=["a", "b"])


@pytest.mark.parametrize("form", ["tensor", "tuple", "list", "mapping"])
def test_inputs_as_tensor_tuple_list_or_mapping(form: str) -> None:
    ids, mask = torch.randint(0, 20, (2, 6)), torch.ones(2, 6)
    x = {"tensor": ids, "tuple": (ids, mask), "list": [ids, mask], "mapping": {"ids": ids, "mask": mask}}[form]
    model = Masked()
    partition = Partition(model, example=x, cuts=["blocks.0", "blocks.1"])
    x = tuple(x) if form == "list" else x
    assert_composes(partition, x)
    boundary = composed(partition, x)[0][0]
    assert torch.equal(partition.part(0)(x), boundary) or model.training


def test_a_models_output_object_comes_back_whole() -> None:
    hf = pytest.importorskip("transformers")
    config = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = hf.BertForSequenceClassification(hf.BertConfig(**config, vocab_size=50)).eval()
    x = {"input_ids": torch.randint(0, 50, (2, 6)), "labels": torch.tensor([0, 1])}
    partition = Partition(model, example=x, parts=2)
    _, out = composed(partition, x)
    expected = ordinary(model, x)
    assert type(out) is type(expected)
    assert torch.equal(out.loss, expected.loss)
    assert torch.equal(out.logits, expected.logits)


def test_a_trainer_on_mappings_and_output_objects_equals_autograd() -> None:
    """A mapping goes in, the loss gets the model's own output object."""
    hf = pytest.importorskip("transformers")
    config = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "vocab_size": 50}
    plain, model = (hf.BertForSequenceClassification(hf.BertConfig(**config)) for _ in range(2))
    model.load_state_dict(plain.state_dict())
    x = {"input_ids": torch.randint(0, 50, (4, 6)), "attention_mask": torch.ones(4, 6, dtype=torch.long)}
    x["attention_mask"][1, 3:] = 0
    y = torch.tensor([0, 1, 1, 0])
    seen = []

    def loss(out: Any, y: Tensor) -> Tensor:
        seen.append(type(out))
        return F.cross_entropy(out.logits, y)

    partition = Partition(model.train(), example=x, parts=3)
    mw.Trainer(partition, mw.methods.Backprop(), loss=loss, optimizer=lambda p: torch.optim.SGD(p, lr=0.1)).step(x, y)
    plain.train()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    F.cross_entropy(plain(**x).logits, y).backward()
    optimizer.step()
    assert seen == [type(plain(**x))]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_low_rank_adapters_on_a_frozen_model() -> None:
    """Only the adapters and the head learn; the parts own the frozen weights too."""
    hf, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    config = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    bert = hf.BertForSequenceClassification(hf.BertConfig(**config, vocab_size=50))
    adapter = peft.LoraConfig(r=2, target_modules=["query", "value"], lora_dropout=0.1, modules_to_save=["classifier"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = peft.get_peft_model(bert, adapter)
    x = {"input_ids": torch.randint(0, 50, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    with untouched(model):
        partition = Partition(model, example=x, parts=3)
    assert_composes(partition, x)
    assert_learns(partition, x)
    learned = [name for part in partition.parts for name, p in part.named_parameters() if p.requires_grad]
    assert sorted(learned) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert all("lora" in name or "classifier" in name for name in learned)


def test_weights_loaded_after_the_partition_was_made() -> None:
    """A pretrained start: the partition is names, so that loading weights changes nothing of it."""
    model, other = sequential(), sequential()
    partition = Partition(model, example=torch.randn(2, 4), cuts=["r"])
    model.load_state_dict(other.state_dict())
    x = torch.randn(3, 4)
    model.eval(), other.eval()
    assert torch.equal(composed(partition, x)[1], other(x))


def test_one_sample_in_eval_mode() -> None:
    model = Functional()
    partition = Partition(model, example=torch.randn(1, 3, 16, 16), cuts=["norm1", "fc1"])
    assert_composes(partition, torch.randn(1, 3, 16, 16), modes=(False,))
    assert_composes(partition, torch.randn(4, 3, 16, 16))


def test_a_branch_that_a_later_batch_takes_around_the_cut_is_an_error_not_a_wrong_number() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.d(self.c(self.b(h)) if x.sum() > 0 else self.c(h))

    partition = Partition(Skips(), example=torch.ones(2, 4), cuts=["b"])
    with pytest.raises(PartitionError, match="cut 'b' was not called in this forward"):
        partition.run(0, -torch.ones(2, 4), {})
    with pytest.raises(PartitionError, match="cut 'b' was not called in this forward"):
        partition.run(1, -torch.ones(2, 4), {0: torch.ones(2, 4)})
    partition = Partition(Skips(), example=torch.ones(2, 4), cuts=["b", "c"])
    with pytest.raises(PartitionError, match="cut 'b' was not called in this forward"):
        partition.run(1, -torch.ones(2, 4), {0: torch.ones(2, 4)})


def test_a_part_alone_is_a_function_of_its_boundary() -> None:
    model = sequential().eval()
    partition = Partition(model, example=torch.randn(2, 4), cuts=["n", "d"])
    x = torch.randn(7, 4)
    h = partition.part(0)(x)
    assert torch.equal(h, model.n(model.a(x)))
    h = partition.part(1)(h)
    assert torch.equal(h, model.r(model.n(model.a(x))))
    assert torch.equal(partition.part(2)(h), model(x))


class ViewedTwice(nn.Module):
    """A module hands on a view of the input, which a later part reads as well, at first with weights of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten, self.a, self.b, self.c = nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        nn.init.zeros_(self.c.weight)

    def forward(self, x: Tensor) -> Tensor:
        z = self.flatten(x)
        return self.b(self.a(z)) + self.c(z)


def test_a_view_of_the_input_that_a_module_hands_on_is_made_again_not_stood_in_for():
    """With the weights of zero, no comparison at construction could tell."""
    model, x = ViewedTwice(), torch.randn(4, 2, 4)
    partition = Partition(model, cuts=["a"], example=x)
    nn.init.ones_(model.c.weight)
    other = torch.randn(5, 2, 4)
    assert torch.equal(partition.part(1)(partition.part(0)(other), x=other), model(other))
