"""The store: what is loaded is what was saved, every version is kept, what was altered is refused."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from stored_networks import LENET, MLP, partition

import modulewise as mw
from modulewise.data import Normalize
from modulewise.errors import StoreError
from modulewise.workflow import Card, Figure, ModelSpec, Quantity, Store, Threshold, markdown


def blob(folder: Path, card: Card) -> Path:
    return folder / "blobs" / f"{card.sha256}.safetensors"


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_loaded_part_is_the_part_bit_for_bit_and_frozen(tmp_path: Path) -> None:
    """Every part of a LeNet, chained, gives the model's own output; nothing requires a gradient."""
    cut = partition(LENET, cuts=["pool1", "flatten"])
    store = Store(tmp_path)
    for k in range(3):
        store.save(cut.part(k), f"part{k}", model=LENET)
    x = torch.randn(5, 1, 28, 28)
    h = x
    for k in range(3):
        part = Store(tmp_path).load(f"part{k}")
        assert not part.training
        assert not any(p.requires_grad for p in part.parameters())
        assert sum(p.numel() for p in part.parameters()) == sum(p.numel() for p in cut.part(k).parameters())
        h = part(h)
    cut.model.eval()
    assert torch.equal(h, cut.model(x))


def test_the_card_holds_every_fact_and_comes_back_the_same(tmp_path: Path) -> None:
    """What was given, what was found out, and the hash of the file that lies there."""
    cut = partition()
    given = {
        "normalize": Normalize(mean=(0.5,), std=(0.25,)),
        "data": "digits",
        "schedule": mw.schedules.sequential,
        "seed": 7,
        "figures": (Figure(quantity=Quantity.PROXY, value=0.875, on="held-out | split", how="alignment"),),
        "thresholds": (Threshold(quantity=Quantity.PROBE_ACCURACY, at_least=0.5),),
        "licence": "CC0-1.0",
        "notes": "a note",
    }
    store = Store(tmp_path)
    saved = store.save(cut.part(1), "top", model=MLP, method=mw.methods.KernelProxy(), **given)
    read = Store(tmp_path).card("top")
    assert read == saved
    for key in ("normalize", "data", "seed", "figures", "thresholds", "licence", "notes"):
        assert getattr(read, key) == given[key]
    assert read.method["type"] == "KernelProxy"
    assert read.schedule["type"] == "Sequential"
    assert (read.model, read.cuts, read.part) == (MLP, cut.cuts, 1)
    assert (read.takes.shape, read.takes.dtype) == ((1, 4, 4), torch.float32)
    assert read.input.shape == cut.part(1).input.shape[1:]
    assert read.output.shape == (3,)
    assert read.versions["torch"] == torch.__version__
    content = blob(tmp_path, read).read_bytes()
    assert (hashlib.sha256(content).hexdigest(), len(content)) == (read.sha256, read.bytes)
    page = markdown(read)
    for word in (
        "top@1",
        "mlp",
        "digits",
        "KernelProxy",
        "0.875",
        "at least 0.5",
        "CC0-1.0",
        read.sha256,
        "held-out \\| split",
    ):
        assert word in page


def test_weights_are_plain_safetensors_under_the_models_own_names(tmp_path: Path) -> None:
    """Readable without this library."""
    cut = partition()
    card = Store(tmp_path).save(cut.part(0), "low", model=MLP)
    tensors = load_file(blob(tmp_path, card))
    assert set(tensors) == set(cut.part(0).parameter_names)
    assert all(torch.equal(tensors[name], p) for name, p in cut.part(0).named_parameters())


def test_versions_are_kept_and_equal_weights_lie_there_once(tmp_path: Path) -> None:
    """The latest by name, any by NAME@VERSION."""
    store = Store(tmp_path)
    first, second = partition(seed=0), partition(seed=1)
    store.save(first.part(0), "low", model=MLP)
    store.save(second.part(0), "low", model=MLP)
    store.save(first.part(0), "other", model=MLP)
    x = torch.randn(4, 1, 4, 4)
    assert store.names() == ("low", "other")
    assert store.versions("low") == (1, 2)
    assert torch.equal(store.load("low")(x), second.part(0)(x))
    assert torch.equal(store.load("low@1")(x), first.part(0)(x))
    assert store.card("other").sha256 == store.card("low@1").sha256
    assert len(list((tmp_path / "blobs").iterdir())) == 2


def test_what_is_removed_is_gone_and_its_number_is_not_given_again(tmp_path: Path) -> None:
    """Weights go with the last card that names them."""
    store = Store(tmp_path)
    first, second = partition(seed=0), partition(seed=1)
    kept = store.save(first.part(0), "low", model=MLP)
    gone = store.save(second.part(0), "low", model=MLP)
    store.save(first.part(0), "other", model=MLP)
    assert store.remove("low@2") == ("low@2",)
    assert store.versions("low") == (1,)
    assert not blob(tmp_path, gone).exists()
    assert store.save(first.part(0), "low", model=MLP).version == 3
    assert store.remove("low") == ("low@1", "low@3")
    assert blob(tmp_path, kept).exists(), "another card names these weights"
    store.remove("other")
    assert not blob(tmp_path, kept).exists()
    with pytest.raises(StoreError, match="no part 'low'"):
        store.remove("low")


@pytest.mark.parametrize("how", ["flipped", "cut short", "other weights", "missing"])
def test_weights_that_are_not_those_of_the_card_are_refused(tmp_path: Path, how: str) -> None:
    """Damage and exchange are both seen by the hash; `verify` finds them as well."""
    store = Store(tmp_path)
    card = store.save(partition().part(0), "low", model=MLP)
    path = blob(tmp_path, card)
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[-1] ^= 1
        path.write_bytes(content)
    elif how == "cut short":
        path.write_bytes(content[:-4])
    elif how == "other weights":
        save_file({name: torch.zeros_like(t) for name, t in load_file(path).items()}, path)
    else:
        path.unlink()
    with pytest.raises(StoreError, match="the weights of low@1 are") as error:
        store.load("low")
    one_line(error)
    (problem,) = store.verify()
    assert problem.startswith("low@1: the weights")
    store.remove("low")
    assert store.verify() == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 99}, "format 99.*reads up to 1; update"),
        ({"data": "other"}, "altered"),
        ({"sha256": "0" * 64}, "altered"),
        ({"digest": ""}, "altered"),
    ],
)
def test_a_card_that_is_newer_or_was_altered_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    """A field that was changed by hand no longer fits the digest."""
    store = Store(tmp_path)
    store.save(partition().part(0), "low", model=MLP)
    path = tmp_path / "cards" / "low" / "1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StoreError, match=said) as error:
        store.load("low")
    one_line(error)


def test_a_card_in_the_wrong_place_or_of_no_sense_is_refused(tmp_path: Path) -> None:
    """A copied card would lend its name to other facts."""
    store = Store(tmp_path)
    store.save(partition().part(0), "low", model=MLP)
    cards = tmp_path / "cards"
    (cards / "high").mkdir()
    (cards / "high" / "1.json").write_bytes((cards / "low" / "1.json").read_bytes())
    with pytest.raises(StoreError, match=r"is that of low@1, in the wrong place"):
        store.card("high")
    (cards / "high" / "1.json").write_text("{")
    with pytest.raises(StoreError, match="damaged") as error:
        store.card("high")
    one_line(error)
    store.remove("high")
    assert store.names() == ("low",), "what is damaged can be removed, and nothing else goes with it"
    assert store.verify() == ()


def test_unknown_names_versions_and_malformed_names(tmp_path: Path) -> None:
    """One line each, with the nearest known name."""
    store = Store(tmp_path / "new")
    with pytest.raises(StoreError, match="has no part 'low'; it is empty"):
        store.load("low")
    assert not (tmp_path / "new").exists(), "looking writes nothing"
    store.save(partition().part(0), "low-level", model=MLP)
    with pytest.raises(StoreError, match="did you mean 'low-level'"):
        store.load("lowlevel")
    with pytest.raises(StoreError, match="no version '2', expected one of 1"):
        store.load("low-level@2")
    for name in ("", "a/b", "../up", "a@1", ".hidden", "two words"):
        with pytest.raises(StoreError, match="expected letters"):
            store.save(partition().part(0), name, model=MLP)


def test_a_folder_in_use_and_a_newer_store_are_refused(tmp_path: Path) -> None:
    """Other files stay alone, and nothing is added to them."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=re.escape("holds something else than a store (notes.txt)")):
        Store(tmp_path)
    with pytest.raises(StoreError, match="is a file"):
        Store(tmp_path / "notes.txt")
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "store.json").write_text('{"format": 2}')
    with pytest.raises(StoreError, match="store of format 2"):
        Store(newer)
    assert [path.name for path in tmp_path.iterdir() if path != newer] == ["notes.txt"]


def test_an_export_is_complete_and_never_goes_over_other_files(tmp_path: Path) -> None:
    """Weights, card and page."""
    store = Store(tmp_path / "store")
    card = store.save(partition().part(0), "low", model=MLP)
    out = store.export("low", tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["card.json", "card.md", "part.safetensors"]
    assert hashlib.sha256((out / "part.safetensors").read_bytes()).hexdigest() == card.sha256
    assert (out / "card.md").read_text() == markdown(card)
    with pytest.raises(StoreError, match="in use"):
        store.export("low", out)


def test_saving_says_what_is_missing_or_differs(tmp_path: Path) -> None:
    """Before anything is written."""
    cut, store = partition(), Store(tmp_path / "store")
    with pytest.raises(StoreError, match="how to rebuild the part"):
        store.save(cut.part(0), "low")
    for wrong in (
        ModelSpec(name="lenet5", shape=(1, 28, 28), classes=10),
        ModelSpec(name="mlp", shape=(1, 5, 5), classes=3),
    ):
        with pytest.raises(mw.ModulewiseError) as error:
            store.save(cut.part(0), "low", model=wrong)
        one_line(error)
    with pytest.raises(StoreError, match="int was given"):
        store.save(3, "low", model=MLP)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="without example="):
        store.save(cut.model, "low", model=MLP)
    with pytest.raises(StoreError, match="no bound"):
        Threshold(quantity=Quantity.PROXY)
    assert not (tmp_path / "store").exists()


def test_a_loaded_part_that_was_trained_further_is_a_version_of_its_own(tmp_path: Path) -> None:
    """A loaded part knows how it is rebuilt."""
    store = Store(tmp_path)
    store.save(partition().part(0), "low", model=MLP)
    part = store.load("low")
    with torch.no_grad():
        for p in part.parameters():
            p.add_(1)
    x = torch.randn(4, 1, 4, 4)
    assert store.save(part, "low", notes="shifted").label == "low@2"
    assert torch.equal(store.load("low")(x), part(x))
    assert not torch.equal(store.load("low@1")(x), part(x))
