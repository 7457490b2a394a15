"""``./dev baselines [--again PATTERN]``: ask every recorded version of qemu-img what is new in ``cases``, and keep it.

Cases whose recipe has changed are asked again, and those whose name matches PATTERN; what is no case any more goes.
Versions that are missing are fetched (``tools/fetch_qemu.py``).
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.baselines.cases import RECORDED, Case, cases
from tests.baselines.play import answers, make, real_program
from tests.baselines.store import FOLDER, GROUPS, Kept, images_of, load, save, write_image

from tools import fetch_qemu

#: The version that makes images in use, but where a case names one.
_MAKER = "7.2"


def programs_of(version: str) -> Path:
    """Return the folder of a version's programs."""
    return fetch_qemu.cache_folder() / version / "bin"


def ask(case: Case) -> Kept:
    """Play a case with every version."""
    found: dict[str, dict[tuple[int, int], dict[str, object]]] = {line: {} for line in case.asked}
    with tempfile.TemporaryDirectory(prefix="instar-baselines") as scratch:
        lengths: dict[str, int] = {}
        if case.made:
            place = Path(scratch, "made")
            place.mkdir()
            lengths = make(case, place, programs_of(case.maker or _MAKER))
            if case.maker:
                write_image(case, place / "t")
        for major, minor in RECORDED:
            if not case.made:
                place = Path(scratch, f"{major}.{minor}")
                place.mkdir()
            told = answers(case, place, real_program(str(programs_of(f"{major}.{minor}") / "qemu-img")))
            for line, answer in told.items():
                found[line][major, minor] = answer
    return Kept(case.recipe, lengths, found)


def main() -> int:
    """Bring the baselines up to date."""
    parser = argparse.ArgumentParser(prog="baselines", description=__doc__)
    parser.add_argument("--again", metavar="PATTERN", help="ask again what matches, of names such as 'used/qcow2 data'")
    arguments = parser.parse_args()
    again = re.compile(arguments.again) if arguments.again else None
    for major, minor in RECORDED:
        try:
            fetch_qemu.fetch(f"{major}.{minor}")
        except fetch_qemu.FetchError as error:
            parser.error(f"{major}.{minor} cannot be had: {error}")
    wanted: dict[str, list[Case]] = {}
    for case in cases():
        wanted.setdefault(case.group, []).append(case)
    asked = 0
    for group, rows in wanted.items():
        old = {
            case.name: load(group)[case.name]
            for case in rows
            if case.name in load(group)
            and load(group)[case.name].recipe == case.recipe
            and not (again and again.search(f"{group} {case.name}"))
        }
        new = [case for case in rows if case.name not in old]
        with ThreadPoolExecutor(2) as pool:
            old.update(zip((case.name for case in new), pool.map(ask, new), strict=True))
        save(group, {case.name: old[case.name] for case in rows})
        asked += len(new)
        print(f"{group}: {len(new)} of {len(rows)} asked", flush=True)
    kept = {FOLDER / f"{group}.json" for group in wanted} | {images_of(case) for case in cases() if case.maker}
    for path in (path for folder in (*GROUPS, "images") for path in (FOLDER / folder).iterdir()):
        if path not in kept:
            path.unlink()
    print(f"{asked} of {len(cases())} cases asked")
    return 0


if __name__ == "__main__":
    sys.exit(main())
