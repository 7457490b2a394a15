"""``info``: say what an image is."""

from __future__ import annotations

from instar.cli.argv import Switch
from instar.cli.commands.shared import (
    ALLOW,
    COMMON,
    HELP,
    OBJECT,
    OUTPUT,
    Stop,
    judge_cache,
    look,
    one_image,
    read,
    report,
    switch_lines,
    wants_json,
)
from instar.cli.session import complain, say, say_all
from instar.core.errors import InstarError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.cli.argv import Parsed
    from instar.cli.session import Session
    from instar.host.info import ImageInfo

_SIGN = 1 << 31

SWITCHES = (
    Switch("format", "f", "format", "FMT", "the image's format; found out if not given"),
    OUTPUT,
    Switch("backing-chain", "", "backing-chain", "", "go on with the backing file, and its backing file, and so on"),
    Switch("force-share", "U", "force-share", "", "look also at an image that another program has open for writing"),
    OBJECT,
    ALLOW,
    *COMMON,
    HELP,
)


def help_text() -> str:
    """Return the help of the command."""
    return f"""usage: instar info [OPTION]... FILE

Say what FILE is: format, sizes, backing file, snapshots, and what the format has beside.
Its bytes are read in a sealed cell. Files that it names are opened only if they are
regular files in its own folder or below, or below a folder given with --allow-path.

{switch_lines(SWITCHES)}

Exit code: 0, or 1 if the image cannot be described; of a chain what could be is printed.
Example: instar info --output=json disk.qcow2
"""


def run(session: Session, argv: list[str]) -> int:
    """Run the command and return its exit code."""
    try:
        parsed = read(session, "info", SWITCHES, argv, help_text)
        path = one_image(session, "info", parsed)
        json = wants_json(session, "info", parsed)
        judge_cache(parsed, "")
        if parsed.has("limits"):
            complain("qemu-img: --limits is not supported by instar, which has no block layer")
            return 1
    except Stop as stop:
        return stop.code
    chain = parsed.has("backing-chain")
    try:
        images = _look(session, parsed, path, chain=chain)
    except InstarError as error:
        from instar.cli.messages import inspect_words

        if error.described and not session.as_qemu:  # qemu-img prints all of a chain or nothing
            _show(session, list(error.described), json=json, chain=True)
        return report(session, error, lambda e: inspect_words(e, path, session.generation), json=json)
    session.explain()
    _show(session, images, json=json, chain=chain)
    return 0


def _look(session: Session, parsed: Parsed, path: str, *, chain: bool) -> list[ImageInfo]:
    """Return what is to be shown: one image, or all of a chain.

    Raises:
        InstarError: as ``shared.look``.
    """
    from instar.host.info import info, info_chain

    if chain:
        source, images = look(session, parsed, path, info_chain)
    else:
        source, image = look(session, parsed, path, info)
        images = [image]
    if source.protocol:
        images[0].seen_as_file()
    if session.as_qemu:
        images[0].call(source.name)
        for image in images:
            image.cluster_size = _as_int(image.cluster_size)
    if source.view is not None:
        from instar.cli.nodes import name_nodes

        name_nodes(images[0], source.secret if session.as_qemu else None)
    return images


def _show(session: Session, images: Sequence[ImageInfo], *, json: bool, chain: bool) -> None:
    """Print images: of a chain a list, also if only one of it could be described."""
    for image in images:
        if image.extra.get("inconsistent_bitmaps") is True:
            _warn_of_bitmaps(session, image)
    if not session.as_qemu and any(image.format in ("raw", "vpc") for image in images):
        from instar.cli.hints import of_image

        for note in (note for image in images for note in of_image(image)):
            complain(f"instar: note: {note}")
    if json:
        from instar.cli.json import pieces
        from instar.cli.render import info_object

        objects = [info_object(image, session.generation) for image in images]
        if not session.as_qemu:
            for image, shown in zip(images, objects, strict=True):
                shown["isolation"] = image.isolation
        say_all(pieces(objects if chain else objects[0]))
        say("\n")
    else:
        from instar.cli.render import info_pieces

        for index, image in enumerate(images):
            if index:
                say("\n")
            say_all(info_pieces(image, session.generation))


def _as_int(size: int | None) -> int | None:
    """Return a size as C keeps it in an ``int``, which QEMU does with the size of a cluster."""
    return None if size is None else (size + _SIGN) % (2 * _SIGN) - _SIGN


def _warn_of_bitmaps(session: Session, image: ImageInfo) -> None:
    if not session.as_qemu:
        detail = "a program that does not know bitmaps wrote to it: its bitmaps are stale, their clusters lost"
        complain(f"instar: warning: {printable(image.filename)}: {detail}")
        return
    from instar.cli.messages.qcow2 import FINDINGS

    complain(FINDINGS["qcow2-bitmaps-stale" if image.extra.get("version") == 3 else "qcow2-bitmaps-in-version-2"])
