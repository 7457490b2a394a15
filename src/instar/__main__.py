"""``python -m instar``."""

import sys

from instar.cli.main import start

sys.argv[0] = "instar"
start()
