#!/usr/bin/env python3
"""Run QEMU's own tests of images with instar in the place of qemu-img.

    ./dev iotests                      all formats
    ./dev iotests -f qcow2 001 020     some tests of one format
    ./dev iotests --again              find out anew which tests there are to run

QEMU's sources (tests/qemu-iotests) come from Debian's archive into the cache,
not into this tree. A test counts if it calls qemu-img for nothing but create,
info and check, and if it passes here with the real qemu-img of that version;
those are run with instar in the dialect of qemu-img. The rest of QEMU's
programs (qemu-io, qemu-nbd, qemu-system) is the real one both times.

Which tests those are is kept in the cache beside the sources, and so is what
each failing one printed. The cache is that of tools/fetch_qemu.py.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.fetch_qemu import APT_CONFIG, KEYRING, FetchError, archives, cache_folder, run, version_of

VERSION = "7.2"
SUITES = ("bookworm", "bookworm-security")
FORMATS = ("raw", "qcow2", "vmdk", "vpc", "vhdx", "vdi", "qed", "qcow", "parallels", "luks")
PROGRAMS = {
    "QEMU_PROG": "qemu-system-x86_64",
    "QEMU_IO_PROG": "qemu-io",
    "QEMU_NBD_PROG": "qemu-nbd",
    "QSD_PROG": "qemu-storage-daemon",
}
#: What instar can do in qemu-img's place.
COMMANDS = {"create", "info", "check"}
OTHERS = "amend|bench|bitmap|commit|compare|convert|dd|map|measure|rebase|resize|snapshot"
#: A call of another command, in shell and in Python. What this misses is seen when the test is run.
CALLS = re.compile(rf"(?:\$QEMU_IMG|qemu_img\w*\(|qemu-img)[^\n|;]*?['\" ](?:{OTHERS})\b")
SOURCE = Path(__file__).resolve().parent.parent / "src"
#: What instar does otherwise on purpose, and why.
MEANT = {("luks", "282"): "a failed create leaves the file that was there before as it was"}
#: Seconds for one test; those that take longer are no tests of images.
PATIENCE = 120

LOGGING = """\
#!/bin/sh
printf '%s\\n' "$*" >> '{log}'
{settings}exec {command} "$@"
"""


def fetch() -> Path:
    """Return the folder of QEMU's tests; get the sources if they are not there."""
    home = cache_folder() / "iotests" / VERSION
    tests = home / "source/tests/qemu-iotests"
    if tests.is_dir():
        return tests
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=home) as scratch:
        config = private_apt(Path(scratch, "apt"))
        run("apt-get", "source", "-q", "--download-only", "qemu", config=config, cwd=Path(scratch))
        (description,) = Path(scratch).glob("*.dsc")
        # Debian's patches carry what QEMU changed since its release, in its tests too. Apt has checked the sums.
        run("dpkg-source", "--no-check", "-x", description, Path(scratch, "source"))
        Path(scratch, "source").rename(home / "source")
    return tests


def private_apt(home: Path) -> Path:
    """Make an apt state of its own in `home` that knows the sources of Debian's suites; return its configuration."""
    main, security = archives()
    lines = [
        f"deb-src [signed-by={KEYRING}] {uri} {suite} main\n"
        for uri, suite in zip((main, security), SUITES, strict=True)
        if uri
    ]
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (home / folder).mkdir(parents=True)
    (home / "state/status").touch()
    (home / "sources.list").write_text("".join(lines))
    config = home / "apt.conf"
    config.write_text(APT_CONFIG.format(home=home))
    run("apt-get", "update", "-q", "--error-on=any", config=config)
    return config


def candidates(folder: Path, format: str) -> list[str]:
    """Return the tests that may be ours by their text: of this format, and without other commands of qemu-img."""
    found = []
    for path in sorted([*folder.glob("[0-9][0-9][0-9]"), *folder.glob("tests/*")]):
        if path.suffix or not os.access(path, os.X_OK):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        formats = re.search(r"^_supported_fmt (.*)|supported_fmts=\[([^]]*)\]", text, re.MULTILINE)
        said = re.findall(r"\w+", (formats[1] or formats[2] or "") if formats else "")
        if (format in said or "generic" in said or not said) and not CALLS.search(text):
            found.append(str(path.relative_to(folder)))
    return found


class Bench:
    """One way to run the tests: with the real qemu-img, or with another program in its place."""

    def __init__(self, folder: Path, place: Path, command: str, settings: str = "") -> None:
        self.folder = folder
        self.place = place
        self.log = place / "log"
        program = place / "qemu-img"
        place.mkdir()
        program.write_text(LOGGING.format(log=self.log, settings=settings, command=command))
        program.chmod(0o755)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("INSTAR_", "QEMU", "IMG"))}
        self.environment |= {name: str(shutil.which(program)) for name, program in PROGRAMS.items()}
        self.environment |= {"QEMU_IMG_PROG": str(program), "LC_ALL": "C"}

    def run(self, format: str, test: str) -> tuple[str, list[str], str]:
        """Run a test; return `pass`, `fail` or `not run`, the words of each call of qemu-img, and what was printed."""
        self.log.unlink(missing_ok=True)
        words = [sys.executable, "./check", f"-{format}", test]
        # Names in the output are masked by the folders' names, and a socket's name must be short.
        with tempfile.TemporaryDirectory(prefix="iotests-") as scratch:
            folders = {"TEST_DIR": f"{scratch}/scratch", "SOCK_DIR": f"{scratch}/sock"}
            try:
                done = subprocess.run(
                    words,
                    cwd=self.folder,
                    env=self.environment | folders,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=PATIENCE,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return "fail", [], f"not done within {PATIENCE} s\n"
        verdict = "pass" if "Passed all 1 iotests" in done.stdout else "fail"
        if re.search(r"^Not run: ", done.stdout, re.MULTILINE):
            verdict = "not run"
        said = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return verdict, said, done.stdout + done.stderr


def is_ours(said: list[str]) -> bool:
    """Tell whether these calls of qemu-img are all for what instar does; without any, a test says nothing of it."""
    commands = {line.partition(" ")[0] for line in said}
    repairs = any(re.match(r"check .*(?<= )(-r|--repair)", line) for line in said)
    # `--help` and the like begin with a dash.
    return bool(commands & COMMANDS) and all(c in COMMANDS or c[:1] == "-" for c in commands) and not repairs


def selected(bench: Bench, format: str, wanted: list[str], *, again: bool) -> list[str]:
    """Return the tests of a format that count, of those that are wanted. They are found once, by running each."""
    known = bench.folder.parent.parent.parent / f"{format}.json"
    verdicts: dict[str, bool] = json.loads(known.read_text()) if known.exists() and not again else {}
    names = [test for test in candidates(bench.folder, format) if not wanted or test in wanted]
    for test in names:
        if test not in verdicts:
            verdict, said, _ = bench.run(format, test)
            verdicts[test] = verdict == "pass" and is_ours(said)
            known.write_text(json.dumps(verdicts, indent=1) + "\n")
    return [test for test in names if verdicts[test]]


def main() -> int:
    """Run what the command line asks for; return 0 if everything passed that counts."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-f", "--format", action="append", choices=FORMATS, help="may be given often (default: all)")
    parser.add_argument("--again", action="store_true", help="find out anew which tests count")
    parser.add_argument("test", nargs="*", help="such as 020 or tests/nbd-qemu-allocation (default: all that count)")
    arguments = parser.parse_args()
    try:
        if missing := [p for p in (*PROGRAMS.values(), "qemu-img") if shutil.which(p) is None]:
            raise FetchError(f"not installed: {', '.join(missing)} (Debian: qemu-system-x86 qemu-utils)")
        if (found := version_of("qemu-img")) != VERSION:
            raise FetchError(f"the tests are those of qemu {VERSION}, and qemu-img here is {found}")
        folder = fetch()
    except FetchError as error:
        print(f"run_iotests: {error}", file=sys.stderr)
        return 2
    results = folder.parent.parent.parent / "results"
    results.mkdir(exist_ok=True)
    failures = differing = total = 0
    print(f"{'format':<10} {'tests':>5} {'passed':>6}  failed")
    with tempfile.TemporaryDirectory(prefix="iotests-") as scratch:
        real = Bench(folder, Path(scratch, "real"), str(shutil.which("qemu-img")))
        settings = f"export PYTHONPATH='{SOURCE}' INSTAR_DIALECT=qemu-img INSTAR_QEMU_VERSION={VERSION}\n"
        ours = Bench(folder, Path(scratch, "ours"), f"'{sys.executable}' -P -m instar", settings)
        for format in arguments.format or FORMATS:
            tests = selected(real, format, arguments.test, again=arguments.again)
            failed, meant = [], 0
            for test in tests:
                verdict, _, printed = ours.run(format, test)
                kept = results / f"{format}-{test.replace('/', '-')}"
                kept.unlink(missing_ok=True)
                if verdict != "pass" and (format, test) in MEANT:
                    print(f"{format} {test} differs: {MEANT[format, test]}")
                    meant += 1
                elif verdict != "pass":
                    failed.append(test)
                    kept.write_text(printed)
            print(f"{format:<10} {len(tests):>5} {len(tests) - len(failed) - meant:>6}  {' '.join(failed)}", flush=True)
            failures += len(failed)
            differing += meant
            total += len(tests)
    print(f"{'all':<10} {total:>5} {total - failures - differing:>6}")
    if failures:
        print(f"What the failing ones printed is in {results}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
