"""What a qcow2 image says about itself, as ``qemu-img info`` shows it.

Law: no table of clusters is read. An image is refused exactly where QEMU refuses to open it; header, snapshot
table, bitmap directory and bitmap tables are read, each within its named limit.
"""

from __future__ import annotations

from instar.core.image import ImageFacts, Reference
from instar.formats.qcow2.bitmap import read_bitmaps
from instar.formats.qcow2.header import bad, open_image
from instar.formats.qcow2.luks import describe
from instar.formats.qcow2.ondisk import (
    COMPATIBLE_LAZY_REFCOUNTS,
    CRYPT_AES,
    CRYPT_LUKS,
    FORMAT,
    MAX_SHOWN,
    SHOWN_ROW,
)
from instar.formats.qcow2.snapshot import read_snapshots

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from instar.core.reader import Reader
    from instar.core.wire import Wire
    from instar.formats.qcow2.header import Image


def info(image: Reader, parts: Sequence[Reader | None], *, generation: tuple[int, int]) -> ImageFacts:
    """Read what an image says about itself.

    No other file is needed: a data file and a backing file are named, with the roles ``data-file`` and
    ``backing``, and not asked for. ``generation`` is the qemu-img version whose fields are shown.

    Raises:
        ImageError: QEMU would not open the image.
    """
    opened = open_image(image)
    encrypt = _encrypt(opened, generation)
    # A table that cannot be read refuses the image, also where QEMU then shows no snapshots.
    room = _Room()
    snapshots = list(room.take("Snapshot table", (row.facts() for row in read_snapshots(opened))))
    bitmaps: list[Wire] = list(room.take("Bitmap directory", (bitmap.facts() for bitmap in read_bitmaps(opened))))
    references = []
    if opened.has_data_file and opened.data_file:
        references.append(Reference("data-file", opened.data_file, format="raw"))
    if opened.backing_name is not None:
        references.append(Reference("backing", opened.backing_name, format=_text(opened.backing_format)))
    return ImageFacts(
        FORMAT,
        opened.virtual_size,
        cluster_size=opened.cluster_size,
        encrypted=bool(opened.crypt_method),
        dirty=opened.dirty,
        corrupt=opened.corrupt,
        references=references,
        snapshots=[] if opened.has_data_file else snapshots,
        format_specific=_specific(opened, encrypt, bitmaps),
        extra={"version": opened.version, "inconsistent_bitmaps": opened.inconsistent_bitmaps},
    )


def _encrypt(opened: Image, generation: tuple[int, int]) -> dict[str, Wire] | None:
    """Return ``encrypt`` as QEMU shows it; ``None`` if it shows none."""
    if opened.crypto is not None:
        return describe(opened, opened.crypto, generation=generation)
    if opened.crypt_method == CRYPT_AES:
        return {"format": "aes"}
    if opened.crypt_method == CRYPT_LUKS:
        detail = "the image is encrypted with LUKS, but does not say where the LUKS header is"
        raise bad("corrupt", "Header", detail, field="crypt_method", value=CRYPT_LUKS)
    return None


def _specific(opened: Image, encrypt: dict[str, Wire] | None, bitmaps: list[Wire]) -> dict[str, Wire]:
    """Return ``format-specific`` with its keys in QEMU's order."""
    data: dict[str, Wire] = {"compat": "1.1" if opened.version == 3 else "0.10"}
    data["compression-type"] = opened.compression
    if opened.version == 3:
        data["lazy-refcounts"] = bool(opened.compatible & COMPATIBLE_LAZY_REFCOUNTS)
        if bitmaps:
            data["bitmaps"] = bitmaps
    data["refcount-bits"] = opened.refcount_bits
    if opened.version == 3 and opened.data_file is not None:
        data["data-file"] = _text(opened.data_file)
    if encrypt is not None:
        data["encrypt"] = encrypt
    if opened.version == 3:
        if opened.has_data_file:
            data["data-file-raw"] = opened.data_file_raw
        data["corrupt"] = opened.corrupt
        data["extended-l2"] = opened.extended_l2
    return {"type": FORMAT, "data": data}


class _Room:
    """How much of snapshots and bitmaps can still be shown."""

    def __init__(self) -> None:
        self._left = MAX_SHOWN

    def take(self, structure: str, rows: Iterable[dict[str, Wire]]) -> Iterator[dict[str, Wire]]:
        """Yield rows as long as there is room.

        Raises:
            ImageError: ``too-large``: there is no more.
        """
        for row in rows:
            self._left -= SHOWN_ROW + sum(len(value) for value in row.values() if isinstance(value, str))
            if self._left < 0:
                raise bad("too-large", structure, "it is too large to be shown", limit=MAX_SHOWN)
            yield row


def _text(name: bytes | None) -> str | None:
    return None if name is None else name.decode("utf-8", "surrogateescape")
