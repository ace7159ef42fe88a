"""The protocol's own OpenAPI description, and thousands of requests made from it: none fails, every answer is as described."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from server.tensors import DTYPES, FLOATS
from tests.server import Server

DESCRIPTION = schemathesis.openapi.from_path(Path(__file__).with_name("open_inference_rest.yaml"))
FOUND: Any = DESCRIPTION.get_all_operations()
OPERATIONS = [found.ok() for found in FOUND]
DESCRIBED = 300
LIKELY = 2500
LIKELY_CHECKS = [not_a_server_error, response_schema_conformance]
CHECKS = [
    *LIKELY_CHECKS,
    content_type_conformance,
]  # a likely request may ask for binary data, which the description does not know

# What knows the models gets further than what knows only the description.
DATATYPE = st.sampled_from(sorted(DTYPES))
SERVED = st.builds(lambda datatype: {"MODEL_NAME": f"identity_{datatype.lower()}", "MODEL_VERSION": "1"}, DATATYPE)
ANYTHING = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3)
PARAMETERS = st.dictionaries(
    st.sampled_from(["binary_data", "binary_data_size", "binary_data_output", "other"]), ANYTHING, max_size=2
)


def elements(datatype: str) -> st.SearchStrategy[Any]:
    """What a tensor of `datatype` may hold, more or less."""
    if datatype in FLOATS:
        return st.floats(width=16, allow_nan=False, allow_infinity=False)
    return {"BOOL": st.booleans(), "BYTES": st.text(max_size=3)}.get(datatype, st.integers(-9, 127))


def body(datatype: str) -> st.SearchStrategy[dict[str, Any]]:
    """A request to the identity of `datatype` that is right, or wrong in few places."""
    right = elements(datatype)
    data = st.lists(right, min_size=3, max_size=3) | st.lists(st.lists(right, min_size=3, max_size=3), min_size=1, max_size=2)
    given_input = st.fixed_dictionaries(
        {
            "name": st.just("x") | st.sampled_from(["x", "y"]),
            "shape": st.just([1, 3]) | st.lists(st.integers(-1, 9), max_size=3),
            "datatype": st.just(datatype) | DATATYPE,
            "data": data | st.recursive(ANYTHING, st.lists, max_leaves=5),
        },
        optional={"parameters": PARAMETERS},
    )
    output = st.fixed_dictionaries({"name": st.just("y") | st.text(max_size=1)}, optional={"parameters": PARAMETERS})
    return st.fixed_dictionaries(
        {"inputs": st.lists(given_input, min_size=1, max_size=1) | st.lists(given_input, max_size=2)},
        optional={"id": st.text(), "parameters": PARAMETERS, "outputs": st.lists(output, max_size=2)},
    )


def described(operation: Any) -> st.SearchStrategy[Any]:
    """Requests that follow the description and requests that break it; half of them name a model that is served."""
    cases = st.one_of(*(operation.as_strategy(mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)))
    return st.one_of(cases, st.builds(_at, cases, SERVED)) if operation.path_parameters else cases


def _at(case: Any, path: dict[str, str]) -> Any:
    case.path_parameters = path
    return case


def example_settings(count: int) -> settings:
    """The same `count` examples at every run."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """Kept connections."""
    with requests.Session() as kept:
        yield kept


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_no_described_request_breaks_the_server(server: Server, session: requests.Session, operation: Any) -> None:
    """No 5xx, and every documented status has the body that its schema says."""

    @given(case=described(operation))
    @example_settings(DESCRIBED)
    def send(case: Any) -> None:
        case.call_and_validate(base_url=server.url, session=session, checks=CHECKS)

    send()


def test_no_likely_request_breaks_the_server(server: Server, session: requests.Session) -> None:
    """The same for requests that nearly fit the models: thousands, of which enough are good and enough are not."""
    operation = next(operation for operation in OPERATIONS if operation.method == "post")
    statuses: Counter[int] = Counter()

    @given(request=DATATYPE.flatmap(lambda datatype: st.tuples(st.just(datatype), body(datatype))))
    @example_settings(LIKELY)
    def send(request: tuple[str, object]) -> None:
        path = {"MODEL_NAME": f"identity_{request[0].lower()}", "MODEL_VERSION": "1"}
        case = operation.Case(path_parameters=path, body=request[1], media_type="application/json")
        statuses[case.call_and_validate(base_url=server.url, session=session, checks=LIKELY_CHECKS).status_code] += 1

    send()
    assert set(statuses) == {200, 400}
    assert min(statuses.values()) > LIKELY / 50
