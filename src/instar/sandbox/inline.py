"""No isolation: the guest runs in the caller's own process. For tests, and for who asks for ``none`` by name."""

from __future__ import annotations

from instar.core.errors import SandboxError
from instar.core.wire import decode, encode
from instar.guest.main import main, preload
from instar.sandbox.files import GrantedFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.wire import Wire
    from instar.sandbox.cell import Grant, Limits, Serve


class InlineCell:
    """A cell without walls. Refuses to exist unless that is said out loud."""

    name = "none"

    def __init__(self, *, accept_no_isolation: bool = False) -> None:
        if not accept_no_isolation:
            raise SandboxError("unavailable", "the inline cell protects nothing; it must be asked for by name")

    def run(self, job: bytes, files: Sequence[Grant], limits: Limits, serve: Serve) -> bytes:
        """See ``Cell.run``. Of the limits only the reply's length is kept."""
        preload(job)

        def ask(request: Wire) -> Wire:
            return decode(encode(serve(decode(encode(request)))))

        reply = main(job, [GrantedFile(n, g.fd, g.mode, g.size) for n, g in enumerate(files)], ask)
        if len(reply) > limits.reply_bytes:
            raise SandboxError("limit", f"the reply is longer than {limits.reply_bytes} bytes")
        return reply
