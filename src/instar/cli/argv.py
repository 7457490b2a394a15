"""Read arguments as GNU getopt_long does: permutation, ``--``, clusters, ``--opt=value``, unique abbreviations.

Law: a switch is a row; nothing here knows what a switch means.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Switch:
    """One switch of a command.

    Attributes:
        name: key under which its values are found.
        short, long: ``-f`` without the dash, ``--format`` without the dashes; either may be empty.
        metavar: what its argument is called; empty if it takes none.
        help: one line.
        since: first qemu-img version that has the long form; the short one has always been there.
        extension: instar's own; the qemu-img dialect does not know it.
    """

    __slots__ = ("extension", "help", "long", "metavar", "name", "short", "since")

    def __init__(
        self,
        name: str,
        short: str,
        long: str,
        metavar: str,
        help: str,
        *,
        since: tuple[int, int] = (0, 0),
        extension: bool = False,
    ) -> None:
        self.name = name
        self.short = short
        self.long = long
        self.metavar = metavar
        self.help = help
        self.since = since
        self.extension = extension


class UsageError(Exception):
    """The arguments cannot be read: ``kind`` is ``unknown``, ``missing``, ``ambiguous`` or ``unwanted``.

    ``option`` is as typed with its dashes; ``long`` tells which form it has.
    """

    def __init__(self, kind: str, option: str, *, long: bool, candidates: Sequence[str] = ()) -> None:
        super().__init__(kind, option)
        self.kind = kind
        self.option = option
        self.long = long
        self.candidates = tuple(candidates)


class Parsed:
    """What was typed: ``(name, value)`` of each switch in order, and the words that are no switches."""

    __slots__ = ("switches", "words")

    def __init__(self) -> None:
        self.switches: list[tuple[str, str]] = []
        self.words: list[str] = []

    def last(self, name: str) -> str | None:
        """Return the value of the last ``name``; ``""`` for a switch without argument."""
        return next((value for key, value in reversed(self.switches) if key == name), None)

    def has(self, name: str) -> bool:
        """Tell whether a switch was given."""
        return any(key == name for key, _ in self.switches)

    def all(self, name: str) -> list[str]:
        """Return all values of a switch in order."""
        return [value for key, value in self.switches if key == name]


def parse(switches: Sequence[Switch], argv: Sequence[str], *, numbers_are_words: bool = False) -> Parsed:
    """Read ``argv`` (without the command itself) by the rows.

    ``numbers_are_words`` takes ``-1G`` as a word instead of as switches, so that it can be judged as a size.

    Raises:
        UsageError: for the first word that cannot be read.
    """
    parsed = Parsed()
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            parsed.words += words
            break
        if word.startswith("--"):
            _long(switches, word, words, parsed)
        elif word.startswith("-") and word != "-" and not (numbers_are_words and word[1:2].isdigit()):
            _cluster(switches, word, words, parsed)
        else:
            parsed.words.append(word)
    return parsed


def _long(switches: Sequence[Switch], word: str, rest: list[str], parsed: Parsed) -> None:
    name, equals, value = word[2:].partition("=")
    matches = [s for s in switches if s.long == name] or [s for s in switches if s.long and s.long.startswith(name)]
    if not matches:
        raise UsageError("unknown", f"--{name}" if equals else word, long=True)
    if len({s.name for s in matches}) > 1:
        raise UsageError("ambiguous", word, long=True, candidates=[f"--{s.long}" for s in matches])
    switch = matches[0]
    if not switch.metavar:
        if equals:
            raise UsageError("unwanted", f"--{switch.long}", long=True)
        parsed.switches.append((switch.name, ""))
        return
    if not equals:
        if not rest:
            raise UsageError("missing", f"--{switch.long}", long=True)
        value = rest.pop(0)
    parsed.switches.append((switch.name, value))


def _cluster(switches: Sequence[Switch], word: str, rest: list[str], parsed: Parsed) -> None:
    letters = word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        switch = next((s for s in switches if s.short == letter), None)
        if switch is None:
            raise UsageError("unknown", f"-{letter}", long=False)
        if not switch.metavar:
            parsed.switches.append((switch.name, ""))
            continue
        if not letters and not rest:
            raise UsageError("missing", f"-{letter}", long=False)
        parsed.switches.append((switch.name, letters or rest.pop(0)))
        return
