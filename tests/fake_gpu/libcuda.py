"""A CUDA driver's library that does nothing but say who has initialised it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

SETTING = "FAKE_LIBCUDA"
"""The environment's name for the library: torch initialises it where it would initialise the real one."""
SOURCE = r"""
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

static int initialised;

int cuInit(unsigned flags) {
    char line[32];
    int file = open(FOLDER "/initialised", O_WRONLY | O_APPEND | O_CREAT, 0600);
    write(file, line, snprintf(line, sizeof line, "%d\n", getpid()));
    close(file);
    initialised = 1;
    return 0;
}

int cuDeviceGetCount(int *count) {
    *count = 1;
    return initialised ? 0 : 3; /* CUDA_ERROR_NOT_INITIALIZED */
}
"""


class LibCuda:
    """`libcuda.so.1` in a folder."""

    def __init__(self, folder: Path) -> None:
        """Compile it into `folder`."""
        self.folder = folder
        folder.mkdir(parents=True)
        (folder / "libcuda.c").write_text(SOURCE, encoding="ascii")
        command = [
            "cc",
            "-shared",
            "-fPIC",
            "-w",
            f'-DFOLDER="{folder}"',
            "-o",
            str(folder / "libcuda.so.1"),
            str(folder / "libcuda.c"),
        ]
        subprocess.run(command, check=True)

    @property
    def environ(self) -> Mapping[str, str]:
        """What a process has in its environment that is to find it."""
        return {
            SETTING: str(self.folder / "libcuda.so.1"),
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(self.folder), os.environ.get("LD_LIBRARY_PATH")])),
        }

    @property
    def initialised(self) -> set[int]:
        """Every process that has called `cuInit`."""
        path = self.folder / "initialised"
        return set(map(int, path.read_text(encoding="ascii").split())) if path.exists() else set()
