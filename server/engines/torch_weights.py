"""The weights of a torch module on their way to the GPU.

One copy of them for several workers (CUDA IPC) would be opened here, in place of the copy.
"""

from __future__ import annotations

from typing import Any

import torch

STAGING = 16 << 20
"""Bytes of the pinned buffer through which weights go: they are pages of a file that all workers have mapped, and to have the
driver pin those would make them private."""


def hold(module: torch.nn.Module) -> None:
    """Copy a module's weights to the GPU, through a pinned buffer that is freed again; tied ones stay tied.

    The module is this process's own copy of what it inherited; the weights that it lets go of are everybody's.
    """
    staging = pinned((STAGING,), torch.uint8)
    there: dict[tuple[Any, ...], torch.Tensor] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        # An exported program has tied weights as tensors of one memory.
        key = (tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride(), tensor.dtype)
        if key not in there:
            there[key] = _on_gpu(tensor.data, staging)
        tensor.data = there[key]
    for part in module.modules():
        if isinstance(part, torch.fx.GraphModule):
            _move_constants(part, staging)
        if isinstance(part, torch.nn.RNNBase):
            part.flatten_parameters()  # or cuDNN would, at every run
    torch.cuda.synchronize()
    del staging
    torch._C._host_emptyCache()  # noqa: SLF001 - torch 2.13 has no public name for it


def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory of the processor from which the GPU copies by itself."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


def _on_gpu(tensor: torch.Tensor, staging: torch.Tensor) -> torch.Tensor:
    """`tensor` on the GPU, copied in pieces."""
    made = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
    source, target = (each.contiguous().view(-1).view(torch.uint8) for each in (tensor, made))
    for start in range(0, source.numel(), STAGING):
        piece = source[start : start + STAGING]
        staging[: len(piece)].copy_(piece)
        target[start : start + len(piece)].copy_(staging[: len(piece)])
    return made


def _move_constants(module: torch.fx.GraphModule, staging: torch.Tensor) -> None:
    """An exported graph names the device that it was traced on wherever it makes a tensor (as `move_to_device_pass` of torch)."""
    for name, constant in vars(module).items():
        if isinstance(constant, torch.Tensor):
            setattr(module, name, _on_gpu(constant, staging))
    for node in module.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
        elif node.target is torch.ops.aten.to.device:
            node.args = (node.args[0], torch.device("cuda", 0), *node.args[2:])
    module.recompile()
