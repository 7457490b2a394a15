"""Run a program and print its peak memory in KiB.

On Linux a child's ``ru_maxrss`` is never below what the process that made it had at that time. So a small shell makes
the program and goes away, and this process, which has said that it takes in orphans, reaps it.
"""

import ctypes
import os
import sys

_PR_SET_CHILD_SUBREAPER = 36

if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
    sys.exit("prctl(PR_SET_CHILD_SUBREAPER) failed")
shell = os.posix_spawn("/bin/sh", ["sh", "-c", '"$@" >/dev/null &', "sh", *sys.argv[1:]], os.environ)
peak = 0
while True:
    try:
        pid, status, usage = os.wait4(-1, 0)
    except ChildProcessError:
        break
    if pid != shell:
        peak = max(peak, usage.ru_maxrss)
        if status:
            sys.exit(f"{sys.argv[1:]} failed")
print(peak)
