"""Anti-forensic splitting: a key becomes so long that a part of it that survives on a disk gives nothing away.

Law: pure; the random stripes are an argument. Source: LUKS On-Disk Format Specification 1.2.3, section 2.4.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def split(key: bytes, stripes: bytes, hash_name: str) -> bytes:
    """Return the key material for ``key``: ``stripes``, random and a multiple of the key's length, and one more."""
    mixed = _mix(stripes, len(key), hash_name)
    return stripes + (int.from_bytes(key, "big") ^ mixed).to_bytes(len(key), "big")


def merge(material: bytes, key_bytes: int, hash_name: str) -> bytes:
    """Return the key that was split into ``material``, a multiple of ``key_bytes``."""
    mixed = _mix(material[:-key_bytes], key_bytes, hash_name)
    return (int.from_bytes(material[-key_bytes:], "big") ^ mixed).to_bytes(key_bytes, "big")


def _mix(stripes: bytes, size: int, hash_name: str) -> int:
    """Return what the last stripe is XORed with: all others, diffused after each."""
    import hashlib

    make: Callable[..., Any] = getattr(hashlib, hash_name, None) or hashlib.new(hash_name).copy
    digest = hashlib.new(hash_name).digest_size
    block = 0
    for at in range(0, len(stripes), size):
        block ^= int.from_bytes(stripes[at : at + size], "big")
        block = int.from_bytes(_diffuse(block.to_bytes(size, "big"), digest, make), "big")
    return block


def _diffuse(block: bytes, digest: int, make: Callable[..., Any]) -> bytes:
    """Hash a block piece by piece, each with its number before it; the last digest is cut to what is left."""
    pieces = []
    for number, at in enumerate(range(0, len(block), digest)):
        state = make()
        state.update(number.to_bytes(4, "big"))
        piece = block[at : at + digest]
        state.update(piece)
        pieces.append(state.digest()[: len(piece)])
    return b"".join(pieces)
