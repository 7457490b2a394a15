"""What a cell may say of a LUKS volume: the shape of its facts, and of what QEMU shows of such a header."""

from __future__ import annotations

from instar.core.image import shape
from instar.core.schema import choice, flag, number, record, rows, text
from instar.formats.luks.ondisk import (
    CIPHER_MODES,
    CIPHERS,
    CIPHERS_9_0,
    FORMAT,
    HASHES,
    HASHES_9_2,
    IV_GENERATORS,
    KEY_SLOTS,
)

_HASH = choice(*HASHES, *HASHES_9_2)
_SLOT = record({"active": flag, "key-offset": number()}, {"iters": number(), "stripes": number()})

#: QEMU's ``QCryptoBlockInfoLUKS``, but for ``format``.
HEADER = {
    "ivgen-alg": choice(*IV_GENERATORS),
    "hash-alg": _HASH,
    "cipher-alg": choice(*CIPHERS_9_0, *(f"{name}-{8 * size}" for name in CIPHERS for size in CIPHERS[name])),
    "uuid": text(40),
    "cipher-mode": choice(*CIPHER_MODES),
    "slots": rows(_SLOT, KEY_SLOTS),
    "payload-offset": number(),
    "master-key-iters": number(),
}
#: What not every version of QEMU shows, or not of every header.
MORE = {"detached-header": flag, "ivgen-hash-alg": _HASH}

SHAPE = shape(FORMAT, specific=record(HEADER, MORE))
