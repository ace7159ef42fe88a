"""The environment that the libraries below us read at their first import, so this module comes before all of them.

A process that has ever run a parallel region cannot fork: the child hangs in its first one. So the master stays at one thread
(workers raise it for themselves), asks NVML and not CUDA whether there are GPUs, and starts no telemetry thread.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from server import session

FORK_SAFE: Mapping[str, str] = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""What keeps an import or a load from starting a thread or CUDA."""

os.environ.update(FORK_SAFE)

if os.environ.get("WARMFORK_POLITE", "").strip() == "1":  # the imports that follow are felt by others as well
    session.stand_back()
