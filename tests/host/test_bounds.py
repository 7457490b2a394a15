"""What a plan can need is known before there is one: never less than it needs, and hardly more."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tests.compat.cases import ordinary_cases

from instar.core.errors import OptionError
from instar.core.plan import Allocate, Backing, Bound, Seed
from instar.core.units import align_up
from instar.formats import creatable
from instar.formats.vhdx.ondisk import Identity as VhdxIdentity
from instar.formats.vpc.ondisk import Identity as VpcIdentity
from instar.host.request import bounds_of, judge, read_request

if TYPE_CHECKING:
    from tests.compat.cases import Case

    from instar.core.plan import Plan

MiB, GiB = 1 << 20, 1 << 30
_FORMATS = [row.name for row in creatable() if row.name != "raw"]


def planned(format: str, options: dict[str, str], size: int, backing: Backing | None) -> tuple[Plan, list[Bound]]:
    """Return a plan as a cell makes it, and the host's bounds."""
    __import__(f"instar.formats.{format}.plan")
    pairs = list(options.items())
    if format == "luks" or options.get("encrypt.format"):
        pairs.append(("key-secret" if format == "luks" else "encrypt.key-secret", "s"))
    request = read_request(
        "image",
        format,
        pairs,
        backing=None if backing is None else backing.name,
        backing_format=None if backing is None else backing.format,
        size=size,
        as_qemu=False,
    )
    request.size, request.backing = size, backing
    chosen = judge(request, False)
    seed = Seed(file_name="image", backing=backing, secret=b"x", pbkdf_rate=1)
    plan: Plan = sys.modules[f"instar.formats.{format}.plan"].create(size, chosen, seed)
    return plan, bounds_of(request, chosen)


def hold(plan: Plan, bounds: list[Bound]) -> None:
    """Compare a plan with its bounds."""
    assert len(bounds) == len(plan.sizes)
    for size, bound in zip(plan.sizes, bounds, strict=True):
        assert size <= bound.length <= 1.1 * size + 2 * MiB
    asked: dict[tuple[int, str], int] = {}
    for item in plan.items:
        if isinstance(item, Allocate):
            key = (item.file, item.mode)
            asked[key] = asked.get(key, 0) + item.length
    for number, bound in enumerate(bounds):
        modes = {mode for file, mode in asked if file == number and asked[file, mode]}
        assert modes <= set(bound.reserved)
        for mode, most in bound.reserved.items():
            assert asked.get((number, mode), 0) <= most <= 1.1 * asked.get((number, mode), 0) + 2 * MiB
            assert most <= bound.length


@pytest.mark.parametrize(
    "case", [case for case in ordinary_cases() if case.format != "raw"], ids=lambda case: case.name
)
def test_hold_for_every_creation_that_is_compared_with_qemu_img(case: Case) -> None:
    backing = Backing("base", case.backing, virtual_size=case.size, content_id=1) if case.backing else None
    try:
        plan, bounds = planned(case.format, dict(case.options), case.size, backing)
    except OptionError:
        return
    hold(plan, bounds)


_POWERS = {
    "qcow2": range(9, 22),
    "qed": range(12, 27),
    "vpc": range(19, 29),
    "vhdx": range(20, 29),
    "parallels": range(9, 31),
    "vmdk": range(13, 27),
}
_SUBFORMATS = {
    "vmdk": ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized"],
    "vpc": ["dynamic", "fixed"],
    "vhdx": ["dynamic", "fixed"],
}
_UNITS = {"qcow2": "cluster_size", "qed": "cluster_size", "parallels": "cluster_size", "vmdk": "grain_size"}
_FLAGS = {
    "qcow2": ["extended_l2", "lazy_refcounts", "data_file_raw"],
    "vdi": ["static"],
    "vpc": ["force_size"],
    "vhdx": ["block_state_zero"],
    "luks": ["detached-header"],
}


@st.composite
def creations(draw: st.DrawFn) -> tuple[str, dict[str, str], int, Backing | None]:
    format = draw(st.sampled_from(_FORMATS))
    options: dict[str, str] = {}

    def maybe(key: str, values: st.SearchStrategy[str]) -> None:
        if draw(st.booleans()):
            options[key] = draw(values)

    if format in _POWERS:
        maybe(_UNITS.get(format, "block_size"), st.sampled_from([str(1 << bits) for bits in _POWERS[format]]))
    if format in _SUBFORMATS:
        maybe("subformat", st.sampled_from(_SUBFORMATS[format]))
    if format not in ("qcow", "qed"):
        maybe("preallocation", st.sampled_from(["off", "metadata", "falloc", "full"]))
    for flag in _FLAGS.get(format, ()):
        maybe(flag, st.sampled_from(["on", "off"]))
    if format == "qed":
        maybe("table_size", st.sampled_from(["1", "2", "8", "16"]))
    if format == "vhdx":
        maybe("log_size", st.integers(1, 4095).map(lambda n: f"{n}M"))
    if format == "qcow2":
        maybe("refcount_bits", st.sampled_from([str(1 << bits) for bits in range(7)]))
        maybe("compat", st.sampled_from(["v2", "v3"]))
        maybe("data_file", st.just("data"))
        maybe("encrypt.format", st.sampled_from(["aes", "luks"]))
    if format == "luks" or options.get("encrypt.format") == "luks":
        prefix = "" if format == "luks" else "encrypt."
        maybe(f"{prefix}cipher-alg", st.sampled_from(["aes-128", "aes-192", "aes-256", "cast5-128"]))
        maybe(f"{prefix}cipher-mode", st.sampled_from(["xts", "cbc", "ecb"]))
    # Not so many units that a plan takes long.
    unit = int(options.get(_UNITS.get(format, ""), 65536))
    size = draw(st.integers(0, 50).map(lambda n: 1 << n) | st.integers(0, 1 << 40)) + draw(st.integers(-1000, 1000))
    size = min(max(size, 0), unit << 15)
    return format, options, size, draw(st.none() | backings(format, size))


def backings(format: str, size: int) -> st.SearchStrategy[Backing | None]:
    """Return parents that images of ``format`` can have, as a cell described them."""
    name = st.text("ab/é𐍈", min_size=1, max_size=900)
    if format in ("qcow", "qed", "qcow2"):
        return name.map(lambda text: Backing(text, "raw", virtual_size=size))
    if format == "vmdk":
        return name.map(lambda text: Backing(text, "vmdk", virtual_size=size, content_id=7))
    if format == "vhdx":
        return st.sampled_from([512, 4096]).map(
            lambda sector: Backing(
                "base",
                "vhdx",
                virtual_size=align_up(size, 512),
                identity=VhdxIdentity(
                    data_write_guid=bytes(16),
                    disk_id=bytes(16),
                    logical_sector=sector,
                    physical_sector=4096,
                    other_items=0,
                ).pack(),
                relative="base",
                absolute="/base",
            )
        )
    if format == "vpc":
        identity = VpcIdentity(
            unique_id=bytes(16), current_size=align_up(size, 512), cylinders=1, heads=1, sectors_per_track=1
        )
        return name.map(
            lambda text: Backing(
                "base", "vpc", virtual_size=size, identity=identity.pack(), relative=f"x{text}", absolute=f"/{text}"
            )
        )
    return st.none()


@settings(max_examples=400, deadline=None)
@example(("qcow2", {"cluster_size": "512", "refcount_bits": "64", "preallocation": "metadata"}, 1 << 24, None))
@example(("qcow2", {"cluster_size": "2097152", "preallocation": "falloc", "encrypt.format": "luks"}, 5, None))
@example(("vhdx", {"block_size": "1048576"}, 0, None))
@given(creations())
def test_hold_for_any_options(creation: tuple[str, dict[str, str], int, Backing | None]) -> None:
    try:
        plan, bounds = planned(*creation)
    except OptionError:
        assume(False)
    hold(plan, bounds)
