"""What can be chosen when a LUKS volume is made, and the rules between the choices.

Law: the rules are judged in qemu-img's order. What QEMU finds only after it has looked up the passphrase (ciphers
and modes that do not fit) is judged where the passphrase is, by ``make.make``.
"""

from __future__ import annotations

from instar.core.errors import OptionError
from instar.core.options import Option, reserved
from instar.formats.luks.ondisk import CIPHER_MODES, HASHES, HASHES_9_2, IV_GENERATORS, header_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from instar.core.options import Settings
    from instar.core.plan import Backing, Bound

#: ``des`` and ``3des`` are QEMU's too; LUKS has neither, and says so later than a name that nobody knows.
CIPHER_NAMES = (
    *("aes-128", "aes-192", "aes-256", "des", "3des", "cast5-128", "serpent-128", "serpent-192", "serpent-256"),
    *("twofish-128", "twofish-192", "twofish-256", "sm4"),
)
HASH_NAMES = (*HASHES, *HASHES_9_2)


def cipher_rows(prefix: str = "") -> tuple[Option, ...]:
    """Return the rows from the cipher to the time for key derivation, which qcow2 has too."""
    return (
        Option(
            f"{prefix}cipher-alg",
            "choice",
            "Name of encryption cipher algorithm",
            default="aes-256",
            choices=CIPHER_NAMES,
            qapi="cipher-alg",
            note="aes-128, aes-192, aes-256; cast5-128 not with xts; sm4 with ecb. The rest is refused by name.",
        ),
        Option(
            f"{prefix}cipher-mode",
            "choice",
            "Name of encryption cipher mode",
            default="xts",
            choices=CIPHER_MODES,
            qapi="cipher-mode",
        ),
        Option(
            f"{prefix}ivgen-alg",
            "choice",
            "Name of IV generator algorithm",
            default="plain64",
            choices=IV_GENERATORS,
            qapi="ivgen-alg",
        ),
        Option(
            f"{prefix}ivgen-hash-alg",
            "choice",
            "Name of IV generator hash algorithm",
            choices=HASH_NAMES,
            qapi="ivgen-hash-alg",
            note="For essiv: sha256 if none is given; its digest must be a key of the cipher.",
        ),
        Option(
            f"{prefix}hash-alg",
            "choice",
            "Name of encryption hash algorithm",
            default="sha256",
            choices=HASH_NAMES,
            qapi="hash-alg",
        ),
        Option(
            f"{prefix}iter-time",
            "num",
            "Time to spend in PBKDF in milliseconds",
            default=2000,
            note="At most 300000. At least 1000 iterations are done.",
        ),
    )


SIZE = Option("size", "size", "Virtual disk size")
KEY_SECRET = Option(
    "key-secret",
    "str",
    "ID of the secret that provides the keyslot passphrase",
    note="Required. The name of one given with --object secret.",
)
DETACHED_HEADER = Option(
    "detached-header",
    "bool",
    "Create a detached LUKS header",
    default=False,
    since=(9, 0),
    note="The file holds the header alone, and SIZE may be left out; the encrypted data will be in another file.",
)
CREATE: tuple[Option, ...] = (SIZE, KEY_SECRET, *cipher_rows(), DETACHED_HEADER)

#: The row of the file itself, which has effect here: it reserves header and data.
PREALLOCATION = Option("preallocation", "choice", "", default="off", choices=("off", "falloc", "full", "metadata"))
JUDGES_PREALLOCATION = True


def needs_size(given: Settings) -> bool:
    """Tell whether the size must be given: not for a header alone."""
    return not given.flag(DETACHED_HEADER)


def choose(given: Settings, rows: Sequence[Option], prefix: str = "") -> dict[str, int | bool | str]:
    """Pick what ``cipher_rows`` offer, in QEMU's order.

    Raises:
        OptionError: ``bad-choice``.
    """
    chosen: dict[str, int | bool | str] = {}
    for row in rows:
        if row.type == "num":
            chosen[row.name] = given.number(row)
        elif given.get(row) is not None:
            chosen[row.name] = row.pick(given.get(row))
    name = f"{prefix}ivgen-hash-alg"
    if chosen[f"{prefix}ivgen-alg"] == "essiv":
        chosen.setdefault(name, "sha256")
    return chosen


def require_secret(given: Settings, row: Option) -> str:
    """Return the name of the secret.

    Raises:
        OptionError: ``secret-missing``.
    """
    name = given.text(row)
    if name is None:
        raise OptionError(
            "secret-missing",
            f"option '{row.name}' is missing; it names the secret with the passphrase, as in"
            f" --object secret,id=s,file=PATH -o {row.name}=s",
            key=row.name,
        )
    return name


def resolve(size: int, given: Settings, backing: Backing | None) -> dict[str, int | bool | str]:
    """Judge the choices for a disk of ``size`` bytes and fill in the rest.

    Returns:
        ``preallocation`` (off, falloc, full), ``key-secret``, ``detached-header`` and what ``choose`` returns.

    Raises:
        OptionError: ``bad-file-choice``, ``bad-choice``, ``secret-missing``.
    """
    mode = str(given.values.get(PREALLOCATION.name, "off"))
    if mode not in PREALLOCATION.choices:
        raise OptionError(
            "bad-file-choice",
            f"option 'preallocation' does not accept '{mode}'; it takes {', '.join(PREALLOCATION.choices)}",
            key=PREALLOCATION.name,
            value=mode,
        )
    chosen: dict[str, int | bool | str] = {"preallocation": "off" if mode == "metadata" else mode}
    chosen.update(choose(given, cipher_rows()))
    chosen["key-secret"] = require_secret(given, KEY_SECRET)
    chosen["detached-header"] = given.flag(DETACHED_HEADER)
    return chosen


def bounds(size: int, options: Mapping[str, int | bool | str], backing: Backing | None) -> tuple[Bound, ...]:
    """Return what each file of an image can need at most; ``options`` are ``resolve``'s."""
    from instar.core.plan import Bound

    length = header_size(options) + (0 if options["detached-header"] else size)
    return (Bound(length, reserved(options, length)),)


def header_size(options: Mapping[str, int | bool | str], prefix: str = "") -> int:
    """Return the bytes of a header with all key slots; each key of ``options`` has ``prefix`` before it."""
    doubled = 2 if options[f"{prefix}cipher-mode"] == "xts" else 1
    return header_bytes(doubled * key_bytes(str(options[f"{prefix}cipher-alg"])))


def key_bytes(cipher: str) -> int:
    """Return the bytes of the key of a cipher of ``CIPHER_NAMES``, without the doubling of XTS."""
    name, _, bits = cipher.partition("-")
    return int(bits) // 8 if bits else {"3des": 24, "des": 8}.get(name, 16)
