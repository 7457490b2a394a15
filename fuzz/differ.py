"""``python -m fuzz.differ N [--seed S] [--jobs J]``: random creations and uses, through instar and the real qemu-img.

Law: a case is a number. Both programs make its image, qemu-io and qemu-img do the same to both, and then each program
describes and checks each image: whatever is not the same, and not listed in ``tests/compat/differences``, is a finding.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.cli.dialect.differences import comparable, expected
from tests.cli.dialect.world import call
from tests.compat.differences import ignored, knowingly_refused, plain, same_descriptor, without_cid
from tests.compat.versions import VERSIONS, real
from tests.support import same_bytes

from fuzz import choices, descriptors, windows
from fuzz.choices import GiB, MiB
from fuzz.opinions import inspected, opinions
from instar.formats import creatable

if TYPE_CHECKING:
    from collections.abc import Iterator


#: Above this no data is written, and contents are not compared.
_MOST_USED = 8 * GiB
#: Options whose values are made elsewhere, or that need a secret (which costs qemu-img seconds).
_ELSEWHERE = (
    "size",
    "backing_file",
    "backing_fmt",
    "key-secret",
    "encryption",
    "data_file",
    "detached-header",
    "encrypt.",
)
#: How many cases are descriptors.
_DESCRIPTORS = 0.1
_BASES = ("raw", "qcow2", "vmdk", "qed", "qcow")
_TIMEOUT = 60
#: Disks up to this size are read by others than qemu-img, too.
_MOST_READ = 16 * MiB
#: What qemu-img says of images that it makes and cannot open, or cannot check (quirks.md): disks of size 0, VMDK and
#: fixed VHD; QED with one table cluster; clusters of Parallels that are no power of two.
CANNOT_OPEN = (
    *("Unsupported image type 'monolithicSparse'", "Unsupported image type 'streamOptimized'"),
    *("Assertion `s->num_extents' failed", "Error reading dynamic VHD"),
    *("QED table offset is invalid", "Check failed: Device or resource busy"),
)
NODE = re.compile(r"#block\d+")
HINT = re.compile(r"qemu-img: warning: Failed to set extent size hint: .*\n")
LEAKED = "'qemu-img check -r' on the image file to fix."


class Case(NamedTuple):
    """What is done: ``version`` of qemu-img, arguments of its create, and what is done afterwards.

    Or a VMDK's ``descriptor``, which is described and checked.
    """

    version: tuple[int, int]
    format: str
    options: tuple[tuple[str, str], ...]
    size: str
    backing: tuple[str, ...] = ()
    uses: tuple[tuple[str, ...], ...] = ()
    descriptor: str = ""

    def words(self) -> list[str]:
        """Return the arguments of ``create``."""
        options = [word for key, value in self.options for word in ("-o", f"{key}={value}")]
        return ["create", "-f", self.format, *options, *self.backing, "t", *([self.size] if self.size else [])]

    def lines(self) -> str:
        """Return the case as commands to type."""
        program = f"qemu-img # {self.version[0]}.{self.version[1]}"
        if self.descriptor:
            return f"{program}\n{self.descriptor!r}"
        told = [f"{program} {shlex.join(self.words())}"]
        told += [shlex.join(use) for use in self.uses]
        return "\n".join(told)


class Difference(Exception):
    """The two programs do not agree."""


def make_case(seed: int, number: int) -> Case:
    """Return a case by its number."""
    chance = random.Random(f"{seed} {number}")
    version = chance.choice(VERSIONS)
    if chance.random() < _DESCRIPTORS:
        return Case(version, "vmdk", (), "", descriptor=descriptors.descriptor(chance))
    names = [row.name for row in creatable() if row.qemu_creatable and row.name != "luks"]
    format = chance.choice(names)
    options = choices.options(chance, format, version, leave=_ELSEWHERE)
    if format == "qcow2" and chance.random() < 0.05:
        options += (("data_file", "d.raw"),)
    size = choices.size_word(chance, choices.most(format, options))
    backing: tuple[str, ...] = ()
    if choices.takes_backing(format) and chance.random() < 0.25:
        base = chance.choice(_BASES)
        backing = ("-b", f"base.{base}", *(("-F", base) if chance.random() < 0.8 else ()))
        if chance.random() < 0.5:
            size = ""
    uses = tuple(_uses(chance, format)) if chance.random() < 0.7 else ()
    return Case(version, format, options, size, backing, uses)


def _uses(chance: random.Random, format: str) -> Iterator[tuple[str, ...]]:
    """Yield what is done to an image: ``qemu-io`` with several commands, or ``qemu-img``."""
    packed: set[int] = set()
    for _ in range(chance.choice((1, 1, 2, 3))):
        commands: list[str] = []
        for _ in range(chance.randrange(1, 6)):
            at = 512 * chance.choice((0, 1, chance.randrange(64), chance.randrange(1 << 14), chance.randrange(1 << 21)))
            length = 512 * chance.choice((1, 2, 8, 127, 128, 129, 256, chance.randrange(1, 1024)))
            pattern = chance.randrange(1, 256)
            place = at // 65536 * 65536
            command = chance.choice(
                (
                    f"write -P {pattern} {at} {length}",
                    f"write -P {pattern} {at} {length}",
                    f"write -z {at} {length}",
                    f"write -z -u {at} {length}",
                    f"discard {at} {length}",
                    f"write -c -P {pattern} {place} 65536",
                )
            )
            if "-c" in command:
                # QEMU puts what it compresses for a qcow over what was there before, however long that was.
                if format == "qcow" and place in packed:
                    continue
                packed.add(place)
            commands.append(command)
        if commands:
            yield ("qemu-io", *(word for command in commands for word in ("-c", command)))
        if format == "qcow2" and chance.random() < 0.3:
            name = f"s{chance.randrange(3)}"
            yield chance.choice(
                (
                    ("qemu-img", "snapshot", "-c", name, "t"),
                    ("qemu-img", "snapshot", "-d", name, "t"),
                    ("qemu-img", "snapshot", "-a", name, "t"),
                    ("qemu-img", "bitmap", "-f", "qcow2", "--add", "t", name),
                    ("qemu-img", "bitmap", "-f", "qcow2", "--disable", "t", name),
                    ("qemu-img", "amend", "-f", "qcow2", "-o", f"lazy_refcounts={chance.choice(('on', 'off'))}", "t"),
                    ("qemu-img", "amend", "-f", "qcow2", "-o", f"compat={chance.choice(('v2', 'v3'))}", "t"),
                )
            )
        if chance.random() < 0.2:
            yield ("qemu-img", "resize", "-q", "-f", format, "t", f"+{chance.choice((512, 65536, MiB))}")


def play(case: Case, folder: Path) -> bool:
    """Play a case in an empty folder; tell whether there was an image to compare.

    Raises:
        Difference: what differs.
    """
    if case.descriptor:
        return _play_descriptor(case, folder)
    ours, theirs = folder / "ours", folder / "theirs"
    for place in (ours, theirs):
        place.mkdir()
    if case.backing:
        base = case.backing[1]
        _must("qemu-img", "create", "-q", "-f", base.partition(".")[2], str(theirs / base), "32M")
        # The same file, not a copy: where its holes are shows in what is written over it.
        os.link(theirs / base, ours / base)
    program = real(case.version)
    if case.size.isdigit() and knowingly_refused(case.format, dict(case.options), int(case.size)):
        return False
    said = call(case.words(), case.version, ours), _run([program, *case.words()], theirs)
    ours_said, theirs_said = ({"code": a[0], "out": plain(a[1]), "err": plain(a[2])} for a in said)
    if theirs_said["code"]:  # a file that is not made has no hints, so nothing is said of them
        theirs_said["err"] = HINT.sub("", str(theirs_said["err"]))
    wanted = expected(shlex.join(case.words()), case.version, theirs_said)
    if ours_said["code"] and not theirs_said["code"] and _run([program, "info", "-f", case.format, "t"], theirs)[0]:
        return False  # it makes what it cannot open itself, which we refuse
    if ("keep_data_file", "on") in case.options and said[0][0] == said[1][0] == 1:
        return False  # both refuse: it looks for the file before it judges the options, as quirks.md says
    _same("create", comparable(ours_said), comparable(wanted))
    if said[1][0] or not (theirs / "t").exists():
        return False
    names = sorted(path.name for path in theirs.iterdir())
    if sorted(path.name for path in ours.iterdir()) != names:
        raise Difference(f"files: ours {sorted(os.listdir(ours))}, theirs {names}")
    for name in names:
        if _length(ours / name) != _length(theirs / name):
            raise Difference(f"length of {name}: {(ours / name).stat().st_size}, {(theirs / name).stat().st_size}")
        if not _may_differ(case):
            _same_bytes(case, ours / name, theirs / name)
    size, cluster_size = _describe(case, program, ours)  # the other one is the same bytes
    _describe_windows(case, program, ours)
    if size <= _MOST_USED:
        for use in case.uses:
            words = _qemu_io(case.format, use, cluster_size) if use[0] == "qemu-io" else list(use)
            _same(shlex.join(words), *(_run(words, place) for place in (ours, theirs)))
        if case.uses:
            _describe(case, program, ours, theirs)
        _compare_contents(case, size, ours, theirs)
    return True


def _play_descriptor(case: Case, folder: Path) -> bool:
    """Have both programs describe and check what a descriptor names; compare verdicts, and what is said of images."""
    for name in ("flat", "a b"):
        (folder / name).write_bytes(bytes(65536))
    _must("qemu-img", "create", "-q", "-f", "vmdk", str(folder / "sparse"), "64k")
    (folder / "t").write_bytes(case.descriptor.encode())
    _settle(folder)
    for words in (["info", "--output=json", "t"], ["check", "t"]):
        own, real_ = call(words, case.version, folder), _run([real(case.version), *words], folder)
        if descriptors.differs_on_purpose(case.descriptor, own[2]) or _cannot_open(real_[2]):
            return False
        _same(f"verdict of {words[0]}", own[0], real_[0])
        if not own[0]:
            _same(words[0], own, real_)
    return True


def _qemu_io(format: str, use: tuple[str, ...], cluster_size: int) -> list[str]:
    """Return the arguments of ``qemu-io``; compressed writes are one cluster each, or its threads race for places."""
    words = ["qemu-io", "-f", format]
    for command in use[2::2]:
        *verb, at, length = command.split()
        start, end = int(at), int(at) + int(length)
        step = min(65536, cluster_size) if "-c" in verb else end - start
        for place in range(start, end, step):
            words += ["-c", shlex.join([*verb, str(place), str(min(step, end - place))])]
    return [*words, "t"]


def _length(path: Path) -> int:
    """Return the length of a file, for a VMDK's descriptor without its CID, which may have fewer digits."""
    size = path.stat().st_size
    if size < 1 << 16 and path.read_bytes().startswith(b"# Di"):
        return len(without_cid(path.read_bytes()))
    return size


def _compare_contents(case: Case, size: int, ours: Path, theirs: Path) -> None:
    """Have qemu-img compare what the disks hold, and others read what it reads."""
    if _may_differ(case):
        return
    if any(key == "data_file" for key, _ in case.options):  # its name is seen from the working folder
        read = ["qemu-img", "convert", "-f", case.format, "-O", "raw", "t", "content"]
        _same("convert", _run(read, ours), _run(read, theirs))
        images = ["-f", "raw", "-F", "raw", "ours/content", "theirs/content"]
    else:
        images = ["-f", case.format, "-F", case.format, "ours/t", "theirs/t"]
    done = _run(["qemu-img", "compare", *images], ours.parent)
    if done[0] and not _cannot_open(done[2]):
        raise Difference(f"contents: {done[1]}{done[2]}")
    _same("the inspector's format", inspected(ours / "t"), inspected(theirs / "t"))
    if size > _MOST_READ or case.backing or done[0] or ("extended_l2", "on") in case.options:
        return  # one of the others goes round for ever in extended L2 entries
    if any(key in ("data_file", "zeroed_grain") for key, _ in case.options):
        return  # one takes a grain of zeros for one at the first sectors, where the CID is
    _same("what others read", opinions(case.format, ours / "t"), opinions(case.format, theirs / "t"))


def _cannot_open(text: str) -> bool:
    return any(words in text for words in CANNOT_OPEN)


def _same_bytes(case: Case, ours: Path, theirs: Path) -> None:
    """Compare two files but for what is random or dated."""
    try:
        with theirs.open("rb") as file:
            head = file.read(4)
        if head == b"KDMV":
            same_bytes(ours, theirs, ignore=same_descriptor(ours, theirs))
        elif head == b"# Di":
            left, right = (without_cid(path.read_bytes()) for path in (ours, theirs))
            _same(ours.name, left, right)
        else:
            same_bytes(ours, theirs, ignore=ignored(case.format, theirs) if theirs.name == "t" else ())
    except AssertionError as error:
        raise Difference(f"bytes of {ours.name}: {error}") from None


def _may_differ(case: Case) -> bool:
    """Tell whether qemu-img may leave its former refcount table in the guest's disk, as ours never does (quirks.md)."""
    return case.format == "qcow2" and dict(case.options).get("preallocation", "off") != "off"


def _describe(case: Case, program: str, *places: Path) -> tuple[int, int]:
    """Have both programs describe and check the images at all places; return the sizes of the disk and a cluster."""
    told = []
    size, cluster_size = 0, 65536
    for place in places:
        for words in (["info", "--output=json", "-f", case.format, "t"], ["check", "-f", case.format, "t"]):
            _settle(place)
            own, real_ = call(words, case.version, place), _run([program, *words], place)
            if own[0] == 1 or not _cannot_open(real_[2]):
                _same(f"{words[0]} of {place.name}", _lines(own), _lines(real_))
            told.append((real_[0], plain(real_[1]), plain(real_[2])))
            if words[0] == "info" and not real_[0]:
                seen = json.loads(real_[1])
                size, cluster_size = seen["virtual-size"], seen.get("cluster-size", cluster_size)
    if len(places) > 1 and not _may_differ(case):
        _same("what qemu-img says of both", told[:2], told[2:])
    return size, cluster_size


def _describe_windows(case: Case, program: str, place: Path) -> None:
    """Have both programs look at the image where it is only a part of a file."""
    for words in windows.looks(random.Random(shlex.join(case.words())), place / "t", case.format):
        _settle(place)
        own, real_ = call(words, case.version, place), _run([program, *words], place)
        if own[0] == 1 or not _cannot_open(real_[2]):
            _same(shlex.join(words), _lines(own), _lines(real_))


def _settle(place: Path) -> None:
    """Have the file system decide where the files' bytes are, which ``actual-size`` shows."""
    for path in place.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _lines(answer: tuple[int, str, str]) -> tuple[int, str, str]:
    """Return an answer with the end of a line that qemu-img forgets (quirks.md)."""
    code, out, err = answer
    return code, out, err.replace(LEAKED, f"{LEAKED}\n").replace("\n\n", "\n")


def _same(what: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        raise Difference(f"{what}:\n  ours   {ours}\n  theirs {theirs}")


def _run(words: list[str], folder: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, errors="surrogateescape", timeout=_TIMEOUT, check=False
    )
    out = done.stdout
    if words[0] == "qemu-io":  # what else it prints is how long it took
        out = "\n".join(line for line in out.split("\n") if " ops" not in line)
    return done.returncode, out, NODE.sub("#block", done.stderr)


def _must(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def difference_of(case: Case) -> str | None:
    """Play a case; return what differs, ``None`` if nothing does."""
    with tempfile.TemporaryDirectory(prefix="instar-differ") as folder:
        try:
            play(case, Path(folder))
        except Difference as found:
            return str(found)
        except subprocess.TimeoutExpired as error:
            return f"timeout: {error.cmd}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return None


def minimised(case: Case) -> Case:
    """Return a smaller case that still shows a difference."""
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(case):
            if difference_of(candidate) is not None:
                case, smaller = candidate, True
                break
    return case


def _smaller(case: Case) -> Iterator[Case]:
    lines = case.descriptor.splitlines(keepends=True)
    for index in range(len(lines)):
        yield case._replace(descriptor="".join(lines[:index] + lines[index + 1 :]))
    for index in range(len(case.uses)):
        yield case._replace(uses=case.uses[:index] + case.uses[index + 1 :])
    for index in range(len(case.options)):
        yield case._replace(options=case.options[:index] + case.options[index + 1 :])
    if case.backing:
        yield case._replace(backing=(), size=case.size or "1M")
    for index, use in enumerate(case.uses):
        for at in range(1, len(use), 2) if use[0] == "qemu-io" and len(use) > 3 else ():
            yield case._replace(uses=(*case.uses[:index], use[:at] + use[at + 2 :], *case.uses[index + 1 :]))


def _play_some(work: tuple[int, int, int]) -> list[tuple[int, str, str]]:
    seed, start, last = work
    found = []
    for number in range(start, last):
        case = make_case(seed, number)
        said = difference_of(case)
        if said is not None:
            case = minimised(case)
            found.append((number, case.lines(), difference_of(case) or f"gone when played again; it was {said}"))
    return found


def main() -> int:
    """Play cases; 1 if there was a finding."""
    parser = argparse.ArgumentParser(prog="fuzz-diff")
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=time.time_ns() % (1 << 31))
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if not VERSIONS or not shutil.which("qemu-io"):
        print("there is no qemu-img to compare with", file=sys.stderr)
        return 2
    end = arguments.first + arguments.count
    step = 25
    work = [(arguments.seed, first, min(first + step, end)) for first in range(arguments.first, end, step)]
    findings = 0
    started = time.monotonic()
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for part in pool.map(_play_some, work):
            for number, lines, text in part:
                findings += 1
                print(f"case {number} of seed {arguments.seed}:\n{lines}\n{text}\n", flush=True)
    print(
        f"{arguments.count} cases from {arguments.first} of seed {arguments.seed}, {findings} differences,"
        f" {time.monotonic() - started:.0f} s"
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
