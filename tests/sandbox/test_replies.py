"""What a reply may cost its host: memory and time are bounded whatever a cell answers, and however many cells answer.

Bounds of memory are those of the law; of processor time they are several times that, as the machine may be busy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.hostile.meter import unprintable
from tests.sandbox.exploited import run_exploited

if TYPE_CHECKING:
    from pathlib import Path

MiB = 1 << 20
#: The law is 256 MiB and 5 s for the largest lawful reply; what is not lawful costs less.
MEMORY, SECONDS = 256 * MiB, 15
_HOSTILE = ("nones", "lists", "dicts", "long_text", "numbers", "deep", "keys")
_FORMS = {
    "human": ("info", "image"),
    "json": ("info", "--output=json", "image"),
    "qemu human": ("--dialect=qemu-img", "info", "image"),
    "qemu json chain": ("--dialect=qemu-img", "info", "--output=json", "--backing-chain", "image"),
}


@pytest.mark.parametrize("guest", _HOSTILE)
def test_what_is_too_much_is_refused_before_it_is_made(guest: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(512))
    done = run_exploited(f"tests.sandbox.big_replies:{guest}", "info", "image", cwd=tmp_path)
    assert done.code == 70, done
    assert "sandbox died" not in done.err, done
    assert "ran out of memory" not in done.err, done
    assert done.out == ""
    assert done.host_rss < MEMORY, done
    assert done.host_cpu < SECONDS / 2, done


@pytest.mark.parametrize("form", _FORMS)
def test_the_largest_lawful_reply_has_its_bound(form: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(512))
    done = run_exploited("tests.sandbox.big_replies:snapshots", *_FORMS[form], cwd=tmp_path)
    assert done.code == 0, done
    assert done.out.count("\n") > 65536
    assert not unprintable(done.out)
    assert done.host_rss < MEMORY, done
    assert done.host_cpu < SECONDS, done


@pytest.mark.parametrize("words", [("check", "image"), ("check", "--output=json", "image")])
@pytest.mark.parametrize("dialect", ["instar", "qemu-img"])
def test_the_longest_report_has_its_bound(dialect: str, words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(512))
    done = run_exploited("tests.sandbox.big_replies:findings", f"--dialect={dialect}", *words, cwd=tmp_path)
    assert done.code == 2, done
    assert not unprintable(done.out + done.err)
    assert done.host_rss < MEMORY, done
    assert done.host_cpu < SECONDS / 2, done


@pytest.mark.parametrize("links", [1, 4, 8])
def test_a_chain_keeps_no_more_than_one_image(links: int, tmp_path: Path) -> None:
    for number in range(links):
        (tmp_path / f"{number}").write_bytes(f"{number + 1}".encode().ljust(512, b"\0"))
    done = run_exploited("tests.sandbox.big_replies:chain", "info", "--backing-chain", "0", cwd=tmp_path)
    assert done.code in (1, 70), done
    assert done.host_rss < MEMORY, done
    assert done.host_cpu < SECONDS, done


def test_all_cells_of_a_chain_share_their_time(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}").write_bytes(f"{number + 1}".encode().ljust(512, b"\0"))
    done = run_exploited("tests.sandbox.big_replies:slow", "info", "--backing-chain", "0", cwd=tmp_path)
    assert done.code == 70, done
    assert "processor time" in done.err or "longer than they may" in done.err, done
    assert done.cell_cpu < 30, done
