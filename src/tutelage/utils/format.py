"""Numbers as a reader sees them: bytes and parameter counts."""

from __future__ import annotations


def format_bytes(size: float) -> str:
    """Bytes in decimal units: 512 B, 1.4 kB, 23 MB, 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 9.95 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def format_count(count: int) -> str:
    """A number of parameters in words: 156 thousand, 1.5 billion; `an unknown number of` for 0."""
    for unit, size in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count) if count else "an unknown number of"
