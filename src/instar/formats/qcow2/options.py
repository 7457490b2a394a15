"""What can be chosen when a qcow2 image is made, and the rules between the choices.

Law: the rules are judged in qemu-img's order, so that of two mistakes the same one is reported: values of
single options first, in the order of QEMU's ``BlockdevCreateOptionsQcow2``, then the rules between them.
"""

from __future__ import annotations

from instar.core.errors import OptionError, plain_file_hint, printable
from instar.core.options import Option, preallocation, reserved
from instar.core.units import SECTOR, UINT64_MAX, KiB, align_up, ceil_div, format_size, is_power_of_two
from instar.formats.qcow2.allocate import most_clusters, refcount_blocks
from instar.formats.qcow2.first_cluster import first_cluster
from instar.formats.qcow2.layout import Layout, check_size
from instar.formats.qcow2.ondisk import (
    COMPRESSION_NAMES,
    L1_ENTRY_SIZE,
    L2_ENTRY_SIZE,
    L2_ENTRY_SIZE_EXTENDED,
    MAX_CLUSTER_BITS,
    MAX_CLUSTER_OFFSET,
    MAX_LENGTH,
    MAX_REFCOUNT_TABLE_SIZE,
    MIN_CLUSTER_BITS,
    MIN_CLUSTER_BITS_EXTENDED_L2,
    REFCOUNT_ORDER_V2,
    REFCOUNT_TABLE_ENTRY_SIZE,
    Header,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.core.options import Settings
    from instar.core.plan import Backing, Bound, Companion

#: Every driver that QEMU 7.2 to 11.1 accepts as the recorded format of a backing file: formats, then the rest.
BACKING_FORMATS = (
    *("raw", "qcow2", "qcow", "qed", "vmdk", "vhdx", "vpc", "vdi", "parallels", "luks", "bochs", "cloop", "dmg"),
    *("vvfat", "file", "host_device", "host_cdrom", "nbd", "http", "https", "ftp", "ftps", "ssh", "nfs", "iscsi"),
    *("rbd", "gluster", "nvme", "io_uring", "nvme-io_uring", "virtio-blk-vfio-pci", "virtio-blk-vhost-user"),
    *("virtio-blk-vhost-vdpa", "null-aio", "null-co", "quorum", "replication", "throttle", "compress"),
    *("preallocate", "copy-on-read", "copy-before-write", "snapshot-access", "blkdebug", "blklogwrites"),
    *("blkreplay", "blkverify"),
)

ENCRYPTION = Option(
    "encryption", "bool", "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)"
)
ENCRYPT_FORMAT = Option(
    "encrypt.format",
    "choice",
    "Encrypt the image, format choices: 'aes', 'luks'",
    choices=("aes", "luks"),
    aliases={"qcow": "aes"},
    qapi="format",
)
KEY_SECRET = Option(
    "encrypt.key-secret",
    "str",
    "ID of secret providing qcow AES key or LUKS passphrase",
    note="Required for an encrypted image. The name of one given with --object secret.",
)
#: Their values and defaults are those of format luks, whose rows are read when an image is to be encrypted.
ENCRYPT_DETAILS = (
    KEY_SECRET,
    Option("encrypt.cipher-alg", "str", "Name of encryption cipher algorithm"),
    Option("encrypt.cipher-mode", "str", "Name of encryption cipher mode"),
    Option("encrypt.ivgen-alg", "str", "Name of IV generator algorithm"),
    Option("encrypt.ivgen-hash-alg", "str", "Name of IV generator hash algorithm"),
    Option("encrypt.hash-alg", "str", "Name of encryption hash algorithm"),
    Option("encrypt.iter-time", "num", "Time to spend in PBKDF in milliseconds"),
)
CLUSTER_SIZE = Option(
    "cluster_size",
    "size",
    "qcow2 cluster size",
    default=64 * KiB,
    shown="65536",
    note="A power of two from 512 bytes to 2 MiB. It limits the disk: 128 GiB, 8 TiB with 4 KiB, 2 PiB with 64 KiB.",
)
EXTENDED_L2 = Option(
    "extended_l2",
    "bool",
    "Extended L2 tables",
    default=False,
    shown="off",
    note="Divides a cluster into 32 subclusters that are allocated one by one. Clusters of 16 KiB or more.",
)
PREALLOCATION = preallocation(
    "metadata: tables map every cluster. falloc: and space is reserved. full: and written with zeros.",
    extension=False,
)
COMPRESSION_TYPE = Option(
    "compression_type",
    "choice",
    "Compression method used for image cluster compression",
    default="zlib",
    shown="zlib",
    choices=COMPRESSION_NAMES,
    qapi="compression-type",
    since=(5, 1),
)
KEEP_DATA_FILE = Option(
    "keep_data_file",
    "bool",
    "Assume the external data file already exists and do not overwrite it",
    since=(11, 1),
    note="Not a byte of it is changed; a file that is too short is made longer. Needs data_file_raw=on or"
    " preallocation=metadata.",
)
SIZE = Option("size", "size", "Virtual disk size", note="Rounded up to 512 bytes.")
COMPAT = Option(
    "compat",
    "choice",
    "Compatibility level (v2 [0.10] or v3 [1.1])",
    default="v3",
    choices=("v2", "v3"),
    aliases={"0.10": "v2", "1.1": "v3"},
    qapi="version",
)
BACKING_FILE = Option("backing_file", "str", "File name of a base image")
BACKING_FMT = Option(
    "backing_fmt", "choice", "Image format of the base image", choices=BACKING_FORMATS, qapi="backing-fmt"
)
DATA_FILE = Option(
    "data_file",
    "str",
    "File name of an external data file",
    note="Holds the guest's data; the image itself only tables. A relative name is seen from the working folder, here"
    " and by QEMU whenever it opens the image.",
)
DATA_FILE_RAW = Option(
    "data_file_raw",
    "bool",
    "The external data file must stay valid as a raw image",
    note="All clusters are mapped, as with preallocation=metadata. Not with a backing file.",
)
LAZY_REFCOUNTS = Option("lazy_refcounts", "bool", "Postpone refcount updates", default=False, shown="off")
REFCOUNT_BITS = Option(
    "refcount_bits",
    "num",
    "Width of a reference count entry in bits",
    default=1 << REFCOUNT_ORDER_V2,
    shown="16",
    note="1, 2, 4, 8, 16, 32 or 64.",
)

CREATE: tuple[Option, ...] = (
    *(ENCRYPTION, ENCRYPT_FORMAT, *ENCRYPT_DETAILS, CLUSTER_SIZE, EXTENDED_L2, PREALLOCATION, COMPRESSION_TYPE),
    *(KEEP_DATA_FILE, SIZE, COMPAT, BACKING_FILE, BACKING_FMT, DATA_FILE, DATA_FILE_RAW, LAZY_REFCOUNTS),
    REFCOUNT_BITS,
)


def resolve(size: int, given: Settings, backing: Backing | None) -> dict[str, int | bool | str]:
    """Judge the choices for a disk of ``size`` bytes and fill in the rest.

    Returns:
        ``version`` (2 or 3), ``cluster_size``, ``refcount_bits``, ``extended_l2``, ``lazy_refcounts``,
        ``compression_type``, ``preallocation``; with an external data file also ``data_file`` (its name, as it is
        recorded), ``data_file_raw`` and ``keep_data_file``; with encryption what ``encryption.choose`` returns, and
        ``encrypt.key-secret``.

    Raises:
        OptionError: ``bad-choice``, ``secret-missing``, ``image-too-large``, ``unknown-protocol`` or a rule's own
            code, ``qcow2-…``.
    """
    if given.flag(KEEP_DATA_FILE) and DATA_FILE.name not in given.values:
        raise OptionError(
            "qcow2-keep-data-file-alone",
            "option 'keep_data_file' has no effect without 'data_file'",
            key=KEEP_DATA_FILE.name,
        )
    compat = COMPAT.pick(given.text(COMPAT))
    backing_fmt = backing.format if backing is not None else given.text(BACKING_FMT)
    if backing_fmt is not None:
        BACKING_FMT.pick(backing_fmt)
    encryption = _encryption(given)
    chosen: dict[str, int | bool | str] = {
        **encryption,
        "version": int(compat[1:]),
        "cluster_size": given.number(CLUSTER_SIZE),
        "refcount_bits": given.number(REFCOUNT_BITS),
        "extended_l2": given.flag(EXTENDED_L2),
        "lazy_refcounts": given.flag(LAZY_REFCOUNTS),
        "preallocation": PREALLOCATION.pick(given.text(PREALLOCATION)),
        "compression_type": COMPRESSION_TYPE.pick(given.text(COMPRESSION_TYPE)),
    }
    if given.flag(KEEP_DATA_FILE):
        _keep_data_file(given, chosen)
    _clusters(chosen)
    _backing(chosen, backing is not None or BACKING_FILE.name in given.values, backing_fmt)
    _refcounts(chosen)
    _data_file(given, chosen, backing is not None or BACKING_FILE.name in given.values)
    if chosen["compression_type"] != "zlib":
        _needs_v3(chosen, COMPRESSION_TYPE, "qcow2-compression-type-version")
    header = Header(
        version=int(chosen["version"]),
        cluster_bits=int(chosen["cluster_size"]).bit_length() - 1,
        size=0,
        l1_size=0,
        l1_table_offset=0,
        refcount_table_offset=0,
        refcount_table_clusters=0,
    )
    if DATA_FILE.name in chosen:
        first_cluster(header, chosen)
    _size(size, chosen)
    if backing is not None:
        first_cluster(header, chosen, backing_file=backing.name, backing_fmt=backing.format)
    if encryption:
        from instar.formats.luks.options import require_secret

        chosen[KEY_SECRET.name] = require_secret(given, KEY_SECRET)
    return chosen


def bounds(size: int, options: Mapping[str, int | bool | str], backing: Backing | None) -> tuple[Bound, ...]:
    """Return what each file of an image can need at most; ``options`` are ``resolve``'s."""
    from instar.core.plan import Bound

    size, cluster_size = align_up(size, SECTOR), int(options["cluster_size"])
    external, preallocated = DATA_FILE.name in options, options[PREALLOCATION.name] != "off"
    data = ceil_div(size, cluster_size)
    tables = ceil_div(data, cluster_size // (L2_ENTRY_SIZE_EXTENDED if options["extended_l2"] else L2_ENTRY_SIZE))
    crypto = 0
    if options.get(ENCRYPT_FORMAT.name) == "luks":
        from instar.formats.luks.options import header_size

        crypto = align_up(header_size(options, "encrypt."), cluster_size)
    counted = ceil_div(tables * L1_ENTRY_SIZE, cluster_size) + crypto // cluster_size
    if preallocated:
        counted += tables + (0 if external else data)
    order = int(options["refcount_bits"]).bit_length() - 1
    length = most_clusters(counted, cluster_size, order, exact=preallocated and not external) * cluster_size
    guest = data * cluster_size
    modes = reserved(options, guest)
    data_file = (Bound(guest, modes),) if external else ()
    modes = {} if external else modes
    # The encryption's header takes storage in any case.
    return (Bound(length, {**modes, "falloc": modes.get("falloc", 0) + crypto}), *data_file)


def companions(size: int, options: Mapping[str, int | bool | str], file_name: str) -> tuple[Companion, ...]:
    """Name the further file of an image: the external data file, if it has one.

    Args:
        size: of the disk; not used.
        options: what ``resolve`` returned.
        file_name: of the image; not used.
    """
    if DATA_FILE.name not in options:
        return ()
    from instar.core.plan import Companion

    name, keep = str(options[DATA_FILE.name]), bool(options[KEEP_DATA_FILE.name])
    return (Companion(name, keep=keep, from_cwd=True),)


def _encryption(given: Settings) -> dict[str, int | bool | str]:
    """Judge what is said about encryption, but for the passphrase."""
    format = given.text(ENCRYPT_FORMAT)
    if given.flag(ENCRYPTION):
        if format is not None:
            raise OptionError(
                "qcow2-encryption-twice",
                "give either 'encrypt.format' or its alias 'encryption', not both",
                key=ENCRYPTION.name,
            )
        format = "aes"
    if format is None:
        if details := [row for row in ENCRYPT_DETAILS if row.name in given.values]:
            raise OptionError(
                "qcow2-encrypt-format-missing",
                f"option '{details[0].name}' has no effect without 'encrypt.format'; add encrypt.format=luks",
                key=details[0].name,
            )
        return {}
    format = ENCRYPT_FORMAT.pick(format)
    from instar.formats.qcow2.encryption import choose

    return choose(format, given)


def _needs_v3(chosen: dict[str, int | bool | str], row: Option, code: str) -> None:
    if chosen["version"] == 2:
        raise OptionError(
            code,
            f"option '{row.name}' needs version 3 of the format, and this is compat=v2; use compat=v3",
            key=row.name,
            value=chosen[row.name],
        )


def _clusters(chosen: dict[str, int | bool | str]) -> None:
    """Judge the size of a cluster, and of its parts."""
    extended = chosen["extended_l2"]
    size = int(chosen["cluster_size"])
    if extended:
        _needs_v3(chosen, EXTENDED_L2, "qcow2-extended-l2-version")
    if not (1 << MIN_CLUSTER_BITS <= size <= 1 << MAX_CLUSTER_BITS and is_power_of_two(size)):
        raise OptionError(
            "qcow2-cluster-size",
            f"option 'cluster_size' is a power of two from {1 << MIN_CLUSTER_BITS} bytes"
            f" to {format_size(1 << MAX_CLUSTER_BITS)}, not {size} bytes",
            key=CLUSTER_SIZE.name,
            value=size,
        )
    if extended and size < 1 << MIN_CLUSTER_BITS_EXTENDED_L2:
        raise OptionError(
            "qcow2-extended-l2-cluster-size",
            f"option 'extended_l2' needs clusters of {1 << MIN_CLUSTER_BITS_EXTENDED_L2} bytes or more, not {size}",
            key=EXTENDED_L2.name,
            value=size,
            limit=1 << MIN_CLUSTER_BITS_EXTENDED_L2,
        )


def _backing(chosen: dict[str, int | bool | str], named: bool, backing_fmt: str | None) -> None:
    """Judge what is said about a backing file."""
    if named and chosen["preallocation"] != "off" and not chosen["extended_l2"]:
        raise OptionError(
            "qcow2-backing-preallocation",
            "preallocated clusters would hide the backing file;"
            " use extended_l2=on, with which they need not, or preallocation=off",
            key=PREALLOCATION.name,
            value=chosen["preallocation"],
        )
    if backing_fmt is not None and not named:
        raise OptionError(
            "qcow2-backing-format-alone",
            "option 'backing_fmt' has no effect without a backing file; name it with -b",
            key=BACKING_FMT.name,
            value=backing_fmt,
        )


def _refcounts(chosen: dict[str, int | bool | str]) -> None:
    """Judge how refcounts are stored."""
    bits = int(chosen["refcount_bits"])
    if chosen["lazy_refcounts"]:
        _needs_v3(chosen, LAZY_REFCOUNTS, "qcow2-lazy-refcounts-version")
    if bits > 64 or not is_power_of_two(bits):
        raise OptionError(
            "qcow2-refcount-bits",
            f"option 'refcount_bits' is 1, 2, 4, 8, 16, 32 or 64, not {bits}",
            key=REFCOUNT_BITS.name,
            value=bits,
        )
    if bits != 1 << REFCOUNT_ORDER_V2:
        _needs_v3(chosen, REFCOUNT_BITS, "qcow2-refcount-bits-version")


def _keep_data_file(given: Settings, chosen: dict[str, int | bool | str]) -> None:
    """Refuse to keep a data file of which nothing would be left, or nothing be seen."""
    mode = str(chosen["preallocation"])
    if mode in ("falloc", "full"):
        raise OptionError(
            "qcow2-keep-data-file-overwritten",
            f"preallocation={mode} would overwrite the data file, which keep_data_file=on keeps;"
            " use preallocation=metadata",
            key=KEEP_DATA_FILE.name,
            value=mode,
        )
    if mode == "off" and not given.flag(DATA_FILE_RAW):
        raise OptionError(
            "qcow2-keep-data-file-unmapped",
            "the new image would not show what is in the data file that keep_data_file=on keeps;"
            " add data_file_raw=on or preallocation=metadata",
            key=KEEP_DATA_FILE.name,
        )


def _data_file(given: Settings, chosen: dict[str, int | bool | str], backed: bool) -> None:
    """Judge what is said about an external data file, and note it; a raw one has all its clusters mapped."""
    name, raw = given.text(DATA_FILE), given.flag(DATA_FILE_RAW)
    if raw and name is None:
        raise OptionError(
            "qcow2-data-file-raw-alone",
            "option 'data_file_raw' has no effect without 'data_file'",
            key=DATA_FILE_RAW.name,
        )
    if raw and backed:
        raise OptionError(
            "qcow2-data-file-raw-backing",
            "a raw data file shows nothing of a backing file; leave out data_file_raw=on or the backing file",
            key=DATA_FILE_RAW.name,
        )
    if name is None:
        return
    if raw and chosen["preallocation"] == "off":
        chosen["preallocation"] = "metadata"
    chosen["data_file"] = _recorded(name)
    _needs_v3(chosen, DATA_FILE, "qcow2-data-file-version")
    chosen["data_file_raw"] = raw
    chosen["keep_data_file"] = given.flag(KEEP_DATA_FILE)


def _recorded(name: str) -> str:
    """Return the name of a data file as an image records it: without ``file:``, and never like a protocol's.

    Raises:
        OptionError: ``unknown-protocol``.
    """
    plain = name.removeprefix("file:")
    head, colon, _ = plain.partition(":")
    if not colon or "/" in head:
        return plain
    if plain != name:
        return f"./{plain}"
    raise OptionError(
        "unknown-protocol",
        f"data file '{printable(name)}' names protocol '{printable(head)}', and instar makes plain files"
        + plain_file_hint(name),
        key=DATA_FILE.name,
        protocol=head,
    )


def _size(size: int, chosen: dict[str, int | bool | str]) -> None:
    """Refuse disks that the tables cannot map, and images whose clusters they cannot count."""
    rounded = align_up(size, SECTOR)
    if rounded > MAX_LENGTH:
        code = "qcow2-size-negative" if rounded >= 1 << 63 else "qcow2-size-offset"
        # From 2^64 - 511 on qemu-img wraps around and makes a disk of size 0; here it is too large like the rest.
        raise OptionError(
            code,
            f"a disk has at most {MAX_LENGTH} bytes, not {size}",
            key=SIZE.name,
            value=rounded & UINT64_MAX,
            limit=MAX_LENGTH,
        )
    cluster_size, extended = int(chosen["cluster_size"]), bool(chosen["extended_l2"])
    check_size(rounded, cluster_size, extended_l2=extended)
    if chosen["preallocation"] == "off" or DATA_FILE.name in chosen:
        return
    # Refcounts of all clusters are written. Only where that comes near the limit is it worth to lay them out.
    order = int(chosen["refcount_bits"]).bit_length() - 1
    blocks = refcount_blocks(rounded // cluster_size, cluster_size, order, spare=False)
    if blocks * REFCOUNT_TABLE_ENTRY_SIZE > MAX_REFCOUNT_TABLE_SIZE // 4 or rounded > MAX_CLUSTER_OFFSET // 4:
        Layout(rounded, cluster_size, order, extended_l2=extended, preallocation=str(chosen["preallocation"]))
