"""What cannot be cut soundly is refused when the partition is made, in one line that names the culprits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from part_oracle import untouched
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modulewise import Partition
from modulewise.errors import PartitionError
from modulewise.partition.survey import Survey


class Chain(nn.Module):
    """Three layers a, b, c with a forward given as a function, for models that differ in their forward alone."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        for name, module in modules.items():
            self.add_module(name, module)
        self._forward = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(self, *args, **kwargs)


def plain() -> nn.Sequential:
    return nn.Sequential(OrderedDict(stem=nn.Linear(4, 8), act=nn.ReLU(), head=nn.Linear(8, 3)))


def refused(model: nn.Module, *words: str, x: Any = None, **how: Any) -> str:
    """The one line with which a partition is refused, leaving nothing on the model."""
    x = torch.randn(4, 4) if x is None else x
    with untouched(model), pytest.raises(PartitionError) as caught:
        Partition(model, example=x, **how)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    return text


def test_an_unknown_name_is_answered_with_the_closest() -> None:
    refused(plain(), "'stam'", "Sequential", "did you mean 'stem'?", cuts=["stam"])


def test_neither_or_both_of_cuts_and_parts() -> None:
    refused(plain(), "either cuts=", "or parts=")
    refused(plain(), "exactly one", cuts=["stem"], parts=2)


def test_a_string_is_not_taken_for_a_list_of_letters() -> None:
    refused(plain(), "['stem']", cuts="stem")


@pytest.mark.parametrize(("parts", "model"), [(0, plain()), (3, plain()), (-1, plain()), (2, nn.Linear(4, 3))])
def test_more_parts_than_cut_points_or_fewer_than_one(parts: int, model: nn.Module) -> None:
    points = 1 if len(list(model.children())) else 0
    refused(model, f"{parts} parts", f"expected 1 to {points + 1}", f"{points} cut points", parts=parts)


def test_a_name_given_twice() -> None:
    refused(plain(), "named twice", cuts=["stem", "stem"])


def test_cuts_out_of_order_are_given_back_in_order() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    refused(model, "not in the order", "cuts=['0', '1']", cuts=["1", "0"])


def test_nothing_between_two_cuts() -> None:
    model = nn.Sequential(OrderedDict(block=nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), head=nn.Linear(4, 2)))
    refused(model, "nothing happens between cuts 'block.1' and 'block'", cuts=["block.1", "block"])


def test_a_cut_called_never() -> None:
    refused(Chain(lambda m, x: m.c(m.a(x))), "'b' is never called", cuts=["b"])


def test_a_cut_called_twice() -> None:
    refused(Chain(lambda m, x: m.c(m.a(m.a(x)))), "'a' is called 2 times", cuts=["a"])


def test_a_second_name_of_a_module_is_told_its_first() -> None:
    model = Chain(lambda m, x: m.c(m.b(m.alias(x))))
    model.alias = model.a
    refused(model, "'alias' is another name of module 'a'", cuts=["alias"])


def test_a_skip_inside_a_part_names_both_ends() -> None:
    model = Chain(lambda m, x: (lambda h: m.c(m.b(h)) + h)(m.a(x)), add=nn.Identity())
    refused(model, "at cut 'b'", "from 'a' to 'the forward (add)'", "starts inside one part", cuts=["b"])


def test_a_skip_from_module_to_module_names_both_modules() -> None:
    model = Chain(lambda m, x: (lambda h: m.join(m.b(torch.tanh(m.c(h))), h))(m.a(x)), join=nn.Bilinear(4, 4, 2))
    refused(model, "at cut 'c'", "from 'a' to 'join'", cuts=["c"])


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, x + 1


class Flag(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x > 0


class Scalar(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean()


@dataclass
class Box:
    h: Tensor


class Boxed(nn.Module):
    def forward(self, x: Tensor) -> Box:
        return Box(x)


@pytest.mark.parametrize(
    ("module", "forward", "words"),
    [
        (Two(), lambda m, x: m.c(sum(m.cut(m.a(x)))), "returns 2 tensors"),
        (Flag(), lambda m, x: m.c(m.cut(m.a(x)).float()), "bool"),
        (Scalar(), lambda m, x: m.c(x * m.cut(m.a(x))), "expected one of floating point"),
        (Boxed(), lambda m, x: m.c(m.cut(m.a(x)).h), "returns 0 tensors"),
        (nn.LSTM(4, 4), lambda m, x: m.c(m.cut(m.a(x))[0]), "returns 3 tensors"),
    ],
    ids=["two tensors", "bool", "scalar", "dataclass", "lstm"],
)
def test_a_boundary_that_is_no_single_tensor(module: nn.Module, forward: Any, words: str) -> None:
    refused(Chain(forward, cut=module), "cut 'cut'", words, cuts=["cut"])


@pytest.mark.parametrize("tokens", [2, 3, 4], ids=lambda n: f"{n} tokens")
def test_a_boundary_whose_axis_0_is_not_the_batch(tokens: int) -> None:
    """Also where the axis is as long as a recorded batch by chance."""
    model = Chain(lambda m, x: m.c(m.b(m.a(x.transpose(0, 1)))).mean(0))
    refused(model, "axis 0 is not the batch", x=torch.randn(5, tokens, 4), cuts=["b"])


def tied() -> nn.Module:
    model = Chain(lambda m, x: F.linear(m.b(m.embed(x)), m.head.weight))
    model.embed = nn.Embedding(9, 4)
    model.head = nn.Linear(4, 9, bias=False)
    return model


def test_tied_embeddings_name_both_paths_and_both_parts() -> None:
    model = tied()
    model.head.weight = model.embed.weight
    refused(
        model,
        "'embed.weight' and 'head.weight'",
        "part 0 (by 'embed')",
        "part 1",
        "untie",
        x=torch.randint(0, 9, (4, 5)),
        cuts=["b"],
    )


def test_parameters_tied_through_their_memory_alone() -> None:
    model = tied()
    model.head.weight = nn.Parameter(model.embed.weight.data)
    refused(model, "'embed.weight' and 'head.weight'", "untie", x=torch.randint(0, 9, (4, 5)), cuts=["b"])


def test_automatic_cuts_say_that_tied_weights_leave_no_place() -> None:
    """No cut is offered between two uses of one weight; the reason stands beside the count."""
    model = Chain(lambda m, x: m.d(m.c(m.a(m.b(m.a(x))))), d=nn.Linear(4, 4))
    words = ("3 parts", "expected 1 to 2", "'a.weight' is read on both sides", "untie")
    refused(model, *words, parts=3)
    assert Partition(model, example=torch.randn(4, 4), parts=2).cuts == ("c",)


def test_automatic_cuts_stay_clear_of_random_numbers_read_later() -> None:
    def forward(m: Chain, x: Tensor) -> Tensor:
        h = m.a(x)
        order = torch.rand(4).argsort()
        return m.c(m.b(h[:, order])[:, order.argsort()])

    model = Chain(forward)
    assert Partition(model, example=torch.randn(4, 4), parts=2).cuts == ("a",)
    refused(model, "the model has 1 cut points", parts=3)
    refused(model, "random numbers", cuts=["b"])


def test_random_depth_leaves_the_cut_points_before_it() -> None:
    """Statistics that a dropped path flows into are no random numbers before it has."""

    def forward(m: Chain, x: Tensor) -> Tensor:
        h = m.b(m.a(x))
        return m.norm(h + m.c(h) * torch.rand(len(h), 1).round())

    model = Chain(forward, norm=nn.BatchNorm1d(4))
    assert [call.name for call in Survey(model, torch.randn(4, 4)).candidates()] == ["a", "b"]


def test_one_layer_used_in_two_parts() -> None:
    model = Chain(lambda m, x: m.a(m.b(m.a(x))))
    refused(model, "'a.weight' is read in part 0 (by 'a') and in part 1 (by 'a')", cuts=["b"])


def test_a_tied_transformer_says_which_weights() -> None:
    hf = pytest.importorskip("transformers")
    config = hf.GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    refused(
        hf.GPT2LMHeadModel(config),
        "'transformer.wte.weight' and 'lm_head.weight'",
        x={"input_ids": torch.randint(0, 50, (2, 8))},
        cuts=["transformer.h.0"],
    )


def test_reentrant_checkpointing_across_a_cut() -> None:
    def forward(m: Chain, x: Tensor) -> Tensor:
        return m.c(checkpoint(lambda h: m.b(m.a(h)), x, use_reentrant=True))

    x = torch.randn(4, 4, requires_grad=True)
    refused(Chain(forward), "'a'", "gradients off", "use_reentrant=False", x=x, cuts=["a"])


def test_non_reentrant_checkpointing_across_a_cut() -> None:
    """Its recomputation would run through the cut from the batch, with weights that have moved on."""

    def forward(m: Chain, x: Tensor) -> Tensor:
        return m.c(checkpoint(lambda h: m.b(m.a(h)).tanh(), x, use_reentrant=False))

    refused(Chain(forward), "'a'", "checkpointed segment", cuts=["a"])
    refused(Chain(forward), "'b'", "checkpointed segment", cuts=["b"])


def test_learned_layers_under_no_grad_across_a_cut() -> None:
    def forward(m: Chain, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = m.b(m.a(x))
        return m.c(h)

    refused(Chain(forward), "gradients off", cuts=["a"])


def keeps_tensor(m: Chain, x: Tensor) -> Tensor:
    m.kept = m.a(x)
    return m.c(m.b(m.kept) * m.kept)


def keeps_detached(m: Chain, x: Tensor) -> Tensor:
    h = m.a(x)
    m.kept = h.detach().clone()
    return m.c(m.b(h) * m.kept)


def keeps_in_list(m: Chain, x: Tensor) -> Tensor:
    m.store = [m.a(x)]
    return m.c(m.b(m.store[0]) * m.store[0])


@pytest.mark.parametrize("forward", [keeps_tensor, keeps_detached, keeps_in_list])
def test_a_tensor_kept_on_a_module_across_a_cut(forward: Any) -> None:
    refused(Chain(forward), "at cut 'b'", "to 'the forward (mul)'", cuts=["b"])


class Remembers(nn.Module):
    """Keeps a number of its output where no recording sees it."""

    def __init__(self, read: Callable[[Tensor], float], keep: str) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.read, self.keep, self.number, self.shelf = read, keep, 1.0, {}

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        number = self.read(h)
        if self.keep == "attribute":
            self.number = number
        else:
            self.shelf["number"] = number
        return h

    def recall(self) -> float:
        return self.number if self.keep == "attribute" else self.shelf["number"]


@pytest.mark.parametrize("keep", ["attribute", "dictionary"])
@pytest.mark.parametrize(
    "read",
    [lambda h: h.abs().mean().item(), lambda h: h.abs().sum(1).tolist()[0], lambda h: float(h.detach().numpy().max())],
    ids=["item", "tolist", "numpy"],
)
def test_a_number_kept_on_a_module_across_a_cut_is_found_by_comparison(read: Any, keep: str) -> None:
    first = Remembers(read, keep)
    model = Chain(lambda m, x: m.c(m.b(m.first(x)) * m.first.recall()), first=first)
    refused(model, "last part" if keep == "attribute" else "KeyError", cuts=["b"])


def branches(m: Chain, x: Tensor) -> Tensor:
    h = m.a(x)
    large = bool(h.mean() > -100)
    h = m.b(h)
    return m.c(h) if large else m.c(-h)


def scales(m: Chain, x: Tensor) -> Tensor:
    h = m.a(x)
    scale = h.detach().numpy().max()
    return m.c(m.b(h)) * float(scale)


def lists(m: Chain, x: Tensor) -> Tensor:
    h = m.a(x)
    first = h.tolist()[0][0]
    return m.c(m.b(h)) * first


@pytest.mark.parametrize("forward", [branches, scales, lists])
def test_a_value_read_into_python_before_a_cut(forward: Any) -> None:
    refused(Chain(forward), "into Python", cuts=["b"])


class Measures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, float]:
        h = self.layer(x)
        return h, h.abs().max().item()


def test_a_number_returned_beside_the_boundary() -> None:
    def forward(m: Chain, x: Tensor) -> Tensor:
        h, number = m.cut(x)
        return m.c(m.b(h)) * number

    model = Chain(forward, cut=Measures())
    refused(model, "into Python", cuts=["cut"])
    refused(model, "into Python", cuts=["b"])


def test_an_early_activation_in_the_output() -> None:
    def forward(m: Chain, x: Tensor) -> Any:
        h = m.a(x)
        return {"logits": m.c(m.b(h)), "early": h}

    refused(Chain(forward), "from 'a' to \"the model's output\"", cuts=["b"])


def test_a_wider_view_of_the_boundary_in_the_output() -> None:
    """The boundary is a slice of a storage whose other part is returned."""

    def forward(m: Chain, x: Tensor) -> Any:
        h = m.a(x)
        return m.c(F.pad(m.cut(h[:, :2]), (0, 2))), h

    refused(Chain(forward, cut=nn.Identity()), "skip", "output", cuts=["cut"])


def test_an_activation_hidden_in_a_dataclass_output() -> None:
    def forward(m: Chain, x: Tensor) -> Any:
        h = m.a(x)
        return [Box(m.c(m.b(h))), Box(h)]

    refused(Chain(forward), "from 'a' to \"the model's output\"", cuts=["b"])


def test_a_boundary_changed_in_place_by_the_part_between() -> None:
    """The skip starts at an earlier boundary, but what it carries is made inside the next part."""

    def forward(m: Chain, x: Tensor) -> Tensor:
        h = m.a(x)
        g = m.b(h)
        h.relu_()
        return m.c(m.d(g)) + h

    model = Chain(forward, d=nn.Linear(4, 4))
    refused(model, "at cut 'd'", "skip", cuts=["a", "d"])


def test_a_buffer_that_carries_activations_across_a_cut() -> None:
    def forward(m: Chain, x: Tensor) -> Tensor:
        h = m.a(x)
        m.state.copy_(h.detach().mean(0))
        return m.c(m.b(h)) * m.state

    model = Chain(forward)
    model.register_buffer("state", torch.zeros(4))
    refused(model, "at cut 'b'", "'state'", cuts=["b"])


def test_statistics_of_a_module_shared_by_two_parts() -> None:
    model = Chain(lambda m, x: m.c(m.norm(m.b(m.norm(m.a(x))))), norm=nn.BatchNorm1d(4, affine=False))
    refused(model, "at cut 'b'", "norm", cuts=["b"])


def test_random_numbers_drawn_in_one_part_and_used_in_another() -> None:
    def forward(m: Chain, x: Tensor) -> Tensor:
        noise = torch.rand(len(x), 4)
        return m.c(m.b(m.a(x) * noise)) * noise

    refused(Chain(forward), "random numbers", "part 1 (after 'b')", cuts=["b"])


def test_random_numbers_that_steer_two_parts() -> None:
    """A coin that Python looks at before the cut and again behind it."""

    def forward(m: Chain, x: Tensor) -> Tensor:
        heads = m.training and torch.rand(()).item() < 0.3
        h = m.b(m.a(x))
        return m.c(-h if heads else h)

    refused(Chain(forward), "differ", cuts=["b"])


def test_a_layer_that_is_dropped_at_random() -> None:
    def forward(m: Chain, x: Tensor) -> Tensor:
        h = m.a(x)
        if not m.training or torch.rand(()) > 0.5:
            h = m.b(h)
        return m.c(h)

    torch.manual_seed(1)
    refused(Chain(forward), cuts=["b"])
    refused(Chain(forward), cuts=["a", "b"])


@pytest.mark.parametrize("source", ["python", "numpy"])
def test_random_numbers_that_are_not_torchs(source: str) -> None:
    import random

    import numpy

    def forward(m: Chain, x: Tensor) -> Tensor:
        return m.c(m.b(m.a(x)) * (random.random() if source == "python" else numpy.random.rand()))

    states = random.getstate(), numpy.random.get_state()[1].tolist()
    refused(Chain(forward), "Python's or numpy's", "torch.rand", cuts=["a"])
    assert states == (random.getstate(), numpy.random.get_state()[1].tolist())


class Source(nn.Module):
    """Draws from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, h: Tensor) -> Tensor:
        return h + torch.rand(4, generator=self.generator)


def test_a_generator_of_the_models_own_that_two_parts_draw_from() -> None:
    model = Chain(lambda m, x: m.c(m.source(m.b(m.source(m.a(x))))), source=Source())
    state = model.source.generator.get_state()
    refused(model, "differ", cuts=["b"])
    assert torch.equal(model.source.generator.get_state(), state)


def count(m: Chain, x: Tensor) -> Tensor:
    m.calls = getattr(m, "calls", 0) + 1
    return m.c(m.b(m.a(x)) / m.calls)


def test_a_forward_that_counts_its_calls() -> None:
    """It would be called once for every part; inside a module that one part calls it may."""
    text = "counts its calls, in attribute"
    refused(Chain(count), text, "'calls'", cuts=["b"])
    outer = nn.Sequential(OrderedDict(chain=Chain(count), head=nn.Linear(4, 2)))
    refused(outer, text, "'chain.calls'", cuts=["chain.b"])
    assert len(Partition(outer, example=torch.randn(4, 4), cuts=["chain"])) == 2
    assert [call.name for call in Survey(outer, torch.randn(4, 4)).candidates()] == ["chain"]


def test_a_shared_table_that_is_unfrozen_later() -> None:
    """Read by two parts, straight or through what is made of it before the first."""
    for forward in (
        lambda m, x: m.c(m.b(m.a(x + m.table)) + m.table),
        lambda m, x: (lambda t: m.c(m.b(m.a(x + t)) + t))(m.table * 2),
        lambda m, x: (lambda t: m.c(m.b(m.a(x)) + t))(m.table * 2),
    ):
        model, x = Chain(forward), torch.randn(4, 4)
        model.table = nn.Parameter(torch.ones(4), requires_grad=False)
        partition = Partition(model, example=x, cuts=["b"])
        model.a.requires_grad_(False)
        partition.plans(x)
        model.table.requires_grad_(True)
        with pytest.raises(PartitionError, match=r"'table' was frozen when the partition was made"):
            partition.plans(x)
        with pytest.raises(PartitionError, match=r"'table'|skip"):
            Partition(model, example=x, cuts=["b"])


def test_an_input_changed_in_place() -> None:
    x = torch.randn(4, 4)
    before = x.clone()
    refused(Chain(lambda m, x: m.c(m.b(m.a(x.mul_(2))))), "its input in place", x=x, cuts=["a"])
    assert torch.equal(x, before)


def test_a_parameter_changed_in_place() -> None:
    model = Chain(lambda m, x: m.c(m.b(m.embed(x))), embed=nn.Embedding(9, 4, max_norm=0.5))
    refused(model, "'embed.weight' in place", x=torch.randint(0, 9, (4,)), cuts=["b"])


def test_a_branch_on_values_that_calls_other_modules() -> None:
    """The third sample is the one that takes the other branch."""

    def forward(m: Chain, x: Tensor) -> Tensor:
        h = m.a(x)
        return m.c(m.b(h) if x.sum() > 2 else h)

    refused(Chain(forward), "one order of calls", x=torch.tensor([[1.0] * 4, [-1.0] * 4, [9.0] * 4]), cuts=["a"])


def test_inline_algebra_that_stand_ins_cannot_pass() -> None:
    """A factorisation between modules fails on the zeros that stand in for the first part."""

    def forward(m: Chain, x: Tensor) -> Tensor:
        h = m.a(x)
        gram = h.unsqueeze(2) @ h.unsqueeze(1) + 0 * x.unsqueeze(2)
        eye = 0.1 * torch.eye(4) * h.abs().sum().add(1e-9) / h.abs().sum()
        return m.c(m.b(torch.linalg.cholesky(gram + eye).sum(2)))

    text = refused(Chain(forward), "part by part", "stand-ins", cuts=["b"])
    assert "Error" in text


def test_a_module_that_returns_an_object_the_library_cannot_stand_in_for() -> None:
    class Handle:
        def __init__(self, h: Tensor) -> None:
            self.h = h

    class Wraps(nn.Module):
        def forward(self, x: Tensor) -> Handle:
            return Handle(x)

    model = Chain(lambda m, x: m.c(m.b(m.wrap(m.a(x)).h)), wrap=Wraps())
    refused(model, "part by part", "NoneType", cuts=["b"])


class Flips(nn.Module):
    """Switches gradients off for whatever comes after it."""

    def forward(self, h: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        return h


def test_gradients_that_a_module_before_the_cut_has_switched_off() -> None:
    """The part alone would learn what the whole does not."""
    refused(Chain(lambda m, x: m.c(m.cut(m.a(x))), cut=Flips()), "whether gradients are on", cuts=["cut"])
    assert torch.is_grad_enabled()


def test_lazy_parameters() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4))
    with pytest.raises(PartitionError, match=r"'0.weight' has no shape yet; run the model once"):
        Partition(model, example=torch.randn(2, 4), cuts=["0"])


def test_a_model_compiled_as_a_whole_or_around_a_cut() -> None:
    x = torch.randn(4, 4)
    with pytest.raises(PartitionError, match=r"compiled as a whole.*compile=True"):
        Partition(torch.compile(plain(), backend="eager"), example=x, cuts=["_orig_mod.stem"])
    inner = nn.Sequential(OrderedDict(block=torch.compile(plain(), backend="eager"), head=nn.Linear(3, 2)))
    with pytest.raises(PartitionError, match=r"'block', which is compiled"):
        Partition(inner, example=x, cuts=["block._orig_mod.stem"])
    outer = nn.Sequential(OrderedDict(block=plain(), head=nn.Linear(3, 2)))
    outer.block.compile(backend="eager")
    with pytest.raises(PartitionError, match=r"'block', which is compiled"):
        Partition(outer, example=x, cuts=["block.stem"])


def test_a_batch_size_that_the_model_cannot_change() -> None:
    def forward(m: Chain, x: Tensor) -> Tensor:
        return m.c(m.b(m.a(x.view(4, 4))))

    refused(Chain(forward), "runs on 4 samples", cuts=["b"])


def test_the_models_own_error_on_its_own_example_is_passed_on() -> None:
    def forward(m: Chain, x: Tensor) -> Tensor:
        raise RuntimeError("the user's own words")

    model, x = Chain(forward), torch.randn(4, 4)
    with untouched(model), pytest.raises(RuntimeError, match="the user's own words"):
        Partition(model, example=x, cuts=["a"])


def test_a_part_that_does_not_exist() -> None:
    partition = Partition(plain(), example=torch.randn(2, 4), cuts=["act"])
    with pytest.raises(PartitionError, match="part 2 was asked for, expected 0 to 1"):
        partition.part(2)


def test_an_input_of_another_structure_that_moves_a_parameter_to_another_part() -> None:
    def forward(m: Chain, x: Tensor, extra: Tensor | None = None) -> Tensor:
        h = m.a(x) if extra is None else m.a(m.c(x)) + extra
        h = m.b(h)
        return m.c(h) if extra is None else h * 2

    partition = Partition(Chain(forward), example=torch.randn(4, 4), cuts=["b"])
    with pytest.raises(PartitionError, match=r"parameter 'c.weight' belongs to part 1 but is read in part 0"):
        partition.plans((torch.randn(4, 4), torch.randn(4, 4)))


def test_an_input_of_another_structure_is_compared_as_well() -> None:
    def keeps(m: Chain, x: Tensor, scale: Tensor | None = None) -> Tensor:
        h = m.b(m.first(m.a(x), scale))
        return m.c(h) * m.first.number

    class First(nn.Module):
        number = 1.0

        def forward(self, h: Tensor, scale: Tensor | None) -> Tensor:
            if scale is not None:
                self.number = h.sum().item()
            return h

    partition = Partition(Chain(keeps, first=First()), example=torch.randn(4, 4), cuts=["b"])
    with pytest.raises(PartitionError, match="last part"):
        partition.plans((torch.randn(4, 4), torch.randn(4)))
