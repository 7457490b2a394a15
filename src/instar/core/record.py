"""On-disk structures, declared once: annotations become slots and one ``struct.Struct``.

Law: a declaration is the only source of a structure's layout. Packing, unpacking, offsets, dumps, test
strategies and fuzz mutators are all derived from it. ``unpack`` raises nothing but ``ImageError``.
"""

from __future__ import annotations

import struct

from instar.core.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, ClassVar, Self, dataclass_transform
else:

    def dataclass_transform(**_: object) -> object:
        """Stand in for the checker's decorator, which does nothing at run time."""
        return lambda cls: cls


u8 = int
u16 = int
u32 = int
u64 = int
i32 = int
i64 = int
b1 = bytes
b3 = bytes
b4 = bytes
b7 = bytes
b8 = bytes
b12 = bytes
b16 = bytes
b24 = bytes
b32 = bytes
b48 = bytes
b192 = bytes
b256 = bytes
b427 = bytes
b433 = bytes
b512 = bytes

_CODES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i32": "i", "i64": "q"}


class Field:
    """One field of a record: its name, struct code, byte offset and size within the record."""

    __slots__ = ("code", "name", "offset", "size")

    def __init__(self, name: str, code: str, offset: int, size: int) -> None:
        self.name = name
        self.code = code
        self.offset = offset
        self.size = size

    def __repr__(self) -> str:
        return f"Field({self.name!r}, {self.code!r}, offset={self.offset}, size={self.size})"


@dataclass_transform(kw_only_default=True)
class _RecordMeta(type):
    """Turn the annotations of a class body into slots, a ``Struct`` and a field table."""

    def __new__(
        mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], *, endian: str = ""
    ) -> _RecordMeta:
        annotations = namespace.get("__annotations__", {})
        if not bases:
            return super().__new__(mcls, name, bases, {"__slots__": (), **namespace})
        fields: list[Field] = []
        defaults: dict[str, object] = {}
        form = endian
        offset = 0
        for key, kind in annotations.items():
            if not isinstance(kind, str):
                raise TypeError(f"{name}: the module needs 'from __future__ import annotations'")
            code = _CODES.get(kind) or f"{int(kind[1:])}s"
            size = struct.calcsize("=" + code)
            fields.append(Field(key, code, offset, size))
            form += code
            offset += size
            if key in namespace:
                defaults[key] = namespace.pop(key)
        namespace["__slots__"] = tuple(annotations)
        namespace["FIELDS"] = tuple(fields)
        namespace["DEFAULTS"] = defaults
        namespace["STRUCT"] = struct.Struct(form)
        namespace["SIZE"] = offset
        return super().__new__(mcls, name, bases, namespace)

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **_: object) -> None:
        super().__init__(name, bases, namespace)


class Record(metaclass=_RecordMeta):
    """Base of all on-disk structures.

    Subclasses are declared as ``class Header(Record, endian=">")`` with annotations out of ``u8 u16 u32 u64
    i32 i64`` and ``bN`` (exactly N bytes). A field with a default may be left out of the constructor.
    Byte fields shorter than declared are padded with zeros when packed.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        FIELDS: ClassVar[tuple[Field, ...]]
        DEFAULTS: ClassVar[dict[str, object]]
        STRUCT: ClassVar[struct.Struct]
        #: Size in bytes.
        SIZE: ClassVar[int]
    else:

        def __init__(self, **values: object) -> None:
            for field in self.FIELDS:
                if field.name in values:
                    setattr(self, field.name, values.pop(field.name))
                elif field.name in self.DEFAULTS:
                    setattr(self, field.name, self.DEFAULTS[field.name])
                else:
                    raise TypeError(f"{type(self).__name__}: field {field.name!r} is missing")
            if values:
                raise TypeError(f"{type(self).__name__}: no such field: {', '.join(values)}")

    def pack(self) -> bytes:
        """Return the ``SIZE`` bytes of the structure."""
        return self.STRUCT.pack(*[getattr(self, field.name) for field in self.FIELDS])

    @classmethod
    def unpack(cls, data: bytes | memoryview, offset: int = 0) -> Self:
        """Read the structure from ``data`` at ``offset``.

        Raises:
            ImageError: ``corrupt``, fewer than ``SIZE`` bytes are there.
        """
        if len(data) - offset < cls.SIZE:
            raise ImageError(
                "corrupt", cls.__name__, "the structure is cut short", value=len(data) - offset, limit=cls.SIZE
            )
        self = cls.__new__(cls)
        for field, value in zip(cls.FIELDS, cls.STRUCT.unpack_from(data, offset), strict=True):
            setattr(self, field.name, value)
        return self

    @classmethod
    def field(cls, name: str) -> Field:
        """Return the field called ``name``; ``KeyError`` if there is none."""
        for field in cls.FIELDS:
            if field.name == name:
                return field
        raise KeyError(name)

    def replace(self, **values: object) -> Self:
        """Return a copy with some fields changed."""
        merged: dict[str, Any] = dict(self.items())
        merged.update(values)
        return type(self)(**merged)

    def items(self) -> Iterator[tuple[str, int | bytes]]:
        """Yield ``(name, value)`` in order of layout."""
        for field in self.FIELDS:
            yield field.name, getattr(self, field.name)

    def dump(self) -> str:
        """Return one line per field: offset, size, name, value."""
        lines = []
        for field in self.FIELDS:
            value = getattr(self, field.name)
            shown = value.hex() if isinstance(value, bytes) else f"{value:#x}"
            lines.append(f"{field.offset:5} {field.size:4} {field.name:32} {shown}")
        return "\n".join(lines)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and list(self.items()) == list(other.items())

    def __hash__(self) -> int:
        return hash((type(self), *self.items()))

    def __repr__(self) -> str:
        body = ", ".join(f"{name}={value!r}" for name, value in self.items())
        return f"{type(self).__name__}({body})"
