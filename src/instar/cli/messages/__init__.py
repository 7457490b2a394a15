"""The words of errors: instar's own are in the errors, qemu-img's here and in the modules beside, and nowhere else.

Law: a verdict is decided where it is found; this room only words it. A format's sentences stand in the module
of its name: ``QEMU`` by ``OptionError.code``, ``QEMU_OPEN`` by ``(kind, field)`` of an ``ImageError``.
"""

from __future__ import annotations

import os
import sys

from instar.core.errors import HostError, ImageError, InstarError, OptionError, printable
from instar.formats import find
from instar.host.names import combine, strip_file_protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.cli.argv import UsageError
    from instar.core.finding import Finding

_EISDIR = 21
_EFBIG = 27

#: Since this version a value that is none of an option's is named together with the option.
_CHOICE_WITH_OPTION = (6, 1)

#: Errors found while reading the command line: no file name stands before them.
WITHOUT_FILE = ("bad-option-list", "bad-image-size", "image-size-out-of-range", "format-and-options")

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
    "unknown-driver-name": "Unknown driver '{driver}'",
    "driver-unsupported": "Driver '{driver}' is not supported by instar, which opens plain files only",
    "driver-missing": "Must specify either driver or file",
    "driver-option": "Block format '{driver}' does not support the option '{key}'",
    "file-missing": 'A block device must be specified for "file"',
    "file-name-missing": "The '{driver}' block driver requires a file name",
    "file-option": "Block protocol '{driver}' doesn't support the option '{key}'",
    "format-and-options": "--image-opts and --format are mutually exclusive",
    "file-kind": "'file' driver requires '{path}' to be a regular file",
    "device-kind": "'host_device' driver requires '{path}' to be either a character or block device",
    "window-offset": "Offset ({offset}) cannot be greater than size of the containing file ({length})",
    "window-size": (
        "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the "
        " actual size of the containing file ({length})"
    ),
    "window-alignment": "Specified size is not multiple of 512",
    "raw-backing": "Driver doesn't support backing files",
    "no-node": "Cannot find device='{name}' nor node-name='{name}'",
    "bad-json-options": "Could not parse the JSON options: {value}",
    "json-no-object": "Invalid JSON object given",
    "protocol-not-creatable": "Protocol driver '{protocol}' does not support image creation",
    "device-preallocation": "Preallocation mode '{value}' unsupported for this non-regular file",
    "raw-device-preallocation": "Unsupported preallocation mode '{value}'",
    "companion-same-file": 'Failed to get shared "resize" lock\nIs another process using the image [{path}]?',
    "protocol-unsupported": "Protocol driver '{protocol}' is not supported by instar, which opens plain files only",
    "keyval-key": "Invalid parameter '{key}'",
    "keyval-value": "Expected '=' after parameter '{key}'",
    "keyval-long": "Parameter '{key}' is too long",
    "keyval-inconsistent": "Parameters '{key}.*' used inconsistently",
    "bad-json": "{value}",
    "bad-integer": "Parameter '{qapi}' expects integer",
    "member-missing": "Parameter '{key}' is missing",
    "member-type": "Invalid parameter type for '{key}', expected: {expected}",
    "member-unexpected": "Parameter '{key}' is unexpected",
    "members-unexpected": "Parameters '{key}.*' are unexpected",
    "member-read-only": "Property 'secret.{key}' is not writable",
    "bad-identifier": (
        "Parameter 'id' expects an identifier\n"
        "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
    ),
    "object-unavailable": "invalid object type: {kind}",
    "object-unsupported": "objects of type '{kind}' are not supported by instar, only secrets are",
    "object-twice": "attempt to add duplicate property '{id}' to object (type 'container')",
    "secret-twice": "'file' and 'data' are mutually exclusive",
    "secret-empty": "Either 'file' or 'data' must be provided",
    "secret-file": "Unable to read {path}: Failed to open file “{path}”: {reason}",
    "secret-file-read": "Unable to read {path}: Error reading file “{path}”: {reason}",
    "secret-keyid": "Secrets encrypted with another one (keyid) are not supported by instar",
    "secret-not-utf8": "Data from secret {id} is not valid UTF-8",
    "bad-base64": "Base64 data contains invalid characters",
    "no-secret": "No secret with id '{id}'",
    "format-not-creatable": "Format driver '{format}' does not support image creation",
    "unknown-protocol": "Unknown protocol '{protocol}'",
    "size-twice": "The image size must be specified only once",
    "no-backing": "Backing file not supported for file format '{format}'",
    "no-backing-format": "Backing file format not supported for file format '{format}'",
    "backing-same-file": "Error: Trying to create an image with the same filename as the backing file",
    "backing-empty": "Expected backing file name, got empty string",
    "backing-format-missing": "Backing file specified without backing format",
    "unknown-backing-format": "Unknown driver '{format}'\nCould not open backing image.",
    "size-missing": "Image creation needs a size parameter",
    "image-size-out-of-range": "Invalid image size specified. Must be between 0 and 9223372036854775807.",
    "image-too-large": "The image size is too large for file format '{format}'",
    "secret-missing": "Parameter '{key}' is required for cipher",
    "unsupported-preallocation": "Unsupported preallocation mode: {value}",
    "extent-size-hint-too-large": "Extent size hint is too large",
}


def _table(format: str | None, name: str) -> Mapping[object, str]:
    """Return a table of a format's module, empty if there is none; what is no format's name imports nothing."""
    if format is None or find(format, aliases=False) is None:
        return {}
    module = f"instar.cli.messages.{format}"
    try:
        __import__(module)
    except ImportError:
        return {}
    table: Mapping[object, str] = getattr(sys.modules[module], name, {})
    return table


def _fill(template: str, values: Mapping[str, object]) -> str:
    """Fill in a template; whoever gave the values may have left out, or mistaken, what it needs."""
    try:
        return template.format(**{k: printable(str(v)) for k, v in values.items()})
    except (LookupError, TypeError, ValueError):
        return template


def option_words(error: OptionError, *, format: str | None, generation: tuple[int, int], has_cluster_size: bool) -> str:
    """Return qemu-img's sentence for a fault in the caller's words."""
    if error.code == "bad-image-size":
        if generation < (10, 0):
            return (
                "Invalid image size specified. You may use k, M, G, T, P or E suffixes for\n"
                "qemu-img: kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes."
            )
        stop = "." if generation < (10, 1) else ""
        return f"Invalid image size specified: '{printable(str(error.values.get('value', '')))}'{stop}"
    template = _table(format, "QEMU").get(error.code) or QEMU.get(error.code)
    if error.code == "bad-choice" and generation < _CHOICE_WITH_OPTION:
        template = "Invalid parameter '{value}'"
    words = error.sentence() if template is None else _fill(template, error.values)
    if error.code == "image-too-large" and has_cluster_size:
        words += " (try using a larger cluster size)"
    if error.code == "backing-format-missing" and "detected" in error.values:
        words += f"\nDetected format of {printable(str(error.values['detected']))}."
    return words


def open_words(error: InstarError, path: str) -> str:
    """Return qemu-img's sentence for an image that cannot be opened, without what stands before it."""
    if isinstance(error, HostError):
        if error.lock is not None:
            return lock_words(error)
        return _system_words(error.errno, path)
    if isinstance(error, ImageError):
        table = _table(error.format, "QEMU_OPEN")
        template = table.get((error.kind, error.field))
        number = "" if error.value is None else f"{error.value:x}"
        values = {"value": error.value, "hex": number, "limit": error.limit, "path": path, "detail": error.detail}
        values["expected"] = error.expected
        # A version in two halves of a 32-bit number.
        values["high"], values["low"] = divmod(error.value or 0, 1 << 16)
        # A name out of the image, as the detail quotes it.
        values["quoted"] = [*error.detail.split("'"), ""][1]
        # A line out of it, as the detail ends with it.
        values["tail"] = error.detail.partition(": ")[2]
        return _fill(template, values) if template else printable(error.detail)
    return error.sentence()


def _system_words(number: int, path: str) -> str:
    if number == _EISDIR:
        return f"'file' driver requires '{printable(path)}' to be a regular file"
    return f"Could not open '{printable(path)}': {os.strerror(number)}"


def lock_words(error: HostError) -> str:
    """Return qemu-img's sentence for an image that another program is using."""
    if str(error.lock).startswith("byte"):
        return f"Failed to lock {error.lock}"
    plain = printable(strip_file_protocol(error.path))
    return f"Failed to get {error.lock} lock\nIs another process using the image [{plain}]?"


def create_words(
    error: InstarError, *, path: str | None, format: str | None, generation: tuple[int, int], has_cluster_size: bool
) -> str:
    """Return what qemu-img prints when ``create`` fails."""
    before = "qemu-img: " + (f"{printable(path)}: " if path is not None else "")
    if isinstance(error, OptionError):
        if error.code in WITHOUT_FILE:
            before = "qemu-img: "
        words = option_words(error, format=format, generation=generation, has_cluster_size=has_cluster_size)
        return before + words + ("\nCould not open backing image." if error.role == "backing" else "")
    if isinstance(error, HostError) and error.lock is not None:
        return before + lock_words(error)
    if error.role == "backing":
        name = str(getattr(error, "path", None) or "")
        return before + open_words(error, name) + "\nCould not open backing image."
    if isinstance(error, HostError):
        if error.errno == _EFBIG:
            tail = " (try using a larger cluster size)" if has_cluster_size else ""
            return f"{before}The image size is too large for file format '{format}'{tail}"
        if format == "raw" and "to a device" in error.action:
            return f"{before}Cannot grow device files"
        if error.action.startswith("give"):
            return f"{before}Could not resize file: {error.strerror}"
        shown = str(getattr(error, "path", None) or "") if error.role == "companion" else path or ""
        done = "open" if error.action.startswith("open") else "create"  # a file that is kept must be there
        return f"{before}Could not {done} '{printable(shown.removeprefix('file:'))}': {error.strerror}"
    return before + error.sentence()


def inspect_words(error: InstarError, path: str, generation: tuple[int, int]) -> str:
    """Return what qemu-img prints when ``info`` or ``check`` cannot open an image."""
    shown = printable(str(getattr(error, "image", None) or path))
    if isinstance(error, ImageError) and error.structure == "backing chain" and error.kind == "corrupt":
        return f"qemu-img: Backing file '{shown}' creates an infinite loop."
    if error.role == "backing":  # the file that this image names is opened as an image of its own
        shown = printable(str(getattr(error, "path", None) or path))
    if isinstance(error, ImageError) and error.errno is not None and error.path is not None:
        name = combine(error.path, error.name or "")
        shown = printable(name) if error.role == "backing" else shown
        return f"qemu-img: Could not open '{shown}': {_system_words(error.errno, name)}"
    if isinstance(error, OptionError):
        words = option_words(error, format=None, generation=generation, has_cluster_size=False)
        return f"qemu-img: {words}" if error.code in WITHOUT_FILE else f"qemu-img: Could not open '{shown}': {words}"
    return f"qemu-img: Could not open '{shown}': {open_words(error, str(getattr(error, 'path', None) or path))}"


def finding_words(finding: Finding, format: str) -> str | None:
    """Return qemu-img's line for a finding of ``check``; ``None`` if it has none, or has not the numbers for it."""
    template = _table(format, "FINDINGS").get(finding.code)
    try:
        return None if template is None else template.format(*finding.values)
    except (LookupError, TypeError, ValueError):
        return None


def usage_words(error: UsageError, command: str, *, as_qemu: bool, generation: tuple[int, int]) -> str:
    """Return what is printed for arguments that cannot be read, with the hint where help is."""
    option = printable(error.option)
    if as_qemu and generation < (10, 0):
        option = printable(error.word)
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
        "unknown": f"unrecognized option '{printable(error.word)}'" if error.long else f"invalid option -- '{letter}'",
        "missing": f"option '{option}' requires an argument"
        if error.long
        else f"option requires an argument -- '{letter}'",
        "ambiguous": f"option '{option}' is ambiguous; possibilities: {' '.join(repr(c) for c in error.candidates)}",
        "unwanted": f"option '{option}' doesn't allow an argument",
    }[error.kind]
    return f"qemu-img {command}: {words}\n{hint(command, as_qemu=True, generation=generation)}"


#: What qemu-img can and instar cannot yet: commands, and options by command.
LATER_COMMANDS = (
    *("amend", "bench", "bitmap", "commit", "compare", "convert", "dd", "map", "measure", "rebase", "resize"),
    "snapshot",
)
_LATER_OPTIONS = {"check": ("-r", "--repair")}


def later_words(error: UsageError, command: str) -> str | None:
    """Return what is printed, not as qemu-img, for an option that is not there yet; ``None`` for any other."""
    if error.kind != "unknown" or error.option not in _LATER_OPTIONS.get(command, ()):
        return None
    return f"instar: '{error.option}' is not there yet: this version finds damage and does not repair it"


def hint(command: str, *, as_qemu: bool, generation: tuple[int, int]) -> str:
    """Return the line that says where help is."""
    if not as_qemu:
        return f"see 'instar {command} --help'"
    if generation < (10, 0):
        return "Try 'qemu-img --help' for more information"
    what = f"qemu-img {command}" if command else "qemu-img"
    return f"Try '{what} --help' for more info{'' if generation < (10, 1) else 'rmation'}"
