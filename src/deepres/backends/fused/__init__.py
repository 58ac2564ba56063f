"""The nets of section 4.2 in hand-written kernels for CPUs."""
