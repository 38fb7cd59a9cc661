"""Word vectors: word2vec's binary and text files, GloVe's text, fastText's `.vec` and `.bin`.

`read` gives the matrices alone, row by row as the file has them; `read_word_vectors` gives them
with their words. Words are UTF-8; bytes that are not (word2vec cuts long words anywhere) become
lone surrogates, as Python does with file names (`surrogateescape`), so that no two words become
one and `word.encode("utf-8", "surrogateescape")` gives the file's bytes back.

Sources: `word2vec.c` of https://code.google.com/archive/p/word2vec (a line with the number of words
and of values; then a word, a blank and its values, as float32 or as text), the text files of
https://nlp.stanford.edu/projects/glove (the same without a first line; a few words of
`glove.840B.300d` have blanks in them), `src/fasttext.cc`, `src/args.cc`, `src/dictionary.cc` and
`src/densematrix.cc` of https://github.com/facebookresearch/fastText.
"""

from __future__ import annotations

import functools
import itertools
import mmap
import re
import struct
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from jaxtransfer.errors import FormatError
from jaxtransfer.formats.base import (
    Damage,
    Inspection,
    PathLike,
    Reader,
    TensorInfo,
    array_at,
    check_size,
    map_file,
    reading,
)

NAME = "word vectors"

_FLOAT = np.dtype(np.float32)
_BLOCK_BYTES = 2**20
_LONGEST_WORD = 2**16
_HEADER = re.compile(rb"(\d{1,12})[ \t]+(\d{1,9})[ \t]*\r?\n")
_BLANKS = b" \t\r"
_NUMBER = re.compile(rb"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|nan|inf)", re.IGNORECASE)


@dataclass(frozen=True)
class NGrams:
    """How fastText cuts words into n-grams.

    Attributes:
        shortest: the least number of characters of an n-gram (`minn`).
        longest: the greatest number (`maxn`); 0 for none.
        buckets: how many rows all n-grams share (`bucket`).
    """

    shortest: int
    longest: int
    buckets: int

    def rows(self, word: bytes) -> list[int]:
        """The bucket of each n-gram of a word between `<` and `>`, in fastText's order.

        A character is a byte and the UTF-8 continuation bytes behind it.

        >>> NGrams(2, 3, 1000).rows(b"a")  # <a, <a>, a>
        [750, 600, 806]
        """
        if word == _END_OF_SENTENCE or not self.buckets:
            return []
        text = b"<" + word + b">"
        starts = [place for place, byte in enumerate(text) if byte & 0xC0 != 0x80]
        characters = [text[a:b] for a, b in itertools.pairwise([*starts, len(text)])]
        rows = []
        for first in range(len(characters)):
            value = _FNV_BASIS
            for last in range(first, min(first + self.longest, len(characters))):
                for byte in characters[last]:
                    # FNV-1a, but fastText's bytes have a sign.
                    signed = byte if byte < 0x80 else byte | 0xFFFFFF00
                    value = (value ^ signed) * _FNV_PRIME & 0xFFFFFFFF
                is_bracket = first == last and first in (0, len(characters) - 1)
                if last - first + 1 >= self.shortest and not is_bracket:
                    rows.append(value % self.buckets)
        return rows


_END_OF_SENTENCE = b"</s>"
_FNV_BASIS = 2166136261
_FNV_PRIME = 16777619


@dataclass(frozen=True, eq=False)
class WordVectors:
    """Words with their vectors.

    A word that a file has twice keeps both rows; its vector is the first one.

    Attributes:
        words: the words, in the order of the file.
        matrix: one row a word; for a fastText `.bin` the words' own rows (which are not their
            vectors) and then one row a bucket of n-grams.
        ngrams: how words are cut into n-grams, for a fastText `.bin`.

    >>> pets = WordVectors(("cat", "dog"), np.array([[1, 0], [0, 1]], np.float32))
    >>> "dog" in pets, pets["dog"].tolist()
    (True, [0.0, 1.0])
    """

    words: tuple[str, ...]
    matrix: np.ndarray
    ngrams: NGrams | None = None

    @functools.cached_property
    def index(self) -> Mapping[str, int]:
        """From each word to its (first) row."""
        rows = range(len(self.words) - 1, -1, -1)
        return dict(zip(reversed(self.words), rows, strict=True))

    @functools.cached_property
    def repeated(self) -> tuple[str, ...]:
        """The words that the file has more than once."""
        if len(self.index) == len(self.words):
            return ()
        return tuple(word for word, count in Counter(self.words).items() if count > 1)

    @functools.cached_property
    def vectors(self) -> np.ndarray:
        """One vector a word.

        Those of a fastText `.bin` are put together when they are first asked for: with two million
        words that takes about a minute, and `vector` gives single ones at once.
        """
        if self.ngrams is None:
            return self.matrix
        vectors = np.empty((len(self.words), self.matrix.shape[1]), _FLOAT)
        for row, word in enumerate(self.words):
            vectors[row] = self._mean([row, *self._ngram_rows(word)])
        return vectors

    def __contains__(self, word: str) -> bool:
        return word in self.index

    def __getitem__(self, word: str) -> np.ndarray:
        return self.vector(word)

    def vector(self, word: str) -> np.ndarray:
        """The vector of a word.

        With a fastText `.bin` it is the mean over the word's own row, if it has one, and the rows
        of its n-grams, so that other words than those of the file have vectors too.

        Raises:
            KeyError: the file has neither the word nor n-grams of it.
        """
        own = [self.index[word]] if word in self.index else []
        rows = [*own, *self._ngram_rows(word)]
        if not rows:
            raise KeyError(word)
        return self._mean(rows) if self.ngrams else self.matrix[rows[0]]

    def _ngram_rows(self, word: str) -> list[int]:
        if self.ngrams is None:
            return []
        rows = self.ngrams.rows(word.encode("utf-8", "surrogateescape"))
        return [len(self.words) + row for row in rows]

    def _mean(self, rows: Sequence[int]) -> np.ndarray:
        return self.matrix[rows].mean(axis=0)


def matches(head: bytes, path: Path) -> bool:
    """Whether a file is a fastText `.bin` or begins with words and as many numbers after each.

    Without a first line that tells their number, two words are needed, not all of them numbers
    and no two the same, and a number with a point: other tables of numbers are no word vectors.
    """
    if head.startswith(_FASTTEXT_MAGIC):
        return True
    try:
        sample = _sample(path)
        layout = _layout(sample)
    except (OSError, Damage):
        return False
    if layout.rows is not None:
        return True
    lines = _whole_lines(sample)[:5]
    parts = [line.rsplit(None, layout.columns) for line in lines]
    words = [first for first, *_ in parts]
    return (
        len(lines) > 1
        and all(_has_numbers(line, layout.columns) for line in lines)
        and not all(_NUMBER.fullmatch(word) for word in words)
        and len(set(words)) == len(words)
        and any(b"." in number for _, *numbers in parts for number in numbers)
    )


def read(path: PathLike) -> dict[str, np.ndarray]:
    """The matrices of a file of word vectors.

    Returns:
        `vectors`, with one row a word in the order of the file (also for words that it repeats);
        for a fastText `.bin` `input` (words, then buckets of n-grams) and `output`, as read-only
        views of a memory map.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the file is damaged, or quantised.
    """
    with reading(path, NAME):
        sample = _sample(path)
        if sample.startswith(_FASTTEXT_MAGIC):
            model = _fasttext(path)
            return {"input": model.input, "output": model.output}
        return {"vectors": _vectors(path, sample, None)}


def inspect(path: PathLike) -> Inspection:
    """Shapes and settings of a file of word vectors, without its values.

    Lines are counted where no first line tells their number.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the file is damaged, or quantised.
    """
    with reading(path, NAME):
        sample = _sample(path)
        if sample.startswith(_FASTTEXT_MAGIC):
            model = _fasttext(path)
            shapes = {"input": model.input.shape, "output": model.output.shape}
            metadata = dict(model.metadata)
        else:
            layout = _layout(sample)
            rows = _row_count(path, layout)
            shapes, metadata = {"vectors": (rows, layout.columns)}, {"layout": layout.name}
    tensors = [
        TensorInfo(name, (rows, columns), _FLOAT.name, rows * columns * _FLOAT.itemsize)
        for name, (rows, columns) in shapes.items()
    ]
    return Inspection(Path(path), NAME, tuple(tensors), metadata)


def read_word_vectors(path: PathLike) -> WordVectors:
    """The words of a file with their vectors.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the file is damaged, or quantised.
    """
    with reading(path, NAME):
        sample = _sample(path)
        raw: list[bytes] = []
        if sample.startswith(_FASTTEXT_MAGIC):
            model = _fasttext(path, raw)
            matrix, ngrams = model.input, model.ngrams
        else:
            matrix, ngrams = _vectors(path, sample, raw), None
        words = tuple(word.decode("utf-8", "surrogateescape") for word in raw)
    return WordVectors(words, matrix, ngrams)


@dataclass(frozen=True)
class _Layout:
    """What the beginning of a file without a magic number says about the rest."""

    name: str
    rows: int | None
    columns: int
    start: int
    is_binary: bool = False


def _sample(path: PathLike) -> bytes:
    with open(path, "rb") as file:
        return file.read(_BLOCK_BYTES)


def _layout(sample: bytes) -> _Layout:
    header = _HEADER.match(sample)
    if header is None:
        if b"\0" in sample:
            raise Damage("no text, and no number of words and values")
        return _Layout("GloVe text", None, _usual_columns(_whole_lines(sample)[:100]), 0)
    rows, columns, start = int(header[1]), int(header[2]), header.end()
    lines = _whole_lines(sample, start)[:5]
    if lines and all(_has_numbers(line, columns) for line in lines):
        return _Layout("word2vec text", rows, columns, start)
    values = sample[sample.find(b" ", start) + 1 :][: columns * _FLOAT.itemsize]
    if b" " not in sample[start : start + _LONGEST_WORD] or (
        values.isascii() and b"\0" not in values
    ):
        raise Damage(f"no word and {columns} values after the first line", start)
    return _Layout("word2vec binary", rows, columns, start, is_binary=True)


def _whole_lines(sample: bytes, start: int = 0) -> list[bytes]:
    lines = sample[start:].split(b"\n")
    if len(sample) == _BLOCK_BYTES and len(lines) > 1:
        lines.pop()  # The sample may end within it.
    return [line for line in lines if line.strip()]


def _has_numbers(line: bytes, columns: int) -> bool:
    """Whether a line is a word and as many numbers."""
    parts = line.rsplit(None, columns)
    return len(parts) == columns + 1 and all(map(_NUMBER.fullmatch, parts[1:]))


def _usual_columns(lines: Sequence[bytes]) -> int:
    """How many numbers most lines end with; a word that is a number does not count."""
    counts = Counter()
    for line in lines:
        parts = line.split()
        numbers = list(itertools.takewhile(_NUMBER.fullmatch, reversed(parts)))
        counts[min(len(numbers), len(parts) - 1)] += 1
    columns = max(counts, key=lambda count: (counts[count], -count), default=0)
    if columns < 2:
        raise Damage("no lines of a word and two or more numbers")
    return columns


def _check_rows(rows: int, layout: _Layout, file_bytes: int) -> None:
    """Refuse more rows than can be in a file, before anything is allocated for them."""
    # A blank after the word and the values, or a blank and a digit for each and a line end, which
    # may be missing at the end of the file.
    least = 1 + layout.columns * _FLOAT.itemsize if layout.is_binary else 2 * layout.columns + 1
    if layout.columns < 1 or rows < 1 or rows * least > file_bytes - layout.start + 1:
        raise Damage(
            f"{rows} words with {layout.columns} values each, in a file of {file_bytes} bytes"
        )


def _row_count(path: PathLike, layout: _Layout) -> int:
    rows = layout.rows
    if rows is None:
        blocks = _blocks_of_lines(path, 0)
        rows = sum(1 for _, lines in blocks for line in lines if line.rstrip(_BLANKS))
    _check_rows(rows, layout, Path(path).stat().st_size)
    return rows


_BYTES_OF_A_WORD = 250
"""A generous bound for a short word as `bytes`, as `str`, and in an index."""


def _vectors(path: PathLike, sample: bytes, words: list[bytes] | None) -> np.ndarray:
    """The matrix of a file without a magic number; its words are appended to a list, if given."""
    file_bytes = Path(path).stat().st_size
    layout = _layout(sample)
    rows = _row_count(path, layout)
    vectors_bytes = rows * layout.columns * _FLOAT.itemsize
    if words is not None:
        check_size(vectors_bytes + rows * _BYTES_OF_A_WORD, file_bytes, "words and vectors")
    vectors = np.empty((rows, layout.columns), _FLOAT)
    done = 0
    for names, values in (
        _binary_rows(path, layout, rows) if layout.is_binary else _text_rows(path, layout)
    ):
        if done + len(names) > rows:
            raise Damage(f"more words than the {rows} of which the first line tells")
        vectors[done : done + len(names)] = values
        done += len(names)
        if words is not None:
            words += names
    if done < rows:
        raise Damage(f"{done} words, where the first line tells of {rows}", file_bytes)
    return vectors


_Rows: TypeAlias = Iterator[tuple[list[bytes], np.ndarray]]
"""Words and their vectors, some thousand at a time."""


def _binary_rows(path: PathLike, layout: _Layout, rows: int) -> _Rows:
    width = layout.columns * _FLOAT.itemsize
    per_block = max(_BLOCK_BYTES // width, 1)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        position = layout.start
        for first in range(0, rows, per_block):
            words, values = [], []
            for _ in range(min(per_block, rows - first)):
                # The original program ends each row with a line end, others do not.
                if content[position : position + 1] == b"\n":
                    position += 1
                blank = content.find(b" ", position, position + _LONGEST_WORD)
                if blank < 0 or blank + 1 + width > len(content):
                    raise Damage("no whole word and vector", position)
                words.append(content[position:blank])
                position = blank + 1 + width
                values.append(content[blank + 1 : position])
            yield words, np.frombuffer(b"".join(values), "<f4").reshape(-1, layout.columns)
        rest = len(content) - position
        if rest > 2 or content[position:].strip():
            raise Damage(f"{rest} bytes after the last vector", position)


def _blocks_of_lines(path: PathLike, start: int) -> Iterator[tuple[int, list[bytes]]]:
    """Some lines at a time, without their line ends, and the byte where they begin."""
    with open(path, "rb") as file:
        file.seek(start)
        rest = b""
        while block := file.read(_BLOCK_BYTES):
            block = rest + block
            end = block.rfind(b"\n") + 1
            if not end and len(block) > _BLOCK_BYTES:
                raise Damage(f"a line of more than {_BLOCK_BYTES} bytes", start)
            rest = block[end:]
            if end:
                yield start, block[: end - 1].split(b"\n")
            start += end
        if rest:
            yield start, [rest]


def _text_rows(path: PathLike, layout: _Layout) -> _Rows:
    for start, lines in _blocks_of_lines(path, layout.start):
        words, numbers, places = [], [], []
        for line in lines:
            place = start
            start += len(line) + 1
            line = line.rstrip(_BLANKS)
            if not line:
                continue
            word, _, rest = line.partition(b" ")
            if rest.count(b" ") != layout.columns - 1:
                word, rest = _split(line, layout.columns, place)
            words.append(word)
            numbers.append(rest)
            places.append(place)
        if words:
            yield words, _parsed(numbers, places, layout.columns)


def _split(line: bytes, columns: int, place: int) -> tuple[bytes, bytes]:
    """The word and the numbers of a line with other blanks than one before each number."""
    parts = line.rsplit(None, columns)
    if len(parts) != columns + 1:
        raise Damage(f"a line with {len(parts) - 1} of {columns} numbers: {line[:60]!r}", place)
    return parts[0], b" ".join(parts[1:])


_OTHER_BLANKS = (b"  ", b"\t", b"\r", b"\v", b"\f")


def _parsed(numbers: Sequence[bytes], places: Sequence[int], columns: int) -> np.ndarray:
    """The numbers of some lines as rows, parsed all at once."""
    text = b" ".join(numbers)
    has_pieces = True
    if any(blank in text for blank in _OTHER_BLANKS):
        numbers = [b" ".join(line.split()) for line in numbers]
        text = b" ".join(numbers)
        has_pieces = all(line.count(b" ") == columns - 1 for line in numbers)
    values = _floats(text)
    # Between single blanks stand as many pieces as numbers are expected, and each piece is one
    # number, more than one or an error: where the counts are equal, all is well.
    if has_pieces and values is not None and values.size == len(numbers) * columns:
        return values.reshape(-1, columns)
    for place, line in zip(places, numbers, strict=True):
        pieces = line.split(b" ")
        wrong = [piece for piece in pieces if not _NUMBER.fullmatch(piece)]
        if wrong or len(pieces) != columns:
            found = f"{wrong[0][:40]!r}" if wrong else f"{len(pieces)} numbers"
            raise Damage(f"a line with {found}, where {columns} numbers are expected", place)
    raise Damage(f"lines without {columns} numbers", places[0])


def _floats(text: bytes) -> np.ndarray | None:
    """Numbers with blanks between them, or nothing if there is something else."""
    with warnings.catch_warnings():
        # NumPy stops at what it cannot parse and only warns about it.
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return np.fromstring(text, _FLOAT, sep=" ")
        except (DeprecationWarning, ValueError):
            return None


_FASTTEXT_MAGIC = (793712314).to_bytes(4, "little")
_FASTTEXT_VERSIONS = (11, 12)
_FASTTEXT_HEADER = struct.Struct("<2i12id3i2q")
_FASTTEXT_MATRIX = struct.Struct("<?2q")
_SETTINGS = (
    "dim",
    "ws",
    "epoch",
    "minCount",
    "neg",
    "wordNgrams",
    "loss",
    "model",
    "bucket",
    "minn",
    "maxn",
    "lrUpdateRate",
)
_LOSSES = {1: "hs", 2: "ns", 3: "softmax", 4: "ova"}
_MODELS = {1: "cbow", 2: "sg", 3: "sup"}
_ENTRY_BYTES = 10
"""The end of a word, how often it was seen (8 bytes), and whether it is a word or a label."""


@dataclass(frozen=True)
class _FastText:
    input: np.ndarray
    output: np.ndarray
    ngrams: NGrams
    metadata: Mapping[str, str]


def _fasttext(path: PathLike, words: list[bytes] | None = None) -> _FastText:
    """A fastText `.bin`; its words are appended to a list, if given."""
    content = map_file(path)
    start = content[: _FASTTEXT_HEADER.size].tobytes()
    if len(start) < _FASTTEXT_HEADER.size:
        raise Damage("no whole header", len(start))
    _, version, *numbers = _FASTTEXT_HEADER.unpack(start)
    settings = dict(zip(_SETTINGS, numbers, strict=False))
    sampling, entries, word_count, label_count, tokens, pruned = numbers[len(_SETTINGS) :]
    if version not in _FASTTEXT_VERSIONS:
        raise Damage(f"version {version}, where one of {_FASTTEXT_VERSIONS} can be read", 4)
    if settings["model"] == 3 and version == 11:
        settings["maxn"] = 0  # Such models have no n-grams of characters, whatever they say.
    if not (settings["dim"] > 0 and 0 <= settings["bucket"] and settings["maxn"] <= 100):
        raise Damage(f"the settings {settings}", 8)
    if not (0 <= word_count <= entries and entries == word_count + label_count):
        raise Damage(f"{entries} entries of {word_count} words and {label_count} labels", 64)
    if entries * _ENTRY_BYTES > content.size:
        raise Damage(f"{entries} entries in a file of {content.size} bytes", 64)
    kept = label_count if words is None else entries
    check_size(kept * _BYTES_OF_A_WORD, content.size, "words", 64)
    if pruned >= 0:
        raise FormatError(_quantised(path, 84))
    labels: list[bytes] = []
    offset = _read_entries(path, word_count, label_count, words, labels)
    matrix, offset = _matrix(path, content, offset, "input", settings["dim"])
    output, offset = _matrix(path, content, offset, "output", settings["dim"])
    if len(matrix) != word_count + settings["bucket"]:
        raise Damage(
            f"an input matrix of {len(matrix)} rows for {word_count} words and "
            f"{settings['bucket']} buckets"
        )
    if offset != content.size:
        raise Damage(f"{content.size - offset} bytes after the last matrix", offset)
    metadata = {name: str(value) for name, value in settings.items()}
    metadata["loss"] = _LOSSES.get(settings["loss"], metadata["loss"])
    metadata["model"] = _MODELS.get(settings["model"], metadata["model"])
    metadata |= {"t": str(sampling), "words": str(word_count), "tokens": str(tokens)}
    if labels:
        metadata["labels"] = b" ".join(labels).decode("utf-8", "surrogateescape")
    ngrams = NGrams(settings["minn"], settings["maxn"], settings["bucket"])
    metadata = {"layout": f"fastText {version}"} | metadata
    return _FastText(matrix, output, ngrams, metadata)


def _read_entries(
    path: PathLike,
    word_count: int,
    label_count: int,
    words: list[bytes] | None,
    labels: list[bytes],
) -> int:
    """Append words and labels to their lists; return where the entries end."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        offset = _FASTTEXT_HEADER.size
        for number in range(word_count + label_count):
            end = content.find(b"\0", offset, offset + _LONGEST_WORD)
            if end < 0 or end + _ENTRY_BYTES > len(content):
                raise Damage(f"no whole entry {number}", offset)
            is_label = number >= word_count
            if content[end + _ENTRY_BYTES - 1] != is_label:
                raise Damage(f"entry {number}, a label among words or a word among labels", offset)
            if is_label:
                labels.append(content[offset:end])
            elif words is not None:
                words.append(content[offset:end])
            offset = end + _ENTRY_BYTES
    return offset


def _matrix(
    path: PathLike, content: np.ndarray, offset: int, name: str, columns: int
) -> tuple[np.ndarray, int]:
    """A matrix, and where it ends."""
    start = content[offset : offset + _FASTTEXT_MATRIX.size].tobytes()
    if len(start) < _FASTTEXT_MATRIX.size:
        raise Damage(f"no whole header of the {name} matrix", offset)
    is_quantised, rows, found = _FASTTEXT_MATRIX.unpack(start)
    if is_quantised:
        raise FormatError(_quantised(path, offset))
    if found != columns:
        raise Damage(f"an {name} matrix of {rows} x {found}, where dim is {columns}", offset)
    begin = offset + _FASTTEXT_MATRIX.size
    matrix = array_at(content, begin, _FLOAT, (rows, columns), name)
    return matrix, begin + matrix.nbytes


def _quantised(path: PathLike, offset: int) -> str:
    return (
        f"{path}: expected the float32 matrices of a fastText .bin, found at byte {offset}: a "
        "quantised or pruned model (.ftz), which cannot be read here; fetch or train the .bin"
    )


READER = Reader(NAME, matches, read, inspect)
