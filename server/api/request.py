"""An inference request as it is typed: what JSON must look like before a model is asked."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct
from msgspec.structs import replace

from server.api import skeleton
from server.refusals import BadInputError

Length = Annotated[int, Meta(ge=0, le=1 << 31)]
ABSENT = Raw(b"")

# Parameters that are not named here mean nothing to us and are passed over, as the protocol says.


class InputParameters(Struct, frozen=True):
    """Parameters of an input. What is refused is typed as anything."""

    binary_data_size: Length | None = None
    shared_memory_region: Any = UNSET
    shared_memory_byte_size: Any = UNSET
    shared_memory_offset: Any = UNSET


class OutputParameters(Struct, frozen=True):
    """Parameters of a requested output."""

    binary_data: bool | None = None
    classification: Any = UNSET
    shared_memory_region: Any = UNSET
    shared_memory_byte_size: Any = UNSET
    shared_memory_offset: Any = UNSET


class RequestParameters(Struct, frozen=True):
    """Parameters of the whole request."""

    binary_data_output: bool | None = None


class Input(Struct, frozen=True):
    """One tensor as the client describes it. `data` stays text until the model says what it must be."""

    name: str
    shape: list[Length]
    datatype: str
    parameters: InputParameters | None = None
    data: Raw = ABSENT


class Output(Struct, frozen=True):
    """One tensor that the client asks for."""

    name: str
    parameters: OutputParameters | None = None


class Request(Struct, frozen=True):
    """The request."""

    inputs: list[Input]
    id: str | None = None
    parameters: RequestParameters | None = None
    outputs: list[Output] | None = None


class IndexRequest(Struct, frozen=True):
    """What may be asked of the repository's index."""

    ready: bool = False


_SHARED = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")
_request = msgspec.json.Decoder(Request)
_index = msgspec.json.Decoder(IndexRequest)

INVALID = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What the decoder raises for text that is not JSON, not UTF-8, nested too deeply or not of the type."""


def parse(text: bytes | memoryview) -> Request:
    """Read a request; raise `BadInputError` saying what in it is wrong."""
    try:
        return (len(text) >= skeleton.LONG and _parse_long(bytes(text))) or _request.decode(text)
    except INVALID as error:
        raise BadInputError(explain("the request", error)) from error


def _parse_long(text: bytes) -> Request | None:
    """A request whose lists are taken out first; None where one of them is not an input's own."""
    parts = skeleton.split(text)
    if parts is None:
        return None
    bare, lists = parts
    try:
        request = _request.decode(bare)
    except INVALID:
        return None  # what is wrong is told of the text that came
    places = [bytes(given.data) for given in request.inputs if given.data is not ABSENT]
    if places != list(map(skeleton.place, range(len(lists)))):
        return None
    rest = iter(lists)
    inputs = [given if given.data is ABSENT else replace(given, data=Raw(next(rest))) for given in request.inputs]
    return replace(request, inputs=inputs)


def parse_index(text: bytes | memoryview) -> IndexRequest:
    """Read what is asked of the index, where nothing asks for everything; raise `BadInputError` saying what is wrong."""
    try:
        return _index.decode(text) if bytes(text).strip() else IndexRequest()
    except INVALID as error:
        raise BadInputError(explain("the request", error)) from error


def explain(what: str, error: Exception) -> str:
    """Say what is wrong with the JSON of `what`."""
    if isinstance(error, RecursionError):
        return f"{what} is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"{what} is not UTF-8: {error.reason}"
    return f"{what} is not valid: {error}"


def refuse(name: str, parameters: InputParameters | OutputParameters | None) -> None:
    """Raise `BadInputError` if the parameters of tensor `name` ask for what this server does not do."""
    if parameters is None:
        return
    asked = [field for field in _SHARED if getattr(parameters, field) is not UNSET]
    if asked:
        field = asked[0]
        message = f"{field} of {name[:64]!r}: no shared memory that a client names is read; send the data in the body"
        raise BadInputError(message)
    if isinstance(parameters, OutputParameters) and parameters.classification is not UNSET:
        message = f"classification of {name[:64]!r}: this server gives tensors, not classes; ask for the output without it"
        raise BadInputError(message)
