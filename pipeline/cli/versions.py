"""What a report of a fault needs: the versions that decide how a command works, and the device that it finds."""

from __future__ import annotations

import importlib.metadata
import platform

BESIDE = ("transformers", "ray", "pyarrow")


def versions() -> str:
    """Two lines: this program, torch and its device; what else matters."""
    import torch

    beside = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in BESIDE)
    own = importlib.metadata.version("hoi-distill")
    return (
        f"hoi-distill {own}, torch {torch.__version__}, device {device()}\nPython {platform.python_version()}, {beside}"
    )


def device() -> str:
    """``cuda (2 x NVIDIA H200)``, ``mps`` or ``cpu``: the best that torch finds here."""
    import torch

    if torch.cuda.is_available():
        return f"cuda ({torch.cuda.device_count()} x {torch.cuda.get_device_name(0)})"
    return "mps" if torch.backends.mps.is_available() else "cpu"
