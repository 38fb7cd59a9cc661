"""Damaged files, each read under guard; test_hostile.py runs this as a process of its own.

    python hostile.py MODULE PATH FOLDER [--rounds N] [--cases N]
    python hostile.py MODULE PATH FOLDER --only CASE…
    python hostile.py --traps FILE

The files of the folder are damaged one at a time, in place, by small edits that hypothesis draws.
Every case is read as `PATH`, within limits of memory and time, while an audit hook watches what
Python does. The counts are printed as JSON. The last case that was begun stands in hexadecimal in
the folder's neighbour `FOLDER.case`, so that a process which dies tells by what.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import importlib
import io
import json
import mmap
import os
import random
import re
import resource
import signal
import sys
import time
import types
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    # The front door of the package imports far more than readers of files need.
    _package = types.ModuleType("jaxtransfer")
    _package.__path__ = [str(ROOT / "jaxtransfer")]
    sys.modules["jaxtransfer"] = _package

from jaxtransfer.errors import FormatError, JaxTransferError, ReferenceNotFoundError  # noqa: E402
from jaxtransfer.formats.base import Damage, Reader  # noqa: E402
from jaxtransfer.formats.sniff import reader_of, readers  # noqa: E402

EXTRA_BYTES = 64 * 2**20
FILE_RATIO = 4

EDIT_BYTES = 8
"""What hypothesis draws for one edit: as bytes, for drawing a structure takes it far longer."""
BATCH = 10
"""How many cases are one example of hypothesis, which takes longer for one than a small file."""


# What is done to a file.

BYTES = (b"\x00", b"\xff", b"\x7f", b"\x80")
NUMBERS = (0, 1, -1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1)
DIGITS = (
    *(b"-1", b"0", b"1", b"7", b"65536", b"2147483648", b"4294967295", b"9223372036854775807"),
    *(b"18446744073709551616", b"9" * 5000, b"1e999", b"nan", b"0x10", b"\xd9\xa3", b"", b"1.5"),
)
SNIPPETS = (
    *(b"[" * 3000, b"{" * 3000, b'{"a":' * 3000, b"(" * 3000, b"\n" * 3000, b'"', b"\\u0000"),
    *(b"../../../../../../etc/passwd", b"/etc/passwd", b"..", b"/", b"\x00", b"-", b"\xff\xfe"),
    *(b"cos\nsystem\n(S'true'\ntR.", b"cbuiltins\neval\n(S'1'\ntR.", b"\x80\x02}q\x00", b"."),
    *(b"\x91" * 3000, b"\xdd\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff", b"\xc6\xff\xff\xff\xff"),
    *(b"\x0b" * 3000, b"\x0a\xff\xff\xff\xff\x0f", b"\xff" * 10, b"\x0a\x80\x01" * 1000),
    *(b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"TREE\x00\x00", b"SNOD\x01\x00", b"\x89HDF\r\n"),
)


KINDS = (
    *("flip", "flip", "flip", "fill", "noise", "number", "number", "number", "number", "copy"),
    *("digits", "digits", "snippet", "truncate", "extend", "delete", "duplicate"),
)
REGIONS = ("head", "structure", "structure", "tail", "anywhere", "anywhere")
_REACH = 2**14


def apply(content: bytearray, structure: list[int], edit: bytes) -> int:
    """Damage the content by one edit; return where.

    What the edit changes without changing the length ends within `_REACH` bytes from there.
    """
    kind, region = KINDS[edit[0] % len(KINDS)], REGIONS[edit[1] % len(REGIONS)]
    at = _place_in(content, structure, region, int.from_bytes(edit[2:5], "big"))
    length = 1 << edit[5] % 13
    number = edit[6]
    span = slice(at, at + length)
    if kind == "flip" and at < len(content):
        content[at] ^= 1 << number % 8
    elif kind == "fill":
        content[span] = BYTES[number % len(BYTES)] * len(content[span])
    elif kind == "noise":
        content[span] = random.Random(number).randbytes(len(content[span]))
    elif kind == "number":
        content[at : at + 8] = _number(content, at, edit[5], number)[: len(content) - at]
    elif kind == "copy":  # From somewhere near, so that a name or an offset takes another's place.
        source = max(at - 128 + number, 0)
        piece = content[source : source + length]
        content[at : at + len(piece)] = piece
    elif kind == "digits" and (found := re.compile(rb"-?[0-9]+").search(content, at, at + 4096)):
        content[found.start() : found.end()] = DIGITS[number % len(DIGITS)]
    elif kind == "snippet":
        snippet = SNIPPETS[number % len(SNIPPETS)]
        content[at : at + len(snippet) * (edit[5] % 2)] = snippet
    elif kind == "truncate":
        del content[at:]
    elif kind == "extend":
        content += BYTES[number % len(BYTES)] * length
    elif kind == "delete":
        del content[span]
    elif kind == "duplicate":
        content[at:at] = content[span]
    return at


def _place_in(content: bytearray, structure: list[int], region: str, place: int) -> int:
    """An offset: in the first or last bytes, where the file is no plain values, or anywhere."""
    size = len(content)
    if region == "head":
        return place * min(size, 512) >> 24
    if region == "tail":
        return max(size - 1 - (place * min(size, 512) >> 24), 0)
    if region == "structure" and structure:
        block, offset = divmod(place * len(structure) * _BLOCK >> 24, _BLOCK)
        return min(structure[block] + offset, size)
    return place * size >> 24


def _number(content: bytearray, at: int, log_width: int, number: int) -> bytes:
    """An extreme value in place of a field, followed by what followed the field."""
    width = (1, 2, 4, 8)[log_width % 4]
    extremes = (*NUMBERS, len(content) - 1, len(content), len(content) + 1)
    value = extremes[number % len(extremes)] % 256**width
    order = "little" if number & 128 else "big"
    return value.to_bytes(width, order) + content[at + width : at + 8]


_BLOCK = 64


def structure_of(content: bytes) -> list[int]:
    """Where a file is not plain values: blocks with text in them, or some zeros and 0xff."""
    whole = np.frombuffer(content, np.uint8)[: len(content) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
    text = np.mean((whole >= 0x20) & (whole < 0x7F), axis=1)
    extreme = np.mean((whole == 0) | (whole == 0xFF), axis=1)
    found = (text >= 0.7) | ((extreme >= 0.2) & (extreme < 0.95))
    return (np.flatnonzero(found) * _BLOCK).tolist()


# The files, in a folder that a case damages and the next one repairs.


class Files:
    """The files of a folder, each kept open to be changed in place.

    Args:
        folder: the folder; what it holds is the undamaged state.
        inside_zip: damage the members of the only file, a zip archive, and store them anew: their
            checksums are right then, so that what stands behind these is tested, too.
    """

    def __init__(self, folder: Path, inside_zip: bool):
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        self.descriptors = [os.open(path, os.O_RDWR) for path in paths]
        self.whole = [path.read_bytes() for path in paths]
        self.members: list[str] = []
        if inside_zip:
            (archive_bytes,) = self.whole
            with zipfile.ZipFile(io.BytesIO(archive_bytes)) as archive:
                self.members = archive.namelist()
                self.whole = [archive.read(name) for name in self.members]
        self.structures = [structure_of(content) for content in self.whole]
        self.content = [bytearray(content) for content in self.whole]

    @property
    def bytes(self) -> int:
        """The size of all files together."""
        return sum(os.fstat(descriptor).st_size for descriptor in self.descriptors)

    @contextmanager
    def damaged_by(self, case: bytes) -> Iterator[None]:
        """One file damaged by the edits of a case, until the end of the block."""
        index = case[0] % len(self.whole)
        whole, content = self.whole[index], self.content[index]
        first, last = len(whole), 0
        for start in range(1, len(case) - EDIT_BYTES + 1, EDIT_BYTES):
            at = apply(content, self.structures[index], case[start : start + EDIT_BYTES])
            first, last = min(first, at), max(last, at + _REACH)
        if len(content) != len(whole):
            last = max(len(content), len(whole))
        self._store(index, first, last)
        try:
            yield
        finally:
            del content[len(whole) :]
            content.extend(bytes(len(whole) - len(content)))
            last = min(last, len(whole))
            # Views, for a slice would be copied twice.
            with memoryview(content) as repaired, memoryview(whole) as undamaged:
                repaired[first:last] = undamaged[first:last]
            if not self.members:  # An archive is written anew for each case.
                self._store(index, first, last)

    def _store(self, index: int, first: int, last: int) -> None:
        content: Any = self.content[index]
        if self.members:
            stream = io.BytesIO()
            with zipfile.ZipFile(stream, "w") as archive:
                for name, member in zip(self.members, self.content, strict=True):
                    archive.writestr(zipfile.ZipInfo(name), bytes(member))
            index, first, last, content = 0, 0, stream.tell(), stream.getbuffer()
        os.ftruncate(self.descriptors[index], len(content))
        with memoryview(content) as view:
            os.pwrite(self.descriptors[index], view[first:last], first)


# The guards.


class Forbidden(BaseException):
    """A reader did what no reader may do; not an Exception, so that no reader swallows it."""


_FORBIDDEN_EVENTS = (
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.kill"),
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "os.link"),
    *("os.symlink", "os.truncate", "os.putenv", "os.chdir"),
    *("exec", "pickle.find_class", "marshal.loads", "ctypes.dlopen", "code.__new__"),
)
_FORBIDDEN_ROOMS = (
    *("subprocess", "pty", "socket", "urllib", "http", "ftplib", "smtplib", "webbrowser"),
    *("shutil", "tempfile"),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """An audit hook that forbids code, processes, sockets, writing, and files from elsewhere."""

    def __init__(self, folder: Path):
        self.roots = tuple(
            os.path.realpath(root) + os.sep
            for root in (folder, ROOT / "jaxtransfer", sys.prefix, sys.base_prefix)
        )
        self.known: frozenset[str] = frozenset()
        self.seen: list[str] = []
        self.is_on = False
        sys.addaudithook(self._hook)

    @contextmanager
    def on(self) -> Iterator[None]:
        self.seen.clear()
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_on and (problem := self._problem(event, arguments)):
            self.seen.append(problem)
            raise Forbidden(problem)

    def _problem(self, event: str, arguments: tuple[Any, ...]) -> str:
        if event == "open":
            return self._opened(*arguments)
        if event == "import":
            package = arguments[0].partition(".")[0]
            return "" if package in self.known else f"imported {arguments[0]}"
        if event in _FORBIDDEN_EVENTS or event.partition(".")[0] in _FORBIDDEN_ROOMS:
            return f"{event} {arguments!r}"[:200]
        return ""

    def _opened(self, path: Any, mode: Any, flags: int) -> str:
        # Python itself looks for the line of a syntax error there, such as in NumPy's headers.
        if isinstance(path, int) or path in ("<string>", "<unknown>"):
            return ""
        if flags & _WRITING:
            return f"opened {path!r} for writing"
        real = os.path.realpath(os.fsdecode(path))
        return "" if (real + os.sep).startswith(self.roots) else f"opened {path!r}"


class Memory(NamedTuple):
    """Bytes of this process: its address space, the most it was, and what is private in it."""

    size: int
    peak: int
    data: int

    @staticmethod
    def now() -> Memory:
        text = os.pread(_STATUS, 4096, 0)
        return Memory(*(1024 * int(text.split(name, 1)[1].split(None, 1)[0]) for name in _FIELDS))


_STATUS = os.open("/proc/self/status", os.O_RDONLY)
_FIELDS = (b"VmSize:", b"VmPeak:", b"VmData:")


@contextmanager
def limits(data: int, file_bytes: int, seconds: int) -> Iterator[None]:
    """Within the block, neither memory nor time beyond what a reader may take.

    `RLIMIT_DATA` counts what is allocated privately, not what is mapped from a file.
    """
    allowed = data + EXTRA_BYTES + FILE_RATIO * file_bytes
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, before[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_DATA, before)


def fill_up_to_peak() -> mmap.mmap | None:
    """Address space that lifts the size of this process to its peak, so that a new peak shows."""
    size, peak, _ = Memory.now()
    missing = peak - size
    return mmap.mmap(-1, missing, mmap.MAP_SHARED, mmap.PROT_READ) if missing else None


# One case, and all of them.


@dataclasses.dataclass
class Counts:
    cases: int = 0
    accepted: int = 0
    refused: int = 0
    peak_bytes: int = 0
    seconds: float = 0.0


class Trial:
    """A reader with the files that it is tried on.

    Args:
        module: the name of the reader's module.
        path: what it reads.
        folder: where the files lie that are damaged.
        inside_zip: damage the members of the only file, a zip archive.
        seconds: how long one case may take.
    """

    def __init__(self, module: str, path: Path, folder: Path, inside_zip: bool, seconds: int):
        self.reader = _reader_in(module)
        self.path = path
        self.files = Files(folder, inside_zip)
        self.seconds = seconds
        self.watch = Watch(folder.parent)
        self.journal = os.open(f"{folder}.case", os.O_WRONLY | os.O_CREAT, 0o600)
        self.counts = Counts()
        self.several = len(self.files.descriptors) > 1

    def warm_up(self) -> None:
        """Import and allocate what is imported and allocated once; the intact file must be read."""
        for _ in range(2):
            names = list(self.reader.read(self.path))
            inspected = [tensor.name for tensor in self.reader.inspect(self.path).tensors]
            if names != inspected or not names:
                raise AssertionError(f"the undamaged file has {names}, by its headers {inspected}")
        chosen = self._unless_refused(lambda: reader_of(self.path))
        if self.reader in readers() and chosen is not self.reader:
            raise AssertionError(f"the undamaged file is taken for {chosen}")
        self.watch.known = frozenset(name.partition(".")[0] for name in sys.modules) | {"encodings"}
        self.filler = fill_up_to_peak()

    def try_case(self, case: bytes) -> None:
        """Damage the files and read them, which must be refused or give what the headers say."""
        os.pwrite(self.journal, case.hex().encode() + b"\n", 0)
        with self.files.damaged_by(case):
            self._try(self.files.bytes)

    def try_trap(self, path: Path) -> None:
        """Read a file that was made to do harm, which must be refused."""
        os.pwrite(self.journal, os.fsencode(path) + b"\n", 0)
        self.path = path
        accepted = self.counts.accepted
        self._try(path.stat().st_size)
        if self.counts.accepted > accepted:
            raise AssertionError("read")

    def _try(self, file_bytes: int) -> None:
        before = Memory.now()
        try:
            with limits(before.data, file_bytes, self.seconds), self.watch.on():
                is_accepted = self._is_accepted()
        except MemoryError as error:
            raise AssertionError(f"allocated too much: {error}") from error
        after = Memory.now()
        if self.watch.seen:
            raise AssertionError(f"did what no reader may do: {self.watch.seen}")
        if after.peak > before.peak:
            self.counts.peak_bytes = max(self.counts.peak_bytes, after.peak - before.size)
        self.counts.cases += 1
        self.counts.accepted += is_accepted
        self.counts.refused += not is_accepted

    def _is_accepted(self) -> bool:
        self._unless_refused(lambda: reader_of(self.path))
        read = self._unless_refused(lambda: self._described(self.reader.read(self.path)))
        headers = self._unless_refused(lambda: self.reader.inspect(self.path))
        if read is None or headers is None:  # Headers may hold more than what names the tensors.
            return False
        inspected = [(tensor.name, tensor.shape, tensor.dtype) for tensor in headers.tensors]
        if read != inspected:
            different = [pair for pair in zip(read, inspected, strict=False) if pair[0] != pair[1]]
            raise AssertionError(
                f"{len(read)} tensors, by its headers {len(inspected)}: {different[:3]}"
            )
        return True

    def _described(self, flat: dict[str, np.ndarray]) -> list[tuple[str, tuple[int, ...], str]]:
        for name, array in flat.items():
            if not isinstance(name, str) or array.dtype.hasobject or not array.dtype.isnative:
                raise AssertionError(f"{name!r} is an array of {array.dtype}")
            if array.size:  # The ends of the values are there, also if they are memory-mapped.
                array.flat[[0, -1]].tobytes()
        return [(name, array.shape, array.dtype.name) for name, array in flat.items()]

    def _unless_refused(self, step: Callable[[], Any]) -> Any:
        """What a step gives, or nothing if it refuses; the refusal must say where and what."""
        try:
            return step()
        except FormatError as error:
            message, cause = str(error), error.__cause__
        except ReferenceNotFoundError as error:  # A part that is named and not there.
            if not self.several:
                raise AssertionError(f"not a FormatError: {error!r}") from error
            return None
        if not message.startswith(str(self.path.parent if self.several else self.path)):
            raise AssertionError(f"an error without the path: {message}")
        # The operating system does not say at which byte it fails.
        if not re.search(r"\bbyte \d+", message) and not isinstance(cause, OSError):
            raise AssertionError(f"an error without the byte: {message}")
        # A library written in C may report that memory is missing in an error of its own.
        if not isinstance(cause, (Damage, JaxTransferError)) and re.search(
            r"memory|alloc|resource", str(cause), re.IGNORECASE
        ):
            raise AssertionError(f"allocated too much: {message}")
        return None

    def run(self, rounds: int, cases: int) -> None:
        import hypothesis
        from hypothesis import strategies as st

        begin = time.process_time()
        case = st.binary(min_size=1 + EDIT_BYTES, max_size=1 + 3 * EDIT_BYTES)
        settings = hypothesis.settings(
            max_examples=cases // BATCH,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
            suppress_health_check=tuple[Any, ...](hypothesis.HealthCheck),
        )
        for seed in range(rounds):

            @hypothesis.seed(seed)
            @settings
            @hypothesis.given(st.tuples(*[case] * BATCH))
            def body(batch: tuple[bytes, ...]) -> None:
                for case in batch:
                    self.try_case(case)

            body()
        self.counts.seconds = round(time.process_time() - begin, 1)


class _Equal(int):
    """A checksum that equals every other."""

    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


def forget_checksums(function: str) -> None:
    """Make the function of a reader that computes checksums give what is expected, always."""
    for name, module in list(sys.modules.items()):
        if name.startswith("jaxtransfer.formats.") and hasattr(module, function):
            setattr(module, function, lambda *_: _Equal())


def _reader_in(module: str) -> Reader:
    """The reader of a module, as the table of formats has it if it is there already."""
    found = importlib.import_module(module)
    named = {reader.name: reader for reader in readers()}
    return named[found.NAME] if found.NAME in named else found.READER


def _problem_of(step: Callable[[Any], None], thing: Any) -> str:
    """What is wrong with what a reader does with something; nothing if it does as it should."""
    try:
        step(thing)
    except (Exception, Forbidden) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _try_traps(file: Path) -> None:
    """Print what readers do wrong with traps, from a JSON list of module, path, folder, traps."""
    problems = []
    for module, path, folder, traps in json.loads(file.read_text()):
        trial = Trial(module, Path(path), Path(folder), inside_zip=False, seconds=10)
        trial.warm_up()
        problems += [_problem_of(trial.try_trap, Path(trap)) for trap in traps]
    print(json.dumps(problems))


def main() -> None:
    faulthandler.enable()
    # Says where, even inside a library, and then lets the signal end the process.
    faulthandler.register(signal.SIGALRM, chain=True)
    if sys.argv[1] == "--traps":
        return _try_traps(Path(sys.argv[2]))
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("path", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--inside-zip", action="store_true")
    parser.add_argument("--forget-checksums", default="", metavar="FUNCTION")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--only", type=bytes.fromhex, nargs="+", metavar="CASE")
    arguments = parser.parse_args()
    trial = Trial(
        arguments.module,
        arguments.path,
        arguments.folder,
        arguments.inside_zip,
        arguments.seconds,
    )
    if arguments.forget_checksums:
        forget_checksums(arguments.forget_checksums)
    trial.warm_up()
    if arguments.only:
        print(json.dumps([_problem_of(trial.try_case, case) for case in arguments.only]))
    else:
        trial.run(arguments.rounds, arguments.cases)
        print(json.dumps(dataclasses.asdict(trial.counts)))


if __name__ == "__main__":
    main()
