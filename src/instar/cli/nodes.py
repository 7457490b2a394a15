"""Names of images that a file's name alone does not open: QEMU makes up one of their options, ``json:{…}``.

Law: names are for showing. Source: QEMU, ``bdrv_refresh_filename``; a name that is made up has 4,095 bytes at most.
"""

from __future__ import annotations

from instar.cli.json import in_order, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.host.info import Child, ImageInfo

_MAX_NAME = 4095


def name_nodes(image: ImageInfo, secret: tuple[str, str] | None) -> None:
    """Name an image, and what it lies in, after the windows that lead there and the secret (option, name) it needs."""
    file = next((child for child in image.children if child.name == "file"), None)
    if file is None:
        return
    tree: dict[str, object] = {"driver": image.format, "file": _tree_of(file), **image.options}
    image.name_extents()
    if secret is not None:
        tree[secret[0]] = secret[1]
    if secret is not None or image.options or file.children:
        image.filename = _name(tree)


def _tree_of(node: Child) -> dict[str, object]:
    """Return a node's options, and name it and those below it."""
    if not node.children:
        return {"driver": node.protocol, "filename": node.filename}
    below = node.children[0]
    tree: dict[str, object] = {"driver": node.protocol, "file": _tree_of(below), **node.options}
    node.filename = _name(tree) if node.options or below.children else below.filename
    return tree


def _name(tree: dict[str, object]) -> str:
    name = f"json:{_dumps(tree)}"
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 3]}..."


def _dumps(value: object) -> str:
    """Return a value as JSON in one line, as QEMU does."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quote(key)}: {_dumps(member)}" for key, member in in_order(value)) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_dumps, value)) + "]"
    if isinstance(value, str):
        return quote(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.17g}" if isinstance(value, float) else str(value)
