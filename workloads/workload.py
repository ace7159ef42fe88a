"""A script for Locust: its options, its users, and the verdict as exit status, figures and plot."""

from __future__ import annotations

import gc
import sys
import threading
import time
import traceback
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from locust import User, events, task
from locust.env import Environment
from locust.exception import StopUser

from bench.client import get
from bench.report import Figure, table, write
from workloads.client import Client, Reopened
from workloads.plot import plot
from workloads.priority import go_first
from workloads.run import INPUTS, Run
from workloads.watch import PROBE, Ours
from workloads.windows import LEAST


@dataclass(frozen=True, slots=True)
class Workload:
    """What makes a script."""

    name: str
    act: Callable[[Run], None]
    """Goes through windows while the traffic runs."""
    judge: Callable[[Run], list[Figure]]
    """Makes figures of them, once every request has its answer."""
    bounds: Mapping[str, float]
    """Each is an option `--bound-…`."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What else may be chosen, as for argparse."""
    prepare: Callable[[Run], None] = lambda _: None
    """Starts what the script needs itself, before the traffic."""


def users(workload: Workload) -> type[User]:
    """The class of Locust's users."""
    runs: list[Run] = []

    @events.init_command_line_parser.add_listener
    def parse(parser: ArgumentParser) -> None:
        _arguments(parser, workload)

    @events.init.add_listener
    def prepare(environment: Environment, **_: object) -> None:
        given = environment.parsed_options
        if given is None or given.windows < LEAST:
            sys.exit(f"{workload.name}: --windows is {LEAST} at least")
        environment.process_exit_code = 1  # until there is a verdict
        run = Run(environment.host or "http://127.0.0.1:8000", given, workload.name)
        workload.prepare(run)
        runs.append(run)

        @environment.events.quitting.add_listener
        def end(**_: object) -> None:
            run.closing.close()

        @environment.events.spawning_complete.add_listener
        def begin(**_: object) -> None:
            gc.collect()
            gc.freeze()  # what Locust is made of need not be looked through again while we measure
            _start(environment, runs[0], workload)

    class Sender(User):
        """One kept connection."""

        def on_start(self) -> None:
            """Have a connection, which is made for the first request."""
            self.client = runs[0].traffic.client(runs[0].host, runs[0].port)

        @task
        def send(self) -> None:
            """Send the next request when its time has come, and tell Locust."""
            _send(self, runs[0], self.client)

    return Sender


def _arguments(parser: ArgumentParser, workload: Workload) -> None:
    parser.set_defaults(num_users=16, spawn_rate=100)
    group = parser.add_argument_group(f"{workload.name}, against a server that runs already")
    group.add_argument("--management", default="http://127.0.0.1:8001", help="the URL of the management process")
    group.add_argument("--plain", type=int, default=0, metavar="PID", help="the master of a plain gunicorn to look at instead")
    group.add_argument("--model", choices=INPUTS, default="resnet50", help="the model to ask")
    group.add_argument("--rate", type=float, default=5.0, help="requests per second")
    group.add_argument("--window", type=float, default=20.0, help="seconds of a window")
    group.add_argument("--windows", type=int, default=LEAST, help=f"windows of each kind, {LEAST} at least")
    group.add_argument("--results", default="load-results", help="the folder for the plot and the figures")
    group.add_argument("--title", default=workload.name, help="the name of both, without an ending")
    for option, value in workload.bounds.items():
        group.add_argument(f"--bound-{option}", type=float, default=value)
    for option, how in workload.options.items():
        group.add_argument(f"--{option.replace('_', '-')}", **how)


def _send(user: User, run: Run, client: Client) -> None:
    answer = run.traffic.send(client)
    if answer is None:
        raise StopUser
    failure = ConnectionError(answer.error) if answer.error else None
    user.environment.events.request.fire(
        request_type="POST",
        name=run.options.model,
        response_time=answer.latency * 1e3,
        response_length=0,
        exception=failure,
        context={},
    )


def _start(environment: Environment, run: Run, workload: Workload) -> None:
    if run.ours:
        Client(run.ours.host, run.ours.port, Reopened()).exchange(get("/livez"))  # so that this client is not cold itself
    run.traffic.begin()
    run.details["load generator goes first"] = go_first()
    if not run.details["load generator goes first"]:
        run.say("may not go first (CAP_SYS_NICE): the time for which this process waits for a processor counts as the server's")
    threading.Thread(target=_drive, args=(environment, run, workload), daemon=True).start()
    if run.ours:
        threading.Thread(target=_probe, args=(run, run.ours), daemon=True).start()


def _drive(environment: Environment, run: Run, workload: Workload) -> None:
    """Go through the workload from beginning to end, and leave Locust with its verdict."""
    code = 1
    place = Path(run.options.results) / run.options.title
    try:
        try:
            workload.act(run)
            run.traffic.end()
            report = run.report(workload.judge(run))
            write(report, place.with_suffix(".json"))
            print(table({run.options.title: report}), flush=True)
        finally:
            if run.windows:  # also of what broke off: there one wants to see most
                plot(run.traffic.answers, run.windows, run.marks, run.options.title, place.with_suffix(".png"))
        code = int(report.broken)
    except Exception:  # noqa: BLE001 - whatever it is, the run must end, and not well
        traceback.print_exc()
    environment.process_exit_code = code
    if environment.runner is not None:
        environment.runner.quit()


def _probe(run: Run, ours: Ours) -> None:
    """Ask for readiness all the while."""
    while not run.traffic.over.is_set():
        run.probes[ours.get("/readyz", PROBE)[0]] += 1
        time.sleep(0.05)
