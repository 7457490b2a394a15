"""File names as QEMU reads them: which have a protocol, and what a name inside an image is relative to.

Law: text only. Nothing here asks the system whether a file exists.
"""

from __future__ import annotations

from instar.core import NEWEST
from instar.core.errors import OptionError, plain_file_hint, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from instar.host.window import View


def protocol_of(name: str) -> str | None:
    """Return the protocol of a file name: what stands before a ``:`` that comes before any ``/``; else ``None``.

    >>> protocol_of("nbd://host/x"), protocol_of("json:{}"), protocol_of("./a:b"), protocol_of("a/b:c")
    ('nbd', 'json', None, None)
    """
    head, colon, _ = name.partition(":")
    return head if colon and "/" not in head else None


def strip_file_protocol(name: str) -> str:
    """Return the name without a leading ``file:``, the one protocol that means a plain file.

    What is left stays a plain name, as in QEMU.

    >>> strip_file_protocol("file:a"), strip_file_protocol("file:a:b"), strip_file_protocol("a")
    ('a', './a:b', 'a')
    """
    if not name.startswith("file:"):
        return name
    plain = name[5:]
    return plain if protocol_of(plain) is None else f"./{plain}"


def combine(base: str, name: str) -> str:
    """Return ``name`` as seen from the folder of the file ``base``; absolute and protocol names stay as they are.

    >>> combine("dir/top.qcow2", "base.qcow2"), combine("dir/top", "/abs"), combine("top", "base")
    ('dir/base.qcow2', '/abs', 'base')
    """
    if name.startswith("/") or protocol_of(name) is not None:
        return name
    folder, slash, _ = base.rpartition("/")
    return f"{folder}{slash}{name}"


class Source:
    """What the name of an image stands for: ``path`` of a plain file, and the ``format`` that it says, if it says one.

    ``protocol`` is true if the file is to be seen as a file, and not as an image in it (driver ``file``); ``view`` says
    where in the file the image lies, if it is not simply all of it. With ``fd`` the file is that of a descriptor, and
    ``path`` only says how to call it. For showing are ``name``, the file's as it was given, and ``secret``: the option
    that names a secret, and that name.
    """

    __slots__ = ("fd", "format", "name", "path", "protocol", "secret", "view")

    def __init__(
        self,
        path: str,
        format: str | None = None,
        *,
        protocol: bool = False,
        name: str | None = None,
        secret: tuple[str, str] | None = None,
        view: View | None = None,
        fd: int | None = None,
    ) -> None:
        self.path = path
        self.format = format
        self.protocol = protocol
        self.name = path if name is None else name
        self.secret = secret
        self.view = view
        self.fd = fd


def as_source(path: object) -> Source:
    """Return what the library was given for an image as a ``Source``; a text is a plain name, or ``file:`` and one.

    Raises:
        OptionError: ``bad-path``, it is nothing that an image can be in.
    """
    if type(path) is str:
        return Source(strip_file_protocol(path))
    if isinstance(path, Source):
        return path
    make: Callable[[], Source] | None = getattr(path, "as_source", None)
    if make is not None:
        return make()
    from instar.host.arguments import text_of

    return Source(strip_file_protocol(text_of(path)))


def source_of(name: str, *, format: str | None = None, generation: tuple[int, int] = NEWEST) -> Source:
    """Read the name of an image as QEMU does: a plain name, ``file:…`` or ``json:{…}``; plain files only.

    ``format`` is what the caller says it is; it comes before what a ``json:`` name says.

    Raises:
        OptionError: the name means something else, or nothing.
    """
    protocol = protocol_of(name)
    if protocol == "json":
        from instar.host.sources import from_json

        return from_json(name, format, generation)
    if protocol not in (None, "file"):
        raise _no_protocol(name, str(protocol))
    path = strip_file_protocol(name)
    if not path:
        raise OptionError("file-name-missing", "the name of the file is empty", driver="file", value=name)
    return Source(path, format)


def _no_protocol(name: str, protocol: str) -> OptionError:
    from instar.core.drivers import PROTOCOLS

    return OptionError(
        "protocol-unsupported" if protocol in PROTOCOLS else "unknown-protocol",
        f"'{printable(name, 200)}' names protocol '{printable(protocol, 40)}', and instar opens plain files only"
        + plain_file_hint(name),
        protocol=PROTOCOLS.get(protocol, protocol),
        path=name,
    )
