"""The process cell: a forked child that gives up everything but a dozen system calls on granted descriptors."""
