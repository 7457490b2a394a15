"""Show results: the objects that JSON prints and the text that people read, as qemu-img of a given version does.

Law: whatever came out of an image is escaped before it reaches a terminal.
"""

from __future__ import annotations

from instar.cli.json import in_order
from instar.core.errors import printable
from instar.core.units import UINT64_MAX, format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from instar.core.wire import Wire
    from instar.host.check import CheckResult
    from instar.host.info import Child, ImageInfo

#: Since this version ``info`` lists the files an image consists of.
CHILDREN_SINCE = (8, 0)
#: Since this version the column of sizes in the list of snapshots has the width of the largest.
_WIDER_SIZE_SINCE = (6, 0)
#: Since this version it tells of a qcow2 image that it was not closed.
_OPEN_QCOW2_SINCE = (6, 1)


def info_object(image: ImageInfo, generation: tuple[int, int]) -> dict[str, object]:
    """Return what ``info --output=json`` prints of one image."""
    top: dict[str, object] = {
        "virtual-size": image.virtual_size,
        "filename": image.filename,
        "format": image.format,
        "actual-size": image.actual_size,
    }
    if image.has_dirty_flag:
        top["dirty-flag"] = _told_dirty(image, generation)
    if image.cluster_size is not None:
        top["cluster-size"] = image.cluster_size
    if image.encrypted:
        top["encrypted"] = True
    if image.snapshots:
        top["snapshots"] = image.snapshots
    if image.backing_filename is not None:
        top["backing-filename"] = image.backing_filename
        top["full-backing-filename"] = image.full_backing_filename
        if image.backing_format is not None:
            top["backing-filename-format"] = image.backing_format
        if image.parent_fits is False:
            top["backing-file-fits"] = False
    specific = _specific(image, generation)
    if specific is not None:
        top["format-specific"] = specific
    if generation >= CHILDREN_SINCE:
        top["children"] = [{"name": child.name, "info": _child_object(child)} for child in image.children]
    return top


def _told_dirty(image: ImageInfo, generation: tuple[int, int]) -> bool:
    return image.dirty and (image.format != "qcow2" or generation >= _OPEN_QCOW2_SINCE)


def _specific(image: ImageInfo, generation: tuple[int, int]) -> dict[str, Wire] | None:
    """Return what only this format has; of files there is such a thing for as long as they are listed."""
    return image.format_specific if image.format != "file" or generation >= CHILDREN_SINCE else None


def _child_object(child: Child) -> dict[str, object]:
    if child.children:
        return {
            "virtual-size": child.length,
            "filename": child.filename,
            "format": child.protocol,
            "actual-size": child.allocated,
            "dirty-flag": False,
            "children": [{"name": below.name, "info": _child_object(below)} for below in child.children],
        }
    data: dict[str, object] = {}
    if child.extent_size_hint:
        data["extent-size-hint"] = child.extent_size_hint
    return {
        "virtual-size": child.length,
        "filename": child.filename,
        "format": child.protocol,
        "actual-size": child.allocated,
        "dirty-flag": False,
        "children": [],
        "format-specific": {"type": "file", "data": data},
    }


def info_text(image: ImageInfo, generation: tuple[int, int]) -> str:
    """Return what ``info`` prints of one image for people."""
    return "".join(info_pieces(image, generation))


def info_pieces(image: ImageInfo, generation: tuple[int, int]) -> Iterator[str]:
    """Yield what ``info_text`` returns, line by line: of an image with many snapshots it is long."""
    for lines in _info_lines(image, generation):
        for line in lines:
            yield line + "\n"


def _info_lines(image: ImageInfo, generation: tuple[int, int]) -> Iterator[Iterable[str]]:
    lines = [
        f"image: {printable(image.filename)}",
        f"file format: {printable(image.format)}",
        f"virtual size: {format_size(image.virtual_size)} ({image.virtual_size} bytes)",
        f"disk size: {format_size(image.actual_size)}",
    ]
    if image.encrypted:
        lines.append("encrypted: yes")
    if image.cluster_size is not None:
        lines.append(f"cluster_size: {image.cluster_size}")
    if image.has_dirty_flag and _told_dirty(image, generation):
        lines.append("cleanly shut down: no")
    if image.backing_filename is not None:
        line = f"backing file: {printable(image.backing_filename)}"
        if image.full_backing_filename != image.backing_filename:
            line += f" (actual path: {printable(image.full_backing_filename or '')})"
        lines.append(line)
        if image.backing_format is not None:
            lines.append(f"backing file format: {printable(image.backing_format)}")
        if image.parent_fits is False:
            lines.append("backing file fits: no, the image was made for another one, or for an earlier state of it")
    yield lines
    if image.snapshots:
        yield ("Snapshot list:",)
        yield _snapshot_lines(image.snapshots, generation)
    data = (_specific(image, generation) or {}).get("data")
    if isinstance(data, dict) and data:
        yield ("Format specific information:",)
        yield _dump(data, 1)
    if generation >= CHILDREN_SINCE:
        for child in image.children:
            yield _child_lines(child)


def _child_lines(child: Child, path: str = "") -> list[str]:
    path = f"{path}/{child.name}"
    if child.children:
        lines = [
            f"Child node '{printable(path)}':",
            f"    image: {printable(child.filename)}",
            f"    file format: {child.protocol}",
            f"    virtual size: {format_size(child.length)} ({child.length} bytes)",
            f"    disk size: {format_size(child.allocated)}",
        ]
        return lines + [f"    {line}" for below in child.children for line in _child_lines(below, path)]
    lines = [
        f"Child node '{printable(path)}':",
        f"    filename: {printable(child.filename)}",
        f"    protocol type: {child.protocol}",
        f"    file length: {format_size(child.length)} ({child.length} bytes)",
        f"    disk size: {format_size(child.allocated)}",
    ]
    if child.extent_size_hint:
        lines += ["    Format specific information:", f"        extent size hint: {child.extent_size_hint}"]
    return lines


def _dump(value: Wire, level: int) -> Iterator[str]:
    """Yield nested values as QEMU prints its objects: dashes in keys become spaces, lists are numbered."""
    rows: list[tuple[str, object]]
    if isinstance(value, dict):
        rows = [(key.replace("-", " "), member) for key, member in in_order(value)]
    elif isinstance(value, list):
        rows = [(f"[{index}]", member) for index, member in enumerate(value)]
    else:
        return
    for key, member in rows:
        if isinstance(member, (dict, list)):
            yield f"{'    ' * level}{printable(key)}:"
            yield from _dump(member, level + 1)
        else:
            yield f"{'    ' * level}{printable(key)}: {_scalar(member)}"


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return printable(value if isinstance(value, (str, bytes)) else str(value))


def _snapshot_lines(rows: list[dict[str, Wire]], generation: tuple[int, int]) -> Iterator[str]:
    if generation >= CHILDREN_SINCE:
        yield f"{'ID':<7} {'TAG':<16} {'VM_SIZE':>8} {'DATE':>19} {'VM_CLOCK':>15} {'ICOUNT':>10}"
    else:
        yield f"{'ID':<10}{'TAG':<17}{'VM SIZE':>8}{'DATE':>20}{'VM CLOCK':>13}{'ICOUNT':>11}"
    for row in rows:
        yield _snapshot_line(row, generation)


def _snapshot_line(row: dict[str, Wire], generation: tuple[int, int]) -> str:
    """Return one line of the list, in the columns that ``bdrv_snapshot_dump`` of that version has."""

    def number(key: str) -> int:
        value = row.get(key)
        return value if isinstance(value, int) else 0

    seconds = number("vm-clock-sec")
    date = _date(number("date-sec"))
    rest = f"{seconds // 60 % 60:02d}:{seconds % 60:02d}.{number('vm-clock-nsec') // 1000000:03d}"
    # QEMU's JSON has signed numbers only; its list shows a size for what it is.
    size = format_size(number("vm-state-size") & UINT64_MAX)
    ident, tag = printable(str(row.get("id", "")), 256), printable(str(row.get("name", "")), 1024)
    count = row.get("icount")
    if generation >= CHILDREN_SINCE:
        clock, icount = f"{seconds // 3600:04d}:{rest}", "--" if count is None else str(count)
        return f"{_padded(ident, 7)} {_padded(tag, 16)} {size:>8} {date:>19} {clock:>15} {icount:>10}"
    clock, icount = f"{seconds // 3600:02d}:{rest}", "" if count is None else str(count)
    tag_width, size_width = (16, 8) if generation >= _WIDER_SIZE_SINCE else (17, 7)
    return f"{_padded(ident, 9)} {_padded(tag, tag_width)} {size:>{size_width}}{date:>20}{clock:>13}{icount:>11}"


def _padded(text: str, width: int) -> str:
    """Fill up a column on the right as C does, which counts bytes."""
    return text + " " * (width - len(text.encode("utf-8", "surrogateescape")))


def _date(seconds: int) -> str:
    import time

    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):
        return "?"


def check_object(result: CheckResult, *, details: bool) -> dict[str, object]:
    """Return what ``check --output=json`` prints; ``details`` adds instar's own."""
    top: dict[str, object] = {"check-errors": result.check_errors, "filename": result.filename, "format": result.format}
    for key in (
        "image-end-offset",
        "corruptions",
        "leaks",
        "total-clusters",
        "allocated-clusters",
        "fragmented-clusters",
        "compressed-clusters",
    ):
        value = getattr(result, key.replace("-", "_"))
        if value:
            top[key] = value
    if details:
        top["isolation"] = result.isolation
        if result.findings:
            top["findings"] = [
                {"severity": f.severity, "structure": f.structure, "detail": f.detail, "offset": f.offset}
                for f in result.findings
            ]
    return top


def check_text(result: CheckResult) -> str:
    """Return what ``check`` prints for people."""
    lines = []
    if result.clean:
        lines.append("No errors were found on the image.")
    if result.corruptions:
        lines += [
            "",
            f"{result.corruptions} errors were found on the image.",
            "Data may be corrupted, or further writes to the image may corrupt it.",
        ]
    if result.leaks:
        lines += [
            "",
            f"{result.leaks} leaked clusters were found on the image.",
            "This means waste of disk space, but no harm to data.",
        ]
    if result.check_errors:
        lines += ["", f"{result.check_errors} internal errors have occurred during the check."]
    total, allocated = result.total_clusters, result.allocated_clusters
    if total and allocated:
        fragmented, compressed = result.fragmented_clusters or 0, result.compressed_clusters or 0
        lines.append(
            f"{allocated}/{total} = {allocated * 100.0 / total:.2f}% allocated, "
            f"{fragmented * 100.0 / allocated:.2f}% fragmented, "
            f"{compressed * 100.0 / allocated:.2f}% compressed clusters"
        )
    if result.image_end_offset:
        lines.append(f"Image end offset: {result.image_end_offset}")
    return "\n".join(lines) + "\n"
