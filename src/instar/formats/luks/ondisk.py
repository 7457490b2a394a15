"""The LUKS1 header on disk, and the names that it may hold.

Law: every number that stands in a header, and every limit it is compared with, is here and nowhere else.
"Spec" is the LUKS On-Disk Format Specification, version 1.2.3; all numbers are big endian.
"""

from __future__ import annotations

from instar.core.record import Record
from instar.core.units import align_up, ceil_div

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Widths for the record's metaclass, plain types for a checker.
    u16 = int
    u32 = int
    b6 = bytes
    b20 = bytes
    b32 = bytes
    b40 = bytes

FORMAT = "luks"
#: Spec, figure 1.
MAGIC = b"LUKS\xba\xbe"
VERSION = 1
KEY_SLOTS = 8
#: Spec, section 2.4: state of a key slot.
KEY_ENABLED = 0x00AC71F3
KEY_DISABLED = 0x0000DEAD
#: Spec, section 2.4: anti-forensic stripes of every key slot.
STRIPES = 4000
#: All offsets count sectors of this many bytes (spec, section 1.2).
SECTOR = 512
#: cryptsetup and QEMU keep the first key material, and each length of it, at a multiple of 4096 bytes.
KEY_ALIGNMENT_SECTORS = 8
#: Spec, figure 1: bytes of a digest of the master key, of a salt; section 4.2: a key is derived at least so often.
DIGEST_SIZE = 20
SALT_SIZE = 32
MIN_ITERATIONS = 1000


class Header(Record, endian=">"):
    """The partition header before its key slots (spec, figure 1)."""

    magic: b6 = MAGIC
    version: u16 = VERSION
    #: Names end with a NUL.
    cipher_name: b32
    cipher_mode: b32
    hash_spec: b32
    #: Sector in which the encrypted data starts; 0 if it is in another file.
    payload_offset: u32
    #: Bytes of the master key.
    key_bytes: u32
    mk_digest: b20
    mk_digest_salt: b32
    mk_digest_iter: u32
    uuid: b40


class KeySlot(Record, endian=">"):
    """One of the eight key slots that follow the header (spec, figure 2)."""

    active: u32
    iterations: u32
    salt: b32
    #: Sector of the key material.
    key_material_offset: u32
    stripes: u32


#: Bytes of the header with its key slots.
HEADER_SIZE = Header.SIZE + KEY_SLOTS * KeySlot.SIZE

#: Key sizes of the ciphers that QEMU knows, in bytes, without the doubling of XTS.
CIPHERS: dict[str, tuple[int, ...]] = {
    "aes": (16, 24, 32),
    "cast5": (16,),
    "serpent": (16, 24, 32),
    "twofish": (16, 24, 32),
}
#: Known since QEMU 9.0.
CIPHERS_9_0: dict[str, tuple[int, ...]] = {"sm4": (16,)}
#: Bytes of a block of those that do not have 16.
BLOCK_SIZES: dict[str, int] = {"cast5": 8}
CIPHER_MODES = ("ecb", "cbc", "xts", "ctr")
IV_GENERATORS = ("plain", "plain64", "essiv")
#: Hashes that QEMU knows, with the bytes of their digests.
HASHES: dict[str, int] = {
    "md5": 16,
    "sha1": 20,
    "sha224": 28,
    "sha256": 32,
    "sha384": 48,
    "sha512": 64,
    "ripemd160": 20,
}
#: Known since QEMU 9.2.
HASHES_9_2: dict[str, int] = {"sm3": 32}
#: QEMU takes these to be of one family each: ESSIV's cipher is the member whose key is as long as the digest.
FAMILIES = ("aes", "serpent", "twofish")


def block_size(cipher: str) -> int:
    """Return the bytes of a block of a cipher."""
    return BLOCK_SIZES.get(cipher, 16)


def material_sectors(key_bytes: int) -> int:
    """Return the sectors that the key material of one slot takes for a master key of ``key_bytes``."""
    return align_up(ceil_div((key_bytes * STRIPES) & 0xFFFFFFFF, SECTOR), KEY_ALIGNMENT_SECTORS)


def header_bytes(key_bytes: int) -> int:
    """Return where the encrypted data starts in bytes: behind the header and the material of all key slots."""
    return (KEY_ALIGNMENT_SECTORS + KEY_SLOTS * material_sectors(key_bytes)) * SECTOR


def essiv_key_bytes(cipher: str, key_bytes: int, digest: int) -> int | None:
    """Return the key size of the cipher that encrypts ESSIV's sector numbers, ``None`` if there is none.

    dm-crypt takes the whole digest of the key for a key of the same cipher.
    """
    if digest == key_bytes or (cipher in FAMILIES and digest in CIPHERS[cipher]):
        return digest
    return None
