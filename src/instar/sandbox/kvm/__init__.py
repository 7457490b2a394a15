"""The kvm cell: a sealed process whose guest runs in a virtual machine, as a clone of the interpreter itself."""
