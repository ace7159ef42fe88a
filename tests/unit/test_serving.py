"""What a worker serves: who is found, what an error becomes, what is counted."""

from __future__ import annotations

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server import serving
from server.models import operator
from server.models.repository import ModelFiles
from server.models.schema import ModelToml
from server.refusals import BadInputError, BusyError, LateError, ModelFailedError, RefusalError, UnknownModelError
from server.scoreboard import Scoreboard
from server.serving import Serving
from server.settings import Settings
from server.states import Phase
from tests.unit.fakes import FakeSession, echo, model

HIDDEN = "/hidden/path"


def served(*models: Any, environ: dict[str, str] | None = None) -> Serving:
    """A serving of some models in the second of two slots."""
    read = Settings.read({f"WARMFORK_{name}": text for name, text in (environ or {}).items()})
    return Serving(models, Scoreboard.create(2), 1, read)


def x(count: int = 1) -> dict[str, Any]:
    """An input of some rows."""
    return {"x": np.arange(3 * count, dtype=np.float32).reshape(count, 3)}


def raising(error: BaseException) -> Any:
    """A model that raises."""

    def run(_: Any) -> Any:
        raise error

    return run


def infer(serving: Serving, made: Any, inputs: Any, received_ns: int | None = None) -> dict[str, Any]:
    """One request, as the app runs it: admitted first; it came now if no other time is said."""
    received_ns = time.monotonic_ns() if received_ns is None else received_ns
    serving.admit()
    return serving.infer(made, inputs, received_ns)


def named(name: str, version: int) -> Any:
    """A model of another name and version."""
    made = model()
    object.__setattr__(made.files, "name", name)
    object.__setattr__(made.files, "version", version)
    return made


def test_find() -> None:
    """A model is found by its name and version; without a version it is the highest, by number."""
    a9, a10, b1 = named("a", 9), named("a", 10), named("b", 1)
    serving = served(a10, b1, a9)

    assert (a10, a9, a10, b1) == (serving.find("a"), serving.find("a", "9"), serving.find("a", "10"), serving.find("b", None))


@pytest.mark.parametrize(
    ("name", "version", "part"),
    [
        ("c", None, "no model 'c'; served are a, b"),
        ("", None, "no model ''; served are a, b"),
        ("A", "9", "no model 'A'"),
        ("a", "1", "model 'a' has no version '1'; served are 9, 10"),
        ("a", "", "model 'a' has no version ''"),
        ("a", "-9", "no version '-9'"),
        ("a", "9.0", "no version '9.0'"),
        ("a", "\N{ARABIC-INDIC DIGIT NINE}", "no version"),
        ("a", "\N{SUPERSCRIPT TWO}", "no version"),
        ("a", "9" * 5000, "no version '999"),
        ("n" * 5000, None, "no model 'nnn"),
    ],
)
def test_not_found(name: str, version: str | None, part: str) -> None:
    """An unknown model or version is refused by name, with what there is, in a line of bounded length."""
    with pytest.raises(UnknownModelError) as refused:
        served(named("a", 9), named("a", 10), named("b", 1)).find(name, version)

    assert part in str(refused.value)
    assert len(str(refused.value)) < 200


def test_infer() -> None:
    """A request runs in a declared shape and gets its own rows back."""
    made = model()
    answer = infer(served(made), made, x(3))

    assert (x(3)["x"] == answer["y"]).all()
    assert isinstance(made.session, FakeSession)
    assert (4, 3) == made.session.runs[0]["x"].shape


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RuntimeError(HIDDEN), ModelFailedError, "model 'm' failed"),
        (ValueError(HIDDEN), ModelFailedError, "model 'm' failed"),
        (KeyError(HIDDEN), ModelFailedError, "model 'm' failed"),
        (MemoryError(HIDDEN), BusyError, "model 'm' ran out of memory for this request"),
        (BadInputError("input 'x' is not right"), BadInputError, "input 'x' is not right"),
    ],
)
def test_errors(caplog: pytest.LogCaptureFixture, error: Exception, kind: type[RefusalError], message: str) -> None:
    """What a model raises becomes a refusal that gives nothing away; the worker serves on."""
    made = model(raising(error))
    serving = served(made)

    with caplog.at_level(logging.INFO), pytest.raises(RefusalError, match=f"^{message}$") as refused:
        infer(serving, made, x())

    assert kind is type(refused.value)
    assert (kind is ModelFailedError) == ("model m/1 failed on a request" in caplog.text)
    assert isinstance(made.session, FakeSession)
    made.session.answer = echo
    assert (1, 3) == infer(serving, made, x())["y"].shape


@pytest.mark.parametrize("error", [SystemExit(5), KeyboardInterrupt(), GeneratorExit(), BaseException(HIDDEN)])
def test_what_is_no_exception(caplog: pytest.LogCaptureFixture, error: BaseException) -> None:
    """A model that raises what ends a process, or a panic of a library, in any thread but the main one fails as others do."""
    made = model(raising(error))
    serving = served(made)

    with ThreadPoolExecutor(1) as pool, pytest.raises(ModelFailedError, match="model 'm' failed"):
        pool.submit(infer, serving, made, x()).result()
    assert "model m/1 failed on a request" in caplog.text


@pytest.mark.parametrize("shape", [(1, 2), (0, 3), (1, 3, 1)])
def test_another_shape_than_declared(shape: tuple[int, ...]) -> None:
    """An answer of another shape, or of another number of rows, is no answer."""
    made = model(lambda _: {"y": np.zeros(shape, np.float32)}, batch_sizes=[1])

    with pytest.raises(ModelFailedError, match=r"output 'y' must have shape \[-1, 3\]"):
        infer(served(made), made, x())


def test_doing() -> None:
    """While a model runs the slot says which, so that a crash can be blamed; afterwards it does not, however it ended."""
    seen = []

    def run(inputs: Any) -> Any:
        seen.append(worker.board.slots["doing"][1])
        return {"y": inputs["x"] / (inputs["x"][0, 0] != 9)} if inputs["x"][0, 0] != 9 else raising(RuntimeError("nine"))(inputs)

    made = model(run)
    worker = served(made)
    infer(worker, made, x())
    assert b"" == worker.board.slots["doing"][1]
    with pytest.raises(ModelFailedError):
        infer(worker, made, {"x": np.full((1, 3), 9, np.float32)})

    assert [b"model m/1", b"model m/1"] == seen
    assert [b"", b""] == worker.board.slots["doing"].tolist()


def operated(folder: Path, source: str) -> Any:
    """A model with a `model.py` on disk, beside numpy and what is hidden from clients."""
    path = folder / "1" / "model.py"
    path.parent.mkdir()
    path.write_text(f"import numpy as np\nHIDDEN = {HIDDEN!r}\n\n{source}\n", encoding="ascii")
    files = ModelFiles("m", 1, path.parent, ModelToml(python="model.py", batch_sizes=[1, 2, 4]))
    made = model(folder=path.parent, python=operator.load(files))
    made.files = files
    return made


FIT = "def preprocess(inputs): return "
OUT = "def postprocess(outputs, inputs): return "


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("def preprocess(inputs):\n    raise ValueError(f'line {len(inputs)} is bad')", BadInputError, "line 1 is bad"),
        ("def check(x):\n    raise ValueError('no row')\ndef preprocess(inputs): check(inputs)", BadInputError, "no row"),
        ("import json\ndef preprocess(inputs): json.loads(HIDDEN)", ModelFailedError, "model 'm' failed"),
        ("def preprocess(inputs): raise TypeError(HIDDEN)", ModelFailedError, "model 'm' failed"),
        (FIT + "{'x': np.zeros((1, 3))}", ModelFailedError, "preprocess must give 'x' as FP32"),
        (FIT + "{}", ModelFailedError, "preprocess must give 'x' as FP32 with 2 axes, gave nothing"),
        (FIT + "None", ModelFailedError, ""),
        (OUT + "{'y': np.zeros(3, np.float32)}", ModelFailedError, "postprocess must give 'y' as FP32"),
        ("def postprocess(*_): raise ValueError(HIDDEN)", ModelFailedError, "model 'm' failed"),
        (OUT + "None", ModelFailedError, ""),
    ],
)
def test_operator_errors(tmp_path: Path, source: str, kind: type[RefusalError], message: str) -> None:
    """A ValueError that preprocess itself raises is the client's fault and told to it; all else that its file does wrong is not.

    Neither is one that a library raises on the way: its text is about anything.
    """
    serving = served(operated(tmp_path, source))

    with pytest.raises(RefusalError) as refused:
        infer(serving, serving.find("m"), x())

    assert kind is type(refused.value)
    assert str(refused.value).startswith(message)
    assert HIDDEN not in str(refused.value)


@pytest.mark.parametrize(
    ("made", "rows", "message"),
    [
        (model(batched=False), 5, "axis 'batch' must be one of 1, 2, 4, got 5"),
        (model(batched=False), 3, "axis 'batch' must be one of 1, 2, 4, got 3"),
        (model(), 0, "axis 'batch' must be at least 1, got 0"),
        (model(batch_sizes=None, axes={"n": [2, 4]}), 5, "axis 'n' must be at most 4, got 5"),
    ],
)
def test_limits(made: Any, rows: int, message: str) -> None:
    """A shape that the model does not run is refused before it waits, and nothing of it is counted as a batch."""
    serving = served(made)

    with pytest.raises(BadInputError, match=f"^{message}$"):
        infer(serving, made, x(rows))

    assert 0 == serving.board.slots["models"]["batches"].sum()


def test_more_rows_than_a_batch() -> None:
    """What is larger than the largest batch runs in parts, each in a declared shape, and comes back whole and in order."""
    made = model()
    serving = served(made)

    answer = infer(serving, made, x(11))

    assert (x(11)["x"] == answer["y"]).all()
    assert isinstance(made.session, FakeSession)
    assert [(4, 3), (4, 3), (4, 3)] == [run["x"].shape for run in made.session.runs]
    row = serving.board.slots["models"][1][0]
    assert (3, 11, 0) == (row["batches"], row["rows"], row["cold"])


def test_cold() -> None:
    """A shape that was not warmed is counted as cold, each time; one that was remembered is warm."""
    made = model(batch_sizes=None, remembered=((3,),), index=2)
    serving = served(made)

    for count in (1, 3, 2, 2, 5):
        infer(serving, made, x(count))

    row = serving.board.slots["models"][1][2]
    assert (5, 3) == (row["batches"], row["cold"])
    assert {2, 5} == set(row["cold_shapes"].ravel().tolist()) - {0}
    assert 0 == serving.board.slots["models"][0]["batches"].sum()


def test_padding_is_no_row() -> None:
    """Rows are those that came; the size is the one that ran."""
    serving = served(model())

    infer(serving, serving.find("m"), x(3))

    row = serving.board.slots["models"][1][0]
    assert (1, 3, 4) == (row["batches"], row["rows"], row["sizes"][0]["size"])


def test_only_what_went_well_is_remembered(tmp_path: Path) -> None:
    """A cold shape that fails after its run is counted and forgotten: no client may hand a failure to the next generation."""
    made = operated(tmp_path, "def postprocess(outputs, inputs):\n    assert len(inputs['x']) != 7\n    return outputs")
    made.files = ModelFiles("m", 1, made.files.folder, ModelToml(python="model.py"))
    made.__post_init__()
    serving = served(made)
    with pytest.raises(ModelFailedError):
        infer(serving, made, x(7))
    infer(serving, made, x(5))

    row = serving.board.slots["models"][1][0]
    assert (2, 2) == (row["batches"], row["cold"])
    assert {5} == set(row["cold_shapes"].ravel().tolist()) - {0}


def test_late() -> None:
    """An answer that comes past the limit is not given, though the model has run."""
    made = model()
    serving = served(made, environ={"REQUEST_TIMEOUT": "5"})

    with pytest.raises(LateError, match=r"^not answered within 5 s"):
        infer(serving, made, x(), time.monotonic_ns() - 6_000_000_000)
    assert (1, 3) == infer(serving, made, x(), time.monotonic_ns() - 1_000_000_000)["y"].shape


@pytest.mark.parametrize("phase", list(Phase))
def test_going_away(phase: Phase) -> None:
    """What has reached a worker is answered, whatever the server is about to do: it is the listener that lets nobody in."""
    made = model()
    serving = served(made)
    before = time.monotonic_ns()
    serving.board.enter(phase)

    assert (x()["x"] == infer(serving, made, x(), before)["y"]).all()
    assert (x()["x"] == infer(serving, made, x())["y"]).all()
    assert (phase is Phase.STOPPING) == serving.stopping


def test_current() -> None:
    """A process serves what was set last, and one that is no worker serves nothing, which is said."""
    child = os.fork()
    if not child:
        try:
            first, second = served(model()), served(model())
            try:
                serving.current()
            except LookupError as error:
                found = "serves no models" in str(error)
            serving.serve(first)
            serving.serve(second)
            os._exit(0 if found and serving.current() is second else 1)
        finally:
            os._exit(2)

    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
