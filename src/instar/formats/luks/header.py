"""The LUKS1 header of an image: which ciphers, which key slots.

Law: nothing is decrypted and no key is asked for. A header is refused exactly where QEMU refuses it, but for
sums that it lets wrap around at 2^32, which are refused here.
"""

from __future__ import annotations

from instar.core.errors import ImageError
from instar.core.reader import read_padded
from instar.formats.luks.ondisk import (
    CIPHER_MODES,
    CIPHERS,
    CIPHERS_9_0,
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
    essiv_key_bytes,
    material_sectors,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.core.reader import Reader
    from instar.core.wire import Wire

#: The first key material must not touch the header: it starts at byte 4096 or later.
_FIRST_SECTOR = KEY_ALIGNMENT_SECTORS


class Volume:
    """A header that QEMU would open.

    Attributes:
        base: host offset of the header in bytes.
        header, slots: as they stand there.
        cipher, key_bytes: the cipher's name and the bytes of its key (of one of the two, with XTS).
        mode, generator, generator_hash, hash: names; the IV generator's hash is ``None`` if none is given.
        payload_offset: where the encrypted data starts, in bytes from ``base``.
    """

    __slots__ = ("base", "cipher", "generator", "generator_hash", "hash", "header", "key_bytes", "mode", "slots")

    def __init__(self, base: int, header: Header, slots: list[KeySlot]) -> None:
        self.base = base
        self.header = header
        self.slots = slots
        self.cipher = ""
        self.key_bytes = 0
        self.mode = ""
        self.generator = ""
        self.generator_hash: str | None = None
        self.hash = ""

    @property
    def payload_offset(self) -> int:
        """Where the encrypted data starts, in bytes from ``base``."""
        return self.header.payload_offset * SECTOR


def read_header(image: Reader, base: int, *, generation: tuple[int, int]) -> Volume:
    """Read and judge the header at byte ``base``, in QEMU's order.

    Raises:
        ImageError: it is damaged, or asks for what QEMU does not know.
    """
    data = read_padded(image, base, HEADER_SIZE)
    header = Header.unpack(data)
    slots = [KeySlot.unpack(data, Header.SIZE + KeySlot.SIZE * index) for index in range(KEY_SLOTS)]
    volume = Volume(base, header, slots)
    _judge(volume)
    _names(volume, generation)
    return volume


def _judge(volume: Volume) -> None:
    header, slots, base = volume.header, volume.slots, volume.base
    if header.magic != MAGIC:
        detail = "this is not a LUKS header"
        magic, expected = (int.from_bytes(found, "big") for found in (header.magic, MAGIC))
        raise _bad(detail, "magic", magic, base, kind="invalid-format", label="LUKS magic", expected=expected)
    if header.version != VERSION:
        detail = "the LUKS version is not 1"
        kind, label = "unsupported-feature", "LUKS version"
        raise _bad(detail, "version", header.version, base, kind=kind, label=label, expected=VERSION)
    for name in ("cipher_name", "cipher_mode", "hash_spec"):
        if b"\0" not in getattr(header, name):
            raise _bad("the name does not end with a NUL", name, None, base)
    if header.payload_offset < _FIRST_SECTOR:
        raise _bad("the encrypted data overlaps the header", "payload_offset", header.payload_offset, base)
    if not header.mk_digest_iter:
        raise _bad("the iteration count is zero", "mk_digest_iter", 0, base)
    sectors = material_sectors(header.key_bytes)
    for index, slot in enumerate(slots):
        fault = _judge_slot(slots, index, sectors, header.payload_offset)
        if fault is not None:
            field, who, detail = fault
            value: int = getattr(slot, field)
            offset = base + Header.SIZE + KeySlot.SIZE * index + KeySlot.field(field).offset
            raise ImageError(
                "corrupt",
                "LUKS key slot",
                detail,
                field=f"{field} of {who}",
                value=value,
                expected=STRIPES if field == "stripes" else None,
                offset=offset,
            )


def _judge_slot(slots: list[KeySlot], index: int, sectors: int, payload: int) -> tuple[str, str, str] | None:
    """Return the field, the key slot or slots, and what is wrong with them; ``None`` if nothing is."""
    slot, who = slots[index], f"key slot {index}"
    start = slot.key_material_offset
    if slot.stripes != STRIPES:
        return "stripes", who, f"{who} does not have {STRIPES} stripes"
    if slot.active not in (KEY_DISABLED, KEY_ENABLED):
        return "active", who, f"{who} is neither active nor inactive"
    if slot.active == KEY_ENABLED and not slot.iterations:
        return "iterations", who, f"the iteration count of {who} is zero"
    if start < _FIRST_SECTOR:
        return "key_material_offset", f"{who} and the header", f"{who} overlaps the header"
    if start + sectors > payload:
        return "key_material_offset", who, f"{who} overlaps the encrypted data"
    for other in range(index + 1, KEY_SLOTS):
        if abs(slots[other].key_material_offset - start) < sectors:
            who = f"key slots {index} and {other}"
            return "key_material_offset", who, f"{who} overlap one another"
    return None


def _names(volume: Volume, generation: tuple[int, int]) -> None:
    header, base = volume.header, volume.base
    hashes = {**HASHES, **HASHES_9_2} if generation >= (9, 2) else HASHES
    ciphers = {**CIPHERS, **CIPHERS_9_0} if generation >= (9, 0) else CIPHERS
    mode, dash, rest = text(header.cipher_mode).partition("-")
    if not dash:
        detail = f"the cipher mode {mode!r} does not name an IV generator"
        raise _bad(detail, "cipher_mode", None, base, label="parts of cipher_mode")
    generator, colon, generator_hash = rest.partition(":")
    if colon and generator_hash not in hashes:
        raise _unknown("hash", generator_hash, "cipher_mode", base)
    if mode not in CIPHER_MODES:
        raise _unknown("cipher mode", mode, "cipher_mode", base)
    cipher = text(header.cipher_name)
    key_bytes = header.key_bytes // 2 if mode == "xts" else header.key_bytes
    if key_bytes not in ciphers.get(cipher, ()):
        detail = f"the cipher {cipher!r} with a key of {key_bytes} bytes is not supported"
        raise _bad(detail, "key_bytes", key_bytes, base, kind="unsupported-feature")
    hash_name = text(header.hash_spec)
    if hash_name not in hashes:
        raise _unknown("hash", hash_name, "hash_spec", base)
    if generator not in IV_GENERATORS:
        raise _unknown("IV generator", generator, "cipher_mode", base)
    if generator == "essiv":
        if not colon:
            raise _bad("the IV generator essiv needs a hash", "cipher_mode", None, base, label="hash for essiv")
        digest = hashes[generator_hash]
        if essiv_key_bytes(cipher, key_bytes, digest) is None:
            detail = f"the cipher {cipher!r} takes no key of the {digest} bytes of {generator_hash!r}"
            label = f"essiv key of {cipher}"
            raise _bad(detail, "cipher_mode", digest, base, kind="unsupported-feature", label=label)
    volume.cipher, volume.key_bytes, volume.mode, volume.hash = cipher, key_bytes, mode, hash_name
    volume.generator, volume.generator_hash = generator, generator_hash if colon else None


def facts(volume: Volume, *, generation: tuple[int, int]) -> dict[str, Wire]:
    """Return what QEMU shows of a header, its keys in QEMU's order (``format``, which only qcow2 shows, included)."""
    out: dict[str, Wire] = {"ivgen-alg": volume.generator}
    if generation >= (9, 0):
        out["detached-header"] = False
    out["hash-alg"] = volume.hash
    out["cipher-alg"] = volume.cipher if volume.cipher in CIPHERS_9_0 else f"{volume.cipher}-{8 * volume.key_bytes}"
    out["uuid"] = text(volume.header.uuid)
    if volume.generator == "essiv":
        out["ivgen-hash-alg"] = volume.generator_hash
    out["format"] = "luks"
    out["cipher-mode"] = volume.mode
    out["slots"] = [_slot(slot) for slot in volume.slots]
    out["payload-offset"] = volume.payload_offset
    out["master-key-iters"] = volume.header.mk_digest_iter
    return out


def _slot(slot: KeySlot) -> Wire:
    offset = slot.key_material_offset * SECTOR
    if slot.active != KEY_ENABLED:
        return {"active": False, "key-offset": offset}
    return {"active": True, "iters": slot.iterations, "key-offset": offset, "stripes": slot.stripes}


def text(field: bytes) -> str:
    """Return a name up to its NUL; bytes that are no UTF-8 stay lossless."""
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _unknown(what: str, name: str, field: str, base: int) -> ImageError:
    detail = f"the {what} {name!r} is not supported"
    return _bad(detail, field, None, base, kind="unsupported-feature", label=f"{what} in {field}")


def _bad(
    detail: str,
    field: str,
    value: int | None,
    base: int,
    *,
    kind: str = "corrupt",
    label: str | None = None,
    expected: int | None = None,
) -> ImageError:
    """Make an error about a field of the header; ``label`` says more exactly what of it."""
    offset = base + Header.field(field).offset
    return ImageError(kind, "LUKS header", detail, field=label or field, value=value, expected=expected, offset=offset)
