"""Make the checksums of a mutated image right again, or else no mutation would come past them."""

from __future__ import annotations

from instar.formats.vhdx import ondisk as vhdx
from instar.formats.vhdx.crc32c import checksum as crc_of
from instar.formats.vpc import ondisk as vpc


def repair_vpc(data: bytes) -> bytes:
    """Mend both footers and the dynamic header, where they are whole."""
    out = bytearray(data)
    for at, size, record in (
        (0, vpc.Footer.SIZE, vpc.Footer),
        (len(out) - vpc.Footer.SIZE, vpc.Footer.SIZE, vpc.Footer),
        (vpc.Footer.SIZE, vpc.Header.SIZE, vpc.Header),
    ):
        if at >= 0 and at + size <= len(out):
            place = at + record.field("checksum").offset
            out[place : place + 4] = bytes(4)
            out[place : place + 4] = vpc.checksum(bytes(out[at : at + size])).to_bytes(4, "big")
    return bytes(out)


def repair_vhdx(data: bytes) -> bytes:
    """Mend the headers and region tables, where they are whole."""
    out = bytearray(data)
    spans = [(at, vhdx.HEADER_BLOCK) for at in vhdx.HEADER_OFFSETS]
    spans += [(at, vhdx.REGION_TABLE_SIZE) for at in vhdx.REGION_TABLE_OFFSETS]
    for at, size in spans:
        if at + size <= len(out):
            out[at + 4 : at + 8] = crc_of(bytes(out[at : at + size])).to_bytes(4, "little")
    return bytes(out)
