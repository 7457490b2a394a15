"""The snapshot table: entries of variable length, one after the other.

Law: the table is read front to back in pieces of 64 KiB, never past ``MAX_SNAPSHOT_TABLE_SIZE``; an entry is
refused where QEMU refuses it (specification, "Snapshots").
"""

from __future__ import annotations

from instar.formats.qcow2.header import bad, text
from instar.formats.qcow2.ondisk import (
    MAX_SNAPSHOT_EXTRA,
    MAX_SNAPSHOT_TABLE_SIZE,
    SNAPSHOT_ALIGNMENT,
    SnapshotEntry,
    SnapshotExtra,
)
from instar.formats.qcow2.window import Window

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from instar.core.wire import Wire
    from instar.formats.qcow2.header import Image

_UINT64_MAX = (1 << 64) - 1
#: QEMU keeps ID and name of a snapshot in arrays of 128 and 256 bytes with a terminator.
_MAX_ID = 127
_MAX_NAME = 255


class Snapshot:
    """One entry of the table.

    Attributes:
        index: position in the table; ``end``: host offset behind its name.
        l1_table_offset, l1_size: as in the entry.
        id, name: up to their first NUL.
        vm_state_size: bytes, the wide field if there is one.
        icount: instruction count, or ``None``.
        extra_data_size: bytes of extra data.
    """

    __slots__ = (
        "date_nsec",
        "date_sec",
        "end",
        "extra_data_size",
        "icount",
        "id",
        "index",
        "l1_size",
        "l1_table_offset",
        "name",
        "vm_clock_nsec",
        "vm_state_size",
    )

    index: int
    end: int
    l1_table_offset: int
    l1_size: int
    date_sec: int
    date_nsec: int
    vm_clock_nsec: int
    vm_state_size: int
    extra_data_size: int
    icount: int | None
    id: bytes
    name: bytes

    def facts(self) -> dict[str, Wire]:
        """Return the fields of QEMU's ``SnapshotInfo``, in its order."""
        out: dict[str, Wire] = {}
        if self.icount is not None:
            out["icount"] = _signed(self.icount)
        out["vm-clock-nsec"] = self.vm_clock_nsec % 1_000_000_000
        out["name"] = self.name[:_MAX_NAME].decode("utf-8", "surrogateescape")
        out["date-sec"] = self.date_sec
        out["date-nsec"] = self.date_nsec
        out["vm-clock-sec"] = self.vm_clock_nsec // 1_000_000_000
        out["id"] = self.id[:_MAX_ID].decode("utf-8", "surrogateescape")
        out["vm-state-size"] = _signed(self.vm_state_size)
        return out


def read_snapshots(image: Image) -> Iterator[Snapshot]:
    """Yield the entries of the table. Place and count must have been judged (``require_snapshot_table``).

    Raises:
        ImageError: ``too-large``, an entry has too much extra data, or all together are too long.
    """
    window = Window(image.reader, "Snapshot table")
    start = offset = image.snapshots_offset
    for index in range(image.nb_snapshots):
        offset = -(-offset // SNAPSHOT_ALIGNMENT) * SNAPSHOT_ALIGNMENT
        row = Snapshot()
        row.index = index
        (
            row.l1_table_offset,
            row.l1_size,
            id_size,
            name_size,
            row.date_sec,
            row.date_nsec,
            row.vm_clock_nsec,
            row.vm_state_size,
            extra_size,
        ) = SnapshotEntry.STRUCT.unpack(window.read(offset, SnapshotEntry.SIZE))
        if extra_size > MAX_SNAPSHOT_EXTRA:
            detail = f"snapshot {index} has too much extra data"
            value, where = extra_size, offset + SnapshotEntry.field("extra_data_size").offset
            raise bad(
                "too-large",
                "Snapshot table",
                detail,
                field="extra_data_size",
                value=value,
                limit=MAX_SNAPSHOT_EXTRA,
                offset=where,
            )
        offset += SnapshotEntry.SIZE
        known = window.read(offset, min(extra_size, SnapshotExtra.SIZE))
        wide, _, icount = SnapshotExtra.STRUCT.unpack(known + bytes(SnapshotExtra.SIZE - len(known)))
        row.extra_data_size = extra_size
        if extra_size >= 8:
            row.vm_state_size = wide
        row.icount = icount if extra_size >= SnapshotExtra.SIZE and icount != _UINT64_MAX else None
        offset += extra_size
        names = window.read(offset, id_size + name_size)
        row.id = text(names[:id_size])
        row.name = text(names[id_size:])
        offset += len(names)
        if offset - start > MAX_SNAPSHOT_TABLE_SIZE:
            detail = f"the table is too large at entry {index}"
            raise bad(
                "too-large",
                "Snapshot table",
                detail,
                field="size of the table",
                value=offset - start,
                limit=MAX_SNAPSHOT_TABLE_SIZE,
                offset=start,
            )
        row.end = offset
        yield row


def _signed(value: int) -> int:
    """Show a 64-bit number as QEMU's JSON does, which knows signed ones only."""
    return value - (1 << 64) if value >> 63 else value
