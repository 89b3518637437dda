"""Data sources against scikit-learn, struct-packed files and every kind of damage that an IDX file can have."""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lcnn_core.checkpoint import Normalization
from lcnn_core.data import DATASETS, Split, load_dataset
from lcnn_core.data.base import stratified_split
from lcnn_core.errors import ConfigError, DataError, ShapeError

FASHION = Path(__file__).parents[3] / "shared" / "data" / "fashion-mnist"
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def images_file(array: np.ndarray, magic: int = 0x803) -> bytes:
    return struct.pack(">4I", magic, *array.shape) + array.tobytes()


def labels_file(array: np.ndarray, magic: int = 0x801) -> bytes:
    return struct.pack(">2I", magic, len(array)) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 training and 6 test images of 5 x 4 pixels in 3 classes."""
    random = np.random.RandomState(0)
    for prefix, count in (("train", 24), ("t10k", 6)):
        pixels = random.randint(0, 256, (count, 5, 4)).astype(np.uint8)
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(images_file(pixels))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(labels_file(np.arange(count).astype(np.uint8) % 3))
    return tmp_path


def raw_pixels(path: Path) -> np.ndarray:
    data = path.read_bytes()
    return np.frombuffer(data, np.uint8, offset=16).reshape(struct.unpack(">3I", data[4:16])) / 255


def sklearn_digits() -> Any:
    from sklearn.datasets import load_digits  # here: its import takes seconds of every worker's collection

    return load_digits()


def test_digits_are_scikit_learns_each_image_in_exactly_one_split() -> None:
    dataset = load_dataset("digits")
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (1150, 197, 450)
    assert dataset.input_shape == (1, 8, 8)
    assert dataset.class_names == tuple("0123456789")
    parts = (dataset.train, dataset.validation, dataset.test)
    mean, std = dataset.normalization.mean[0], dataset.normalization.std[0]
    found = [
        (int(label), *(image.flatten() * std + mean).mul(16).round().int().tolist())
        for part in parts
        for image, label in zip(part.images, part.labels, strict=True)
    ]
    bunch = sklearn_digits()
    expected = [
        (int(label), *map(int, image.flatten())) for image, label in zip(bunch.images, bunch.target, strict=True)
    ]
    assert sorted(found) == sorted(expected)


def test_digits_are_the_same_where_scikit_learn_keeps_its_file_elsewhere(monkeypatch) -> None:
    expected = load_dataset("digits")
    monkeypatch.setattr("lcnn_core.data.digits.find_spec", lambda name: None)
    found = load_dataset("digits")
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(found, part).images, getattr(expected, part).images)
        assert torch.equal(getattr(found, part).labels, getattr(expected, part).labels)


def test_digits_are_read_without_importing_scikit_learn() -> None:
    code = "import sys, lcnn_core; lcnn_core.load_dataset('digits'); print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_digits_splits_are_stratified_and_the_same_every_time() -> None:
    dataset, again = load_dataset("digits"), load_dataset("digits")
    torch.testing.assert_close(dataset.test.images, again.test.images, rtol=0, atol=0)
    shares = np.bincount(sklearn_digits().target) / 1797
    for part in (dataset.train, dataset.validation, dataset.test):
        counts = part.labels.bincount(minlength=10).numpy()
        assert np.abs(counts - shares * len(part)).max() < 2


def test_normalization_is_the_training_splits_alone() -> None:
    dataset = load_dataset("digits")
    assert float(dataset.train.images.mean()) == pytest.approx(0, abs=1e-5)
    assert float(dataset.train.images.std()) == pytest.approx(1, abs=1e-3)
    assert abs(float(dataset.test.images.mean())) > 1e-5


def test_a_brought_normalization_is_used(folder: Path) -> None:
    dataset = load_dataset(f"idx:{folder}", Normalization((0.5,), (0.25,)))
    pixels = raw_pixels(folder / "t10k-images-idx3-ubyte")
    np.testing.assert_allclose(dataset.test.images[:, 0].numpy(), (pixels - 0.5) / 0.25, atol=1e-5)
    with pytest.raises(ShapeError, match=r"normalisation for 3 channels does not fit images \(\d+, 1, 5, 4\)"):
        load_dataset(f"idx:{folder}", Normalization((0.5,) * 3, (0.25,) * 3))


@pytest.mark.parametrize("spell", [lambda n: n, lambda n: n.replace("-idx", ".idx")])
@pytest.mark.parametrize("compress", [False, True])
def test_idx_spellings_plain_and_gzip(folder: Path, tmp_path: Path, spell: Callable, compress: bool) -> None:
    expected = load_dataset(f"idx:{folder}")
    other = tmp_path / "other"
    other.mkdir()
    for name in NAMES:
        data = (folder / name).read_bytes()
        (other / (spell(name) + (".gz" if compress else ""))).write_bytes(gzip.compress(data) if compress else data)
    found = load_dataset(f"idx:{other}")
    assert found.input_shape == (1, 5, 4)
    assert found.class_names == ("0", "1", "2")
    assert (len(found.train), len(found.validation), len(found.test)) == (22, 2, 6)
    for part in ("train", "validation", "test"):
        torch.testing.assert_close(getattr(found, part).images, getattr(expected, part).images, rtol=0, atol=0)
        torch.testing.assert_close(getattr(found, part).labels, getattr(expected, part).labels, rtol=0, atol=0)


def test_gzip_is_told_by_content_not_by_name(folder: Path) -> None:
    path = folder / NAMES[0]
    (folder / f"{NAMES[0]}.gz").write_bytes(path.read_bytes())
    path.unlink()
    assert len(load_dataset(f"idx:{folder}").train) == 22


def damage_header(data: bytes, **_: object) -> bytes:
    return data[:8] + struct.pack(">I", 2**32 - 1) + data[12:]


DAMAGE: dict[str, tuple[int, Callable[[bytes], bytes], str]] = {
    "empty": (0, lambda d: b"", r"train-images\S* has 0 bytes; expected an IDX file of images with magic 0x00000803"),
    "text": (0, lambda d: b"<html>404</html>", r"is no IDX file: magic 0x3c68746d, expected 0x00000803"),
    "within header": (0, lambda d: d[:10], r"ends within its header; expected 3 dimensions after the magic 0x00000803"),
    "truncated": (0, lambda d: d[:-7], r"announces 24 x 5 x 4 = 480 bytes of images, the file holds only 473; fetch"),
    "longer": (0, lambda d: d + b"x", r"announces 24 x 5 x 4 = 480 bytes of images, the file holds more"),
    "huge header": (0, damage_header, r"24 x 4294967295 x 4 = 412316860320 bytes of images, the file holds only 480"),
    "labels as images": (0, lambda d: labels_file(np.zeros(24, np.uint8)), r"1 dimensions, which looks like labels"),
    "images as labels": (
        1,
        lambda d: images_file(np.zeros((24, 5, 4), np.uint8)),
        r"which looks like images; expected",
    ),
    "floats": (0, lambda d: b"\0\0\x0d\3" + d[4:], r"holds float32 \(magic 0x00000d03\); expected 0x00000803"),
    "four dimensions": (0, lambda d: b"\0\0\x08\4" + d[4:], r"has magic 0x00000804: 4 dimensions; expected images"),
    "no images": (0, lambda d: struct.pack(">4I", 0x803, 0, 5, 4), r"announces 0 x 5 x 4 images; expected at least"),
    "fewer labels": (1, lambda d: labels_file(np.zeros(23, np.uint8)), r"holds 24 images but \S*labels\S* 23 labels"),
    "new test class": (3, lambda d: labels_file(np.arange(6, dtype=np.uint8)), r"test labels reach 5, the training"),
    "other test size": (2, lambda d: images_file(np.zeros((6, 4, 4), np.uint8)), r"\(1, 4, 4\) do not match \S* ?\S*"),
    "one grey": (0, lambda d: images_file(np.full((24, 5, 4), 7, np.uint8)), r"are all of one grey value"),
    "broken gzip": (0, lambda d: gzip.compress(d)[:-12], r"cannot be read: .*; fetch the file again"),
    "garbled gzip": (0, lambda d: gzip.compress(d)[:20] + b"\xff" * 90, r"cannot be read: .*; fetch the file again"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_idx_files_are_named_with_what_was_found(folder: Path, case: str) -> None:
    number, change, message = DAMAGE[case]
    path = folder / NAMES[number]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(f"idx:{folder}")
    assert str(folder) in str(caught.value) or case == "one grey"
    assert "\n" not in str(caught.value)


def test_a_header_or_a_gzip_bomb_allocates_no_more_than_the_file_warrants(folder: Path) -> None:
    import tracemalloc

    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb") as stream:
        stream.write(struct.pack(">4I", 0x803, 24, 5, 4))
        for _ in range(64):
            stream.write(bytes(1 << 20))
    for data in (bomb.getvalue(), damage_header((folder / NAMES[0]).read_bytes())):
        (folder / NAMES[0]).write_bytes(data)
        tracemalloc.start()
        with pytest.raises(DataError):
            load_dataset(f"idx:{folder}")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8 << 20


@given(st.binary(max_size=64), st.booleans())
def test_any_bytes_in_place_of_images_are_a_data_error(data: bytes, compress: bool) -> None:
    import tempfile

    from lcnn_core.data.idx import read_idx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images"
        path.write_bytes(gzip.compress(data) if compress else data)
        if data[:4] != b"\0\0\x08\3":
            with pytest.raises(DataError):
                read_idx(path, "images")


def test_missing_files_and_folders(folder: Path) -> None:
    with pytest.raises(DataError, match=r"/nowhere does not exist; expected a folder with train-images-idx3-ubyte"):
        load_dataset("idx:/nowhere")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte is a file; expected a folder"):
        load_dataset(f"idx:{folder / NAMES[0]}")
    (folder / NAMES[3]).unlink()
    with pytest.raises(DataError, match=r"has no t10k-labels-idx1-ubyte\[.gz\] and no t10k-labels.idx1-ubyte\[.gz\]"):
        load_dataset(f"idx:{folder}")


def test_a_class_without_training_images_is_named(folder: Path) -> None:
    (folder / NAMES[1]).write_bytes(labels_file(np.array([0, 1, 3, 9] * 6, np.uint8)))
    message = r"no training image of 6 of 10 classes: 2, 4, 5 and 3 more; expected images of each class"
    with pytest.raises(DataError, match=message):
        load_dataset(f"idx:{folder}")


def test_unknown_specifications_name_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"dataset 'mnist' is unknown; expected one of digits, idx:FOLDER"):
        load_dataset("mnist")
    with pytest.raises(ConfigError, match=r"'digits:7' takes nothing after the name"):
        load_dataset("digits:7")
    with pytest.raises(ConfigError, match=r"names no folder; write idx:FOLDER"):
        load_dataset("idx:")
    for name, source in DATASETS.items():
        assert source.usage.partition(":")[0] == name


def test_a_split_checks_its_shapes() -> None:
    with pytest.raises(ShapeError, match=r"images \(3, 1, 2, 2\) and labels \(4,\) do not fit"):
        Split(torch.zeros(3, 1, 2, 2), torch.zeros(4, dtype=torch.int64))


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.data())
def test_stratified_split_keeps_every_index_once_and_the_shares(labels: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(labels)))
    rest, held_out = stratified_split(np.array(labels), count, seed=0)
    assert len(held_out) == count
    assert sorted([*rest, *held_out]) == list(range(len(labels)))
    for label in set(labels):
        share = labels.count(label) * count / len(labels)
        assert abs(sum(labels[i] == label for i in held_out) - share) < 1


@pytest.mark.skipif(not FASHION.is_dir(), reason=f"needs Fashion-MNIST in {FASHION}")
def test_fashion_mnist_loads() -> None:
    dataset = load_dataset(f"idx:{FASHION}")
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (55_000, 5_000, 10_000)
    assert dataset.input_shape == (1, 28, 28)
    assert dataset.test.labels.bincount().tolist() == [1000] * 10
    assert dataset.normalization.mean[0] == pytest.approx(0.286, abs=2e-3)
    assert dataset.normalization.std[0] == pytest.approx(0.353, abs=2e-3)
