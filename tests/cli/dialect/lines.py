"""The command lines that are compared with qemu-img: more than a thousand, most of them made from small lists.

Law: a line is text; ``words`` turns it into arguments. ``%XX`` is a byte, and quotes are a shell's. Sizes stay below what
every file system can hold, so that answers recorded on one machine hold on the next.
"""

# ruff: noqa: E501, SIM905, W291 - the table is read by eye: a list of words stays on its line

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMATS = ("raw", "qcow2", "qcow", "qed", "vmdk", "vpc", "vhdx", "vdi", "parallels", "luks")
WITH_BACKING = ("qcow2", "qcow", "qed", "vmdk")
#: A secret that needs no time to speak of.
SECRET = "--object secret,id=s,data=letmein"
LUKS = f"{SECRET} -o key-secret=s,iter-time=10"


def words(line: str) -> list[str]:
    """Return the arguments that a line stands for."""
    return [unquote_to_bytes(word).decode("utf-8", "surrogateescape") for word in shlex.split(line)]


def lines() -> list[str]:
    """Return every line once, in a stable order."""
    sections = (
        *(usage, sizes, option_lists, options, help_lines, formats, names, backing, objects, inspect, before),
        windows,
    )
    return list(dict.fromkeys(line for section in sections for line in section()))


def _given(format: str) -> str:
    return f" {LUKS}" if format == "luks" else ""


def usage() -> Iterator[str]:
    """Words that are no values: switches long and short, abbreviated, clustered, permuted, repeated, missing."""
    yield from """
create
create ''
create '' 1M
create t
create t ''
create t 1M
create t 1M 2M
create t 1M ''
create -q t 1M
create --quiet t 1M
create --qui t 1M
create --q t 1M
create --quiet=yes t 1M
create -qq t 1M
create -qf raw t 1M
create -qfraw t 1M
create -fraw t 1M
create -f=raw t 1M
create -f raw -f qcow2 t 1M
create -f qcow2 -f foo t 1M
create -f foo -f qcow2 t 1M
create t -f qcow2 1M
create t 1M -f qcow2
create t 1M -q -f qcow2
create -- t 1M
create -f qcow2 -- t 1M
create t -- 1M
create t 1M --
create -- -q 1M
create -- -f 1M
create t -- -f
create -
create - 1M
create -- - 1M
create --format qcow2 t 1M
create --format=qcow2 t 1M
create --form qcow2 t 1M
create --f qcow2 t 1M
create --fo=qcow2 t 1M
create --format
create --format=
create --format= t 1M
create -f '' t 1M
create -f
create -o
create -b
create -F
create -B
create --object
create --options
create --backing
create --backing-format
create --backing-format raw
create --options cluster_size=4k -f qcow2 t 1M
create --options=cluster_size=4k -f qcow2 t 1M
create --opt cluster_size=4k -f qcow2 t 1M
create --o cluster_size=4k -f qcow2 t 1M
create --ob secret,id=s,data=x t 1M
create --obj=secret,id=s,data=x t 1M
create --backing b.raw --backing-format raw -f qcow2 t
create --backing=b.raw --backing-format=raw --format=qcow2 t
create --backing b.raw -F raw -f qcow2 t
create --back b.raw -F raw -f qcow2 t
create --backing-f raw -b b.raw -f qcow2 t
create --backing-u -b b.raw -F raw -f qcow2 t 1M
create --backing-unsafe -b nosuch -F raw -f qcow2 t 1M
create --backing-unsafe=1 -b nosuch -F raw -f qcow2 t 1M
create -b b.raw -B raw -f qcow2 t
create -bb.raw -Fraw -fqcow2 t
create -b b.raw -F qcow2 -F raw -f qcow2 t
create -b nosuch -b b.raw -F raw -f qcow2 t
create -ub nosuch -F raw -f qcow2 t 1M
create -Z t 1M
create -qZ t 1M
create -Zq t 1M
create -p t 1M
create -c t 1M
create -e t 1M
create -6 t 1M
create -V t 1M
create -T x t 1M
create -1 t
create t -1
create t -1G
create -f qcow2 t -1
create --nosuch
create --nosuch t 1M
create --nosuch=1 t 1M
create --=1 t 1M
create --output=json t 1M
create --image-opts t 1M
create --version
create --isolation=none t 1M
create --qemu-version=7.2 t 1M
create -v t 1M
create --verbose t 1M
create --allow-path=/ t 1M
create -h
create -h t 1M
create --help
create --hel
create --help=1
create -f foo --help
create --help -Z
create -Z --help
create t 1M --help
create -f foo -Z t 1M
create -o , -Z t 1M
create -Z -o , t 1M
create --object foo -Z t 1M
create -Z --object foo t 1M
create -o , --object foo t
create --object foo -o , t
create t 1M 2M 3M
create t foo 2M
create -f foo t 1M 2M
create -f foo t foo
create -f foo
create -o help t foo
create -o help t 1M 2M
create -o foo=1 t foo
create -f foo -o help t 1M 2M
""".strip().splitlines()


_SIZES = """
0 1 511 512 513 1b 1B 1k 1K 4097 1M 1m 1.5k 1.5K 1.5M 1.k 1.0k .5k .5 0.5 0.1k 0.001k 0.0001k 1.5 1.5b 1. 1.b . k b '' + - ' '
+1k ++1k +-1 -0 -1 -1k '-1 ' ' 1k' '  2M' '%091M' '1k ' '1 k' 1kB 1KB 1KiB 1MM 1kk 1x 1e3 1e 1E3 1.5e3 0e0 inf infinity nan NaN INF 0x 0x0
0x200 0X200 0xg 0x10k 0x10M 0x10e 0x10b 0x10B 0x1.8k 0x1p3 0x.8 010 08 00 0b10 1_000 1,5k 1,000 1.5.5k 1..5k 1.9999999999999999999999k
0.00000000000000000000000000001M 0.5b 0b 1.25k 1.0000001k 1023.9999k ١ 1٠ 9223372036854775295 9223372036854775296 9223372036854775807
9223372036854775808 18446744073709551103 18446744073709551104 18446744073709551614 18446744073709551615 18446744073709551616
99999999999999999999999 7.9999999999999999E 8E 15.9999E 16E 17E 16384P 8192P 0x7fffffffffffffff 0x8000000000000000
0xffffffffffffffff 0x10000000000000000 -9223372036854775808 -99999999999999999999999 -1E -16E
"""


def _big(size: str) -> bool:
    """Sizes near the end of all numbers: what a plain file does with them is the file system's affair."""
    return size[-1:] in "EePp" or len(size) > 15


def sizes() -> Iterator[str]:
    """Sizes as SIZE, in ``-o size=`` and as another option of type size; numbers; booleans."""
    for size in shlex.split(_SIZES):
        word = shlex.quote(size)
        if not (_big(size) and "size" not in size and size in ("9223372036854775295", "9223372036854775296")):
            yield f"create -f qcow2 t -- {word}"
        yield f"create -f qcow2 -o cluster_size={shlex.quote(size.replace(',', ',,'))} t 1M"
        yield f"create -f qcow2 -o size={shlex.quote(size.replace(',', ',,'))} t"
        if not _big(size):
            yield f"create t {word}"
            yield f"create -o size={shlex.quote(size.replace(',', ',,'))} t"
    for number in shlex.split(
        "0 1 8 08 010 020 0x8 0x10 0X10 0x -0 -1 +8 ++8 ' 8' '8 ' '%098' 8k 8.0 8e0 '' 0b1 0o10 a 18446744073709551615"
        " 18446744073709551616 -18446744073709551600 -18446744073709551608 -18446744073709551616 99999999999999999999999 16,8"
    ):
        yield f"create -f qcow2 -o refcount_bits={shlex.quote(number)} t 1M"
    for truth in shlex.split("on off yes no true false y n ON Off TRUE Yes 1 0 t f '' 'on ' ' on' onn"):
        yield f"create -f qcow2 -o lazy_refcounts={shlex.quote(truth)} t 1M"
        yield f"create -f vpc -o force_size={shlex.quote(truth)} t 1M"


def option_lists() -> Iterator[str]:
    """``-o`` as a list: commas, empty members, keys alone, repeated keys and lists."""
    for text in shlex.split("""
    '' , ,, ,,, = == =1 ,= a a= =a a=b,, a=b,,, a=b, ,a=b a,,b a,,=b size size= nosize nosize= no no= no=1 nono n
    size=1M size=1M, size=1M,, size=1M,,, size=1M,,k ,size=1M size=1M,size=2M size=2M,size=1M size=1M,,size=2M
    size=1M,foo size=foo,foo foo,size=foo foo=1,bar=2 'size =1M' ' size=1M' 'size= 1M' 'size=1M ' SIZE=1M Size=1M
    size=1M,id=x id=x,size=1M id id=1 id= noid id=x,id=y,size=1M
    nocow nocow=on nocow=off cow cow=on nonocow nocow,size=1M preallocation nopreallocation preallocation= preallocation=off preallocation=falloc
    preallocation=full preallocation=metadata preallocation=foo preallocation=OFF extent_size_hint=0 extent_size_hint=1M extent_size_hint
    extent_size_hint=4G extent_size_hint=4294967295 extent_size_hint=x extent_size_hint=-1 backing_file=b.raw backing_fmt=raw backing_file=
    encryption=on data_file=x cluster_size=4k
    """):
        word = shlex.quote(text)
        yield f"create -o {word} t 1M"
        yield f"create -o {word} t"
    for text in shlex.split("""
    lazy_refcounts nolazy_refcounts nonolazy_refcounts lazy_refcounts,compat=1.1 compat=0.10,compat=1.1,lazy_refcounts
    compat=1.1,compat=0.10,lazy_refcounts lazy_refcounts=on,nolazy_refcounts lazy_refcounts=,size=1M lazy_refcounts= lazy_refcounts==on
    nocow nocow=on,lazy_refcounts cluster_size=4k,cluster_size=8k cluster_size=foo,cluster_size=8k cluster_size=8k,cluster_size=foo
    cluster_size=3,refcount_bits=3 refcount_bits=3,cluster_size=3 foo,cluster_size=foo cluster_size=foo,foo cluster_size cluster_size=
    cluster-size=4k clustersize=4k cluster_siz=4k cluster_size_=4k refcount_bits refcount_bits= norefcount_bits nosize
    size=1M size=1M,size=2M size=,size=1M compat compat= nocompat backing_file=, backing_file=b.raw,backing_fmt=raw
    backing_file=b.raw,,x,backing_fmt=raw backing_fmt=raw,backing_file=b.raw backing_file=b.raw backing_file=,backing_fmt=raw nobacking_file
    backing_file backing_file,backing_fmt=raw id=x id=x,cluster_size=4k preallocation=metadata,,x
    """):
        yield f"create -f qcow2 -o {shlex.quote(text)} t 1M"
    yield from """
create -f qcow2 -o cluster_size=4k -o refcount_bits=8 t 1M
create -f qcow2 -o cluster_size=4k -o cluster_size=8k t 1M
create -f qcow2 -o cluster_size=4k, -o refcount_bits=8 t 1M
create -f qcow2 -o cluster_size=4k -o ,refcount_bits=8 t 1M
create -f qcow2 -o cluster_size=4k -o '' t 1M
create -f qcow2 -o '' -o cluster_size=4k t 1M
create -f qcow2 -o a,, -o cluster_size=4k t 1M
create -f qcow2 -o foo -o help t 1M
create -f qcow2 -o help -o foo t 1M
create -f qcow2 -o help -o , t 1M
create -f qcow2 -o , -o help t 1M
create -f qcow2 -o cluster_size=4k t -o refcount_bits=8 1M
create -f qcow2 -ocluster_size=4k t 1M
create -f qcow2 -o size=1M t 1M
create -f qcow2 -o size=1M -o size=2M t
create -f qcow2 -o size=1M,size=2M t 3M
create -f qcow2 -o size=0 t 1M
create -f qcow2 -o size=18446744073709551615 t 1M
create -f qcow2 -o backing_file=b.qcow2,backing_fmt=qcow2,size=18446744073709551615 t
create -f qcow2 -o size=1M,foo t 1M
create -f qcow2 -o foo t foo
create -o size=1M t 2M 3M
""".strip().splitlines()


_VALUES: dict[str, str] = {
    "qcow2": """
    cluster_size=0 cluster_size=256 cluster_size=512 cluster_size=513 cluster_size=1k cluster_size=64k cluster_size=2M cluster_size=4M
    compat=0.10 compat=1.1 compat=v2 compat=v3 compat=1.0 compat=V3 compat=2 compat=1.10
    refcount_bits=0 refcount_bits=1 refcount_bits=2 refcount_bits=4 refcount_bits=32 refcount_bits=64 refcount_bits=65 refcount_bits=128 refcount_bits=3
    extended_l2=on extended_l2=on,cluster_size=16k extended_l2=on,cluster_size=8k extended_l2=on,compat=0.10
    lazy_refcounts=on,compat=0.10 refcount_bits=8,compat=0.10 refcount_bits=16,compat=0.10 compression_type=zlib,compat=0.10 compression_type=zstd
    compression_type=zstd,compat=0.10 compression_type=foo compression_type= compression_type=ZLIB
    preallocation=off preallocation=metadata preallocation=falloc preallocation=full preallocation=foo preallocation=
    preallocation=metadata,cluster_size=512 preallocation=metadata,extended_l2=on preallocation=metadata,lazy_refcounts=on,refcount_bits=64
    backing_fmt=raw backing_fmt=foo encryption=off encryption=on encrypt.format=aes encrypt.format=luks encrypt.format=foo encrypt.format=
    encrypt.key-secret=s encrypt.iter-time=10 encryption=on,encrypt.format=aes encrypt.format=aes,encrypt.iter-time=10
    encrypt.format=luks,encrypt.key-secret=nope encrypt.format=aes,encrypt.key-secret=nope encryption=on,encrypt.key-secret=nope
    encrypt.format=luks,encrypt.cipher-alg=foo,encrypt.key-secret=s encrypt.format=luks,encrypt.hash-alg=foo encrypt.iter-time=x
    data_file=x data_file=x,data_file_raw=on data_file_raw=on data_file=x,compat=0.10 data_file=nodir/d data_file= keep_data_file=on
    keep_data_file=on,data_file=x keep_data_file=on,data_file=raw4,preallocation=metadata data_file=x,preallocation=metadata
    data_file=x,data_file_raw=on,preallocation=full data_file=foo:x data_file=file:x data_file=t
    compat=0.10,compression_type=zstd,refcount_bits=8,lazy_refcounts=on cluster_size=3,preallocation=foo preallocation=foo,cluster_size=3
    """,
    "qcow": """
    cluster_size=4k encryption=off encryption=on encrypt.format=aes encrypt.format=luks encrypt.format=foo encrypt.key-secret=s backing_fmt=raw
    backing_fmt=foo preallocation=off preallocation=full preallocation=metadata encryption=on,encrypt.format=aes encryption=on,encrypt.key-secret=nope
    encrypt.format=aes,encrypt.key-secret=nope
    """,
    "qed": """
    cluster_size=4k cluster_size=2k cluster_size=64M cluster_size=128M cluster_size=5000 cluster_size=0 table_size=1 table_size=2 table_size=16
    table_size=32 table_size=3 table_size=0 cluster_size=4k,table_size=1 backing_fmt=raw backing_fmt=foo cluster_size=3,table_size=3
    """,
    "vmdk": """
    adapter_type=ide adapter_type=lsilogic adapter_type=buslogic adapter_type=legacyESX adapter_type=foo adapter_type= adapter_type=IDE
    hwversion=4 hwversion=21 hwversion=foo hwversion= hwversion=undefined compat6 compat6=on,hwversion=4 compat6=off,hwversion=4 toolsversion=1
    toolsversion=foo toolsversion= subformat=monolithicSparse subformat=streamOptimized subformat=monolithicFlat subformat=twoGbMaxExtentSparse
    subformat=twoGbMaxExtentFlat subformat=foo subformat= zeroed_grain zeroed_grain=on,subformat=streamOptimized
    zeroed_grain=on,subformat=monolithicFlat backing_fmt=vmdk backing_fmt=raw subformat=monolithicFlat,compat6=on adapter_type=foo,subformat=foo
    subformat=foo,adapter_type=foo preallocation=falloc preallocation=foo
    """,
    "vpc": "subformat=dynamic subformat=fixed subformat=foo subformat= subformat=Fixed force_size subformat=fixed,force_size=on cluster_size=4k",
    "vhdx": """
    block_size=0 block_size=1M block_size=1 block_size=256M block_size=257M block_size=3M block_size=512M block_size=-1 log_size=0 log_size=1 log_size=1M
    log_size=1.5M log_size=4G log_size=4095M subformat=dynamic subformat=fixed subformat=foo subformat= block_state_zero=off
    block_state_zero=off,subformat=fixed block_size=3M,log_size=0 log_size=0,subformat=foo
    """,
    "vdi": "static static=on static=off static=foo cluster_size=1M block_size=1M preallocation=metadata preallocation=falloc preallocation=full",
    "parallels": """
    cluster_size=0 cluster_size=1 cluster_size=512 cluster_size=4k cluster_size=5000 cluster_size=1M cluster_size=2G cluster_size=4G
    """,
}
_LIMITS = """
qcow2 512P qcow2 2P qcow2 3P qcow 1T qed 64T qed 70368744177663 qed 65T vpc 2040G vpc 2041G vpc 2T vpc 3T vhdx 64T vhdx 65T
vdi 1T vdi 0x1fffff8000001 vdi 513T parallels 1T parallels 4096T vmdk 1T
""".split()


def options() -> Iterator[str]:
    """Each format's own options: values good and bad, two faults at once, sizes at the limits."""
    for format, values in _VALUES.items():
        for value in shlex.split(values):
            yield f"create -f {format} -o {shlex.quote(value)} t 1M"
    yield from (f"create -f {f} t {s}" for f, s in zip(_LIMITS[::2], _LIMITS[1::2], strict=True))
    for values in ("cluster_size=512", "cluster_size=4k,extended_l2=off", "cluster_size=2M"):
        for size in ("0", "1", "128G", "8T", "4P"):
            yield f"create -f qcow2 -o {values} t {size}"
    for key in shlex.split("""
    key-secret=nope key-secret= cipher-alg=aes-128 cipher-alg=aes-192 cipher-alg=foo cipher-alg=des cipher-mode=cbc cipher-mode=foo ivgen-alg=plain
    ivgen-alg=essiv cipher-mode=cbc,ivgen-alg=essiv ivgen-alg=foo hash-alg=sha1 hash-alg=sha512 hash-alg=foo iter-time=0 iter-time=x preallocation=off
    preallocation=full preallocation=metadata preallocation=foo detached-header=on detached-header=off size=1M
    """):
        yield f"create {SECRET} -f luks -o key-secret=s,iter-time=10,{key} t 1M"
    yield from f"""
create -f luks t 1M
create -f luks -o key-secret=s t 1M
create -f luks -o iter-time=10 t 1M
create -f luks {LUKS} t
create -f luks {LUKS} -o detached-header=on t
create -f luks --object secret,id=s,file=pass -o key-secret=s,iter-time=10 t 1M
create -f luks --object secret,id=s,file=pass64,format=base64 -o key-secret=s,iter-time=10 t 1M
create -f luks -o key-secret=s,iter-time=10 t 1M {SECRET}
create -f luks --object secret,id=S,data=x -o key-secret=s,iter-time=10 t 1M
create -f luks --object secret,id=s,data= -o key-secret=s,iter-time=10 t 1M
create -f qcow2 {SECRET} -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 t 1M
create -f qcow2 {SECRET} -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,encrypt.cipher-alg=aes-128 t 1M
create -f qcow2 {SECRET} -o encrypt.format=aes,encrypt.key-secret=s t 1M
create -f qcow2 {SECRET} -o encryption=on,encrypt.key-secret=s t 1M
create -f qcow2 {SECRET} -o encryption=on t 1M
create -f qcow2 {SECRET} -o encrypt.format=luks,encrypt.iter-time=10 t 1M
create -f qcow2 {SECRET} -o encrypt.key-secret=s t 1M
create -f qcow {SECRET} -o encryption=on,encrypt.key-secret=s t 1M
create -f qcow {SECRET} -o encrypt.format=aes,encrypt.key-secret=s t 1M
""".strip().splitlines()


def help_lines() -> Iterator[str]:
    """``-o help`` and its kin."""
    for format in FORMATS:
        yield f"create -f {format} -o help"
        yield f"create -f {format} -o help t"
        yield f"create -f {format} -o '?'"
    for text in shlex.split(
        "help=on help= nohelp help,foo foo,help foo=1,help help,size=1M size=x,help size=help size=? ? ?=1 ,help help, help,, Help HELP"
    ):
        yield f"create -f qcow2 -o {shlex.quote(text)}"
        yield f"create -f qcow2 -o {shlex.quote(text)} t"
    yield from """
create -o help
create -o help t
create -o help t 1M
create -o help nosuch/t 1M
create -o help foo:t
create -o help nbd://localhost/x
create -o help -b b.raw t
create -q -o help
create -f help
create -f help t 1M
create -f ? t 1M
create -f foo -o help
create -f foo -o help t
create -f bochs -o help
create -f bochs -o help t
create -f file -o help
create -f nbd -o help t
create -f quorum -o help
""".strip().splitlines()


def formats() -> Iterator[str]:
    """Names of formats, and what each does with the plainest words."""
    for name in shlex.split(
        "foo FOO QCOW2 'qcow2 ' ' qcow2' qcow3 vhd VHD bochs cloop dmg vvfat file host_device host_cdrom nbd ssh http https iscsi rbd gluster quorum"
        " throttle blkdebug blkverify null-co null-aio copy-on-read compress replication nvme nfs curl raw,x %FFx 'a%0Ab' help none auto json"
    ):
        yield f"create -f {shlex.quote(name)} t 1M"
    for format in FORMATS:
        given = _given(format)
        for size in ("0", "1", "513", "1M", "1.5M", "10000000"):
            yield f"create -f {format}{given} t {size}"
        yield f"create -f {format}{given} t"
        yield f"create -q -f {format}{given} t 1M"
        yield f"create -f {format}{given} -o size=1M t"
        yield f"create -f {format}{given} -o size=1M t 1M"
        yield f"create -f {format}{given} -o foo=1 t 1M"
        yield f"create -f {format}{given} -o nocow=on t 1M"
        yield f"create -f {format}{given} -o extent_size_hint=5G t 1M"
        yield f"create -f {format}{given} nosuch/t 1M"
        yield f"create -f {format}{given} d 1M"
        yield f"create -f {format}{given} b.{format} 2M"
        yield f"create -f {format}{given} -b b.raw -F raw t 1M"
        yield f"create -f {format}{given} -F raw t 1M"
        yield f"create -f {format}{given} -b b.raw t 1M"
        yield f"create -f {format}{given} -o backing_file=b.raw t 1M"
        yield f"create -f {format}{given} -u -b b.raw -F raw t 1M"
        yield f"create -f {format}{given} -b '' -F raw t 1M"


_NAMES = """
t ./t d/t d/../t file:t file:./t file:d/t file: file:file:t file:/nosuch/t FILE:t a,b 'a b' "a'b" a=b a:b ./a:b a/b:c d/a:b :t :
foo:t foo:/t nbd:localhost:1 nbd://localhost/x http://localhost/x ssh://localhost/x fat:t fat:rw:t vvfat:t host_device:t raw:t qcow2:t json: json:{} json:{ json:x json:[]
'json:{"driver":"file","filename":"t"}' 'json:{"driver":"qcow2","file":{"driver":"file","filename":"t"}}' JSON:{} d . .. / d/ t/ nosuch/ link dangling
b.raw -t --t %FF t%FF 'a%0Ab' 'a%1Bb' 'a%09b' t%C3%A9 t%E2%80%AE b.raw/t /dev/null/t null-co:// null-aio:// blkdebug::t blkverify:t:t
"""


def names() -> Iterator[str]:
    """Names of the file to make."""
    for name in shlex.split(_NAMES):
        word = shlex.quote(name)
        yield f"create -- {word} 1M"
        yield f"create -f qcow2 -- {word} 1M"
    yield from """
create -f qcow2 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 1M
create -f vmdk -o subformat=monolithicFlat a.vmdk 1M
create -f vmdk -o subformat=monolithicFlat file:a.vmdk 1M
create -f vmdk -o subformat=twoGbMaxExtentSparse d/a.b.vmdk 5G
create -f vmdk -o subformat=twoGbMaxExtentFlat a 3G
create -f vmdk -o subformat=monolithicFlat d/a,b 1M
""".strip().splitlines()


_BACKING = """
b.raw:raw b.qcow2:qcow2 b.qcow2:raw b.raw:qcow2 b.vmdk:vmdk b.vhdx:vhdx b.vpc:vpc b.vdi:vdi b.qed:qed b.qcow:qcow b.parallels:parallels b.luks:luks
b.raw:foo b.raw: b.raw:RAW b.raw:vhd b.raw:bochs b.raw:dmg b.raw:nbd b.raw:file b.raw:host_device b.raw:vvfat b.raw:null-co b.raw:quorum b.raw:copy-on-read
file:b.raw:raw ./b.raw:raw d/rel.qcow2:qcow2 nosuch:raw nosuch:qcow2 d/nosuch:raw d:raw .:raw empty:raw empty:qcow2 text:raw text:vmdk text:vpc text:vhdx
text:vdi text:qed text:qcow text:parallels text:luks bad.qcow2:qcow2 lost.qcow2:qcow2 top.qcow2:qcow2 t:raw ./t:raw file:t:raw link:raw dangling:raw
"""


def backing() -> Iterator[str]:
    """Backing files: each format over each, names, formats missing and wrong, sizes, ``-u``."""
    for pair in _BACKING.split():
        name, _, format = pair.rpartition(":")
        f = format or "''"
        yield f"create -f qcow2 -b {name} -F {f} t"
        yield f"create -f qcow2 -u -b {name} -F {f} t 1M"
    for name in sorted({pair.rpartition(":")[0] for pair in _BACKING.split()}):
        yield f"create -f qcow2 -b {name} t"
    for top in ("qcow", "qed", "vmdk"):
        for pair in [*_BACKING.split()[:16], "nosuch:raw", "nosuch:vmdk", "text:vmdk", "t:raw", "d:raw"]:
            name, _, format = pair.rpartition(":")
            f = format or "''"
            yield f"create -f {top} -b {name} -F {f} t"
    for top in WITH_BACKING:
        yield from f"""
create -f {top} -b b.vmdk -F vmdk t 1M
create -f {top} -b b.vmdk -F vmdk t 8M
create -f {top} -b b.vmdk t
create -f {top} -b '' t 1M
create -f {top} -u -b '' -F vmdk t 1M
create -f {top} -u -b nosuch -F vmdk t 1M
create -f {top} -u -b nosuch -F vmdk t
create -f {top} -u -b nosuch t 1M
create -f {top} -u t 1M
create -f {top} -u -F vmdk t 1M
create -f {top} -F vmdk t 1M
create -f {top} -F foo t 1M
create -f {top} -o backing_file=b.vmdk,backing_fmt=vmdk t
create -f {top} -o backing_file=b.vmdk -F vmdk t
create -f {top} -o backing_fmt=vmdk -b b.vmdk t
create -f {top} -o backing_file=nosuch,backing_fmt=foo -b b.vmdk -F vmdk t
create -f {top} -q -b b.vmdk -F vmdk t
create -f {top} -b b.vmdk -F vmdk -o size=2M t
create -f {top} -b b.vmdk -F vmdk d/t
create -f {top} -b ../b.vmdk -F vmdk d/t
""".strip().splitlines()
    yield from """
create -f qcow2 -b b.qcow2 -F qcow2 -o preallocation=metadata t
create -f qcow2 -b b.qcow2 -F qcow2 -o preallocation=metadata,extended_l2=on t
create -f qcow2 -b b.qcow2 -F qcow2 -o preallocation=falloc t
create -f qcow2 -b b.qcow2 -F qcow2 -o data_file=x t
create -f qcow2 -b b.qcow2 -F qcow2 -o data_file=x,data_file_raw=on t
create -f qcow2 -b b.qcow2 -F qcow2 -o compat=0.10 t
create -f qcow2 -b b.qcow2 -F qcow2 -o cluster_size=512 t
create -f qcow2 -b b.qcow2 -F qcow2 t 0
create -f qcow2 -b b.qcow2 -F qcow2 t foo
create -f vmdk -b b.vmdk -F vmdk -o subformat=monolithicFlat t
create -f vmdk -b b.vmdk -F vmdk -o subformat=twoGbMaxExtentSparse t
create -f vmdk -b b.vmdk -F vmdk -o subformat=streamOptimized t
create -f vmdk -b b.vmdk -F vmdk -o adapter_type=lsilogic t
create -f qcow2 -b 'json:{"driver":"raw","file":{"driver":"file","filename":"b.raw"}}' -F raw t
create -f qcow2 -b 'json:{"driver":"qcow2","file":{"driver":"file","filename":"b.qcow2"}}' -F qcow2 t
create -f qcow2 -b 'json:{"driver":"qcow2","file.filename":"b.qcow2"}' -F qcow2 t
create -f qcow2 -b 'json:{"file.filename":"b.qcow2"}' -F qcow2 t
create -f qcow2 -b 'json:{"file.filename":"b.qcow2"}' t
create -f qcow2 -b 'json:{"driver":"file","filename":"b.raw"}' -F raw t
create -f qcow2 -b 'json:{"driver":"qcow2","file":{"driver":"file","filename":"nosuch"}}' -F qcow2 t
create -f qcow2 -b 'json:{"driver":"qcow2","file":{"driver":"file","filename":"file:x"}}' -F qcow2 t
create -f qcow2 -b 'json:{"driver":"qcow2","file":{"driver":"file","filename":"c:d"}}' -F qcow2 t
create -f qcow2 -b 'json:{"driver":"raw","file":{"driver":"file","filename":"b.raw"}}' -F qcow2 t
create -f qcow2 -b 'json:{' -F raw t
create -f qcow2 -b json:[] -F raw t
create -f qcow2 -u -b 'json:{' -F raw t 1M
create -f qcow2 -u -b 'json:{"driver":"nbd","host":"x"}' -F raw t 1M
create -f qcow2 -b foo:bar -F raw t
create -f qcow2 -u -b foo:bar -F raw t 1M
create -f qcow2 -u -b nbd:localhost:1 -F raw t 1M
create -f qcow2 -b fat:d -F raw -u t 1M
create -f qcow -u -b fat:d -F raw t 1M
create -f qcow2 -u -b 'a,b' -F raw t 1M
create -f qcow2 -o backing_file=a,,b,backing_fmt=raw -u t 1M
create -f qcow2 -u -b %FF -F raw t 1M
create -f qcow2 -u -b 'a b' -F raw t 1M
create -f raw -b b.raw -F raw t
create -f raw -u -b b.raw t 1M
create -f bochs -b b.raw -F raw t
""".strip().splitlines()


_OBJECTS = """
'' , ,, = help ? secret,help secret,? help=1 foo Secret secret secret,id=a secret,id=a,data=x secret,data=x,id=a qom-type=secret,id=a,data=x id=a,data=x,qom-type=secret
id=a,data=x secret,id=1,data=x secret,id=a.b-c_d,data=x secret,id=,data=x 'secret,id=a b,data=x' secret,id secret,id=a,data secret,id=a,data= secret,id=a,data=x,
secret,,id=a secret,id=a,,data=x secret,id=a,data=x,,y secret,id=a,data=x,data=y secret,id=a,id=b,data=x secret,id=a,data=x,foo=1 secret,foo=1 secret,id=a,foo=1,bar=2
secret,id=a,data=x,file=pass secret,id=a,file=nosuch secret,id=a,file=d secret,id=a,file= secret,id=a,file=pass secret,id=a,file=pass,format=raw secret,id=a,file=pass64,format=base64
secret,id=a,file=pass,format=base64 secret,id=a,file=bin secret,id=a,file=empty secret,id=a,data=x,format=raw secret,id=a,data=x,format=base64 secret,id=a,data=eA==,format=base64
secret,id=a,data=eA=,format=base64 secret,id=a,data=eA,format=base64 secret,id=a,data=!,format=base64 secret,id=a,data=,format=base64 secret,id=a,data=x,format=foo
secret,id=a,data=x,format= secret,id=a,data=x,format=RAW secret,id=a,data=%FF secret,id=a,data=/w==,format=base64 secret,id=a,data=x,keyid=b secret,id=a,data=x,iv=QQ==
secret,id=a,data=x,keyid= secret,id=a,data.x=1 secret,id.x=1,data=x secret,id=a,data=x,x.y=1 secret,id=a,data=x,.=1 secret,id=a,data=x,a b=1 secret,qom-type=secret,id=a,data=x
secret,id=a,data=x,loaded=on secret,id=a,data=x,loaded=x
foo,id=a secret2,id=a,data=x iothread,id=a memory-backend-ram,id=a,size=1M memory-backend-file,id=a rng-random,id=a rng-builtin,id=a can-bus,id=a colo-compare,id=a
cryptodev-backend,id=a dbus-vmstate,id=a filter-buffer,id=a sev-guest,id=a tdx-guest,id=a qtest,id=a input-barrier,id=a input-linux,id=a iommufd,id=a x-remote-object,id=a
acpi-generic-initiator,id=a iothread memory-backend-memfd,id=a,size=1M rng-egd,id=a secret_keyring secret_keyring,id=a tls-creds,id=a
authz-simple,id=a authz-pam,id=a
"""
_JSON_OBJECTS = """
{}
{"qom-type":"secret"}
{"qom-type":"secret","id":"a"}
{"qom-type":"secret","id":"a","data":"x"}
{"qom-type":"secret","id":"1","data":"x"}
{"id":"a","data":"x"}
{"qom-type":"foo","id":"a"}
{"qom-type":1,"id":"a"}
{"qom-type":"secret","id":1,"data":"x"}
{"qom-type":"secret","id":"a","data":1}
{"qom-type":"secret","id":"a","data":null}
{"qom-type":"secret","id":"a","data":"x","foo":1}
{"qom-type":"secret","id":"a","data":"x","format":"base64"}
{"qom-type":"secret","id":"a","data":"eA==","format":"base64"}
{"qom-type":"secret","id":"a","data":"x","format":"foo"}
{"qom-type":"secret","id":"a","data":"x","data":"y"}
{'qom-type':'secret','id':'a','data':'x'}
{"qom-type":"secret","id":"a","data":"x"} 
{"qom-type":"secret","id":"a","data":"x"}x
{
{"
{"qom-type"
{"qom-type":
{"qom-type":"secret",}
{x}
{"a":tru}
[]
""".strip("\n").splitlines()


def objects() -> Iterator[str]:
    """``--object`` in both of its notations; used and unused; where it stands."""
    for text in shlex.split(_OBJECTS) + _JSON_OBJECTS:
        yield f"create --object {shlex.quote(text)} t 1M"
    yield from """
create --object help
create --object secret,help t 1M
create --object secret,id=a,data=x --object secret,id=a,data=y t 1M
create --object secret,id=a,data=x --object secret,id=b,data=y t 1M
create --object secret,id=a --object foo t 1M
create t 1M --object secret,id=a,data=x
create --object secret,id=a,data=x
create -f foo --object foo t 1M
create -o help --object foo
create --object foo -o help
create --object help -o help
create -o help --object help
info --object secret,id=a,data=x b.qcow2
info --object foo b.qcow2
info --object secret,id=a b.qcow2
info --object secret,id=s,data=letmein b.luks
info --object help
info --object
check --object secret,id=a,data=x b.qcow2
check --object foo b.qcow2
check --object help b.qcow2
""".strip().splitlines()


_JSON_NAMES = """
{"driver":"qcow2","file":{"driver":"file","filename":"b.qcow2"}}
{"driver":"qcow2","file.driver":"file","file.filename":"b.qcow2"}
{"driver":"qcow2","file.filename":"b.qcow2"}
{"file.filename":"b.qcow2"}
{"file":{"filename":"b.qcow2"}}
{"file":{"driver":"file","filename":"b.qcow2"}}
{"file":{"driver":"file","filename":"file:b.qcow2"}}
{"file":{"filename":"file:b.qcow2"}}
{"driver":"raw","file":{"driver":"file","filename":"b.qcow2"}}
{"driver":"raw","file.filename":"b.raw"}
{"driver":"vmdk","file.filename":"b.qcow2"}
{"driver":"file","filename":"b.qcow2"}
{"driver":"file","filename":"c:d"}
{"driver":"qcow2","file":{"driver":"file","filename":"c:d"}}
{"driver":"luks","key-secret":"s","file":{"driver":"file","filename":"b.luks"}}
{"driver":"file"}
{"driver":"qcow2"}
{"filename":"b.qcow2"}
{"file":"b.qcow2"}
{"driver":"qcow2","file":"b.qcow2"}
{"driver":"qcow2","file":{"driver":"file","filename":"nosuch"}}
{"driver":"qcow2","file":{"driver":"file","filename":"d"}}
{"driver":"qcow2","file":{"driver":"file","filename":1}}
{"driver":"qcow2","file":{"driver":"file"}}
{"driver":"qcow2","file":{}}
{"driver":"qcow2","file":{"driver":"foo"}}
{"driver":"foo"}
{"driver":1}
{"driver":""}
{"driver":"qcow2","file":{"driver":"file","filename":"b.qcow2","foo":1}}
{"driver":"qcow2","foo":1,"file":{"driver":"file","filename":"b.qcow2"}}
{"driver":"qcow2","file":{"driver":"raw","file":{"driver":"file","filename":"b.qcow2"}}}
{"driver":"qcow2","file":{"driver":"file","filename":"b.qcow2"},"backing":null}
{"driver":"qcow2","file":{"driver":"file","filename":"b.qcow2","locking":"off"}}
{"driver":"qcow2","read-only":true,"file":{"driver":"file","filename":"b.qcow2"}}
{"driver":"qcow2","lazy-refcounts":"on","file":{"driver":"file","filename":"b.qcow2"}}
{}
{
[]
x
1
"a"
null
{"a"
{"a":
{"file":{"driver":"file","filename":"b.qcow2"}}x
{'file':{'driver':'file','filename':'b.qcow2'}}
""".strip("\n").splitlines()


def inspect() -> Iterator[str]:
    """``info`` and ``check``: where the same code serves."""
    images = [
        f"b.{f}" for f in FORMATS
    ] + "empty text nosuch nosuch/x d . '' top.qcow2 lost.qcow2 loop1.qcow2 leak.qcow2 bad.qcow2 link dangling".split()
    for command in ("info", "check"):
        for image in images:
            if (command, image) == ("check", "loop1.qcow2"):
                continue  # qemu-img follows the chain until the stack ends
            yield f"{command} {image}"
            yield f"{command} --output=json {image}"
            if not image.startswith("b."):
                yield f"{command} -f qcow2 {image}"
            else:
                yield f"{command} -f {image[2:]} {image}"
                yield f"{command} -f raw {image}"
        for format in (*FORMATS, "foo", "''", "vhd", "bochs", "file", "nbd", "help"):
            yield f"{command} -f {format} text"
        for name in shlex.split(
            "file:b.qcow2 file:./b.qcow2 file:nosuch file: foo:b nbd:localhost:1x json: :b ./a:b d/rel.qcow2 file:d/rel.qcow2"
        ):
            yield f"{command} {shlex.quote(name)}"
        for name in _JSON_NAMES:
            yield f"{command} {shlex.quote('json:' + name)}"
        yield from (
            f"{command}{rest}"
            for rest in """

 b.raw b.raw
 --
 -- b.qcow2
 b.qcow2 --
 -- -x
 -f
 -f raw -f qcow2 b.qcow2
 --format=qcow2 b.qcow2
 --form=qcow2 b.qcow2
 --f qcow2 b.qcow2
 -Z b.raw
 -fqcow2 b.qcow2
 --nosuch b.raw
 -U b.qcow2
 --force-share b.qcow2
 --force b.qcow2
 --force-share=1 b.qcow2
 -Uf qcow2 b.qcow2
 --output b.qcow2
 --output
 --output= b.qcow2
 --output=xml b.qcow2
 --output json b.qcow2
 --outp=json b.qcow2
 --output=JSON b.qcow2
 --output=json --output=human b.qcow2
 --output=xml nosuch
 --output=xml
 b.qcow2 --output=json
 -q b.qcow2
 --quiet b.qcow2
 --help
 -h
 --image-opts
 --image-opts b.qcow2
 --image-opts file.filename=b.qcow2
 --image-opts driver=qcow2,file.filename=b.qcow2
 --image-opts driver=qcow2,file.driver=file,file.filename=b.qcow2
 --image-opts driver=raw,file.filename=b.qcow2
 --image-opts driver=foo
 --image-opts driver=qcow2,file.filename=nosuch
 --image-opts driver=qcow2
 --image-opts ''
 --image-opts filename=b.qcow2
 --image-opts driver=qcow2,file=b.qcow2
 --image-opts -f qcow2 file.filename=b.qcow2
 --image-opts --output=json driver=qcow2,file.filename=b.qcow2
 --image-opts driver=qcow2,file.filename=c:d
 --image-opts --output=json driver=qcow2,file.filename=c:d
 --image-opts driver=file,filename=c:d
 --image-opts driver=file,filename=file:b.raw
 --image-opts driver=luks,file.filename=b.luks
 --object secret,id=s,data=letmein --image-opts driver=luks,key-secret=s,file.filename=b.luks
 --object secret,id=s,data=letmein --image-opts --output=json driver=luks,key-secret=s,file.filename=b.luks
 --object secret,id=s,data=letmein --image-opts driver=luks,key-secret=x,file.filename=b.luks
 --image-opts driver=luks,key-secret=s,file.filename=b.luks
 -f file b.qcow2
 -f file --output=json b.qcow2
 -f file c:d
 -f file file:b.qcow2
 -f file json:{}
 -f file nosuch:b
 -f qcow2 c:d
""".strip("\n").splitlines()
        )
    yield from """
info --backing-chain top.qcow2
info --backing-chain --output=json top.qcow2
info --backing-chain b.raw
info --backing-chain lost.qcow2
info --backing-chain loop1.qcow2
info --backing-chain --output=json b.raw
info --backing b.raw
info -b top.qcow2
info -t none b.qcow2
info -t writeback b.qcow2
info -t foo b.qcow2
info --cache=writeback b.qcow2
info -T none b.qcow2
info --limits b.qcow2
check -q b.qcow2
check -q leak.qcow2
check -q bad.qcow2
check -q b.raw
check -q nosuch
check --quiet --output=json leak.qcow2
check -T none b.qcow2
check -T writeback b.qcow2
check -T foo b.qcow2
check -T '' b.qcow2
check -T unsafe b.qcow2
check -T directsync b.qcow2
check --cache=writethrough b.qcow2
check -T foo nosuch
check -T foo -f foo nosuch
check -r foo b.qcow2
check -r
check --repair=foo b.qcow2
""".strip().splitlines()


def before() -> Iterator[str]:
    """What stands before the command."""
    yield from """
''
nosuch
--nosuch
-Z
-h
--help
--help create
--hel
-T
creat t 1M
Create t 1M
-- create t 1M
-f raw create t 1M
-q create t 1M
""".strip("\n").splitlines()


#: Options of a window into ``odd``, which has 3,000 bytes: 3,072 in QEMU's eyes.
_WINDOWS = """
"offset":0
"offset":1
"offset":1000
"offset":512
"offset":3000
"offset":3072
"offset":3073
"size":0
"size":512
"size":513
"size":3000
"size":3072
"size":3584
"offset":512,"size":2560
"offset":512,"size":3072
"offset":100,"size":2560
"offset":4096,"size":100
"offset":-1
"size":-512
"offset":9223372036854775807
"offset":9223372036854775808
"offset":18446744073709551615
"offset":18446744073709551616
"offset":512,"size":9223372036854775296
"size":18446744073709551104
"offset":1.5
"offset":1e3
"offset":1e30
"offset":12345678901234567890123
"offset":true
"offset":null
"size":null
"offset":[]
"offset":[1]
"size":{}
"offset":{"a":1}
"offset":""
"offset":"x"
"offset":"1k"
"offset":"1.5k","size":"1K"
"offset":"0x200"
"offset":"0x1k"
"offset":"0x10k"
"offset":"1kb"
"offset":"-1"
"offset":" 512"
"offset":"8E"
"offset":"16E"
"size":"512b"
"size":false
"size":"x","offset":"y"
"offset":512,"foo":1
"foo":1,"offset":"x"
"foo":1,"offset":9999
"backing":null
"backing":"b.raw"
"offset":512,"backing":"b.raw"
"read-only":true,"offset":512
""".strip().splitlines()

#: The same with other things around, and what is wrong in more than one place.
_WINDOWED = """
{"driver":"qcow2","file":{"driver":"raw","offset":1024,"file":{"driver":"file","filename":"win"}}}
{"driver":"qcow2","file":{"driver":"raw","offset":1024,"size":262144,"file":{"driver":"file","filename":"win"}}}
{"file":{"driver":"raw","offset":1024,"size":"256k","file":{"filename":"win"}}}
{"file":{"driver":"raw","offset":"1k","file":{"filename":"win"}}}
{"driver":"raw","offset":1024,"file":{"filename":"win"}}
{"driver":"raw","file":{"driver":"raw","offset":1024,"file":{"filename":"win"}}}
{"driver":"qcow2","file":{"driver":"raw","offset":1000,"file":{"filename":"win"}}}
{"driver":"qcow2","file":{"driver":"raw","offset":1024,"size":65536,"file":{"filename":"win"}}}
{"driver":"qcow2","file":{"driver":"raw","offset":1024,"size":0,"file":{"filename":"win"}}}
{"file":{"driver":"raw","offset":1024,"size":512,"file":{"filename":"win"}}}
{"file":{"driver":"raw","offset":1024,"file":{"filename":"winvmdk"}}}
{"file":{"driver":"raw","offset":1024,"file":{"filename":"winvpc"}}}
{"driver":"vpc","file":{"driver":"raw","offset":1024,"file":{"filename":"winvpc"}}}
{"driver":"vmdk","file":{"driver":"raw","offset":1024,"file":{"filename":"win"}}}
{"driver":"qcow2","file":{"driver":"raw","offset":512,"file":{"driver":"raw","offset":512,"file":{"filename":"win"}}}}
{"file":{"driver":"raw","offset":512,"file":{"driver":"raw","offset":512,"size":2048,"file":{"filename":"win"}}}}
{"driver":"raw","offset":512,"file":{"driver":"raw","size":512,"file":{"filename":"odd"}}}
{"driver":"raw","offset":513,"file":{"driver":"raw","size":512,"file":{"filename":"odd"}}}
{"driver":"raw","size":1024,"file":{"driver":"raw","size":512,"file":{"filename":"odd"}}}
{"driver":"raw","file":{"driver":"raw","file":{"filename":"odd"}}}
{"driver":"qcow2","file":{"driver":"raw","file":{"driver":"file","filename":"b.qcow2"}}}
{"file":{"driver":"raw","file":{"filename":"b.qcow2"}}}
{"offset":1024,"file":{"filename":"win"}}
{"offset":"x","file":{"filename":"win"}}
{"offset":9999999,"file":{"filename":"win"}}
{"offset":1024,"foo":1,"file":{"filename":"win"}}
{"offset":0,"file":{"filename":"b.qcow2"}}
{"size":9999999999,"file":{"filename":"b.qcow2"}}
{"foo":1,"file":{"filename":"b.qcow2"}}
{"foo":1,"file":{"driver":"raw","offset":1024,"file":{"filename":"win"}}}
{"driver":"qcow2","foo":1,"file":{"driver":"raw","offset":512,"file":{"filename":"odd"}}}
{"driver":"qcow2","offset":0,"file":{"filename":"b.qcow2"}}
{"driver":"raw","offset":"x","file":{"driver":"file","filename":"nosuch"}}
{"driver":"raw","offset":512,"foo":1,"file":{"driver":"file","filename":"nosuch","foo":1}}
{"driver":"raw","offset":"x","foo":1,"file":{"driver":"file","filename":"odd","bar":1}}
{"driver":"raw","offset":9999,"foo":1,"file":{"driver":"raw","size":"y","file":{"filename":"odd"}}}
{"driver":"raw","offset":512}
{"driver":"raw","offset":"x"}
{"file":{"driver":"raw","offset":"x"}}
{"driver":"qcow2","file":{"driver":"raw","offset":512}}
{"file":{"driver":"raw","offset":512,"file":{}}}
{"file":{"driver":"raw","offset":512,"file":null}}
{"file":{"driver":"raw","offset":512,"file":"odd"}}
{"file":{"driver":"raw","offset":512,"file":{"driver":"file"}}}
{"file":{"driver":"raw","offset":512,"file":{"driver":"foo"}}}
{"driver":"raw","offset":512,"file.filename":"odd"}
{"driver":"raw","offset":512,"file":{"filename":"d"}}
{"driver":"raw","size":0,"file":{"filename":"empty"}}
{"driver":"raw","offset":512,"file":{"filename":"link"}}
{"driver":"raw","offset":512,"file":{"filename":"file:odd"}}
{"driver":"raw","offset":512,"file":{"filename":"c:d"}}
{"driver":"raw","offset":512,"file":{"driver":"host_device","filename":"odd"}}
{"driver":"raw","file":{"driver":"file","filename":"/dev/null"}}
{"driver":"qcow2","file":{"driver":"host_device"}}
{"driver":"luks","key-secret":"s","file":{"driver":"raw","size":"1M","file":{"filename":"b.luks"}}}
""".strip().splitlines()


def windows() -> Iterator[str]:
    """Windows into a file: ``raw`` with ``offset`` and ``size``, on its own, below a format, and on another."""
    file = '"file":{"driver":"file","filename":"odd"}'
    own = [f'{{"driver":"raw",{options},{file}}}' for options in _WINDOWS]
    below = [f'{{"file":{{"driver":"raw",{options},{file}}}}}' for options in _WINDOWS]
    for name in (*own, *below, *_WINDOWED):
        yield f"info {shlex.quote('json:' + name)}"
    for name in (*own[:20:3], *(name for name in own if "0x" in name), *_WINDOWED):
        yield f"info --output=json {shlex.quote('json:' + name)}"
        yield f"check {shlex.quote('json:' + name)}"
        yield f"create -f qcow2 -b {shlex.quote('json:' + name)} -F raw t"
    for name in _WINDOWED[:12]:
        yield f"create -f qcow2 -b {shlex.quote('json:' + name)} -F qcow2 t"
        yield f"create -f qcow2 -b {shlex.quote('json:' + name)} t"
        yield f"check --output=json {shlex.quote('json:' + name)}"
        yield f"info --backing-chain {shlex.quote('json:' + name)}"
        yield f"info --backing-chain --output=json {shlex.quote('json:' + name)}"
    for command in ("info", "check"):
        yield from (
            f"{command} {rest}"
            for rest in """
--image-opts driver=raw,offset=1k,size=512,file.filename=win
--image-opts driver=raw,offset=1024,file.driver=file,file.filename=win
--image-opts driver=qcow2,file.driver=raw,file.offset=1024,file.size=262144,file.file.filename=win
--image-opts --output=json driver=qcow2,file.driver=raw,file.offset=1024,file.file.filename=win
--image-opts file.driver=raw,file.offset=1024,file.file.filename=win
--image-opts file.driver=raw,file.offset=512,file.file.driver=raw,file.file.offset=512,file.file.file.filename=win
--image-opts driver=raw,offset=512,offset=1024,file.filename=win
--image-opts driver=raw,offset,file.filename=win
--image-opts driver=raw,nooffset,file.filename=win
--image-opts offset=1024,file.filename=win
--image-opts driver=raw,offset=,file.filename=win
--image-opts driver=raw,offset=1,,024,file.filename=win
--image-opts driver=raw,offset=1024
--image-opts -U driver=raw,offset=1024,file.filename=win
-f raw 'json:{"offset":1024,"file":{"filename":"win"}}'
-f raw 'json:{"file":{"driver":"raw","offset":1024,"file":{"filename":"win"}}}'
-f qcow2 'json:{"file":{"driver":"raw","offset":1024,"file":{"filename":"win"}}}'
-f qcow2 'json:{"driver":"raw","offset":1024,"file":{"filename":"win"}}'
-f qcow2 'json:{"driver":"raw","offset":0,"file":{"filename":"b.qcow2"}}'
-f file 'json:{"offset":512,"file":{"filename":"win"}}'
-f file 'json:{"driver":"raw","offset":512,"filename":"win"}'
-f file 'json:{"filename":"win","foo":1}'
""".strip().splitlines()
        )
