"""One module per command: its words, the call to the host, its renderer and exit code."""
