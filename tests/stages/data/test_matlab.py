"""Nested structs of MATLAB 5 files as columns: what scipy reads, and one line for a damaged file."""

from __future__ import annotations

import pickle
import struct as packing
import subprocess
import sys
import zlib

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from hoi_distill.stages.data.hico_det import matlab
from hoi_distill.stages.data.hico_det.mat import list_action, read_image_level
from hoi_distill.stages.data.hico_det.matlab import read_matrix, without_compression
from hoi_distill.stages.evaluate.formats.pocket_mat import _all_boxes
from hoi_distill.storage.errors import UserError


def struct(rows, *fields):
    out = np.empty((1, len(rows)), [(field, object) for field in fields])
    for k, row in enumerate(rows):
        out[0, k] = row
    return out


@pytest.fixture
def nested():
    """Structs of all kinds of numbers; some empty, some with their fields in another order."""
    random = np.random.default_rng(0)
    kinds = ["u1", "i1", "u2", "i2", "i4", "u4", "f4", "f8", "i8", "u8"]
    rows = []
    for k in range(40):
        boxes = [tuple(random.integers(0, 100, 2).astype(kinds[k % 10])) for _ in range(k % 4)]
        inner = struct([box[::-1] for box in boxes], "y", "x") if k % 3 else struct(boxes, "x", "y")
        links = random.normal(size=(k % 5, 2)) if k % 2 else np.zeros((0, 0))
        rows.append((f"näme {k}" * (k % 3), inner if boxes else np.zeros((0, 0)), links))
    return struct(rows, "name", "box", "link")


@pytest.mark.parametrize("compressed", [True, False])
def test_columns_are_what_scipy_reads(tmp_path, nested, compressed):
    file = tmp_path / "a.mat"
    savemat(file, {"other": np.arange(120), "a_long_variable_name": nested, "v": 1}, do_compression=compressed)
    scipy_rows = loadmat(file)["a_long_variable_name"].ravel()
    owner, column = read_matrix(file, "a_long_variable_name").structs("name", "box", "link")
    assert owner.tolist() == [0] * 40
    assert column["name"].texts() == [str(row["name"][0]) if row["name"].size else "" for row in scipy_rows]

    values, counts = column["link"].numbers()
    assert counts.tolist() == [row["link"].size for row in scipy_rows]
    assert values.tolist() == [v for row in scipy_rows for v in row["link"].ravel("F").tolist()]

    owner, box = column["box"].structs("x", "y")
    boxes = [(k, b) for k, row in enumerate(scipy_rows) if row["box"].size for b in row["box"].ravel()]
    assert owner.tolist() == [k for k, _ in boxes]
    for side in ("x", "y"):
        assert box[side].scalars().tolist() == [float(b[side].item()) for _, b in boxes]


def test_a_slice_is_the_first_elements(tmp_path, nested):
    savemat(tmp_path / "a.mat", {"v": nested})
    _, column = read_matrix(tmp_path / "a.mat", "v").structs("link")
    assert column["link"][:7].numbers()[1].tolist() == column["link"].numbers()[1][:7].tolist()


def test_empty_cells_have_the_default(tmp_path):
    savemat(tmp_path / "a.mat", {"v": struct([(1,), (np.zeros((0, 0)),)], "x")})
    _, column = read_matrix(tmp_path / "a.mat", "v").structs("x")
    assert column["x"].scalars(-1).tolist() == [1, -1]


def _refused(file, said, variable="v", fields=("x",)):
    with pytest.raises(UserError) as error:
        [column.numbers() for column in read_matrix(file, variable).structs(*fields)[1].values()]
    assert str(error.value).startswith(str(file))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_other_files_are_named(tmp_path):
    file = tmp_path / "a.mat"
    _refused(file, "cannot be read")
    savemat(file, {"v": struct([(1,)], "x")})
    whole = file.read_bytes()
    _refused(file, "no variable w", variable="w")
    _refused(file, "no 'y'", fields=("y",))
    for content, said in [
        (b"", "not a readable MATLAB file"),
        (b"MATLAB 7.3 MAT-file" + bytes(200), "save it again with -v7"),
        (whole[:-9], "cut short"),
        (whole[:130], "cut short"),
    ]:
        file.write_bytes(content)
        _refused(file, said)
    savemat(file, {"v": np.arange(6.0)})
    _refused(file, "no struct array")
    savemat(file, {"v": struct([("text",)], "x")})
    _refused(file, "no numbers")
    savemat(file, {"v": struct([(struct([(1,)], "y"),)], "x")})
    _refused(file, "no numbers")


@pytest.mark.parametrize("compressed", [True, False])
def test_any_damage_is_one_line(tmp_path, nested, compressed):
    file = tmp_path / "a.mat"
    savemat(file, {"v": nested}, do_compression=compressed)
    whole = file.read_bytes()
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(120):
        damaged = bytearray(whole)
        damaged[random.integers(128, len(whole))] ^= 1 << int(random.integers(8))
        file.write_bytes(bytes(damaged) if random.random() < 0.7 else whole[: random.integers(128, len(whole))])
        try:
            _, column = read_matrix(file, "v").structs("name", "box", "link")
            column["name"].texts()
            column["link"].numbers()
            _, box = column["box"].structs("x", "y")
            box["x"].scalars()
        except UserError as error:
            refused += 1
            assert str(error).startswith(str(file))  # noqa: PT017
    assert refused > 20


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kind", ["f8", "i1", "u2"])
def test_a_table_and_cells_are_what_scipy_reads(tmp_path, kind, compressed):
    file, names = tmp_path / "a.mat", np.array(["näme", "", "x" * 70], object)
    table = np.arange(-6, 6).reshape(3, 4).astype(kind)
    savemat(file, {"anno": table, "a_long_variable_name": names}, do_compression=compressed)
    assert np.array_equal(read_matrix(file, "anno").table(), loadmat(file)["anno"])
    assert read_matrix(file, "a_long_variable_name").cells().texts() == names.tolist()


@pytest.mark.parametrize("value", [np.array([[1j]]), "text", np.array([np.zeros(1)], object), np.zeros((2, 2, 2))])
def test_what_is_no_table_of_numbers_is_refused(tmp_path, value):
    savemat(tmp_path / "a.mat", {"v": value})
    with pytest.raises(UserError, match=r"a\.mat: not the structs"):
        read_matrix(tmp_path / "a.mat", "v").table()


def test_a_cell_array_that_is_cut_short_is_refused(tmp_path):
    savemat(tmp_path / "a.mat", {"v": np.array(["a", "b"], object)}, do_compression=False)
    whole = (tmp_path / "a.mat").read_bytes()
    whole = whole[:132] + (len(whole) - 136 - 56).to_bytes(4, "little") + whole[136:-56]
    (tmp_path / "a.mat").write_bytes(whole)
    with pytest.raises(UserError, match=r"a\.mat: damaged"):
        read_matrix(tmp_path / "a.mat", "v").cells().texts()


def test_names_in_cells_of_cells_are_read_by_scipy(tmp_path):
    nest = np.empty((2, 1), object)
    nest[:, 0] = [np.array(["a.jpg"], object), np.array(["b.jpg"], object)]
    savemat(tmp_path / "anno.mat", {"anno_train": np.array([[1.0, -1.0]]), "list_train": nest})
    assert read_image_level(tmp_path / "anno.mat", "train", ["b.jpg", "a.jpg"], 1).tolist() == [[False], [True]]


@pytest.mark.parametrize(
    "content", [pickle.dumps(list(range(1000))), pickle.dumps({"a": 1}), bytes(4), bytes(200), b""]
)
def test_a_file_of_another_kind_is_refused_in_one_line(tmp_path, content):
    file = tmp_path / "anno.mat"
    file.write_bytes(content)
    for read in (lambda: read_image_level(file, "test", [], 600), lambda: read_matrix(file, "bbox_test")):
        with pytest.raises(UserError, match=r"anno\.mat: not a readable MATLAB file") as error:
            read()
        assert "\n" not in str(error.value)


def test_actions_that_are_no_struct_are_refused():
    with pytest.raises(UserError, match=r"a\.mat: list_action has no field nname"):
        list_action(np.zeros((3, 1)), "a.mat")


def bomb(name, inner, declared=None):
    """A file of one compressed variable, which repeats what is in it until it has `inner` bytes."""
    label = name.encode().ljust(-(-len(name) // 8) * 8, b"\0")
    head = packing.pack("<IIIIIIII", 6, 8, 2, 0, 5, 8, 1, 1) + packing.pack("<II", 1, len(name)) + label
    fields = packing.pack("<IIII", (4 << 16) | 5, 4, 1, 8) + b"hoi\0\0\0\0\0"
    size = len(head) + len(fields) + inner
    packer = zlib.compressobj(9)
    parts = [packer.compress(packing.pack("<II", 14, size if declared is None else declared) + head + fields)]
    parts += [packer.compress(b"\0" * (1 << 20)) for _ in range(inner >> 20)]
    body = b"".join(parts) + packer.flush()
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + packing.pack("<II", 15, len(body)) + body


READERS = {
    "boxes": ("anno_bbox.mat", lambda file: read_matrix(file, "v")),
    "image-level labels": ("anno.mat", lambda file: read_image_level(file, "v", [], 600)),
    "detections": ("detections_01.mat", _all_boxes),
}
NAMES = {"boxes": "v", "image-level labels": "anno_v", "detections": "all_boxes"}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("declared", [None, 200, 2**32 - 8], ids=["as it is", "too little", "too much"])
def test_a_file_that_inflates_without_end_is_refused_in_one_line(tmp_path, monkeypatch, kind, declared):
    name, read = READERS[kind]
    monkeypatch.setattr(matlab, "MAX_BYTES", 8 << 20)
    (tmp_path / name).write_bytes(bomb(NAMES[kind], 64 << 20, declared))
    with pytest.raises(UserError, match=rf"{name}: .*(bytes when inflated|does not end after)") as caught:
        read(tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1


def test_a_bomb_takes_no_memory(tmp_path):
    (tmp_path / "anno_bbox.mat").write_bytes(bomb("v", 100 << 20, 200))
    code = (
        "import re, sys; from pathlib import Path; from hoi_distill.stages.data.hico_det.matlab import read_matrix\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024\n"
        "before = peak()\n"
        "try: read_matrix(Path(sys.argv[1]), 'v')\n"
        "except ValueError: print(peak() - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "anno_bbox.mat")]
    assert float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) < 20


@pytest.mark.parametrize("compressed", [True, False])
def test_scipy_reads_the_same_without_compression(tmp_path, nested, compressed):
    file = tmp_path / "a.mat"
    savemat(file, {"other": np.arange(120), "a": nested, "v": [[1, 2]]}, do_compression=compressed)
    plain = loadmat(without_compression(file, ["v", "other"]))
    assert [plain[key].tolist() for key in ("v", "other")] == [loadmat(file)[key].tolist() for key in ("v", "other")]
    assert "a" not in plain


def test_an_old_or_foreign_file_is_left_to_scipy_and_a_big_endian_one_refused(tmp_path):
    savemat(tmp_path / "old.mat", {"v": [[1, 2]]}, format="4")
    assert loadmat(without_compression(tmp_path / "old.mat", ["v"]))["v"].tolist() == [[1, 2]]
    (tmp_path / "other.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\1\0MI")
    with pytest.raises(UserError, match=r"other\.mat: .*big-endian"):
        read_image_level(tmp_path / "other.mat", "v", [], 600)


def test_cells_with_any_changed_byte_are_texts_or_one_line(tmp_path):
    file = tmp_path / "a.mat"
    savemat(file, {"v": np.array(["a.jpg", "b" * 40], object)}, do_compression=False)
    whole = file.read_bytes()
    for at in range(128, len(whole)):
        for value in (0, 1, 8, 112, 128, whole[at] ^ 255):
            file.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            try:
                read_matrix(file, "v").cells().texts()
            except UserError as error:
                assert str(error).startswith(str(file))  # noqa: PT017
