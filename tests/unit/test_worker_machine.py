"""Connections under clients that do anything in any order: each answer is its request's, in order, and nothing is left behind."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.fronts import FAILS, WIDE, Client, Desk, binary, chunked, get, post
from tests.wire import Answer

EXAMPLES = 300
STEPS = 40
CLIENTS = 4
LATE = {408, 504}
"""What may come in place of an answer once a test has let time pass."""


@dataclass(frozen=True)
class Kind:
    """A kind of request: its bytes for a number of its own, and what must come."""

    make: Callable[[float], bytes]
    status: int = 200
    closes: bool = False
    says: Callable[[Answer, float], bool] = lambda _answer, _value: True
    """Whether an answer is that of the request of this number."""


def echoes(answer: Answer, value: float) -> bool:
    """An inference that gives back what came."""
    return answer.values() == [value] * 3


def widens(answer: Answer, value: float) -> bool:
    """The model `wide`."""
    length = int(answer.headers["inference-header-content-length"])
    return np.array_equal(np.frombuffer(answer.body[length:], np.float32), np.full(WIDE, value, np.float32))


def named(answer: Answer, value: float) -> bool:
    """An error that has the name which was asked for."""
    return f"no-{value:g}'".encode() in answer.body


KINDS = {
    "json": Kind(post, says=echoes),
    "binary": Kind(binary, says=echoes),
    "wide": Kind(lambda value: binary(value, "wide"), says=widens),
    "chunked": Kind(chunked, says=echoes),
    "expects": Kind(lambda value: post(value, "m", "Expect: 100-continue"), says=echoes),
    "unknown": Kind(lambda value: get(f"/v2/models/no-{value:g}"), 404, says=named),
    "unknown-odd": Kind(lambda value: get(f"/v2/models/no-{value:g}", method="PUT"), 405),
    "one-zero": Kind(lambda value: get(f"/v2/models/no-{value:g}", version="1.0"), 404, closes=True, says=named),
    "head": Kind(lambda _value: get("/v2/health/live", method="HEAD")),
    "last": Kind(lambda value: post(value, "m", "Connection: close"), closes=True, says=echoes),
    "fails": Kind(lambda _value: post(FAILS), 500),
    "no-json": Kind(lambda _value: b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 3\r\n\r\n{a}", 400),
    "no-http": Kind(lambda _value: b"what is this\r\n\r\n", 400, closes=True),
    "too-large": Kind(lambda _value: b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413, closes=True),
    "bad-chunk": Kind(
        lambda _value: b"POST /v2/models/m/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, closes=True
    ),
}


@dataclass(eq=False)
class Talker:
    """A client and what it has asked for."""

    client: Client
    asked: list[tuple[str, float, int]] = field(default_factory=list)
    """Kind, number, and after how many bytes the whole request has been sent."""
    composed: int = 0
    half_closed: bool = False

    @property
    def heads(self) -> list[int]:
        """Which of its requests are for a head only."""
        return [number for number, (kind, _, _) in enumerate(self.asked) if kind == "head"]


class Machine(RuleBasedStateMachine):
    """Clients, a loop, batches that may hang back, and a clock."""

    def __init__(self) -> None:
        """Begin with nobody."""
        super().__init__()
        self.desk = Desk({"MAX_BODY": "1 MiB"}, {"loglevel": "critical"})
        self.talkers: list[Talker] = []
        self.gone: list[Talker] = []
        self.number = 100.0
        self.patient = True
        """Whether no time has been added, so that nobody can be late."""

    @rule()
    @precondition(lambda self: len(self.talkers) < CLIENTS)
    def open(self) -> None:
        """Somebody connects."""
        self.talkers.append(Talker(self.desk.open()))

    @rule(which=st.integers(0, CLIENTS - 1), kind=st.sampled_from(sorted(KINDS)), now=st.booleans())
    @precondition(lambda self: self.talkers)
    def ask(self, which: int, kind: str, now: bool) -> None:  # noqa: FBT001
        """A request, to be sent behind those before it: all that goes now, or piece by piece."""
        talker = self.talkers[which % len(self.talkers)]
        if talker.half_closed:
            return
        self.number += 1
        data = KINDS[kind].make(self.number)
        talker.composed += len(data)
        talker.asked.append((kind, self.number, talker.composed))
        talker.client.pending += data
        if now:
            talker.client.push()

    @rule(which=st.integers(0, CLIENTS - 1), most=st.sampled_from([1, 2, 7, 40, 150, 100_000]))
    @precondition(lambda self: self.talkers)
    def push(self, which: int, most: int) -> None:
        """A piece is sent."""
        talker = self.talkers[which % len(self.talkers)]
        if not talker.half_closed:
            talker.client.push(most)

    @rule(which=st.integers(0, CLIENTS - 1))
    @precondition(lambda self: self.talkers)
    def half_close(self, which: int) -> None:
        """A client says that it will send no more; what it wanted to send is given up."""
        talker = self.talkers[which % len(self.talkers)]
        if not talker.half_closed:
            talker.half_closed = True
            talker.client.pending = b""
            talker.client.sock.shutdown(socket.SHUT_WR)

    @rule(which=st.integers(0, CLIENTS - 1))
    @precondition(lambda self: self.talkers)
    def go(self, which: int) -> None:
        """A client is gone, whatever it has not read."""
        talker = self.talkers.pop(which % len(self.talkers))
        talker.client.read()
        self.gone.append(talker)
        talker.client.sock.close()

    @rule(which=st.integers(0, CLIENTS - 1))
    @precondition(lambda self: self.talkers)
    def read(self, which: int) -> None:
        """A client reads what has come."""
        self.talkers[which % len(self.talkers)].client.read()

    @rule(times=st.integers(1, 4))
    def turn(self, times: int) -> None:
        """The loop turns."""
        self.desk.turn(times)

    @rule(held=st.booleans())
    def hold(self, held: bool) -> None:  # noqa: FBT001
        """Batches hang back, or run again."""
        self.desk.batcher.held = held

    @rule()
    def tick(self) -> None:
        """The loop looks at its deadlines."""
        self.desk.front.tick()

    @rule(seconds=st.sampled_from([0.5, 3.0, 6.0, 40.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.patient = False
        self.desk.wait(seconds)

    @rule(surplus=st.integers(0, 2))
    def surplus(self, surplus: int) -> None:
        """Another worker should have some of the connections."""
        self.desk.front.surplus = surplus

    @invariant()
    def holds(self) -> None:
        """What is true at any time."""
        self.desk.check()

    def teardown(self) -> None:
        """All are answered that can be; then time ends the rest, and nothing is left."""
        try:
            self.desk.batcher.held = False
            self.desk.settle([talker.client for talker in self.talkers])
            for talker in [*self.talkers, *self.gone]:
                self.compare(talker, left=talker in self.gone)
            for _ in range(30):
                self.desk.wait(10)
                self.desk.check()
            self.desk.clean()
        finally:
            self.desk.end()

    def compare(self, talker: Talker, *, left: bool) -> None:
        """Each answer is its request's; and all are there, if the client has stayed and nobody was late."""
        client = talker.client
        answers = client.answers(talker.heads)
        assert len(answers) <= len(talker.asked)
        for number, answer in enumerate(answers):
            name, value, end = talker.asked[number]
            kind = KINDS[name]
            whole = end <= client.sent
            if not whole and (kind.status != answer.status or not kind.closes):  # else refused before it was all there
                assert talker.half_closed or not self.patient, answer
                assert answer.status in {400, *LATE}, answer
            elif answer.status == kind.status:
                assert kind.says(answer, value), answer
            else:
                assert not self.patient, answer
                assert answer.status in LATE, answer
            assert answer.says_close or not kind.closes, answer
            if answer.says_close:
                assert number == len(answers) - 1, "an answer after the last"
                assert client.ended or left
        if left or not self.patient or (answers and answers[-1].says_close):
            return
        due = [end for _, _, end in talker.asked if end <= client.sent]
        assert len(due) <= len(answers), "somebody is not answered"
        assert client.ended == talker.half_closed


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
