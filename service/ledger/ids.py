"""The ids of records and jobs."""

from __future__ import annotations

import os
import time


def uuid7() -> str:
    """A UUID of version 7 (RFC 9562, 5.7): 48 bits of milliseconds, then random; ids sort by time."""
    milliseconds = time.time_ns() // 1_000_000
    value = milliseconds << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
