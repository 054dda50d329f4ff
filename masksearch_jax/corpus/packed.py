"""Files as they are packed: gzip, bzip2 and xz are told by their first bytes and unpacked.

An archive of several files, as tar writes it, is not read: names and padding would be taken for
rows.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from typing import IO

DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError)  # what reading a damaged file raises
_READ = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x5d\x00\x00": lzma.LZMAFile,
}
_NAMED = {
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"\x28\xb5\x2f\xfd": "zst",
    b"Rar!\x1a\x07": "rar",
    b"\x04\x22\x4d\x18": "lz4",
}
_CHOICES = "choices: gzip, bzip2, xz, or not packed"
_TAR_MAGIC = slice(257, 262)  # of a header of 512 bytes: "ustar"


class PackingError(ValueError):
    """A file in a packing that is not read; the message names file, packing and choices."""


def unpack(file: IO[bytes], path: str | os.PathLike[str]) -> IO[bytes]:
    """What a file opened as bytes holds: itself, or a reader that unpacks it.

    The reader has `peek`. Raises PackingError for a packing that is known and not read; the reader
    raises one of DAMAGE where the file is damaged.
    """
    head = file.read(8)
    file.seek(0)
    for magic, name in _NAMED.items():
        if head.startswith(magic):
            raise PackingError(f"{path} is packed as {name}, which is not read; {_CHOICES}")
    opened = next((read(file) for magic, read in _READ.items() if head.startswith(magic)), file)
    if opened is file and os.fspath(path).endswith(".br"):  # brotli begins with no bytes of its own
        raise PackingError(f"{path} is packed as brotli, which is not read; {_CHOICES}")
    if opened.peek(512)[_TAR_MAGIC] == b"ustar":
        raise PackingError(
            f"{path} is a tar archive, which is not read; unpack it and name the folder, or one of "
            f"its files ({_CHOICES})"
        )
    return opened
