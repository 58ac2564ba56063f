"""Training state as bytes."""

import io
from typing import Any

import torch


def encode_state(state: dict[str, Any]) -> bytes:
    """Serialise a training state: tensors and plain data."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def decode_state(content: bytes, device: torch.device) -> dict[str, Any]:
    """Read what `encode_state` made; only tensors and plain data are admitted."""
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    return state
