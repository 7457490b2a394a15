"""Names of images that are written as options: ``json:{"driver": …}`` and ``--image-opts driver=…``.

Law: text only, nothing is opened. What does not come down to one plain local file, read by a format with its ordinary
settings, is refused by its name: options here come from callers, but also from images, which may say anything.
"""

from __future__ import annotations

from instar.core.drivers import DRIVERS
from instar.core.errors import OptionError, printable
from instar.core.keyval import take_key, take_value
from instar.core.qjson import JsonError, loads
from instar.formats import find
from instar.host.names import Source, protocol_of, strip_file_protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.core.qjson import Json

#: Settings of any node that change nothing about what an image is; QEMU's defaults or not.
_HARMLESS = (
    *("node-name", "read-only", "auto-read-only", "discard", "detect-zeroes", "force-share"),
    *("cache.direct", "cache.no-flush", "active"),
)
_FILE_HARMLESS = (*_HARMLESS, "locking", "aio", "aio-max-batch", "pr-manager", "drop-cache", "x-check-cache-dropped")
_QCOW2_HARMLESS = (
    *("lazy-refcounts", "pass-discard-request", "pass-discard-snapshot", "pass-discard-other", "discard-no-unref"),
    *(
        "overlap-check",
        "cache-size",
        "l2-cache-size",
        "l2-cache-entry-size",
        "refcount-cache-size",
        "cache-clean-interval",
    ),
)
#: How an encrypted image is opened. Nothing that is told of an image needs its key, so the secret is not looked for.
_KEYS: dict[str | None, tuple[str, ...]] = {
    "luks": ("key-secret",),
    "qcow2": ("encrypt.format", "encrypt.key-secret"),
    "qcow": ("encrypt.format", "encrypt.key-secret"),
}


def from_json(name: str, format: str | None, generation: tuple[int, int]) -> Source:
    """Return what a ``json:`` name stands for.

    Raises:
        OptionError: ``bad-json-options``, ``json-no-object``, or what ``from_options`` raises.
    """
    try:
        value = loads(name.removeprefix("json:"), generation)
    except JsonError as error:
        raise OptionError("bad-json-options", f"the name is no JSON: {error}", value=str(error), path=name) from None
    if not isinstance(value, dict):
        raise OptionError("json-no-object", "the name is JSON, but no object", path=name)
    flat: dict[str, Json] = {}
    _flatten("", value, flat)
    return from_options(flat, format)


def as_file(name: str, generation: tuple[int, int]) -> Source:
    """Return what a name stands for where it is said to be that of a file, seen as one (``-f file``).

    Raises:
        OptionError: what ``from_json`` raises.
    """
    if name.startswith("json:"):
        return from_json(name, "file", generation)
    return from_options({"filename": strip_file_protocol(name)}, "file")


def from_text(text: str) -> Source:
    """Return what ``--image-opts`` stands for: ``driver=qcow2,file.filename=disk.img``.

    Raises:
        OptionError: what ``from_options`` raises.
    """
    flat: dict[str, Json] = {}
    at = 0
    while at < len(text):
        key, end = take_key(text, at)
        value: Json
        if text[end : end + 1] == "=":
            value, end = take_value(text, end + 1)
        elif at == 0:
            # The first word may leave out its key, which is that of the file.
            key, (value, end) = "file", take_value(text, 0)
        else:
            key, value = (key[2:], "off") if key.startswith("no") else (key, "on")
        flat[key] = value
        at = end + 1
    return from_options(flat, None)


def _flatten(before: str, value: dict[str, Json], flat: dict[str, Json]) -> None:
    for key, member in value.items():
        if isinstance(member, dict):
            _flatten(f"{before}{key}.", member, flat)
        elif isinstance(member, list):
            _flatten(f"{before}{key}.", {str(n): item for n, item in enumerate(member)}, flat)
        else:
            flat[before + key] = member


def from_options(flat: dict[str, Json], format: str | None) -> Source:
    """Return what a tree of options stands for; ``format`` comes before the driver that it names.

    Raises:
        OptionError: ``unknown-driver-name``, ``driver-missing``, ``file-missing``, ``file-name-missing``, ``no-node``,
            ``driver-option``, ``file-option``, ``driver-unsupported``.
    """
    driver = format if format is not None else _text(flat, "driver")
    _known(driver)
    below = {key[5:]: value for key, value in flat.items() if key.startswith("file.")}
    if driver == "file":
        return Source(_file_name(flat), "raw", protocol=True, name=_text(flat, "filename"))
    if driver is not None and find(driver, aliases=False) is None:
        raise _unsupported(driver)
    if "file" in flat:
        name = printable(str(flat["file"]), 200)
        raise OptionError("no-node", f"there is no device or node '{name}'", name=flat["file"])
    if not below:
        if driver is None:
            raise OptionError("driver-missing", "the options name neither a driver nor a file")
        raise OptionError("file-missing", f"driver {driver} needs a file", driver=driver)
    file_driver = _text(below, "driver")
    _known(file_driver)
    if file_driver not in (None, "file"):
        raise _unsupported(str(file_driver))
    path = _file_name(below)
    _refuse_rest(flat, driver)
    key = "key-secret" if driver == "luks" else "encrypt.key-secret"
    secret = _text(flat, key)
    return Source(path, driver, name=_text(below, "filename"), secret=None if secret is None else (key, secret))


def _refuse_rest(flat: dict[str, Json], driver: str | None) -> None:
    allowed = (*_HARMLESS, *(_QCOW2_HARMLESS if driver == "qcow2" else ()), *_KEYS.get(driver, ()))
    for key, value in flat.items():
        if key.startswith("file."):
            if key[5:] not in ("driver", "filename", *_FILE_HARMLESS):
                raise OptionError("file-option", f"driver file has no option '{printable(key[5:])}'", key=key[5:])
        elif key == "backing" and value is None:
            continue
        elif key != "driver" and key not in allowed:
            raise OptionError(
                "driver-option", f"driver {driver} has no option '{printable(key)}' here", key=key, driver=driver
            )


def _file_name(options: dict[str, Json]) -> str:
    name = _text(options, "filename")
    if not name:
        raise OptionError("file-name-missing", "driver file needs the name of a file", value=name)
    # It is meant literally, so nothing in it may be read as a protocol further on.
    return name if protocol_of(name) is None else f"./{name}"


def _text(options: dict[str, Json], key: str) -> str | None:
    value = options.get(key)
    return value if isinstance(value, str) else None


def _known(driver: str | None) -> None:
    if driver is not None and driver not in DRIVERS:
        raise OptionError("unknown-driver-name", f"there is no driver '{printable(driver, 200)}'", driver=driver)


def _unsupported(driver: str) -> OptionError:
    return OptionError(
        "driver-unsupported",
        f"driver '{driver}' is not opened; instar opens plain files only",
        driver=driver,
    )
