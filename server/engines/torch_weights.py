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
    _move(module, torch.empty((STAGING,), dtype=torch.uint8, pin_memory=True))
    torch.cuda.synchronize()
    torch._C._host_emptyCache()  # noqa: SLF001 - torch 2.13 has no public name for it


def _move(module: torch.nn.Module, staging: torch.Tensor) -> None:
    there: dict[tuple[Any, ...], torch.Tensor] = {}

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        # An exported program has tied weights as tensors of one memory.
        key = (tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride(), tensor.dtype)
        if key not in there:
            there[key] = _on_gpu(tensor.data, staging)
        return there[key]

    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = moved(tensor)
    for part in module.modules():
        if isinstance(module, torch.fx.GraphModule):  # an exported one has its constants as attributes, at any depth
            for name, constant in vars(part).items():
                if isinstance(constant, torch.Tensor):
                    setattr(part, name, moved(constant))
        if isinstance(part, torch.fx.GraphModule):
            _move_nodes(part)
        if isinstance(part, torch.nn.RNNBase):
            part.flatten_parameters()  # or cuDNN would, at every run


def _on_gpu(tensor: torch.Tensor, staging: torch.Tensor) -> torch.Tensor:
    """`tensor` on the GPU, laid out as it was, copied in pieces."""
    made = torch.empty_like(tensor, device="cuda")
    if made.stride() != tensor.stride():  # it has gaps, or is several views of one
        tensor = torch.empty_like(made, device="cpu").copy_(tensor)
    source, target = (each.as_strided((each.numel(),), (1,)).view(torch.uint8) for each in (tensor, made))
    for start in range(0, source.numel(), STAGING):
        piece = source[start : start + STAGING]
        staging[: len(piece)].copy_(piece)
        target[start : start + len(piece)].copy_(staging[: len(piece)])
    return made


def _move_nodes(module: torch.fx.GraphModule) -> None:
    """An exported graph names the device that it was traced on wherever it makes a tensor (as `move_to_device_pass` of torch)."""
    for node in module.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
        elif node.target is torch.ops.aten.to.device:
            node.args = (node.args[0], torch.device("cuda", 0), *node.args[2:])
    module.recompile()
