"""ONNX models on onnxruntime.

A session made in the master with one thread is the same session at full speed in a forked child, and weights exist once: the best
rung wherever one thread is what is asked for. With more, or on a GPU, the session must be made in the worker.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort

from server.engines import onnx_cuda
from server.engines.engine import Precision, Rung, Source
from server.exits import ConfigurationError, ExitError, GpuLostError, GpuMemoryError, ModelError, ResourceError
from server.gpus import Allotment
from server.refusals import BadInputError
from server.tensors import ANY, Array, Tensors, TensorSpec

_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16, which numpy has no type for

_DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float": "FP32",
    "double": "FP64",
    "bfloat16": "BF16",
    "string": "BYTES",
}


class OnnxSession:
    """An `onnxruntime.InferenceSession` behind our protocol."""

    def __init__(self, session: ort.InferenceSession, path: Path, gpu: Allotment | None = None) -> None:
        """Read names, types and shapes off the session; raise `ConfigurationError` for a type that the protocol has not.

        `gpu`: where it was made to run; None on the processor.
        """
        self.session = session
        self.gpu = gpu
        self.inputs = tuple(_spec(node, path) for node in session.get_inputs())
        self.outputs = tuple(_spec(node, path) for node in session.get_outputs())
        self.names = [spec.name for spec in self.outputs]
        datatypes = {spec.datatype for spec in (*self.inputs, *self.outputs)}
        self.bfloat16 = "BF16" in datatypes
        self.binds = gpu is not None and not datatypes & {"BF16", "BYTES"}
        """Whether tensors can be bound, which texts and bfloat16 can't from Python."""
        self.overlaps = gpu is not None
        self.graphs = False
        self.device_ms = 0.0
        if datatypes >= {"BF16", "BYTES"}:
            message = f"{path}: has tensors of BF16 and of BYTES, which onnxruntime does not run in one model from Python"
            raise ConfigurationError(message)

    def enter(self, threads: int, gpu: Allotment | None = None) -> None:
        """Nothing: a session has the threads, or the GPU, that it was made with."""

    def settle(self) -> None:
        """Nothing: every shape runs in the same way."""

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Run once, all outputs."""
        feed = {spec.name: _text(inputs[spec.name], spec) for spec in self.inputs}
        try:
            if self.binds:
                given = onnx_cuda.run(self.session, self.names, feed)
            else:
                given = self._run_values(feed) if self.bfloat16 else self.session.run(self.names, feed)
        except Exception as error:
            if self.gpu and onnx_cuda.no_memory(error):
                raise GpuMemoryError(_line(error)) from error
            if self.gpu and onnx_cuda.lost(error):
                message = f"the GPU is lost to this process: {_line(error)}"
                raise GpuLostError(message) from error
            if _no_memory(error):
                raise MemoryError(str(error)) from error
            raise
        return {spec.name: _bytes(array, spec) for spec, array in zip(self.outputs, given, strict=True)}

    def _run_values(self, feed: Tensors) -> list[Array]:
        """Run with onnxruntime's own values, the only way for bfloat16."""
        values = {name: _value(array) for name, array in feed.items()}
        return [_array(value) for value in self.session.run_with_ort_values(self.names, values)]


class OnnxRuntime:
    """The engine for `.onnx` files."""

    platform = "onnxruntime_onnx"

    def no_gpu(self, path: Path) -> str:  # noqa: ARG002 - the protocol's
        """Where it was built without CUDA."""
        return onnx_cuda.no_cuda()

    def check(self, source: Source) -> None:
        """Parse the file; external data must lie in the model's folder, under no link: it would be a way to read any file."""
        path = source.path
        if source.compiled or source.precision is not Precision.FP32:
            message = f"{path}: [torch] in model.toml is for torch; onnxruntime compiles nothing, and precision is the file's"
            raise ConfigurationError(message)
        for name in _external(path):
            location = path.parent / name
            plain = not Path(name).is_absolute() and ".." not in Path(name).parts
            if not plain or not location.resolve().is_relative_to(path.parent.resolve()):
                message = f"{path}: external data {name!r} lies outside the model's folder"
                raise ConfigurationError(message)
            if any((path.parent / part).is_symlink() for part in (Path(name), *Path(name).parents[:-1])):
                message = f"{path}: external data {name!r} is a symbolic link"
                raise ConfigurationError(message)
            if not location.is_file():
                message = f"{path}: external data {name!r} is missing"
                raise ConfigurationError(message)
            if location.stat().st_nlink != 1:
                message = f"{path}: external data {name!r} is a hard link"
                raise ConfigurationError(message)

    def rungs(self, source: Source, threads: int) -> Sequence[tuple[Rung, str]]:
        """The live session first, unless more than one thread is asked for: it would silently run on one; nor for a GPU."""
        why = f"a session made before the fork runs on one thread, WARMFORK_THREADS={threads}" if threads > 1 else ""
        if source.gpu:
            why = "a session on a GPU belongs to the process that made it"
        live = [] if why else [(Rung.LIVE, "")]
        # Of mapped weights onnxruntime copies what it packs anew, so this rung saves little; what it costs a worker is measured.
        return [*live, (Rung.MAPPED if _external(source.path) else Rung.PRIVATE, why)]

    def load(self, source: Source, threads: int) -> OnnxSession:
        """Make a session; raise `ConfigurationError` naming the file if onnxruntime refuses it."""
        path = source.path
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        providers = [*([onnx_cuda.provider(source.gpu)] if source.gpu else []), "CPUExecutionProvider"]
        try:
            if source.gpu:
                onnx_cuda.load_libraries()
            # Without a fallback: what is meant for a GPU never runs on the processor.
            session = ort.InferenceSession(path, options, providers=providers, enable_fallback=0)
            made = OnnxSession(session, path, source.gpu)
        except (ExitError, MemoryError):  # the deadline of whoever loads, or no fault of the file
            raise
        except Exception as error:
            if source.gpu and onnx_cuda.no_memory(error):
                message = f"{path}: does not fit into {source.gpu.bytes >> 20} MiB of {source.gpu.gpu.device}: {_line(error)}"
                raise ModelError(message) from error
            if source.gpu and (failure := onnx_cuda.failure(error)):
                message = f"{path}: onnxruntime on {source.gpu.gpu.device} ({source.gpu.gpu.name}): {failure}"
                raise ResourceError(message) from error
            if _no_memory(error):
                raise MemoryError(str(error)) from error
            message = f"{path}: onnxruntime refuses it: {_line(error)}"
            raise ConfigurationError(message) from error
        if source.gpu and onnx_cuda.NAME not in made.session.get_providers():
            message = f"{path}: onnxruntime cannot load its {onnx_cuda.NAME}"
            raise ResourceError(message)
        return made


ENGINE = OnnxRuntime()


def _external(path: Path) -> list[str]:
    """The files that a model's tensors lie in besides its own, wherever in the model the tensor is."""
    import onnx  # noqa: PLC0415 - heavy, and wanted by the throw-away child alone

    try:
        model = onnx.load(path, load_external_data=False)
    except (ExitError, MemoryError):
        raise
    except Exception as error:
        message = f"{path}: not an ONNX model: {_line(error)}"
        raise ConfigurationError(message) from error
    if not model.graph.node and not model.graph.output:
        message = f"{path}: not an ONNX model: its graph is empty"
        raise ConfigurationError(message)
    names = (
        entry.value
        for tensor in _tensors(model)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    )
    return sorted(set(names))


def _tensors(message: Any) -> Iterator[Any]:
    """Every TensorProto inside a protobuf message, at any depth: initializers, attributes, subgraphs, functions, training."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for item in value if isinstance(value, Sequence) or hasattr(value, "__len__") else (value,):
                yield from _tensors(item)


def _spec(node: Any, path: Path) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    if kind not in _DATATYPES:
        message = f"{path}: {node.name!r} is {node.type}, the protocol has {', '.join(_DATATYPES)}"
        raise ConfigurationError(message)
    free = [not isinstance(length, int) or length < 0 for length in node.shape]
    return TensorSpec(
        node.name,
        _DATATYPES[kind],
        tuple(ANY if is_free else length for is_free, length in zip(free, node.shape, strict=True)),
        tuple(
            (length if isinstance(length, str) and length else f"{node.name}.{axis}") if is_free else None
            for axis, (is_free, length) in enumerate(zip(free, node.shape, strict=True))
        ),
    )


def _text(array: Array, spec: TensorSpec) -> Array:
    """onnxruntime's strings are text, the protocol's are bytes."""
    if spec.datatype != "BYTES":
        return array
    try:
        flat = [item.decode() for item in array.ravel()]
    except UnicodeDecodeError as error:
        message = f"input {spec.name!r}: an item is not UTF-8 (byte {error.start}: {error.reason}), which this model takes"
        raise BadInputError(message) from None
    return np.array(flat, object).reshape(array.shape)


def _bytes(array: Array, spec: TensorSpec) -> Array:
    if spec.datatype != "BYTES":
        return array
    return np.array([str(item).encode() for item in array.ravel()], object).reshape(array.shape)


def _value(array: Array) -> Any:
    if array.dtype == ml_dtypes.bfloat16:
        raw = np.asarray(array, order="C").view(np.uint16)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, _BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))


def _array(value: Any) -> Array:
    if value.element_type() != _BFLOAT16:
        array: Array = value.numpy()
        return array
    raw = bytearray(ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()))  # writable, as every other answer is
    return np.frombuffer(raw, ml_dtypes.bfloat16).reshape(value.shape())


def _no_memory(error: Exception) -> bool:
    """Whether memory ran out, which onnxruntime has no exception of its own for."""
    return "bad_alloc" in str(error) or "Failed to allocate memory" in str(error)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
