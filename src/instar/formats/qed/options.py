"""What can be chosen when a QED image is made, and the rules between the choices.

Law: the rules are judged in qemu-img's order, so that of two mistakes the same one is reported. What would be
written and then could not be opened again by any QEMU is refused, save where that is qemu-img's own default.
"""

from __future__ import annotations

from instar.core.drivers import DRIVERS
from instar.core.errors import OptionError
from instar.core.options import Option
from instar.core.units import INT64_MAX, SECTOR, align_up, format_size, is_power_of_two
from instar.formats.qed.ondisk import (
    DEFAULT_CLUSTER,
    DEFAULT_TABLE,
    FORMAT,
    MAX_BACKING_NAME,
    MAX_CLUSTER,
    MAX_TABLE,
    MIN_CLUSTER,
    MIN_TABLE,
    Header,
    max_image_size,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.core.options import Settings
    from instar.core.plan import Backing, Bound

SIZE = Option("size", "size", "Virtual disk size", note="Rounded up to 512 bytes.")
BACKING_FILE = Option("backing_file", "str", "File name of a base image")
BACKING_FMT = Option(
    "backing_fmt",
    "choice",
    "Image format of the base image",
    choices=DRIVERS,
    qapi="backing-fmt",
    note="Only whether it is raw is recorded.",
)
CLUSTER_SIZE = Option(
    "cluster_size",
    "size",
    "Cluster size (in bytes)",
    default=DEFAULT_CLUSTER,
    shown=str(DEFAULT_CLUSTER),
    note="A power of two from 4 KiB to 64 MiB. With table_size it limits the disk: 64 TiB by default.",
)
TABLE_SIZE = Option(
    "table_size",
    "size",
    "L1/L2 table size (in clusters)",
    note="4 if not given; 1, 2, 4, 8 or 16. No version of QEMU opens an image whose tables have 1 cluster.",
)

CREATE: tuple[Option, ...] = (SIZE, BACKING_FILE, BACKING_FMT, CLUSTER_SIZE, TABLE_SIZE)


def resolve(size: int, given: Settings, backing: Backing | None) -> dict[str, int | bool | str]:
    """Judge the choices for a disk of ``size`` bytes and fill in the rest.

    Returns:
        ``cluster_size`` in bytes, ``table_size`` in clusters.

    Raises:
        OptionError: ``bad-choice``, ``qed-table-size-number``, ``qed-cluster-size``, ``qed-table-size``, ``qed-size``,
            ``qed-backing-name-length``.
    """
    format = backing.format if backing is not None else given.text(BACKING_FMT)
    if format is not None:
        BACKING_FMT.pick(format)
    cluster_size = given.number(CLUSTER_SIZE)
    table_size = given.number(TABLE_SIZE) if TABLE_SIZE.name in given.values else DEFAULT_TABLE
    if table_size > INT64_MAX:
        raise OptionError(
            "qed-table-size-number",
            f"option 'table_size' is a number of clusters, and {table_size} is too large",
            key=TABLE_SIZE.name,
            value=table_size,
        )
    if not (MIN_CLUSTER <= cluster_size <= MAX_CLUSTER and is_power_of_two(cluster_size)):
        raise OptionError(
            "qed-cluster-size",
            f"option 'cluster_size' is a power of two from {format_size(MIN_CLUSTER)} to {format_size(MAX_CLUSTER)},"
            f" not {cluster_size} bytes",
            key=CLUSTER_SIZE.name,
            value=cluster_size,
        )
    if not (MIN_TABLE <= table_size <= MAX_TABLE and is_power_of_two(table_size)):
        raise OptionError(
            "qed-table-size",
            f"option 'table_size' is 1, 2, 4, 8 or 16 (clusters), not {table_size}",
            key=TABLE_SIZE.name,
            value=table_size,
        )
    _size(size, cluster_size, table_size)
    if backing is not None:
        _backing_name(backing.name, cluster_size)
    return {"cluster_size": cluster_size, "table_size": table_size}


def bounds(size: int, options: Mapping[str, int | bool | str], backing: Backing | None) -> tuple[Bound, ...]:
    """Return what each file of an image can need at most; ``options`` are ``resolve``'s."""
    from instar.core.plan import Bound

    return (Bound(int(options["cluster_size"]) * (1 + int(options["table_size"]))),)


def _size(size: int, cluster_size: int, table_size: int) -> None:
    """Refuse a disk that the tables cannot map."""
    limit = max_image_size(cluster_size, table_size)
    # From 2^64 - 511 on qemu-img wraps around and makes a disk of size 0; here it is too large like the rest.
    if align_up(size, SECTOR) <= limit:
        return
    if limit:
        words = f"tables of {table_size} clusters of {cluster_size} bytes map at most {limit} bytes, not {size}"
    else:
        words = (
            f"QEMU opens no disk with tables of {table_size} clusters of {cluster_size} bytes: what they could map"
            " does not fit into its 64 bits; use smaller ones"
        )
    raise OptionError("qed-size", words, key=SIZE.name, value=size, limit=limit, format=FORMAT)


def _backing_name(name: str, cluster_size: int) -> None:
    """Refuse a name that does not fit behind the header, or that QEMU would not read."""
    length = len(name.encode("utf-8", "surrogateescape"))
    limit = min(cluster_size - Header.SIZE, MAX_BACKING_NAME)
    if length > limit:
        raise OptionError(
            "qed-backing-name-length",
            f"the name of the backing file has {length} bytes; with clusters of {cluster_size} bytes at most {limit}"
            " can be recorded",
            key=BACKING_FILE.name,
            value=length,
            limit=limit,
        )
