"""The passphrase of a new encrypted image: found by the name that an option gives, and how dear it is to derive keys.

Law: a passphrase goes from the caller's table into the job of one cell and nowhere else: no error, no result and no
``repr`` holds it.
"""

from __future__ import annotations

from instar.core.errors import OptionError, printable, shell_word

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.core.options import Settings
    from instar.host.request import Request

#: Options that name a secret.
_KEYS = ("key-secret", "encrypt.key-secret")
_HASHES = ("hash-alg", "encrypt.hash-alg")
_DEFAULT_HASH = "sha256"
#: A measurement is long enough when it took so much processor time; the first try does so many iterations.
_ENOUGH_SECONDS = 0.1
_FIRST_TRY = 1 << 14
_MOST_TRIES = 16


def find_secret(request: Request, secrets: Mapping[str, bytes]) -> bytes | None:
    """Return the passphrase that the request names, or ``None`` if it names none.

    Raises:
        OptionError: ``no-secret``, the caller gave none of that name.
    """
    name = _first(request.settings, _KEYS)
    if name is None:
        return None
    if name not in secrets:
        word = name if shell_word(name) == name else "NAME"
        raise OptionError(
            "no-secret",
            f"there is no secret '{printable(name, 200)}'; give it with --object secret,id={word},…",
            id=name,
        )
    return bytes(secrets[name])


def key_rate(request: Request) -> int:
    """Return how many iterations of PBKDF2 this host does in a second, for one block; 0 where none are needed.

    Measured in processor time, with the hash that the options name (SHA-256 if it has none of that name).
    """
    encryption = request.settings.values.get("encrypt.format")
    if request.row.name != "luks" and encryption != "luks":
        return 0
    return _measure(_first(request.settings, _HASHES) or _DEFAULT_HASH)


def _first(settings: Settings, names: tuple[str, ...]) -> str | None:
    return next((str(settings.values[name]) for name in names if name in settings.values), None)


def _measure(name: str) -> int:
    import hashlib
    import time

    if name not in hashlib.algorithms_available:
        name = _DEFAULT_HASH
    count = _FIRST_TRY
    took = 0.0
    for _ in range(_MOST_TRIES):
        start = time.thread_time()
        hashlib.pbkdf2_hmac(name, b"passphrase", bytes(32), count)
        took = time.thread_time() - start
        if took >= _ENOUGH_SECONDS:
            break
        count *= 2
    return max(1, int(count / max(took, 1e-6)))
