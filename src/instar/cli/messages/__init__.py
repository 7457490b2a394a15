"""The words of errors: instar's own are in the errors, qemu-img's here and in the modules beside, and nowhere else.

Law: a verdict is decided where it is found; this room only words it. A format's sentences stand in the module
of its name: ``QEMU`` by ``OptionError.code``, ``QEMU_OPEN`` by ``(kind, field)`` of an ``ImageError``.
"""

from __future__ import annotations

import sys

from instar.core.errors import HostError, ImageError, InstarError, OptionError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.cli.argv import UsageError
    from instar.core.finding import Finding

_EISDIR = 21
_EFBIG = 27

#: Errors found while reading the command line: no file name stands before them.
WITHOUT_FILE = ("bad-option-list", "bad-image-size", "image-size-out-of-range")

#: qemu-img's sentences by ``OptionError.code``, as templates over the error's values.
QEMU: dict[str, str] = {
    "bad-option-list": "Invalid option list: {value}",
    "bad-size": (
        "Parameter '{key}' expects a non-negative number below 2^64\n"
        "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
        "and exabytes, respectively."
    ),
    "size-out-of-range": "Value '{value}' is out of range for parameter '{key}'",
    "bad-number": "Parameter '{key}' expects a number",
    "number-too-large": "Value '{value}' is too large for parameter '{key}'",
    "bad-bool": "Parameter '{key}' expects 'on' or 'off'",
    "bad-choice": "Parameter '{qapi}' does not accept value '{value}'",
    "bad-file-choice": "invalid parameter value: {value}",
    "unknown-option": "Invalid parameter '{key}'",
    "unknown-format": "Unknown file format '{format}'",
    "unknown-driver": "Could not open '{path}': Unknown driver '{format}'",
    "format-not-creatable": "Format driver '{format}' does not support image creation",
    "unknown-protocol": "Unknown protocol '{protocol}'",
    "size-twice": "The image size must be specified only once",
    "no-backing": "Backing file not supported for file format '{format}'",
    "no-backing-format": "Backing file format not supported for file format '{format}'",
    "backing-same-file": "Error: Trying to create an image with the same filename as the backing file",
    "backing-empty": "Expected backing file name, got empty string",
    "backing-format-missing": "Backing file specified without backing format",
    "unknown-backing-format": "Unknown driver '{format}'\nCould not open backing image.",
    "backing-protocol": "Unknown protocol '{protocol}'\nCould not open backing image.",
    "size-missing": "Image creation needs a size parameter",
    "image-size-out-of-range": "Invalid image size specified. Must be between 0 and 9223372036854775807.",
    "image-too-large": "The image size is too large for file format '{format}'",
    "unsupported-preallocation": "Unsupported preallocation mode: {value}",
    "extent-size-hint-too-large": "Extent size hint is too large",
}


def _table(format: object, name: str) -> Mapping[object, str]:
    """Return a table of a format's module, empty if there is none."""
    module = f"instar.cli.messages.{format}"
    try:
        __import__(module)
    except ImportError:
        return {}
    table: Mapping[object, str] = getattr(sys.modules[module], name, {})
    return table


def _fill(template: str, values: Mapping[str, object]) -> str:
    try:
        return template.format(**{k: printable(str(v)) for k, v in values.items()})
    except KeyError:
        return template


def option_words(error: OptionError, *, format: str | None, generation: tuple[int, int], has_cluster_size: bool) -> str:
    """Return qemu-img's sentence for a fault in the caller's words."""
    negative = str(error.values.get("value")).lstrip().startswith("-")
    if error.code == "bad-image-size" or (
        error.code == "image-size-out-of-range" and negative and generation < (10, 0)
    ):
        if generation < (10, 0):
            return (
                "Invalid image size specified. You may use k, M, G, T, P or E suffixes for\n"
                "qemu-img: kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes."
            )
        stop = "." if generation < (10, 1) else ""
        return f"Invalid image size specified: '{printable(str(error.values['value']))}'{stop}"
    if (
        error.code == "size-out-of-range"
        and generation < (10, 0)
        and str(error.values["value"]).lstrip().startswith("-")
    ):
        return _fill(QEMU["bad-size"], error.values)
    template = _table(format, "QEMU").get(error.code) or QEMU.get(error.code)
    words = error.sentence() if template is None else _fill(template, error.values)
    if error.code == "image-too-large" and has_cluster_size:
        words += " (try using a larger cluster size)"
    if error.code == "backing-format-missing" and "detected" in error.values:
        words += f"\nDetected format of {error.values['detected']}."
    return words


def open_words(error: InstarError, path: str) -> str:
    """Return qemu-img's sentence for an image that cannot be opened, without what stands before it."""
    shown = printable(path)
    if isinstance(error, HostError):
        if error.errno == _EISDIR:
            return f"'file' driver requires '{shown}' to be a regular file"
        return f"Could not open '{shown}': {error.strerror}"
    if isinstance(error, ImageError):
        table = _table(error.format, "QEMU_OPEN")
        template = table.get((error.kind, error.field))
        values = {"value": error.value, "limit": error.limit, "path": path, "detail": error.detail}
        return _fill(template, values) if template else printable(error.detail)
    return error.sentence()


def create_words(
    error: InstarError, *, path: str | None, format: str | None, generation: tuple[int, int], has_cluster_size: bool
) -> str:
    """Return what qemu-img prints when ``create`` fails."""
    before = "qemu-img: " + (f"{printable(path)}: " if path is not None else "")
    if isinstance(error, OptionError):
        if error.code in WITHOUT_FILE:
            before = "qemu-img: "
        return before + option_words(error, format=format, generation=generation, has_cluster_size=has_cluster_size)
    if error.role == "backing":
        name = str(getattr(error, "path", None) or "")
        return before + open_words(error, name) + "\nCould not open backing image."
    if isinstance(error, HostError):
        if error.errno == _EFBIG:
            tail = " (try using a larger cluster size)" if has_cluster_size else ""
            return f"{before}The image size is too large for file format '{format}'{tail}"
        if error.action.startswith("give"):
            return f"{before}Could not resize file: {error.strerror}"
        return f"{before}Could not create '{printable(path or '')}': {error.strerror}"
    return before + error.sentence()


def inspect_words(error: InstarError, path: str) -> str:
    """Return what qemu-img prints when ``info`` or ``check`` cannot open an image."""
    shown = printable(str(getattr(error, "path", None) or path))
    if isinstance(error, ImageError) and error.structure == "backing chain" and error.kind == "corrupt":
        return f"qemu-img: Backing file '{shown}' creates an infinite loop."
    if isinstance(error, ImageError) and error.kind == "not-found" and error.name is not None:
        name = printable(error.name)
        return f"qemu-img: Could not open '{name}': Could not open '{name}': No such file or directory"
    if isinstance(error, OptionError):
        return "qemu-img: " + option_words(error, format=None, generation=(11, 1), has_cluster_size=False)
    return f"qemu-img: Could not open '{shown}': {open_words(error, shown)}"


def finding_words(finding: Finding, format: str) -> str | None:
    """Return qemu-img's line for a finding of ``check``; ``None`` if it has none."""
    template = _table(format, "FINDINGS").get(finding.code)
    return None if template is None else template.format(*finding.values)


def usage_words(error: UsageError, command: str, *, as_qemu: bool, generation: tuple[int, int]) -> str:
    """Return what is printed for arguments that cannot be read, with the hint where help is."""
    option = printable(error.option)
    if as_qemu and generation < (10, 0):
        words = {
            "unknown": f"qemu-img: unrecognized option '{option}'",
            "missing": f"qemu-img: missing argument for option '{option}'",
            "ambiguous": f"qemu-img: unrecognized option '{option}'",
            "unwanted": f"qemu-img: unrecognized option '{option}'",
        }[error.kind]
        return f"{words}\n{hint(command, as_qemu=True, generation=generation)}"
    if not as_qemu:
        words = {
            "unknown": f"there is no option '{option}'",
            "missing": f"option '{option}' needs a value",
            "ambiguous": f"option '{option}' may mean {' or '.join(error.candidates)}",
            "unwanted": f"option '{option}' takes no value",
        }[error.kind]
        return f"instar: {words}; see 'instar {command} --help'"
    letter = option.lstrip("-")
    words = {
        "unknown": f"unrecognized option '{option}'" if error.long else f"invalid option -- '{letter}'",
        "missing": f"option '{option}' requires an argument"
        if error.long
        else f"option requires an argument -- '{letter}'",
        "ambiguous": f"option '{option}' is ambiguous; possibilities: {' '.join(repr(c) for c in error.candidates)}",
        "unwanted": f"option '{option}' doesn't allow an argument",
    }[error.kind]
    return f"qemu-img {command}: {words}\n{hint(command, as_qemu=True, generation=generation)}"


def hint(command: str, *, as_qemu: bool, generation: tuple[int, int]) -> str:
    """Return the line that says where help is."""
    if not as_qemu:
        return f"see 'instar {command} --help'"
    if generation < (10, 0):
        return "Try 'qemu-img --help' for more information"
    what = f"qemu-img {command}" if command else "qemu-img"
    return f"Try '{what} --help' for more info{'' if generation < (10, 1) else 'rmation'}"
