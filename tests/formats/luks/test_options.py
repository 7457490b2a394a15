"""The options of a new volume: what is accepted, what is refused, and in which order, as qemu-img does it."""

from __future__ import annotations

import pytest
from tests.formats.luks.volumes import MiB, resolved
from tests.support import QEMU_IMG, needs_qemu_img, run

from instar.cli.messages import option_words
from instar.core.errors import OptionError
from instar.core.options import read_settings, split_list
from instar.core.plan import Seed
from instar.formats.luks import options, plan
from instar.formats.luks.make import MAX_ITER_TIME

#: Options, size, code. Where two rules are broken, the code is of the one that qemu-img finds first.
REFUSED = [
    ("preallocation=foo,cipher-alg=foo", MiB, "bad-file-choice"),
    ("cipher-alg=foo,cipher-mode=foo", MiB, "bad-choice"),
    ("cipher-mode=foo,ivgen-alg=foo", MiB, "bad-choice"),
    ("ivgen-alg=foo,ivgen-hash-alg=foo,hash-alg=foo", MiB, "bad-choice"),
    ("ivgen-hash-alg=foo,hash-alg=foo", MiB, "bad-choice"),
    ("hash-alg=foo,key-secret=s", MiB, "bad-choice"),
    ("cipher-alg=des", MiB, "secret-missing"),
    ("key-secret=s,cipher-alg=des,ivgen-alg=essiv,ivgen-hash-alg=md5", MiB, "luks-cipher"),
    ("key-secret=s,cipher-alg=3des", MiB, "luks-cipher"),
    ("key-secret=s,cipher-alg=cast5-128", MiB, "luks-cipher-mode"),
    ("key-secret=s,cipher-alg=cast5-128,ivgen-alg=essiv", MiB, "luks-essiv-cipher"),
    ("key-secret=s,ivgen-alg=essiv,ivgen-hash-alg=sha1", MiB, "luks-essiv"),
    ("key-secret=s,cipher-alg=serpent-128,ivgen-alg=essiv,ivgen-hash-alg=sha384", MiB, "luks-essiv"),
    ("key-secret=s,cipher-alg=twofish-128,ivgen-alg=essiv,ivgen-hash-alg=sha512", MiB, "luks-essiv"),
    ("key-secret=s,cipher-alg=des", (1 << 63) - 1, "luks-cipher"),
    ("key-secret=s,iter-time=1", (1 << 63) - 1, "luks-size"),
    ("key-secret=s,iter-time=1", (1 << 63) - 1 - 2068480, "luks-size-offset"),
    ("key-secret=s,iter-time=1", (1 << 63) - (1 << 30) - 2068480 + 1, "luks-size-offset"),
]


def fault(text: str, size: int = MiB, secret: bytes | None = b"hunter2", rate: int = 0) -> OptionError:
    settings = read_settings(options.CREATE, split_list(text), format="luks")
    seed = Seed(secret=secret, pbkdf_rate=rate)
    with pytest.raises(OptionError) as caught:
        plan.create(size, options.resolve(size, settings, None), seed)
    return caught.value


def words(error: OptionError) -> str:
    return option_words(error, format="luks", generation=(7, 2), has_cluster_size=False)


@pytest.fixture(autouse=True)
def preallocation_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host adds the file's own options."""
    monkeypatch.setattr(options, "CREATE", (*options.CREATE, options.PREALLOCATION))


@pytest.mark.parametrize(("text", "size", "code"), REFUSED)
def test_refuses_the_first_mistake_that_qemu_img_finds(text: str, size: int, code: str) -> None:
    error = fault(text, size)
    assert error.code == code
    assert error.sentence().isprintable()


# qemu-img derives a key, which takes seconds, before it looks at the size: once is enough.
@needs_qemu_img
@pytest.mark.parametrize(("text", "size", "code"), [*(row for row in REFUSED if row[1] == MiB), REFUSED[-1]])
def test_words_a_refusal_as_qemu_img_does(tmp_path, text: str, size: int, code: str) -> None:
    object = ["--object", "secret,id=s,data=hunter2"]
    done = run(str(QEMU_IMG), "create", "-q", *object, "-f", "luks", "-o", text, tmp_path / "x", str(size))
    assert done.returncode == 1
    assert done.stderr == f"qemu-img: {tmp_path}/x: {words(fault(text, size))}\n"


def test_fills_in_qemu_imgs_defaults() -> None:
    assert resolved("") == {
        "preallocation": "off",
        "key-secret": "s",
        "cipher-alg": "aes-256",
        "cipher-mode": "xts",
        "ivgen-alg": "plain64",
        "hash-alg": "sha256",
        "iter-time": 2000,
        "detached-header": False,
    }
    assert resolved("ivgen-alg=essiv")["ivgen-hash-alg"] == "sha256"
    assert resolved("preallocation=metadata")["preallocation"] == "off"


@pytest.mark.parametrize("cipher", ["serpent-128", "serpent-256", "twofish-192"])
def test_names_ciphers_that_the_library_lacks(cipher: str) -> None:
    error = fault(f"key-secret=s,cipher-alg={cipher}")
    assert error.code == "luks-cipher-library"
    assert cipher.partition("-")[0] in error.detail


@pytest.mark.parametrize("mode", ["ecb", "cbc", "ctr"])
def test_refuses_key_material_on_which_qemu_crashes(mode: str) -> None:
    assert fault(f"key-secret=s,cipher-alg=aes-192,cipher-mode={mode}").code == "luks-key-length"


@pytest.mark.parametrize("secret", [b"\xff\xfe", b"a\0b", "ü".encode("latin-1"), b"\xed\xa0\x80"])
def test_a_passphrase_is_text_and_never_shown(secret: bytes) -> None:
    error = fault("key-secret=s", secret=secret)
    assert error.code == "secret-not-utf8"
    assert words(error) == "Data from secret s is not valid UTF-8"
    assert repr(secret)[2:-1] not in str(error) + repr(error.facts())


def test_without_a_passphrase_nothing_is_made() -> None:
    assert fault("key-secret=s", secret=None).code == "no-secret"


@pytest.mark.parametrize(
    ("time", "rate", "code"),
    [
        (MAX_ITER_TIME + 1, 1000, "luks-iter-time"),
        (2000, 1 << 34, "luks-iterations"),
        ((1 << 63) - 1, 1 << 20, "luks-iterations-scale"),
        (-1, 1 << 20, "luks-iterations-scale"),
        ((1 << 63) - 1, 0, "luks-iter-time"),
        (1 << 63, 0, "bad-integer"),
    ],
)
def test_time_for_keys_has_a_limit(time: int, rate: int, code: str) -> None:
    assert fault(f"key-secret=s,iter-time={time}", rate=rate).code == code


def test_a_header_alone_needs_no_size() -> None:
    def given(text: str) -> bool:
        return options.needs_size(read_settings(options.CREATE, split_list(text), format="luks"))

    assert given("key-secret=s")
    assert not given("detached-header=on")
