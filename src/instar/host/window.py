"""Windows into a file: QEMU's driver ``raw`` with ``offset`` and ``size``, one on another, the first on a plain file.

Law: text and numbers only, nothing is opened here. A window is judged against the length of what it lies in, as that
was when it was opened; the bounds go into the grant, so that a cell sees the window and nothing else.
"""

from __future__ import annotations

from instar.core.errors import OptionError, printable
from instar.core.units import INT64_MAX, SECTOR
from instar.host.names import Source, as_source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from instar.core.image import ImageFacts
    from instar.core.qjson import Json
    from instar.host.files import OpenFile


class Window:
    """A part of a file, which is accepted wherever the path of an image is: a disk inside of an archive, for example.

    Args:
        path: the file, as anywhere; another window, to be seen from the start of that.
        offset: where the window begins, in bytes.
        size: how long it is, in bytes; ``None`` for all that follows.

    Raises:
        OptionError: ``window-value``, a number that none of these can be. Whether the window lies in the file is
            judged when it is used.
    """

    __slots__ = ("offset", "path", "size")

    def __init__(self, path: str | Source | Window, offset: int = 0, size: int | None = None) -> None:
        for name, value in (("offset", offset), ("size", size)):
            if value is None and name == "size":
                continue
            if type(value) is not int or not 0 <= value <= INT64_MAX:
                raise OptionError(
                    "window-value", f"a window's {name} is a whole number from 0 to 2^63 - 1, not {value!r}", key=name
                )
        self.path = path
        self.offset = offset
        self.size = size

    def as_source(self) -> Source:
        """Return the window as the operations take it."""
        source = as_source(self.path)
        if source.protocol or (source.view is not None and source.view.own is not None):
            raise OptionError("window-value", "a window lies in a file, or in another window", key="path")
        given: dict[str, Json] = {"offset": self.offset}
        if self.size is not None:
            given["size"] = self.size
        layer = Layer(given, self.offset, self.size, sectors=False)
        below = () if source.view is None else source.view.below
        return Source(source.path, source.format, name=source.name, view=View((*below, layer)))

    def as_name(self) -> str:
        """Return the name by which QEMU opens what lies in the window, ``json:{…}``.

        Raises:
            OptionError: ``window-alignment``, QEMU knows sizes of whole sectors only; ``window-value``, the path is no
                text that JSON can hold.
        """
        import json

        if self.size is not None and self.size % SECTOR:
            raise _unaligned(self.size)
        source = self.as_source()
        tree: dict[str, object] = {"driver": "file", "filename": source.path}
        for layer in source.view.below if source.view is not None else ():
            tree = {"driver": "raw", **layer.given, "file": tree}
        name = "json:" + json.dumps({"file": tree}, ensure_ascii=False)
        try:
            name.encode()
        except UnicodeEncodeError:
            raise OptionError("window-value", "the path of the window's file is not UTF-8", key="path") from None
        return name

    def __repr__(self) -> str:
        return f"Window({self.path!r}, offset={self.offset}, size={self.size})"


class Layer:
    """One node of driver ``raw``.

    Attributes:
        given: its options, as they were given.
        offset, size: bytes; ``None`` for no end but that of what is below.
        wrong: what is wrong with these two.
        sectors: the size has to be a multiple of 512, as QEMU wants it.
        rest: that it has an option which there is not.
        warnings: sizes whose notation is discouraged.
    """

    __slots__ = ("given", "offset", "rest", "sectors", "size", "warnings", "wrong")

    def __init__(
        self,
        given: Mapping[str, Json],
        offset: int = 0,
        size: int | None = None,
        *,
        sectors: bool = True,
        wrong: OptionError | None = None,
        rest: OptionError | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.given = dict(given)
        self.offset = offset
        self.size = size
        self.sectors = sectors
        self.wrong = wrong
        self.rest = rest
        self.warnings = warnings


class View:
    """How an image lies in its file, and what is to be judged only when that is open, in QEMU's order.

    Attributes:
        below: the nodes between file and image, from the file up.
        own: the image itself is such a node.
        probed: it is one if its bytes, all of them, turn out to be of no format.
        driver: what the file is said to be, ``file`` or ``host_device``; ``None`` for either.
        rest: judges the options of file and image: called without a format when the file is open, and then with that
            of the image.
        warnings: what was remarkable on the way.
    """

    __slots__ = ("below", "driver", "own", "probed", "rest", "warnings")

    def __init__(
        self,
        below: tuple[Layer, ...] = (),
        own: Layer | None = None,
        *,
        probed: bool = False,
        rest: Callable[[str | None], None] | None = None,
        driver: str | None = None,
    ) -> None:
        self.below = below
        self.own = own
        self.probed = probed
        self.driver = driver
        self.rest = rest
        self.warnings: list[str] = []

    def narrow(self, image: OpenFile) -> None:
        """Have an open file end at the bounds of the window.

        Raises:
            OptionError: ``window-offset``, ``window-size``, ``window-alignment``, or what else is wrong in a layer;
                ``file-kind``, ``device-kind``, the file is none that its driver opens.
        """
        if self.driver is not None and (self.driver == "host_device") != image.is_device:
            code = "file-kind" if image.is_device else "device-kind"
            wanted = "a regular file" if image.is_device else "a device"
            path = printable(image.path, 200)
            raise OptionError(code, f"driver {self.driver} opens {wanted}, and '{path}' is none", path=image.path)
        if self.rest is not None:
            self.rest(None)
        for layer in self.below:
            self._enter(image, layer)
            image.nodes.append((layer.given, image.length))
        if self.own is not None and not self.probed:
            self._enter(image, self.own)
            image.options = self.own.given

    def settle(self, image: OpenFile, facts: ImageFacts) -> None:
        """Judge what depends on the format that was found. The length of a raw image is the window's.

        Raises:
            OptionError: as ``narrow``; ``driver-option``, the format does not have an option.
        """
        self.judge(image, facts.format)
        if facts.format == "raw":
            facts.virtual_size = image.length

    def judge(self, image: OpenFile, format: str | None) -> None:
        """Judge the same where there are no facts but a format. Errors are those of ``settle``."""
        if self.own is not None and self.probed and format == "raw":
            self._enter(image, self.own)
            image.options = self.own.given
        elif self.rest is not None and format is not None:
            self.rest(format)

    def _enter(self, image: OpenFile, layer: Layer) -> None:
        self.warnings += layer.warnings
        if layer.wrong is not None:
            raise layer.wrong
        offset, size, length = layer.offset, layer.size, image.length
        if offset > length:
            raise OptionError(
                "window-offset",
                f"the window begins at {offset}, behind the end of what it lies in, which has {length} bytes",
                offset=offset,
                length=length,
            )
        if size is not None and size > length - offset:
            raise OptionError(
                "window-size",
                f"the window of {size} bytes at {offset} reaches past the end of what it lies in,"
                f" which has {length} bytes",
                offset=offset,
                size=size,
                length=length,
            )
        if size is not None and size % SECTOR and layer.sectors:
            raise _unaligned(size)
        if layer.given:
            image.narrow(offset, length - offset if size is None else size)
        if layer.rest is not None:
            raise layer.rest


def _unaligned(size: int) -> OptionError:
    return OptionError("window-alignment", f"a window's size is a multiple of 512 bytes; {size} is none", size=size)
