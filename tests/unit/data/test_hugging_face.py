"""Folders of Hugging Face's save_to_disk, written here as datasets 5.2 writes them."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from taylorglo.data import dataset as data
from taylorglo.data import remarks
from taylorglo.data.dataset import Dataset
from taylorglo.data.hugging_face import read_hugging_face
from taylorglo.errors import InputError
from taylorglo.settings import DataSettings

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
CLASSES = {"label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}
OF_IMAGES = {"image": {"_type": "Image"}, **CLASSES}


def save_to_disk(
    folder: Path, table: pa.Table, features: Mapping[str, Any], shards: int = 1
) -> None:
    """Write a folder of one split."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{shards:05d}.arrow" for number in range(shards)]
    size = -(-len(table) // shards)
    for number, name in enumerate(names):
        part = table.slice(number * size, size)
        with (folder / name).open("wb") as file, pa.ipc.new_stream(file, part.schema) as writer:
            writer.write_table(part)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def png(levels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, format="PNG")
    return buffer.getvalue()


def of_images(images: Sequence[Any], **more: Any) -> pa.Table:
    cells = [{"bytes": png(image), "path": None} for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = [index % 2 for index in range(len(images))]
    return pa.table({"image": pa.array(cells, kind), "label": pa.array(labels), **more})


def write_images(root: Path) -> None:
    save_to_disk(root / "train", of_images(IMAGES), OF_IMAGES, shards=3)
    save_to_disk(root / "test", of_images(IMAGES[:4]), OF_IMAGES)
    (root / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')


def load(root: Path, **changes: Any) -> Dataset:
    values = {"name": "hugging-face", "root": str(root), "validation_fraction": 0.5, **changes}
    return data.load(DataSettings.model_validate(values), 0)


def test_images_of_all_parts_are_read_in_their_order(tmp_path: Path) -> None:
    write_images(tmp_path / "x")
    source = read_hugging_face(tmp_path / "x", DataSettings())
    assert np.array_equal(source.train.images.permute(0, 2, 3, 1).numpy(), IMAGES)
    assert source.train.labels.tolist() == [0, 1] * 6
    assert source.validation is None
    assert source.test is not None
    assert np.array_equal(source.test.images.permute(0, 2, 3, 1).numpy(), IMAGES[:4])
    dataset = load(tmp_path / "x")
    # The order is that of the numbers, and not that of the alphabet.
    assert dataset.classes == ("dog", "cat")
    assert remarks.lines(dataset.provenance)[0] == (
        "16 RGB images of 5x6, 8 bits; 2 classes: dog 8, cat 8"
    )


def test_size_and_colours_of_images_are_settings(tmp_path: Path) -> None:
    write_images(tmp_path / "x")
    assert load(tmp_path / "x", image_size=4).image_shape == (3, 4, 4)
    assert load(tmp_path / "x", color="gray").image_shape == (1, 6, 5)
    assert load(tmp_path / "x", color="auto").image_shape == (3, 6, 5)
    save_to_disk(tmp_path / "y", of_images(IMAGES[..., 0]), OF_IMAGES)
    dataset = load(tmp_path / "y", color="auto", test_fraction=0.5, validation_fraction=0.5)
    assert dataset.image_shape == (1, 6, 5)


def test_other_columns_beside_images_and_other_splits_are_left_out(tmp_path: Path) -> None:
    write_images(tmp_path / "x")
    extra = of_images(IMAGES, text=[f"text {index}" for index in range(12)])
    (tmp_path / "x" / "train").rename(tmp_path / "old")
    save_to_disk(tmp_path / "x" / "train", extra, {**OF_IMAGES, "text": {"_type": "Value"}})
    (tmp_path / "x" / "dataset_dict.json").write_text('{"splits": ["train", "test", "more"]}')
    assert load(tmp_path / "x").provenance["left_out"] == (
        "splits of other names: more; columns beside image and label: text"
    )


def test_columns_that_are_no_images_are_a_table(tmp_path: Path) -> None:
    values = RNG.normal(size=(20, 2))
    table = pa.table(
        {
            "size": pa.array(values[:, 0]),
            "embedding": pa.array(values.tolist()),
            "kind": pa.array([index % 3 for index in range(20)]),
            "label": pa.array([index % 2 for index in range(20)]),
        }
    )
    kinds = {"names": ["x", "y", "z"], "_type": "ClassLabel"}
    save_to_disk(tmp_path / "x", table, {"kind": kinds, **CLASSES})
    source = read_hugging_face(tmp_path / "x", DataSettings())
    assert [column.name for column in source.columns] == [
        "size",
        "embedding[0]",
        "embedding[1]",
        "kind",
    ]
    assert source.columns[3].categories == ("x", "y", "z")
    assert np.array_equal(source.train.images[:, 1:3].numpy(), values)
    assert source.classes == ("dog", "cat")
    assert torch.equal(source.train.labels, torch.arange(20) % 2)


def class_label(*names: object) -> dict[str, Any]:
    return {"label": {"names": list(names), "_type": "ClassLabel"}}


def of_numbers(labels: Sequence[Any], kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"x": np.arange(len(labels), dtype=float), "label": pa.array(labels, kind)})


def write_splits(root: Path, **splits: tuple[pa.Table, Mapping[str, Any]]) -> Path:
    for name, (table, features) in splits.items():
        save_to_disk(root / name, table, features)
    (root / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return root


@pytest.mark.parametrize("with_images", [False, True])
def test_each_split_is_decoded_by_its_own_names(tmp_path: Path, with_images: bool) -> None:
    def table(labels: Sequence[int]) -> pa.Table:
        if not with_images:
            return of_numbers(labels)
        return of_images(IMAGES[: len(labels)]).set_column(1, "label", pa.array(labels))

    image = {"image": {"_type": "Image"}} if with_images else {}
    root = write_splits(
        tmp_path / "x",
        train=(table([0, 1] * 6), {**image, **class_label("cat", "dog")}),
        validation=(table([1, 2, 2]), {**image, **class_label("bird", "cat", "dog")}),
        test=(table([0, 0, 1]), {**image, **class_label("dog", "cat")}),
    )
    source = read_hugging_face(root, DataSettings())
    assert source.classes == ("cat", "dog")
    assert source.train.labels.tolist() == [0, 1] * 6
    assert source.validation is not None
    assert source.validation.labels.tolist() == [0, 1, 1]
    assert source.test is not None
    assert source.test.labels.tolist() == [1, 1, 0]


def test_a_class_of_another_split_that_the_training_split_lacks_is_refused(tmp_path: Path) -> None:
    root = write_splits(
        tmp_path / "x",
        train=(of_numbers([0, 1] * 6), class_label("cat", "dog")),
        test=(of_numbers([0, 1, 1]), class_label("cat", "bird")),
    )
    with pytest.raises(InputError, match=r"test: row 2: column 'label' has the class 'bird', of"):
        load(root)


@pytest.mark.parametrize(
    "names", [("0", "1", "2"), ("02", "00", "1"), (" cat", "cat", "dog "), ("1.5", "1.0", "1")]
)
def test_names_of_classes_are_taken_as_they_are(tmp_path: Path, names: Sequence[str]) -> None:
    save_to_disk(tmp_path / "x", of_numbers([2, 1, 0] * 4), class_label(*names))
    source = read_hugging_face(tmp_path / "x", DataSettings())
    assert source.classes == names
    assert source.train.labels.tolist() == [2, 1, 0] * 4


@pytest.mark.parametrize(
    ("labels", "kind", "names", "message"),
    [
        ([], pa.int64(), ["a", "b"], r"train: has no rows: should have some, or be left out"),
        (["a", "b"] * 6, None, ["a", "b"], r"'label' should have the numbers of .*type string"),
        ([0.0, 1.0] * 6, None, ["a", "b"], r"'label' should have the numbers of .*type double"),
        ([0, 1] * 6, None, [0, 1], r"info.json: .*names of column 'label' should be texts"),
        ([0, 1] * 6, None, ["a", "\ud800"], r"the names of column 'label' should be texts"),
        ([0, 1] * 6, None, ["a", "a"], r"should be different, and 'a' is there twice"),
    ],
)
def test_unfit_classes_are_refused(
    tmp_path: Path, labels: Sequence[Any], kind: Any, names: Sequence[Any], message: str
) -> None:
    fit = of_numbers([0, 1] * 6), class_label("a", "b")
    unfit = of_numbers(labels, kind), class_label(*names)
    root = write_splits(tmp_path / "x", train=unfit, test=fit)
    with pytest.raises(InputError, match=message) as caught:
        load(root)
    assert "\n" not in str(caught.value)
    root = write_splits(tmp_path / "y", train=fit, test=unfit)
    with pytest.raises(InputError, match=message.replace("train", "test")):
        load(root)


def test_names_that_are_no_list_are_refused_unless_they_describe_a_group(tmp_path: Path) -> None:
    kind = {"names": "ab", "_type": "ClassLabel"}
    save_to_disk(tmp_path / "x", of_numbers([0, 1] * 6), {"label": kind})
    with pytest.raises(InputError, match=r"names of column 'label' should be texts"):
        load(tmp_path / "x")
    group = pa.array([{"names": "a"}] * 12)
    table = of_numbers([0, 1] * 6).append_column("y", group)
    features = {"y": {"names": {"_type": "Value"}}, **class_label("a", "b")}
    save_to_disk(tmp_path / "y", table, features)
    with pytest.raises(InputError, match=r"column 'y' is of the type struct<names: string>"):
        load(tmp_path / "y")


def test_a_split_without_images_or_without_their_column_is_refused(tmp_path: Path) -> None:
    fit = of_images(IMAGES), OF_IMAGES
    root = write_splits(tmp_path / "x", train=fit, test=(of_images([]), OF_IMAGES))
    with pytest.raises(InputError, match=r"test: has no rows: should have some, or be left out"):
        load(root)
    root = write_splits(tmp_path / "y", train=fit, test=(of_numbers([0, 1]), OF_IMAGES))
    with pytest.raises(InputError, match=r"test: should have the column 'image', which has the im"):
        load(root)


def broken(root: Path, file: str, content: str | bytes) -> None:
    write_images(root)
    path = root / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("dataset_dict.json", "{", r"dataset_dict.json: should be as save_to_disk writes it: "),
        ("dataset_dict.json", '{"splits": ["../x"]}', r"it should name the folders of the splits"),
        ("dataset_dict.json", '{"splits": ["a"]}', r"has the splits a: should have train"),
        ("dataset_dict.json", '{"splits": ["test"]}', r"beside test should be a split train"),
        ("train/state.json", "[]", r"state.json: .*it should be a group of values"),
        ("train/state.json", '{"_data_files": [1]}', r"it should name the .arrow files"),
        (
            "train/state.json",
            '{"_data_files": [{"filename": "/etc/passwd"}]}',
            r"it should name the .arrow files",
        ),
        ("train/dataset_info.json", "{}", r"it should describe the columns under features"),
        ("train/data-00001-of-00003.arrow", b"junk", r"should be a whole Arrow file: "),
    ],
)
def test_damaged_folders_are_refused(
    tmp_path: Path, file: str, content: str | bytes, message: str
) -> None:
    broken(tmp_path / "x", file, content)
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path / "x")
    assert "\n" not in str(caught.value)


def test_another_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path} should be a folder that save_to_disk of Hug"):
        load(tmp_path)
    write_images(tmp_path / "x")
    (tmp_path / "x" / "train" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(InputError, match=r"data-00001-of-00003.arrow cannot be read: No such file"):
        load(tmp_path / "x")


def test_images_that_are_not_in_the_files_are_refused(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for content, message in (
        (None, r"row 1: column 'image' has no image in the file"),
        (b"a text", r"row 1: should be a whole file of PNG"),
        (png(IMAGES[0])[:60], r"row 1: damaged or not an image"),
    ):
        cells = pa.array([{"bytes": content, "path": "/x.png"}] * 8, kind)
        folder = tmp_path / str(len(content or b""))
        save_to_disk(folder, pa.table({"image": cells, "label": [0, 1] * 4}), OF_IMAGES)
        with pytest.raises(InputError, match=message):
            load(folder)
    texts = pa.array([{"bytes": "a text", "path": "/x.png"}] * 8)
    save_to_disk(tmp_path / "x", pa.table({"image": texts, "label": [0, 1] * 4}), OF_IMAGES)
    with pytest.raises(InputError, match=r"row 1: column 'image' has no image in the file"):
        load(tmp_path / "x")


def test_images_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    images = [*IMAGES[:7], IMAGES[7, :5]]
    save_to_disk(tmp_path / "x", of_images(images), OF_IMAGES)
    with pytest.raises(InputError, match=r"row 8: is 5x5, but .*row 1 is 5x6: .*data.image_size"):
        load(tmp_path / "x")
    assert load(tmp_path / "x", image_size=5, test_fraction=0.5).image_shape == (3, 5, 5)


def test_a_label_that_is_no_class_is_refused(tmp_path: Path) -> None:
    table = of_images(IMAGES)
    labels = pa.array([-1] * 12)
    save_to_disk(tmp_path / "x", table.set_column(1, "label", labels), OF_IMAGES)
    with pytest.raises(
        InputError, match=r"column 'label' should have the number of a class .*0 to"
    ):
        load(tmp_path / "x")
    save_to_disk(tmp_path / "y", of_images(IMAGES), OF_IMAGES)
    with pytest.raises(InputError, match=r"has no column 'fine', which data.label names"):
        load(tmp_path / "y", label="fine")
