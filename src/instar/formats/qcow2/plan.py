"""Plans a new qcow2 image, byte for byte the one that qemu-img makes.

Law: a table is one item, made when it is written. Clusters that qemu-img leaves as holes have no item.
"""

from __future__ import annotations

from instar.core.plan import Allocate, Fill, Plan, Write
from instar.core.units import SECTOR, align_up
from instar.formats.qcow2.first_cluster import first_cluster
from instar.formats.qcow2.layout import Layout
from instar.formats.qcow2.ondisk import CRYPT_NONE, REFCOUNT_ORDER_V2, Header
from instar.formats.qcow2.tables import former_tables, l1_table, l2_tables, refcount_blocks, refcount_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from instar.core.plan import Item, Seed
    from instar.formats.qcow2.encryption import Encryption

#: What QEMU writes of a file that gets its length by extending it; a sector of a smaller one.
_FIRST_BLOCK = 4096


def preload(options: Mapping[str, object]) -> None:
    """Import what encryption needs, if the options ask for it."""
    if options.get("encrypt.format"):
        from instar.formats.qcow2.encryption import preload as preload_encryption

        preload_encryption(options)


def create(size: int, options: Mapping[str, int | bool | str], seed: Seed) -> Plan:
    """Plan an image for a disk of ``size`` bytes, rounded up to 512. File 1 is its external data file, if it has one.

    Args:
        size: bytes, not above what ``options.resolve`` accepts.
        options: what ``options.resolve`` returned.
        seed: ``backing`` is the backing file; time and name are not used, the rest only for encryption.

    Raises:
        OptionError: ``image-too-large``, ``qcow2-backing-name-length``, ``qcow2-backing-name-space``,
            ``qcow2-data-file-space``; for encryption what ``formats.luks.make.make`` raises.

    >>> from instar.core.options import Settings
    >>> from instar.core.plan import Seed
    >>> from instar.formats.qcow2.options import resolve
    >>> plan = create(1 << 30, resolve(1 << 30, Settings(), None), Seed())
    >>> plan.sizes
    (196624,)
    >>> for item in plan.items:
    ...     print(f"{item.offset:#x} {item.length} {item.label}")
    0x0 65536 header
    0x10000 65536 refcount table
    0x20000 65536 refcount block 0
    0x30000 16 L1 table
    """
    size = align_up(size, SECTOR)
    cluster_size = int(options["cluster_size"])
    version = int(options["version"])
    encryption = None
    if "encrypt.format" in options:
        from instar.formats.qcow2.encryption import Encryption

        encryption = Encryption(options, seed)
    layout = Layout(
        size,
        cluster_size,
        int(options["refcount_bits"]).bit_length() - 1 if version >= 3 else REFCOUNT_ORDER_V2,
        extended_l2=bool(options["extended_l2"]),
        preallocation=str(options["preallocation"]),
        data_file="data_file" in options,
        crypto_header=encryption.header_size if encryption else 0,
    )
    header = Header(
        version=version,
        cluster_bits=cluster_size.bit_length() - 1,
        size=size,
        l1_size=layout.l1_entries,
        l1_table_offset=layout.l1_start * cluster_size,
        refcount_table_offset=layout.clusters.table_start * cluster_size,
        refcount_table_clusters=layout.clusters.table_clusters,
        crypt_method=encryption.method if encryption else CRYPT_NONE,
    )
    backing = seed.backing
    first = first_cluster(
        header,
        options,
        backing_file=backing.name if backing else None,
        backing_fmt=backing.format if backing else None,
        crypto_header=(layout.crypto[0], encryption.header_size) if encryption and layout.crypto else None,
    )
    items = _Items(layout, first.ljust(cluster_size, b"\0"), options, encryption)
    sizes = (layout.end, layout.data_end) if "data_file" in options else (layout.end,)
    return Plan(items, sizes=sizes, virtual_size=size, unit=cluster_size)


class _Items:
    """The items of a plan, made anew each time they are asked for."""

    __slots__ = ("data_file", "encryption", "first", "keep", "layout", "mode")

    def __init__(
        self,
        layout: Layout,
        first: bytes,
        options: Mapping[str, int | bool | str],
        encryption: Encryption | None,
    ) -> None:
        self.layout = layout
        self.first = first
        self.encryption = encryption
        self.mode = str(options["preallocation"])
        self.data_file = int("data_file" in options)
        self.keep = bool(options.get("keep_data_file"))

    def __iter__(self) -> Iterator[Item]:
        layout = self.layout
        yield Write(0, self.first, "header")
        yield refcount_table(layout)
        yield from refcount_blocks(layout)
        yield from former_tables(layout)
        if layout.l1_entries:
            yield l1_table(layout)
        yield from l2_tables(layout)
        if not self.keep:
            yield from self._data()
        if self.encryption and layout.crypto:
            yield from self.encryption.items(*layout.crypto)

    def _data(self) -> Iterator[Item]:
        """Yield what is done where the guest's data will be."""
        layout, file = self.layout, self.data_file
        if layout.tail:
            yield Fill(*layout.tail, "end of the last data cluster", file=file)
        if layout.reserved:
            yield Allocate(*layout.reserved, "data clusters", mode=self.mode, file=file)
        elif file and layout.size and not layout.tail:
            # QEMU writes the start of a file that it extends from nothing, so as to learn its alignment.
            yield Fill(0, _FIRST_BLOCK if layout.size >= _FIRST_BLOCK else SECTOR, "first block", file=file)
