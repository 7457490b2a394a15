"""Read arguments as GNU getopt_long does: permutation, ``--``, clusters, ``--opt=value``, unique abbreviations.

Law: a switch is a row; nothing here knows what a switch means.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Switch:
    """One switch of a command.

    Attributes:
        name: key under which its values are found.
        short, long: ``-f`` without the dash, ``--format`` without the dashes; either may be empty.
        metavar: what its argument is called; empty if it takes none.
        help: one line.
        extension: instar's own; qemu-img does not have it.

    Which switches the qemu-img dialect takes stands in ``dialect``, by version.
    """

    __slots__ = ("extension", "help", "long", "metavar", "name", "short")

    def __init__(
        self,
        name: str,
        short: str,
        long: str,
        metavar: str,
        help: str,
        *,
        extension: bool = False,
    ) -> None:
        self.name = name
        self.short = short
        self.long = long
        self.metavar = metavar
        self.help = help
        self.extension = extension


class UsageError(Exception):
    """The arguments cannot be read: ``kind`` is ``unknown``, ``missing``, ``ambiguous`` or ``unwanted``.

    ``option`` is as typed with its dashes; ``long`` tells which form it has. ``word`` is the last whole word that had
    been read to its end, which is what older versions of qemu-img name.
    """

    def __init__(self, kind: str, option: str, *, long: bool, word: str = "", candidates: Sequence[str] = ()) -> None:
        super().__init__(kind, option)
        self.kind = kind
        self.option = option
        self.long = long
        self.word = word
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


def parse(
    switches: Sequence[Switch],
    argv: Sequence[str],
    *,
    numbers_are_words: bool = False,
    command: str = "",
    take: Callable[[str, str], None] | None = None,
) -> Parsed:
    """Read ``argv`` (without the command itself) by the rows.

    Args:
        switches: the rows.
        argv: the words.
        numbers_are_words: take ``-1G`` as a word instead of as switches, so that it can be judged as a size.
        command: what stands before ``argv``.
        take: called with name and value of each switch as it is read, so that what it raises comes before faults
            further on.

    Raises:
        UsageError: for the first word that cannot be read.
    """
    reader = _Reader(switches, argv, command, take)
    for word in reader:
        if word == "--":
            reader.parsed.words += reader.rest()
        elif word.startswith("--"):
            reader.long(word)
        elif word.startswith("-") and word != "-" and not (numbers_are_words and word[1:2].isdigit()):
            reader.cluster(word)
        else:
            reader.parsed.words.append(word)
    return reader.parsed


class _Reader:
    """Where reading has come to."""

    def __init__(
        self, switches: Sequence[Switch], argv: Sequence[str], command: str, take: Callable[[str, str], None] | None
    ) -> None:
        self.parsed = Parsed()
        self._switches = switches
        self._words = list(argv)
        #: the word that is being read, and the one before it
        self._last = self._before = command
        self._take = take

    def __iter__(self) -> _Reader:
        return self

    def __next__(self) -> str:
        if not self._words:
            raise StopIteration
        self._before, self._last = self._last, self._words[0]
        return self._words.pop(0)

    def _argument(self) -> str:
        self._last = self._words[0]
        return self._words.pop(0)

    def rest(self) -> list[str]:
        """Return all words that are left."""
        rest, self._words = self._words, []
        return rest

    def _found(self, switch: Switch, value: str) -> None:
        self.parsed.switches.append((switch.name, value))
        if self._take is not None:
            self._take(switch.name, value)

    def long(self, word: str) -> None:
        """Read ``--name``, ``--name=value`` or ``--name value``."""
        name, equals, value = word[2:].partition("=")
        exact = [s for s in self._switches if s.long and s.long == name]
        matches = exact or [s for s in self._switches if s.long and s.long.startswith(name)]
        if not matches:
            raise UsageError("unknown", f"--{name}" if equals else word, long=True, word=word)
        if len({s.name for s in matches}) > 1:
            names = [f"--{s.long}" for s in matches]
            raise UsageError("ambiguous", word, long=True, word=word, candidates=names)
        switch = matches[0]
        if not switch.metavar and equals:
            raise UsageError("unwanted", f"--{switch.long}", long=True, word=word)
        if switch.metavar and not equals:
            if not self._words:
                raise UsageError("missing", f"--{switch.long}", long=True, word=word)
            value = self._argument()
        self._found(switch, value)

    def cluster(self, word: str) -> None:
        """Read ``-q``, ``-qf raw`` or ``-qfraw``."""
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            switch = next((s for s in self._switches if s.short == letter), None)
            if switch is None:
                raise UsageError("unknown", f"-{letter}", long=False, word=self._before if letters else word)
            if switch.metavar:
                if not letters and not self._words:
                    raise UsageError("missing", f"-{letter}", long=False, word=word)
                self._found(switch, letters or self._argument())
                return
            self._found(switch, "")
