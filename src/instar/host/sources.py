"""Names of images that are written as options: ``json:{"driver": …}`` and ``--image-opts driver=…``.

Law: text only, nothing is opened. What does not come down to one plain local file, or windows into it, read by a format
with its ordinary settings, is refused by its name.
"""

from __future__ import annotations

from instar.core import NEWEST
from instar.core.drivers import DRIVERS
from instar.core.errors import OptionError, printable
from instar.core.keyval import take_key, take_value
from instar.core.options import Option
from instar.core.qjson import JsonError, loads
from instar.core.units import warns_of_size
from instar.formats import find
from instar.host.names import Source, protocol_of, strip_file_protocol
from instar.host.window import Layer, View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from instar.core.qjson import Json

#: Settings of any node that change nothing about what an image is; QEMU's defaults or not.
_HARMLESS = (
    *("node-name", "read-only", "auto-read-only", "discard", "detect-zeroes", "force-share"),
    *("cache.direct", "cache.no-flush", "active"),
)
_FILE_HARMLESS = (*_HARMLESS, "locking", "aio", "aio-max-batch", "pr-manager", "drop-cache", "x-check-cache-dropped")
#: Drivers of files and of block devices.
_PLAIN = ("file", "host_device")
#: What says where a window is, and what else single drivers take. How an encrypted image is opened is among that:
#: nothing that is told of an image needs its key, so the secret is not looked for.
WINDOW = ("offset", "size")
_OF_DRIVERS: dict[str, tuple[str, ...]] = {
    "raw": WINDOW,
    "luks": ("key-secret",),
    "qcow": ("encrypt.format", "encrypt.key-secret"),
    "qcow2": (
        *("encrypt.format", "encrypt.key-secret"),
        *("lazy-refcounts", "pass-discard-request", "pass-discard-snapshot", "pass-discard-other", "discard-no-unref"),
        *("overlap-check", "cache-size", "l2-cache-size", "l2-cache-entry-size", "refcount-cache-size"),
        "cache-clean-interval",
    ),
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
    return from_options(flat, format, generation)


def as_file(name: str, generation: tuple[int, int]) -> Source:
    """Return what a name stands for where it is said to be that of a file, seen as one (``-f file``).

    Raises:
        OptionError: what ``from_json`` raises.
    """
    if name.startswith("json:"):
        return from_json(name, "file", generation)
    return from_options({"filename": strip_file_protocol(name)}, "file")


def from_text(text: str, generation: tuple[int, int], warn: Callable[[str, str], None] | None = None) -> Source:
    """Return what ``--image-opts`` stands for: ``driver=qcow2,file.filename=disk.img``.

    ``warn`` is told of each word without a value, and what is better written.

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
            word = key
            key, value = (key[2:], "off") if key.startswith("no") else (key, "on")
            if warn is not None:
                warn(word, f"{key}={value}")
        flat[key] = value
        at = end + 1
    return from_options(flat, None, generation)


def _flatten(before: str, value: dict[str, Json], flat: dict[str, Json]) -> None:
    for key, member in value.items():
        if isinstance(member, dict) and member:
            _flatten(f"{before}{key}.", member, flat)
        elif isinstance(member, list) and member:
            _flatten(f"{before}{key}.", {str(n): item for n, item in enumerate(member)}, flat)
        else:
            flat[before + key] = member


def from_options(flat: dict[str, Json], format: str | None, generation: tuple[int, int] = NEWEST) -> Source:
    """Return what a tree of options stands for; ``format`` comes before the driver that it names.

    What QEMU finds only when the file is open, or the image, is judged then: see ``Source.view``.

    Raises:
        OptionError: ``unknown-driver-name``, ``driver-missing``, ``file-missing``, ``file-name-missing``, ``no-node``,
            ``driver-unsupported``; ``bad-size``, ``size-out-of-range`` of a window in no file.
    """
    driver = format if format is not None else _text(flat, "driver")
    _known(driver)
    if driver == "file":
        flat = {**flat, "driver": driver}
        view = View(rest=lambda found: _refuse_rest_of_file(flat) if found is None else None)
        return Source(_file_name(flat), "raw", protocol=True, name=_text(flat, "filename"), view=view)
    if driver is not None and find(driver, aliases=False) is None:
        raise _unsupported(driver)
    # What has no driver is probed first, and only what then is raw has a window.
    windowed = driver == "raw" or (driver is None and any(key in flat for key in WINDOW))
    own = _layer(flat, generation) if windowed and any(key in flat for key in WINDOW) else None
    lower = _lower(flat)
    if not lower:
        if driver is None:
            raise OptionError("driver-missing", "the options name neither a driver nor a file")
        raise (own and own.wrong) or _file_missing(driver)
    file, below = _descend(lower, generation)

    def refuse_rest(found: str | None) -> None:
        if found is None:
            _refuse_rest_of_file(file)
        elif own is None or found != "raw":
            refuse_rest_of(flat, found)

    path = _file_name(file)
    key = "key-secret" if driver == "luks" or (driver is None and "key-secret" in flat) else "encrypt.key-secret"
    secret = _text(flat, key)
    return Source(
        path,
        driver,
        name=_text(file, "filename"),
        secret=None if secret is None else (key, secret),
        view=View(below, own, probed=driver is None, rest=refuse_rest, driver=_text(file, "driver")),
    )


def _descend(flat: dict[str, Json], generation: tuple[int, int]) -> tuple[dict[str, Json], tuple[Layer, ...]]:
    """Return the options of the file at the bottom, and the windows above it, from there up."""
    layers: list[Layer] = []
    while True:
        driver = _text(flat, "driver")
        _known(driver)
        if driver in (None, *_PLAIN):
            return flat, tuple(reversed(layers))
        if driver != "raw":
            raise _unsupported(str(driver))
        layer = _layer(flat, generation, below=True)
        layers.append(layer)
        flat = _lower(flat)
        if not flat:
            raise layer.wrong or _file_missing("raw")


def _lower(flat: dict[str, Json]) -> dict[str, Json]:
    """Return the options of what lies below; none if there is nothing.

    Raises:
        OptionError: ``no-node``, it is named instead, as only a running QEMU could understand.
    """
    file = flat.get("file")
    if isinstance(file, str):
        raise OptionError("no-node", f"there is no device or node '{printable(file, 200)}'", name=file)
    return {key[5:]: value for key, value in flat.items() if key.startswith("file.")}


def _layer(flat: dict[str, Json], generation: tuple[int, int], *, below: bool = False) -> Layer:
    """Return what the options say of a window. Of a nested value QEMU takes no notice, if it is empty."""
    given = {key: flat[key] for key in WINDOW if key in flat}
    found: dict[str, int] = {}
    warnings: list[str] = []
    wrong = rest = None
    for key, value in given.items():
        if value is None or isinstance(value, (list, dict)):
            continue
        text = _as_text(value)
        if warns_of_size(text, generation):
            warnings.append(text)
        try:
            number = Option(key, "size", "").parse(text, generation)
        except OptionError as error:
            wrong = error
            break
        found[key] = int(number)
    try:
        backing = [key for key, value in flat.items() if key.partition(".")[0] == "backing" and value is not None]
        if backing and below:
            raise OptionError("raw-backing", "driver raw has no backing files")
        refuse_rest_of(flat, "raw")
    except OptionError as error:
        rest = error
    return Layer(given, found.get("offset", 0), found.get("size"), wrong=wrong, rest=rest, warnings=tuple(warnings))


def _as_text(value: Json) -> str:
    """Return a value as QEMU writes it where it expects a text."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return format(value, ".17g") if isinstance(value, float) else str(value)


def refuse_rest_of(flat: dict[str, Json], driver: str) -> None:
    """Refuse options of an image that its driver does not have.

    Raises:
        OptionError: ``driver-option``.
    """
    allowed = (*_HARMLESS, *_OF_DRIVERS.get(driver, ()))
    for key, value in flat.items():
        if key in ("driver", "file") or key.startswith("file.") or (key == "backing" and value is None):
            continue
        if key not in allowed:
            raise OptionError(
                "driver-option", f"driver {driver} has no option '{printable(key)}' here", key=key, driver=driver
            )


def _refuse_rest_of_file(flat: dict[str, Json]) -> None:
    for key in flat:
        if key not in ("driver", "filename", *_FILE_HARMLESS):
            driver = _text(flat, "driver") or "file"
            raise OptionError(
                "file-option", f"driver {driver} has no option '{printable(key)}'", driver=driver, key=key
            )


def _file_missing(driver: str) -> OptionError:
    return OptionError("file-missing", f"driver {driver} needs a file", driver=driver)


def _file_name(options: dict[str, Json]) -> str:
    name = _text(options, "filename")
    if not name:
        driver = _text(options, "driver") or "file"
        raise OptionError("file-name-missing", f"driver {driver} needs the name of a file", driver=driver, value=name)
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
