"""Small models for tests: each function writes one into a repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}
Tensors = dict[str, tuple[str, list[int | str | None]]]
"""Name to datatype and shape."""

BATCHED = "batch_sizes = [1, 2, 4, 8]\n"


def put(root: Path, name: str, model: onnx.ModelProto | None, toml: str = BATCHED, python: str = "", version: int = 1) -> Path:
    """Write `model`, `model.toml` and, if given, `model.py` as one version of `name`; give the model's folder."""
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    if model is not None:
        onnx.save(model, folder / "model.onnx")
    if python:
        toml = 'python = "model.py"\n' + toml
        (folder / "model.py").write_text(python, encoding="utf-8")
    if toml:
        (folder.parent / "model.toml").write_text(toml, encoding="utf-8")
    return folder.parent


def graph(
    nodes: list[onnx.NodeProto],
    inputs: Tensors,
    outputs: Tensors,
    weights: dict[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    """An ONNX model of `nodes`; tensors are name to datatype and shape."""
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, TYPES[kind], shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, TYPES[kind], shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def identity(datatype: str = "FP32", width: int | str = 3) -> onnx.ModelProto:
    """`y` is `x`, of shape [batch, width]."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return graph([node], {"x": (datatype, ["batch", width])}, {"y": (datatype, ["batch", width])})


def two() -> onnx.ModelProto:
    """`sum` and `difference` of `a` and `b`, FP32 [batch, 3]."""
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    shape: list[int | str | None] = ["batch", 3]
    return graph(nodes, {"a": ("FP32", shape), "b": ("FP32", shape)}, {"sum": ("FP32", shape), "difference": ("FP32", shape)})


def dense(size: int = 64, layers: int = 1, seed: int = 0) -> onnx.ModelProto:
    """`layers` square matrix products of `size`: `y` is `x` times each; FP32 [batch, size]."""
    generator = np.random.Generator(np.random.PCG64(seed))
    weights = {
        f"w{layer}": generator.standard_normal((size, size), np.float32) / np.float32(size**0.5) for layer in range(layers)
    }
    names = ["x", *(f"h{layer}" for layer in range(layers - 1)), "y"]
    nodes = [helper.make_node("MatMul", [names[layer], f"w{layer}"], [names[layer + 1]]) for layer in range(layers)]
    return graph(nodes, {"x": ("FP32", ["batch", size])}, {"y": ("FP32", ["batch", size])}, weights)


def nan() -> onnx.ModelProto:
    """`y` is 0 × log(-1 - x²): never a number."""
    one = np.array(-1, np.float32)
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("Sub", ["one", "square"], ["negative"]),
        helper.make_node("Log", ["negative"], ["y"]),
    ]
    return graph(nodes, {"x": ("FP32", ["batch", 3])}, {"y": ("FP32", ["batch", 3])}, {"one": one})


def row_mixer() -> onnx.ModelProto:
    """`y` is `x` less the mean over the batch: a row's answer depends on the others."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "axis"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    axis = np.array([0], np.int64)
    return graph(nodes, {"x": ("FP32", ["batch", 3])}, {"y": ("FP32", ["batch", 3])}, {"axis": axis})


def zoo(root: Path) -> None:
    """The repository that the HTTP tests are served from."""
    for datatype in TYPES:
        put(root, f"identity_{datatype.lower()}", identity(datatype))
    put(root, "two", two())
    put(root, "lengths", identity(width="width"), f"{BATCHED}[axes]\nwidth = [3, 8]\n")
    put(root, "free", identity(width="width"))
    put(
        root,
        "raises",
        identity(),
        python="def preprocess(inputs):\n    if inputs['x'][0, 0] == 13: raise RuntimeError('/secret/path')\n    return inputs\n",
    )


_STAGES = '''
import os, sys, time, ctypes, signal, threading
import setproctitle

_importer = os.getpid()
with open(f"/proc/{os.getppid()}/cmdline", "rb") as _file:
    _in_trial = b"warmfork: master" in _file.read()


def stage():
    if "worker" in setproctitle.getproctitle():
        return "worker"
    if os.getpid() == _importer:
        return "trial" if _in_trial else "master"
    if not _in_trial:
        return "fork"
    return "private" if os.getppid() == _importer else "live"


def deadlock():
    """Lock a mutex twice in one native call each, the GIL held: no signal handler of Python's ever runs."""
    libc, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def native_thread():
    libc = ctypes.CDLL(None)
    libc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, ctypes.cast(libc.pause, ctypes.c_void_p), None)
'''


def failing(stages: str, fault: str) -> str:
    """A `model.py` that passes inputs on, but runs the statement `fault` in each of `stages`.

    At its import: `trial`, `master`. In `preprocess`: `live` (the trial of the live session), `private` (the trial of the rungs
    below), `fork` (the trial of what the master holds), `worker`.
    """
    here = f"if stage() in {stages.split()}: {fault}"
    return f"{_STAGES}\n{here}\ndef preprocess(inputs):\n    {here}\n    return inputs\n"
