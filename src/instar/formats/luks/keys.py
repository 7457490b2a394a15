"""Keys out of passphrases: PBKDF2, the digest that tells a right key, key slots made and opened.

Law: pure. A header's numbers of iterations are compared with a limit before a key is derived. No error holds a key.
"""

from __future__ import annotations

from instar.core.errors import ImageError, OptionError
from instar.core.reader import read_exact
from instar.formats.luks.ciphers import Sectors, Spec
from instar.formats.luks.ondisk import DIGEST_SIZE, KEY_ENABLED, SECTOR, STRIPES
from instar.formats.luks.splitter import merge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.core.reader import Reader
    from instar.formats.luks.header import Volume

#: Most iterations that are done to try a key slot (about a minute with SHA-256); cryptsetup makes a few millions.
MAX_ITERATIONS = 1 << 28


def derive(hash_name: str, passphrase: bytes, salt: bytes, iterations: int, size: int) -> bytes:
    """Return ``size`` bytes of PBKDF2 (RFC 8018, 5.2) with HMAC over a hash.

    Raises:
        OptionError: ``luks-hash-missing``, this Python's OpenSSL does not have the hash.
    """
    import hashlib

    try:
        return hashlib.pbkdf2_hmac(hash_name, passphrase, salt, iterations, size)
    except ValueError:
        raise OptionError(
            "luks-hash-missing", f"the hash '{hash_name}' is not in this Python's OpenSSL; use sha256", value=hash_name
        ) from None


def spec_of(volume: Volume) -> Spec:
    """Return how the sectors of a volume are encrypted."""
    return Spec(volume.cipher, volume.key_bytes, volume.mode, volume.generator, volume.generator_hash)


def unlock(image: Reader, volume: Volume, passphrase: bytes, *, max_iterations: int = MAX_ITERATIONS) -> bytes | None:
    """Return the master key of a volume, ``None`` if the passphrase opens none of its key slots.

    Raises:
        ImageError: ``too-large``, a key slot asks for more than ``max_iterations``; ``out-of-bounds``, its key
            material is not wholly inside the file.
        OptionError: ``crypto-missing``, ``luks-cipher-library``, ``luks-hash-missing``.
    """
    header, spec = volume.header, spec_of(volume)
    size = header.key_bytes
    for index, slot in enumerate(volume.slots):
        if slot.active != KEY_ENABLED:
            continue
        for count in (slot.iterations, header.mk_digest_iter):
            if count > max_iterations:
                raise ImageError(
                    "too-large",
                    "LUKS key slot",
                    f"key slot {index} takes too many iterations to be tried",
                    field="iterations",
                    value=count,
                    limit=max_iterations,
                )
        slot_key = derive(volume.hash, passphrase, slot.salt, slot.iterations, size)
        offset = volume.base + slot.key_material_offset * SECTOR
        material = read_exact(image, offset, size * STRIPES, "LUKS key material")
        key = merge(Sectors(spec, slot_key).decrypt(material), size, volume.hash)
        if derive(volume.hash, key, header.mk_digest_salt, header.mk_digest_iter, DIGEST_SIZE) == header.mk_digest:
            return key
    return None
