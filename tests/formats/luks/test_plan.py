"""Plans of new volumes: where everything lies, what is random, and what the time for keys makes of the iterations."""

from __future__ import annotations

import pytest
from tests.formats.luks.volumes import SEED, MiB, planned, volume
from tests.support import BytesReader

from instar.core.plan import Allocate, Seed
from instar.formats.luks.header import read_header
from instar.formats.luks.keys import unlock
from instar.formats.luks.ondisk import Header, KeySlot


def test_same_seed_gives_the_same_plan_and_another_one_other_keys() -> None:
    assert volume() == volume()
    other = volume(seed=Seed(entropy=bytes(64), secret=b"hunter2"))
    header = slice(0, Header.field("mk_digest").offset)
    assert other[header] == volume()[header]
    assert other[112:208] != volume()[112:208]
    assert other[4096:5000] != volume()[4096:5000]


def test_every_bit_of_the_seed_counts() -> None:
    before = volume(size=0)
    for at in (0, 31, 63):
        entropy = bytearray(SEED.entropy)
        entropy[at] ^= 1
        assert volume(size=0, seed=Seed(entropy=bytes(entropy), secret=b"hunter2"))[112:] != before[112:]


def test_plan_writes_header_and_first_slot_and_nothing_else() -> None:
    plan = planned("", 1000)
    plan.check()
    assert plan.sizes == (2068480 + 1000,)
    assert [(i.offset, i.length, i.label) for i in plan.items] == [
        (0, 592, "LUKS header"),
        (4096, 256000, "key material of slot 0"),
    ]


@pytest.mark.parametrize("mode", ["falloc", "full"])
@pytest.mark.parametrize("more", ["", ",detached-header=on"])
def test_preallocation_covers_the_whole_file(mode: str, more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from instar.formats.luks import options

    monkeypatch.setattr(options, "CREATE", (*options.CREATE, options.PREALLOCATION))
    plan = planned(f"preallocation={mode}{more}", MiB)
    plan.check()
    assert sum(item.length for item in plan.items) == plan.sizes[0] == 2068480 + (0 if more else MiB)
    assert {item.mode for item in plan.items if isinstance(item, Allocate)} == {mode}


def test_a_detached_header_has_no_data_behind_it() -> None:
    plan = planned("detached-header=on", 5 * MiB)
    assert (plan.sizes, plan.virtual_size) == ((2068480,), 0)
    assert Header.unpack(volume("detached-header=on")).payload_offset == 0


@pytest.mark.parametrize(
    ("hash_name", "slot", "digest"),
    [
        ("sha256", 1_000_000, 250_000),
        ("sha512", 2_000_000, 250_000),
        ("sha1", 500_000, 250_000),
        ("md5", 500_000, 125_000),
    ],
)
def test_iterations_follow_from_time_rate_and_blocks(hash_name: str, slot: int, digest: int) -> None:
    """A key of 64 bytes takes as many runs as digests fit into it, and the digest of 20 bytes one or two."""
    from instar.formats.luks.make import _iterations

    assert _iterations(2000, 1_000_000, hash_name, 64) == (slot, digest)


def test_a_thousand_iterations_are_done_at_least() -> None:
    data = volume(seed=Seed(secret=b"hunter2", pbkdf_rate=1))
    slot = KeySlot.unpack(data, Header.SIZE)
    assert (slot.iterations, Header.unpack(data).mk_digest_iter) == (1000, 1000)


def test_identifier_is_a_random_uuid() -> None:
    uuid = Header.unpack(volume()).uuid.rstrip(b"\0").decode()
    assert [len(part) for part in uuid.split("-")] == [8, 4, 4, 4, 12]
    assert uuid[14] == "4"
    assert uuid[19] in "89ab"


def test_the_passphrase_stands_nowhere() -> None:
    secret = b"correct horse battery staple"
    data = volume(seed=Seed(secret=secret))
    assert secret not in data
    image = BytesReader(data)
    header = read_header(image, 0, generation=(11, 1))
    assert unlock(image, header, secret) is not None
    plan = planned(seed=Seed(secret=secret))
    assert secret.decode() not in plan.text()
    assert secret.hex() not in plan.text()
