"""Names, selection, splitting and comparison of the leaves of any pytree."""

from jaxtransfer.tree.diff import TreeDiff as TreeDiff
from jaxtransfer.tree.diff import diff as diff
from jaxtransfer.tree.fingerprint import fingerprint as fingerprint
from jaxtransfer.tree.names import flatten as flatten
from jaxtransfer.tree.names import is_below as is_below
from jaxtransfer.tree.names import leaf_names as leaf_names
from jaxtransfer.tree.names import map_with_names as map_with_names
from jaxtransfer.tree.names import named_leaves as named_leaves
from jaxtransfer.tree.names import path_prefixes as path_prefixes
from jaxtransfer.tree.names import subtree as subtree
from jaxtransfer.tree.names import unflatten as unflatten
from jaxtransfer.tree.names import with_subtree as with_subtree
from jaxtransfer.tree.place import place as place
from jaxtransfer.tree.select import matches as matches
from jaxtransfer.tree.select import matches_any as matches_any
from jaxtransfer.tree.select import nearest as nearest
from jaxtransfer.tree.select import select as select
from jaxtransfer.tree.split import merge as merge
from jaxtransfer.tree.split import split as split
from jaxtransfer.tree.summary import count_bytes as count_bytes
from jaxtransfer.tree.summary import count_parameters as count_parameters
from jaxtransfer.tree.summary import summary as summary
