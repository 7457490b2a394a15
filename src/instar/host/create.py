"""Make an image: judge every word first, look at the backing file in a cell, write in a cell, put in place.

Law: no target is touched before everything has been checked, and then replaced only by a complete image.
"""

from __future__ import annotations

from instar.core import NEWEST
from instar.core.errors import InstarError, OptionError
from instar.core.units import UINT64_MAX
from instar.host.arguments import (
    Target,
    backing_of,
    flag_of,
    format_of,
    function_of,
    generation_of,
    isolation_of,
    options_of,
    secrets_of,
    word_of,
)
from instar.host.make import CreateResult, make_in_cell, make_raw
from instar.host.names import strip_file_protocol
from instar.host.outputs import Outputs
from instar.host.request import as_pairs, companions_of, judge, needs_size, read_request, read_size
from instar.sandbox.cell import Isolation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from instar.core.options import Value
    from instar.core.plan import Companion
    from instar.host.arguments import Fd, Options, Path
    from instar.host.request import Request
    from instar.host.space import Progress
    from instar.host.window import Window

__all__ = ["CreateResult", "create"]


def create(
    path: Path | Fd,
    size: int | str | None = None,
    *,
    format: str = "raw",
    options: Options = (),
    backing: Path | Window | None = None,
    backing_format: str | None = None,
    open_backing: bool = True,
    isolation: Isolation | str | None = None,
    generation: tuple[int, int] = NEWEST,
    as_qemu: bool = False,
    announce: Callable[[Request], None] | None = None,
    progress: Progress | None = None,
    secrets: Mapping[str, bytes] | None = None,
    warn: Callable[[str], None] | None = None,
) -> CreateResult:
    """Create an image.

    Args:
        path: the file to make: a path (text, bytes, ``os.PathLike``), or an ``Fd`` of an empty file, which is filled.
            An existing one is replaced, and only by a complete image. (Some images consist of several files; their
            names follow from this one and the options.)
        size: of the virtual disk in bytes, or text with a suffix; the backing file's if ``None``.
        format: a name of ``instar.formats``.
        options: creation options, by name (values may be ``str``, ``int``, ``bool`` or a path), or pairs as typed.
        backing: name of the backing file, recorded as it is, looked up from the folder of ``path``; of a window the
            name that QEMU opens it by is recorded, in which a relative path is seen from the working folder.
        backing_format: its format; required with ``backing``.
        open_backing: look at the backing file (in a cell). Without that, ``size`` is required.
        isolation: the kind of cell, or its name; the strongest there is if ``None``.
        generation: the qemu-img version whose rules are wanted, where versions differ.
        as_qemu: accept exactly the names and options that qemu-img has, also those without effect.
        announce: called once, when all words have been read and before anything is made.
        progress: called with bytes done and in all while space is reserved or zeroed.
        secrets: passphrases, by the names that options such as ``encrypt.key-secret`` give.
        warn: called with a size whose notation that version of qemu-img warns of.

    Raises:
        OptionError, ImageError, HostError, SandboxError: see ``instar.core.errors``. Every target is then as it was.
    """
    target, generation = Target(path), generation_of(generation)
    isolation = isolation_of(isolation).for_operation()
    pairs, name, as_qemu = options_of(options), backing_of(backing), flag_of(as_qemu, "as_qemu")
    warn = function_of(warn, "warn")
    for named in (name, *(text for key, text in pairs if key == "backing_file")):
        target.judge_backing(named)
    try:
        request = read(
            target.path,
            size,
            format=format_of(format),
            options=pairs,
            backing=name,
            backing_format=word_of(backing_format, "backing_format"),
            generation=generation,
            as_qemu=as_qemu,
            warn=warn,
        )
        prepared = prepare(
            request,
            open_backing=flag_of(open_backing, "open_backing"),
            isolation=isolation,
            generation=generation,
            as_qemu=as_qemu,
            announce=function_of(announce, "announce"),
            secrets=secrets_of(secrets),
            warn=warn,
        )
        target.judge_companions(prepared.companions)
        result = carry_out(prepared, isolation, function_of(progress, "progress"))
    except InstarError as error:
        target.call(error)
        raise
    if target.is_descriptor:
        result.filename = target.shown
        result.files = [(target.shown, size) for _, size in result.files]
    return result


class Prepared:
    """A creation of which everything that can be said in advance has been judged.

    Attributes:
        request, companions: see ``host.request``. options: every option with the value used.
        secret, pbkdf_rate: see ``core.plan.Seed``.
    """

    __slots__ = ("companions", "options", "pbkdf_rate", "request", "secret")

    def __init__(self, request: Request, options: Mapping[str, Value], companions: Sequence[Companion]) -> None:
        self.request = request
        self.options = options
        self.companions = companions
        self.secret: bytes | None = None
        self.pbkdf_rate = 0


def read(
    path: str,
    size: int | str | None,
    *,
    format: str,
    options: Mapping[str, object] | Iterable[tuple[str, str | None]],
    backing: str | None,
    backing_format: str | None,
    generation: tuple[int, int],
    as_qemu: bool,
    warn: Callable[[str], None] | None = None,
) -> Request:
    """Read the words of a creation, without a look at any file. For arguments and errors see ``create``."""
    return read_request(
        path,
        format,
        as_pairs(options),
        backing=backing,
        backing_format=backing_format,
        size=read_size(size),
        as_qemu=as_qemu,
        generation=generation,
        warn=warn,
    )


def prepare(
    request: Request,
    *,
    open_backing: bool,
    isolation: Isolation,
    generation: tuple[int, int],
    as_qemu: bool,
    announce: Callable[[Request], None] | None = None,
    secrets: Mapping[str, bytes] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Prepared:
    """Look at the backing file, if there is one, and at no other; judge a creation. See ``create``."""
    if "backing_file" in request.settings.values:
        from instar.host.backing import look_at_backing

        # A cell that looks at what somebody else made is not forked from a program that holds passphrases.
        apart = isolation.apart(single_threaded=False) if secrets else isolation
        look_at_backing(
            request, open_backing, apart, generation, probe=not as_qemu, as_qemu=as_qemu, warn=warn if as_qemu else None
        )
    _settle_size(request)
    if announce is not None:
        announce(request)
    options_used = judge(request, as_qemu)
    companions = companions_of(request, options_used)
    prepared = Prepared(request, options_used, companions)
    if secrets or any(name.endswith("key-secret") for name in request.settings.values):
        from instar.host.secrets import find_secret, key_rate

        prepared.secret = find_secret(request, secrets or {})
        prepared.pbkdf_rate = key_rate(request) if prepared.secret is not None else 0
    return prepared


def carry_out(prepared: Prepared, isolation: Isolation, progress: Progress | None = None) -> CreateResult:
    """Make the image that has been prepared. For errors see ``create``."""
    request = prepared.request
    with Outputs(strip_file_protocol(request.path), prepared.companions) as outputs:
        if request.backing is not None:
            from instar.host.backing import refuse_loss

            refuse_loss(request, outputs)
        outputs.begin()
        if request.row.name == "raw":
            result = make_raw(request, outputs, prepared.options, progress)
        else:
            result = make_in_cell(
                request,
                outputs,
                prepared.options,
                isolation,
                progress,
                secret=prepared.secret,
                pbkdf_rate=prepared.pbkdf_rate,
            )
        outputs.commit()
        result.isolation = isolation.weakest
        return result


def _settle_size(request: Request) -> None:
    """Take the size that was given, or the backing file's."""
    given = request.settings.values.get("size")
    # 2^64 - 1 is how QEMU's option tables say "no size".
    if given is None or given == UINT64_MAX:
        if not needs_size(request):
            request.settings.raw["size"], request.settings.values["size"] = "-1", -1
            return
        if request.backing is None or request.backing.virtual_size is None:
            raise OptionError("size-missing", "the size is missing; give it after the file name, as in 'disk.img 10G'")
        given = request.backing.virtual_size
        request.settings.raw["size"], request.settings.values["size"] = str(given), given
    request.size = int(given)
