"""Replies that are to fill the host's memory and use up its time: each is bounded, by itself and in a chain.

Each attack is a command in a process of its own, whose memory is measured. An ordinary run takes a part of them in
each form of output; ``INSTAR_ALL_CASES=1`` takes all in all.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.attacks.hostile_replies import CHECK, CREATE, INFO, MANY
from tests.attacks.laws import ALL_CASES, MOST_CPU, image_of, obey, obey_budget
from tests.sandbox.backends import KVM, needs_kvm
from tests.sandbox.exploited import run_exploited

if TYPE_CHECKING:
    from pathlib import Path

_AT = "tests.attacks.hostile_replies"

#: Those that differ from others in amount, and take seconds.
_LONG = ("65,536 snapshots whose names are escapes", "different keys at the top", "bitmaps without an end")


def _forms(name: str, number: int, forms: int) -> list[int]:
    if ALL_CASES:
        return list(range(forms))
    return [] if name in _LONG else [number % forms]


_FORMS = (["info"], ["info", "--output=json"], ["--dialect=qemu-img", "info"], ["info", "--backing-chain"])
_INFO = [
    pytest.param(number, form, id=f"{name}-{' '.join(_FORMS[form])}")
    for number, name in enumerate(INFO)
    for form in _forms(name, number, len(_FORMS) if ALL_CASES else 2)
]


@pytest.mark.parametrize(("number", "form"), _INFO)
def test_description(number: int, form: int, tmp_path: Path) -> None:
    words = _FORMS[form]
    done = run_exploited(f"{_AT}:info_{number}", *words, str(image_of(tmp_path)))
    obey_budget(obey(done, json_asked="--output=json" in words))


@pytest.mark.parametrize("kind", [KVM])
@pytest.mark.parametrize("name", ["lists of one None", "one text that one character makes four times as large"])
def test_description_out_of_a_machine(name: str, kind: str, tmp_path: Path) -> None:
    number = list(INFO).index(name)
    obey_budget(obey(run_exploited(f"{_AT}:info_{number}", "info", str(image_of(tmp_path)), kind=kind)))


@pytest.mark.parametrize("name", CHECK)
def test_report(name: str, tmp_path: Path) -> None:
    number = list(CHECK).index(name)
    words = (["check"], ["check", "--output=json"], ["--dialect=qemu-img", "check"])[number % 3]
    done = run_exploited(f"{_AT}:check_{number}", *words, str(image_of(tmp_path)))
    obey_budget(obey(done, json_asked="--output=json" in words))


@pytest.mark.parametrize("name", CREATE)
def test_totals_of_a_new_image(name: str, tmp_path: Path) -> None:
    number = list(CREATE).index(name)
    done = run_exploited(f"{_AT}:create_{number}", "create", "-f", "qcow2", str(tmp_path / "new"), "1M")
    obey_budget(obey(done))
    assert done.code == 70
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", MANY)
def test_rows_of_many_new_images(name: str, tmp_path: Path) -> None:
    number = list(MANY).index(name)
    (tmp_path / "jobs").write_text(json.dumps({"filename": "new", "size": "1M", "format": "qcow2"}) + "\n")
    done = run_exploited(f"{_AT}:many_{number}", "create", "--batch", "jobs", cwd=tmp_path)
    obey_budget(obey(done))
    assert not (tmp_path / "new").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["jobs"]


@pytest.mark.parametrize(
    ("kind", "output"),
    [("process", "human"), ("process", "json"), *([pytest.param("kvm", "json", marks=needs_kvm)] if ALL_CASES else [])],
)
def test_largest_lawful_description_is_shown_within_the_budget(kind: str, output: str, tmp_path: Path) -> None:
    done = run_exploited(f"{_AT}:largest_lawful", "info", f"--output={output}", str(image_of(tmp_path)), kind=kind)
    obey_budget(obey(done, json_asked=output == "json"))
    assert done.code == 0
    assert done.out.count("a snapshot of some day") == 65_536


def _chain(folder: Path, links: int) -> Path:
    for number in range(links):
        (folder / str(number)).write_bytes(b"%8d" % number + bytes(4088))
    return folder / "0"


@pytest.mark.parametrize("links", [1, 4, 8] if ALL_CASES else [4])
@pytest.mark.parametrize("guest", ["chain_link", "chain_link_of_values"])
def test_chain_whose_cells_each_reply_8_mib(guest: str, links: int, tmp_path: Path) -> None:
    done = run_exploited(f"{_AT}:{guest}", "info", "--backing-chain", str(_chain(tmp_path, links)))
    obey_budget(obey(done), cpu=2 * MOST_CPU)


@pytest.mark.parametrize("guest", ["chain_link", "chain_link_of_values", "chain_link_of_references"])
def test_chain_of_199_links_whose_cells_reply_much(guest: str, tmp_path: Path) -> None:
    done = run_exploited(f"{_AT}:{guest}", "info", "--backing-chain", "--output=json", str(_chain(tmp_path, 199)))
    obey_budget(obey(done, json_asked=True), cpu=2 * MOST_CPU)


def test_library_s_chain_of_many_values_ends_with_an_error_that_can_be_pickled(tmp_path: Path) -> None:
    import pickle

    from tests.attacks.hostile_replies import chain_link
    from tests.sandbox.exploited import exploited

    import instar

    with exploited(chain_link()) as isolation, pytest.raises(instar.InstarError) as caught:
        instar.info_chain(str(_chain(tmp_path, 12)), isolation=isolation)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (type(caught.value), str(caught.value))
    assert len(again.described) == len(caught.value.described)


@pytest.mark.parametrize("guest", ["announces_much", "tells_much", "asks_without_end"])
@pytest.mark.parametrize("command", ["info", "check"])
def test_message_before_the_reply(command: str, guest: str, tmp_path: Path) -> None:
    done = run_exploited(f"{_AT}:{guest}", command, str(image_of(tmp_path)))
    obey_budget(obey(done))
    assert done.code != 0
