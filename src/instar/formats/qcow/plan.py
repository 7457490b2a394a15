"""The writes that make a qcow image of version 1.

Law: pure. The same size, options and seed give the same plan, and the plan gives the bytes that
``qemu-img create`` writes.
"""

from __future__ import annotations

from instar.core.errors import OptionError
from instar.core.plan import Fill, Plan, Write
from instar.core.units import SECTOR, align_up, ceil_div
from instar.formats.qcow.ondisk import (
    CLUSTER_BITS,
    CLUSTER_BITS_BACKED,
    CRYPT_AES,
    CRYPT_NONE,
    ENTRY_SIZE,
    L1_ALIGNMENT,
    L1_ENTRY_SPAN,
    L2_BITS,
    L2_BITS_BACKED,
    VIRTUAL_FAT,
    Header,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.core.plan import Item, Seed


def create(size: int, options: Mapping[str, int | bool | str], seed: Seed) -> Plan:
    """Plan an image for a disk of ``size`` bytes with the options that ``resolve`` gave. Takes no randomness.

    Encryption writes no key and nothing that proves one: ``seed.secret`` is only looked at, as qemu-img does.

    >>> from instar.core.plan import Seed
    >>> plan = create(1 << 30, {"encrypted": False}, Seed())
    >>> plan.virtual_size, plan.sizes
    (1073741824, (4144,))
    >>> [(item.offset, item.length, item.label) for item in plan.items]
    [(0, 48, 'header'), (48, 4096, 'L1 table')]

    Raises:
        OptionError: ``secret-not-utf8``, the passphrase is no text.
    """
    virtual_size = align_up(size, SECTOR)
    if options["encrypted"]:
        _judge_secret(seed.secret, str(options["key_secret"]))
    backed = seed.backing is not None
    name = b""
    if seed.backing is not None and seed.backing.name != VIRTUAL_FAT:
        name = seed.backing.name.encode("utf-8", "surrogateescape")
    l1_offset = align_up(Header.SIZE + len(name), ENTRY_SIZE)
    header = Header(
        backing_file_offset=Header.SIZE if name else 0,
        backing_file_size=len(name),
        size=virtual_size,
        cluster_bits=CLUSTER_BITS_BACKED if backed else CLUSTER_BITS,
        l2_bits=L2_BITS_BACKED if backed else L2_BITS,
        crypt_method=CRYPT_AES if options["encrypted"] else CRYPT_NONE,
        l1_table_offset=l1_offset,
    )
    l1_size = align_up(ENTRY_SIZE * ceil_div(virtual_size, L1_ENTRY_SPAN), L1_ALIGNMENT)
    items: list[Item] = [Write(0, header.pack(), "header")]
    if name:
        items.append(Write(Header.SIZE, name, "backing file name"))
    items.append(Fill(l1_offset, l1_size, "L1 table"))
    return Plan(items, sizes=(l1_offset + l1_size,), virtual_size=virtual_size, unit=1 << header.cluster_bits)


def _judge_secret(secret: bytes | None, name: str) -> None:
    """Refuse a passphrase that is missing or no UTF-8, without a word of it."""
    if secret is None:
        raise OptionError("no-secret", f"there is no secret '{name}'", id=name)
    try:
        secret.decode("utf-8")
    except UnicodeDecodeError:
        # "from None" does not drop what is known: the exception holds the passphrase.
        pass
    else:
        return
    raise OptionError("secret-not-utf8", f"the data of secret '{name}' is not valid UTF-8", id=name)
