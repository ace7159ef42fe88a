"""A network of the operator's own with weights beside it: how they come together, and what is refused in which words."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as to_safetensors

from server.engines.catalogue import engine_for
from server.engines.engine import Precision, Rung, Source
from server.engines.torch_module import ENGINE
from server.exits import AskedToStopError, ConfigurationError, ModelError
from server.tensors import ANY, TensorSpec
from tests.torch_models import Trap, answer, content, network, pickled, saved, state

torch.set_num_threads(1)  # the process that runs the tests forks in others of them

X = TensorSpec("x", "FP32", (ANY, 3), ("n", None))
Y = TensorSpec("y", "FP32", (ANY, 2), ("n", None))
FILES = ["model.safetensors", "model.pth"]
BLOCK = 1 << 16
"""Bytes of a tensor that is large enough to be seen among a process's mappings."""


class Net(torch.nn.Module):
    """`y` is a linear layer of `x`, as the one whose weights `state` has."""

    def __init__(self) -> None:
        """One layer."""
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        result: torch.Tensor = self.layer(x)
        return result


class Large(torch.nn.Module):
    """A network with a parameter of some size."""

    def __init__(self) -> None:
        """Random numbers, that the file's replace."""
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(BLOCK))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two columns."""
        return x[:, :2] * self.weight.sum()


def put(folder: Path, tensors: dict[str, torch.Tensor], file: str) -> Path:
    """Write tensors in the form that the ending says."""
    path = folder / file
    if path.suffix == ".safetensors":
        path.write_bytes(to_safetensors(tensors))
    else:
        torch.save(tensors, path)
    return path


def source(path: Path, module: Callable[[], Any] | None = Net, precision: Precision = Precision.FP32) -> Source:
    """A file with its network and tensors."""
    return Source(path, (X,), (Y,), module, precision)


def run(made: Source, *rows: list[float]) -> np.ndarray:
    """Load and run."""
    ENGINE.check(made)
    return ENGINE.load(made, 1).run({"x": np.array(rows, np.float32)})["y"]


def refused(made: Source) -> str:
    """The line in which a load is refused."""
    with pytest.raises(ConfigurationError) as refusal:
        ENGINE.load(made, 1)
    line = str(refusal.value)
    assert line.startswith(f"{made.path}: ")
    assert "\n" not in line
    assert len(line) < 700
    return line.removeprefix(f"{made.path}: ")


@pytest.mark.parametrize("file", FILES)
def test_weights(tmp_path: Path, file: str) -> None:
    """The network runs with the weights of the file; its ending finds the engine."""
    path = tmp_path / file
    path.write_bytes(content(file))

    np.testing.assert_allclose(answer([[1, 2, 3], [4, 5, 6]]), run(source(path), [1, 2, 3], [4, 5, 6]), rtol=1e-5)
    assert engine_for(path) is ENGINE


@pytest.mark.parametrize("file", FILES)
def test_evaluation_mode(tmp_path: Path, file: str) -> None:
    """A network that is made for training is served as it is evaluated."""
    made = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.Dropout(0.9))
    path = put(tmp_path, made.state_dict(), file)
    inputs = TensorSpec("input", "FP32", (ANY, 3), ("n", None))

    def module() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.Dropout(0.9)).train()

    came = ENGINE.load(Source(path, (inputs,), (Y,), module), 1).run({"input": np.ones((4, 3), np.float32)})["y"]

    np.testing.assert_allclose(made.eval()(torch.ones(4, 3)).detach().numpy(), came, rtol=1e-5)


@pytest.mark.parametrize("file", FILES)
def test_parameters_take_no_memory(tmp_path: Path, file: str) -> None:
    """While `module()` runs, each parameter is on the meta device as soon as the network has it; buffers are real."""
    path = tmp_path / file
    path.write_bytes(content(file))
    seen: dict[str, bool] = {}

    def module() -> torch.nn.Module:
        made = Net()
        made.register_buffer("turn", torch.arange(3.0), persistent=False)
        seen.update({name: tensor.is_meta for name, tensor in (*made.named_parameters(), *made.named_buffers())})
        return made

    run(source(path, module), [1, 2, 3])

    assert {"layer.weight": True, "layer.bias": True, "turn": False} == seen


@pytest.mark.parametrize("file", FILES)
def test_a_network_larger_than_memory(tmp_path: Path, file: str) -> None:
    """A parameter that no machine has room for can be made by torch's own layers, one by one, as long as the file has it."""
    path = put(tmp_path, {"weight": torch.zeros(1).expand(1).clone()}, file)

    def module() -> torch.nn.Module:
        with torch.device("meta"):
            return torch.nn.Embedding(1 << 40, 1 << 12)

    assert "tensor 'weight' must have shape [1099511627776, 4096], has [1]" in refused(source(path, module))


@pytest.mark.parametrize("file", FILES)
def test_mapped(tmp_path: Path, file: str) -> None:
    """Weights lie in pages of the file that are mapped, so that processes that load it share them; none of it is copied."""
    path = put(tmp_path, {"weight": torch.arange(BLOCK, dtype=torch.float32)}, file)
    networks: list[torch.nn.Module] = []

    def module() -> torch.nn.Module:
        networks.append(Large())
        return networks[0]

    session = ENGINE.load(source(path, module), 1)

    address = networks[0].get_parameter("weight").data_ptr()
    maps = [line.split() for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()]
    spans = [[int(end, 16) for end in words[0].split("-")] for words in maps if words[-1] == str(path)]
    assert any(start <= address < end for start, end in spans)
    assert sum(range(BLOCK)) == pytest.approx(session.run({"x": np.ones((1, 3), np.float32)})["y"][0, 0], rel=1e-3)


@pytest.mark.parametrize("file", FILES)
def test_the_file_is_never_written(tmp_path: Path, file: str) -> None:
    """A network that writes into its weights does so in its own process: the mapping is private."""
    path = put(tmp_path, {"weight": torch.zeros(BLOCK)}, file)
    before = path.read_bytes()

    class Writes(Large):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.weight.add_(1)
            return super().forward(x)

    run(source(path, Writes), [1, 2, 3])

    assert before == path.read_bytes()


@pytest.mark.parametrize("file", FILES)
def test_half_precision(tmp_path: Path, file: str) -> None:
    """Weights and calculation are half as wide where that is asked for; the rung below is then a copy."""
    path = tmp_path / file
    path.write_bytes(content(file))

    came = run(source(path, precision=Precision.BF16), [1, 2, 3])

    assert np.float32 == came.dtype
    np.testing.assert_allclose(answer([[1, 2, 3]]), came, rtol=0.02)
    assert (answer([[1, 2, 3]]) != came).any()
    assert [Rung.LIVE, Rung.PRIVATE] == [rung for rung, _ in ENGINE.rungs(source(path, precision=Precision.BF16), 1)]
    assert [Rung.LIVE, Rung.MAPPED] == [rung for rung, _ in ENGINE.rungs(source(path), 2)]


# What does not fit.


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda tensors: tensors.pop("layer.bias"), "tensor 'layer.bias' is missing"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "tensor 'more' is not of this module"),
        (lambda tensors: tensors.update({"layer.bias": torch.zeros(3)}), "tensor 'layer.bias' must have shape [2], has [3]"),
        (lambda tensors: tensors.update({"layer.bias": torch.zeros(())}), "tensor 'layer.bias' must have shape [2], has []"),
        (lambda tensors: tensors.update({"layer.weight": torch.zeros(2, 3, 1)}), "must have shape [2, 3], has [2, 3, 1]"),
        (lambda tensors: tensors.update({"layer.weight": torch.zeros(3, 2)}), "must have shape [2, 3], has [3, 2]"),
        (lambda tensors: tensors.clear(), "tensor 'layer.weight' is missing; and 1 more"),
        (
            lambda tensors: [tensors.update({f"module.{name}": tensors.pop(name)}) for name in list(tensors)],
            "tensor 'layer.weight' is missing; and 3 more",
        ),
    ],
    ids=["missing", "extra", "misshapen", "no axis", "one axis more", "turned", "none", "other names"],
)
def test_other_weights(tmp_path: Path, file: str, change: Callable[[dict[str, torch.Tensor]], Any], part: str) -> None:
    """A file that is not the network's is refused by its first tensor that does not fit, and the number of others."""
    tensors = state()
    change(tensors)

    assert part in refused(source(put(tmp_path, tensors, file)))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_weights_that_are_no_floats(tmp_path: Path, file: str, dtype: torch.dtype) -> None:
    """Integers are not taken for weights that are floats: the line names the tensor and both types."""
    tensors = state() | {"layer.weight": torch.ones(2, 3, dtype=dtype)}

    line = refused(source(put(tmp_path, tensors, file)))

    assert "'layer.weight'" in line
    assert "float32" in line
    assert str(dtype).removeprefix("torch.") in line


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_another_width(tmp_path: Path, file: str, dtype: torch.dtype) -> None:
    """Floats of another width than the network's run in the precision that `model.toml` says, float32, or are refused by name."""
    tensors = {name: tensor.to(dtype) for name, tensor in state().items()}
    made = source(put(tmp_path, tensors, file))
    exact = {name: tensor.to(dtype).to(torch.float32).numpy() for name, tensor in tensors.items()}

    try:
        came = run(made, [1.001, 2, 3])
    except ConfigurationError as refusal:
        assert "'layer." in str(refusal)  # noqa: PT017 - either is right
        assert str(dtype).removeprefix("torch.") in str(refusal)  # noqa: PT017 - likewise
    else:
        wanted = np.array([1.001, 2, 3], np.float32) @ exact["layer.weight"].T + exact["layer.bias"]
        np.testing.assert_allclose(wanted[None], came, rtol=1e-5)


@pytest.mark.parametrize("file", FILES)
def test_buffers(tmp_path: Path, file: str) -> None:
    """A buffer that is saved is the file's, one that is not stays as `module()` made it."""

    class Buffers(torch.nn.Module):
        held: torch.Tensor
        made: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("held", torch.zeros(2))
            self.register_buffer("made", torch.tensor([10.0, 20.0]), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :2] + self.held + self.made

    came = run(source(put(tmp_path, {"held": torch.tensor([1.0, 2.0])}, file), Buffers), [0, 0, 0])

    assert [[11, 22]] == came.tolist()
    assert "tensor 'held' is missing" in refused(source(put(tmp_path, {"made": torch.zeros(2)}, file), Buffers))


class Tied(torch.nn.Module):
    """An embedding whose table is the last layer's too."""

    def __init__(self, *, tie: bool = True) -> None:
        """Two modules, one parameter."""
        super().__init__()
        self.table = torch.nn.Embedding(2, 3)
        self.head = torch.nn.Linear(3, 2, bias=False)
        if tie:
            self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Both."""
        result: torch.Tensor = self.head(x + self.table(torch.zeros(len(x), dtype=torch.long)))
        return result


TABLE = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
TIED = [[14.0, 32.0]]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("names", [["table.weight"], ["head.weight"], ["table.weight", "head.weight"]])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_tied(tmp_path: Path, file: str, names: list[str], precision: Precision) -> None:
    """Of tensors that are one in the network the file may hold one, either, or both, and they are one in memory then."""
    networks: list[Tied] = []

    def module() -> torch.nn.Module:
        networks.append(Tied())
        return networks[0]

    path = put(tmp_path, {name: TABLE.clone() for name in names}, file)

    assert TIED == run(source(path, module, precision), [0, 0, 0]).tolist()
    if len(names) == 1:
        assert networks[0].head.weight.data_ptr() == networks[0].table.weight.data_ptr()


@pytest.mark.parametrize("file", FILES)
def test_tied_but_different(tmp_path: Path, file: str) -> None:
    """A file that has two different tensors for what is one in the network is of another network."""
    path = put(tmp_path, {"table.weight": TABLE, "head.weight": TABLE + 1}, file)

    assert "is tied to" in refused(source(path, Tied))


@pytest.mark.parametrize("file", FILES)
def test_not_tied(tmp_path: Path, file: str) -> None:
    """Of tensors that are two in the network none may be missing, though they have one shape."""
    path = put(tmp_path, {"table.weight": TABLE}, file)

    assert "tensor 'head.weight' is missing" == refused(source(path, lambda: Tied(tie=False)))


# What `module()` may do.


def raising(error: BaseException) -> Callable[[], Any]:
    """A `module()` that raises."""

    def module() -> Any:
        raise error

    return module


@pytest.mark.parametrize(
    ("module", "part"),
    [
        (raising(ValueError("one\ntwo")), "module() raised ValueError: one two"),
        (raising(KeyError("x")), "module() raised KeyError: 'x'"),
        (raising(RuntimeError("x" * 10_000)), "module() raised RuntimeError: xxx"),
        (lambda: None, "module() must give a torch.nn.Module, gave NoneType"),
        (lambda: Net, "module() must give a torch.nn.Module, gave type"),
        (lambda: state(), "module() must give a torch.nn.Module, gave dict"),  # noqa: PLW0108 - as an operator may write it
        (lambda **more: more["x"], "module() raised KeyError: 'x'"),
        (lambda needed: needed, "module() raised TypeError: "),
    ],
    ids=["two lines", "key", "long", "none", "class", "state", "named", "argument"],
)
def test_modules_that_fail(tmp_path: Path, module: Callable[[], Any], part: str) -> None:
    """What `module()` raises, or gives that is no network, is said in one line; torch makes parameters as ever afterwards."""
    path = put(tmp_path, state(), "model.pth")

    assert part in refused(source(path, module))

    assert not torch.nn.Linear(2, 2).weight.is_meta


@pytest.mark.parametrize("error", [MemoryError(), AskedToStopError(0), ModelError("deadline")])
def test_what_is_not_the_modules_fault(tmp_path: Path, error: BaseException) -> None:
    """Memory that ran out, and whoever ends the load, come through as they are."""
    with pytest.raises(type(error)):
        ENGINE.load(source(put(tmp_path, state(), "model.pth"), raising(error)), 1)

    assert not torch.nn.Linear(2, 2).weight.is_meta


def test_undeclared(tmp_path: Path) -> None:
    """Weights alone are no model: `module()` and the tensors are asked for by the keys that are missing."""
    path = put(tmp_path, state(), "model.safetensors")

    for refuse in (ENGINE.check, lambda made: ENGINE.load(made, 1)):
        with pytest.raises(ConfigurationError, match=rf"^{path}: .*module\(\)"):
            refuse(source(path, None))
        with pytest.raises(ConfigurationError, match=rf"^{path}: weights do not say .* model\.toml must have \[\[inputs\]\]"):
            refuse(Source(path, None, (Y,), Net))
        with pytest.raises(ConfigurationError, match=rf"^{path}: weights do not say .* model\.toml must have \[\[outputs\]\]"):
            refuse(Source(path, (X,), None, Net))


def test_weights_made_of_weights(tmp_path: Path) -> None:
    """A buffer that `module()` calculates from parameters, which it has not got, is found at the load by its name."""

    class Derived(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("norm", self.layer.weight.detach().norm(), persistent=False)

    assert "'norm'" in refused(source(put(tmp_path, state(), "model.pth"), Derived))


class Extra(Net):
    """A network that saves more than tensors."""

    def get_extra_state(self) -> Any:
        """Something."""
        return {"scale": 2}

    def set_extra_state(self, state: Any) -> None:
        """Nothing."""


def test_extra_state(tmp_path: Path) -> None:
    """A network that saves more than tensors is refused by what is more, for its files cannot hold it."""
    for file in FILES:
        assert "_extra_state" in refused(source(put(tmp_path, state(), file), Extra))


# What is no file of weights.


def saved_as(value: Any) -> bytes:
    """What torch makes of a value."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


BOMBS: dict[str, Callable[[Path], bytes]] = {
    "bare pickle": pickled,
    "saved by torch": saved,
    "among tensors": lambda trap: saved_as({**state(), "more": Trap(trap)}),
    "whole network": lambda _: saved_as(torch.nn.Linear(3, 2)),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", BOMBS)
def test_pickles(tmp_path: Path, file: str, name: str) -> None:
    """A pickle is never executed, whatever the file is called; the line says what the file is not."""
    trap = tmp_path / "trap"
    path = tmp_path / file
    path.write_bytes(BOMBS[name](trap))

    line = refused(source(path))

    assert not trap.exists()
    assert "not a state dict" in line or "not a whole safetensors file" in line
    assert "weights_only" not in line  # torch's advice how to execute it all the same


@pytest.mark.parametrize(
    "value",
    [[1, 2], 3, "x", None, torch.zeros(2, 3), {"state_dict": state()}, {"layer.weight": 3}, {1: torch.zeros(1)}, [state()]],
    ids=["list", "number", "text", "none", "tensor", "nested", "number inside", "number for a name", "list of dicts"],
)
def test_other_values(tmp_path: Path, value: Any) -> None:
    """What torch has saved that is no state dict is refused."""
    path = tmp_path / "model.pth"
    path.write_bytes(saved_as(value))

    assert refused(source(path)).startswith(("not a state dict", "tensor "))


def test_subclass_of_dict(tmp_path: Path) -> None:
    """What torch itself saves of a network, an ordered dict with versions in it, is a state dict."""
    path = tmp_path / "model.pth"
    path.write_bytes(saved_as(network().state_dict()))

    np.testing.assert_allclose(answer([[1, 2, 3]]), run(source(path), [1, 2, 3]), rtol=1e-5)


def test_old_form(tmp_path: Path) -> None:
    """The form that torch wrote before 1.6, a bare pickle that cannot be mapped, is refused in words."""
    buffer = io.BytesIO()
    torch.save(state(), buffer, _use_new_zipfile_serialization=False)
    path = tmp_path / "model.pth"
    path.write_bytes(buffer.getvalue())

    assert refused(source(path)).startswith("not a state dict: ")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "data",
    [b"", b"PK\x03\x04", b"not weights", b"\x80\x04]\x94.", content("model.pt"), content("model.pt2")],
    ids=["empty", "zip", "text", "pickle", "pt", "pt2"],
)
@pytest.mark.filterwarnings("ignore:.*looks like a TorchScript archive:UserWarning")
def test_other_files(tmp_path: Path, file: str, data: bytes) -> None:
    """A file of another kind is refused by its name and the check."""
    path = tmp_path / file
    path.write_bytes(data)

    assert refused(source(path)).startswith(("not a state dict", "not a whole safetensors file"))


@pytest.mark.parametrize("file", FILES)
def test_truncated(tmp_path: Path, file: str) -> None:
    """A file that was cut off is refused, wherever it was cut."""
    whole = content(file)
    path = tmp_path / file
    for part in (1, 8, 30, len(whole) // 2, len(whole) - 20, len(whole) - 1):
        path.write_bytes(whole[:part])

        assert refused(source(path)).startswith(("not a state dict", "not a whole safetensors file"))


@pytest.mark.parametrize(
    "header",
    [
        {"layer.weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4 << 40]}},
        {"layer.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 8]}},
        {"layer.weight": {"dtype": "F99", "shape": [2, 3], "data_offsets": [0, 24]}},
        {"layer.weight": {"dtype": "F32", "shape": [-2, -3], "data_offsets": [0, 24]}},
        {"layer.weight": 3},
        [],
    ],
)
def test_headers_that_lie(tmp_path: Path, header: Any) -> None:
    """A safetensors file whose header says what the file has not is refused."""
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(24))

    assert refused(source(path)).startswith("not a whole safetensors file")


def test_header_that_is_endless(tmp_path: Path) -> None:
    """A header that says to be longer than any is refused before anything is read."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\xff" * 8 + b"{}")

    assert refused(source(path)).startswith("not a whole safetensors file")
