"""The one place that names the working precision: 64-bit floats on the side that people call."""

import jax
import numpy as np

FLOAT = np.float64


def double_precision():
    """Context in which JAX computes in 64 bits, in this thread only; no global flag is touched."""
    return jax.enable_x64(True)
