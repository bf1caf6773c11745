"""Where programs run: on a processor with caches, or on an accelerator that wants all of the work at once."""

import os
from typing import Any

import jax


def on_cpu() -> bool:
    """Whether programs are compiled for the CPU: the default device, or else the first backend, is one."""
    device = _chosen()
    if device is None:
        return jax.default_backend() == "cpu"
    return (device if isinstance(device, str) else device.platform) == "cpu"


def memory() -> int | None:
    """Bytes of memory of the device that programs run on; None where nobody tells.

    Of an accelerator it is what JAX may take of it, and not the machine's own.
    """
    if not on_cpu():
        device: Any = _chosen()
        device = device if hasattr(device, "memory_stats") else jax.local_devices()[0]
        return (device.memory_stats() or {}).get("bytes_limit")
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


SMALL = 1 << 28
"""Bytes that any device has."""


def shortage(needed: int) -> str | None:
    """What a computation would need and what there is, in words, where its bytes do not fit; None where they do."""
    # To ask a device starts it, which a small problem need not wait for.
    if needed < SMALL or (there := memory()) is None or needed <= 0.8 * there:
        return None
    return f"about {needed / 1e9:.0f} GB, and the {'machine' if on_cpu() else 'device'} has {there / 1e9:.0f}"


def _chosen():
    """The default device: one of JAX's, the name of a platform, or None."""
    return getattr(jax.config, "jax_default_device", None)
