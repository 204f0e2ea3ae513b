"""Text files are read within bounds, and never waited for."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from ephmon.config.file import MAX_BYTES, read_text
from ephmon.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def _refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as refusal:
        read_text(path)
    return str(refusal.value)


def test_a_file_is_read_as_utf8(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes("a: é\r\n".encode())

    assert read_text(path) == "a: é\r\n"


def test_a_file_of_the_largest_size_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"#" * MAX_BYTES)
    assert len(read_text(path)) == MAX_BYTES

    path.write_bytes(b"#" * (MAX_BYTES + 1))
    assert _refusal(path) == f"{path}: the file is larger than 1 MiB, the limit"


def test_of_a_huge_file_only_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    with path.open("wb") as file:
        file.truncate(100 << 20)

    assert _refusal(path) == f"{path}: the file is larger than 1 MiB, the limit"


def test_a_fifo_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)

    assert _refusal(path) == f"{path}: the file is a FIFO, not a regular file"


def test_a_directory_a_device_and_a_socket_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert _refusal(path) == f"{path}: the file cannot be read: No such device or address"

    assert _refusal(tmp_path) == f"{tmp_path}: the file is a directory, not a regular file"
    assert _refusal(type(path)("/dev/zero")) == "/dev/zero: the file is a device, not a regular file"


def test_a_missing_file_and_an_impossible_path_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "missing.yaml"

    assert _refusal(path) == f"{path}: the file cannot be read: No such file or directory"
    assert _refusal(tmp_path / "a\0b").endswith("a\\x00b': the file cannot be read: Its path contains a NUL")


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "loop"
    path.symlink_to(path)

    assert _refusal(path) == f"{path}: the file cannot be read: Too many levels of symbolic links"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"a: 1\nb: \xff\n", ":2: the byte 0xff at offset 8 is not UTF-8; save the file as UTF-8 text"),
        ("a: é\n".encode("latin-1"), ":1: the byte 0xe9 at offset 3 is not UTF-8; save the file as UTF-8 text"),
        ("a: 1\n".encode("utf-16"), ":1: the byte 0xff at offset 0 is not UTF-8; save the file as UTF-8 text"),
        (b"a: \xc3", ":1: the byte 0xc3 at offset 3 is not UTF-8; save the file as UTF-8 text"),
    ],
)
def test_bytes_that_are_not_utf8_are_named_with_line_and_offset(tmp_path: Path, data: bytes, sentence: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(data)

    assert _refusal(path) == f"{path}{sentence}"


def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.touch(mode=0)
    user = os.geteuid()
    try:
        os.seteuid(user or 65534)  # root may read everything
        assert _refusal(path) == f"{path}: the file cannot be read: Permission denied"
    finally:
        os.seteuid(user)
