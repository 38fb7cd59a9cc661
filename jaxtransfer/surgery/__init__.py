"""Pure transforms of networks: another head, another stem, another vocabulary."""

from jaxtransfer.surgery.head import Activation as Activation
from jaxtransfer.surgery.head import BatchNorm as BatchNorm
from jaxtransfer.surgery.head import Dense as Dense
from jaxtransfer.surgery.head import Dropout as Dropout
from jaxtransfer.surgery.head import HeadLayer as HeadLayer
from jaxtransfer.surgery.head import LayerNorm as LayerNorm
from jaxtransfer.surgery.head import replace_head as replace_head
