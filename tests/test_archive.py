import io
import json
import struct
import zipfile

import numpy as np
import pytest

from skvaecert._archive import (
    MEMBERS,
    Archive,
    can_hold,
    parse_json,
    read_archive,
    write_archive,
)
from skvaecert.exceptions import InvalidFileError

ARRAYS = {
    "a": np.arange(6.0).reshape(2, 3),
    "b": np.array(3, dtype=np.float32),
    "c": np.array([True, False]),
    "empty": np.zeros((0, 2)),
}


@pytest.fixture
def path(tmp_path):
    write_archive(tmp_path / "file", Archive({"x": 0.1}, None, ARRAYS))
    return tmp_path / "file"


def table(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def rewritten(path, change=None, **members):
    """Write the file again, with some members changed."""
    with zipfile.ZipFile(path) as old:
        data = {name: old.read(name) for name in MEMBERS}
    data |= {name.replace("_", "."): value for name, value in members.items()}
    with zipfile.ZipFile(path, "w") as new:
        for name, value in data.items():
            info = zipfile.ZipInfo(name)
            if change:
                change(info)
            new.writestr(info, value)
    return path


def test_what_is_written_is_read(path):
    config, certificate, arrays = read_archive(path)
    assert (config, certificate) == ({"x": 0.1}, None)
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array, strict=True)


def test_arrays_are_safetensors_as_others_read_them(path):
    from safetensors.numpy import load

    arrays = load(zipfile.ZipFile(path).read("arrays.safetensors"))
    np.testing.assert_array_equal(arrays["a"], ARRAYS["a"])


def test_transposed_and_strided_arrays_are_written_as_they_read(tmp_path):
    given = {"t": np.arange(6.0).reshape(2, 3).T, "s": np.arange(8)[::2]}
    write_archive(tmp_path / "f", Archive(None, None, given))
    for name, array in read_archive(tmp_path / "f").arrays.items():
        np.testing.assert_array_equal(array, given[name])


def test_a_failing_write_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_archive(path, Archive(float("nan"), None, {}))

    def full(*args):
        raise OSError("disk full")

    monkeypatch.setattr("skvaecert._archive._write", full)
    with pytest.raises(OSError, match="disk full"):
        write_archive(path, Archive(None, None, {}))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_files_that_are_not_there_are_not_called_invalid(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_archive(tmp_path / "none")


def test_every_truncation_is_found(path):
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(InvalidFileError):
            read_archive(path)


def test_flipped_bytes_are_found_or_change_nothing(path):
    data = path.read_bytes()
    sound = str(read_archive(path))
    n_found = 0
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            assert str(read_archive(path)) == sound
        except InvalidFileError:
            n_found += 1
    # The others are dates, versions and attributes, which nobody reads.
    assert n_found > 0.7 * len(data)


@pytest.mark.parametrize(
    "name",
    ["../config.json", "/config.json", "arrays.pkl", "data.pkl"],
)
def test_members_of_other_names_are_refused(path, name):
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(InvalidFileError, match="members must be"):
        read_archive(path)


def test_members_that_come_twice_are_refused(path):
    with (
        zipfile.ZipFile(path, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        archive.writestr("config.json", b"{}")
    with pytest.raises(InvalidFileError, match="members must be"):
        read_archive(path)


def test_compressed_encrypted_and_linked_members_are_refused(path):
    data = path.read_bytes()
    rewritten(path, lambda info: setattr(info, "compress_type", zipfile.ZIP_DEFLATED))
    with pytest.raises(InvalidFileError, match="compressed"):
        read_archive(path)
    path.write_bytes(data)
    rewritten(path, lambda info: setattr(info, "external_attr", 0o120777 << 16))
    with pytest.raises(InvalidFileError, match="link"):
        read_archive(path)
    encrypted = bytearray(data)
    place = data.index(b"PK\x01\x02")
    encrypted[place + 8] |= 1
    path.write_bytes(encrypted)
    with pytest.raises(InvalidFileError, match="encrypted"):
        read_archive(path)


def test_something_before_the_archive_is_refused(path):
    path.write_bytes(b"PK\x03\x04 a script" + path.read_bytes())
    with pytest.raises(InvalidFileError, match="before its first"):
        read_archive(path)


def test_something_behind_the_archive_is_refused(path):
    path.write_bytes(path.read_bytes() + b"a script")
    with pytest.raises(InvalidFileError, match="does not end"):
        read_archive(path)


def test_long_lists_of_members_are_not_read(path):
    with zipfile.ZipFile(path, "a") as archive:
        for i in range(100):
            archive.writestr(f"{i}", b"")
    with pytest.raises(InvalidFileError, match="list of members is too long"):
        read_archive(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": 1, "a": 2}', "twice"),
        (b"[NaN]", "not finite"),
        (b"[1e999]", "not finite"),
        (b"[" * 100 + b"]" * 100, "nested"),
        (b'{"a":' * 41 + b"1" + b"}" * 41, "nested"),
        (b"\xff", "utf-8"),
        (b'"' + b'\\"' * 10**6, "Unterminated"),
        (b"", "Expecting value"),
    ],
)
def test_other_json_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_brackets_in_strings_are_not_nesting():
    assert parse_json(json.dumps("[" * 100 + '"' + "{" * 100).encode())


@pytest.mark.parametrize(
    "made",
    [
        b"",
        struct.pack("<Q", 2**63) + b"{}",
        table(b"[]"),
        table(
            {"a": {"dtype": "F64", "shape": [2**40], "data_offsets": [0, 8]}}, b"8" * 8
        ),
        table({"a": {"dtype": "F64", "shape": [2**62, 4], "data_offsets": [0, 0]}}),
        table({"a": {"dtype": "F64", "shape": [-1], "data_offsets": [0, 8]}}, b"8" * 8),
        table(
            {"a": {"dtype": "F64", "shape": [True], "data_offsets": [0, 8]}}, b"8" * 8
        ),
        table({"a": {"dtype": "OBJ", "shape": [1], "data_offsets": [0, 8]}}, b"8" * 8),
        table({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}, b"1"),
        table({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}, b"11"),
        table({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"11"),
        table({"a": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}}, b"\2"),
        table({"a": {"dtype": "U8", "shape": [1] * 9, "data_offsets": [0, 1]}}, b"1"),
        table({"a": {"shape": [1], "data_offsets": [0, 1]}}, b"1"),
        table({"a": {"dtype": [], "shape": [1], "data_offsets": [0, 1]}}, b"1"),
        table({"a": {"dtype": "U8", "shape": 1, "data_offsets": []}}, b"1"),
        table({"__metadata__": {"a": "b"}}),
    ],
)
def test_arrays_that_do_not_add_up_are_refused(path, made):
    rewritten(path, arrays_safetensors=made)
    with pytest.raises(InvalidFileError):
        read_archive(path)


def test_documents_have_a_limit_both_ways(path):
    rewritten(path, config_json=b" " * 2**24 + b"1")
    with pytest.raises(InvalidFileError, match="more than"):
        read_archive(path)
    with pytest.raises(ValueError, match="at most 16777216 bytes"):
        write_archive(path, Archive("x" * 2**24, None, {}))


def test_only_numbers_can_be_held():
    assert can_hold(np.zeros(1, ">f8"))
    assert not can_hold(np.array([None]))
    assert not can_hold(np.zeros(1, complex))
    assert not can_hold(np.load(io.BytesIO(_saved(np.array(["2026"], "M8[s]")))))


def _saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
