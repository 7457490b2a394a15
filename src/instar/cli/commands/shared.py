"""What all commands share: their common switches, reading arguments, help, and reporting an error."""

from __future__ import annotations

from instar.cli.argv import Parsed, Switch, UsageError, parse
from instar.cli.session import complain, say
from instar.core.errors import InstarError, OptionError, SandboxError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from instar.cli.session import Session
    from instar.host.names import Source

    Result = TypeVar("Result")

OUTPUT = Switch("output", "", "output", "FORMAT", "print for people (human) or for programs (json)")
HELP = Switch("help", "h", "help", "", "print this help")

OBJECT = Switch("object", "", "object", "DEF", "secret,id=NAME,file=FILE[,format=base64] defines a passphrase")
#: Since this version of qemu-img ``--output`` and ``--repair`` are judged as they are read, in other words.
_JUDGED_AT_ONCE = (10, 0)
_SIGKILL, _SIGXCPU = 9, 24
#: Cache modes that QEMU knows.
_CACHES = ("none", "off", "writeback", "writethrough", "directsync", "unsafe")

COMMON = (
    Switch("isolation", "", "isolation", "KIND", "auto, kvm, process or none", extension=True),
    Switch("qemu-version", "", "qemu-version", "X.Y", "be like this version of qemu-img", extension=True),
    Switch("verbose", "v", "verbose", "", "say more about what is done and why", extension=True),
)
ALLOW = Switch(
    "allow-path", "", "allow-path", "DIR", "let the image name files below DIR; may be given often", extension=True
)


class Stop(Exception):
    """The command ends here with this exit code; everything has been said."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def read(
    session: Session, command: str, switches: Sequence[Switch], argv: Sequence[str], help_text: Callable[[], str]
) -> Parsed:
    """Read a command's arguments and take the common ones.

    Raises:
        Stop: they cannot be read, or help was asked for and printed.
    """
    parsed = (
        _read_as_qemu(session, command, argv) if session.as_qemu else _read(session, command, switches, argv, help_text)
    )
    if command != "sandbox":  # which has no use for it
        session.warn()
    return parsed


def _read(
    session: Session, command: str, switches: Sequence[Switch], argv: Sequence[str], help_text: Callable[[], str]
) -> Parsed:
    """Read a command's arguments in our own dialect."""
    try:
        parsed = parse(switches, argv, numbers_are_words=True)
    except UsageError as error:
        from instar.cli.messages import later_words, usage_words

        later = later_words(error, command)
        complain(later or usage_words(error, command, as_qemu=False, generation=session.generation))
        raise Stop(1) from None
    if parsed.has("help"):
        say(help_text())
        raise Stop(0)
    try:
        for name, value in parsed.switches:
            session.set(name, value)
            if name == "object":
                define(session, value)
    except InstarError as error:
        complain(f"instar: {error}")
        raise Stop(error.exit_code) from None
    return parsed


def _read_as_qemu(session: Session, command: str, argv: Sequence[str]) -> Parsed:
    """Read a command's arguments as qemu-img: what can be judged by itself is judged as it is read."""
    from instar.cli.dialect import switches
    from instar.cli.messages import option_words, usage_words

    def take(name: str, value: str) -> None:
        if name == "help":
            from instar.cli.dialect import help_text
            from instar.cli.session import version_text

            say(help_text(command, session.generation, version_text(session)))
            raise Stop(0)
        if name == "object":
            define(session, value)
        elif name == "options":
            from instar.core.options import judge_list

            judge_list(value)
        elif name == "output" and session.generation >= _JUDGED_AT_ONCE:
            judge_output(session, command, value)
        elif name == "repair":
            _judge_repair(session, command, value)

    try:
        return parse(switches(command, session.generation), argv, command=command, take=take)
    except UsageError as error:
        complain(usage_words(error, command, as_qemu=True, generation=session.generation))
    except OptionError as error:
        complain("qemu-img: " + option_words(error, format=None, generation=session.generation, has_cluster_size=False))
    raise Stop(1)


def define(session: Session, text: str) -> None:
    """Take what ``--object`` defines.

    Raises:
        OptionError: it is nothing that can be defined. Stop: it asked for help.
    """
    from instar.host.objects import HelpWanted, define

    try:
        define(text, session.secrets, generation=session.generation, quoting=session.as_qemu)
        # From here on there is something secret in memory, which a fork would hand to a cell.
        session.isolation.single_threaded = False
    except HelpWanted as wanted:
        from instar.host.objects import describe

        say(describe(wanted.kind))
        raise Stop(0) from None


def _judge_repair(session: Session, command: str, value: str) -> None:
    from instar.cli.messages import hint

    shown = printable(value)
    if value in ("leaks", "all"):
        complain("qemu-img: repairing images is not supported by instar")
    elif session.generation < _JUDGED_AT_ONCE:
        words = f"Unknown option value for -r (expecting 'leaks' or 'all'): {shown}"
        complain(f"qemu-img: {words}\n{hint(command, as_qemu=True, generation=session.generation)}")
    else:
        comma = "," if session.generation >= (10, 1) else ""
        words = f"--repair (-r) expects 'leaks' or 'all'{comma} not '{shown}'"
        complain(f"qemu-img: {words}\n{hint(command, as_qemu=True, generation=session.generation)}")
    raise Stop(1)


def wants_json(session: Session, command: str, parsed: Parsed) -> bool:
    """Return whether ``--output`` asks for JSON.

    Raises:
        Stop: it asks for something else.
    """
    value = parsed.last("output")
    if value is not None:
        judge_output(session, command, value)
    return value == "json"


def judge_output(session: Session, command: str, value: str) -> None:
    """Judge what ``--output`` asks for.

    Raises:
        Stop: neither ``human`` nor ``json``.
    """
    if value in ("human", "json"):
        return
    from instar.cli.messages import hint

    shown = printable(value)
    if not session.as_qemu:
        complain(f"instar: --output is human or json, not '{shown}'")
    elif session.generation < _JUDGED_AT_ONCE:
        complain("qemu-img: --output must be used with human or json as argument.")
    else:
        comma = "," if session.generation >= (10, 1) else ""
        complain(
            f"qemu-img: --output expects 'human' or 'json'{comma} not '{shown}'\n"
            + hint(command, as_qemu=True, generation=session.generation)
        )
    raise Stop(1)


def switch_lines(switches: Sequence[Switch]) -> str:
    """Return a command's switches as lines of help."""
    lines = []
    for switch in switches:
        short = f"-{switch.short}" if switch.short else ""
        long = f"--{switch.long}" if switch.long else ""
        if switch.metavar:
            long = f"{long}={switch.metavar}" if long else ""
            short = f"{short} {switch.metavar}" if short and not long else short
        forms = ", ".join(form for form in (short, long) if form)
        lines.append(f"  {forms:<28} {switch.help}" if len(forms) <= 28 else f"  {forms}\n{'':<31}{switch.help}")
    return "\n".join(lines)


def judge_cache(parsed: Parsed, source: str) -> None:
    """Judge the cache mode, which is of no effect here. ``source`` is what qemu-img calls it.

    Raises:
        Stop: there is no such mode.
    """
    mode = parsed.last("cache")
    if mode is not None and mode not in _CACHES:
        complain(f"qemu-img: Invalid {source}cache option: {printable(mode)}")
        raise Stop(1)


def find_source(session: Session, parsed: Parsed, path: str) -> Source:
    """Return the file that FILE stands for, and the format that the caller, or the name, says it has.

    Raises:
        OptionError: the name stands for nothing that can be opened, or there is no such format.
    """
    from instar.formats import find, readable
    from instar.host.names import source_of

    if parsed.has("image-opts"):
        from instar.host.sources import from_text

        if parsed.has("format"):
            raise OptionError("format-and-options", "--image-opts and --format are given both; give one")
        return from_text(path, session.generation, _warn_of_word if session.as_qemu else None)
    name = parsed.last("format")
    if name == "file" and session.as_qemu:
        from instar.host.sources import as_file

        return as_file(path, session.generation)
    row = None if name is None else find(name, aliases=not session.as_qemu)
    if name is not None and row is None:
        from instar.core.drivers import DRIVERS

        known = ", ".join(sorted(f.name for f in readable()))
        code = "driver-unsupported" if session.as_qemu and name in DRIVERS else "unknown-driver-name"
        raise OptionError(code, f"there is no format '{name}'; instar reads {known}", driver=name, path=path)
    return source_of(path, format=None if row is None else row.name, generation=session.generation)


def look(
    session: Session, parsed: Parsed, path: str, operation: Callable[..., Result], *, again: bool = False
) -> tuple[Source, Result]:
    """Have an operation of the library look at the image that FILE stands for, as the switches ask.

    Of an image that is looked at ``again`` nobody is warned twice.

    Raises:
        InstarError: what ``find_source`` and the operation raise; of the file as the dialect names it.
    """
    from instar.core.errors import HostError

    source = find_source(session, parsed, path)
    try:
        found = operation(
            source,
            format=source.format,
            allow=session.allow,
            isolation=session.isolation,
            generation=session.generation,
            force_share=parsed.has("force-share"),
            as_qemu=session.as_qemu,
        )
    except HostError as error:
        if session.as_qemu and error.path == source.path:
            error.path = source.name
        raise
    finally:
        if not again:
            _warn_of_sizes(session, source)
    return source, found


def _warn_of_word(word: str, better: str) -> None:
    said = f"short-form boolean option '{printable(word)}' deprecated"
    complain(f"qemu-img: warning: {said}\nPlease use {printable(better)} instead")


def _warn_of_sizes(session: Session, source: Source) -> None:
    for text in source.view.warnings if session.as_qemu and source.view is not None else ():
        complain(f"qemu-img: warning: Using a multiplier suffix on hex numbers is deprecated: {printable(text)}")


def one_image(session: Session, command: str, parsed: Parsed) -> str:
    """Return the one file name of ``info`` or ``check``.

    Raises:
        Stop: there is none, or more than one.
    """
    if len(parsed.words) == 1:
        return parsed.words[0]
    if session.as_qemu:
        from instar.cli.messages import hint

        complain(
            "qemu-img: Expecting one image file name\n" + hint(command, as_qemu=True, generation=session.generation)
        )
    else:
        complain(
            f"instar: {command} takes exactly one file name, not {len(parsed.words)}; see 'instar {command} --help'"
        )
    raise Stop(1)


def report(session: Session, error: InstarError, words: Callable[[InstarError], str], *, json: bool) -> int:
    """Print an error in the words of the dialect, or as an object for programs, and return its exit code.

    Under ``-v`` the story of a cell's death follows; the object has it in any case.
    """
    session.explain()
    if session.as_qemu:
        complain(words(error))
    elif json:
        from instar.cli.json import dumps

        complain(dumps({"error": error.facts()}, qemu_order=False))
    else:
        complain(f"instar: {error}")
    if session.verbose and isinstance(error, SandboxError) and error.story and (session.as_qemu or not json):
        complain(f"instar: cell: {printable(error.story)}")
    if session.as_qemu and isinstance(error, SandboxError) and error.inherited:
        _die_of_limit()
    return error.exit_code


def _die_of_limit() -> None:
    """End as the kernel ends a program that has used up its processor time: callers of qemu-img look for that."""
    import os
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    os.kill(os.getpid(), _SIGKILL if soft == hard else _SIGXCPU)
