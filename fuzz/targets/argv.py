"""The command line of every command, up to the point where a file would be opened."""

from __future__ import annotations

import os
from importlib import import_module

from instar.cli.argv import UsageError, parse
from instar.cli.main import COMMANDS


def seeds() -> list[bytes]:
    """Return command lines, their words separated by NUL."""
    return [
        b"create\0-f\0qcow2\0-o\0cluster_size=4k,compat=v2\0x.qcow2\0001G",
        b"create\0--format=vmdk\0--backing\0base.vmdk\0-Fvmdk\0-uq\0x\0-1G",
        b"info\0--output=json\0--backing-chain\0-U\0--\0-x",
        b"check\0-qf\0vhdx\0--isolation=process\0disk",
    ]


def one_input(data: bytes) -> None:
    """Any words are read or give a ``UsageError``; nothing is lost or made up."""
    words = [os.fsdecode(word) for word in data.split(b"\0")]
    command = words[0] if words[0] in COMMANDS else list(COMMANDS)[len(data) % len(COMMANDS)]
    switches = import_module(f"instar.cli.commands.{command}").SWITCHES
    for numbers_are_words in (False, True):
        try:
            parsed = parse(switches, words[1:], numbers_are_words=numbers_are_words)
        except UsageError:
            continue
        typed = "".join(words[1:])
        assert all(value in typed for _, value in parsed.switches)
        assert all(word in words for word in parsed.words)
