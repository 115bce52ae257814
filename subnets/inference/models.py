"""What all that handle models must know of them, without importing torch."""

from __future__ import annotations

from typing import Final

ARCHITECTURE: Final = "mlp-digits-1"
"""64 pixels, one hidden ReLU layer, 10 classes."""
PIXELS: Final = 64
"""Numbers in one input row."""
MAX_MODEL_BYTES: Final = 64 * 1024
"""The widest model has 4 * (64*128 + 128 + 128*10 + 10) = 38,440 bytes and a header of a few hundred."""
