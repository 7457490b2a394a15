"""The LUKS1 header inside an encrypted qcow2 image: which ciphers, which key slots.

Law: nothing is decrypted and no key is asked for. A header is refused exactly where QEMU refuses it, but for
sums that it lets wrap around at 2^32, which are refused here.
"""

from __future__ import annotations

from instar.core.reader import read_padded
from instar.core.units import align_up, ceil_div
from instar.formats.qcow2.header import bad, require_readable, text
from instar.formats.qcow2.luks_ondisk import (
    CIPHER_MODES,
    CIPHERS,
    HASHES,
    HASHES_9_2,
    HEADER_SIZE,
    IV_GENERATORS,
    KEY_ALIGNMENT_SECTORS,
    KEY_DISABLED,
    KEY_ENABLED,
    KEY_SLOTS,
    MAGIC,
    SECTOR,
    STRIPES,
    VERSION,
    Header,
    KeySlot,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.core.errors import ImageError
    from instar.core.wire import Wire
    from instar.formats.qcow2.header import Image
    from instar.formats.qcow2.ondisk import CryptoHeaderExtension

#: The first key material must not touch the header: it starts at byte 4096 or later.
_FIRST_SECTOR = 8


def describe(image: Image, where: CryptoHeaderExtension, *, generation: tuple[int, int]) -> dict[str, Wire]:
    """Return what QEMU calls ``encrypt``, its keys in QEMU's order.

    Raises:
        ImageError: the header is damaged, or asks for what QEMU does not know.
    """
    if where.length < HEADER_SIZE:
        detail = "the encryption header is longer than the place reserved for it"
        raise bad("out-of-bounds", "LUKS header", detail, field="length", value=HEADER_SIZE, limit=where.length)
    require_readable("LUKS header", where.offset, HEADER_SIZE)
    data = read_padded(image.reader, where.offset, HEADER_SIZE)
    header = Header.unpack(data)
    slots = [KeySlot.unpack(data, Header.SIZE + KeySlot.SIZE * index) for index in range(KEY_SLOTS)]
    base = where.offset
    _judge(header, slots, base)
    return _names(header, slots, base, generation)


def _judge(header: Header, slots: list[KeySlot], base: int) -> None:
    if header.magic != MAGIC:
        raise _bad("this is not a LUKS header", "magic", None, base, kind="invalid-format")
    if header.version != VERSION:
        raise _bad("the LUKS version is not 1", "version", header.version, base, kind="unsupported-feature")
    for name in ("cipher_name", "cipher_mode", "hash_spec"):
        if b"\0" not in getattr(header, name):
            raise _bad("the name does not end with a NUL", name, None, base)
    if header.payload_offset < _FIRST_SECTOR:
        raise _bad("the encrypted data overlaps the header", "payload_offset", header.payload_offset, base)
    if not header.mk_digest_iter:
        raise _bad("the iteration count is zero", "mk_digest_iter", 0, base)
    sectors = align_up(ceil_div((header.key_bytes * STRIPES) & 0xFFFFFFFF, SECTOR), KEY_ALIGNMENT_SECTORS)
    for index, slot in enumerate(slots):
        place = base + Header.SIZE + KeySlot.SIZE * index
        start = slot.key_material_offset
        detail = None
        if slot.stripes != STRIPES:
            detail, field = f"key slot {index} does not have {STRIPES} stripes", "stripes"
        elif slot.active not in (KEY_DISABLED, KEY_ENABLED):
            detail, field = f"key slot {index} is neither active nor inactive", "active"
        elif slot.active == KEY_ENABLED and not slot.iterations:
            detail, field = f"the iteration count of key slot {index} is zero", "iterations"
        elif start < _FIRST_SECTOR:
            detail, field = f"key slot {index} overlaps the header", "key_material_offset"
        elif start + sectors > header.payload_offset:
            detail, field = f"key slot {index} overlaps the encrypted data", "key_material_offset"
        elif any(abs(other.key_material_offset - start) < sectors for other in slots[index + 1 :]):
            detail, field = f"key slot {index} overlaps another", "key_material_offset"
        if detail is not None:
            value: int = getattr(slot, field)
            raise bad(
                "corrupt", "LUKS key slot", detail, field=field, value=value, offset=place + KeySlot.field(field).offset
            )


def _names(header: Header, slots: list[KeySlot], base: int, generation: tuple[int, int]) -> dict[str, Wire]:
    hashes = {**HASHES, **HASHES_9_2} if generation >= (9, 2) else HASHES
    mode, dash, rest = _name(header.cipher_mode).partition("-")
    if not dash:
        raise _bad("the cipher mode does not name an IV generator", "cipher_mode", None, base)
    generator, colon, generator_hash = rest.partition(":")
    if colon and generator_hash not in hashes:
        raise _unknown("hash of the IV generator", generator_hash, "cipher_mode", base)
    if mode not in CIPHER_MODES:
        raise _unknown("cipher mode", mode, "cipher_mode", base)
    cipher = _name(header.cipher_name)
    key_bytes = header.key_bytes // 2 if mode == "xts" else header.key_bytes
    if key_bytes not in CIPHERS.get(cipher, ()):
        detail = f"the cipher {cipher!r} with a key of {key_bytes} bytes is not supported"
        raise _bad(detail, "key_bytes", header.key_bytes, base, kind="unsupported-feature")
    hash_name = _name(header.hash_spec)
    if hash_name not in hashes:
        raise _unknown("hash", hash_name, "hash_spec", base)
    if generator not in IV_GENERATORS:
        raise _unknown("IV generator", generator, "cipher_mode", base)
    if generator == "essiv":
        if not colon:
            raise _bad("the IV generator essiv needs a hash", "cipher_mode", None, base)
        # dm-crypt takes the digest as key of the same cipher, so there must be one of that size.
        digest = hashes[generator_hash]
        if digest != key_bytes and (cipher == "cast5" or digest not in CIPHERS[cipher]):
            detail = f"the cipher {cipher!r} takes no key of the {digest} bytes of {generator_hash!r}"
            raise _bad(detail, "cipher_mode", None, base, kind="unsupported-feature")
    out: dict[str, Wire] = {"ivgen-alg": generator}
    if generation >= (9, 0):
        out["detached-header"] = False
    out["hash-alg"] = hash_name
    out["cipher-alg"] = f"{cipher}-{8 * key_bytes}"
    out["uuid"] = _name(header.uuid)
    if generator == "essiv":
        out["ivgen-hash-alg"] = generator_hash
    out["format"] = "luks"
    out["cipher-mode"] = mode
    out["slots"] = [_slot(slot) for slot in slots]
    out["payload-offset"] = header.payload_offset * SECTOR
    out["master-key-iters"] = header.mk_digest_iter
    return out


def _slot(slot: KeySlot) -> Wire:
    offset = slot.key_material_offset * SECTOR
    if slot.active != KEY_ENABLED:
        return {"active": False, "key-offset": offset}
    return {"active": True, "iters": slot.iterations, "key-offset": offset, "stripes": slot.stripes}


def _name(field: bytes) -> str:
    return text(field).decode("utf-8", "surrogateescape")


def _unknown(what: str, name: str, field: str, base: int) -> ImageError:
    return _bad(f"the {what} {name!r} is not supported", field, None, base, kind="unsupported-feature")


def _bad(detail: str, field: str, value: int | None, base: int, *, kind: str = "corrupt") -> ImageError:
    offset = base + Header.field(field).offset
    return bad(kind, "LUKS header", detail, field=field, value=value, offset=offset)
