"""Writes the first cluster of an image: header, header extensions, backing file name.

Law: the extensions stand in QEMU's order, and the name follows them without a gap.
"""

from __future__ import annotations

from instar.core.errors import OptionError
from instar.core.units import align_up
from instar.formats.qcow2.ondisk import (
    AUTOCLEAR_DATA_FILE_RAW,
    COMPATIBLE_LAZY_REFCOUNTS,
    COMPRESSION_NAMES,
    EXTENSION_ALIGNMENT,
    EXTENSION_BACKING_FORMAT,
    EXTENSION_CRYPTO_HEADER,
    EXTENSION_DATA_FILE,
    EXTENSION_END,
    EXTENSION_FEATURE_NAMES,
    FEATURE_NAMES,
    INCOMPATIBLE_COMPRESSION,
    INCOMPATIBLE_DATA_FILE,
    INCOMPATIBLE_EXTENDED_L2,
    MAX_BACKING_FORMAT,
    MAX_BACKING_NAME,
    MAX_CLUSTER_WITHOUT_FEATURE_NAMES,
    CryptoHeaderExtension,
    Extension,
    FeatureName,
    Header,
    HeaderAdditional,
    HeaderV3,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def extension(type: int, data: bytes) -> bytes:
    """Return one header extension, padded."""
    padded = data.ljust(align_up(len(data), EXTENSION_ALIGNMENT), b"\0")
    return Extension(type=type, length=len(data)).pack() + padded


def first_cluster(
    header: Header,
    options: Mapping[str, int | bool | str],
    *,
    backing_file: str | None = None,
    backing_fmt: str | None = None,
    crypto_header: tuple[int, int] | None = None,
) -> bytes:
    """Return the bytes of the first cluster, up to the last that is not padding.

    Args:
        header: all fields but those about the backing file, which are set here.
        options: as ``options.resolve`` gives them.
        backing_file: name of the backing file, if there is one.
        backing_fmt: format of the backing file; QEMU stores at most ``MAX_BACKING_FORMAT`` bytes of it.
        crypto_header: offset and length in bytes of the LUKS header, if there is one.

    Raises:
        OptionError: ``qcow2-backing-name-length``, ``qcow2-backing-name-space``, ``qcow2-data-file-space``.
    """
    data_file = options.get("data_file")
    size = 1 << header.cluster_bits
    parts = []
    if header.version >= 3:
        compression = COMPRESSION_NAMES.index(str(options["compression_type"]))
        incompatible = INCOMPATIBLE_COMPRESSION if compression else 0
        incompatible |= INCOMPATIBLE_EXTENDED_L2 if options["extended_l2"] else 0
        incompatible |= 0 if data_file is None else INCOMPATIBLE_DATA_FILE
        parts = [
            HeaderV3(
                incompatible_features=incompatible,
                compatible_features=COMPATIBLE_LAZY_REFCOUNTS if options["lazy_refcounts"] else 0,
                autoclear_features=AUTOCLEAR_DATA_FILE_RAW if options.get("data_file_raw") else 0,
                refcount_order=int(options["refcount_bits"]).bit_length() - 1,
            ).pack(),
            HeaderAdditional(compression_type=compression).pack(),
        ]
    if backing_fmt is not None:
        parts.append(extension(EXTENSION_BACKING_FORMAT, _encode(backing_fmt)[:MAX_BACKING_FORMAT]))
    if data_file is not None:
        parts.append(extension(EXTENSION_DATA_FILE, _encode(str(data_file))))
    if crypto_header is not None:
        offset, length = crypto_header
        parts.append(extension(EXTENSION_CRYPTO_HEADER, CryptoHeaderExtension(offset=offset, length=length).pack()))
    if header.version >= 3 and size > MAX_CLUSTER_WITHOUT_FEATURE_NAMES:
        names = b"".join(FeatureName(type=type, bit=bit, name=name).pack() for type, bit, name in FEATURE_NAMES)
        parts.append(extension(EXTENSION_FEATURE_NAMES, names))
    parts.append(extension(EXTENSION_END, b""))
    body = b"".join(parts)
    if data_file is not None and backing_file is None and Header.SIZE + len(body) > size:
        raise OptionError(
            "qcow2-data-file-space",
            f"the name of the data file has {len(_encode(str(data_file)))} bytes, and the first cluster ({size} bytes)"
            " has no room for it; use a larger cluster size or a shorter name",
            key="data_file",
            value=data_file,
            limit=size,
        )
    if backing_file is not None:
        name = _encode(backing_file)
        room = size - Header.SIZE - len(body)
        if len(name) > MAX_BACKING_NAME:
            raise _name_error("qcow2-backing-name-length", name, backing_file, backing_fmt, MAX_BACKING_NAME)
        if len(name) > room:
            raise _name_error("qcow2-backing-name-space", name, backing_file, backing_fmt, room)
        header = header.replace(backing_file_offset=Header.SIZE + len(body), backing_file_size=len(name))
        body += name
    return header.pack() + body


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _name_error(code: str, name: bytes, backing_file: str, backing_fmt: str | None, limit: int) -> OptionError:
    where = "the first cluster has room for" if code.endswith("space") else "qcow2 stores"
    return OptionError(
        code,
        f"the name of the backing file has {len(name)} bytes; {where} at most {limit}",
        key="backing_file",
        value=backing_file,
        format=backing_fmt,
        limit=limit,
    )
