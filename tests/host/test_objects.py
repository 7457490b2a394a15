"""``--object``: secrets and nothing else; what real versions answer is compared in ``tests/cli``."""

from __future__ import annotations

import pytest

from instar.core.errors import OptionError
from instar.host.objects import MAX_SECRET, HelpWanted, define


def defined(text, *, generation=(11, 1)):
    secrets: dict[str, bytes] = {}
    define(text, secrets, generation=generation)
    return secrets


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("secret,id=a,data=x", b"x"),
        ("id=a,qom-type=secret,data=x,,y", b"x,y"),
        ("secret,id=a,data=eA==,format=base64", b"x"),
        ("secret,id=a,data=eHl6eA,format=base64", b"xyz"),
        ("secret,id=a,data=\udcff", b"\xff"),
        ('{"qom-type":"secret","id":"a","data":"x"}', b"x"),
    ],
)
def test_gives_the_bytes(text, secret):
    assert defined(text) == {"a": secret}


def test_reads_a_file_whole_with_its_last_newline(tmp_path):
    (tmp_path / "key").write_bytes(b"pass\n")
    assert defined(f"secret,id=a,file={tmp_path}/key") == {"a": b"pass\n"}


def test_reads_no_file_without_end():
    with pytest.raises(OptionError) as caught:
        defined("secret,id=a,file=/dev/zero")
    assert caught.value.code == "secret-long"
    assert str(MAX_SECRET) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("secret,id=a,data=hush,keyid=b", "no-secret"),
        ("secret,id=a,data=hush,file=x", "secret-twice"),
        ("secret,id=a,data=hush!,format=base64", "bad-base64"),
        ("secret,id=a,data=hush,format=foo", "bad-choice"),
        ("secret,id=1,data=hush", "bad-identifier"),
        ("throttle-group,id=a", "object-unsupported"),
        ("iothread,id=a", "object-unavailable"),
        ('{"qom-type":"secret","id":"a","data":["hush"]}', "member-type"),
        ("secret,id=a,data=x,hush", "keyval-value"),
        ("secret,id=a,data=x,hu sh=1", "keyval-key"),
        ("secret,id=a,data=x,hush=1", "member-unexpected"),
        ('{"qom-type":"secret","id":"a","data":"hush', "bad-json"),
    ],
)
def test_refuses_without_a_word_of_the_secret(text, code):
    with pytest.raises(OptionError) as caught:
        defined(text)
    assert caught.value.code == code
    assert "hush" not in f"{caught.value} {caught.value!r} {caught.value.facts()}"


def test_quotes_what_it_cannot_read_where_that_is_asked_for():
    """As qemu-img does, whose words its dialect must have."""
    with pytest.raises(OptionError, match="'hush' needs a value"):
        define("secret,id=a,data=x,hush", {}, generation=(11, 1), quoting=True)


def test_help_is_asked_for_by_name():
    for text, kind in (("help", None), ("secret,help", "secret")):
        with pytest.raises(HelpWanted) as caught:
            defined(text)
        assert caught.value.kind == kind
