"""How qemu-img words what is wrong with encryption by LUKS, in a volume of its own or inside a qcow2 image."""

from __future__ import annotations

#: By ``OptionError.code``; templates over the error's values. ``bad-choice`` is worded alike for all formats. What
#: qemu-img has no sentence for is said in instar's own words: ciphers that the library lacks (``luks-cipher-library``,
#: ``crypto-…``), a limit on the time (``luks-iter-time``), and key material on which qemu-img crashes
#: (``luks-key-length``).
QEMU: dict[str, str] = {
    "luks-cipher": "Algorithm '{value}' not supported",
    "luks-cipher-mode": "Unsupported cipher mode {value}",
    "luks-essiv": "No {family} cipher with key size {size} available",
    "luks-essiv-cipher": "Cipher {value} not supported with essiv",
    "luks-iterations": "PBKDF iterations {value} larger than {limit}: Numerical result out of range",
    "luks-iterations-scale": "PBKDF iterations {value} too large to scale: Numerical result out of range",
    "luks-size": "The requested file size is too large",
    "luks-size-offset": "offset({value}) exceeds maximum({limit})",
}

KEY_SLOTS = 8

#: What is wrong with a header; by ``(kind, field)`` of an ``ImageError``.
HEADER: dict[tuple[str, str], str] = {
    ("invalid-format", "LUKS magic"): "Volume is not in LUKS format",
    ("unsupported-feature", "LUKS version"): "LUKS version {value} is not supported",
    ("corrupt", "cipher_name"): "LUKS header cipher name is not NUL terminated",
    ("corrupt", "cipher_mode"): "LUKS header cipher mode is not NUL terminated",
    ("corrupt", "hash_spec"): "LUKS header hash spec is not NUL terminated",
    ("corrupt", "payload_offset"): "LUKS payload is overlapping with the header",
    ("corrupt", "mk_digest_iter"): "LUKS key iteration count is zero",
    ("corrupt", "parts of cipher_mode"): "Unexpected cipher mode string format '{quoted}'",
    ("corrupt", "hash for essiv"): "Missing IV generator hash specification",
    ("unsupported-feature", "cipher mode in cipher_mode"): "Cipher mode '{quoted}' not supported",
    ("unsupported-feature", "IV generator in cipher_mode"): "IV generator '{quoted}' not supported",
    ("unsupported-feature", "hash in cipher_mode"): "Hash algorithm '{quoted}' not supported",
    ("unsupported-feature", "hash in hash_spec"): "Hash algorithm '{quoted}' not supported",
    ("unsupported-feature", "key_bytes"): "Algorithm '{quoted}' with key size {value} bytes not supported",
    ("unsupported-feature", "essiv key of aes"): "No AES cipher with key size {value} available",
    ("unsupported-feature", "essiv key of serpent"): "No Serpent cipher with key size {value} available",
    ("unsupported-feature", "essiv key of twofish"): "No Twofish cipher with key size {value} available",
    ("unsupported-feature", "essiv key of cast5"): "Cipher cast5-128 not supported with essiv",
    ("unsupported-feature", "essiv key of sm4"): "Cipher sm4 not supported with essiv",
    **{
        ("corrupt", f"{field} of key slot {n}"): f"Keyslot {n} {words}"
        for n in range(KEY_SLOTS)
        for field, words in (
            ("stripes", "is corrupted (stripes {value} != 4000)"),
            ("active", "state (active/disable) is corrupted"),
            ("iterations", "iteration count is zero"),
            ("key_material_offset", "is overlapping with the encrypted payload"),
        )
    },
    **{
        ("corrupt", f"key_material_offset of key slot {n} and the header"): (
            f"Keyslot {n} is overlapping with the LUKS header"
        )
        for n in range(KEY_SLOTS)
    },
    **{
        ("corrupt", f"key_material_offset of key slots {n} and {m}"): (
            f"Keyslots {n} and {m} are overlapping in the header"
        )
        for n in range(KEY_SLOTS)
        for m in range(n + 1, KEY_SLOTS)
    },
}

#: By ``(kind, field)`` of an ``ImageError``; templates over its facts. ``Could not open 'FILE': `` goes before them.
QEMU_OPEN: dict[tuple[str, str], str] = {
    **HEADER,
    ("out-of-bounds", "end"): "Could not refresh total sector count: Input/output error",
}
