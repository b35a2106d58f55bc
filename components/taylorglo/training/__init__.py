"""The training engine: one network, or many at once, on this machine's CPUs or GPU."""
