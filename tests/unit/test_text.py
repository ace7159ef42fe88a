"""Text in front of a model: token ids in length buckets, and what is refused in which words."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from server.exits import ConfigurationError, ExitError
from server.features.text import IDS, MASK, PROSE, TYPES, Text
from server.models.model import Model
from server.models.operator import OperatorPython
from server.models.repository import ModelFiles
from server.models.schema import ModelTable, ModelToml, TensorTable, TextTable
from server.refusals import BadInputError
from server.tensors import ANY, Array, Tensors, TensorSpec
from server.warmup import proof, samples, warm
from tests.unit.fakes import FakeSession

WORDS = sorted({word.strip(",.:;").lower() for word in PROSE.split()} | {",", ".", ":", ";"})
VOCABULARY = {"[PAD]": 3, "[UNK]": 1, "[CLS]": 2, "[SEP]": 0, **{word: number + 10 for number, word in enumerate(WORDS)}}
AXES = ("batch", "length")
SPECS = tuple(TensorSpec(name, "INT64", (ANY, ANY), AXES) for name in (IDS, MASK, TYPES))


def tokenizer() -> Tokenizer:
    """Words, with [CLS] before and [SEP] after a text."""
    made = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))  # noqa: S106 - a token of a vocabulary
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 0)]
    )
    return made


def pieces() -> Tokenizer:
    """Letters, so that a word is many tokens."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789,.:;"]
    known = ["[PAD]", "[UNK]", *letters, *(f"##{letter}" for letter in letters)]
    made = Tokenizer(models.WordPiece({word: number for number, word in enumerate(known)}, unk_token="[UNK]"))  # noqa: S106
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


def saved(folder: Path, made: Tokenizer | None = None) -> Path:
    """Write a tokenizer; give its path."""
    path = folder / "tokenizer.json"
    (made or tokenizer()).save(str(path))
    return path


def loaded(folder: Path, made: Tokenizer | None = None, **options: Any) -> Text:
    """Write a tokenizer and read it."""
    return Text(saved(folder, made), "text", **{"longest": 1000, "truncates": True, "pad": None, **options})


def fitted(folder: Path, made: Tokenizer | None = None, *, tokens: int = 16, fixed: bool = False, **options: Any) -> Text:
    """A tokenizer for texts of up to `tokens` tokens."""
    text = loaded(folder, made, **options)
    text.fit(32, tokens, fixed=fixed)
    return text


def texts(*given: str | bytes) -> Array:
    """What clients send."""
    made = np.empty(len(given), object)
    made[:] = [text if isinstance(text, bytes) else text.encode() for text in given]
    return made


def ids(*words: str) -> list[int]:
    """The numbers of words."""
    return [VOCABULARY[word] for word in words]


def test_rows_of_different_lengths(tmp_path: Path) -> None:
    """A row that is shorter is filled up on the right, with the padding token; mask and types are 0 there."""
    made = fitted(tmp_path).encode(texts("gulls followed", "Boats", ""), SPECS)

    assert [
        [*ids("[CLS]", "gulls", "followed", "[SEP]")],
        [*ids("[CLS]", "boats", "[SEP]", "[PAD]")],
        [*ids("[CLS]", "[SEP]", "[PAD]", "[PAD]")],
    ] == made[IDS].tolist()
    assert [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]] == made[MASK].tolist()
    assert not made[TYPES].any()
    assert {IDS, MASK, TYPES} == set(made)
    assert all(array.dtype == np.int64 and array.flags.c_contiguous for array in made.values())


def test_only_what_the_model_has(tmp_path: Path) -> None:
    """A model gets the tensors that it has, in the type that it has; one of another name is not the tokenizer's to make."""
    specs = (
        replace(SPECS[0], datatype="INT32"),
        replace(SPECS[1], datatype="FP32"),
        TensorSpec("scale", "FP32", (ANY,), ("batch",)),
    )

    made = fitted(tmp_path).encode(texts("boats came"), specs)

    assert {IDS: np.int32, MASK: np.float32} == {name: array.dtype.type for name, array in made.items()}
    assert ids("[CLS]", "boats", "came", "[SEP]") == made[IDS][0].tolist()


@pytest.mark.parametrize("fixed", [True, False])
def test_truncation(tmp_path: Path, fixed: bool) -> None:  # noqa: FBT001
    """A text of too many tokens is cut, so that the special ones stay."""
    made = fitted(tmp_path, tokens=5, fixed=fixed).encode(texts("the first boats came home home home", "boats"), SPECS)

    assert [*ids("[CLS]", "the", "first", "boats", "[SEP]")] == made[IDS][0].tolist()
    assert (2, 5) == made[IDS].shape


def test_truncation_on_the_left(tmp_path: Path) -> None:
    """A tokenizer that cuts the beginning of a text goes on to do so."""
    cutting = tokenizer()
    cutting.enable_truncation(9, direction="left")
    made = fitted(tmp_path, cutting, tokens=4).encode(texts("the first boats came home"), SPECS)

    assert [*ids("[CLS]", "came", "home", "[SEP]")] == made[IDS][0].tolist()


def test_too_many_tokens(tmp_path: Path) -> None:
    """Where texts are not cut, one that is too long is refused with its row, its length and the bound; the longest is taken."""
    text = fitted(tmp_path, tokens=5, truncates=False)
    assert (1, 5) == text.encode(texts("the first boats"), SPECS)[IDS].shape

    with pytest.raises(BadInputError, match=r"^input 'text', row 1: a text may have 5 tokens, has 6$"):
        text.encode(texts("boats", "the first boats came", "x " * 50), SPECS)


def test_fixed_width(tmp_path: Path) -> None:
    """A model whose length is fixed gets that length, however short the texts are."""
    made = fitted(tmp_path, tokens=6, fixed=True).encode(texts("boats", ""), SPECS)

    assert (2, 6) == made[IDS].shape
    assert [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]] == made[MASK].tolist()
    assert {VOCABULARY["[PAD]"]} == set(made[IDS][made[MASK] == 0].tolist())


def test_no_tokens(tmp_path: Path) -> None:
    """A text of no tokens is a row of padding, one long: a model runs no empty axis."""
    made = fitted(tmp_path, pieces()).encode(texts("", " "), SPECS[:2])

    assert [[0], [0]] == made[IDS].tolist()
    assert [[0], [0]] == made[MASK].tolist()


@pytest.mark.parametrize(
    ("bad", "part"),
    [
        (b"a\xffb", r"not UTF-8 \(byte 1: invalid start byte\)"),
        (b"\xed\xa0\x80", r"not UTF-8 \(byte 0: "),
        (b"caf\xc3", r"not UTF-8 \(byte 3: unexpected end of data\)"),
        (b"x" * 1001, r"a text may have 1000 bytes \(text\.max_bytes\), has 1001"),
        (b"x" * 10_000_000, r"a text may have 1000 bytes \(text\.max_bytes\), has 10000000"),
        ("\N{SNOWMAN}".encode() * 334, r"a text may have 1000 bytes \(text\.max_bytes\), has 1002"),
    ],
)
@pytest.mark.parametrize("row", [0, 2])
def test_refused_texts(tmp_path: Path, bad: bytes, part: str, row: int) -> None:
    """What is no text, or too long to be looked at, is the client's fault, by its row."""
    given = [b"boats"] * 3
    given[row] = bad

    with pytest.raises(BadInputError, match=f"^input 'text', row {row}: {part}"):
        fitted(tmp_path).encode(texts(*given), SPECS)


def test_odd_texts(tmp_path: Path) -> None:
    """Anything else that is UTF-8 is a text: of as many bytes as there may be, of no letters, with a NUL, right to left."""
    odd = texts("x" * 1000, "\0", "a\0b", "\u202eabc", "\U0010ffff", "\r\n\t", "e\u0301" * 300)

    made = fitted(tmp_path).encode(odd, SPECS)

    assert (7, 16) >= made[IDS].shape
    assert (made[MASK].sum(1) >= 2).all()


def test_what_the_file_says_of_length_is_not_asked(tmp_path: Path) -> None:
    """A file's own truncation and padding, which go with other lengths, make no difference."""
    other = tokenizer()
    other.enable_truncation(3)
    other.enable_padding(length=32, pad_id=3, pad_token="[PAD]")  # noqa: S106

    made = fitted(tmp_path, other).encode(texts("the first boats came", "boats"), SPECS)

    assert (2, 6) == made[IDS].shape
    assert [6, 3] == made[MASK].sum(1).tolist()
    assert ids("[PAD]") * 3 == made[IDS][1, 3:].tolist()


def test_padding_token(tmp_path: Path) -> None:
    """Padding is what `text.pad` says, else what the file says, else what it is usually called."""
    says = tokenizer()
    says.enable_padding(pad_id=1, pad_token="[UNK]")  # noqa: S106

    assert 3 == loaded(tmp_path).pad
    assert 1 == loaded(tmp_path, says).pad
    assert 0 == loaded(tmp_path, says, pad="[SEP]").pad
    assert {IDS: 0} == loaded(tmp_path, says, pad="[SEP]").fills


def without_pad() -> Tokenizer:
    """A tokenizer that has no token by any name of padding."""
    return Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))  # noqa: S106


def on_the_left() -> Tokenizer:
    """A tokenizer that pads on the left."""
    made = tokenizer()
    made.enable_padding(direction="left", pad_id=3, pad_token="[PAD]")  # noqa: S106
    return made


@pytest.mark.parametrize(
    ("made", "pad", "part"),
    [
        (without_pad, None, "has no token '[PAD]' or '<pad>' or '<|pad|>' to pad with (text.pad)"),
        (tokenizer, "[pad]", "has no token '[pad]' to pad with (text.pad)"),
        (without_pad, "", "has no token"),
        (on_the_left, None, "pads on the left"),
    ],
)
def test_refused_padding(tmp_path: Path, made: Callable[[], Tokenizer], pad: str | None, part: str) -> None:
    """A tokenizer without a padding token, or which pads where buckets do not grow, is refused by its path."""
    with pytest.raises(ConfigurationError) as refused:
        loaded(tmp_path, made(), pad=pad)

    assert str(refused.value).startswith(f"{tmp_path / 'tokenizer.json'}: ")
    assert part in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"[]",
        b"null",
        b"not JSON",
        b"\xff\xfe",
        b"\x80\x04]\x94.",
        b'{"model": {}}',
        b'{"version": "1.0", "model": {"type": "WordLevel", "vocab": 3, "unk_token": "a"}}',
        b'{"version": "1.0", "model": {"type": "NoSuch", "vocab": {}}}',
        b"[" * 100_000,
        b"",
    ],
)
def test_not_a_tokenizer(tmp_path: Path, content: bytes) -> None:
    """A file of another kind is refused in one line, by its path and the check."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)

    with pytest.raises(ConfigurationError, match=f"^{path}: not a tokenizer: ") as refused:
        Text(path, "text", longest=10, truncates=True, pad=None)

    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_truncated_file(tmp_path: Path) -> None:
    """A file that was cut off is refused, wherever it was cut."""
    path = saved(tmp_path)
    whole = path.read_bytes()
    for part in (1, 10, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:part])
        with pytest.raises(ConfigurationError, match=f"^{path}: not a tokenizer: "):
            Text(path, "text", longest=10, truncates=True, pad=None)


def test_library_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library is not installed, the line says which and for what."""
    path = saved(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)

    with pytest.raises(ConfigurationError, match=f"^{path}: .*tokenizers.* not installed"):
        Text(path, "text", longest=10, truncates=True, pad=None)


def test_bucket_smaller_than_the_special_tokens(tmp_path: Path) -> None:
    """A bucket into which not even the special tokens go is refused when the model is loaded, or holds what it can."""
    text = loaded(tmp_path)
    try:
        text.fit(1, 1, fixed=False)
        made = text.encode(texts("boats"), SPECS)
    except (ExitError, BadInputError) as refused:
        assert "1" in str(refused)  # noqa: PT017 - either is right
    else:
        assert (1, 1) == made[IDS].shape


@pytest.mark.parametrize("truncates", [True, False])
def test_sentences_fill_their_bucket(tmp_path: Path, truncates: bool) -> None:  # noqa: FBT001
    """Made-up texts have as many tokens as their bucket holds, at most the word that goes over it fewer, and differ by row."""
    lengths = [4, 8, 16, 32, 64, 128, 200]
    text = fitted(tmp_path, tokens=200, truncates=truncates, longest=10_000)

    made = text.sentences(lengths * 4)
    counts = text.encode(made, SPECS)[MASK].sum(1).tolist()

    assert all(length // 2 < count <= length for length, count in zip(lengths * 4, counts, strict=True))
    assert len(made) == len(set(made))
    assert made.dtype == object
    assert all(isinstance(item, bytes) for item in made)
    assert (made == text.sentences(lengths * 4)).all()


@pytest.mark.parametrize("truncates", [True, False])
def test_sentences_of_long_words(tmp_path: Path, truncates: bool) -> None:  # noqa: FBT001
    """Also where one word is more tokens than a bucket holds, a text is made that fits into it."""
    text = fitted(tmp_path, pieces(), tokens=40, truncates=truncates)
    lengths = [1, 2, 3, 5, 8, 40]

    counts = text.encode(text.sentences(lengths), SPECS[:2])[MASK].sum(1).tolist()

    assert all(1 <= count <= length for length, count in zip(lengths, counts, strict=True))


def test_sentences_are_short_enough(tmp_path: Path) -> None:
    """Made-up texts are no longer than a text may be, else no model with a small `max_bytes` could be warmed."""
    text = fitted(tmp_path, tokens=64, longest=50)

    made = text.encode(text.sentences([64, 8]), SPECS)

    assert 2 == len(made[IDS])


def test_several_threads(tmp_path: Path) -> None:
    """One tokenizer answers several threads at once as it answers one."""
    text = fitted(tmp_path, tokens=64)
    given = [text.sentences([length]) for length in range(4, 64)]
    expected = [text.encode(each, SPECS)[IDS].tolist() for each in given]

    with ThreadPoolExecutor(4) as pool:
        assert expected == [made[IDS].tolist() for made in pool.map(lambda each: text.encode(each, SPECS), given)]


# With a model behind it.


def sums(inputs: Tensors) -> dict[str, Array]:
    """An answer per text, and one per token, that are wrong unless padding is masked."""
    masked = inputs[IDS] * inputs[MASK]
    return {"sum": masked.sum(1).astype(np.float32), "tokens": inputs[IDS] * 10}


OUTPUTS = (TensorSpec("sum", "FP32", (ANY,), ("n",)), TensorSpec("tokens", "INT64", (ANY, ANY), ("n", "length")))


def served(  # noqa: PLR0913 - a test names the one or two that it is about
    folder: Path,
    *,
    inputs: tuple[TensorSpec, ...] | None = None,
    outputs: tuple[TensorSpec, ...] = OUTPUTS,
    python: OperatorPython | None = None,
    answer: Callable[[Tensors], dict[str, Array]] = sums,
    text: Text | None = None,
    inputs_seen: list[TensorTable] | None = None,
    **toml: Any,
) -> Model:
    """A model of ids and mask with a tokenizer in front, that runs 1 or 4 texts of up to 8 or 16 tokens."""
    axes = ("n", "length")
    own = inputs if inputs is not None else tuple(TensorSpec(name, "INT64", (ANY, ANY), axes) for name in (IDS, MASK))
    declared = ModelToml(
        **{"batch_sizes": [1, 4], "axes": {"length": [8, 16]}, "text": TextTable(), "inputs": inputs_seen, **toml}
    )
    (folder / "1").mkdir(exist_ok=True)
    return Model(
        files=ModelFiles("m", 1, folder / "1", declared),
        python=python or OperatorPython(),
        session=FakeSession(answer, own, outputs),
        platform="fake",
        text=text or loaded(folder),
    )


def runs(model: Model) -> list[Tensors]:
    """What the model ran on."""
    assert isinstance(model.session, FakeSession)
    return model.session.runs


def test_model_with_text(tmp_path: Path) -> None:
    """Clients send texts; they run in the smallest bucket, filled with padding, and what padding added is cut off again."""
    model = served(tmp_path)
    assert (TensorSpec("text", "BYTES", (ANY,), ("batch",)),) == model.inputs

    answer = model.infer({"text": texts("gulls followed", "boats", "the first boats came home")})

    (ran,) = runs(model)
    assert {(4, 8)} == {array.shape for array in ran.values()}
    assert ids("[CLS]", "gulls", "followed", "[SEP]") + ids("[PAD]") * 4 == ran[IDS][0].tolist()
    assert ids("[PAD]") * 8 == ran[IDS][3].tolist()
    assert [4, 3, 7, 0] == ran[MASK].sum(1).tolist()
    assert (3, 7) == answer["tokens"].shape
    assert [sum(ids("[CLS]", *words, "[SEP]")) for words in (["gulls", "followed"], ["boats"])] == answer["sum"][:2].tolist()


def test_longer_texts_take_a_longer_bucket(tmp_path: Path) -> None:
    """Nine tokens go into sixteen; what is longer still is cut, or refused, as `model.toml` says."""
    model = served(tmp_path)
    nine, twenty = ("boats " * count for count in (7, 18))

    answers = [model.infer({"text": texts(text)}) for text in (nine, twenty)]

    assert [(1, 16), (1, 16)] == [ran[IDS].shape for ran in runs(model)]
    assert [(1, 9), (1, 16)] == [answer["tokens"].shape for answer in answers]
    strict = served(tmp_path, text=loaded(tmp_path, truncates=False))
    with pytest.raises(BadInputError, match=r"row 0: a text may have 16 tokens, has 20"):
        strict.infer({"text": texts(twenty)})


def test_every_bucket_is_warmed_with_text(tmp_path: Path) -> None:
    """Warming and the proof run every bucket, on words and not on noise, and find the rows of texts independent."""
    model = served(tmp_path)

    warm.once(model, lambda _: None)

    assert [(1, 8), (1, 16), (4, 8), (4, 16)] == [ran[IDS].shape for ran in runs(model)]
    for ran in runs(model):
        assert (ran[MASK].sum(1) > ran[IDS].shape[1] // 2).all()
        assert len({row.tobytes() for row in ran[IDS]}) == len(ran[IDS])
        assert (ran[IDS] == VOCABULARY["[UNK]"]).mean() < 0.2
    assert not proof.rows_differ(model)
    proof.prove(model, 2, lambda _: None)


def test_texts_of_all_lengths_side_by_side(tmp_path: Path) -> None:
    """The batch in which rows are compared with themselves alone has rows of all buckets, so that most are padded."""
    model = served(tmp_path)

    mixed = samples.mixed(model, 4)

    counts = next(model.prepare(mixed)).inputs[MASK].sum(1)
    assert [8, 16, 8, 16] == [8 if count <= 8 else 16 for count in counts]


def test_a_model_that_looks_at_padding_is_found(tmp_path: Path) -> None:
    """A model whose answer is another one once a text is padded further is not batched."""
    model = served(tmp_path, answer=lambda inputs: sums(inputs) | {"sum": inputs[IDS].sum(1).astype(np.float32)})

    assert "another one alone" in proof.rows_differ(model)


def test_fixed_length(tmp_path: Path) -> None:
    """A model of one length gets that, without buckets."""
    own = tuple(TensorSpec(name, "INT64", (ANY, 12), ("n", None)) for name in (IDS, MASK))
    model = served(tmp_path, inputs=own, outputs=OUTPUTS[:1], axes={}, answer=lambda inputs: {"sum": sums(inputs)["sum"]})

    model.infer({"text": texts("boats", "gulls")})

    assert {(4, 12)} == {array.shape for array in runs(model)[0].values()}
    warm.once(model, lambda _: None)


def test_other_inputs_stay(tmp_path: Path) -> None:
    """What the tokenizer does not make, clients send beside the text."""
    scale = TensorSpec("scale", "FP32", (ANY,), ("n",))
    own = (*(TensorSpec(name, "INT64", (ANY, ANY), ("n", "length")) for name in (IDS, MASK)), scale)
    model = served(tmp_path, inputs=own)

    model.infer({"text": texts("boats"), "scale": np.ones(1, np.float32)})

    assert ["text", "scale"] == [spec.name for spec in model.inputs]
    assert {IDS, MASK, "scale"} == set(runs(model)[0])
    with pytest.raises(BadInputError, match=r"^axis 'batch' is "):
        model.infer({"text": texts("boats", "boats"), "scale": np.ones(1, np.float32)})


def test_name_and_preprocess(tmp_path: Path) -> None:
    """The operator's Python may make the text of what clients send; the tensor has the name that `model.toml` gives it."""

    def preprocess(inputs: dict[str, Array]) -> dict[str, Array]:
        return {"sentence": texts(*(b"the " + word for word in inputs["word"]))}

    text = Text(saved(tmp_path), "sentence", longest=100, truncates=True, pad=None)
    word = TensorTable("word", "BYTES", [-1])
    model = served(tmp_path, text=text, python=OperatorPython(preprocess=preprocess), inputs_seen=[word])

    model.infer({"word": texts("boats")})

    assert ["word"] == [spec.name for spec in model.inputs]
    assert ids("[CLS]", "the", "boats", "[SEP]") == runs(model)[-1][IDS][0, :4].tolist()


@pytest.mark.parametrize(
    ("names", "shape", "axes", "toml", "part"),
    [
        (
            ["tokens"],
            (ANY, ANY),
            ("n", "length"),
            {},
            "[text] needs a model with input_ids of two axes, this one has tokens [-1, -1]",
        ),
        ([IDS], (ANY,), ("n",), {"axes": {}}, "[text] needs a model with input_ids of two axes, this one has input_ids [-1]"),
        ([IDS], (ANY, ANY), ("n", "length"), {"axes": {}}, "[text] needs length buckets, axes.length = [...]"),
    ],
)
def test_models_that_take_no_text(tmp_path: Path, names: list[str], shape: Any, axes: Any, toml: Any, part: str) -> None:
    """A model that a tokenizer does not fit is refused with what it has, or with the key that is missing."""
    with pytest.raises(ConfigurationError) as refused:
        served(tmp_path, inputs=tuple(TensorSpec(name, "INT64", shape, axes) for name in names), outputs=OUTPUTS[:1], **toml)

    assert f"{tmp_path / 'model.toml'}: {part}" == str(refused.value)


def test_golden_texts(tmp_path: Path) -> None:
    """Golden samples of such a model are texts, and their answers what the tokenizer and the model make of them."""
    answer = float(sum(ids("[CLS]", "boats", "[SEP]")))
    sample = {"inputs": {"text": ["boats"]}, "outputs": {"sum": [answer]}}
    (tmp_path / "one.json").write_text(json.dumps(sample), encoding="utf-8")

    proof.golden(served(tmp_path, golden=["one.json"]))


def test_model_table_is_not_what_clients_see(tmp_path: Path) -> None:
    """`[[model.inputs]]` says what the tokenizer gives, and clients still send text."""
    own = [TensorTable(name, "INT64", [-1, "length"]) for name in (IDS, MASK)]

    assert ["text"] == [spec.name for spec in served(tmp_path, model=ModelTable(inputs=own)).inputs]


def test_too_many_texts(tmp_path: Path) -> None:
    """More texts than a batch holds are refused before any is looked at: what they would take has no bound."""
    text = fitted(tmp_path)
    with pytest.raises(BadInputError, match=r"input 'text' may have 32 texts, has 33"):
        text.encode(np.array([b"\xff"] * 33, object), ())
