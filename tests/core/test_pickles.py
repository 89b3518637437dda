"""``load_plain``: what torch.save writes comes back; crafted pickles run nothing, in any form; bombs do not go off."""

from __future__ import annotations

import io
import pickle
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from lcnn_core.checkpoint.opening import open_model
from lcnn_core.checkpoint.pickles import load_plain
from lcnn_core.errors import CheckpointError

MAGIC = 0x1950A86A20F9469CFC6C

# --- what is read


def training_checkpoint() -> dict:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    return {
        **{"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()},
        **{"parameter": nn.Parameter(torch.ones(2)), "half": torch.ones(3, dtype=torch.bfloat16), "seed": 2**63},
        **{"transposed": torch.arange(6).reshape(2, 3).t(), "shape": torch.ones(2, 3).shape, "dtype": torch.float16},
        **{"device": torch.device("cpu"), "set": {1, 2}, "counts": Counter("aab"), "nested": ((1, [2]), {"a": None})},
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_training_checkpoints_come_back_whole(tmp_path, zipped):
    path = tmp_path / "c.pt"
    value = training_checkpoint()
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    loaded = load_plain(path)
    assert loaded.keys() == value.keys()
    for name, tensor in value["state_dict"].items():
        assert torch.equal(loaded["state_dict"][name], tensor)
    for name in ("parameter", "half", "transposed"):
        assert torch.equal(loaded[name], value[name])
    for name in ("seed", "shape", "dtype", "device", "set", "counts", "nested", "schedule"):
        assert loaded[name] == value[name]


def test_shared_storages_and_new_dtypes(tmp_path):
    base = torch.arange(12.0)
    value = {
        "a": base,
        "b": base[3:],
        "f8": torch.ones(4).to(torch.float8_e4m3fn),
        "u16": torch.ones(4).to(torch.uint16),
    }
    torch.save(value, tmp_path / "c.pt")
    loaded = load_plain(tmp_path / "c.pt")
    assert loaded["a"].untyped_storage().data_ptr() == loaded["b"].untyped_storage().data_ptr()
    assert loaded["f8"].dtype == torch.float8_e4m3fn


# --- code


class Reduce:
    """Runs ``open(path, "w")`` when it is unpickled carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def reduce_by_hand(path: Path) -> bytes:
    """open(path, "w") by GLOBAL and REDUCE."""
    return b"\x80\x02c__builtin__\nopen\nX" + text(str(path)) + b"X" + text("w") + b"\x86R."


def build_by_hand(path: Path) -> bytes:
    """BUILD: the state of an OrderedDict set to one with a __setstate__ from elsewhere, then called."""
    return (
        b"\x80\x02ccollections\nOrderedDict\n)R}X"
        + text("__class__")
        + b"cos\nsystem\nsb}X"
        + text("x")
        + b"X"
        + text(f"touch {path}")
        + b"sb."
    )


def stack_global(path: Path) -> bytes:
    """The same by STACK_GLOBAL, protocol 4."""
    names = b"\x8c" + bytes([8]) + b"builtins\x8c\x04open\x93"
    return b"\x80\x04" + names + b"X" + text(str(path)) + b"X" + text("w") + b"\x86R."


def instance(path: Path) -> bytes:
    """The oldest opcode that calls: INST."""
    return b"(X" + text(f"touch {path}") + b"ios\nsystem\n."


def new_object(path: Path) -> bytes:
    return b"\x80\x02csubprocess\nPopen\n(X" + text("touch") + b"X" + text(str(path)) + b"l\x85\x81."


def nested_in_a_tensor(path: Path) -> bytes:
    """The call sits in the hooks of ``_rebuild_parameter``, which torch allows."""
    call = reduce_by_hand(path)[2:-1]
    return b"\x80\x02ctorch._utils\n_rebuild_parameter\nN\x89" + call + b"\x87R."


def allowed_but_sharp(path: Path) -> bytes:
    """``torch._tensor._rebuild_from_type_v2`` calls its first argument; torch lists it as safe."""
    return (
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\ncos\nsystem\nX"
        + text(f"touch {path}")
        + b"\x85NtR."
    )


def nested_pickle(path: Path) -> bytes:
    return b"\x80\x02cpickle\nloads\ncbuiltins\nbytearray\nX" + text(reduce_by_hand(path).hex()) + b"\x85R\x85R."


def text(value: str) -> bytes:
    return struct.pack("<I", len(value.encode())) + value.encode()


CRAFTED = [reduce_by_hand, build_by_hand, stack_global, instance, new_object, nested_in_a_tensor, allowed_but_sharp,
           nested_pickle]  # fmt: skip


def as_zip(path: Path, data: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/version", "3\n")
        archive.writestr("a/data/0", bytes(16))


def as_legacy(path: Path, data: bytes) -> None:
    head = [pickle.dumps(value, 2) for value in (MAGIC, 1001, {"little_endian": True})]
    path.write_bytes(b"".join(head) + data + pickle.dumps([], 2))


def as_tar(path: Path, data: bytes) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in (("storages", pickle.dumps(0, 2)), ("tensors", pickle.dumps(0, 2)), ("pickle", data)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def as_bare_pickle(path: Path, data: bytes) -> None:
    path.write_bytes(data)


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("form", [as_zip, as_legacy, as_tar, as_bare_pickle])
@pytest.mark.parametrize("craft", CRAFTED)
def test_crafted_pickles_run_nothing(tmp_path, craft, form, suffix):
    marker = tmp_path / "marker"
    path = tmp_path / f"crafted{suffix}"
    form(path, craft(marker))
    with pytest.raises(CheckpointError):
        open_model(path)
    assert not marker.exists()


def test_the_crafted_reduce_would_run_under_plain_pickle(tmp_path):
    """The crafts are live: unpickled carelessly, they do make the marker."""
    for craft in (reduce_by_hand, stack_global, instance):
        marker = tmp_path / craft.__name__
        pickle.loads(craft(marker))
        assert marker.exists()


def test_pickled_objects_are_named_and_the_next_step_is_given(tmp_path):
    torch.save({"model": Reduce(tmp_path / "marker")}, tmp_path / "c.pt")
    with pytest.raises(
        CheckpointError, match=r"it needs '\w+.open', which is no plain data; .* save a plain state_dict"
    ):
        load_plain(tmp_path / "c.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
        load_plain(tmp_path / "m.pt")
    assert not (tmp_path / "marker").exists()


# --- bounds


STORAGE = b"(X" + text("storage") + b"ctorch\nFloatStorage\nX" + text("0") + b"X" + text("cpu")


def tensor_pickle(numel: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    body = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + number(numel) + b"tQ" + number(offset)
    for sizes in (size, stride):
        body += b"(" + b"".join(map(number, sizes)) + b"t"
    return body + b"\x89ccollections\nOrderedDict\n)RtR."


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def test_the_tensor_by_hand_is_a_good_one(tmp_path):
    as_zip(tmp_path / "c.pt", tensor_pickle(4, (2, 2), (2, 1)))
    assert torch.equal(load_plain(tmp_path / "c.pt"), torch.zeros(2, 2))


@pytest.mark.parametrize("form", [as_zip, as_legacy])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tensor_pickle(5, (5,), (1,)), r"claims 20 bytes, |its storages claim 20 bytes"),
        (tensor_pickle(1 << 40, (5,), (1,)), r"claims 4398046511104 bytes"),
        (tensor_pickle(-1, (1,), (1,)), r"storage '0' has no length"),
        (tensor_pickle(1 << 80, (1,), (1,)), r"claims \d+ bytes"),
        (tensor_pickle(4, (1 << 40,), (0,)), r"a tensor of shape \(1099511627776,\) at 0 on a storage of 4 entries"),
        (tensor_pickle(4, (1 << 40, 1 << 40), (1, 1)), r"on a storage of 4 entries"),
        (tensor_pickle(4, (2,), (1,), 3), r"a tensor of shape \(2,\) at 3 on a storage of 4"),
        (tensor_pickle(4, (2,), (-1,), 1), r"on a storage of 4"),
        (tensor_pickle(4, (2, 2), (1,)), r"no sizes"),
        (tensor_pickle(4, (1,) * 100, (1,) * 100), r"no sizes"),
    ],
)
def test_storages_and_tensors_larger_than_their_data(tmp_path, data, message, form):
    form(tmp_path / "c.pt", data)
    with pytest.raises(CheckpointError, match=message):
        load_plain(tmp_path / "c.pt")


def hash_bomb() -> bytes:
    """A dict keyed by a tuple of itself sixty times over: hashing it never ends."""
    return b"\x80\x02})" + b"".join(b"q\x01h\x01\x86" for _ in range(60)) + b"K\x01s."


def collision_bomb() -> bytes:
    """Keys that all have one hash."""
    keys = b"".join(number(index * ((1 << 61) - 1)) + b"N" for index in range(50_000))
    return b"\x80\x02}(" + keys + b"u."


def copy_bomb() -> bytes:
    """One list of a thousand entries, made into a set again and again."""
    items = b"".join(number(index) for index in range(1000))
    first = b"\x80\x02](](" + items + b"eq\x01c__builtin__\nset\nq\x02h\x01\x85R"
    return first + 20_000 * b"h\x02h\x01\x85R" + b"e."


def repr_bomb() -> bytes:
    """A shape that is a tuple of itself sixty times over: printing it in a message never ends."""
    shape = b")" + b"".join(b"q\x01h\x01\x86" for _ in range(60))
    storage = STORAGE + number(4) + b"tQ"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0) + shape + b")\x89NtR."


def bytes_bomb() -> bytes:
    """``bytearray(1 << 40)``, which torch allows."""
    return b"\x80\x02c__builtin__\nbytearray\n" + number(1 << 40) + b"\x85R."


def endless_views() -> bytes:
    """One storage of four entries, shown by a thousand tensors."""
    one = tensor_pickle(4, (4,), (1,))[2:-1]
    return b"\x80\x02](" + 1000 * one + b"e."


def test_bombs_are_refused_at_once(tmp_path):
    """In a process of its own, with a limit on its time: a bomb that goes off must not take the suite with it."""
    for bomb in (hash_bomb, collision_bomb, copy_bomb, repr_bomb, bytes_bomb, endless_views):
        for form in (as_zip, as_legacy):
            form(tmp_path / f"{bomb.__name__}-{form.__name__}.pt", bomb())
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_CPU, (30, 30))\n"
        "from pathlib import Path; from lcnn_core.checkpoint.pickles import load_plain\n"
        "from lcnn_core.errors import CheckpointError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for name in sys.argv[1:]:\n"
        "    try: load_plain(Path(name))\n"
        "    except CheckpointError as error: assert len(str(error)) < 1000, len(str(error))\n"
        "    else: sys.exit(f'{name} was loaded')\n"
        "assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10\n"
    )
    files = sorted(map(str, tmp_path.iterdir()))
    assert len(files) == 12
    subprocess.run([sys.executable, "-c", code, *files], check=True, timeout=60)


# --- zip directories


def good_pickle() -> bytes:
    return tensor_pickle(4, (4,), (1,))


def test_zip_bombs_and_compressed_entries(tmp_path):
    path = tmp_path / "c.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", good_pickle())
        archive.writestr("a/data/0", bytes(1 << 26))
    assert path.stat().st_size < 1 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=r"entry 'a/data.pkl' is compressed"):
        load_plain(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


def zip_by_hand(
    entries: list[tuple[str, bytes, int | None]], directory: list[tuple[str, int, int]] | None = None
) -> bytes:
    """A stored zip: (name, data, size to claim); ``directory`` overrides (name, offset, size) of the central one."""
    out, listed = bytearray(), []
    for name, data, claim in entries:
        listed.append((name, len(out), len(data) if claim is None else claim, zlib.crc32(data)))
        size = len(data) if claim is None else claim
        out += struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, zlib.crc32(data), size, size, len(name), 0)
        out += name.encode() + data
    if directory is not None:
        listed = [(*entry, 0) for entry in directory]
    start = len(out)
    for name, offset, size, crc in listed:
        fields = (20, 20, 0, 0, 0, 0, crc, size, size, len(name), 0, 0, 0, 0, 0, offset)
        out += struct.pack("<4s6H3I5H2I", b"PK\1\2", *fields) + name.encode()
    return bytes(out) + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(listed), len(listed), len(out) - start, start, 0)


def test_the_zip_by_hand_is_a_good_one(tmp_path):
    path = tmp_path / "c.pt"
    version = ("a/version", b"3\n", None)
    path.write_bytes(zip_by_hand([("a/data.pkl", good_pickle(), None), version, ("a/data/0", bytes(16), None)]))
    assert load_plain(path).shape == (4,)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (zip_by_hand([("a/data.pkl", good_pickle(), None), ("a/data/0", bytes(16), 1 << 31)]), "claim"),
        (zip_by_hand([("a/data.pkl", good_pickle(), None), ("a/data/0", bytes(16), None)] * 2), "is there twice"),
        (zip_by_hand([("a/data.pkl", good_pickle(), None), ("a/DATA.pkl", b"N.", None)]), "is there twice"),
        (
            zip_by_hand(
                [("a/data.pkl", good_pickle(), None), ("a/data/0", bytes(999), None)],
                [("a/data.pkl", 0, 150), ("a/data/0", 200, 500), ("a/data/1", 300, 500)],
            ),
            "overlaps another",
        ),
        (zip_by_hand([("a/data.pkl", good_pickle(), None)]), "claims 16 bytes, the file does not have it"),
        (zip_by_hand([("a/data/0", bytes(16), None)]), "without data.pkl"),
        (zip_by_hand([("data.pkl", good_pickle(), None)]), "something else"),
        (zip_by_hand([("a/data.pkl", good_pickle(), None), ("b/data/0", bytes(16), None)]), "something else"),
        (zip_by_hand([("a/data.pkl", b"N.", None), ("a/constants.pkl", b"N.", None)]), "TorchScript"),
        (zip_by_hand([("a/data.pkl", b"N.", None)])[:-1], "without its end"),
        (zip_by_hand([("a/data.pkl", b"N.", None)]) + b"comment", "without its end"),
        (zip_by_hand([])[:22], "starts with"),
        (b"PK\3\4" + bytes(10), "expected a zip archive, with 22 or more"),
    ],
)
def test_zip_directories_that_lie(tmp_path, data, message):
    path = tmp_path / "c.pt"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        load_plain(path)


def test_a_directory_of_many_entries_is_refused_unread(tmp_path):
    path = tmp_path / "c.pt"
    whole = bytearray(zip_by_hand([("a/data.pkl", good_pickle(), None), ("a/data/0", bytes(16), None)]))
    struct.pack_into("<I", whole, len(whole) - 10, 1 << 30)
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="a zip directory over 16777216 bytes"):
        load_plain(path)


# --- damage


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_truncation_at_every_offset_is_a_checkpoint_error(tmp_path, zipped):
    path = tmp_path / "c.pt"
    torch.save({"w": torch.arange(3.0), "epoch": 1}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError):
            load_plain(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"starts with b''"),
        (b"\x7fELF", "expected a file written by torch.save"),
        (pickle.dumps({"a": 1}, 2), "not one that torch.save wrote"),
        (pickle.dumps({"a": 1}, 4), "its pickle uses PROTO 4"),
        (b"\x80\x02}K\x01", "its pickle is damaged"),
        (b"\x80\x02h\x05.", "its pickle is damaged"),
        (b"\x80\x02t.", "its pickle is damaged"),
    ],
)
def test_bytes_that_are_no_checkpoint(tmp_path, data, message):
    path = tmp_path / "c.pt"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        load_plain(path)
