"""Room for the many files of one image: the soft limit of open files is raised for as long as they are open.

Law: only as far as the hard limit, which is the administrator's, and back again when the last who needed it, in any
thread, has let go.
"""

from __future__ import annotations

import os
import resource

#: Descriptors that a program and a cell may need besides those of the files.
OTHERS = 64

#: Who has raised the limit, and what it was before the first of them did.
_users: set[Descriptors] = set()
_before: list[tuple[int, int]] = []


class Descriptors:
    """Room for ``count`` descriptors more, until ``give_back``.

    Attributes:
        needed: how many may be open at once then.
        hard: the hard limit; where it is lower than what is needed, the soft limit is as high as it may be.
    """

    __slots__ = ("hard", "needed")

    def __init__(self, count: int) -> None:
        soft, self.hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.needed = count + OTHERS + len(os.listdir("/proc/self/fd"))
        _users.add(self)
        limit = self.needed if self.enough else self.hard
        if soft != resource.RLIM_INFINITY and soft < limit:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, self.hard))
            _before.append((soft, self.hard))

    @property
    def enough(self) -> bool:
        """Whether the hard limit lets so many be opened."""
        return self.hard == resource.RLIM_INFINITY or self.hard >= self.needed

    def give_back(self) -> None:
        """Set the limit as it was, unless others still need it; harmless when done twice."""
        _users.discard(self)
        if not _users and _before:
            resource.setrlimit(resource.RLIMIT_NOFILE, _before[0])
            _before.clear()
