"""Pure transforms of networks: another head, another stem, another vocabulary."""

from jaxtransfer.surgery.background import drop_background as drop_background
from jaxtransfer.surgery.fitted import with_head as with_head
from jaxtransfer.surgery.head import has_head as has_head
from jaxtransfer.surgery.head import replace_head as replace_head
from jaxtransfer.surgery.layers import Activation as Activation
from jaxtransfer.surgery.layers import BatchNorm as BatchNorm
from jaxtransfer.surgery.layers import Dense as Dense
from jaxtransfer.surgery.layers import Dropout as Dropout
from jaxtransfer.surgery.layers import HeadLayer as HeadLayer
from jaxtransfer.surgery.layers import LayerNorm as LayerNorm
from jaxtransfer.surgery.layers import Pool as Pool
from jaxtransfer.surgery.layers import TaskHead as TaskHead
from jaxtransfer.surgery.posembed import change_input_size as change_input_size
from jaxtransfer.surgery.posembed import resize_position_embedding as resize_position_embedding
from jaxtransfer.surgery.stack import stack as stack
from jaxtransfer.surgery.stack import stack_blocks as stack_blocks
from jaxtransfer.surgery.stack import unstack as unstack
from jaxtransfer.surgery.stack import unstack_blocks as unstack_blocks
from jaxtransfer.surgery.stem import adapt_stem as adapt_stem
from jaxtransfer.surgery.temperature import with_temperature as with_temperature
from jaxtransfer.surgery.truncate import truncate as truncate
from jaxtransfer.surgery.vocabulary import extend_vocabulary as extend_vocabulary
