"""From ``argv`` to a command: the words before it, the table of commands, and what becomes of errors.

Law: this module imports no command before one is asked for, and no exception leaves ``main``.
"""

from __future__ import annotations

import gc
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from instar.cli.session import Session

#: Command -> what it does, for the overview. The module has the command's name.
COMMANDS = {
    "create": "make a new image",
    "info": "say what an image is",
    "check": "look for damage in an image",
    "sandbox": "say which cells this host can start, and test them",
}
#: Those that qemu-img does not have; in its dialect there is no such command.
OWN_COMMANDS = ("sandbox",)

#: The names under which the program speaks as qemu-img.
QEMU_NAMES = ("qemu-img", "instar-qemu-img")
_SHARED = ("--dialect", "--isolation", "--qemu-version", "--allow-path")
_QEMU_LONG = ("--help", "--version", "--trace")
#: Since this version qemu-img leaves the words about its switches to the C library.
_JUDGED_BY_GETOPT = (10, 0)
_SIGINT = 2
_EXIT_USAGE = 1


def start() -> NoReturn:
    """Be the whole program: run and leave at once, without the interpreter's slow farewell to each of its objects."""
    # Start-up makes thousands of objects that all stay; looking for garbage among them takes a millisecond.
    gc.disable()
    code = main()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # the caller may have closed it
                stream.flush()
        except (OSError, ValueError):
            code = code or 1
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    words = list(sys.argv if argv is None else argv)
    try:
        return _run(words)
    except KeyboardInterrupt:
        return _die_of_interrupt()
    except BrokenPipeError:
        # Whoever read the output has gone; nothing is left to say, also not by the interpreter's own flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        # Files that a command works on give a HostError; what is left is its own output.
        from instar.cli.session import complain

        complain(f"instar: the output cannot be written: {error.strerror}")
        return 1
    except Exception as error:  # a fault of instar's own: one line for people, the whole story when asked
        if os.environ.get("INSTAR_DEBUG"):
            raise
        return _internal(error)


def _run(words: list[str]) -> int:
    from instar.cli.session import Session, complain, read_dialect, say, version_text
    from instar.core.errors import InstarError

    program, rest = os.path.basename(words[0]), words[1:]
    try:
        dialect = os.environ.get("INSTAR_DIALECT")
        session = Session(as_qemu=read_dialect(dialect) if dialect else program in QEMU_NAMES)
        while rest and rest[0].startswith("-"):
            word = rest.pop(0)
            name, equals, value = word.partition("=")
            if word == "--" and session.as_qemu:
                break
            if session.as_qemu and len(name) > 2:
                # As getopt does, an abbreviation is taken for what it must mean.
                name = next((full for full in _QEMU_LONG if full.startswith(name)), name)
            if name in _SHARED:
                if not equals and not rest:
                    complain(f"instar: option '{name}' needs a value; see 'instar --help'")
                    return _EXIT_USAGE
                session.set(name[2:], value if equals else rest.pop(0))
            elif word in ("-v", "--verbose"):
                session.set("verbose", "")
            elif name in ("-h", "--help") and not equals:
                say(_overview(session))
                return 0
            elif name in ("-V", "--version") and not equals:
                say(version_text(session) + "\n")
                return 0
            else:
                return _unknown(session, word, name, more=bool(rest))
    except InstarError as error:
        complain(f"instar: {error}")
        return error.exit_code
    if not rest:
        return _usage(session, "Not enough arguments", "a command is missing")
    command = rest.pop(0)
    if command not in COMMANDS or (session.as_qemu and command in OWN_COMMANDS):
        from instar.cli.messages import LATER_COMMANDS

        own = f"there is no command '{command}'"
        if command in LATER_COMMANDS:
            own = f"'{command}' is not there yet; this version has {', '.join(COMMANDS)}"
        return _usage(session, f"Command not found: {command}", own)
    module = f"instar.cli.commands.{command}"
    __import__(module)
    code: int = sys.modules[module].run(session, rest)
    return code


def _internal(error: Exception) -> int:
    from instar.cli.session import complain
    from instar.core.errors import InternalError

    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace is not None else "?"
    fault = InternalError(f"{type(error).__name__}: {error} ({place}; INSTAR_DEBUG=1 tells more)")
    complain(f"instar: {fault}")
    return fault.exit_code


def _unknown(session: Session, word: str, name: str, *, more: bool) -> int:
    """Complain of a switch before the command that there is not."""
    if not session.as_qemu:
        return _usage(session, "", f"there is no option '{word}'")
    if name in ("-T", "--trace") and more:
        return _usage(session, "tracing is not supported by instar", "")
    old = session.generation < _JUDGED_BY_GETOPT
    if name in ("-T", "--trace"):
        new = "option requires an argument -- 'T'" if name == "-T" else f"option '{name}' requires an argument"
        return _usage(session, f"missing argument for option '{word}'" if old else new, "")
    if word.startswith("--") or old:
        return _usage(session, f"unrecognized option '{word}'", "")
    return _usage(session, f"invalid option -- '{word[1:2]}'", "")


def _usage(session: Session, qemu: str, own: str) -> int:
    from instar.cli.messages import hint
    from instar.cli.session import complain
    from instar.core.errors import printable

    if session.as_qemu:
        complain(f"qemu-img: {printable(qemu)}\n{hint('', as_qemu=True, generation=session.generation)}")
    else:
        complain(f"instar: {printable(own)}; see 'instar --help'")
    return _EXIT_USAGE


def _overview(session: Session) -> str:
    if session.as_qemu:
        from instar.cli.dialect import help_text
        from instar.cli.session import version_text

        return help_text("", session.generation, version_text(session))
    commands = "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())
    return f"""usage: instar [OPTION]... COMMAND ...

Make, inspect and check virtual disk images that nobody should trust.

Commands ('instar COMMAND --help' tells more):
{commands}

Options, before or after the command:
  --isolation=KIND       where image bytes are read and written: auto, kvm, process or none (INSTAR_ISOLATION)
  --qemu-version=X.Y     be like this version of qemu-img where versions differ (INSTAR_QEMU_VERSION)
  --allow-path=DIR       let images name files below DIR; may be given often (INSTAR_ALLOW_PATH, separated by ':')
  --dialect=NAME         speak as 'instar' or word for word as 'qemu-img' (INSTAR_DIALECT); only before the command
  -v, --verbose          say more about what is done and why
  -V, --version          print the version
  -h, --help             print this help
"""


def _die_of_interrupt() -> int:
    """End as a program that a signal ended, so that shells and make see an interrupt."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), _SIGINT)
    return 130
