"""What an archive of `torch.save` says about itself before torch looks at it."""

from __future__ import annotations

import struct
import sys
import zipfile
from typing import IO

from tierstore.errors import FormatError

# OverflowError and ValueError are of places that no file has, the latter also of names.
_UNREADABLE = (zipfile.BadZipFile, NotImplementedError, OverflowError, ValueError)
_LOCAL_HEADER = 30  # bytes, the last four of which are the lengths of name and extra field


def check_archive(file: IO[bytes], where: str) -> None:
    """See that a file is torch's archive, with numbers as this machine has them.

    Bytes are taken as they are: torch would swap those of another machine in memory. The CRC32 of
    records is not looked at, as torch need not have written any.

    Args:
        file: an open file; it is at its beginning afterwards.
        where: its place, for errors.

    Raises:
        FormatError: it is no archive, or a compressed one, or was written on a machine of other
            byte order.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            known = archive.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED for info in known):
            # A little would become very much, and tensors are read as they lie there.
            raise FormatError(f"{where} is no archive that torch.save writes: it is compressed")
        records = [info for info in known if info.filename.endswith("/byteorder")]
        orders = {_content(file, record) for record in records}
    except (*_UNREADABLE, OSError, struct.error) as error:
        raise FormatError(
            f"{where} is no archive that torch.save writes",
            hint="one from before torch 1.6 can be loaded with torch.load and saved again",
        ) from error
    file.seek(0)
    if orders - {sys.byteorder.encode()}:
        raise FormatError(
            f"{where} was written on a machine of other byte order",
            hint="load it with torch.load and save it again",
        )


def _content(file: IO[bytes], record: zipfile.ZipInfo) -> bytes:
    """Return what a record that is not compressed holds."""
    file.seek(record.header_offset)
    header = file.read(_LOCAL_HEADER)
    name, extra = struct.unpack("<HH", header[-4:])
    file.seek(name + extra, 1)
    return file.read(min(record.file_size, 100))
