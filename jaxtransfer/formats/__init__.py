"""Files of weights: flat dicts from tensor name to host array, one module a format."""

from jaxtransfer.formats.base import Inspection as Inspection
from jaxtransfer.formats.base import Reader as Reader
from jaxtransfer.formats.base import TensorInfo as TensorInfo
from jaxtransfer.formats.base import atomic_write as atomic_write
from jaxtransfer.formats.base import sha256_of as sha256_of
from jaxtransfer.formats.sniff import fingerprint_of as fingerprint_of
from jaxtransfer.formats.sniff import inspect_weights as inspect_weights
from jaxtransfer.formats.sniff import read_weights as read_weights
from jaxtransfer.formats.sniff import reader_of as reader_of
from jaxtransfer.formats.sniff import readers as readers
from jaxtransfer.formats.sniff import write_weights as write_weights
from jaxtransfer.formats.sniff import writers as writers
from jaxtransfer.formats.wordvectors import WordVectors as WordVectors
from jaxtransfer.formats.wordvectors import read_word_vectors as read_word_vectors
