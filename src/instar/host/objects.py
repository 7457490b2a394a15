"""What ``--object`` defines: secrets, the only objects that images need. Other kinds are refused by their names.

Law: a secret's bytes go into the caller's table and nowhere else. No error holds what was typed as ``data=`` or read
from a file; where qemu-img quotes what it cannot read, so does its dialect (``quoting``), and nobody else.
"""

from __future__ import annotations

from instar.core.errors import OptionError, printable
from instar.core.keyval import parse
from instar.core.qjson import JsonError, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.core.keyval import Tree
    from instar.core.qjson import Json

#: A passphrase or key: longer than any that a format takes.
MAX_SECRET = 1 << 20
_FORMATS = ("raw", "base64")
_MEMBERS = ("qom-type", "id", "format", "keyid", "iv", "data", "file")
_BASE64 = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\n")
#: Since this version a secret has no member ``loaded``.
_NO_LOADED = (10, 0)

#: Kinds of objects that QEMU's schema names: what each must have besides an id, in the order in which it is missed.
_KINDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            *(
                "authz-list",
                "main-loop",
                "secret",
                "thread-context",
                "throttle-group",
                "tls-creds-anon",
                "tls-creds-psk",
            ),
            *("tls-creds-x509", "can-bus", "cryptodev-backend", "cryptodev-backend-builtin", "iothread", "pef-guest"),
            *("rng-builtin", "rng-random", "s390-pv-guest"),
        ),
        (),
    ),
    **dict.fromkeys(("filter-buffer", "filter-replay", "filter-rewriter", "filter-redirector"), ("netdev",)),
    **dict.fromkeys(("memory-backend-memfd", "memory-backend-ram", "memory-backend-epc"), ("size",)),
    "authz-list-file": ("filename",),
    "authz-pam": ("service",),
    "authz-simple": ("identity",),
    "can-host-socketcan": ("if", "canbus"),
    "colo-compare": ("primary_in", "secondary_in", "outdev"),
    "cryptodev-vhost-user": ("chardev",),
    "dbus-vmstate": ("addr",),
    "filter-dump": ("netdev", "file"),
    "filter-mirror": ("netdev", "outdev"),
    "input-barrier": ("name",),
    "input-linux": ("evdev",),
    "memory-backend-file": ("size", "mem-path"),
    "pr-manager-helper": ("path",),
    "qtest": ("chardev",),
    "rng-egd": ("chardev",),
    "secret_keyring": ("serial",),
    "sev-guest": ("reduced-phys-bits",),
    "x-remote-object": ("fd", "devid"),
    "x-vfio-user-server": ("socket", "device"),
}
#: Those that came later or went, with the versions from which and up to which they were there.
_NOT_ALWAYS: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[str, ...]]] = {
    "tls-cipher-suites": ((0, 0), (10, 0), ()),
    "acpi-generic-initiator": ((9, 0), (99, 0), ("pci-dev", "node")),
    "iommufd": ((9, 0), (99, 0), ()),
    "tdx-guest": ((10, 1), (99, 0), ()),
}
#: Kinds that qemu-img can make; none but a secret is of use to an image in a plain file.
AVAILABLE = (
    *("authz-list", "authz-list-file", "authz-simple", "main-loop", "pr-manager-helper", "secret", "secret_keyring"),
    *("thread-context", "throttle-group", "tls-cipher-suites", "tls-creds-anon", "tls-creds-psk", "tls-creds-x509"),
)
_NOT_READ = "the object cannot be read as KEY=VALUE,…; a comma in a value is written twice"
#: What is said instead of what would quote something that may be part of a secret, by ``OptionError.code``.
_QUOTED = {
    **dict.fromkeys(("keyval-key", "keyval-value", "keyval-long", "keyval-inconsistent"), _NOT_READ),
    "bad-json": "the object is no JSON",
    "member-unexpected": "a secret has no other members than id, format, data and file",
}


class HelpWanted(Exception):
    """The words ask what there is: ``kind`` of object, or ``None`` for all kinds."""

    def __init__(self, kind: str | None) -> None:
        super().__init__(kind)
        self.kind = kind


def define(text: str, secrets: dict[str, bytes], *, generation: tuple[int, int], quoting: bool = False) -> None:
    """Read one object's definition, ``KEY=VALUE,…`` or a JSON object, and add the secret to ``secrets``.

    ``quoting``: what cannot be read may be quoted in the error, though it may be part of a secret.

    Raises:
        OptionError: it is none, or of another kind. HelpWanted: it asks for help.
    """
    try:
        members = _members(text, generation)
        secrets[str(members.get("id"))] = _read(members, secrets, generation)
    except OptionError as error:
        if quoting or error.code not in _QUOTED:
            raise
        raise OptionError(error.code, _QUOTED[error.code]) from None


def _members(text: str, generation: tuple[int, int]) -> Mapping[str, Json | Tree]:
    if not text.startswith("{"):
        _help(text)
        return parse(text, "qom-type")
    try:
        value = loads(text, generation)
    except JsonError as error:
        raise OptionError("bad-json", str(error), value=str(error)) from None
    assert isinstance(value, dict)
    return value


def _help(text: str) -> None:
    words = text.split(",")
    if words[0] in ("help", "?"):
        raise HelpWanted(None)
    if any(word in ("help", "?") for word in words[1:]):
        raise HelpWanted(words[0].removeprefix("qom-type="))


def describe(kind: str | None) -> str:
    """Return the help that was asked for: of objects there are, or of a kind's settings."""
    if kind is None:
        return "List of user creatable objects:\n  secret\n"
    if kind != "secret":
        return f"There are no options for {printable(kind, 200)}.\n"
    return "secret options:\n  data=<string>\n  file=<string>\n  format=<QCryptoSecretFormat>\n"


def _read(members: Mapping[str, object], secrets: Mapping[str, bytes], generation: tuple[int, int]) -> bytes:
    """Judge members in the order in which QEMU visits them, and return the secret."""
    kind = _text(members, "qom-type", needed=True)
    needs = _KINDS.get(str(kind))
    if kind in _NOT_ALWAYS:
        since, until, those = _NOT_ALWAYS[kind]
        needs = those if since <= generation < until else None
    if needs is None:
        raise _choice("qom-type", kind)
    name = _text(members, "id", needed=True)
    for key in needs:
        if key not in members:
            raise OptionError("member-missing", f"an object of kind '{kind}' needs {key}=", key=key)
    found: dict[str, str | None] = {}
    if kind == "secret":
        loaded = members.get("loaded") if generation < _NO_LOADED else None
        if isinstance(loaded, str) and loaded not in ("on", "off"):
            raise OptionError("bad-bool", "option 'loaded' is on or off", key="loaded", value=loaded)
        found = {key: _text(members, key) for key in ("format", "keyid", "iv", "data", "file")}
        if found["format"] not in (None, *_FORMATS):
            raise _choice("format", found["format"])
        for key in reversed(list(members)):
            if key not in _MEMBERS and not (key == "loaded" and generation < _NO_LOADED):
                raise OptionError("member-unexpected", f"a secret has no '{printable(key)}'", key=key)
    if not _is_identifier(name):
        raise OptionError(
            "bad-identifier",
            "an object's id begins with a letter, followed by letters, digits, '-', '.' and '_'",
            key="id",
        )
    if kind not in AVAILABLE:
        raise OptionError("object-unavailable", f"there is no object of kind '{kind}' here", kind=kind)
    if kind != "secret":
        raise OptionError(
            "object-unsupported", f"objects of kind '{kind}' are not supported, only secrets are", kind=kind
        )
    if "loaded" in members:
        raise OptionError("member-read-only", "the secret's 'loaded' cannot be set", key="loaded")
    return _load(str(name), found, secrets)


def _load(name: str, found: Mapping[str, str | None], secrets: Mapping[str, bytes]) -> bytes:
    data, file = found["data"], found["file"]
    if file is not None and data is not None:
        raise OptionError("secret-twice", "a secret has data= or file=, not both")
    if file is None and data is None:
        raise OptionError("secret-empty", "a secret needs data= or file=")
    content = _read_file(file) if file is not None else str(data).encode("utf-8", "surrogateescape")
    if found["keyid"] is not None:
        if found["keyid"] not in secrets:
            raise OptionError("no-secret", f"there is no secret '{printable(found['keyid'], 200)}'", id=found["keyid"])
        raise OptionError(
            "secret-keyid", "encrypted secrets (keyid=) are not supported; give it as it is, or in a file"
        )
    if found["format"] == "base64":
        content = _decode(content)
    if name in secrets:
        raise OptionError("object-twice", f"there are two objects with the id '{name}'", id=name)
    return content


def _decode(content: bytes) -> bytes:
    """Decode base64 as QEMU does: whole groups of four characters; what is left over is dropped without a word."""
    import binascii

    text = content.decode("latin-1")
    if not _BASE64.issuperset(text):
        raise OptionError("bad-base64", "the secret's base64 has characters that base64 has not")
    text = text.replace("\n", "")
    out = bytearray()
    for at in range(0, len(text) - len(text) % 4, 4):
        group = text[at : at + 4]
        pad = 2 if group[2] == "=" else 1 if group[3] == "=" else 0
        out += binascii.a2b_base64(group.replace("=", "A"))[: 3 - pad]
    return bytes(out)


def _read_file(path: str) -> bytes:
    import os

    from instar.host.files import open_stream

    code = "secret-file"
    try:
        with open(path, "rb", opener=lambda name, flags: open_stream(name)) as file:
            code = "secret-file-read"
            content = file.read(MAX_SECRET + 1)
    except IsADirectoryError:
        code, reason = "secret-file-read", os.strerror(21)
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else "this cannot be a file name"
    else:
        if len(content) > MAX_SECRET:
            raise OptionError(
                "secret-long", f"the secret in {printable(path)} is longer than {MAX_SECRET} bytes", path=path
            )
        return content
    raise OptionError(code, f"the secret in {printable(path)} cannot be read: {reason}", path=path, reason=reason)


def _text(members: Mapping[str, object], key: str, *, needed: bool = False) -> str | None:
    """Return a member that is a text."""
    if key not in members:
        if needed:
            raise OptionError("member-missing", f"the object has no {key}=", key=key)
        return None
    value = members[key]
    if isinstance(value, dict) and key != "qom-type":
        raise OptionError("members-unexpected", f"the object's '{key}' has no members", key=key)
    if not isinstance(value, str):
        raise OptionError("member-type", f"the object's '{key}' is not a text", key=key, expected="string")
    return value


def _choice(key: str, value: str | None) -> OptionError:
    detail = f"'{key}' does not accept '{printable(str(value), 200)}'"
    return OptionError("bad-choice", detail, key=key, qapi=key, value=value)


def _is_identifier(name: str | None) -> bool:
    return bool(name and name.isascii() and name[0].isalpha() and all(c.isalnum() or c in "-._" for c in name))
