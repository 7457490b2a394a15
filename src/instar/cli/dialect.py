"""The switches that qemu-img takes, by command and version, and the help that it prints about them.

Law: rows only, in qemu-img's order, in which it also names candidates for an abbreviation. What a switch means stands
with the command, under the same name. Help has qemu-img's shape and its command lines, and names
the commands that are here.
"""

from __future__ import annotations

from instar.cli.argv import Switch

_ROWS = {
    "help": ("h", "help", "", "print this help and exit"),
    "format": ("f", "format", "FMT", "the image's format"),
    "options": ("o", "options", "FMT_OPTS", "options of the format ('-o help' lists them)"),
    "backing": ("b", "backing", "BACKING_FILE", "the image that the new one is a change to"),
    "backing-format": ("F", "backing-format", "BACKING_FMT", "format of BACKING_FILE"),
    "unsafe": ("u", "backing-unsafe", "", "do not open BACKING_FILE"),
    "quiet": ("q", "quiet", "", "print errors only"),
    "object": ("", "object", "OBJDEF", "define an object (a secret)"),
    "image-opts": ("", "image-opts", "", "FILE is a list of options (key=value,..), not a name"),
    "backing-chain": ("", "backing-chain", "", "go on with the backing file, and so on"),
    "force-share": ("U", "force-share", "", "open the image even if it is in use"),
    "output": ("", "output", "human|json", "form of the answer (default: human)"),
    "cache": ("T", "cache", "CACHE_MODE", "cache mode; of no effect here"),
    "limits": ("", "limits", "", "show limits of the block layer, too"),
    "repair": ("r", "repair", "leaks|all", "repair the image"),
}

#: By command: the rows of 10.0, then those of later versions.
_TEN = {
    "create": ("help", "quiet", "object", "format", "backing", "backing-format", "unsafe", "options"),
    "info": ("help", "format", "image-opts", "backing-chain", "force-share", "output", "object"),
    "check": ("help", "quiet", "format", "image-opts", "cache", "force-share", "output", "repair", "object"),
}
_LATER = {
    "create": ("help", "format", "options", "backing", "backing-format", "unsafe", "quiet", "object"),
    "info": ("help", "format", "image-opts", "backing-chain", "cache", "force-share", "limits", "output", "object"),
    "check": ("help", "format", "image-opts", "cache", "repair", "force-share", "output", "quiet", "object"),
}
#: Before 10.0 these have their long form as well as, or instead of, the letter.
_OLD_LONG = {
    "create": ("help", "object"),
    "info": ("help", "format", "output", "backing-chain", "object", "image-opts", "force-share"),
    "check": ("help", "format", "repair", "output", "object", "image-opts", "force-share"),
}

_OLD_SYNTAX = {
    "check": (
        "check [--object objectdef] [--image-opts] [-q] [-f fmt] [--output=ofmt] [-r [leaks | all]] [-T src_cache] [-U]"
        " filename"
    ),
    "create": (
        "create [--object objectdef] [-q] [-f fmt] [-b backing_file [-F backing_fmt]] [-u] [-o options] filename [size]"
    ),
    "info": "info [--object objectdef] [--image-opts] [-f fmt] [--output=ofmt] [--backing-chain] [-U] filename",
}
_SYNTAX = {
    "check": (
        "check [-f FMT | --image-opts] [-T CACHE_MODE] [-r leaks|all]\n"
        "        [-U] [--output human|json] [-q] [--object OBJDEF] FILE"
    ),
    "create": (
        "create [-f FMT] [-o FMT_OPTS]\n"
        "        [-b BACKING_FILE [-{letter} BACKING_FMT]] [-u]\n"
        "        [-q] [--object OBJDEF] FILE [SIZE]"
    ),
    "info": "info [-f FMT | --image-opts] [--backing-chain] [-U]\n        [--output human|json] [--object OBJDEF] FILE",
}
_TITLES = {
    "check": "Check basic image integrity",
    "create": "Create and format a new image file",
    "info": "Display information about the image",
}


def switches(command: str, generation: tuple[int, int]) -> list[Switch]:
    """Return the switches that a command of qemu-img takes."""
    old, later = generation < (10, 0), generation >= (10, 1)
    rows = []
    for name in (_LATER if later else _TEN)[command]:
        short, long, metavar, help = _ROWS[name]
        if old and name not in _OLD_LONG[command]:
            long = ""
        if command == "info" and name == "cache":
            short = "t"
        if command == "info" and name == "backing-chain" and not later and not old:
            short = "b"
        if name == "backing-format" and later:
            rows.append(Switch(name, "B", long, metavar, help))
            long = ""
        rows.append(Switch(name, short, long, metavar, help))
    return rows


def help_text(command: str, generation: tuple[int, int], version: str) -> str:
    """Return the help of a command; before 10.0, and for the command ``""``, that of the whole program."""
    if generation < (10, 0):
        return _old_help(version)
    if not command:
        return _whole_help(version)
    letter = "B" if generation >= (10, 1) else "F"
    lines = [f"Usage:\n  qemu-img {_SYNTAX[command].format(letter=letter)}\n\n{_TITLES[command]}.\n\nArguments:"]
    for row in switches(command, generation):
        if row.name == "backing-format" and not row.long:
            continue
        forms = ", ".join(form for form in (row.short and f"-{row.short}", row.long and f"--{row.long}") if form)
        lines.append(f"  {forms}{' ' if row.metavar else ''}{row.metavar}\n     {row.help}")
    lines.append("  FILE\n     name of the image file")
    if command == "create":
        lines.append("  SIZE[bKMGTPE]\n     bytes of the virtual disk (suffixes are powers of 1024)")
    return "\n".join(lines) + "\n\n"


def _formats() -> list[str]:
    from instar.formats import TABLE

    return sorted(row.name for row in TABLE if row.readable)


def _old_help(version: str) -> str:
    commands = "\n".join(f"  {syntax}" for _, syntax in sorted(_OLD_SYNTAX.items()))
    return f"""{version}
usage: qemu-img [standard options] command [command options]
QEMU disk image utility, by instar

    '-h', '--help'       display this help and exit
    '-V', '--version'    output version information and exit

Command syntax:
{commands}

Supported formats: {" ".join(_formats())}
"""


def _whole_help(version: str) -> str:
    commands = "\n".join(f"  {name} - {title}" for name, title in sorted(_TITLES.items()))
    return f"""{version}
QEMU disk image utility, by instar.  Usage:

  qemu-img [standard options] COMMAND [--help | command options]

Standard options:
  -h, --help
     display this help and exit
  -V, --version
     display version info and exit

Recognized commands (run qemu-img COMMAND --help for command-specific help):

{commands}

Supported image formats:

  {" ".join(_formats())}
"""
