from __future__ import annotations

import uuid

import pytest
from tests.support import apply_plan, needs_qemu_img, qemu_img, same_bytes, same_holes

from instar.core.plan import Allocate, Plan, Seed
from instar.formats.vdi.ondisk import MAX_SIZE, Header
from instar.formats.vdi.plan import create

MiB, GiB, TiB = 1 << 20, 1 << 30, 1 << 40
SIZES = [0, 1, 511, 513, MiB, MiB + 1, 10 * MiB, 128 * MiB, 128 * MiB + 1, GiB, 3 * TiB + 12345]
UUIDS = ((392, 424),)


def plan(size: int, *, static: bool = False, preallocation: str = "off", seed: Seed | None = None) -> Plan:
    return create(size, {"static": static, "preallocation": preallocation}, seed or Seed())


@needs_qemu_img
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("static", [False, True])
def test_makes_the_bytes_that_qemu_makes(tmp_path, size: int, static: bool) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    apply_plan(plan(size, static=static), ours)
    qemu_img("create", "-q", "-f", "vdi", "-o", f"static={'on' if static else 'off'}", theirs, str(size))
    same_bytes(ours, theirs, ignore=UUIDS)
    same_holes(ours, theirs)


@pytest.mark.parametrize("size", [*SIZES, MAX_SIZE])
@pytest.mark.parametrize("static", [False, True])
def test_invariants_hold_and_plans_stay_small(size: int, static: bool) -> None:
    made = plan(size, static=static)
    made.check()
    assert len(list(made.items)) <= 3
    assert made.virtual_size == -(-size // 512) * 512
    plan(size, static=static, preallocation="full" if static else "off").check()


def test_preallocation_reserves_exactly_the_blocks() -> None:
    made = plan(10 * MiB + 1, static=True, preallocation="falloc")
    (item,) = [item for item in made.items if isinstance(item, Allocate)]
    assert (item.offset, item.length, item.mode) == (1024, 11 * MiB, "falloc")
    assert item.offset + item.length == made.sizes[0]


def test_identifiers_are_random_uuids_from_the_seed() -> None:
    made = plan(MiB, seed=Seed(entropy=bytes(range(64))))
    header = Header.unpack(next(iter(made.items)).data)  # type: ignore[union-attr]
    first, second = uuid.UUID(bytes_le=header.uuid_image), uuid.UUID(bytes_le=header.uuid_last_snap)
    assert {(u.version, u.variant) for u in (first, second)} == {(4, uuid.RFC_4122)}
    assert first.hex == "000102030405460788090a0b0c0d0e0f"
    assert second.hex == "101112131415461798191a1b1c1d1e1f"


def test_same_seed_same_bytes_and_other_seed_other_bytes() -> None:
    seeds = [Seed(), Seed(), Seed(entropy=b"\1" * 64)]
    first, second, third = (next(iter(plan(MiB, seed=s).items)).data for s in seeds)  # type: ignore[union-attr]
    assert first == second != third


def test_golden_static() -> None:
    assert plan(3 * MiB, static=True).text().splitlines()[2:] == [
        "0 0x000000000200 0x0000000c block map: series 0x0 + k·0x1, 3 × 32 bit <",
        "0 0x00000000020c 0x000001f4 rest of the block map: fill   00 × 500",
    ]
