"""``create``: make a new image."""

from __future__ import annotations

from instar.cli.argv import Switch
from instar.cli.commands.shared import COMMON, HELP, OBJECT, OUTPUT, Stop, read, report, switch_lines, wants_json
from instar.cli.session import complain, say
from instar.core.errors import InstarError, OptionError, printable
from instar.core.options import asks_help, judge_list, split_pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.cli.argv import Parsed
    from instar.cli.session import Session
    from instar.core.options import Option
    from instar.host.create import CreateResult
    from instar.host.request import Request
    from instar.host.space import Progress

SWITCHES = (
    Switch("format", "f", "format", "FMT", "the new image's format (default: raw)"),
    Switch("options", "o", "options", "KEY=VALUE,...", "options of the format; '-o help' lists them"),
    Switch("backing", "b", "backing", "FILE", "the backing file, seen from the new image's folder"),
    Switch("backing-format", "F", "backing-format", "FMT", "the backing file's format"),
    Switch("backing-format", "B", "backing-format", "FMT", "the same, as newer versions of qemu-img call it"),
    Switch("unsafe", "u", "backing-unsafe", "", "do not open the backing file; SIZE is then needed"),
    Switch("quiet", "q", "quiet", "", "print nothing but errors"),
    OBJECT,
    Switch("batch", "", "batch", "FILE", "an image for each JSON line of FILE ('-': standard input)", extension=True),
    OUTPUT,
    *COMMON,
    HELP,
)

#: Formats whose clusters can be made larger: qemu-img proposes that for an image that is too large.
_WITH_CLUSTER_SIZE = ("qcow2", "qed", "parallels")
_U64 = 1 << 64
_I64 = 1 << 63


def help_text() -> str:
    """Return the help of the command."""
    from instar.formats import creatable

    formats = "\n".join(f"  {f.name + (f' ({f.aliases[0]})' if f.aliases else ''):<12} {f.title}" for f in creatable())
    return f"""usage: instar create [OPTION]... FILE [SIZE]

Make a new image FILE with a virtual disk of SIZE bytes (suffixes b, k, M, G, T, P, E).
Without SIZE it is as large as the backing file. An existing FILE is replaced, and only
when the new image is complete.

{switch_lines(SWITCHES)}

Formats ('instar create -f FMT -o help' lists the options of one):
{formats}

Examples: instar create -f qcow2 disk.qcow2 20G
          instar create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2
"""


def run(session: Session, argv: list[str]) -> int:
    """Run the command and return its exit code."""
    try:
        parsed = read(session, "create", SWITCHES, argv, help_text)
        json = wants_json(session, "create", parsed)
        batch = parsed.last("batch")
        if batch is not None:
            return _run_batch(session, parsed, batch)
        format = parsed.last("format")
        if format is None:
            format = "raw"
        pairs = _pairs(session, parsed, json=json)
        if asks_help(pairs):
            return _print_options(session, format, parsed.words[0] if parsed.words else None)
        path, size = _words(session, parsed)
    except Stop as stop:
        return stop.code
    from instar.host.create import create
    from instar.host.request import read_size

    quiet = parsed.has("quiet")
    talk = session.as_qemu and not quiet and not json
    unread: str | None = path
    try:
        if session.as_qemu:
            # qemu-img reads the size before it looks at what stands behind it.
            unread = None
            if size is not None:
                _warn(size, session.generation)
            number = read_size(size, session.generation)
            _judge_rest(session, parsed)
            unread = path
        result = create(
            path,
            number if session.as_qemu else size,
            format=format,
            options=pairs,
            backing=parsed.last("backing"),
            backing_format=parsed.last("backing-format"),
            open_backing=not parsed.has("unsafe"),
            isolation=session.isolation,
            generation=session.generation,
            as_qemu=session.as_qemu,
            announce=(lambda request: say(formatting_line(request))) if talk else None,
            progress=_progress(),
            secrets=session.secrets,
            warn=lambda size: _warn(size, session.generation),
        )
    except Stop as stop:
        return stop.code
    except InstarError as error:
        return report(session, error, lambda e: _words_of(session, e, unread, format, pairs), json=json)
    session.explain()
    for option, reason in result.warnings:
        complain(
            f"qemu-img: warning: Failed to set {option.replace('_', ' ')}: {reason}"
            if session.as_qemu
            else f"instar: warning: the file system did not take {option}: {reason}"
        )
    if session.verbose and result.in_place:
        complain(f"instar: {printable(path)} was written in place: {result.in_place}")
    if json:
        from instar.cli.json import dumps

        say(dumps(result_object(result), qemu_order=False) + "\n")
    elif not session.as_qemu and not quiet:
        say(created_line(result))
    if not session.as_qemu and not quiet and not json:  # the object has them
        for note in _notes(result):
            complain(f"instar: note: {note}")
    return 0


def _run_batch(session: Session, parsed: Parsed, source: str) -> int:
    """Make many images; each line says all of its own."""
    others = [name for name in ("format", "options", "backing", "backing-format", "unsafe") if parsed.has(name)]
    if parsed.words or others:
        one = printable((parsed.words or others)[0])
        complain(f"instar: with --batch each line names its own file and options; leave out {one}")
        raise Stop(1)
    from instar.cli.commands.batch import run_batch

    return run_batch(session, source)


def _pairs(session: Session, parsed: Parsed, *, json: bool) -> list[tuple[str, str | None]]:
    """Read all ``-o`` lists as one; the first that is malformed ends the command, before anything else is looked at."""
    lists = parsed.all("options")
    for text in lists:
        try:
            judge_list(text)
        except OptionError as error:
            code = report(session, error, lambda e: _words_of(session, e, None, "raw", []), json=json)
            raise Stop(code) from None
    return split_pairs(",".join(lists))


def _words(session: Session, parsed: Parsed) -> tuple[str, str | None]:
    """Return FILE and SIZE."""
    words = parsed.words
    if words and (len(words) <= 2 or session.as_qemu):
        return words[0], words[1] if len(words) >= 2 else None
    if session.as_qemu:
        _complain_of_use(session, "Expecting image file name")
    elif words:
        complain(f"instar: create takes a file name and a size; '{printable(words[2])}' is one word too many")
    else:
        complain("instar: the file name is missing; see 'instar create --help'")
    raise Stop(1)


def _judge_rest(session: Session, parsed: Parsed) -> None:
    if len(parsed.words) > 2:
        _complain_of_use(session, f"Unexpected argument: {printable(parsed.words[2])}")
        raise Stop(1)


def _complain_of_use(session: Session, said: str) -> None:
    from instar.cli.messages import hint

    complain(f"qemu-img: {said}\n{hint('create', as_qemu=True, generation=session.generation)}")


def _warn(size: str, generation: tuple[int, int]) -> None:
    from instar.core.units import warns_of_size

    if warns_of_size(size, generation):
        words = f"Using a multiplier suffix on hex numbers is deprecated: {printable(size)}"
        complain(f"qemu-img: warning: {words}")


def _words_of(
    session: Session, error: InstarError, path: str | None, format: str, pairs: list[tuple[str, str | None]]
) -> str:
    from instar.cli.messages import create_words

    return create_words(
        error,
        path=path,
        format=format,
        generation=session.generation,
        has_cluster_size=format in _WITH_CLUSTER_SIZE and dict(pairs).get("cluster_size") != "0",
    )


def _progress() -> Progress | None:
    """Return a progress display, if standard error is a terminal; it stays silent for the first second."""
    import os

    if not os.isatty(2):
        return None
    from instar.cli.progress import Percent

    return Percent().show


def formatting_line(request: Request) -> str:
    """Return the line with which qemu-img begins: every option given, and those whose default it always shows."""
    parts = [f"Formatting '{printable(request.path)}', fmt={request.row.name}"]
    for row in request.rows:
        if row.name in request.settings.values:
            value = _shown(row, request)
        elif row.shown is not None:
            value = row.shown
        else:
            continue
        parts.append(f"{row.name}={printable(value).replace(',', ',,')}")
    return " ".join(parts) + "\n"


def _shown(row: Option, request: Request) -> str:
    """Return a value as the line has it: numbers as signed 64-bit, everything else as typed."""
    value = request.settings.values[row.name]
    if row.type in ("size", "num") and isinstance(value, int):
        value %= _U64
        return str(value - _U64 if value >= _I64 else value)
    return request.settings.raw[row.name]


def created_line(result: CreateResult) -> str:
    """Return instar's own line on success: stable, for people and for ``grep``."""
    facts = [f"format={result.format}", f"virtual_size={result.virtual_size}"]
    if result.unit:
        facts.append(f"{result.unit_name}_size={result.unit}")
    facts.append(f"file_size={result.file_size}")
    if result.backing_filename is not None:
        facts.append(f"backing_file={printable(result.backing_filename)}")
    return f"Created: {printable(result.filename)} ({', '.join(facts)})\n"


def result_object(result: CreateResult) -> dict[str, object]:
    """Return what ``--output=json`` prints."""
    notes = _notes(result)
    top: dict[str, object] = {
        "filename": result.filename,
        "format": result.format,
        "virtual-size": result.virtual_size,
    }
    if result.unit:
        top[f"{result.unit_name}-size"] = result.unit
    return {
        **top,
        "metadata-bytes-written": result.metadata_bytes,
        "file-size": result.file_size,
        "backing-filename": result.backing_filename,
        "in-place": result.in_place,
        "isolation": result.isolation,
        "options": dict(result.options),
        **({"notes": notes} if notes else {}),
    }


def _notes(result: CreateResult) -> list[str]:
    """Return what helps people on; where nothing can, nothing is loaded for it."""
    if result.format != "vpc" and result.backing_looks_like is None:
        return []
    from instar.cli.hints import of_creation

    return of_creation(result)


def _print_options(session: Session, format: str, path: str | None) -> int:
    """Print ``-o help``; with a FILE also what files take."""
    from instar.host.request import FILE_OPTIONS, find_creatable, option_rows, refuse_protocol

    with_file = path is not None
    try:
        row = find_creatable(format, aliases=not session.as_qemu)
        if path is not None:
            refuse_protocol(path)
    except OptionError as error:
        return report(session, error, lambda e: _words_of(session, e, None, format, []), json=False)
    rows = [
        r
        for r in option_rows(row.name, with_file=with_file or not session.as_qemu, as_qemu=session.as_qemu)
        if not (session.as_qemu and (r.extension or r.since > session.generation))
        # Without effect on these formats, and refused: not worth an offer.
        and not (not session.as_qemu and r in FILE_OPTIONS and r.name == "preallocation" and row.name != "raw")
    ]
    title = "Supported options:" if with_file else f"Supported {row.name} options:"
    lines = [title, *sorted(r.help_line() for r in rows)]
    if session.as_qemu and not with_file:
        lines += [
            "",
            "The protocol level may support further options.",
            "Specify the target filename to include those options.",
        ]
    say("\n".join(lines) + "\n")
    return 0
