"""The records of a zip file (PKWARE APPNOTE 6.3.10, sections 4.3 and 4.5)."""

from __future__ import annotations

from struct import Struct
from typing import Final

STORED: Final = 0
DEFLATED: Final = 8

FLAG_ENCRYPTED: Final = 0x0001
FLAG_DESCRIPTOR: Final = 0x0008  # checksum and sizes follow the data
FLAG_UTF8: Final = 0x0800
FLAGS_KNOWN: Final = 0x0006 | FLAG_DESCRIPTOR | FLAG_UTF8  # 0x0006: deflate's own speed hint

LOCAL_MAGIC: Final = b"PK\x03\x04"
CENTRAL_MAGIC: Final = b"PK\x01\x02"
END_MAGIC: Final = b"PK\x05\x06"
END64_MAGIC: Final = b"PK\x06\x06"
LOCATOR64_MAGIC: Final = b"PK\x06\x07"

# magic, version, flags, method, time, date, crc, packed, size, name length, extra length
LOCAL: Final = Struct("<4s5H3I2H")
# magic, made by, version, flags, method, time, date, crc, packed, size, name length,
# extra length, comment length, disk, internal attributes, external attributes, offset
CENTRAL: Final = Struct("<4s6H3I5H2I")
# magic, disk, directory's disk, entries on disk, entries, directory size, offset, comment length
END: Final = Struct("<4s4H2IH")
# magic, size of the rest, made by, version, disk, directory's disk, entries on disk, entries,
# directory size, offset
END64: Final = Struct("<4sQ2H2I4Q")
# magic, disk, offset of END64, disks
LOCATOR64: Final = Struct("<4sIQI")

EXTRA64: Final = 0x0001  # the extra field with 64-bit sizes and offset
FULL16: Final = 0xFFFF
FULL32: Final = 0xFFFFFFFF  # "look in the zip64 record"
