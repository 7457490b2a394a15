"""Compare instar with qemu-img: alternately, in one run, medians and ratios. Asserts nothing."""
