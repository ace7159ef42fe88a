"""A machine with GPUs that are not there: NVML and torch's CUDA as a server sees them, for tests where there is none.

With this folder on `PYTHONPATH` (see `machine.Machine`) a process imports this `pynvml`, and the engine for torch runs on memory
of the processor that is counted as a GPU's. All of our own code is the real one.
"""
