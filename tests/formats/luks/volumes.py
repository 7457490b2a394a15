"""Volumes for tests of LUKS: small ones of our own, and the commands that make and open real ones."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from tests.support import qemu_img, run

from instar.core.options import read_settings, split_list
from instar.core.plan import Allocate, Plan, Seed
from instar.formats.luks import options, plan

if TYPE_CHECKING:
    from pathlib import Path

MiB = 1 << 20
SECRET = b"hunter2"
SEED = Seed(entropy=bytes(range(64)), secret=SECRET)
NOW = (11, 1)
#: The smallest volume there is, as far as key material goes.
SMALL = "cipher-alg=aes-128,cipher-mode=cbc"


def resolved(text: str = SMALL, size: int = MiB) -> dict[str, int | bool | str]:
    settings = read_settings(
        options.CREATE, split_list(f"key-secret=s,{text}" if text else "key-secret=s"), format="luks"
    )
    return options.resolve(size, settings, None)


def planned(text: str = SMALL, size: int = MiB, seed: Seed = SEED) -> Plan:
    return plan.create(size, resolved(text, size), seed)


def volume(text: str = SMALL, size: int = MiB, seed: Seed = SEED) -> bytes:
    made = planned(text, size, seed)
    made.check()
    out = bytearray(made.sizes[0])
    for item in made.items:
        if not isinstance(item, Allocate):
            for offset, data in item.pieces():
                out[offset : offset + len(data)] = data
    return bytes(out)


def secret_words(secret: bytes = SECRET) -> list[str]:
    return ["--object", f"secret,id=s,data={secret.decode()}"]


def make_real(path: Path, text: str, size: int = MiB, *, format: str = "luks") -> None:
    """Make an image with qemu-img."""
    qemu_img("create", "-q", *secret_words(), "-f", format, "-o", text, path, str(size))


def qemu_io(path: Path, format: str, *commands: str) -> None:
    """Run qemu-io on an encrypted image; fail the test if one of its commands does."""
    key = "key-secret=s" if format == "luks" else "encrypt.key-secret=s"
    words = [word for command in commands for word in ("-c", command)]
    image = f"driver={format},{key},file.filename={path}"
    done = run("qemu-io", *words, *secret_words(), "--image-opts", image)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout, done.stdout


def cryptsetup(*words: str | Path, secret: bytes = SECRET) -> subprocess.CompletedProcess[bytes]:
    """Run cryptsetup; the passphrase goes in by its standard input."""
    return subprocess.run(["cryptsetup", *map(str, words)], input=secret, capture_output=True, timeout=120, check=False)
