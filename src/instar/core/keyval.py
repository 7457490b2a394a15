"""Read ``KEY=VALUE,…`` as QEMU's newer switches do (``--object``): keys of several parts, no key without a value.

Law: pure; any text gives a value or an ``OptionError``. Source: QEMU, ``util/keyval.c``, which states the syntax.
"""

from __future__ import annotations

from instar.core.errors import OptionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    Tree = dict[str, "str | Tree"]

#: Longest part of a key.
_MAX_PART = 127
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


def take_value(text: str, at: int) -> tuple[str, int]:
    """Return the value that begins at ``at``, where ``,,`` stands for one comma, and where it ends."""
    parts: list[str] = []
    while True:
        end = text.find(",", at)
        if end < 0:
            return "".join([*parts, text[at:]]), len(text)
        if text[end + 1 : end + 2] != ",":
            return "".join([*parts, text[at:end]]), end
        parts.append(text[at : end + 1])
        at = end + 2


def take_key(text: str, at: int) -> tuple[str, int]:
    """Return what stands before the next ``=`` or ``,``, and where that is."""
    ends = [end for end in (text.find("=", at), text.find(",", at)) if end >= 0]
    end = min(ends, default=len(text))
    return text[at:end], end


def parse(text: str, implied: str) -> Tree:
    """Return the tree that a text stands for; its first member may leave out the key ``implied``.

    Raises:
        OptionError: ``keyval-key``, ``keyval-value``, ``keyval-long``, ``keyval-inconsistent``.
    """
    tree: Tree = {}
    at = 0
    while at < len(text):
        key, end = take_key(text, at)
        if at == 0 and key and text[end : end + 1] != "=":
            tree[implied], at = key, end
        else:
            _judge(key)
            if text[end : end + 1] != "=":
                raise OptionError("keyval-value", f"'{key}' needs a value, as in {key}=VALUE", key=key)
            value, at = take_value(text, end + 1)
            _put(tree, key, value)
        at += 1
    return tree


def _judge(key: str) -> None:
    for number, part in enumerate(key.split(".")):
        if number and part.isascii() and part.isdecimal():
            continue
        if not (part[:1].isascii() and part[:1].isalpha() and _NAME.issuperset(part)):
            raise OptionError("keyval-key", f"'{key}' is not a key", key=key)
        if len(part) > _MAX_PART:
            raise OptionError("keyval-long", f"the key '{part}' is too long", key=part)


def _put(tree: Tree, key: str, value: str) -> None:
    parts = key.split(".")
    for number, part in enumerate(parts[:-1]):
        below = tree.setdefault(part, {})
        if isinstance(below, str):
            raise _inconsistent(".".join(parts[: number + 1]))
        tree = below
    if isinstance(tree.get(parts[-1]), dict):
        raise _inconsistent(key)
    tree[parts[-1]] = value


def _inconsistent(key: str) -> OptionError:
    return OptionError("keyval-inconsistent", f"'{key}' is given a value and members", key=key)
