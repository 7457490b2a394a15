"""What can be chosen when a qcow image (version 1) is made, and the rules between the choices.

Law: the rules are judged in qemu-img's order, so that of two mistakes the same one is reported. What would be
written and then could not be opened again is refused.
"""

from __future__ import annotations

from instar.core.drivers import BUILT_IN
from instar.core.errors import OptionError
from instar.core.options import Option
from instar.core.units import SECTOR, UINT64_MAX, align_up, ceil_div
from instar.formats.qcow.ondisk import (
    ENTRY_SIZE,
    FORMAT,
    L1_ALIGNMENT,
    L1_ENTRY_SPAN,
    MAX_BACKING_NAME,
    MAX_L1_ENTRIES,
    VIRTUAL_FAT,
    Header,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.core.options import Settings
    from instar.core.plan import Backing, Bound

#: Largest disk that can be opened again: 512 TiB less 2 MiB.
MAX_SIZE = MAX_L1_ENTRIES * L1_ENTRY_SPAN

#: A kind of encryption that there is, but not in this format; qemu-img judges it later than one that there is not.
LUKS = "luks"

SIZE = Option("size", "size", "Virtual disk size", note="Rounded up to 512 bytes; 1 to 512 TiB - 2 MiB.")
BACKING_FILE = Option("backing_file", "str", "File name of a base image", note="At most 1023 bytes.")
BACKING_FMT = Option("backing_fmt", "str", "Format of the backing image", note="Judged, but not recorded.")
ENCRYPTION = Option(
    "encryption", "bool", "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)"
)
ENCRYPT_FORMAT = Option(
    "encrypt.format",
    "choice",
    "Encrypt the image, format choices: 'aes'",
    choices=("aes",),
    aliases={"qcow": "aes"},
    qapi="format",
    note="aes: AES-128-CBC with the passphrase's first 16 bytes as key, which is weak. luks is for qcow2.",
)
KEY_SECRET = Option("encrypt.key-secret", "str", "ID of the secret that provides the AES encryption key")

CREATE: tuple[Option, ...] = (SIZE, BACKING_FILE, BACKING_FMT, ENCRYPTION, ENCRYPT_FORMAT, KEY_SECRET)


def resolve(size: int, given: Settings, backing: Backing | None) -> dict[str, int | bool | str]:
    """Judge the choices for a disk of ``size`` bytes and fill in the rest.

    Returns:
        ``encrypted``; if so ``key_secret``, the name of the passphrase.

    Raises:
        OptionError: ``bad-choice``, ``qcow-backing-format``, ``qcow-encryption-twice``,
            ``qcow-encrypt-format-missing``, ``qcow-size-zero``, ``qcow-luks``, ``qcow-key-secret-missing``,
            ``image-too-large``, ``qcow-backing-name-length``.
    """
    format = backing.format if backing is not None else given.text(BACKING_FMT)
    if format is not None and format not in BUILT_IN:
        raise OptionError(
            "qcow-backing-format",
            f"there is no format '{format}' for a backing file",
            key=BACKING_FMT.name,
            value=format,
        )
    chosen = _encryption(given)
    # From 2^64 - 511 on qemu-img wraps around to 0 and says that this is too small; so do we.
    rounded = align_up(size, SECTOR) & UINT64_MAX
    if rounded == 0:
        raise OptionError(
            "qcow-size-zero",
            "a qcow disk has at least 1 byte",
            key=SIZE.name,
            value=size,
            format=FORMAT,
        )
    if chosen == LUKS:
        raise OptionError(
            "qcow-luks",
            "qcow encrypts with 'aes' only; format qcow2 has encrypt.format=luks",
            key=ENCRYPT_FORMAT.name,
            value=chosen,
        )
    if chosen is not None and KEY_SECRET.name not in given.values:
        raise OptionError(
            "qcow-key-secret-missing",
            "encryption needs a passphrase; name it with encrypt.key-secret",
            key=KEY_SECRET.name,
        )
    if rounded > MAX_SIZE:
        raise OptionError(
            "image-too-large",
            f"a qcow disk has at most {MAX_SIZE} bytes (512 TiB - 2 MiB), not {size}; qcow2 holds more",
            key=SIZE.name,
            value=size,
            limit=MAX_SIZE,
            format=FORMAT,
        )
    if backing is not None and backing.name != VIRTUAL_FAT:
        length = len(backing.name.encode("utf-8", "surrogateescape"))
        if length > MAX_BACKING_NAME:
            raise OptionError(
                "qcow-backing-name-length",
                f"the name of the backing file has {length} bytes, and at most {MAX_BACKING_NAME} can be read again",
                key=BACKING_FILE.name,
                value=length,
                limit=MAX_BACKING_NAME,
            )
    if chosen is None:
        return {"encrypted": False}
    return {"encrypted": True, "key_secret": str(given.text(KEY_SECRET))}


def bounds(size: int, options: Mapping[str, int | bool | str], backing: Backing | None) -> tuple[Bound, ...]:
    """Return what each file of an image can need at most; ``options`` are ``resolve``'s."""
    from instar.core.plan import Bound

    name = 0 if backing is None else len(backing.name.encode("utf-8", "surrogateescape"))
    table = align_up(ENTRY_SIZE * ceil_div(size, L1_ENTRY_SPAN), L1_ALIGNMENT)
    return (Bound(align_up(Header.SIZE + name, ENTRY_SIZE) + table),)


def _encryption(given: Settings) -> str | None:
    """Return the kind of encryption asked for: ``aes``, ``luks`` or none."""
    old, new = given.raw.get(ENCRYPTION.name), given.text(ENCRYPT_FORMAT)
    if old not in (None, "off") and new is not None:
        raise OptionError(
            "qcow-encryption-twice",
            "give either 'encrypt.format' or its alias 'encryption', not both",
            key=ENCRYPTION.name,
        )
    if new == LUKS:
        return LUKS
    if new is not None:
        return ENCRYPT_FORMAT.pick(new)
    if old == "on":
        return "aes"
    if old not in (None, "off"):
        # Of the words for yes and no qemu-img hands all but these two on as the name of a format.
        raise OptionError(
            "bad-choice",
            f"option 'encryption' is on or off here, not '{old}'; better write encrypt.format=aes",
            key=ENCRYPTION.name,
            qapi=ENCRYPT_FORMAT.qapi,
            value=old,
        )
    if KEY_SECRET.name in given.values:
        raise OptionError(
            "qcow-encrypt-format-missing",
            "option 'encrypt.key-secret' has no effect without 'encrypt.format'; add encrypt.format=aes",
            key=KEY_SECRET.name,
        )
    return None
