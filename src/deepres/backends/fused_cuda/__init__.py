"""The nets of section 4.2 in Triton kernels for NVIDIA GPUs."""
