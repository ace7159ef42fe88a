"""`torch.export`: a graph with its weights in a `.pt2` archive, which names its tensors, their types and their free axes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.export.pt2_archive._package import load_pt2

from server.engines import torch_archive, torch_compile
from server.engines.engine import Rung, Source
from server.engines.torch_cuda import no_cuda
from server.engines.torch_session import TorchSession, refusal
from server.engines.torch_tensors import DATATYPES
from server.exits import ConfigurationError
from server.tensors import ANY, TensorSpec

NOT_EXPORTED = "not a program of torch.export"


class TorchExport:
    """The engine for `.pt2` files."""

    platform = "pytorch_export"

    def no_gpu(self, path: Path) -> str:  # noqa: ARG002 - the protocol's
        """Where torch has no CUDA."""
        return no_cuda()

    def check(self, source: Source) -> None:
        """Look that the archive holds a graph and plain tensors, and nothing that is a pickle, native code or Python."""
        torch_archive.check(source.path)
        if source.compiled:
            torch_compile.prepare()

    def rungs(self, source: Source, threads: int) -> Sequence[tuple[Rung, str]]:  # noqa: ARG002 - the protocol's
        """Shared live; threads are a matter of the process that runs it."""
        return [(Rung.LIVE, ""), (Rung.PRIVATE, "")]

    def load(self, source: Source, threads: int) -> TorchSession:  # noqa: ARG002 - `enter` sets them
        """Read the graph; raises `ConfigurationError` naming the file if torch refuses it or its tensors are nested."""
        try:
            program = load_pt2(str(source.path)).exported_programs["model"]  # torch.export.load says less of what is wrong
            module = program.module()
        except Exception as error:
            raise refusal(source.path, error, NOT_EXPORTED) from error
        arguments, places = _arguments(program, source)
        inputs = tuple(_spec(name, program, node, source) for name, node in arguments)
        outputs = tuple(_spec(name, program, node, source) for name, node in _results(program, source))
        given = _in_order(inputs, source)
        pairs = (pair for own, spec in zip(inputs, given, strict=True) for pair in zip(own.axes, spec.axes, strict=True))
        names = {old: new for old, new in pairs if old and new}
        own = tuple(replace(spec, axes=tuple(names.get(axis, axis) if axis else None for axis in spec.axes)) for spec in outputs)
        bounds = {names[axis]: bound for axis, bound in _bounds(program).items() if axis in names}
        return TorchSession(module, source, given, source.outputs or own, places, bounds)


ENGINE = TorchExport()


def _arguments(program: torch.export.ExportedProgram, source: Source) -> tuple[list[tuple[str, str]], int]:
    """What each input is called, and the node that it is in the graph; and how many of them come by place."""
    nodes = [str(node) for node in program.graph_signature.user_inputs]
    places, names = program.call_spec.in_spec.children()
    if any(not child.is_leaf() for child in (*places.children(), *names.children())):
        message = f"{source.path}: an input is a container of tensors; only plain tensors can be sent"
        raise ConfigurationError(message)
    count = places.num_children
    return list(zip([*nodes[:count], *map(str, names.context or ())], nodes, strict=True)), count


def _bounds(program: torch.export.ExportedProgram) -> dict[str, tuple[int, int]]:
    """The lengths of each symbol that the program holds for."""
    return {
        str(symbol): (int(known.lower), int(known.upper) if known.upper.is_finite else sys.maxsize)
        for symbol, known in program.range_constraints.items()
    }


def _results(program: torch.export.ExportedProgram, source: Source) -> list[tuple[str, str]]:
    """What each output is called (keys of a dict, else names of nodes), and the node of each."""
    nodes = [str(node) for node in program.graph_signature.user_outputs]
    spec = program.call_spec.out_spec
    if not spec.is_leaf() and any(not child.is_leaf() for child in spec.children()):
        message = f"{source.path}: an output is a container of tensors; a tensor, a tuple or a dict of tensors can be sent"
        raise ConfigurationError(message)
    if spec.type is dict:
        return list(zip(map(str, spec.context), nodes, strict=True))
    # A tensor that is given twice is two outputs.
    return [(f"{node}.{place}" if node in nodes[:place] else node, node) for place, node in enumerate(nodes)]


def _in_order(own: tuple[TensorSpec, ...], source: Source) -> tuple[TensorSpec, ...]:
    """The inputs as `model.toml` has them, in the program's order; its own where it has none."""
    if source.inputs is None:
        return own
    given = {spec.name: spec for spec in source.inputs}
    names = [spec.name for spec in own]
    if set(names) != set(given):
        message = f"{source.path}: the program takes {', '.join(names)}, model.toml has {', '.join(given)}"
        raise ConfigurationError(message)
    for spec in own:
        other = given[spec.name]
        fixed = [length for length in spec.shape if length != ANY]
        ours = [came for came, length in zip(other.shape, spec.shape, strict=False) if length != ANY]
        if (other.datatype, len(other.shape), ours) != (spec.datatype, len(spec.shape), fixed):
            message = (
                f"{source.path}: {spec.name!r} is {spec.datatype} {list(spec.shape)}, "
                f"model.toml has {other.datatype} {list(other.shape)}"
            )
            raise ConfigurationError(message)
    return tuple(given[name] for name in names)


def _spec(name: str, program: torch.export.ExportedProgram, node: str, source: Source) -> TensorSpec:
    """The spec of one tensor; axes of one symbol have one length."""
    value = {each.name: each.meta.get("val") for each in program.graph.nodes}.get(node)
    if not isinstance(value, torch.Tensor) or value.dtype not in DATATYPES:
        kind = value.dtype if isinstance(value, torch.Tensor) else "no tensor"
        message = f"{source.path}: {name!r} is {kind}, the protocol has {', '.join(map(str, DATATYPES))}"
        raise ConfigurationError(message)
    lengths: list[Any] = list(value.shape)
    return TensorSpec(
        name,
        DATATYPES[value.dtype],
        tuple(length if isinstance(length, int) else ANY for length in lengths),
        tuple(None if isinstance(length, int) else str(length) for length in lengths),
    )
