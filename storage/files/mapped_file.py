"""A file mapped into memory. The disk is read where a value is announced or touched, and nowhere else."""

from __future__ import annotations

import mmap

import numpy as np


class MappedFile:
    """A read-only map of a whole file. Its arrays keep it mapped.

    Attributes:
        pages: ``uint8 [bytes]``, read-only, the file.
    """

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self._map.madvise(mmap.MADV_RANDOM)
        self.pages = np.frombuffer(self._map, np.uint8)

    def read_ahead(self, offset: int, size: int) -> None:
        """Let the disk begin to read ``size`` bytes at ``offset``, and do not wait for it.

        What is touched unannounced is read page by page, each with a wait of its own.
        """
        start = offset - offset % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, start, offset + size - start)
