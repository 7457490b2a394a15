"""Where the dialect differs from qemu-img on purpose, each with its reason; ``docs/quirks.md`` tells users the same.

Law: a difference is named here or it is a fault. A rule turns qemu-img's answer into the one that is expected, and
says in its docstring why; the docstring's words stand in ``docs/quirks.md``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tests.cli.dialect.lines import words

from instar.core.errors import printable

if TYPE_CHECKING:
    from tests.cli.dialect.world import Version

Answer = dict[str, Any]


def expected(line: str, version: Version, answer: Answer) -> Answer:
    """Return the answer that a line must get from the dialect."""
    want = dict(answer)
    for rule in RULES:
        want = rule(line, version, want)
    return comparable(want)


def comparable(answer: Answer) -> Answer:
    """Return an answer with nothing left of a help but the switches and commands that it names, sorted."""
    out = str(answer["out"])
    if not out.startswith(("qemu-img version", "Usage:")):
        return answer
    lines = out.splitlines()
    syntax = [line for line in lines if re.match(r"  (check|create|info) (\[|- )", line)]
    forms = [match[1] for line in lines if (match := re.match(r"  ((-\w, ?)?--[\w-]+)", line))]
    named = sorted(form for form in forms if "--trace" not in form)
    return {**answer, "out": "\n".join(["help", *(line.split(" - ")[0] for line in syntax), *named])}


def _refusal(said: str) -> Answer:
    return {"code": 1, "out": "", "err": f"qemu-img: {said}\n"}


def target_stays(line: str, version: Version, want: Answer) -> Answer:
    """Judges everything first, replaces the target only by a complete image."""
    if want["code"]:
        want.pop("files", None)
    return want


def names_are_escaped(line: str, version: Version, want: Answer) -> Answer:
    """Escapes in what it prints for people whatever a terminal acts on or does not show."""
    for word in words(line):
        if word and printable(word) != word:
            want["out"] = want["out"].replace(word, printable(word))
            want["err"] = want["err"].replace(word, printable(word))
    return want


def lines_end(line: str, version: Version, want: Answer) -> Answer:
    """Ends every line that it prints, also the one where 7.2 forgets to."""
    if want["err"] and not want["err"].endswith("\n"):
        want["err"] += "\n"
    return want


def modules_are_not_looked_for(line: str, version: Version, want: Answer) -> Answer:
    """Knows no modules, so it does not complain of missing ones; the protocols in them are unknown."""
    module = re.compile(r"(qemu: module block-block-[\w-]+ not found|qemu-img: Unable to load module).*\n")
    if module.search(want["err"]):
        want["err"] = module.sub("", want["err"])
        if not want["err"]:  # 10.0 and later make nothing and call that a success
            name = words(line)[-2]
            return _refusal(f"{name}: Unknown protocol '{name.partition(':')[0]}'")
    return want


def help_is_about_what_is_here(line: str, version: Version, want: Answer) -> Answer:
    """Help names the commands, switches, formats and objects that are here, in words of its own."""
    if want["out"].startswith("List of user creatable objects:"):
        want["out"] = "List of user creatable objects:\n  secret\n"
    if want["out"].startswith("secret options:"):
        want["out"] = re.sub(r"  (iv|keyid)=.*\n", "", want["out"])
    return want


def protocols_are_not_opened(line: str, version: Version, want: Answer) -> Answer:
    """Opens plain files only. Drivers of networks, devices and the like are refused by their names."""
    said = "is not supported by instar, which opens plain files only"
    arguments = words(line)
    if match := re.match(r"create (?:.* )?-f (file|nbd|nvme|host_device|host_cdrom) ", line):
        return _refusal(f"{'' if '-o help' in line else 't: '}Unknown file format '{match[1]}'")
    if line == "create -o help nbd://localhost/x":
        return _refusal(f"Protocol driver 'nbd' {said}")
    if match := re.search(r"-b b.raw -F (nbd|file|host_device|vvfat|null-co|quorum|copy-on-read) t$", line):
        return _refusal(f"t: Driver '{match[1]}' {said}\nCould not open backing image.")
    if match := re.match(r"(?:info|check) -f (nbd) ", line):
        return _refusal(f"Could not open 'text': Driver '{match[1]}' {said}")
    name = arguments[-2:][0] if arguments[0] == "create" else arguments[-1]
    if (match := re.match(r"(nbd|host_device):", name)) and want["code"]:
        opening = "" if arguments[0] == "create" else "Could not open "
        shown = f"{opening}'{name}'" if opening else name
        return _refusal(f"{shown}: Protocol driver '{match[1]}' {said}")
    return want


def formats_not_read(line: str, version: Version, want: Answer) -> Answer:
    """Knows bochs, cloop and dmg by sight, and reads none of them."""
    sentence = r"Image not in Bochs format|Could not locate UDIF trailer in dmg file"
    format = "bochs" if "bochs" in line else "dmg"
    said = f"this is a {format} image, a format that this version of instar does not read"
    want["err"] = re.sub(sentence, said, want["err"])
    return want


def chains_are_not_followed(line: str, version: Version, want: Answer) -> Answer:
    """Looks at an image's own metadata; the files that it names are not opened for that, so they may be missing."""
    if "Could not open backing file: " not in want["err"]:
        return want
    if line.startswith("check"):
        json = '{\n    "image-end-offset": 262144,\n    "total-clusters": 16,\n    "check-errors": 0,\n'
        json += '    "filename": "lost.qcow2",\n    "format": "qcow2"\n}\n'
        text = "No errors were found on the image.\nImage end offset: 262144\n"
        return {"code": 0, "out": json if "json" in line else text, "err": ""}
    if "-F" not in line:
        said = "Backing file specified without backing format\nDetected format of qcow2."
        return _refusal(f"t: {said}")
    return {"code": 0, "err": "", "out": ANY, "files": ANY, "info": ANY}


def keys_are_not_needed(line: str, version: Version, want: Answer) -> Answer:
    """A check needs no key: what is encrypted is not looked at."""
    if line.startswith("check") and re.search("'key-secret' is required|No secret with id", want["err"]):
        if line.endswith("text"):
            return _refusal("Could not open 'text': Volume is not in LUKS format")
        if '"size":"1M"' in line:  # a window that ends before the disk in it begins
            name = line.partition(" ")[2].strip("'")
            return _refusal(f"Could not open '{name}': Could not refresh total sector count: Input/output error")
        return {"code": 63, "out": "", "err": "qemu-img: This image format does not support checks\n"}
    return want


def sizes_do_not_wrap(line: str, version: Version, want: Answer) -> Answer:
    """`-o size=` of 2^64−511 to 2^64−2 wraps to an empty disk; refused as too large."""
    if "-f qcow2 -o size=18446744073709551614 t" in line and want["code"] == 0:
        failed = _refusal("t: Could not resize image: Image size cannot be negative")
        return {**failed, "out": want["out"]}
    return want


def what_was_made_can_be_opened(line: str, version: Version, want: Answer) -> Answer:
    """Makes images that qemu-img cannot open: VMDK of size 0, QED with `table_size=1`. Kept; instar opens them."""
    if want["code"] == 0 and str(want.get("info")).startswith("qemu-img: Could not open 't'"):
        want["info"] = ANY
    return want


def words_come_first(line: str, version: Version, want: Answer) -> Answer:
    """What is wrong with the words alone is said before a file is opened, where qemu-img may look at files first."""
    if "keep_data_file=on,data_file=x " in line and "No such file" in want["err"]:
        said = "requires 'preallocation=metadata' or 'data_file_raw=on', or the file contents will not be visible"
        want["err"] = f"qemu-img: t: 'keep_data_file=on' {said}\n"
    return want


def parents_come_first(line: str, version: Version, want: Answer) -> Answer:
    """Opens the parent of a VMDK before anything is said or made, with `-u` too."""
    if line.startswith("create -f vmdk -u -b nosuch -F vmdk t"):
        return _refusal("t: Could not open 'nosuch': No such file or directory\nCould not open backing image.")
    return want


def one_file_is_not_two(line: str, version: Version, want: Answer) -> Answer:
    """Refuses an image that is its own data file, before it is touched."""
    if "data_file=t " in line:
        lock = 'Failed to get shared "resize" lock\nIs another process using the image [t]?'
        want["err"] = f"qemu-img: t: {lock}\n"
    return want


def no_block_layer(line: str, version: Version, want: Answer) -> Answer:
    """`info --limits` is refused: there is no block layer whose limits could be told."""
    if "--limits" in line and want["code"] == 0:
        return _refusal("--limits is not supported by instar, which has no block layer")
    return want


class _Any:
    """Equal to everything."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


ANY = _Any()

RULES = (
    target_stays,
    names_are_escaped,
    lines_end,
    modules_are_not_looked_for,
    help_is_about_what_is_here,
    protocols_are_not_opened,
    formats_not_read,
    chains_are_not_followed,
    keys_are_not_needed,
    sizes_do_not_wrap,
    what_was_made_can_be_opened,
    words_come_first,
    parents_come_first,
    one_file_is_not_two,
    no_block_layer,
)
