"""Image files: folders and shards that the test makes, odd and broken images among them."""

from __future__ import annotations

import copy
import io
import multiprocessing
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lcnn_core.checkpoint import Normalization
from lcnn_core.data import DataOptions, files, load_dataset
from lcnn_core.data.files import IMAGENET, decode
from lcnn_core.errors import ConfigError, DataError
from lcnn_core.models import build
from lcnn_core.train import BatchFinished, StateReached, TrainConfig, evaluate, train
from lcnn_core.transfer.subsets import only_classes

SMALL = DataOptions(image_size=16, workers=0)
COLOURS = {"cat": (200, 40, 40), "dog": (40, 200, 40), "owl": (40, 40, 200)}


def jpeg(mode: str, colour: Any, size: tuple[int, int] = (40, 30)) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, colour).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def png16(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((30, 40), value, np.uint16)).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six training and two validation images of each of three classes; the training ones are the usual kinds."""
    for name, (r, g, b) in COLOURS.items():
        train_images = {
            "a.jpg": jpeg("RGB", (r, g, b)),
            "b.JPEG": jpeg("CMYK", (255 - r, 255 - g, 255 - b, 0)),
            "c.jpg": jpeg("RGB", (r, g, b), (1, 1)),
            "d.jpg": jpeg("L", (r + g + b) // 3),
            "e.png": png16(256 * g + 255),
            "f.jpg": jpeg("RGB", (r, g, b), (17, 90)),
        }
        for file, content in train_images.items():
            write(tmp_path / "train" / name / file, content)
        for number in range(2):
            write(tmp_path / "val" / name / f"{number}.jpg", jpeg("RGB", (r, g, b)))
    return tmp_path


def all_of(split: Any, **view: Any) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*split.read([torch.arange(len(split))], **view), strict=True)
    return torch.cat(images), torch.cat(labels)


def test_every_usual_kind_of_image_is_read_as_its_colour(folder: Path) -> None:
    data = load_dataset(f"imagefolder:{folder}", None, SMALL)
    assert data.class_names == tuple(COLOURS)
    assert data.input_shape == (3, 16, 16)
    assert (len(data.train), len(data.validation)) == (18, 6)
    assert data.test is data.validation
    assert data.normalization == IMAGENET
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (IMAGENET.mean, IMAGENET.std))
    images, labels = all_of(data.train)
    assert images.shape == (18, 3, 16, 16)
    assert labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    for number, (r, g, b) in enumerate(COLOURS.values()):
        pixels = (images[6 * number : 6 * number + 6] * std + mean) * 255
        grey = (r + g + b) // 3
        expected = [(r, g, b), (r, g, b), (r, g, b), (grey,) * 3, (g,) * 3, (r, g, b)]
        for image, colour in zip(pixels, expected, strict=True):
            assert image.mean((1, 2)).tolist() == pytest.approx(colour, abs=4)
            assert float(image.std((1, 2)).max()) < 1
    assert not data.train.unreadable


def test_sixteen_bits_keep_their_upper_eight() -> None:
    assert np.asarray(decode(png16(0x1234))).tolist()[0][0] == [0x12] * 3
    assert np.asarray(decode(png16(0xFFFF))).max() == 255


def test_the_plain_view_is_the_centre_of_the_resized_image(tmp_path: Path) -> None:
    """A picture of vertical stripes, 64 x 32: resized to 16 high, its middle 14 columns of 32."""
    columns = np.arange(64, dtype=np.uint8) * 4
    picture = np.broadcast_to(columns[None, :, None], (32, 64, 3)).copy()
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    for part in ("train", "val"):
        for name in ("x", "y"):
            write(tmp_path / part / name / "i.png", stream.getvalue())
    unit = Normalization((0, 0, 0), (1, 1, 1))
    data = load_dataset(f"imagefolder:{tmp_path}", unit, DataOptions(image_size=14, resize=16, workers=0))
    image = all_of(data.validation)[0][0] * 255
    expected = np.asarray(Image.fromarray(picture).resize((32, 16), Image.Resampling.BILINEAR))[1:15, 9:23, 0]
    np.testing.assert_allclose(image[0].numpy(), expected, atol=1.01)
    ten = all_of(data.validation, crops=10)[0][0] * 255
    assert ten.shape == (10, 3, 14, 14)
    np.testing.assert_allclose(ten[4].numpy(), image.numpy(), atol=1e-3)
    np.testing.assert_allclose(ten[5].flip(2).numpy(), ten[1].numpy(), atol=1.01)
    assert float(ten[0].mean()) < float(ten[4].mean()) < float(ten[1].mean())


def test_training_views_are_a_function_of_seed_and_image_whatever_the_workers() -> None:
    views = {}
    for workers in (0, 2):
        options = DataOptions(image_size=16, workers=workers)
        data = load_dataset("fake:40x3", None, options)
        batches = [torch.tensor([5, 0, 7]), torch.tensor([11])]
        before = torch.get_rng_state()
        views[workers] = list(data.train.read(batches, seed=3))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(views[workers][1][1], data.train.labels[[11]])
    for (a, b), (c, d) in zip(views[0], views[2], strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


@pytest.mark.parametrize(("cores", "asked", "made"), [(1, None, 1), (2, None, 2), (64, None, 2), (1, 3, 3), (4, 0, 0)])
def test_no_more_workers_than_cores_unless_they_are_asked_for(cores, asked, made, monkeypatch) -> None:
    found, loader = [], files.DataLoader

    def watched(*arguments: Any, num_workers: int, **options: Any) -> Any:
        found.append(num_workers)
        return loader(*arguments, num_workers=0, **options)

    monkeypatch.setattr(files, "usable_cores", lambda: cores)
    monkeypatch.setattr(files, "DataLoader", watched)
    all_of(load_dataset("fake:8x3", None, DataOptions(image_size=16, workers=asked)).validation)
    assert set(found) == {made}


@pytest.mark.parametrize("augment", ["resized", "crop", "none"])
def test_augmentations(augment: str, tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    for part in ("train", "val"):
        for name in ("x", "y"):
            stream = io.BytesIO()
            Image.fromarray(random.randint(0, 256, (64, 64, 3)).astype(np.uint8)).save(stream, "PNG")
            write(tmp_path / part / name / "i.png", stream.getvalue())
    options = DataOptions(image_size=56, resize=64, augment=augment, workers=0)
    unit = Normalization((0, 0, 0), (1, 1, 1))
    data = load_dataset(f"imagefolder:{tmp_path}", unit, options)
    picture = torch.from_numpy(np.asarray(Image.open(tmp_path / "train/x/i.png")).copy()).permute(2, 0, 1)
    windows = {
        (dy, dx, flip): (picture.flip(2) if flip else picture)[:, dy : dy + 56, dx : dx + 56]
        for dy in range(9)
        for dx in range(9)
        for flip in (False, True)
    }
    found = []
    for seed in range(16):
        view = (all_of(data.train, seed=seed)[0][0] * 255).round()
        found.append(next((place for place, window in windows.items() if torch.equal(window, view)), None))
    if augment == "none":
        assert set(found) == {(4, 4, False)}
    elif augment == "crop":
        assert None not in found
        assert len({place[:2] for place in found if place}) > 8
        assert {place[2] for place in found if place} == {False, True}
    else:
        assert set(found) == {None}


def test_unreadable_images_are_counted_skipped_and_too_many_end_the_run(folder: Path) -> None:
    whole = (folder / "train/cat/a.jpg").read_bytes()
    write(folder / "train/cat/a.jpg", whole[: len(whole) // 2])
    write(folder / "train/dog/a.jpg", b"")
    write(folder / "val/owl/0.jpg", b"no image")
    data = load_dataset(f"imagefolder:{folder}", None, SMALL)
    images, labels = all_of(data.train, seed=1)
    assert len(images) == 18  # a readable one in the place of each
    assert labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert sorted(data.train.unreadable) == [str(folder / f"train/{name}/a.jpg") for name in ("cat", "dog")]
    assert len(all_of(data.train)[0]) == 16
    assert len(data.train.unreadable) == 2
    accuracy = evaluate(build("digits-resnet", num_classes=3, in_channels=3), data.validation)
    assert accuracy.count == 5
    assert "UnidentifiedImageError" in data.validation.unreadable[str(folder / "val/owl/0.jpg")]
    strict = load_dataset(f"imagefolder:{folder}", None, DataOptions(image_size=16, workers=0, unreadable_limit=1))
    with pytest.raises(DataError, match=r"2 images cannot be read, the limit is 1; the last is .*dog/a.jpg: .*; mend"):
        all_of(strict.train, seed=1)


def test_nothing_readable_is_said(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("x", "y"):
            write(tmp_path / part / name / "i.png", b"nothing")
    data = load_dataset(f"imagefolder:{tmp_path}", None, SMALL)
    with pytest.raises(DataError, match=r"none of 2 images can be read; the first: .*train/x/i.png"):
        all_of(data.train, seed=0)
    with pytest.raises(DataError, match=r"none of the images to evaluate on could be read"):
        evaluate(build("digits-resnet", num_classes=2, in_channels=3), data.validation)


def test_training_end_to_end_on_files(folder: Path) -> None:
    write(folder / "train/cat/broken.jpg", b"\xff\xd8\xff")
    data = load_dataset(f"imagefolder:{folder}", None, DataOptions(image_size=16, workers=0, augment="crop"))
    torch.manual_seed(0)
    model = build("digits-resnet-lcnn", num_classes=3, in_channels=3)
    result = train(model, data, TrainConfig(20, 6, lr=0.1))
    assert result.last.validation.top1 == 1.0
    assert result.last.unreadable == 1


def test_a_run_that_goes_on_knows_what_could_not_be_read(folder: Path, tmp_path: Path) -> None:
    """The first epoch's batch meets the broken image, the second's does not look at it: the count is of the run."""
    write(folder / "train/cat/broken.jpg", b"\xff\xd8\xff")
    write(folder / "val/owl/0.jpg", b"no image")

    def run(resume: Any = None) -> tuple[list[int], list[Any]]:
        data = load_dataset(f"imagefolder:{folder}", None, SMALL)
        torch.manual_seed(0)
        states: list[Any] = []

        def listen(event: Any) -> None:
            if isinstance(event, StateReached):
                states.append(copy.deepcopy(event.state))

        model = build("digits-resnet", num_classes=3, in_channels=3)
        result = train(model, data, TrainConfig(3, 19, lr=0.1), listen, resume=resume)
        return [epoch.unreadable for epoch in result.history], states

    whole, states = run()
    assert whole == [2, 2, 2]
    assert list(states[1]["unreadable"]["train"]) == [str(folder / "train/cat/broken.jpg")]
    (folder / "train/cat/broken.jpg").write_bytes(jpeg("RGB", COLOURS["cat"]))
    assert run(states[1])[0] == [2, 2, 2], "mended since: it was unreadable in this run all the same"
    del states[1]["unreadable"]
    assert run(states[1])[0][1:] == [1, 1], "a state of before, which does not know"


def test_what_other_processes_met_counts_towards_the_limit(folder: Path) -> None:
    """Before a state is written, so that none says more than it allows."""
    strict = load_dataset(f"imagefolder:{folder}", None, DataOptions(image_size=16, workers=0, unreadable_limit=1))
    strict.train.recall({"a.jpg": "empty"})
    assert len(all_of(strict.train)[0]) == 18
    with pytest.raises(DataError, match=r"2 images cannot be read, the limit is 1; the last is b.jpg: empty; mend"):
        strict.train.recall({"a.jpg": "empty", "b.jpg": "empty"})


def test_few_classes_of_files_of_which_some_cannot_be_read(folder: Path) -> None:
    """In training another image of these classes takes the place; the plain view leaves it out."""
    for name in "abcdef":
        write(folder / f"train/dog/{name}{'.JPEG' if name == 'b' else '.png' if name == 'e' else '.jpg'}", b"")
    two = only_classes(load_dataset(f"imagefolder:{folder}", None, SMALL), [1, 0])
    places = torch.cat([torch.arange(6), torch.tensor([6])])
    images, labels = next(iter(two.train.read([places], seed=0)))
    assert len(images) == 7
    assert set(labels.tolist()) == {1}
    with pytest.raises(DataError, match=r"none of 3 images of a batch can be read; mend them, or take larger batches"):
        list(two.train.read([torch.arange(6, 9)], seed=0))
    assert len(all_of(two.train)[0]) == 6
    result = train(build("digits-resnet", num_classes=2, in_channels=3), two, TrainConfig(2, 12, lr=0.1))
    assert result.last.unreadable == 6


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_as_many_processes_read_as_are_asked_for(workers: int) -> None:
    before = set(multiprocessing.active_children())
    source = load_dataset("fake:6x10", None, DataOptions(image_size=16, workers=workers)).train
    reading = source.read([torch.arange(3), torch.arange(3, 6)], seed=0)
    next(reading)
    assert len(set(multiprocessing.active_children()) - before) == workers
    reading.close()


def test_a_worker_that_is_killed_is_said() -> None:
    def listen(event: Any) -> None:
        if isinstance(event, BatchFinished):
            for child in multiprocessing.active_children():
                child.kill()
                child.join()

    data = load_dataset("fake:200x3", None, DataOptions(image_size=16, workers=1))
    model = build("digits-resnet", num_classes=3, in_channels=3)
    with pytest.raises(
        DataError, match=r"a process that reads images ended: DataLoader worker .*(killed by|exited unexp)"
    ):
        train(model, data, TrainConfig(1, 4), listen)


def test_a_run_on_files_resumes_to_the_same_bits() -> None:
    states: list[bytes] = []

    def listen(event: Any) -> None:
        if isinstance(event, StateReached):
            stream = io.BytesIO()
            torch.save(dict(event.state), stream)
            states.append(stream.getvalue())

    def run(resume: Any = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = build("digits-resnet-lcnn", num_classes=3, in_channels=3)
        data = load_dataset("fake:24x3", None, SMALL)
        train(
            model,
            data,
            TrainConfig(2, 8, save_every=1, shift=1),
            listen if resume is None else lambda e: None,
            resume=resume,
        )
        return model.state_dict()

    whole = run()
    for number in (2, 4):
        resumed = run(torch.load(io.BytesIO(states[number]), weights_only=True))
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_classes_must_agree_and_none_may_be_empty(folder: Path) -> None:
    (folder / "train/ape").mkdir()
    with pytest.raises(DataError, match=r"train: Found no valid file for the classes ape; expected a folder of images"):
        load_dataset(f"imagefolder:{folder}")
    write(folder / "train/ape/a.jpg", jpeg("RGB", (1, 2, 3)))
    with pytest.raises(DataError, match=r"train has 4 classes, val 3: val lacks ape; expected the same classes"):
        load_dataset(f"imagefolder:{folder}")
    with pytest.raises(DataError, match=r"has no folder 'train'; expected train/CLASS/IMAGE"):
        load_dataset(f"imagefolder:{folder / 'train'}")
    with pytest.raises(ConfigError, match=r"'imagefolder:' names no folder"):
        load_dataset("imagefolder:")


def test_without_val_a_twelfth_is_held_out(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder / "val")
    data = load_dataset(f"imagefolder:{folder}", None, SMALL)
    assert (len(data.train), len(data.validation)) == (16, 2)
    assert not set(data.train.names) & set(data.validation.names)  # type: ignore[attr-defined]


def shard(path: Path, samples: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_shards_are_what_the_folder_is(folder: Path, tmp_path: Path) -> None:
    """The same images as files and in tar shards give the same tensors and the same training."""
    target = tmp_path / "shards"
    target.mkdir()
    for part, place in (("train", "train"), ("val", "val")):
        samples: dict[str, bytes] = {}
        number = 0
        for label, name in enumerate(COLOURS):
            for path in sorted((folder / place / name).iterdir()):
                samples[f"{number:06d}{path.suffix.lower()}"] = path.read_bytes()
                samples[f"{number:06d}.cls"] = str(label).encode()
                samples[f"{number:06d}.json"] = b"{}"
                number += 1
        half = 3 * (number // 2)
        shard(target / f"{part}-000.tar", dict(list(samples.items())[:half]))
        shard(target / f"{part}-001.tar", dict(list(samples.items())[half:]))
    (target / "classes.txt").write_text("cat\ndog\nowl\n")
    files, tars = (
        load_dataset(f"{kind}:{at}", None, SMALL) for kind, at in (("imagefolder", folder), ("webdataset", target))
    )
    assert tars.class_names == files.class_names
    for seed in (None, 4):
        for a, b in zip(all_of(files.train, seed=seed), all_of(tars.train, seed=seed), strict=True):
            assert torch.equal(a, b)
    assert torch.equal(all_of(files.validation)[0], all_of(tars.validation)[0])
    (target / "classes.txt").write_text("cat\ndog\nowl\nyak\n")
    with pytest.raises(DataError, match=r"no training image of 1 of 4 classes: yak; expected images of each class"):
        load_dataset(f"webdataset:{target}")
    (target / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=r"classes.txt lists 2 classes, but a label in the shards is 2"):
        load_dataset(f"webdataset:{target}")
    (target / "classes.txt").unlink()
    shard(target / "val-002.tar", {"1.jpg": b"x", "1.cls": b"9" * 18})
    with pytest.raises(DataError, match=r"has the label 9{18}, and \d+ training images; expected images of"):
        load_dataset(f"webdataset:{target}")
    shard(target / "val-002.tar", {"1.jpg": b"x"})
    with pytest.raises(DataError, match=r"val-002.tar: 1.jpg has no .cls; expected a class number"):
        load_dataset(f"webdataset:{target}")
    (target / "val-002.tar").write_bytes(b"tar" * 400)
    with pytest.raises(DataError, match=r"val-002.tar cannot be read as a tar file"):
        load_dataset(f"webdataset:{target}")
    with pytest.raises(DataError, match=r"nothing has no \*train\*.tar; expected shards"):
        load_dataset(f"webdataset:{tmp_path / 'nothing'}")


def test_fake_images_have_sizes_and_classes_as_asked() -> None:
    data = load_dataset("fake:40x7", None, DataOptions(image_size=32, workers=0))
    assert (len(data.train), len(data.validation), len(data.class_names)) == (40, 4, 7)
    images, labels = all_of(data.train, seed=0)
    assert images.shape == (40, 3, 32, 32)
    assert labels.tolist() == [n % 7 for n in range(40)]
    assert float(images.std()) > 0.3
    with pytest.raises(ConfigError, match=r"'fake:many' is no size; write fake:IMAGES or fake:IMAGESxCLASSES"):
        load_dataset("fake:many")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 0}, "image_size is 0; expected a whole number of 1 or more"),
        ({"workers": -1}, "workers is -1; expected a whole number of 0 or more"),
        ({"augment": "flip"}, "augment is 'flip'; expected one of resized, crop, none"),
        ({"image_size": 224, "resize": 200}, "resize is 200; expected the image size, 224, or more"),
    ],
)
def test_options_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataOptions(**values)
    with pytest.raises(ConfigError, match="workers cannot go with digits, whose images are of one size and in memory"):
        load_dataset("digits", None, DataOptions(workers=1))
