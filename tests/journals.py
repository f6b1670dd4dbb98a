"""Journal lines as tests change them."""

from __future__ import annotations

import json


def without_checksum(line: bytes) -> bytes:
    """Return a line as older versions wrote it."""
    record = json.loads(line)
    del record["_crc"]
    return json.dumps(record).encode()
