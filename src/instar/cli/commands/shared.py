"""What all commands share: their common switches, reading arguments, help, and reporting an error."""

from __future__ import annotations

from instar.cli.argv import Parsed, Switch, UsageError, parse
from instar.cli.session import complain, say
from instar.core.errors import InstarError, SandboxError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from instar.cli.session import Session

OUTPUT = Switch("output", "", "output", "FORMAT", "print for people (human) or for programs (json)")
HELP = Switch("help", "h", "help", "", "print this help")

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
    generation = session.generation
    known = list(switches)
    if session.as_qemu:
        known = [
            Switch(s.name, s.short, s.long if s.since <= generation else "", s.metavar, s.help)
            for s in switches
            if not s.extension
        ]
    try:
        parsed = parse(known, argv, numbers_are_words=not session.as_qemu)
    except UsageError as error:
        from instar.cli.messages import usage_words

        complain(usage_words(error, command, as_qemu=session.as_qemu, generation=generation))
        raise Stop(1) from None
    if parsed.has("help"):
        say(help_text())
        raise Stop(0)
    try:
        for name, value in parsed.switches:
            session.set(name, value)
    except InstarError as error:
        complain(f"instar: {error}")
        raise Stop(error.exit_code) from None
    return parsed


def wants_json(session: Session, command: str, parsed: Parsed) -> bool:
    """Return whether ``--output`` asks for JSON.

    Raises:
        Stop: it asks for something else.
    """
    value = parsed.last("output")
    if value in (None, "human", "json"):
        return value == "json"
    from instar.cli.messages import hint

    shown = printable(str(value))
    if not session.as_qemu:
        complain(f"instar: --output is human or json, not '{shown}'")
    elif session.generation < (10, 0):
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


def known_format(session: Session, name: str | None, path: str) -> str | None:
    """Return a format's own name for what ``-f`` says.

    Raises:
        OptionError: ``unknown-driver``.
    """
    if name is None:
        return None
    from instar.core.errors import OptionError
    from instar.formats import find, readable

    row = find(name, aliases=not session.as_qemu)
    if row is None:
        known = ", ".join(sorted(f.name for f in readable()))
        raise OptionError(
            "unknown-driver", f"there is no format '{name}'; instar reads {known}", format=name, path=path
        )
    return row.name


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
    return error.exit_code
