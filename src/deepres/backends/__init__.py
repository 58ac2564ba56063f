"""What computes a step: torch, torch.compile or the fused kernels, and which of them this machine runs."""
