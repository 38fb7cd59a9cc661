from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxtransfer.errors import FormatError, ReferenceNotFoundError
from jaxtransfer.formats.wordvectors import (
    NGrams,
    WordVectors,
    inspect,
    matches,
    read,
    read_word_vectors,
)

FASTTEXT = Path(__file__).parent / "fixtures" / "fasttext"

# No blank and no line end, which separate words from what follows.
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1, max_size=9)
NUMBERS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=6),
    elements=st.floats(-(2.0**99), 2.0**99, width=32),
)


def lines_of(words: list[str], vectors: np.ndarray) -> str:
    rows = (" ".join(repr(float(value)) for value in row) for row in vectors)
    return "".join(f"{word} {row}\n" for word, row in zip(words, rows, strict=True))


def binary_of(words: list[bytes], vectors: np.ndarray, end: bytes = b"\n") -> bytes:
    rows = zip(words, vectors.astype("<f4"), strict=True)
    header = b"%d %d\n" % vectors.shape
    return header + b"".join(word + b" " + row.tobytes() + end for word, row in rows)


def is_claimed(path: Path) -> bool:
    return matches(path.read_bytes()[:1024], path)


def stored(folder: Path, content: bytes | str) -> Path:
    path = folder / "a.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@given(NUMBERS, st.data(), st.sampled_from(["text", "GloVe", "binary", "binary without line ends"]))
def test_each_layout_gives_words_and_vectors_bit_for_bit(vectors, data, layout):
    words = data.draw(st.lists(WORDS, min_size=len(vectors), max_size=len(vectors)))
    if "binary" in layout:
        end = b"" if "without" in layout else b"\n"
        content = binary_of([word.encode() for word in words], vectors, end)
    else:
        header = f"{len(vectors)} {vectors.shape[1]}\n" if layout == "text" else ""
        content = (header + lines_of(words, vectors)).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = stored(Path(folder), content)
        found, flat = read_word_vectors(path), read(path)
        tensors = inspect(path).tensors
    assert found.words == tuple(words)
    assert found.vectors.tobytes() == vectors.tobytes() == flat["vectors"].tobytes()
    assert [tensor.shape for tensor in tensors] == [vectors.shape]
    assert list(flat) == ["vectors"] and flat["vectors"].dtype == np.float32
    for word in words:
        first = vectors[words.index(word)]
        assert found[word].tobytes() == found.vector(word).tobytes() == first.tobytes()


VARIANTS = {
    "Windows line ends": "2 3\r\ncat 1.5 2 3\r\ndog 4 5 6e-1\r\n",
    "a blank at the end of each line": "2 3 \ncat 1.5 2 3 \ndog 4 5 6e-1 \n",
    "no line end at the end": "cat 1.5 2 3\ndog 4 5 6e-1",
    "empty lines": "cat 1.5 2 3\n\n \ndog 4 5 6e-1\n\n\n",
    "more than one blank": "cat  1.5 2   3\ndog 4 5 6e-1\n",
    "tabs": "cat\t1.5\t2\t3\ndog\t4\t5\t6e-1\n",
    "tabs between some": "cat 1.5 2 3\ndog 4\t5 6e-1\n",
}


@pytest.mark.parametrize("content", VARIANTS.values(), ids=VARIANTS)
def test_lines_may_be_written_in_other_ways(tmp_path, content):
    path = stored(tmp_path, content)
    found = read_word_vectors(path)
    assert found.words == ("cat", "dog")
    np.testing.assert_array_equal(found.vectors, np.float32([[1.5, 2, 3], [4, 5, 0.6]]))
    assert is_claimed(path)


@pytest.mark.parametrize("odd", [". . .", "at name@domain.com", "1 2", "\u00a0 \u2028", "0.5"])
def test_words_with_blanks_and_numbers_as_words(tmp_path, odd):
    words = ["the", odd, "of", "2"]
    vectors = np.arange(1.25, 13.25, dtype=np.float32).reshape(4, 3)
    path = stored(tmp_path, lines_of(words, vectors))
    found = read_word_vectors(path)
    assert found.words == tuple(words)
    np.testing.assert_array_equal(found.vectors, vectors)
    assert is_claimed(path)


def test_the_number_of_values_is_that_of_most_lines(tmp_path):
    path = stored(tmp_path, "7 8 0.1 0.2\n" + "the 0.1 0.2\n" * 2)
    assert read_word_vectors(path).words[0] == "7 8"


@pytest.mark.parametrize("is_binary", [True, False])
def test_bytes_that_are_no_utf8_keep_words_apart(tmp_path, is_binary):
    raw = [b"caf\xc3", b"caf\xe9", "café".encode()]
    vectors = np.arange(1.5, 7.5, dtype=np.float32).reshape(3, 2)
    text = b"".join(b"%s %g %g\n" % (word, *row) for word, row in zip(raw, vectors, strict=True))
    found = read_word_vectors(stored(tmp_path, binary_of(raw, vectors) if is_binary else text))
    assert [word.encode("utf-8", "surrogateescape") for word in found.words] == raw
    assert len(set(found.words)) == 3 and "café" in found and found["café"][0] == 5.5


def test_repeated_words_keep_their_rows_and_the_first_counts(tmp_path):
    path = stored(tmp_path, "the 1.5 1\nof 2 2\nthe 3 3\nof 4 4\nand 5 5\n")
    found = read_word_vectors(path)
    assert found.words == ("the", "of", "the", "of", "and") and len(found.vectors) == 5
    assert found.repeated == ("the", "of")
    assert found["the"].tolist() == [1.5, 1] and found["of"].tolist() == [2, 2]
    assert found.index == {"the": 0, "of": 1, "and": 4}
    assert WordVectors(("a",), found.vectors[:1]).repeated == ()


def test_a_word_that_is_not_there(tmp_path):
    found = read_word_vectors(stored(tmp_path, "the 1.5 1\nof 2 2\n"))
    assert "The" not in found and "the" in found
    with pytest.raises(KeyError, match="The"):
        found["The"]


def test_many_lines_and_long_ones_are_read_in_pieces(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(900, 257)).astype(np.float32)
    words = [f"wörd{number}" for number in range(900)]
    path = stored(tmp_path, lines_of(words, vectors))
    assert path.stat().st_size > 4 * 2**20
    found = read_word_vectors(path)
    assert found.words == tuple(words)
    assert found.vectors.tobytes() == vectors.tobytes()
    assert is_claimed(path)
    path = stored(tmp_path, binary_of([word.encode() for word in words], np.tile(vectors, 5)))
    assert read(path)["vectors"].tobytes() == np.tile(vectors, 5).tobytes()


def test_strange_numbers_are_numbers(tmp_path):
    found = read(stored(tmp_path, "a nan 1.5\nb -inf +.5\nc 1E3 -2.\nd 1e-60 1e60\n"))["vectors"]
    expected = np.float32([[np.nan, 1.5], [-np.inf, 0.5], [1000, -2], [0, np.inf]])
    np.testing.assert_array_equal(found, expected)


GOOD = "the 0.1 0.2 0.3\nof 0.1 0.2 0.3\n"
BAD_LINES = {
    "too few numbers": "cat 0.1 0.2\n",
    "a word among the numbers": "cat 0.1 x 0.3\n",
    "two numbers in one": "cat 0.1-0.2 0.3 0.4\n",
    "two numbers in one and one missing": "cat 0.1-0.2  0.3\n",
    "two numbers in one, and a tab for one": "cat 0.1-0.2 \t 0.3\n",
    "something behind the last": "cat 0.1 0.2 0.3x\n",
    "another decimal point": "cat 0,1 0,2 0,3\n",
    "underscores": "cat 1_0 2 3\n",
    "hexadecimal digits": "cat 0x10 2 3\n",
    "only a word": "cat\n",
    "a cut line": "cat 0.1",
    "a long line": "x" * 2**21 + "\n",
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_a_line_that_does_not_fit_is_named_by_its_byte(tmp_path, line):
    path = stored(tmp_path, GOOD + line)
    for function in (read, read_word_vectors):
        with pytest.raises(FormatError, match=rf"a\.txt: .*found at byte {len(GOOD)}: a line"):
            function(path)


def test_what_is_missing_in_one_line_is_not_made_up_by_another(tmp_path):
    bad = "cat 0.1 \v 0.3\ndog 0.1-0.2 0.3 0.4\n"
    with pytest.raises(FormatError, match=f"found at byte {2 * len(GOOD)}: a line with 2 numbers"):
        read(stored(tmp_path, GOOD + GOOD + bad))


@pytest.mark.parametrize("rows", [1, 3])
def test_another_number_of_lines_than_the_first_one_tells(tmp_path, rows):
    with pytest.raises(FormatError, match=r"(more words than the 1|2 words, where .* tells of 3)"):
        read(stored(tmp_path, f"{rows} 3\n{GOOD}"))


BINARY = binary_of([b"the", b"of"], np.float32([[0.5, -2], [3, -4]]))
BAD_FILES = {
    "nothing": b"",
    "a binary file with a row too few": BINARY.replace(b"2 2", b"1 2"),
    "a binary file with a row too many": BINARY.replace(b"2 2", b"3 2"),
    "absurd rows": BINARY.replace(b"2 2", b"999999999999 2"),
    "absurd values": BINARY.replace(b"2 2", b"1 999999999"),
    "no values": BINARY.replace(b"2 2", b"2 0"),
    "no rows": BINARY.replace(b"2 2", b"0 2"),
    "absurd rows of text": f"999999999999 3\n{GOOD}".encode(),
    "an endless word": b"1 1\n" + b"\xff" * 2**17,
    "text after the number of words": b"2 2\n" + b"this is some text\n" * 9,
    "bytes after the last row": BINARY + b"more",
    "noise": np.random.default_rng(0).bytes(2000),
    "one line of numbers": b"1 " * 2**20,
    "text": b"A line of text.\nAnother one.\n",
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_a_damaged_file_is_a_format_error(tmp_path, content):
    path = stored(tmp_path, content)
    for function in (read, read_word_vectors):
        with pytest.raises(FormatError, match=r"a\.txt: expected .*found at byte \d+: \S"):
            function(path)


def test_every_truncation_of_a_binary_file_is_a_format_error(tmp_path):
    # The last line end may be missing.
    for length in range(len(BINARY) - 1):
        with pytest.raises(FormatError):
            read(stored(tmp_path, BINARY[:length]))
    assert read(stored(tmp_path, BINARY[:-1]))["vectors"].shape == (2, 2)


def test_many_tiny_words_are_refused_before_they_fill_the_memory(tmp_path):
    path = stored(tmp_path, "a 1 .5\n" * 200_000)
    assert read(path)["vectors"].shape == (200_000, 2)
    with pytest.raises(FormatError, match="words and vectors of 51600000 bytes"):
        read_word_vectors(path)


OTHERS = {
    "nothing": "",
    "prose": "The cat sat on the mat.\nIt was 2 or 3 years old.\n",
    "csv": "name,a,b\ncat,0.1,0.2\n",
    "csv with blanks": "cat, 0.1, 0.2\ndog, 0.3, 0.4\n",
    "a Git LFS pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12\n",
    "html": "<!doctype html>\n<html>\n</html>\n",
    "JSON": '{"a": [0.1, 0.2],\n "b": [0.3, 0.4]}\n',
    "prototxt": "layer {\n  name: 0.1\n}\n",
    "a table of numbers": "0.1 0.2 0.3\n0.4 0.5 0.6\n",
    "a table of whole numbers": "cat 1 2\ndog 3 4\n",
    "corners of a mesh": "v 0.1 0.2 0.3\nv 0.4 0.5 0.6\n",
    "a single line": "cat 0.1 0.2 0.3\n",
    "words with one number": "cat 0.1\ndog 0.2\n",
    "lines of different lengths": "cat 0.1 0.2\ndog 0.1 0.2 x 0.3\n",
    "a graph": "3 2\n1 2\n2 3\n",
    "two numbers and text": "12 40\n" + "some text\n" * 400,
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_other_text_is_not_claimed(tmp_path, content):
    assert not is_claimed(stored(tmp_path, content))


def test_word_vectors_are_claimed(tmp_path):
    truncated = BINARY[:-5]
    for content in (GOOD, f"2 3\n{GOOD}", BINARY, truncated):
        assert is_claimed(stored(tmp_path, content))
    assert not matches(b"", tmp_path)
    assert not matches(b"the 0.1", tmp_path / "absent")


def test_nothing_there_and_a_folder_there(tmp_path):
    for function in (read, inspect, read_word_vectors):
        with pytest.raises(ReferenceNotFoundError, match="absent"):
            function(tmp_path / "absent")
        with pytest.raises(FormatError):
            function(tmp_path)


def expected_of_fasttext() -> dict:
    return json.loads((FASTTEXT / "expected.json").read_text(encoding="utf-8"))


def test_a_fasttext_model_gives_the_vectors_that_fasttext_gives():
    expected = expected_of_fasttext()
    found = read_word_vectors(FASTTEXT / "skipgram.bin")
    assert list(found.words) == expected["words"]
    assert found.ngrams == NGrams(shortest=2, longest=4, buckets=37)
    for word, vector in expected["vectors"].items():
        np.testing.assert_allclose(found[word], np.float32(vector), rtol=1e-5, atol=1e-6)
        assert (word in found) == (word in expected["words"])
        if word in found:
            np.testing.assert_array_equal(found.vectors[found.index[word]], found[word])
    assert not {"cats", "straßen", "本日", "🙂"} & set(found.words) and "</s>" in found
    assert found.vectors.shape == (len(found.words), 5)
    with pytest.raises(KeyError):
        WordVectors(("a",), np.ones((1, 2), np.float32), NGrams(5, 5, 9))["b"]


def test_the_matrices_of_a_fasttext_model_are_views(tmp_path):
    expected = expected_of_fasttext()
    path = FASTTEXT / "skipgram.bin"
    flat, inspection = read(path), inspect(path)
    assert is_claimed(path)
    assert {name: array.shape for name, array in flat.items()} == {
        "input": (16 + 37, 5),
        "output": (16, 5),
    }
    assert [(tensor.name, tensor.shape) for tensor in inspection.tensors] == [
        (name, array.shape) for name, array in flat.items()
    ]
    for name, array in flat.items():
        assert array.sum(dtype=np.float64) == pytest.approx(expected[f"{name}_sum"], abs=1e-6)
        assert array.dtype == np.float32
        assert not array.flags.owndata and not array.flags.writeable
    settings = {"model": "sg", "loss": "ns", "dim": "5", "minn": "2", "maxn": "4", "bucket": "37"}
    assert settings.items() <= inspection.metadata.items()


def test_a_supervised_fasttext_model_has_labels():
    expected = expected_of_fasttext()
    path = FASTTEXT / "supervised.bin"
    found, metadata = read_word_vectors(path), inspect(path).metadata
    assert list(found.words) == expected["supervised_words"]
    assert metadata["labels"].split() == expected["supervised_labels"]
    np.testing.assert_array_equal(read(path)["output"], np.float32(expected["supervised_output"]))
    for word, vector in expected["supervised_vectors"].items():
        np.testing.assert_allclose(found[word], np.float32(vector), rtol=1e-5, atol=1e-6)


def changed(offset: int, format: str, value: float) -> bytes:
    content = bytearray((FASTTEXT / "skipgram.bin").read_bytes())
    struct.pack_into(format, content, offset, value)
    return bytes(content)


FIRST_WORD, INPUT = 92, 1730 - 2 * 17 - 4 * 5 * (53 + 16)
BAD_MODELS = {
    "another version": (4, "<i", 13, "version 13"),
    "negative dim": (8, "<i", -5, "settings"),
    "absurd n-grams": (48, "<i", 2**30, "settings"),
    "another dim": (8, "<i", 6, "5, where dim is 6"),
    "absurd entries": (64, "<i", 2**30, "entries"),
    "other counts": (68, "<i", 15, "16 entries of 15 words"),
    "fewer buckets": (40, "<i", 36, "53 rows for 16 words and 36 buckets"),
    "a label among words": (FIRST_WORD + 12, "<b", 1, "a label among words"),
    "absurd rows": (INPUT + 1, "<q", 2**60, "input with"),
    "negative rows": (INPUT + 1, "<q", -53, "input with the shape"),
}


@pytest.mark.parametrize("change", BAD_MODELS.values(), ids=BAD_MODELS)
def test_a_damaged_fasttext_model_is_a_format_error(tmp_path, change):
    *where, found = change
    path = stored(tmp_path, changed(*where))
    for function in (read, inspect, read_word_vectors):
        with pytest.raises(FormatError, match=rf"a\.txt: .*found at byte \d+: .*{found}"):
            function(path)


@pytest.mark.parametrize("change", [(INPUT, "<b", 1), (84, "<q", 0), (84, "<q", 7)])
def test_a_quantised_fasttext_model_is_refused_by_name(tmp_path, change):
    for function in (read, inspect, read_word_vectors):
        with pytest.raises(FormatError, match=r"quantised or pruned model \(\.ftz\)"):
            function(stored(tmp_path, changed(*change)))


def test_supervised_models_of_version_11_have_no_ngrams(tmp_path):
    content = bytearray((FASTTEXT / "supervised.bin").read_bytes())
    content[4] = 11
    found = read_word_vectors(stored(tmp_path, bytes(content)))
    np.testing.assert_array_equal(found["rise"], found.matrix[found.index["rise"]])


def test_every_truncation_of_a_fasttext_model_is_a_format_error(tmp_path):
    content = (FASTTEXT / "supervised.bin").read_bytes()
    for length in range(0, len(content), 2):
        with pytest.raises(FormatError):
            read(stored(tmp_path, content[:length]))
    with pytest.raises(FormatError, match="1 bytes after the last matrix"):
        read(stored(tmp_path, content + b"x"))


REAL = {
    # The sums are those of gensim's KeyedVectors.load_word2vec_format (4.4).
    "glove_twitter_25d_12k.txt": ("GloVe text", (11_925, 25), -35884.142592908705, 1123, 6163),
    "googlenews300_top1000.w2v.txt": ("word2vec text", (1_000, 300), -219.38024401991345, 219, 258),
}


@pytest.mark.parametrize("name", REAL)
def test_real_word_vectors_solve_as_many_analogies_as_they_should(real_data, name):
    layout, shape, total, expected, asked = REAL[name]
    path, questions = real_data / "text" / name, real_data / "text" / "questions-words.txt"
    if not (path.exists() and questions.exists()):
        pytest.skip(f"no {path.name} in {real_data}")
    assert is_claimed(path)
    inspection = inspect(path)
    assert inspection.metadata["layout"] == layout
    assert inspection.tensors[0].shape == shape
    found = read_word_vectors(path)
    assert found.vectors.shape == shape and len(found.words) == shape[0]
    assert found.repeated == ()
    assert found.vectors.sum(dtype=np.float64) == pytest.approx(total, abs=1e-6)

    lines = questions.read_text().splitlines()
    fours = [line.lower().split() for line in lines if not line.startswith(":")]
    rows = [
        [found.index[word] for word in four] for four in fours if all(map(found.index.get, four))
    ]
    rows = np.array(rows)
    unit = found.vectors / np.linalg.norm(found.vectors, axis=1, keepdims=True)
    correct = 0
    for part in np.array_split(rows, 8):
        scores = (unit[part[:, 1]] - unit[part[:, 0]] + unit[part[:, 2]]) @ unit.T
        np.put_along_axis(scores, part[:, :3], -np.inf, axis=1)  # No answer may repeat a question.
        correct += int(np.sum(scores.argmax(axis=1) == part[:, 3]))
    assert (correct, len(rows)) == (expected, asked)


def test_no_other_real_file_is_claimed(real_data):
    claimed = set()
    for path in real_data.rglob("*"):
        if path.is_file() and is_claimed(path):
            claimed.add(path)
    assert claimed <= {real_data / "text" / name for name in REAL}
