"""The reader of ``/etc/instar.toml``, against the standard library's reader of TOML."""

from __future__ import annotations

import tomllib

from instar.host.configuration import parse


def seeds() -> list[bytes]:
    """Return texts that are taken, and some of what TOML has besides."""
    return [
        b"",
        b"# nothing\n\n",
        b'minimum-isolation = "kvm"\n',
        b'qemu-version="10.0"  # Debian 13\r\nminimum-isolation\t=\t"process"',
        b'allow-path = ["/var/lib/nova/instances/_base", "/srv/im ages"]\n',
        b'allow-path = [ # base images\n  "/a",\n\n  "/b", # and these\n]\nqemu-version = "7.2"\n',
        b"allow-path = []\n",
        'allow-path = ["/süß", "/漢字"] # ö\n'.encode(),
        b'a = \'x\'\n[t]\nb.c = 1\n"d" = """x"""\ne = "\\u0041"\nf = [["x"], 1, true]\n',
    ]


def one_input(data: bytes) -> None:
    """Any bytes are refused at one of their lines, or are TOML of the same meaning."""
    try:
        found = parse(data)
    except ValueError as error:
        line = getattr(error, "line", 0)
        assert 1 <= line <= 1 + data.count(b"\n"), line
        return
    assert {key: value for key, (_, value) in found.items()} == tomllib.loads(data.decode())
