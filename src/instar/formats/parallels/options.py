"""What can be chosen when a Parallels image is made, and the rules between the choices, in qemu-img's order."""

from __future__ import annotations

from instar.core.errors import OptionError
from instar.core.options import Option, preallocation, reserved
from instar.core.units import align_up, ceil_div
from instar.formats.parallels.ondisk import DEFAULT_CLUSTER, FORMAT, MAX_BAT_ENTRIES, MAX_CLUSTER, SECTOR, Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.core.options import Settings
    from instar.core.plan import Backing, Bound

SIZE = Option("size", "size", "Virtual disk size", note="Up to 536,870,911 clusters. Rounded up to 512 bytes.")
CLUSTER_SIZE = Option(
    "cluster_size",
    "size",
    "Parallels image cluster size",
    default=DEFAULT_CLUSTER,
    shown=str(DEFAULT_CLUSTER),
    note="512 bytes to 2143297024, rounded up to a multiple of 512",
)
PREALLOCATION = preallocation(
    "metadata: all clusters have their places and take no storage yet; falloc reserves it; full makes sure that"
    " it is zero as well.",
)

CREATE: tuple[Option, ...] = (SIZE, CLUSTER_SIZE, PREALLOCATION)


def resolve(size: int, given: Settings, backing: Backing | None) -> dict[str, int | bool | str]:
    """Judge the choices for a disk of ``size`` bytes and fill in the rest.

    Returns:
        ``cluster_size`` and ``preallocation``.

    Raises:
        OptionError: ``bad-choice``, ``parallels-cluster-size``, ``parallels-size``, ``image-too-large``.
    """
    preallocation = PREALLOCATION.pick(given.values.get(PREALLOCATION.name))
    asked = given.number(CLUSTER_SIZE)
    cluster_size = align_up(asked, SECTOR)
    # To QEMU it is a number of 64 bits, which rounding up may turn into 0.
    if not cluster_size or cluster_size == 1 << 64:
        raise OptionError(
            "parallels-size",
            f"option 'cluster_size' is 512 bytes to {MAX_CLUSTER}, not {asked}",
            key=CLUSTER_SIZE.name,
            value=asked,
        )
    if cluster_size > MAX_CLUSTER:
        raise OptionError(
            "parallels-cluster-size",
            f"option 'cluster_size' is at most {MAX_CLUSTER} bytes, not {asked}",
            key=CLUSTER_SIZE.name,
            value=asked,
            limit=MAX_CLUSTER,
        )
    size = align_up(size, SECTOR)
    if size >= cluster_size << 32:
        raise OptionError(
            "parallels-size",
            f"a disk of {size} bytes has too many clusters of {cluster_size} bytes; choose a larger cluster_size",
            key=SIZE.name,
            value=size,
        )
    if ceil_div(size, cluster_size) > MAX_BAT_ENTRIES:
        raise OptionError(
            "image-too-large",
            f"a disk of {size} bytes has {ceil_div(size, cluster_size)} clusters of {cluster_size} bytes,"
            f" at most {MAX_BAT_ENTRIES} can be used; choose a larger cluster_size",
            format=FORMAT,
            value=size,
            limit=MAX_BAT_ENTRIES * cluster_size,
        )
    return {"cluster_size": cluster_size, "preallocation": preallocation}


def bounds(size: int, options: Mapping[str, int | bool | str], backing: Backing | None) -> tuple[Bound, ...]:
    """Return what each file of an image can need at most; ``options`` are ``resolve``'s."""
    from instar.core.plan import Bound

    cluster, mode = int(options["cluster_size"]), options["preallocation"]
    entries = ceil_div(size, cluster)
    tables = align_up(Header.SIZE + 4 * entries, cluster)
    data = 0 if mode == "off" else entries * cluster
    # The table's space is reserved in any case.
    modes = {"full": tables, **reserved(options, data)}
    if mode == "full":
        modes["full"] += tables
    return (Bound(tables + data, modes),)
