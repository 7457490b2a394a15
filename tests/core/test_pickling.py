"""Errors survive pickling and copying, with all that is in them, whatever their constructors take."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading
from importlib import import_module
from pkgutil import walk_packages

import pytest

import instar
from instar.core.errors import HostError, ImageError, InstarError, OptionError, SandboxError

#: Importing these runs a program.
PROGRAMS = ("instar.__main__",)
VALUES = {"str": "text\n", "int": 7, "str | None": "named", "int | None": 9, "object": ["value", 3]}
COPIES = {f"pickle {n}": lambda e, n=n: pickle.loads(pickle.dumps(e, n)) for n in range(pickle.HIGHEST_PROTOCOL + 1)}
COPIES |= {"copy": copy.copy, "deepcopy": copy.deepcopy}


def subclasses(kind: type[InstarError]) -> list[type[InstarError]]:
    return [kind] + [below for child in kind.__subclasses__() for below in subclasses(child)]


def all_errors() -> list[type[InstarError]]:
    for module in walk_packages(instar.__path__, "instar."):
        if module.name not in PROGRAMS:
            import_module(module.name)
    return [kind for kind in dict.fromkeys(subclasses(InstarError)) if kind.__module__.startswith("instar.")]


def example(kind: type[InstarError]) -> InstarError:
    """Make an error of a class with something in every field."""
    positional, named = [], {}
    for parameter in inspect.signature(kind).parameters.values():
        value = VALUES[str(parameter.annotation)]
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            positional.append(value)
        else:
            named[parameter.name] = value
    error = kind(*positional, **named)
    error.role, error.image, error.lock, error.story = "backing", "a.qcow2", 'shared "write"', "at 0x1"
    error.add_note("a note")
    return error


def parts(error: InstarError) -> tuple[object, ...]:
    return type(error), error.args, vars(error), str(error), error.facts(), error.exit_code


class Slotted(ImageError):
    __slots__ = ("__hidden", "extra", "unset")

    def __init__(self, extra, hidden, *, needed):
        super().__init__("corrupt", "table", "it is broken")
        self.extra, self.__hidden, self.needed = extra, hidden, needed

    def hidden(self):
        return self.__hidden


class AlsoOfPython(HostError, OSError):
    def __init__(self, request):
        super().__init__(13, "/x", "open", "Permission denied")
        self.request = request


class OddNew(SandboxError):
    def __new__(cls, *, place):
        return super().__new__(cls)

    def __init__(self, *, place):
        super().__init__("died", "it is gone")
        self.place = place


@pytest.fixture(params=COPIES.values(), ids=COPIES)
def copied(request):
    return request.param


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_library_survives_with_every_field(kind, copied):
    error = example(kind)
    assert parts(copied(error)) == parts(error)
    assert copied(error).__notes__ == ["a note"]


@pytest.mark.parametrize("error", [AlsoOfPython(b"\0"), OddNew(place=3)], ids=["other base", "other __new__"])
def test_subclasses_of_others_survive(error, copied):
    assert parts(copied(error)) == parts(error)


def test_slots_survive_and_what_was_not_set_is_not_set(copied):
    again = copied(Slotted({"a": [1]}, "secret name", needed=True))
    assert (again.extra, again.hidden(), again.needed) == ({"a": [1]}, "secret name", True)
    assert not hasattr(again, "unset")


def test_members_of_a_built_in_base_survive(copied):
    again = copied(AlsoOfPython("x"))
    assert (again.errno, again.strerror, again.request) == (13, "Permission denied", "x")


def test_what_can_be_pickled_in_an_error_stays_what_it_is():
    from pathlib import Path

    error = OptionError("x", "y", path=Path("a"), error=ImageError("corrupt", "a", "b"))
    again = pickle.loads(pickle.dumps(error))
    assert again.values["path"] == Path("a")
    assert parts(again.values["error"]) == parts(error.values["error"])


def test_what_cannot_be_pickled_in_an_error_becomes_text():
    lock = threading.Lock()
    error = OptionError("x", "y", value=lambda: None, several=[lock, 1], named={"lock": lock, "n": 2})
    again = pickle.loads(pickle.dumps(error))
    assert again.values["value"].startswith("<function")
    assert again.values["several"][1:] == [1]
    assert again.values["named"]["n"] == 2
    assert "lock" in again.values["several"][0]
    assert "lock" in again.values["named"]["lock"]


def test_copies_share_what_cannot_be_copied():
    lock = threading.Lock()
    error = OptionError("x", "y", lock=lock, rows=[1])
    assert copy.copy(error).values is error.values
    error.lock = lock
    deep = copy.deepcopy(error)
    assert deep.lock is lock
    assert deep is not error


def test_a_deep_copy_shares_no_list_and_keeps_a_loop():
    error = ImageError("corrupt", "a", "b")
    error.rows, error.itself = [1], error
    deep = copy.deepcopy(error)
    assert deep.rows == [1]
    assert deep.rows is not error.rows
    assert deep.itself is deep


def test_an_error_in_itself_and_errors_in_errors_can_be_pickled():
    error = ImageError("corrupt", "a", "b")
    error.first = error.second = error.rows = [error, threading.Lock()]
    again = pickle.loads(pickle.dumps(error))
    assert again.first[0] is again
    for _ in range(100):
        error = OptionError("x", "y", causes=[error, error])
    pickle.loads(pickle.dumps(error))


def test_cause_and_traceback_stay_behind_as_with_any_exception():
    try:
        try:
            raise KeyError("a")
        except KeyError as why:
            raise ImageError("corrupt", "a", "b") from why
    except ImageError as error:
        again = pickle.loads(pickle.dumps(error))
    assert again.__cause__ is None
    assert again.__traceback__ is None
