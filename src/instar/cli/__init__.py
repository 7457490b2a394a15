"""The command line: argv dialect, one module per command, renderers, sentences."""
