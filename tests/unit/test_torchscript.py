"""TorchScript: programs in a file, and what is refused in which words, with nothing of it executed."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from server.engines import torchscript
from server.engines.catalogue import engine_for
from server.engines.engine import Precision, Rung, Source
from server.engines.torch_cuda import no_cuda
from server.engines.torchscript import ENGINE
from server.exits import ConfigurationError
from server.tensors import ANY, TensorSpec
from tests.torch_models import answer, changed, content, other_files, pickled, put_file, saved

torch.set_num_threads(1)  # the process that runs the tests forks in others of them

OTHER_FILES = other_files("pt")

pytestmark = [
    # torch says so of each of TorchScript's functions; the form is served as long as torch reads it.
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]


def tensor(name: str, width: int = 3, datatype: str = "FP32") -> TensorSpec:
    """A tensor of rows."""
    return TensorSpec(name, datatype, (ANY, width), ("n", None))


def source(path: Path, inputs: tuple[str, ...] = ("x",), outputs: tuple[str, ...] = ("y",), *, compiled: bool = False) -> Source:
    """A file with its declared tensors."""
    return Source(path, tuple(map(tensor, inputs)), tuple(map(tensor, outputs)), compiled=compiled)


class Forms(torch.nn.Module):
    """A program with an argument that need not be given, and several answers."""

    def forward(
        self, a: torch.Tensor, b: torch.Tensor, scale: float = 2.0, c: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Two answers by name."""
        if c is not None:
            a = a + c
        return {"sum": (a + b) * scale, "difference": a - b}


class Weight(torch.nn.Module):
    """A program that gives a weight itself, and writes into its input."""

    def __init__(self) -> None:
        """One weight, which wants a gradient."""
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, 3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight, and the input plus one."""
        return self.weight, x.add_(1)


def scripted(folder: Path, module: torch.nn.Module) -> Path:
    """Write a module as a program."""
    path = folder / "model.pt"
    torch.jit.save(torch.jit.script(module), path)
    return path


def ones(*names: str) -> dict[str, np.ndarray]:
    """A row of ones for each name."""
    return {name: np.ones((1, 3), np.float32) for name in names}


def test_program(tmp_path: Path) -> None:
    """A program is loaded and run with any number of rows; what is its is found by its ending."""
    path = put_file(tmp_path, "model.pt", content("model.pt"))
    assert engine_for(path) is ENGINE
    ENGINE.check(source(path))

    session = ENGINE.load(source(path), 1)

    for rows in (1, 4):
        given = np.arange(rows * 3).reshape(rows, 3).astype(np.float32)
        np.testing.assert_allclose(session.run({"x": given})["y"], answer(given.tolist()), rtol=1e-5)
    assert ["x"] == [spec.name for spec in session.inputs]
    assert ["y"] == [spec.name for spec in session.outputs]


def test_arguments(tmp_path: Path) -> None:
    """Inputs are the arguments of forward by their names, in any order; those with a default may be left out."""
    path = scripted(tmp_path, Forms())
    given = {"a": np.full((1, 3), 5, np.float32), "b": np.ones((1, 3), np.float32), "c": np.full((1, 3), 10, np.float32)}

    for inputs, added in ((("b", "a"), 0), (("c", "a", "b"), 10)):
        made = ENGINE.load(source(path, inputs, ("difference", "sum")), 1).run(given)

        assert ["difference", "sum"] == list(made)
        assert [4 + added, 2 * (6 + added)] == [made["difference"][0, 0], made["sum"][0, 0]]


@pytest.mark.parametrize("inputs", [("a",), ("a", "B"), ("a", "b", "d"), ("a", "b", "self"), ("input",)])
def test_other_arguments(tmp_path: Path, inputs: tuple[str, ...]) -> None:
    """An input that forward has not, or that it needs, is found at the load, with the names on both sides."""
    path = scripted(tmp_path, Forms())

    with pytest.raises(ConfigurationError) as refused:
        ENGINE.load(source(path, inputs, ("sum",)), 1)

    has = ", ".join(sorted(inputs))
    assert f"{path}: forward takes a, b, c, scale, model.toml has {has}" == str(refused.value)


def test_program_that_gives_its_weight(tmp_path: Path) -> None:
    """A weight that wants a gradient can be an answer; a program that writes into its input leaves the caller's alone."""
    session = ENGINE.load(source(scripted(tmp_path, Weight()), outputs=("w", "y")), 1)
    given = ones("x")

    for _ in range(3):
        made = session.run(given)

        assert ([[1, 1, 1]], [[2, 2, 2]]) == (made["w"].tolist(), made["y"].tolist())
        assert [[1, 1, 1]] == given["x"].tolist()


def test_evaluation_mode(tmp_path: Path) -> None:
    """A program that was saved in the middle of training drops nothing out."""
    path = scripted(tmp_path, torch.nn.Dropout(0.5).train())

    made = ENGINE.load(source(path, ("input",)), 1).run({"input": np.ones((50, 3), np.float32)})["y"]

    assert (made == 1).all()


def test_half_precision(tmp_path: Path) -> None:
    """A program runs in half precision, with floats as declared outside."""
    path = put_file(tmp_path, "model.pt", content("model.pt"))
    made = Source(path, (tensor("x"),), (tensor("y", 2),), precision=Precision.BF16)

    came = ENGINE.load(made, 1).run(ones("x"))["y"]

    assert np.float32 == came.dtype
    np.testing.assert_allclose(answer([[1, 1, 1]]), came, rtol=0.02, atol=0.01)
    assert (answer([[1, 1, 1]]) != came).any()


class OnesMade(torch.nn.Module):
    """A program that makes a tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As many as there are rows."""
        return x + torch.arange(3)


class OnesHeld(torch.nn.Module):
    """A program that holds a tensor which is no weight."""

    def __init__(self) -> None:
        """Ones."""
        super().__init__()
        self.held = torch.ones(1, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add them."""
        return x + self.held


@pytest.mark.parametrize(("module", "stays"), [(Weight(), False), (OnesMade(), True), (OnesHeld(), True)])
def test_what_stays_on_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: torch.nn.Module, *, stays: bool
) -> None:
    """A program that was traced with tensors of the processor is none for a GPU, and says what to do; one of weights alone is."""
    monkeypatch.setattr(torchscript, "no_cuda", lambda: "")
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.trace(module, torch.rand(2, 3)), path)  # type: ignore[no-untyped-call]
    assert ("torch.export (.pt2) has none" in ENGINE.no_gpu(path)) is stays


def test_no_file_at_all(tmp_path: Path) -> None:
    """Where the file is none, that is for the check to say; a torch for the processor alone says so."""
    assert no_cuda() == ENGINE.no_gpu(tmp_path / "model.pt")
    assert bool(no_cuda()) == ("is a build for the processor alone" in no_cuda()) == (torch.version.cuda is None)


def test_rungs(tmp_path: Path) -> None:
    """Shared live, else each its own, on any number of threads."""
    for threads in (1, 4):
        assert [(Rung.LIVE, ""), (Rung.PRIVATE, "")] == list(ENGINE.rungs(source(tmp_path / "model.pt"), threads))


def test_undeclared(tmp_path: Path) -> None:
    """Tensors must be declared, since a program does not say their shapes; to compile it is refused, since it is."""
    path = put_file(tmp_path, "model.pt", content("model.pt"))

    with pytest.raises(ConfigurationError, match=rf"^{path}: TorchScript .* model\.toml must have \[\[inputs\]\]"):
        ENGINE.check(Source(path))
    with pytest.raises(ConfigurationError, match=rf"^{path}: TorchScript .* model\.toml must have \[\[outputs\]\]"):
        ENGINE.load(Source(path, inputs=(tensor("x"),)), 1)
    with pytest.raises(ConfigurationError, match=rf"^{path}: \[torch\] compile: TorchScript is compiled already"):
        ENGINE.check(source(path, compiled=True))


def bombs(trap: Path) -> Iterator[tuple[str, bytes]]:
    """Pickles in all the places where somebody may look for one."""
    yield "bare pickle", pickled(trap)
    yield "saved by torch", saved(trap)
    yield "entry data.pkl", changed(content("model.pt"), lambda name, data: pickled(trap) if name == "data.pkl" else data)
    yield (
        "entry constants.pkl",
        changed(content("model.pt"), lambda name, data: pickled(trap) if name == "constants.pkl" else data),
    )
    yield "code beside a pickle", changed(saved(trap), lambda _, data: data, {"code/x.py": b"", "constants.pkl": pickled(trap)})
    yield "attributes", changed(content("model.pt"), lambda _, data: data, {"attributes.pkl": pickled(trap)})


@pytest.mark.parametrize("name", [name for name, _ in bombs(Path("x"))])
@pytest.mark.parametrize("checked", [True, False])
def test_pickles(tmp_path: Path, name: str, checked: bool) -> None:  # noqa: FBT001
    """A pickle is never executed, by the check or a load without one; where it stands for the program it is refused."""
    trap = tmp_path / "trap"
    path = put_file(tmp_path, "model.pt", dict(bombs(trap))[name])

    try:
        if checked:
            ENGINE.check(source(path))
        ENGINE.load(source(path), 1)
    except ConfigurationError as refused:
        assert str(refused).startswith(f"{path}: not TorchScript: ")  # noqa: PT017 - what nobody reads is no reason to refuse
        assert "\n" not in str(refused)  # noqa: PT017 - likewise
    else:
        assert name == "attributes"

    assert not trap.exists()


@pytest.mark.parametrize("data", OTHER_FILES.values(), ids=OTHER_FILES)
def test_other_files(tmp_path: Path, data: bytes) -> None:
    """A file of another kind is refused by its name and the check; a state dict with what it should be called."""
    path = put_file(tmp_path, "model.pt", data)

    with pytest.raises(ConfigurationError, match=f"^{path}: not TorchScript: ") as refused:
        ENGINE.check(source(path))

    assert "\n" not in str(refused.value)
    if data == content("model.pth"):
        assert "weights alone are .pth or .safetensors" in str(refused.value)


def test_truncated(tmp_path: Path) -> None:
    """A program that was cut off is refused, wherever it was cut."""
    whole = content("model.pt")
    for part in (1, 30, len(whole) // 2, len(whole) - 20, len(whole) - 1):
        path = put_file(tmp_path, "model.pt", whole[:part])

        with pytest.raises(ConfigurationError, match=f"^{path}: not TorchScript: "):
            ENGINE.check(source(path))
        with pytest.raises(ConfigurationError, match=f"^{path}: not TorchScript: "):
            ENGINE.load(source(path), 1)


@pytest.mark.parametrize("place", range(0, 100, 7))
def test_damaged(tmp_path: Path, place: int) -> None:
    """A byte that was changed in the list of entries is found, or changes nothing; never is there an error of another kind."""
    data = bytearray(content("model.pt"))
    with zipfile.ZipFile(put_file(tmp_path, "model.pt", bytes(data))) as archive:
        data[archive.start_dir + place] ^= 0xFF
    path = put_file(tmp_path, "model.pt", bytes(data))

    try:
        ENGINE.check(source(path))
    except ConfigurationError as refused:
        assert str(refused).startswith(f"{path}: ")  # noqa: PT017 - a change that changes nothing is right as well


def test_code_that_is_none(tmp_path: Path) -> None:
    """A program whose code cannot be read, or which calls what there is not, is refused in one line."""

    def broken(name: str, data: bytes) -> bytes:
        return b"class Oops(:\n" if name.startswith("code/") and name.endswith(".py") else data

    path = put_file(tmp_path, "model.pt", changed(content("model.pt"), broken))

    ENGINE.check(source(path))
    with pytest.raises(ConfigurationError, match=f"^{path}: not TorchScript: ") as refused:
        ENGINE.load(source(path), 1)
    assert "\n" not in str(refused.value)
