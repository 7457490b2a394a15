"""No isolation: the guest runs in the caller's own process. For tests, and for who asks for ``none`` by name."""

from __future__ import annotations

from instar.core.errors import SandboxError
from instar.core.wire import WireError, decode, encode
from instar.guest.main import main, preload
from instar.sandbox.files import GrantedFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.wire import Wire
    from instar.sandbox.cell import Grant, Guest, Limits, Serve


class _Refused(BaseException):
    """The host refused a request: unwinds the guest, which catches every ``Exception``."""


class InlineCell:
    """A cell without walls. Refuses to exist unless that is said out loud. ``guest`` is what runs inside."""

    name = "none"

    def __init__(self, *, accept_no_isolation: bool = False, guest: Guest = main) -> None:
        if not accept_no_isolation:
            raise SandboxError("unavailable", "the inline cell protects nothing; it must be asked for by name")
        self._guest = guest

    def run(self, job: bytes, files: Sequence[Grant], limits: Limits, serve: Serve) -> bytes:
        """See ``Cell.run``. Of the limits only the reply's length and the number of requests are kept."""
        if self._guest is main:
            preload(job)
        refused: list[BaseException] = []
        left = limits.requests

        def ask(request: Wire) -> Wire:
            nonlocal left
            wire = encode(request)
            left -= 1
            try:
                if left < 0:
                    raise SandboxError("limit", f"the cell made more than {limits.requests} requests")
                return decode(encode(serve(decode(wire))))
            except BaseException as error:
                refused.append(error)
                raise _Refused from error

        try:
            reply = self._guest(job, [GrantedFile(n, g.fd, g.mode, g.size, g.offset) for n, g in enumerate(files)], ask)
        except _Refused:
            pass
        if refused:
            error = refused[0]
            if isinstance(error, WireError):
                raise SandboxError("protocol", f"the cell's request cannot be read: {error}") from None
            raise error
        if len(reply) > limits.reply_bytes:
            raise SandboxError("limit", f"the reply is longer than {limits.reply_bytes} bytes")
        return reply
