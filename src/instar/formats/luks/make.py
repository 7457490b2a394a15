"""Makes a LUKS1 header and the material of its first key slot, for a volume of its own or inside of a qcow2 image.

Law: pure. Randomness is the seed's entropy, expanded; time is the seed's rate of PBKDF2. Faults are found in
QEMU's order. No error and no ``repr`` holds a passphrase or a key.
"""

from __future__ import annotations

from instar.core.errors import OptionError
from instar.core.units import UINT64_MAX
from instar.formats.luks.ciphers import Sectors, Spec, algorithm, load
from instar.formats.luks.keys import derive
from instar.formats.luks.ondisk import (
    DIGEST_SIZE,
    FAMILIES,
    HASHES,
    HASHES_9_2,
    KEY_ALIGNMENT_SECTORS,
    KEY_DISABLED,
    KEY_ENABLED,
    KEY_SLOTS,
    MIN_ITERATIONS,
    SALT_SIZE,
    SECTOR,
    STRIPES,
    Header,
    KeySlot,
    block_size,
    essiv_key_bytes,
    header_bytes,
    material_sectors,
)
from instar.formats.luks.options import key_bytes
from instar.formats.luks.splitter import split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.core.plan import Seed

#: Longest time that keys may take, in milliseconds: a cell has ten minutes, and nobody waits so long at each start.
MAX_ITER_TIME = 300_000
_UINT32_MAX = (1 << 32) - 1
_UUID_BYTES = 16
#: Keeps what is drawn from the entropy apart from any other use of it.
_DOMAIN = b"instar LUKS1\0"


class Made:
    """A new header: ``header`` for byte 0, ``material`` for byte ``material_offset``, ``size`` bytes in all."""

    __slots__ = ("header", "material", "material_offset", "size")

    def __init__(self, header: bytes, material: bytes, size: int) -> None:
        self.header = header
        self.material = material
        self.material_offset = KEY_ALIGNMENT_SECTORS * SECTOR
        self.size = size


def spec_of(options: Mapping[str, int | bool | str], prefix: str = "") -> Spec:
    """Return what ``options.choose`` chose."""
    cipher = str(options[f"{prefix}cipher-alg"])
    hash_name = options.get(f"{prefix}ivgen-hash-alg")
    return Spec(
        cipher.partition("-")[0],
        key_bytes(cipher),
        str(options[f"{prefix}cipher-mode"]),
        str(options[f"{prefix}ivgen-alg"]),
        None if hash_name is None else str(hash_name),
    )


def passphrase_of(options: Mapping[str, int | bool | str], prefix: str, secret: bytes | None) -> bytes:
    """Return the passphrase, which QEMU takes as text.

    Raises:
        OptionError: ``secret-not-utf8`` (a NUL counts as such), ``no-secret``.
    """
    name = str(options[f"{prefix}key-secret"])
    if secret is None:
        raise OptionError("no-secret", f"there is no secret '{name}'", id=name)
    try:
        if b"\0" in secret:
            raise ValueError
        secret.decode()
    except ValueError:
        raise OptionError(
            "secret-not-utf8", f"the passphrase of secret '{name}' is not text in UTF-8 without NUL", id=name
        ) from None
    return secret


def preload(options: Mapping[str, object]) -> None:
    """Import what ``make`` imports on use, whatever the options; let the library do once what it does on first use.

    Without the library nothing is imported, and ``make`` says so. Needed where later nothing can be imported.
    """
    import hashlib

    for name in (*HASHES, *HASHES_9_2):
        try:
            hashlib.pbkdf2_hmac(name, b"", b"", 1)
            hashlib.new(name)
        except ValueError:
            pass  # not in this build of OpenSSL
    hashlib.shake_256()
    if not load():
        return  # said when a cipher is wanted
    for cipher, bits in (("aes", 128), ("aes", 192), ("aes", 256), ("cast5", 128), ("sm4", 128)):
        for mode in ("ecb", "cbc", "ctr", *(("xts",) if cipher == "aes" else ())):
            spec = Spec(cipher, bits // 8, mode, "plain64", None)
            try:
                Sectors(spec, bytes(range(spec.master_key_bytes))).decrypt(bytes(SECTOR))
            except OptionError:
                pass  # not in this build of the library; said when it is wanted


def make(options: Mapping[str, int | bool | str], seed: Seed, *, prefix: str = "", detached: bool = False) -> Made:
    """Make header and key material for a passphrase.

    Args:
        options: what ``options.choose`` chose, each key with ``prefix`` before it.
        seed: ``secret`` is the passphrase, ``pbkdf_rate`` the rate; all of ``entropy`` is expanded with SHAKE-256 into
            identifier, master key, salts and stripes.
        prefix: ``encrypt.`` for qcow2.
        detached: the encrypted data is in another file.

    Raises:
        OptionError: ``no-secret``, ``secret-not-utf8``, ``luks-cipher``, ``luks-essiv``, ``luks-cipher-mode``,
            ``luks-cipher-library``, ``luks-hash-missing``, ``crypto-missing``, ``luks-iterations``,
            ``luks-iterations-scale``, ``luks-iter-time``.
    """
    import hashlib

    passphrase = passphrase_of(options, prefix, seed.secret)
    spec = judge(options, prefix)
    size = spec.master_key_bytes
    hash_name = str(options[f"{prefix}hash-alg"])
    stripes = size * (STRIPES - 1)
    random = hashlib.shake_256(_DOMAIN + seed.entropy).digest(_UUID_BYTES + size + 2 * SALT_SIZE + stripes)
    draws = []
    for length in (_UUID_BYTES, size, SALT_SIZE, SALT_SIZE, stripes):
        draws.append(random[:length])
        random = random[length:]
    uuid, key, key_salt, slot_salt, stripe_bytes = draws

    slot_count, key_count = _iterations(int(options[f"{prefix}iter-time"]), seed.pbkdf_rate, hash_name, size)
    digest = derive(hash_name, key, key_salt, key_count, DIGEST_SIZE)
    slot_key = derive(hash_name, passphrase, slot_salt, slot_count, size)
    material = Sectors(spec, slot_key).encrypt(split(key, stripe_bytes, hash_name))

    mode = f"{spec.mode}-{spec.generator}" + ("" if spec.generator_hash is None else f":{spec.generator_hash}")
    total = header_bytes(size)
    parts = [
        Header(
            cipher_name=spec.cipher.encode(),
            cipher_mode=mode.encode(),
            hash_spec=hash_name.encode(),
            payload_offset=0 if detached else total // SECTOR,
            key_bytes=size,
            mk_digest=digest,
            mk_digest_salt=key_salt,
            mk_digest_iter=key_count,
            uuid=_uuid(uuid),
        ).pack()
    ]
    for index in range(KEY_SLOTS):
        slot = KeySlot(
            active=KEY_DISABLED,
            iterations=0,
            salt=b"",
            key_material_offset=KEY_ALIGNMENT_SECTORS + index * material_sectors(size),
            stripes=STRIPES,
        )
        if not index:
            slot = slot.replace(active=KEY_ENABLED, iterations=slot_count, salt=slot_salt)
        parts.append(slot.pack())
    return Made(b"".join(parts), material, total)


def judge(options: Mapping[str, int | bool | str], prefix: str = "") -> Spec:
    """Refuse ciphers that LUKS, QEMU or the library does not have, in QEMU's order; see ``make`` for the codes."""
    spec = spec_of(options, prefix)
    chosen = str(options[f"{prefix}cipher-alg"])
    if chosen in ("des", "3des"):
        raise OptionError(
            "luks-cipher", f"LUKS has no cipher '{chosen}'; use aes-256", key=f"{prefix}cipher-alg", value=chosen
        )
    if spec.generator == "essiv":
        _judge_essiv(chosen, prefix, spec)
    if (spec.mode == "xts" and block_size(spec.cipher) != 16) or (spec.cipher == "sm4" and spec.mode != "ecb"):
        raise OptionError(
            "luks-cipher-mode",
            f"the cipher '{chosen}' has no mode '{spec.mode}'; use"
            + (" ecb" if spec.cipher == "sm4" else " cbc, or another cipher"),
            key=f"{prefix}cipher-mode",
            value=spec.mode,
        )
    algorithm(spec.cipher, bytes(spec.key_bytes))
    if spec.master_key_bytes * STRIPES % SECTOR:
        # cryptsetup makes such volumes, and they are read here; QEMU ends with a failed assertion when it opens one.
        raise OptionError(
            "luks-key-length",
            f"the cipher '{chosen}' in mode '{spec.mode}' has key material that does not end with a sector, on which"
            f" QEMU crashes; use cipher-mode=xts, or a key of 128 or 256 bits",
            key=f"{prefix}cipher-alg",
            value=chosen,
        )
    return spec


def _judge_essiv(chosen: str, prefix: str, spec: Spec) -> None:
    """Refuse ESSIV with a hash whose digest is no key of the cipher."""
    hash_name = str(spec.generator_hash)
    digest = {**HASHES, **HASHES_9_2}[hash_name]
    if essiv_key_bytes(spec.cipher, spec.key_bytes, digest) is None:
        family = "AES" if spec.cipher == "aes" else spec.cipher.capitalize()
        known = spec.cipher in FAMILIES
        raise OptionError(
            "luks-essiv" if known else "luks-essiv-cipher",
            f"the IV generator essiv takes the {digest} bytes of '{hash_name}' for a key,"
            f" and the cipher '{chosen}' takes no key of that length; use ivgen-hash-alg=sha256 with aes",
            key=f"{prefix}ivgen-hash-alg",
            value=chosen,
            family=family,
            size=digest,
        )


def _iterations(iter_time: int, rate: int, hash_name: str, key_bytes: int) -> tuple[int, int]:
    """Return how often to iterate for the key slot and, an eighth of the time, for the master key's digest.

    ``iter_time`` is in milliseconds, ``rate`` in iterations a second for one block of output.
    """
    digest = {**HASHES, **HASHES_9_2}[hash_name]
    counts = []
    for size, share in ((DIGEST_SIZE, 8), (key_bytes, 1)):
        per_second = rate // -(-size // digest)
        if iter_time and per_second > UINT64_MAX // iter_time:
            raise OptionError(
                "luks-iterations-scale",
                f"the option 'iter-time' takes at most {MAX_ITER_TIME} milliseconds, not {iter_time}",
                value=per_second,
            )
        count = per_second * iter_time // 1000 // share
        if count > _UINT32_MAX:
            raise OptionError(
                "luks-iterations",
                f"the option 'iter-time' of {iter_time} milliseconds makes {count} iterations;"
                f" a header counts at most {_UINT32_MAX}",
                value=count,
                limit=_UINT32_MAX,
            )
        counts.append(max(count, MIN_ITERATIONS))
    if iter_time > MAX_ITER_TIME:
        raise OptionError(
            "luks-iter-time",
            f"the option 'iter-time' takes at most {MAX_ITER_TIME} milliseconds, not {iter_time}",
            value=iter_time,
            limit=MAX_ITER_TIME,
        )
    key_count, slot_count = counts
    return slot_count, key_count


def _uuid(random: bytes) -> bytes:
    """Return a UUID of version 4, variant 1 (RFC 4122, 4.4), as text."""
    number = int.from_bytes(random, "big")
    number = number & ~(0xF << 76) | 0x4 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    text = f"{number:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:])).encode()
