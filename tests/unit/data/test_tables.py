"""Tables: what becomes of their columns, and what is refused, with its place."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv as arrow_csv
from pyarrow import parquet
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from taylorglo.data import dataset as data
from taylorglo.data import remarks
from taylorglo.data.dataset import Dataset
from taylorglo.data.encoding import encoded, encoding_of
from taylorglo.data.splits import Column
from taylorglo.data.tables import read_table
from taylorglo.errors import InputError
from taylorglo.settings import DataSettings

HEAD = ("age", "income", "colour", "label")
Row = Sequence[Any]


def rows(number: int = 60, seed: int = 0) -> list[Row]:
    """Return rows of two numbers, a text of three, and one of two classes."""
    random = np.random.default_rng(seed)
    return [
        (
            int(random.integers(18, 90)),
            round(float(random.normal(3e4, 1e4)), 2),
            ("red", "green", "blue")[random.integers(3)],
            ("no", "yes")[index % 2],
        )
        for index in range(number)
    ]


def write_csv(
    path: Path, content: Sequence[Row], head: Sequence[str] = HEAD, separator: str = ","
) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows([head, *content])
    return path


def load(root: Path, **changes: Any) -> Dataset:
    values = {"name": "table", "root": str(root), **changes}
    return data.load(DataSettings.model_validate(values), seed=0)


def error_of(path: Path, **changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(path, **changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_features_are_those_of_scikit_learns_encoders(tmp_path: Path) -> None:
    dataset = load(write_csv(tmp_path / "x.csv", rows()))
    source = read_table(tmp_path / "x.csv", "label")
    codes = {row.numpy().tobytes(): row for row in source.train.images}
    assert len(codes) == 60, "the rows should be different, so that each can be found again"
    assert dataset.image_shape == (5,)
    assert dataset.classes == ("no", "yes")
    # What each sample was is found by its features, standardised by the training split alone.
    raw = {split: originals(getattr(dataset, split).images, dataset) for split in SPLITS}
    numbers = StandardScaler().fit(raw["train"][:, :2].astype(float))
    texts = OneHotEncoder(sparse_output=False).fit(raw["train"][:, 2:])
    for split in SPLITS:
        expected = np.hstack(
            [numbers.transform(raw[split][:, :2].astype(float)), texts.transform(raw[split][:, 2:])]
        )
        found = getattr(dataset, split).images
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert sorted(map(tuple, np.vstack(list(raw.values())).tolist())) == sorted(
        (str(age), f"{income:.2f}", colour) for age, income, colour, _ in rows()
    )


SPLITS = ("train", "validation", "test")


def originals(features: torch.Tensor, dataset: Dataset) -> Any:
    """Return the texts of rows (N, 3) that became features, by the encoding of the data set."""
    age, income, colour = dataset.encoding
    found = []
    for row in features.double().tolist():
        values = [row[0] * age["std"] + age["mean"], row[1] * income["std"] + income["mean"]]
        found.append(
            [f"{values[0]:.0f}", f"{values[1]:.2f}", colour["categories"][int(np.argmax(row[2:]))]]
        )
    return np.array(found, object)


@pytest.mark.parametrize(
    "kind", ["semicolons.csv", "tabs.tsv", "x.parquet", "quoted.csv", "bom.csv"]
)
def test_one_table_gives_the_same_features_in_every_form(tmp_path: Path, kind: str) -> None:
    expected = load(write_csv(tmp_path / "x.csv", rows()))
    path = tmp_path / kind
    if kind == "x.parquet":
        parquet.write_table(arrow_csv.read_csv(tmp_path / "x.csv"), path)
    elif kind == "quoted.csv":
        with path.open("w", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([HEAD, *rows()])
    elif kind == "bom.csv":
        path.write_bytes(b"\xef\xbb\xbf" + (tmp_path / "x.csv").read_bytes())
    else:
        write_csv(path, rows(), separator=";" if kind == "semicolons.csv" else "\t")
    found = load(path)
    assert found.fingerprint == expected.fingerprint
    assert found.encoding == expected.encoding


def test_the_statistics_are_those_of_the_training_split_alone(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", rows(40))
    outliers = [(1000 + index, 1e6, "violet", ("no", "yes")[index % 2]) for index in range(6)]
    write_csv(tmp_path / "val.csv", [*rows(10, seed=1), *outliers])
    write_csv(tmp_path / "Test.csv", rows(8, seed=2))
    dataset = load(tmp_path)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test or ())) == (40, 16, 8)
    assert dataset.train.images[:, :2].mean(dim=0).abs().max() < 1e-6
    assert (dataset.train.images[:, :2].std(dim=0, correction=0) - 1).abs().max() < 1e-6
    assert dataset.validation.images[10:, :2].min() > 10
    # A category that the training split does not have is 0 in every feature of its column.
    assert dataset.validation.images[10:, 2:].abs().max() == 0
    said = "texts that are in no training sample, and became zeros: 6"
    assert said in remarks.lines(dataset.provenance)
    assert dataset.provenance["validation_split"] == dataset.provenance["test_split"]


def test_parts_of_a_split_are_put_together(tmp_path: Path) -> None:
    expected = load(write_csv(tmp_path / "x.csv", rows()))
    parts = tmp_path / "parts"
    parts.mkdir()
    whole = arrow_csv.read_csv(tmp_path / "x.csv")
    for number in range(3):
        name = f"train-0000{number}-of-00003.parquet"
        parquet.write_table(whole.slice(20 * number, 20), parts / name)
    assert load(parts).fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "train.tsv"),
        ("train.csv", "train.CSV"),
        ("train.csv", "train-00000-of-00001.csv"),
        ("train-00000-of-00001.csv", "train-00000-of-00001.tsv"),
        ("train-0-of-2.csv", "train-00-of-2.csv"),
        ("train-0-of-2.csv", "train-1-of-3.csv"),
    ],
)
@pytest.mark.parametrize("other", [None, "test.csv"])
def test_several_files_of_a_split_that_are_not_its_parts_are_refused(
    tmp_path: Path, names: Sequence[str], other: str | None
) -> None:
    for name in (*names, *([other] if other else [])):
        write_csv(tmp_path / name, rows(40), separator="\t" if name.endswith("tsv") else ",")
    assert error_of(tmp_path) == (
        f"data.root: {tmp_path} has the tables {', '.join(sorted(names))} for one split: should be "
        "one file, or its parts in one format, named as in train-00000-of-00002.parquet"
    )


def test_what_was_read_is_one_line(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", rows(40))
    write_csv(tmp_path / "test.csv", rows(8, seed=2))
    write_csv(tmp_path / "submission.csv", rows(8, seed=2))
    assert remarks.lines(load(tmp_path).provenance)[0] == (
        "48 rows of 3 columns (2 of numbers, 1 of texts), which are 5 features; 2 classes: no 24, "
        "yes 24; left out: tables that are no split by their names: submission.csv"
    )


def test_whole_numbers_are_classes_in_their_order(tmp_path: Path) -> None:
    content = [(index, index % 3, (10, 9, 2)[index % 3]) for index in range(60)]
    dataset = load(write_csv(tmp_path / "x.csv", content, ("a", "b", "label")))
    assert dataset.classes == ("2", "9", "10")
    floats = [(a, b, f"{c}.0" if a % 2 else str(c)) for a, b, c in content]
    assert load(write_csv(tmp_path / "y.csv", floats, ("a", "b", "label"))).classes == (
        "2",
        "9",
        "10",
    )


def of_labels(path: Path, labels: Sequence[object]) -> Dataset:
    """Return the data set of a CSV file with these labels in turn."""
    number = len(labels)
    content = [(index, index % 5, labels[index % number]) for index in range(40 * number)]
    return load(write_csv(path, content, ("a", "b", "label")))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("007", "7"), ("007", "7")),
        (("007", "7", "08"), ("007", "7", "08")),
        (("00", "01", "02"), ("00", "01", "02")),
        (("1_0", "10"), ("10", "1_0")),
        ((2**53, 2**53 + 1), (f"{2**53}", f"{2**53 + 1}")),
        ((2**53, 2**53 + 1, 5), ("5", f"{2**53}", f"{2**53 + 1}")),
        ((f"{10**19}.0", 10**19 + 1), (f"{10**19}", f"{10**19 + 1}")),
        (("-1", "+1", "1e2"), ("-1", "1", "100")),
    ],
)
def test_different_labels_stay_different_classes(
    tmp_path: Path, labels: Sequence[object], classes: Sequence[str]
) -> None:
    dataset = of_labels(tmp_path / "x.csv", labels)
    assert dataset.classes == tuple(classes)
    assert torch.bincount(dataset.train.labels).min() > 0
    assert "spellings" not in dataset.provenance


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64(), pa.float64()])
def test_large_numbers_of_parquet_stay_different_classes(tmp_path: Path, kind: pa.DataType) -> None:
    values = [2**62, 2**62 + 1 if kind == pa.int64() else 2**63, 7]
    labels = pa.array(np.array(values * 20, kind.to_pandas_dtype()))
    parquet.write_table(pa.table({"x": np.arange(60), "label": labels}), tmp_path / "x.parquet")
    dataset = load(tmp_path / "x.parquet")
    assert dataset.classes == ("7", f"{values[0]}", f"{values[1]}")


def test_numbers_without_end_are_no_classes(tmp_path: Path) -> None:
    labels = pa.array([1e300, math.inf, 7.0] * 20)
    parquet.write_table(pa.table({"x": np.arange(60), "label": labels}), tmp_path / "x.parquet")
    assert "should be classes, which are texts or whole numbers" in error_of(tmp_path / "x.parquet")


def test_a_class_that_is_written_in_several_ways_is_said(tmp_path: Path) -> None:
    dataset = of_labels(tmp_path / "x.csv", ("1", "1.0", "2", "2e0", "3"))
    assert dataset.classes == ("1", "2", "3")
    said = "one class, written in several ways: '1' and '1.0', '2' and '2e0'"
    assert said in remarks.lines(dataset.provenance)
    dataset = of_labels(tmp_path / "y.csv", ("cat", " cat", "dog"))
    assert dataset.classes == ("cat", "dog")
    said = "one class, written in several ways: ' cat' and 'cat'"
    assert said in remarks.lines(dataset.provenance)
    many = [f"{number}{end}" for number in range(9) for end in ("", ".0")]
    assert (
        of_labels(tmp_path / "z.csv", many)
        .provenance["spellings"]
        .endswith("'4' and '4.0', ... (9 in all)")
    )


def test_truth_values_and_dictionaries_of_parquet_are_categories(tmp_path: Path) -> None:
    number = 40
    table = pa.table(
        {
            "flag": pa.array([index % 3 == 0 for index in range(number)]),
            "kind": pa.array(["a", "b"] * 20).dictionary_encode(),
            "amount": pa.array(np.arange(number, dtype=np.int16)),
            "target": pa.array([bool(index % 2) for index in range(number)]),
        }
    )
    parquet.write_table(table, tmp_path / "x.parquet")
    dataset = load(tmp_path / "x.parquet", label="target")
    assert dataset.classes == ("False", "True")
    assert [column.get("categories") for column in dataset.encoding] == [
        ["False", "True"],
        ["a", "b"],
        None,
    ]


@given(
    number=st.integers(2, 30),
    scale=st.floats(1e-3, 1e12),
    offset=st.floats(-1e12, 1e12),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=50, deadline=None)
def test_standardised_columns_do_not_depend_on_scale_and_offset(
    number: int, scale: float, offset: float, seed: int
) -> None:
    values = np.random.default_rng(seed).normal(size=(number, 1))
    columns = [Column("x", None)]

    def standardised(codes: Any) -> Any:
        tensor = torch.from_numpy(codes)
        return encoded(encoding_of(columns, tensor), columns, tensor)[0].numpy()

    # As far as the numbers of the moved column have the digits to tell.
    digits = 1e-14 * (abs(offset) + scale) / scale / values.std()
    moved = standardised(scale * values + offset)
    np.testing.assert_allclose(moved, standardised(values), atol=1e-5 + digits * number, rtol=1e-4)


def test_a_column_that_is_constant_in_the_training_split_alone_becomes_zero() -> None:
    columns = [Column("x", None), Column("y", ("a", "b"))]
    train = torch.tensor([[5.0, 0.0], [5.0, 0.0]], dtype=torch.float64)
    other = torch.tensor([[7.0, 1.0]], dtype=torch.float64)
    encoding = encoding_of(columns, train)
    assert encoded(encoding, columns, train)[0].tolist() == [[0.0, 1.0], [0.0, 1.0]]
    features, unknown = encoded(encoding, columns, other)
    assert features.tolist() == [[2.0, 0.0]]
    assert unknown == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-140, 1e-150, 1e-160, 1e-200, 1e-300])
def test_a_tiny_column_is_standardised_as_any_other(scale: float) -> None:
    columns = [Column("x", None)]
    values = torch.arange(40.0, dtype=torch.float64).view(-1, 1)

    def standardised(codes: torch.Tensor) -> torch.Tensor:
        return encoded(encoding_of(columns, codes), columns, codes)[0]

    torch.testing.assert_close(standardised(values * scale), standardised(values))
    # One number is another than the rest, and its square is spread over many.
    values = torch.zeros(10_000, 1, dtype=torch.float64)
    values[7] = 1
    torch.testing.assert_close(standardised(values * scale), standardised(values))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", [2, 3, 40])
def test_the_smallest_numbers_give_finite_features(number: int) -> None:
    columns = [Column("x", None)]
    codes = torch.zeros(number, 1, dtype=torch.float64)
    codes[-1] = 5e-324
    encoding = encoding_of(columns, codes)
    assert encoding[0]["std"] > 0
    assert encoded(encoding, columns, codes)[0].isfinite().all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-200, 1e-300, 1e-10])
def test_a_number_too_far_from_the_training_split_is_refused(tmp_path: Path, scale: float) -> None:
    content = [(index * scale, index % 7, "ab"[index % 2]) for index in range(40)]
    head = ("x", "y", "label")
    write_csv(tmp_path / "train.csv", content, head)
    write_csv(tmp_path / "test.csv", content[:4], head)
    assert load(tmp_path).train.images.isfinite().all()
    write_csv(tmp_path / "test.csv", [*content[:4], (3e38, 1, "a")], head)
    assert "column 'x' has the number 3e+38, but in the training split the mean" in error_of(
        tmp_path
    )


def changed(row: int, column: int, value: object) -> list[Row]:
    """Return the rows with another value in one place."""
    content = [list(each) for each in rows()]
    content[row][column] = value
    return content


CELLS = [
    (0, "", r"row 8 below the names: column 'age' has no number, as in 1 of 60 rows: should be"),
    (0, "NA", r"column 'age' has no number"),
    (0, "old", r"row 8 below the names: column 'age' has the text 'old' among 59 numbers: should"),
    (1, "inf", r"row 8 below the names: column 'income' is inf: should be a finite number"),
    (1, "1e39", r"column 'income' is 1e\+39: should be a finite number, of at most 3.4e38"),
    (2, "", r"row 8 below the names: column 'colour' has no value, as in 1 of 60 rows"),
    (3, "", r"row 8 below the names: column 'label' has no value"),
]


@pytest.mark.parametrize(("column", "value", "message"), CELLS)
def test_an_unfit_value_is_named_with_its_place(
    tmp_path: Path, column: int, value: str, message: str
) -> None:
    path = write_csv(tmp_path / "x.csv", changed(7, column, value))
    with pytest.raises(InputError, match=f"^{path}.*{message}"):
        load(path)


COLUMNS = [
    (0, lambda index: 5, r"column 'age' is '5' in all 60 rows: nothing can be learned from it"),
    (2, lambda index: "red", r"column 'colour' is 'red' in all 60 rows"),
    (2, lambda index: f"n{index}", r"column 'colour' has 60 different texts in 60 rows, such as"),
    (3, lambda index: "yes", r"column 'label' has 1 class in 60 rows \('yes'\): should have at"),
    (3, lambda index: index / 7, r"column 'label' has 60 different numbers .*should be classes"),
    (3, lambda index: f"c{index}", r"column 'label' has 60 classes in 60 rows: should have at"),
]


@pytest.mark.parametrize(("column", "value", "message"), COLUMNS)
def test_an_unfit_column_is_named(tmp_path: Path, column: int, value: Any, message: str) -> None:
    content = [[*row[:column], value(i), *row[column + 1 :]] for i, row in enumerate(rows())]
    path = write_csv(tmp_path / "x.csv", content)
    with pytest.raises(InputError, match=message):
        load(path)


FILES = [
    ("x.csv", b"", r"x.csv: is empty: should have the names"),
    ("x.csv", b"a,b,label\n", r"x.csv: has no rows below the names of the columns"),
    (
        "x.csv",
        b"a,b,label\n1,2,x\n1,2\n",
        r"x.csv: should be a whole .csv file .*Expected 3 columns",
    ),
    ("x.csv", b"a,a,label\n1,2,x\n", r"x.csv: the column 'a' is there twice: should be once"),
    ("x.csv", b"\xff\xfea\x00,\x00", r"x.csv: should be a whole .csv file in UTF-8"),
    ("x.csv", b"1,2,3\n4,5,6\n", r"should be the names of the columns, and has numbers$"),
    ("x.csv", b"label\nx\ny\n", r"should have a column of features beside 'label'"),
    ("x.parquet", b"PAR1 and no more", r"x.parquet: should be a whole .parquet file: "),
    ("x.xlsx", b"PK", r"x.xlsx: should be a .csv, .tsv or .parquet file"),
]


@pytest.mark.parametrize(("name", "content", "message"), FILES)
def test_unfit_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_label_is_named_with_what_there_is(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x.csv", rows(), ("age", "income", "colour", "class"))
    assert error_of(path) == (
        f"{path}: has no column 'label', which data.label names for the classes; it has age, "
        "class, income, colour"
    )
    assert load(path, label="class").classes == ("no", "yes")


def test_folders_that_leave_a_choice_are_refused(tmp_path: Path) -> None:
    assert error_of(tmp_path) == f"data.root: {tmp_path} has no .csv, .tsv or .parquet file"
    write_csv(tmp_path / "a.csv", rows())
    write_csv(tmp_path / "b.csv", rows())
    assert "has the tables a.csv, b.csv: should be one file, or files named" in error_of(tmp_path)
    write_csv(tmp_path / "test.csv", rows())
    assert "beside test should be a file train" in error_of(tmp_path)
    write_csv(tmp_path / "train.csv", rows())
    write_csv(tmp_path / "training.csv", rows())
    assert "train, training are names of one split (train): should be one" in error_of(tmp_path)


def test_splits_of_different_columns_or_classes_are_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", rows())
    write_csv(tmp_path / "test.csv", rows(), ("age", "income", "size", "label"))
    assert "should have the columns of" in error_of(tmp_path)
    assert error_of(tmp_path).endswith("only one of them has colour, size")
    write_csv(tmp_path / "test.csv", changed(3, 3, "maybe"))
    assert (
        f"{tmp_path / 'test.csv'}: row 4 below the names: column 'label' has the class 'maybe'"
        in (error_of(tmp_path))
    )
    write_csv(tmp_path / "test.csv", [("young", *row[1:]) for row in rows()])
    assert "column 'age' has numbers, and that of" in error_of(tmp_path)


@pytest.mark.parametrize("kind", [pa.timestamp("ms"), pa.date32(), pa.binary()])
def test_other_types_of_parquet_are_refused(tmp_path: Path, kind: pa.DataType) -> None:
    values = [None] * 20
    table = pa.table({"x": pa.array(values, kind), "label": ["a", "b"] * 10})
    parquet.write_table(table, tmp_path / "x.parquet")
    message = error_of(tmp_path / "x.parquet")
    assert f"column 'x' is of the type {kind}: should be numbers, texts or truth" in message


def test_lists_of_one_length_are_a_column_for_each_place(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(20, 3))
    table = pa.table({"x": pa.array(values.tolist()), "label": ["a", "b"] * 10})
    parquet.write_table(table, tmp_path / "x.parquet")
    source = read_table(tmp_path / "x.parquet", "label")
    assert [column.name for column in source.columns] == ["x[0]", "x[1]", "x[2]"]
    assert np.array_equal(source.train.images.numpy(), values)
    uneven = pa.table({"x": pa.array([[1.0], [1.0, 2.0]] * 10), "label": ["a", "b"] * 10})
    parquet.write_table(uneven, tmp_path / "x.parquet")
    assert "column 'x' has lists of the lengths 1, 2: should be of one" in error_of(
        tmp_path / "x.parquet"
    )


def test_the_prepared_table_keeps_classes_and_encoding(tmp_path: Path) -> None:
    dataset = load(write_csv(tmp_path / "x.csv", rows()))
    data.save(dataset, tmp_path / "saved.safetensors")
    found = data.read(tmp_path / "saved.safetensors")
    assert found.classes == dataset.classes
    assert found.encoding == dataset.encoding
    assert torch.equal(found.train.images, dataset.train.images)
    assert not found.pixels
    assert found.unit is not None
    assert found.unit.tolist() == [1.0] * 5


@pytest.mark.parametrize("name", ["x.parquet", "x.csv"])
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path: Path, name: str) -> None:
    write_csv(tmp_path / "x.csv", rows())
    parquet.write_table(arrow_csv.read_csv(tmp_path / "x.csv"), tmp_path / "x.parquet")
    whole = (tmp_path / name).read_bytes()
    random = np.random.default_rng(0)
    messages = []
    for number in range(60):
        damaged = bytearray(whole)
        place = int(random.integers(len(damaged)))
        if number % 3:
            damaged[place] = int(random.integers(256))
        else:
            damaged = damaged[:place]
        (tmp_path / name).write_bytes(damaged)
        try:
            load(tmp_path / name)
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert [message for message in messages if "\n" in message] == []
