"""One module a target; see ``fuzz``."""
