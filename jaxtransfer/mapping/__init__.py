"""Pair a file's tensors with the leaves of a tree, both ways, and keep a receipt."""

from jaxtransfer.mapping.convert import TORCH_BUFFERS as TORCH_BUFFERS
from jaxtransfer.mapping.convert import convert as convert
from jaxtransfer.mapping.invert import invert as invert
from jaxtransfer.mapping.layout import LAYOUTS as LAYOUTS
from jaxtransfer.mapping.layout import Layout as Layout
from jaxtransfer.mapping.receipt import Receipt as Receipt
from jaxtransfer.mapping.receipt import ReceiptEntry as ReceiptEntry
from jaxtransfer.mapping.rule import Rule as Rule
from jaxtransfer.mapping.rule import RuleIndex as RuleIndex
from jaxtransfer.mapping.rule import find_prefix as find_prefix
from jaxtransfer.mapping.rule import with_prefix as with_prefix
