"""Reading data: written by the test as parquet, as folders, or as a hub would give it."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from modulewise.data import Dataset, Split, load
from modulewise.errors import DataError

pa = pytest.importorskip("pyarrow", reason="the extra 'data' is not installed")
pq = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")

MNIST = Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist"


def pixels(count, shape=(6, 5), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def png(array, mode=None):
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(buffer, "PNG")
    return buffer.getvalue()


def schema_image(encoded):
    return pa.array(
        [{"bytes": data, "path": None} for data in encoded],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )


def write(file, images, labels, *, image="image", label="label", names=None, extra=None):
    encoded = [data if isinstance(data, bytes) or data is None else png(data) for data in images]
    table = pa.table({image: schema_image(encoded), label: labels, **(extra or {})})
    if names is not None:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=2)


def pair(folder, images=None, labels=(0, 1, 2), *, test_images=None, test_labels=(1, 0), **options):
    write(folder / "train.parquet", pixels(3) if images is None else images, list(labels), **options)
    write(
        folder / "test.parquet", pixels(2, seed=1) if test_images is None else test_images, list(test_labels), **options
    )
    return str(folder)


def refused(name, *parts, **options):
    with pytest.raises(DataError) as caught:
        load(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


class TestDigits:
    def test_the_splits_partition_the_embedded_set_unchanged(self):
        from sklearn.datasets import load_digits

        digits = load("digits")
        x = torch.cat([digits.train.x, digits.test.x]).mul(16).flatten(1)
        y = torch.cat([digits.train.y, digits.test.y])
        both = torch.cat([x, y[:, None]], 1)
        found = load_digits()
        expected = torch.cat([torch.tensor(found.data), torch.tensor(found.target)[:, None]], 1).float()
        assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, expected.tolist()))

    def test_every_class_is_split_eighty_to_twenty(self):
        digits = load("digits")
        train, test = digits.train.y.bincount(), digits.test.y.bincount()
        assert ((test - 0.2 * (train + test)).abs() <= 1).all()
        assert len(digits.test) == 360

    def test_the_split_is_fixed(self):
        torch.manual_seed(0)
        first = load("digits")
        torch.manual_seed(1)
        assert torch.equal(load("digits").train.x, first.train.x)
        assert first.train.x.shape[1:] == first.shape == (1, 8, 8)
        assert first.train.x.min() == 0
        assert first.train.x.max() == 1
        assert first.class_names == tuple("0123456789")


class TestParquet:
    def test_gray_images_and_integer_labels_are_read_exactly(self, tmp_path):
        data = load(pair(tmp_path))
        assert torch.equal(data.train.x, torch.from_numpy(pixels(3))[:, None])
        assert torch.equal(data.test.x, torch.from_numpy(pixels(2, seed=1))[:, None])
        assert data.train.y.tolist() == [0, 1, 2]
        assert data.test.y.tolist() == [1, 0]
        assert (data.classes, data.class_names, data.shape) == (3, ("0", "1", "2"), (1, 6, 5))
        assert data.train.x.dtype == torch.uint8

    def test_colour_images_have_channels_first(self, tmp_path):
        data = load(pair(tmp_path, pixels(3, (6, 5, 3)), test_images=pixels(2, (6, 5, 3)), image="img"))
        assert torch.equal(data.train.x, torch.from_numpy(pixels(3, (6, 5, 3))).permute(0, 3, 1, 2))

    def test_shards_are_joined_in_order_and_valid_stands_for_test(self, tmp_path):
        images = pixels(6)
        for i in (2, 0, 1):
            write(tmp_path / f"train-0000{i}-of-00003.parquet", images[2 * i : 2 * i + 2], [i, i])
        write(tmp_path / "valid.parquet", pixels(2), [0, 2])
        data = load(str(tmp_path))
        assert torch.equal(data.train.x, torch.from_numpy(images)[:, None])
        assert data.train.y.tolist() == [0, 0, 1, 1, 2, 2]
        assert data.test.y.tolist() == [0, 2]

    def test_declared_class_names_are_kept_in_their_order(self, tmp_path):
        data = load(pair(tmp_path, labels=(0, 1, 0), names=["wolf", "ant", "bee"]))
        assert (data.classes, data.class_names) == (3, ("wolf", "ant", "bee"))
        assert data.train.y.tolist() == [0, 1, 0]

    @pytest.mark.parametrize("encode", [list, lambda labels: pa.array(labels).dictionary_encode()])
    def test_string_labels_become_indices_of_sorted_names(self, tmp_path, encode):
        write(tmp_path / "train.parquet", pixels(3), encode(["wolf", "ant", "wolf"]))
        write(tmp_path / "test.parquet", pixels(1), encode(["ant"]))
        data = load(str(tmp_path))
        assert data.class_names == ("ant", "wolf")
        assert data.train.y.tolist() == [1, 0, 1]
        assert data.test.y.tolist() == [0]

    def test_the_only_columns_that_fit_are_taken_whatever_their_names(self, tmp_path):
        name = pair(tmp_path, image="picture", label="kind")
        assert load(name).train.y.tolist() == [0, 1, 2]

    def test_a_column_of_plain_bytes_is_read(self, tmp_path):
        for part in ("train", "test"):
            table = pa.table({"img": [png(image) for image in pixels(3)], "label": [0, 1, 2]})
            pq.write_table(table, tmp_path / f"{part}.parquet")
        assert torch.equal(load(str(tmp_path)).train.x, torch.from_numpy(pixels(3))[:, None])

    def test_an_image_stored_as_a_path_is_read_beside_the_file(self, tmp_path):
        (tmp_path / "a.png").write_bytes(png(pixels(1)[0]))
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({"image": pa.array([{"bytes": None, "path": "a.png"}], kind), "label": [0]})
        for part in ("train", "test"):
            pq.write_table(table, tmp_path / f"{part}.parquet")
        assert torch.equal(load(str(tmp_path)).test.x, torch.from_numpy(pixels(1))[:, None])

    def test_gray_images_among_colour_ones_become_colour(self, tmp_path):
        gray = pixels(1)[0]
        images = [png(pixels(1, (6, 5, 3))[0]), png(gray), png(gray, "LA")]
        data = load(pair(tmp_path, images, test_images=[png(gray), png(gray)]))
        assert data.shape == (3, 6, 5)
        for image in (data.train.x[1], data.train.x[2], data.test.x[0]):
            assert torch.equal(image, torch.from_numpy(gray).expand(3, 6, 5))

    @pytest.mark.parametrize("mode", ["RGBA", "P"])
    def test_other_colour_modes_become_rgb(self, tmp_path, mode):
        images = [png(image, mode) for image in pixels(3, (6, 5, 3))]
        expected = [np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in images]
        data = load(pair(tmp_path, images, test_images=images[:2]))
        assert torch.equal(data.train.x, torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2))

    def test_a_colour_image_among_gray_ones_is_refused_by_row(self, tmp_path):
        name = pair(tmp_path, [png(pixels(1)[0])] * 2 + [png(pixels(1, (6, 5, 3))[0])])
        refused(name, "train.parquet, row 2", "RGB", "gray")

    def test_sixteen_bit_images_are_refused_not_clipped(self, tmp_path):
        name = pair(tmp_path, [png(image.astype(np.uint16) * 256) for image in pixels(3)])
        refused(name, "row 0", "I;16", "8 bits")

    def test_an_image_of_another_size_is_refused_by_row_and_sizes(self, tmp_path):
        name = pair(tmp_path, test_images=[pixels(1)[0], pixels(1, (7, 5))[0]])
        refused(name, "test.parquet, row 1", "7x5", "6x5")

    @pytest.mark.parametrize("damaged", [b"no image", b"", None, png(pixels(1)[0])[:60]])
    def test_an_undecodable_image_is_refused_by_row(self, tmp_path, damaged):
        good = png(pixels(1)[0])
        refused(pair(tmp_path, [good, good, damaged]), "train.parquet, row 2", "cannot be decoded")

    def test_an_unreadable_file_is_named(self, tmp_path):
        name = pair(tmp_path)
        (tmp_path / "test.parquet").write_bytes(b"PAR1 no parquet PAR1")
        refused(name, "test.parquet", "parquet")

    def test_a_file_damaged_in_its_data_is_named(self, tmp_path):
        name = pair(tmp_path)
        file = tmp_path / "train.parquet"
        content = bytearray(file.read_bytes())
        content[4:200] = bytes(196)
        file.write_bytes(content)
        refused(name, "train.parquet")

    def test_a_missing_shard_is_refused(self, tmp_path):
        write(tmp_path / "train-00001-of-00002.parquet", pixels(2), [0, 1])
        refused(str(tmp_path), "1 of 2 shards")

    @pytest.mark.parametrize(
        ("columns", "what"),
        [
            ({"label": [0]}, "image bytes"),
            ({"image": schema_image([png(pixels(1)[0])]), "label": [0.5]}, "labels"),
            ({"image": schema_image([png(pixels(1)[0])]), "a": [0], "b": [1]}, "labels"),
        ],
    )
    def test_a_missing_or_ambiguous_column_is_refused_with_what_is_there(self, tmp_path, columns, what):
        for part in ("train", "test"):
            pq.write_table(pa.table(columns), tmp_path / f"{part}.parquet")
        refused(str(tmp_path), "train.parquet", what, *columns)

    @pytest.mark.parametrize(
        ("options", "parts"),
        [
            ({"test_labels": (0, 3)}, ("label 3 of test sample 1", "0 to 2")),
            ({"labels": (0, -1, 1)}, ("label -1 of train sample 1", "0 to 1")),
            ({"labels": (0, 1, 2), "names": ["a", "b"]}, ("label 2 of train sample 2",)),
            ({"labels": (0, 1, 10**12)}, ("label 1000000000000",)),
            ({"labels": (0, None, 1)}, ("row 1", "missing")),
            ({"labels": ("a", "b", "a"), "test_labels": ("a", "c")}, ("class 'c'", "test.parquet")),
        ],
    )
    def test_labels_that_are_no_class_are_refused(self, tmp_path, options, parts):
        refused(pair(tmp_path, **options), *parts)

    def test_class_names_that_differ_between_the_splits_are_refused(self, tmp_path):
        name = pair(tmp_path, labels=(0, 1, 0), names=["a", "b"])
        write(tmp_path / "test.parquet", pixels(2), [0, 1], names=["b", "a"])
        refused(name, "different class names")

    def test_an_empty_split_is_refused(self, tmp_path):
        name = pair(tmp_path)
        write(tmp_path / "test.parquet", [], pa.array([], pa.int64()))
        refused(name, "test split", "empty")

    def test_a_missing_test_split_is_refused(self, tmp_path):
        write(tmp_path / "train.parquet", pixels(1), [0])
        refused(str(tmp_path), "test.parquet", "valid")


class TestFolders:
    def images(self, folder, classes=("cat", "ant"), test="val"):
        for part, count in (("train", 2), (test, 1)):
            for name in classes:
                (folder / part / name).mkdir(parents=True)
                for i, image in enumerate(pixels(count, seed=len(part) + len(name) + ord(name[0]))):
                    (folder / part / name / f"{i}.PNG").write_bytes(png(image))
        return str(folder)

    def test_classes_are_the_sorted_folders(self, tmp_path):
        name = self.images(tmp_path)
        (tmp_path / "train" / "readme.txt").write_text("not a class")
        (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
        data = load(name)
        assert data.class_names == ("ant", "cat")
        assert data.train.y.tolist() == [0, 0, 1, 1]
        assert data.test.y.tolist() == [0, 1]
        file = tmp_path / "train" / "cat" / "1.PNG"
        assert torch.equal(data.train.x[3, 0], torch.from_numpy(np.array(Image.open(file))))

    def test_an_undecodable_file_is_named(self, tmp_path):
        name = self.images(tmp_path)
        (tmp_path / "val" / "ant" / "0.PNG").write_bytes(b"no image")
        refused(name, str(Path("val") / "ant" / "0.PNG"))

    def test_a_test_class_that_was_never_trained_is_refused(self, tmp_path):
        name = self.images(tmp_path)
        (tmp_path / "val" / "cat").rename(tmp_path / "val" / "dog")
        refused(name, "'dog'", "val")

    def test_a_folder_without_images_or_without_test_or_of_something_else_is_refused(self, tmp_path):
        refused(str(tmp_path), "neither train.parquet")
        (tmp_path / "train" / "ant").mkdir(parents=True)
        refused(str(tmp_path), "no test/")
        (tmp_path / "test").mkdir()
        refused(str(tmp_path), "train split", "empty")


class TestNames:
    def test_a_misspelt_name_is_refused_with_the_closest(self):
        refused("digit", "'digit'", "did you mean 'digits'?")

    def test_a_misspelt_folder_is_refused_with_the_closest(self, tmp_path):
        (tmp_path / "mnist").mkdir()
        refused(str(tmp_path / "mnits"), f"did you mean {str(tmp_path / 'mnist')!r}?")

    @pytest.mark.parametrize("package", ["pyarrow.parquet", "PIL.Image"])
    def test_a_missing_package_is_answered_by_the_extra_to_install(self, tmp_path, monkeypatch, package):
        name = pair(tmp_path)
        monkeypatch.setitem(sys.modules, package, None)
        refused(name, package, "pip install 'modulewise[data]'")

    def test_digits_need_no_extra(self, monkeypatch):
        def extra(package):
            raise AssertionError(f"{package} was asked for")

        for module in ("files", "images"):
            monkeypatch.setattr(f"modulewise.data.{module}.extra", extra)
        assert len(load("digits").train) == 1437


class TestHub:
    @pytest.fixture
    def datasets(self):
        return pytest.importorskip("datasets", reason="the extra 'data' is not installed")

    def split(self, datasets, count, seed=0, label=None):
        features = {"image": datasets.Image(), "label": label or datasets.ClassLabel(names=["wolf", "ant"])}
        columns = {
            "image": [{"bytes": png(image), "path": None} for image in pixels(count, seed=seed)],
            "label": [i % 2 for i in range(count)],
        }
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

    def test_a_hub_set_is_read_as_a_folder_is(self, datasets, monkeypatch, tmp_path):
        asked = []

        def load_dataset(name, *, cache_dir):
            asked.append((name, cache_dir))
            parts = {"train": self.split(datasets, 3), "validation": self.split(datasets, 2, seed=1)}
            return datasets.DatasetDict(parts)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        data = load("hub:someone/something", cache=tmp_path)
        assert asked == [("someone/something", str(tmp_path))]
        assert torch.equal(data.train.x, torch.from_numpy(pixels(3))[:, None])
        assert torch.equal(data.test.x, torch.from_numpy(pixels(2, seed=1))[:, None])
        assert data.train.y.tolist() == [0, 1, 0]
        assert data.class_names == ("wolf", "ant")

    def test_a_hub_set_without_test_split_is_refused(self, datasets, monkeypatch):
        parts = datasets.DatasetDict({"train": self.split(datasets, 3)})
        monkeypatch.setattr(datasets, "load_dataset", lambda name, *, cache_dir: parts)
        refused("hub:something", "['train']", "test")

    def test_what_the_hub_cannot_give_is_refused_in_one_line(self, datasets, monkeypatch):
        def load_dataset(name, *, cache_dir):
            raise ConnectionError("no connection\nand a long story")

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        refused("hub:something", "hub:something", "no connection")


class TestDataset:
    def make(self, **options):
        split = Split(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]))
        given = {
            "name": "n",
            "train": split,
            "test": split,
            "classes": 2,
            "class_names": ("a", "b"),
            "shape": (1, 4, 4),
        }
        return Dataset(**{**given, **options})

    @pytest.mark.parametrize(
        "options",
        [
            {"classes": 1, "class_names": ("a",)},
            {"class_names": ("a",)},
            {"shape": (3, 4, 4)},
            {"test": Split(torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64))},
        ],
    )
    def test_what_does_not_fit_together_is_refused(self, options):
        assert self.make().classes == 2
        with pytest.raises(DataError, match=r"^n: [^\n]+$"):
            self.make(**options)

    @pytest.mark.parametrize("y", [torch.tensor([0]), torch.tensor([0.0, 1.0])])
    def test_labels_must_be_integers_one_a_sample(self, y):
        with pytest.raises(DataError, match="int64"):
            Split(torch.zeros(2, 1, 4, 4), y)


@pytest.mark.skipif(not (MNIST / "test.parquet").is_file(), reason="MNIST is not at hand")
def test_the_mnist_test_split_is_whole(tmp_path):
    for part in ("train", "test"):
        (tmp_path / f"{part}.parquet").symlink_to(MNIST / "test.parquet")
    data = load(str(tmp_path))
    assert data.test.x.shape == (10_000, 1, 28, 28)
    # Counts of the digits in the published test set.
    assert data.test.y.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.test.x[0, 0].any()
    assert data.test.y[0] == 7
