"""What the stored baselines are asked: creations of every format, and images in use.

Law: pure, and each case has a name of its own that stays. Lines are typed in an empty folder. Those of ``asked`` are
for the program that is judged, and its answers are kept. Those of ``made`` come before: qemu-img and qemu-io of the
machine make the image, or ``maker``'s own do, and then the image is kept as well.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

#: The versions whose answers are kept.
RECORDED = ((5, 2), (7, 2), (10, 0), (11, 1))


class Case(NamedTuple):
    """One case. ``group`` is the file that keeps it; ``maker`` the version whose image it needs, or empty."""

    group: str
    name: str
    asked: tuple[str, ...]
    made: tuple[str, ...] = ()
    maker: str = ""

    @property
    def recipe(self) -> str:
        """A digest of everything that is done."""
        return hashlib.sha1(repr((self.asked, self.made, self.maker)).encode()).hexdigest()[:12]


SIZES = ("1M", "10486273", "5G")
SECRET = "--object secret,id=s,data=letmein"
#: What the host's file system may answer as it likes, and what fills a disk, is tried with these.
SMALL = ("0", "64k", "1M")

#: Options of each format; one with a space in it goes before ``-o``.
OPTIONS: dict[str, tuple[str, ...]] = {
    "raw": (
        "",
        "preallocation=off",
        "preallocation=falloc",
        "preallocation=full",
        "preallocation=metadata",
        "preallocation=some",
        "cluster_size=64k",
        "extent_size_hint=1M",
        "-b base.raw -F raw ",
        "-F raw ",
        "-q ",
        "size=1M",
    ),
    "qcow2": (
        "",
        "compat=0.10",
        "compat=v3,lazy_refcounts=on",
        "compat=0.10,lazy_refcounts=on",
        "cluster_size=512",
        "cluster_size=2M",
        "cluster_size=4M",
        "cluster_size=4k,refcount_bits=1",
        "refcount_bits=64",
        "refcount_bits=7",
        "extended_l2=on",
        "extended_l2=on,cluster_size=8k",
        "compression_type=zstd",
        "preallocation=metadata",
        "preallocation=falloc",
        "data_file=d.raw",
        "data_file=d.raw,data_file_raw=on",
        "-b base.raw -F raw ",
        "-b base.qcow2 ",
    ),
    "vmdk": (
        "",
        "subformat=monolithicFlat",
        "subformat=twoGbMaxExtentSparse",
        "subformat=twoGbMaxExtentFlat",
        "subformat=streamOptimized",
        "subformat=vmfs",
        "adapter_type=lsilogic",
        "adapter_type=scsi",
        "hwversion=13",
        "compat6=on",
        "compat6=on,hwversion=4",
        "zeroed_grain=on",
        "zeroed_grain=on,subformat=monolithicFlat",
        "toolsversion=7",
        "-b base.vmdk -F vmdk ",
        "-b base.raw -F raw ",
    ),
    "vpc": (
        "",
        "subformat=dynamic",
        "subformat=fixed",
        "subformat=differencing",
        "force_size=on",
        "force_size=off,subformat=dynamic",
        "force_size=on,subformat=fixed",
        "force_size=maybe",
        "cluster_size=2M",
        "-b base.raw -F raw ",
    ),
    "vhdx": (
        "",
        "subformat=dynamic",
        "subformat=fixed",
        "subformat=some",
        "block_size=1M",
        "block_size=256M",
        "block_size=3M",
        "log_size=3M",
        "log_size=0",
        "log_size=4G",
        "block_state_zero=off",
        "block_state_zero=off,subformat=fixed",
        "-b base.raw -F raw ",
    ),
    "vdi": (
        "",
        "static=off",
        "static=on",
        "static=some",
        "preallocation=off",
        "preallocation=metadata",
        "cluster_size=1M",
        "block_size=1M",
        "size=1M",
        "-b base.raw -F raw ",
    ),
    "qed": (
        "",
        "cluster_size=4k",
        "cluster_size=64M",
        "cluster_size=2k",
        "cluster_size=5000",
        "table_size=2",
        "table_size=16,cluster_size=1M",
        "table_size=3",
        "lazy_refcounts=on",
        "-b base.raw -F raw ",
        "-b base.qcow2 -F qcow2 ",
        "-b base.raw ",
    ),
    "qcow": (
        "",
        "encryption=off",
        "encryption=on",
        "encrypt.format=aes",
        "encrypt.format=luks",
        "cluster_size=4k",
        "compat=0.10",
        "size=1M",
        "-b base.raw -F raw ",
        "-b base.qcow2 -F qcow2 ",
        "-b base.raw ",
    ),
    "parallels": (
        "",
        "cluster_size=512",
        "cluster_size=1000",
        "cluster_size=64k",
        "cluster_size=4M",
        "cluster_size=0",
        "cluster_size=2G",
        "subformat=some",
        "size=1M",
        "-b base.raw -F raw ",
    ),
    "luks": (
        "",
        "key-secret=s",
        f"{SECRET} key-secret=s,iter-time=10",
        f"{SECRET} key-secret=s,iter-time=10,cipher-alg=aes-128",
        f"{SECRET} key-secret=s,iter-time=10,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256",
        f"{SECRET} key-secret=s,iter-time=10,hash-alg=sha512",
        f"{SECRET} key-secret=s,iter-time=10,cipher-alg=rot13",
        f"{SECRET} key-secret=s,iter-time=10,cipher-alg=cast5-128",
        f"{SECRET} key-secret=t,iter-time=10",
        f"{SECRET} key-secret=s,iter-time=10,cluster_size=64k",
        f"{SECRET} key-secret=s,iter-time=10,preallocation=falloc",
        f"{SECRET} key-secret=s,iter-time=10,detached-header=off",
        "-b base.raw -F raw ",
    ),
}
#: Keys are derived for each of these, which costs a fifth of a second and more.
LUKS_SIZES = ("1M",)


def creations() -> list[Case]:
    """Return the creations: what is said, what is made, and what ``info`` says of it."""
    found = []
    for format, sets in OPTIONS.items():
        for options in sets:
            sizes = SIZES
            if "falloc" in options or "=full" in options:
                sizes = SMALL
            elif format == "luks":
                sizes = LUKS_SIZES
            for size in sizes:
                before, _, members = options.rpartition(" ")
                words = ["create", before, "-f", format, f"-o {members}" if members else "", "t", size]
                base = "base." + before.partition("base.")[2].partition(" ")[0]
                first = (f"create -q -f {base[5:]} {base} 4M",) if "base." in before else ()
                asked = (
                    *first,
                    " ".join(word for word in words if word),
                    f"info --output=json -f {format} t",
                    "info t",
                )
                told = options.replace(SECRET, "with a secret,").strip() or "plain"
                found.append(Case(f"create/{format}", f"{told}, {size}", asked))
    return found


#: What is asked of an image in use; by its format, or found out.
IN_USE = ("info --output=json t", "info t", "check --output=json t", "check t")


def _used(format: str, name: str, *made: str, create: str = "4M", **how: str) -> Case:
    asked = tuple(line.replace(" t", f" -f {format} t") for line in IN_USE) if format in ("raw", "vpc") else IN_USE
    first, _, size = create.rpartition(" ")
    lines = (f"qemu-img create -q -f {format} {first} t {size}".replace("  ", " "), *made)
    return Case(f"used/{format}", name, asked, lines, how.get("maker", ""))


def _io(format: str, *commands: str, name: str = "t") -> str:
    typed = " ".join(f"-c '{command}'" for command in commands)
    return f"qemu-io -f {format} {typed} {name}"


_WRITTEN = ("write -P 1 0 64k", "write -P 2 1M 300k", "write -P 3 4190208 4k")
_SPREAD = tuple(f"write -P {n} {n * 200}k 512" for n in range(1, 20))


def images() -> list[Case]:
    """Return images in use: with data, snapshots, bitmaps, compressed clusters, backing files, and damaged a little."""
    found = []
    for format in ("raw", "qcow2", "vmdk", "vpc", "vhdx", "vdi", "qed", "qcow", "parallels"):
        found += [
            _used(format, "data", _io(format, *_WRITTEN)),
            _used(format, "data in many places", _io(format, *_SPREAD)),
        ]
    found += list(_qcow2())
    found += [
        _used("qed", "zeroes and discards", _io("qed", *_WRITTEN, "write -z 0 64k", "discard 1M 64k")),
        _used("qed", "small clusters", _io("qed", *_WRITTEN), create="-o cluster_size=4k,table_size=2 4M"),
        _used("qed", "leaked cluster", _io("qed", *_WRITTEN), "damage 262144 0000000000000000"),
        _used("qed", "two entries of one cluster", _io("qed", *_WRITTEN), "damage 327688 0000090000000000"),
        _used("qed", "table past the end", _io("qed", *_WRITTEN), "damage 65536 000000ff00000000"),
        _used("qed", "said to need a check", _io("qed", *_WRITTEN), "damage 16 02"),
        Case(
            "used/qed",
            "on a backing file",
            IN_USE,
            (
                "qemu-img create -q -f raw base 4M",
                "qemu-img create -q -f qed -b base -F raw t 4M",
                _io("qed", "write -P 1 1M 64k"),
            ),
        ),
        _used("qcow", "compressed", _io("qcow", "write -c -P 1 0 4k", "write -c -P 2 64k 4k")),
        Case(
            "used/vmdk",
            "stream-optimised",
            IN_USE,
            (
                "qemu-img create -q -f raw r 4M",
                _io("raw", *_WRITTEN, name="r"),
                "qemu-img convert -f raw -O vmdk -o subformat=streamOptimized r t",
            ),
        ),
        _used("vmdk", "in two extents", _io("vmdk", *_WRITTEN), create="-o subformat=twoGbMaxExtentSparse 3G"),
        _used("vmdk", "flat", _io("vmdk", *_WRITTEN), create="-o subformat=monolithicFlat 4M"),
        _used("vmdk", "grain past the end", _io("vmdk", *_WRITTEN), "damage 11264 00ffff00", "damage 13824 00ffff00"),
        _used("vmdk", "of 5.2", _io("vmdk", *_WRITTEN), maker="5.2"),
        _used("vpc", "fixed", _io("vpc", *_WRITTEN), create="-o subformat=fixed 4M"),
        _used("vpc", "size forced", _io("vpc", *_WRITTEN), create="-o force_size=on 4M"),
        _used("vpc", "of 11.1", _io("vpc", *_WRITTEN), maker="11.1"),
        _used("vhdx", "fixed", _io("vhdx", *_WRITTEN), create="-o subformat=fixed 4M"),
        _used("vhdx", "small blocks", _io("vhdx", *_WRITTEN), create="-o block_size=1M,log_size=3M 4M"),
        _used("vhdx", "of 5.2", _io("vhdx", *_WRITTEN), maker="5.2"),
        _used("vhdx", "of 11.1", _io("vhdx", *_WRITTEN), maker="11.1"),
        _used("vdi", "static", _io("vdi", *_WRITTEN), create="-o static=on 4M"),
        _used("vdi", "block twice", _io("vdi", *_WRITTEN), "damage 516 00000000"),
        _used("vdi", "block past the last", _io("vdi", *_WRITTEN), "damage 516 ff000000"),
        _used("parallels", "small clusters", _io("parallels", *_WRITTEN), create="-o cluster_size=64k 4M"),
        _used("parallels", "left open", _io("parallels", *_WRITTEN), "damage 44 746f6e59"),
        _used("parallels", "cluster past the end", _io("parallels", *_WRITTEN), "damage 64 00ff0000"),
        _used("parallels", "cluster twice", _io("parallels", *_WRITTEN), "damage 68 01000000"),
        _used("parallels", "of 11.1", _io("parallels", *_WRITTEN), maker="11.1"),
    ]
    for options in ("", ",cipher-alg=aes-128,hash-alg=sha1"):
        made = f"qemu-img create -q {SECRET} -f luks -o key-secret=s,iter-time=10{options} t 1M"
        found.append(Case("used/luks", f"keys{options}", IN_USE, (made,)))
    return found


def _qcow2() -> list[Case]:
    """Return the images of the format that has most to be asked about. Clusters lie as in any small image of it."""

    def used(name: str, *made: str, create: str = "4M", **how: str) -> Case:
        return _used("qcow2", name, *made, create=create, **how)

    written = _io("qcow2", *_WRITTEN)
    bitmaps = ("qemu-img bitmap -f qcow2 --add t b0", "qemu-img bitmap -f qcow2 --add -g 4k --disable t b1")
    snapshots = (
        "qemu-img snapshot -c first t",
        _io("qcow2", "write -P 7 0 128k"),
        "qemu-img snapshot -c second t",
        _io("qcow2", "write -P 8 64k 128k"),
    )
    based = ("qemu-img create -q -f {0} base 4M", _io("{0}", "write -P 9 0 1M", name="base"))
    found = [
        used("version 2", written, create="-o compat=0.10 4M"),
        used("lazy refcounts", written, create="-o lazy_refcounts=on 4M"),
        used("small clusters", written, create="-o cluster_size=512 4M"),
        used("large clusters", written, create="-o cluster_size=2M 64M"),
        used("refcounts of a bit", written, create="-o refcount_bits=1 4M"),
        used("refcounts of 64 bits", written, create="-o refcount_bits=64 4M"),
        used("extended entries", written, _io("qcow2", "write -z 32k 4k"), create="-o extended_l2=on 4M"),
        used("metadata preallocated", written, create="-o preallocation=metadata 4M"),
        used("data file", written, create="-o data_file=d.raw 4M"),
        used("raw data file", written, create="-o data_file=d.raw,data_file_raw=on 4M"),
        used("zeroes and discards", written, _io("qcow2", "write -z 0 64k", "write -z -u 1M 64k", "discard 1088k 64k")),
        used("compressed", _io("qcow2", *(f"write -c -P {n} {n * 64}k 64k" for n in range(1, 9)))),
        used("compressed and written over", _io("qcow2", "write -c -P 1 0 64k", "write -P 2 4k 4k", "write 128k 64k")),
        used("compressed by zstd", _io("qcow2", "write -c -P 1 0 64k"), create="-o compression_type=zstd 4M"),
        used("snapshots", written, *snapshots),
        used("snapshot of version 2", written, *snapshots, create="-o compat=0.10 4M"),
        used("snapshot deleted", written, *snapshots, "qemu-img snapshot -d first t"),
        used("snapshot gone back to", written, *snapshots, "qemu-img snapshot -a first t"),
        used("bitmaps", written, *bitmaps),
        used("bitmaps and data after", *bitmaps, written),
        used("bitmap removed", written, *bitmaps, "qemu-img bitmap -f qcow2 --remove t b0"),
        used("bitmaps and snapshots", written, *bitmaps, *snapshots),
        used("grown", written, "qemu-img resize -q -f qcow2 t 64M", _io("qcow2", "write 60M 64k")),
        used("shrunk", written, "qemu-img resize -q -f qcow2 --shrink t 1M"),
        used("amended to version 2", written, "qemu-img amend -f qcow2 -o compat=0.10 t"),
        used("refcount too low", written, "damage 131074 0000"),
        used("refcount too high", written, "damage 131074 0005"),
        used("leaked clusters", written, "damage 131104 00010001", "grow 1245184"),
        used("data cluster lost", written, "damage 262144 0000000000000000"),
        used("entry past the end", written, "damage 262144 80000000ff000000"),
        used("entry off a cluster", written, "damage 262144 8000000000050200"),
        used("two entries of one cluster", written, "damage 262144 8000000000060000"),
        used("table lost", written, "damage 196608 0000000000000000"),
        used("table past the end", written, "damage 196608 80000000ff000000"),
        used("reserved bit of an entry", written, "damage 262144 c000000000050000"),
        used("said to be dirty", written, "damage 72 0000000000000001"),
        used("said to be corrupt", written, "damage 72 0000000000000002"),
        used("snapshot damaged", written, *snapshots, "damage 262144 0000000000000000"),
        used("refcount block lost", written, "damage 65536 0000000000000000"),
        used("encrypted of old", create=f"{SECRET} -o encrypt.format=aes,encrypt.key-secret=s 1M"),
        used(
            "encrypted with a key",
            create=f"{SECRET} -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 1M",
        ),
        used("of 5.2", written, *bitmaps, *snapshots, maker="5.2"),
        used("of 11.1", written, *bitmaps, *snapshots, maker="11.1"),
    ]
    for format in ("raw", "qcow2", "vmdk", "vpc", "qed"):
        first = tuple(line.format(format) for line in based)
        made = (*first, f"qemu-img create -q -f qcow2 -b base -F {format} t", _io("qcow2", "write -P 1 64k 512k"))
        found.append(Case("used/qcow2", f"on {format}", IN_USE, made))
    chain = ["qemu-img create -q -f raw l0 4M"]
    chain += [f"qemu-img create -q -f qcow2 -b l{n} -F {'qcow2' if n else 'raw'} l{n + 1}" for n in range(3)]
    chain += ["qemu-img create -q -f qcow2 -b l3 -F qcow2 t"]
    asked = (*IN_USE, "info --backing-chain --output=json t", "info --backing-chain t")
    found.append(Case("used/qcow2", "on a chain", asked, tuple(chain)))
    return found


def cases() -> list[Case]:
    """Return them all."""
    return creations() + images()
