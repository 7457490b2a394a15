"""Read a Parallels image: the header, and the Format Extension if there is one.

Law: any bytes give facts or an ``ImageError``, in bounded time and memory. What QEMU of the asked generation opens
is opened, what it refuses is refused.
"""

from __future__ import annotations

from instar.core.errors import ImageError
from instar.core.image import ImageFacts
from instar.core.reader import read_padded
from instar.core.units import ceil_div
from instar.formats.parallels.extension import judge_offset, read
from instar.formats.parallels.ondisk import (
    FORMAT,
    IN_USE,
    MAGIC,
    MAGIC_OLD,
    MAX_BAT_ENTRIES,
    MAX_SIZE,
    MAX_TRACKS,
    SECTOR,
    STRICTER_SINCE,
    VERSION,
    Header,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.reader import Reader
    from instar.core.wire import Wire


class Opened:
    """A Parallels image whose header is sound enough to be used.

    Attributes:
        header: as it stands in the file.
        sectors: of the virtual disk.
        cluster: bytes of a cluster.
        unit: sectors that BAT entries count in: 1 in images of the older kind, else those of a cluster.
        data_start: sector where the data area starts; where it has to start, if ``data_off`` cannot be right.
        data_off_fault: it cannot.
        bitmaps: of the Format Extension.
    """

    __slots__ = ("bitmaps", "cluster", "data_off_fault", "data_start", "header", "sectors", "unit")

    def __init__(self, header: Header, file_sectors: int) -> None:
        old = header.magic == MAGIC_OLD
        self.header = header
        self.sectors = header.nb_sectors & 0xFFFFFFFF if old else header.nb_sectors
        self.cluster = header.tracks * SECTOR
        self.unit = 1 if old else header.tracks
        self.bitmaps: list[dict[str, Wire]] = []
        lowest = ceil_div(Header.SIZE + 4 * header.bat_entries, SECTOR)
        if not old:
            # QEMU rounds as if clusters were powers of two, which they need not be.
            lowest = (lowest + header.tracks - 1) & -header.tracks & 0xFFFFFFFF
        self.data_start = lowest
        self.data_off_fault = False
        if not (old and header.data_off == 0):
            self.data_off_fault = not lowest <= header.data_off <= file_sectors
            if not self.data_off_fault:
                self.data_start = header.data_off


def _refusal(
    kind: str, field: str, detail: str, value: int, limit: int | None = None, *, expected: int | None = None
) -> ImageError:
    return ImageError(
        kind,
        "header",
        detail,
        field=field,
        value=value,
        limit=limit,
        expected=expected,
        offset=Header.field(field).offset,
        format=FORMAT,
    )


def open_image(image: Reader, generation: tuple[int, int]) -> Opened:
    """Read and judge header and Format Extension, in QEMU's order.

    Raises:
        ImageError: ``invalid-format``, not a Parallels image; ``corrupt``, a cluster of no sectors, or a BAT that is
            too short; ``too-large``, above ``MAX_TRACKS``, ``MAX_BAT_ENTRIES`` or ``MAX_SIZE``; and what
            ``extension.read`` raises.
    """
    header = Header.unpack(read_padded(image, 0, Header.SIZE))
    if header.magic not in (MAGIC, MAGIC_OLD):
        raise ImageError("invalid-format", "header", "this is not a Parallels image", field="magic", format=FORMAT)
    if header.version != VERSION:
        raise _refusal(
            "invalid-format", "version", "the version of the format is not 2", header.version, expected=VERSION
        )
    if not header.tracks:
        raise _refusal("corrupt", "tracks", "clusters have no sectors", header.tracks)
    if header.tracks > MAX_TRACKS:
        raise _refusal("too-large", "tracks", "clusters are too large", header.tracks, MAX_TRACKS)
    if header.bat_entries > MAX_BAT_ENTRIES:
        raise _refusal("too-large", "bat_entries", "the BAT is too long", header.bat_entries, MAX_BAT_ENTRIES)
    opened = Opened(header, ceil_div(image.size, SECTOR))
    room = header.bat_entries * header.tracks
    if generation >= STRICTER_SINCE and opened.sectors > room:
        raise _refusal("corrupt", "nb_sectors", "the BAT is too short for the disk", opened.sectors, room)
    judge_offset(header, generation)
    if header.ext_off:
        opened.bitmaps = read(image, header, opened.sectors)
    if opened.sectors * SECTOR > MAX_SIZE:
        raise _refusal("too-large", "nb_sectors", "the disk is too large", opened.sectors, MAX_SIZE // SECTOR)
    return opened


def info(image: Reader, parts: Sequence[Reader | None], *, generation: tuple[int, int]) -> ImageFacts:
    """Describe a Parallels image as ``qemu-img info`` of a generation does.

    Raises:
        ImageError: see ``open_image``.
    """
    opened = open_image(image, generation)
    header = opened.header
    return ImageFacts(
        FORMAT,
        opened.sectors * SECTOR,
        # QEMU names neither the cluster size nor whether the image is in use.
        has_dirty_flag=False,
        dirty=header.inuse == IN_USE,
        extra={
            "magic": header.magic.decode("latin-1"),
            "cluster_size": opened.cluster,
            "bat_entries": header.bat_entries,
            "data_offset": opened.data_start * SECTOR,
            "flags": header.flags,
            "bitmaps": list(opened.bitmaps),
        },
    )
