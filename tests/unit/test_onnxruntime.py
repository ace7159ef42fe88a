"""The engine for ONNX: datatypes, external data, rungs, and what is refused in which words."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from server.engines import onnx_cuda
from server.engines.catalogue import engine_for
from server.engines.engine import Rung, Source
from server.engines.onnx_cuda import no_cuda
from server.engines.onnxruntime import ENGINE, OnnxSession
from server.exits import ConfigurationError, ExitError, GpuLostError, GpuMemoryError, ModelError, ResourceError
from server.gpus import Allotment, Gpu
from server.refusals import BadInputError
from server.tensors import ANY, DTYPES, TensorSpec
from tests.models import dense, graph, identity
from tests.unit.extremes import values


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    """Write a model; give its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def loaded(folder: Path, model: onnx.ModelProto) -> OnnxSession:
    """Write a model and load it."""
    return ENGINE.load(Source(saved(folder, model)), 1)


def external(folder: Path, location: str = "weights.bin") -> Path:
    """A model whose weights lie in `weights.bin`, though it says `location`; what comes out is what goes in, times a matrix."""
    path = folder / "model.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(dense(16), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("datatype", DTYPES)
@pytest.mark.parametrize("contiguous", [True, False])
def test_every_datatype(tmp_path: Path, datatype: str, contiguous: bool) -> None:  # noqa: FBT001
    """Each datatype goes through unchanged, however its array lies in memory."""
    session = loaded(tmp_path, identity(datatype))
    given = values(datatype)
    given = given if contiguous else np.repeat(given, 2, axis=1)[:, ::2]

    answer = session.run({"x": given})

    assert ["y"] == list(answer)
    assert (DTYPES[datatype], (2, 3)) == (answer["y"].dtype, answer["y"].shape)
    assert (given == answer["y"]).all()
    assert (TensorSpec("x", datatype, (ANY, 3), ("batch", None)),) == session.inputs


def test_answer_is_the_callers_own(tmp_path: Path) -> None:
    """An answer can be written to, and stays as it is when the session runs again; in bfloat16 too."""
    for datatype in ("FP32", "BF16"):
        session = loaded(tmp_path, identity(datatype))
        first = session.run({"x": values(datatype)})["y"]
        session.run({"x": np.zeros_like(values(datatype))})

        assert (values(datatype) == first).all()
        first[0, 0] = 9
        assert 9 == first[0, 0]


@pytest.mark.parametrize("other", ["FP32", "BOOL", "INT8"])
def test_bfloat16_beside(tmp_path: Path, other: str) -> None:
    """bfloat16 goes through beside other datatypes, and without axes."""
    nodes = [helper.make_node("Identity", ["a"], ["c"]), helper.make_node("Identity", ["b"], ["d"])]
    session = loaded(tmp_path, graph(nodes, {"a": ("BF16", []), "b": (other, [2, 3])}, {"c": ("BF16", []), "d": (other, [2, 3])}))
    one = np.array(1.5, DTYPES["BF16"])

    answer = session.run({"a": one, "b": values(other)})

    assert (one, (), DTYPES["BF16"]) == (answer["c"], answer["c"].shape, answer["c"].dtype)
    assert (values(other) == answer["d"]).all()


def test_bfloat16_beside_bytes(tmp_path: Path) -> None:
    """onnxruntime can't take both in one call, so a model that has both is refused when it is loaded."""
    nodes = [helper.make_node("Identity", ["a"], ["c"]), helper.make_node("Identity", ["b"], ["d"])]
    model = graph(nodes, {"a": ("BF16", [2]), "b": ("BYTES", [2])}, {"c": ("BF16", [2]), "d": ("BYTES", [2])})

    with pytest.raises(ConfigurationError, match=r"model\.onnx: .*BYTES.*BF16|model\.onnx: .*BF16.*BYTES"):
        loaded(tmp_path, model)


def test_not_utf8(tmp_path: Path) -> None:
    """Bytes that are no text are the client's fault, named; they never reach the engine."""
    session = loaded(tmp_path, identity("BYTES"))

    with pytest.raises(BadInputError, match=r"^input 'x': an item is not UTF-8 \(byte 1: "):
        session.run({"x": np.array([[b"ok", b"a\xff", b""]], object)})


def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime's way to say that memory ran out is a MemoryError; what else it says stays what it is."""
    session = loaded(tmp_path, identity())

    class Failing:
        def __init__(self, text: str) -> None:
            self.text = text

        def run(self, *_: Any) -> None:
            raise RuntimeError(self.text)

    for text, kind in (
        ("bfc_arena: Failed to allocate memory for 9", MemoryError),
        ("std::bad_alloc", MemoryError),
        ("x", RuntimeError),
    ):
        monkeypatch.setattr(session, "session", Failing(text))
        with pytest.raises(kind, match=text):
            session.run({"x": values("FP32")})


def test_axes(tmp_path: Path) -> None:
    """Named axes keep their name, nameless ones get one of their own, fixed ones have none."""
    node = helper.make_node("Identity", ["x"], ["y"])
    session = loaded(tmp_path, graph([node], {"x": ("FP32", ["n", 4, None, ""])}, {"y": ("FP32", ["n", 4, None, None])}))

    assert (ANY, 4, ANY, ANY) == session.inputs[0].shape
    assert ("n", None, "x.2", "x.3") == session.inputs[0].axes
    assert ("n", None, "y.2", "y.3") == session.outputs[0].axes


def test_type_that_the_protocol_has_not(tmp_path: Path) -> None:
    """A model with a sequence for an answer is refused by that name."""
    made = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", 1, [1])],
        [helper.make_tensor_sequence_value_info("y", 1, [1])],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)

    with pytest.raises(ConfigurationError, match=r"model.onnx: 'y' is seq\(tensor\(float\)\), the protocol has bool, uint8"):
        loaded(tmp_path, model)


@pytest.mark.parametrize("content", [b"", b"\x80\x04]\x94.", b"PK\x03\x04", b"not a model at all", b"\x08\x0a"])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    """A file of another kind is refused by its name and the check."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    with pytest.raises(ConfigurationError, match=f"^{path}: not an ONNX model: "):
        ENGINE.check(Source(path))
    with pytest.raises(ConfigurationError, match=f"^{path}: onnxruntime refuses it: ") as refused:
        ENGINE.load(Source(path), 1)
    assert "\n" not in str(refused.value)


def test_truncated(tmp_path: Path) -> None:
    """A model that was cut off is refused, wherever it was cut."""
    path = saved(tmp_path, dense(16))
    whole = path.read_bytes()
    for part in (1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:part])
        with pytest.raises(ConfigurationError, match=f"^{path}: "):
            ENGINE.check(Source(path))


def test_external_data(tmp_path: Path) -> None:
    """Weights beside the model, also deeper, are found and loaded."""
    path = external(tmp_path / "1")
    ENGINE.check(Source(path))
    assert (1, 16) == ENGINE.load(Source(path), 1).run({"x": np.ones((1, 16), np.float32)})["y"].shape

    deep = external(tmp_path / "2", "deep/weights.bin")
    (deep.parent / "deep").mkdir()
    (deep.parent / "weights.bin").rename(deep.parent / "deep/weights.bin")
    ENGINE.check(Source(deep))
    assert (1, 16) == ENGINE.load(Source(deep), 1).run({"x": np.ones((1, 16), np.float32)})["y"].shape
    assert [Rung.LIVE, Rung.MAPPED] == [rung for rung, _ in ENGINE.rungs(Source(deep), 1)]


@pytest.mark.parametrize(
    ("location", "part"),
    [
        ("../weights.bin", "lies outside the model's folder"),
        ("sub/../weights.bin", "lies outside the model's folder"),
        ("/etc/passwd", "lies outside the model's folder"),
        ("link.bin", "is a symbolic link"),
        ("away.bin", "lies outside the model's folder"),
        ("folder/weights.bin", "is a symbolic link"),
        ("out/weights.bin", "lies outside the model's folder"),
        ("hard.bin", "is a hard link"),
        ("missing.bin", "is missing"),
        ("sub", "is missing"),
        ("dangling.bin", ""),
    ],
)
def test_external_data_refused(tmp_path: Path, location: str, part: str) -> None:
    """Data outside the folder or behind a link is refused by name, before anything of it is read."""
    path = external(tmp_path / "1", location)
    folder = path.parent
    (folder / "sub").mkdir()
    (folder / "sub/weights.bin").write_bytes(b"")
    (tmp_path / "weights.bin").write_bytes((folder / "weights.bin").read_bytes())
    (folder / "link.bin").symlink_to("weights.bin")
    (folder / "away.bin").symlink_to(tmp_path / "weights.bin")
    (folder / "folder").symlink_to("sub")
    (folder / "out").symlink_to(tmp_path)
    (folder / "dangling.bin").symlink_to("nowhere")
    os.link(tmp_path / "weights.bin", folder / "hard.bin")

    with pytest.raises(ConfigurationError) as refused:
        ENGINE.check(Source(path))

    assert str(refused.value).startswith(f"{path}: external data {location!r} ")
    assert part in str(refused.value)


def test_external_data_is_found_everywhere(tmp_path: Path) -> None:
    """A tensor in an attribute of a node in a subgraph is looked at too."""
    away = helper.make_tensor("w", 1, [4], b"\0" * 16, raw=True)
    away.ClearField("raw_data")
    away.data_location = onnx.TensorProto.EXTERNAL
    away.external_data.add(key="location", value="../secret")
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=away)], "inner", [], [helper.make_tensor_value_info("c", 1, [4])]
    )
    node = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    path = saved(tmp_path, graph([node], {"x": ("BOOL", [])}, {"y": ("FP32", [4])}))

    with pytest.raises(ConfigurationError, match=r"external data '../secret' lies outside"):
        ENGINE.check(Source(path))


def test_rungs(tmp_path: Path) -> None:
    """One thread can be shared live, more cannot; weights inside the file cannot be mapped; who asks for more is told why."""
    inside = Source(saved(tmp_path / "1", dense(16)))
    outside = Source(external(tmp_path / "2"))

    assert [Rung.LIVE, Rung.PRIVATE] == [rung for rung, _ in ENGINE.rungs(inside, 1)]
    assert [Rung.PRIVATE] == [rung for rung, _ in ENGINE.rungs(inside, 2)]
    assert [Rung.LIVE, Rung.MAPPED] == [rung for rung, _ in ENGINE.rungs(outside, 1)]
    assert [Rung.MAPPED] == [rung for rung, _ in ENGINE.rungs(outside, 2)]
    for source in (inside, outside):
        assert ENGINE.rungs(source, 1)[0] == (Rung.LIVE, "")
        assert "WARMFORK_THREADS=2" in ENGINE.rungs(source, 2)[0][1]


# On a GPU. There is none here: what binds runs on the processor, what allocates is a stub.

GPU = Allotment(Gpu("GPU-a", "Fake", 64 << 20, 0, (9, 0)), 1 << 20)


@pytest.mark.parametrize("datatype", DTYPES)
def test_bound(tmp_path: Path, datatype: str) -> None:
    """Each datatype goes through bound inputs and outputs unchanged; texts and bfloat16, which can't be bound, without."""
    session = OnnxSession(loaded(tmp_path, identity(datatype)).session, tmp_path, GPU)
    assert (datatype not in ("BF16", "BYTES")) is session.binds
    assert session.overlaps
    given = values(datatype)
    for lying in (given, np.repeat(given, 2, axis=1)[:, ::2], np.asfortranarray(given)):
        answer = session.run({"x": lying})
        assert ["y"] == list(answer)
        assert (given.dtype, given.shape) == (answer["y"].dtype, answer["y"].shape)
        same = given.tolist() == answer["y"].tolist() if datatype == "BYTES" else given.tobytes() == answer["y"].tobytes()
        assert same


def test_never_live_on_a_gpu(tmp_path: Path) -> None:
    """A session on a GPU is each worker's own, and why is said."""
    for path, rung in ((saved(tmp_path / "1", dense(16)), Rung.PRIVATE), (external(tmp_path / "2"), Rung.MAPPED)):
        ((found, why),) = ENGINE.rungs(Source(path, gpu=GPU), 1)
        assert (rung, "a session on a GPU belongs to the process that made it") == (found, why)


@pytest.mark.skipif(not no_cuda(), reason="this onnxruntime is built with CUDA")
def test_build_without_cuda(tmp_path: Path) -> None:
    """A build without CUDA says so when it is asked, and never runs on the processor what was meant for a GPU."""
    assert re.fullmatch(
        r"onnxruntime [\d.]+ is a build without CUDAExecutionProvider \(onnxruntime-gpu has it\)", ENGINE.no_gpu(tmp_path)
    )
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(ResourceError, match="cannot load its CUDA"),
    ):
        ENGINE.load(Source(saved(tmp_path, dense(16)), gpu=GPU), 1)


def test_bounds_of_the_provider() -> None:
    """What it may take, and that it tries all algorithms, is told to the provider."""
    name, options = onnx_cuda.provider(GPU)
    assert "CUDAExecutionProvider" == name
    assert {"gpu_mem_limit": str(1 << 20), "cudnn_conv_algo_search": "EXHAUSTIVE", "device_id": "0"}.items() <= options.items()


@pytest.mark.parametrize(
    "words",
    [
        "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 9",
        "Available memory of 4 is smaller than requested bytes of 9",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
    ],
)
def test_no_memory_on_a_gpu(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory of a GPU that runs out is told from the machine's: on a request, and in a load, which names the bound."""
    session = OnnxSession(loaded(tmp_path, identity()).session, tmp_path, GPU)

    def full(*_: object, **__: object) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(onnx_cuda, "run", full)
    with pytest.raises(GpuMemoryError, match=re.escape(words)):
        session.run({"x": np.zeros((1, 3), np.float32)})
    monkeypatch.setattr("onnxruntime.InferenceSession", full)
    with pytest.raises(ModelError, match=rf"model\.onnx: does not fit into 1 MiB of cuda:0: {re.escape(words)}"):
        ENGINE.load(Source(tmp_path / "model.onnx", gpu=GPU), 1)


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (
            "option 'device_id': CUDA failure 35: no driver ; GPU=-1",
            ResourceError,
            r"on cuda:0 \(.*\): CUDA failure 35: no driver$",
        ),
        ("CUDNN failure 1001: CUDNN_STATUS_NOT_INITIALIZED", ResourceError, "CUDNN failure 1001: CUDNN_STATUS_NOT_INITIALIZED$"),
        ("10 : INVALID_GRAPH : Load model failed", ConfigurationError, "refuses it: 10 : INVALID_GRAPH : Load model failed$"),
    ],
)
def test_who_is_to_blame(words: str, kind: type[ExitError], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load that CUDA fails is the machine's fault, and another try may help; what is wrong with the file stays the file's."""

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr("onnxruntime.InferenceSession", fails)
    with pytest.raises(kind, match=said):
        ENGINE.load(Source(saved(tmp_path, identity()), gpu=GPU), 1)


def test_a_lost_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure of CUDA is one after which nothing succeeds; what a model raises else is not."""
    session = OnnxSession(loaded(tmp_path, identity()).session, tmp_path, GPU)
    for words, kind in (("CUDA failure 700: an illegal memory access", GpuLostError), ("Non-zero status code", RuntimeError)):

        def fails(*_: object, words: str = words) -> None:
            raise RuntimeError(words)

        monkeypatch.setattr(onnx_cuda, "run", fails)
        with pytest.raises(RuntimeError, match=words) as caught:
            session.run({"x": np.zeros((1, 3), np.float32)})
        assert kind is caught.type


def test_catalogue(tmp_path: Path) -> None:
    """The engine is found by the file's ending; another ending is refused with those that there are."""
    assert ENGINE is engine_for(tmp_path / "a.onnx")
    for name in ("model.pkl", "model", "model.ONNX"):
        with pytest.raises(ConfigurationError, match=rf"{name}: no engine runs .*; there are \.onnx"):
            engine_for(tmp_path / name)
