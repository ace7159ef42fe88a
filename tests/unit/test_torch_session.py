"""A torch module behind the protocol: every datatype, whose memory is whose, half precision, and what a module may give."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from server.engines.engine import Precision, Source
from server.engines.torch_session import TorchSession, declared, refusal
from server.engines.torch_tensors import DTYPES
from server.exits import ConfigurationError, ModelError
from server.tensors import ANY, FLOATS, Array, TensorSpec
from server.tensors import DTYPES as NUMPY
from tests.unit.extremes import values

torch.set_num_threads(1)  # the process that runs the tests forks in others of them

PATH = Path("models/m/1/model.pt")


class Calls(torch.nn.Module):
    """A module that calls a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """Call `function` with what comes."""
        super().__init__()
        self.function = function

    def forward(self, *placed: torch.Tensor, **named: torch.Tensor) -> Any:
        """Call it."""
        return self.function(*placed, **named)


class Scale(torch.nn.Module):
    """`y` is `x` times a weight."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        """Weigh three columns."""
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1, 2, 3], dtype=dtype), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply; in half precision x must be in it too, as in a matrix product."""
        if x.dtype != self.weight.dtype:
            message = f"{x.dtype} times {self.weight.dtype}"
            raise RuntimeError(message)
        return x * self.weight


def tensor(name: str, datatype: str = "FP32") -> TensorSpec:
    """A tensor of three columns."""
    return TensorSpec(name, datatype, (ANY, 3), ("n", None))


def session(
    module: torch.nn.Module | Callable[..., Any],
    inputs: tuple[TensorSpec, ...] = (tensor("x"),),
    outputs: tuple[TensorSpec, ...] = (tensor("y"),),
    *,
    positional: int = 0,
    precision: Precision = Precision.FP32,
) -> TorchSession:
    """A session of a module, or of a function."""
    made = module if isinstance(module, torch.nn.Module) else Calls(module)
    return TorchSession(made, Source(PATH, precision=precision), inputs, outputs, positional)


def between_bytes(given: Array) -> Array:
    """The same numbers, one byte between each and the next."""
    fields = np.zeros(given.shape, np.dtype([("byte", np.uint8), ("number", given.dtype)]))
    fields["number"] = given
    made: Array = fields["number"]
    return made


LYING: dict[str, Callable[[Array], Array]] = {
    "plain": lambda given: given,
    "apart": lambda given: np.repeat(given, 2, axis=1)[:, ::2],
    "backwards": lambda given: np.ascontiguousarray(given[::-1, ::-1])[::-1, ::-1],
    "by column": np.asfortranarray,
    "repeated": lambda given: np.broadcast_to(given[:1], given.shape),
    "read-only": lambda given: np.frombuffer(given.tobytes(), given.dtype).reshape(given.shape),
    "between bytes": between_bytes,
}
"""Ways in which the numbers of an array can lie in memory."""


@pytest.mark.parametrize("datatype", sorted(set(NUMPY) - {"BYTES"}))
@pytest.mark.parametrize("how", LYING)
def test_every_datatype(datatype: str, how: str) -> None:
    """Each datatype goes through unchanged, however its array lies in memory, in the first run and later; nothing warns."""
    made = session(lambda x: x.clone(), (tensor("x", datatype),), (tensor("y", datatype),))
    given = LYING[how](values(datatype))

    for _ in range(2):
        answer = made.run({"x": given})

        assert ["y"] == list(answer)
        assert (NUMPY[datatype], (2, 3)) == (answer["y"].dtype, answer["y"].shape)
        assert given.tobytes() == answer["y"].tobytes()


def test_no_axes_and_no_rows() -> None:
    """A tensor without axes, and one of no rows, go through in any type, bfloat16 too."""
    for datatype in ("FP32", "BF16", "INT64"):
        made = session(lambda x: x.clone(), (TensorSpec("x", datatype, (), ()),), (TensorSpec("y", datatype, (), ()),))
        for given in (np.array(1.5).astype(NUMPY[datatype]), np.zeros((0, 3), NUMPY[datatype])):
            answer = made.run({"x": given})["y"]

            assert (given.shape, given.dtype) == (answer.shape, answer.dtype)
            assert given.tobytes() == answer.tobytes()


def test_every_torch_type_is_known() -> None:
    """The protocol's datatypes that torch has, and no others, can be run."""
    assert set(NUMPY) - {"BYTES"} == set(DTYPES)
    assert len(set(DTYPES.values())) == len(DTYPES)


@pytest.mark.parametrize("side", [0, 1])
def test_bytes(side: int) -> None:
    """Torch has no texts: a tensor of BYTES is refused by file and name."""
    sides = [(tensor("x"),), (tensor("y"),)]
    sides[side] = (tensor("words", "BYTES"),)

    with pytest.raises(ConfigurationError, match=f"^{PATH}: 'words' is BYTES, which torch has no tensors of$"):
        session(lambda x: x, *sides)


# What a module gives.


class Pair(NamedTuple):
    """What TorchScript gives for a named tuple."""

    first: Any
    second: Any


class Attributes(OrderedDict[str, Any]):
    """What transformers give: a dict whose keys are attributes, and which is a tuple too when asked by number."""

    def __getattr__(self, name: str) -> Any:
        """A key."""
        return self[name]


TWO = (tensor("a"), tensor("b"))


@pytest.mark.parametrize(
    "given",
    [
        lambda x: (x, x + 1),
        lambda x: [x, x + 1],
        lambda x: Pair(x, x + 1),
        lambda x: {"a": x, "b": x + 1},
        lambda x: {"b": x + 1, "hidden": None, "a": x, "loss": 3.0, "all": (x, x)},
        lambda x: Attributes(b=x + 1, a=x, attentions=(x, x)),
    ],
    ids=["tuple", "list", "named", "dict", "more", "transformers"],
)
def test_forms(given: Callable[..., Any]) -> None:
    """Several tensors come in the order declared, or by their names, with others beside them that nobody asked for."""
    answer = session(given, outputs=TWO).run({"x": np.ones((1, 3), np.float32)})

    assert ["a", "b"] == list(answer)
    assert [1, 2] == [answer["a"][0, 0], answer["b"][0, 0]]


def test_one_of_one() -> None:
    """One tensor may come alone, in a tuple or by its name."""
    for given in (lambda x: x, lambda x: (x,), lambda x: [x], lambda x: {"y": x}):
        assert 1 == session(given).run({"x": np.ones((1, 3), np.float32)})["y"][0, 0]


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (lambda x: x, "the module gave 1 values, its outputs are a, b"),
        (lambda x: (x, x, x), "the module gave 3 values, its outputs are a, b"),
        (lambda **_: (), "the module gave 0 values, its outputs are a, b"),
        (lambda **_: None, "the module gave NoneType, its outputs are a, b"),
        (lambda **_: 3, "the module gave int, its outputs are a, b"),
        (lambda x: {x}, "the module gave set, its outputs are a, b"),
        (lambda x: (x, None), "no tensor 'b' among them"),
        (lambda x: (3.0, x), "no tensor 'a' among them"),
        (lambda x: (x, x.numpy()), "no tensor 'b' among them"),
        (lambda x: {"a": x}, "the module gave a, with no tensor 'b' among them"),
        (lambda x: {"a": x, "c": x}, "the module gave a, c, with no tensor 'b' among them"),
        (lambda **_: {}, "no tensor 'a' among them"),
        (lambda **_: "ab", "no tensor 'a' among them"),
    ],
    ids=range(13),
)
def test_other_forms(given: Callable[..., Any], part: str) -> None:
    """What is not what was declared is said: what came, and what was to come."""
    with pytest.raises(TypeError) as refused:
        session(given, outputs=TWO).run({"x": np.ones((1, 3), np.float32)})

    assert part in str(refused.value)


def test_another_type_is_given_as_it_is() -> None:
    """What a module gives in another type is not made to fit: whoever looks at the answers of the warmup has to see it."""
    assert np.float64 == session(lambda x: x.double()).run({"x": np.ones((1, 3), np.float32)})["y"].dtype
    assert np.int64 == session(lambda x: x.long()).run({"x": np.ones((1, 3), np.float32)})["y"].dtype


# How it is called.


def test_by_place_and_by_name() -> None:
    """The first inputs come by place, the others by name, whatever order they are given in."""
    seen: list[Any] = []

    def function(*placed: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        seen.append(([int(each[0, 0]) for each in placed], {name: int(each[0, 0]) for name, each in named.items()}))
        return placed[0] if placed else named["a"]

    inputs = tuple(tensor(name) for name in "abc")
    given = {name: np.full((1, 3), number, np.float32) for number, name in enumerate("cab")}
    for positional in (0, 2, 3):
        session(function, inputs, positional=positional).run(given)

    assert [([], {"a": 1, "b": 2, "c": 0}), ([1, 2], {"c": 0}), ([1, 2, 0], {})] == seen


@pytest.mark.parametrize("where", ["here", "thread"])
def test_inference_mode(where: str) -> None:
    """A module runs without gradients in every thread, also where its weights want some; the mode ends with the run."""
    seen: list[bool] = []
    module = Scale()
    module.weight.requires_grad_()

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_inference_mode_enabled())
        result: torch.Tensor = module(x)
        return result

    made = session(function)

    def run() -> None:
        seen.append(made.run({"x": np.ones((1, 3), np.float32)})["y"].tolist() == [[1, 2, 3]])
        seen.append(torch.is_inference_mode_enabled())

    if where == "here":
        run()
    else:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    assert [True, True, False] == seen


def test_what_a_module_raises() -> None:
    """What a module raises comes as it is, but for memory that ran out, which torch says in words alone."""

    def failing(error: Exception) -> Callable[..., Any]:
        def function(**_: torch.Tensor) -> torch.Tensor:
            raise error

        return function

    for error in (ValueError("a"), RuntimeError("b"), KeyError("c"), MemoryError("d")):
        with pytest.raises(type(error), match=str(error)):
            session(failing(error)).run({"x": np.ones((1, 3), np.float32)})
    with pytest.raises(MemoryError):
        session(failing(RuntimeError("std::bad_alloc"))).run({"x": np.ones((1, 3), np.float32)})


def test_memory_that_torch_cannot_have() -> None:
    """The real allocator's refusal is a MemoryError, and the session runs again afterwards."""
    huge = [True]

    def function(x: torch.Tensor) -> torch.Tensor:
        return x.new_empty(1 << 58) if huge.pop() else x

    huge.insert(0, False)
    made = session(function)

    with pytest.raises(MemoryError, match="DefaultCPUAllocator"):
        made.run({"x": np.ones((1, 3), np.float32)})
    assert 1 == made.run({"x": np.ones((1, 3), np.float32)})["y"][0, 0]


def test_memory_is_not_everything_that_is_refused() -> None:
    """A failed load is an error of the file, but for memory and for what ends the process anyway."""
    assert isinstance(refusal(PATH, RuntimeError("DefaultCPUAllocator: can't allocate memory: x"), "bad"), MemoryError)
    kept: list[Exception] = [MemoryError(), ModelError("x"), ConfigurationError("y")]
    assert kept == [refusal(PATH, error, "bad") for error in kept]
    made = refusal(PATH, RuntimeError("one\ntwo" + 1000 * "x"), "bad")
    assert isinstance(made, ConfigurationError)
    assert str(made).startswith(f"{PATH}: bad: one two")
    assert len(str(made)) < 400


@pytest.mark.parametrize(("inputs", "outputs", "missing"), [(0, 1, "inputs"), (1, 0, "outputs"), (0, 0, "inputs")])
def test_undeclared(inputs: int, outputs: int, missing: str) -> None:
    """A form that does not say its tensors needs them in `model.toml`, by the key that is missing."""
    for nothing in ((), None):
        source = Source(PATH, inputs=(tensor("x"),) if inputs else nothing, outputs=(tensor("y"),) if outputs else nothing)

        with pytest.raises(ConfigurationError, match=rf"^{PATH}: why, so model.toml must have \[\[{missing}\]\] or \[\[model"):
            declared(source, "why")


# Whose memory is whose.


def adds(x: torch.Tensor) -> torch.Tensor:
    """Write into the input."""
    return x.add_(1)


def adds_twice(x: torch.Tensor) -> torch.Tensor:
    """Write into it and give another."""
    x[:, 0] = 7
    return x + 0


def adds_unseen(x: torch.Tensor) -> torch.Tensor:
    """Write into it by a way of which torch keeps no count."""
    x.data.add_(1)
    return x.clone()


def adds_by_numpy(x: torch.Tensor) -> torch.Tensor:
    """Write into it behind torch's back."""
    x.numpy()[:] += 1
    return x.clone()


def adds_sometimes(x: torch.Tensor) -> torch.Tensor:
    """Write into it where it is large."""
    return x.add_(1) if float(x[0, 0]) > 5 else x + 1


@pytest.mark.parametrize(
    ("function", "datatype"),
    [
        *((function, "FP32") for function in (adds, adds_twice, adds_unseen, adds_by_numpy, adds_sometimes)),
        *((function, "BF16") for function in (adds, adds_twice, adds_unseen, adds_sometimes)),
    ],
)
@pytest.mark.parametrize("how", ["plain", "by column", "read-only"])
def test_a_module_that_writes_into_its_inputs(function: Callable[..., Any], datatype: str, how: str) -> None:
    """The caller's array stays as it was, in each run, and each run has the answer of the first."""
    made = session(function, (tensor("x", datatype),), (tensor("y", datatype),))
    dtype = NUMPY[datatype]
    for start in (1, 1, 6, 6, 1, 6):
        given = LYING[how](np.arange(start, start + 6).reshape(2, 3).astype(dtype))
        before = given.copy()
        expected = before.copy()
        if function is adds_twice:
            expected[:, 0] = 7
        else:
            expected += dtype.type(1)
        for _ in range(2):
            answer = made.run({"x": given})["y"]

            assert (expected == answer).all()
            assert (before == given).all()


def test_several_threads_and_a_module_that_writes() -> None:
    """Runs at the same time, of which some write and others do not, keep to their own memory."""
    made = session(adds_sometimes)
    wrong: list[Any] = []

    def runs(start: int) -> None:
        given = np.full((4, 3), start, np.float32)
        answers = (made.run({"x": given})["y"] for _ in range(200))
        wrong.extend(answer for answer in answers if not (answer == start + 1).all() or not (given == start).all())

    threads = [threading.Thread(target=runs, args=(start,)) for start in (1, 9, 2, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not wrong


def test_answers_are_the_callers_own() -> None:
    """An answer can be written to, whatever tensor of the module's or of the caller's it was made of; it spoils nothing."""
    module = Scale()
    own = (lambda **_: module.weight.expand(2, 3), lambda **_: module.weight[None])
    for function in (lambda x: x, lambda x: x.view(-1, 3), *own):
        made = session(function)
        given = np.ones((2, 3), np.float32)
        first = made.run({"x": given})["y"]
        kept = first.copy()
        again = made.run({"x": given})["y"]
        again[:] = 9

        assert (kept == made.run({"x": given})["y"]).all()
        assert (given == 1).all()
    assert [1, 2, 3] == module.weight.tolist()


def test_weights_as_answers() -> None:
    """A module may give a parameter itself, also one that wants a gradient."""
    module = Scale()
    module.weight.requires_grad_()

    assert [1, 2, 3] == session(lambda **_: module.weight).run({"x": np.ones((1, 3), np.float32)})["y"].tolist()


def test_an_answer_stays() -> None:
    """What a run gave stays as it is when the session runs again."""
    made = session(Scale())
    first = made.run({"x": np.ones((1, 3), np.float32)})["y"]

    made.run({"x": np.zeros((1, 3), np.float32)})

    assert [[1, 2, 3]] == first.tolist()


def test_read_only_inputs_warn_of_nothing() -> None:
    """Arrays out of a request's bytes cannot be written to, of which torch would warn once in a process."""
    made = session(Scale())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            made.run({"x": np.frombuffer(np.ones(3, np.float32).tobytes(), np.float32).reshape(1, 3)})

    assert not caught


# Half precision.


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
@pytest.mark.parametrize("datatype", sorted(FLOATS))
def test_half_precision(precision: Precision, datatype: str) -> None:
    """Weights are made half as wide; floats come and go in the type that is declared, whatever that is."""
    module = Scale()
    made = session(module, (tensor("x", datatype),), (tensor("y", datatype),), precision=precision)
    given = np.array([[1, 0.5, 2], [257, 0, -4]], np.float32).astype(NUMPY[datatype])

    answer = made.run({"x": given})["y"]

    assert {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}[precision] is module.weight.dtype
    assert NUMPY[datatype] == answer.dtype
    assert [[1, 1, 6], [256 if "BF16" in (precision.upper(), datatype) else 257, 0, -12]] == answer.tolist()


def test_half_precision_leaves_integers() -> None:
    """Token ids and masks are never made floats; integer answers stay what they are."""
    table = torch.nn.Embedding(300, 3)
    seen: list[torch.dtype] = []

    def function(x: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(x.dtype)
        return {"y": table(x).sum(1), "largest": x.max(1).values}

    outputs = (tensor("y"), TensorSpec("largest", "INT64", (ANY,), ("n",)))
    module = Calls(function)
    module.table = table
    made = session(module, (tensor("x", "INT64"),), outputs, precision=Precision.BF16)

    answer = made.run({"x": np.array([[257, 299, 1]])})

    assert [torch.int64] == seen
    assert (np.dtype(np.int64), 299) == (answer["largest"].dtype, int(answer["largest"][0]))
    assert np.float32 == answer["y"].dtype
    assert table.weight.dtype is torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_that_are_half_already(dtype: torch.dtype) -> None:
    """A file of half precision runs in that, and clients see what is declared."""
    answer = session(Scale(dtype)).run({"x": np.array([[1, 2, 3]], np.float32)})["y"]

    assert (np.dtype(np.float32), [[1, 4, 9]]) == (answer.dtype, answer.tolist())


def test_weights_of_both_kinds() -> None:
    """A network whose own code goes from float32 to half and back gets its inputs as they are declared: it begins in float32."""

    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(3, 3)
            self.second = torch.nn.Linear(3, 3).to(torch.bfloat16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.second(self.first(x).to(torch.bfloat16)).float()
            return result

    answer = session(Mixed()).run({"x": np.ones((1, 3), np.float32)})["y"]

    assert (np.dtype(np.float32), (1, 3)) == (answer.dtype, answer.shape)


def test_float32_is_left_alone() -> None:
    """A double-precision network is not made any narrower by asking for nothing."""
    answer = session(Scale(torch.float64), (tensor("x", "FP64"),), (tensor("y", "FP64"),)).run({"x": np.full((1, 3), 1 + 2**-40)})

    assert 1 + 2**-40 == answer["y"][0, 0]


def test_threads() -> None:
    """A session runs on as many threads as it is told in its process."""
    before = torch.get_num_threads()
    try:
        session(Scale()).enter(3)
        assert 3 == torch.get_num_threads()
        session(Scale()).enter(1)
        assert 1 == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def test_settle_of_what_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that compiles nothing leaves torch's compiler as it is: other models of the process may use it."""
    monkeypatch.setattr(torch.compiler, "set_stance", lambda *_: pytest.fail("set"))

    session(Scale()).settle()
