"""Transfer learning for JAX: load any pretrained network as a pytree, train what should train.

>>> import jaxtransfer as jt
>>> model = jt.load("checkpoints/glyphs")
>>> model.num_classes
62
"""

from jaxtransfer.data import ArrayData as ArrayData
from jaxtransfer.data import load_digits as load_digits
from jaxtransfer.errors import JaxTransferError as JaxTransferError
from jaxtransfer.evaluate.comparison import Budget as Budget
from jaxtransfer.evaluate.comparison import Comparison as Comparison
from jaxtransfer.evaluate.divergence import Divergence as Divergence
from jaxtransfer.evaluate.divergence import first_divergence as first_divergence
from jaxtransfer.evaluate.predict import predict as predict
from jaxtransfer.evaluate.pretrain import pretrain as pretrain
from jaxtransfer.formats import WordVectors as WordVectors
from jaxtransfer.formats import inspect_weights as inspect_weights
from jaxtransfer.formats import read_weights as read_weights
from jaxtransfer.formats import read_word_vectors as read_word_vectors
from jaxtransfer.formats import write_weights as write_weights
from jaxtransfer.mapping import TORCH_BUFFERS as TORCH_BUFFERS
from jaxtransfer.mapping import Receipt as Receipt
from jaxtransfer.mapping import Rule as Rule
from jaxtransfer.mapping import convert as convert
from jaxtransfer.mapping import find_prefix as find_prefix
from jaxtransfer.mapping import invert as invert
from jaxtransfer.mapping import with_prefix as with_prefix
from jaxtransfer.models import Model as Model
from jaxtransfer.models import ModelSpec as ModelSpec
from jaxtransfer.models import Preprocess as Preprocess
from jaxtransfer.models import imagenet_classes as imagenet_classes
from jaxtransfer.models import init as init
from jaxtransfer.models import list_models as list_models
from jaxtransfer.models import load_weights as load_weights
from jaxtransfer.models import recognise as recognise
from jaxtransfer.partition import Group as Group
from jaxtransfer.partition import Plan as Plan
from jaxtransfer.partition import full as full
from jaxtransfer.partition import last as last
from jaxtransfer.partition import layer_decay as layer_decay
from jaxtransfer.partition import lp_ft as lp_ft
from jaxtransfer.partition import probe as probe
from jaxtransfer.surgery import Activation as Activation
from jaxtransfer.surgery import BatchNorm as BatchNorm
from jaxtransfer.surgery import Dense as Dense
from jaxtransfer.surgery import Dropout as Dropout
from jaxtransfer.surgery import LayerNorm as LayerNorm
from jaxtransfer.surgery import Pool as Pool
from jaxtransfer.surgery import TaskHead as TaskHead
from jaxtransfer.surgery import adapt_stem as adapt_stem
from jaxtransfer.surgery import change_input_size as change_input_size
from jaxtransfer.surgery import drop_background as drop_background
from jaxtransfer.surgery import extend_vocabulary as extend_vocabulary
from jaxtransfer.surgery import replace_head as replace_head
from jaxtransfer.surgery import resize_position_embedding as resize_position_embedding
from jaxtransfer.surgery import stack as stack
from jaxtransfer.surgery import stack_blocks as stack_blocks
from jaxtransfer.surgery import truncate as truncate
from jaxtransfer.surgery import unstack as unstack
from jaxtransfer.surgery import unstack_blocks as unstack_blocks
from jaxtransfer.train import Event as Event
from jaxtransfer.train import TrainState as TrainState
from jaxtransfer.train import TrainStep as TrainStep
from jaxtransfer.train import cross_entropy as cross_entropy
from jaxtransfer.train import csv_writer as csv_writer
from jaxtransfer.train import early_stopping as early_stopping
from jaxtransfer.train import init_state as init_state
from jaxtransfer.train import jsonl_writer as jsonl_writer
from jaxtransfer.train import make_train_step as make_train_step
from jaxtransfer.train import progress_bar as progress_bar
from jaxtransfer.train import tensorboard_writer as tensorboard_writer
from jaxtransfer.transfer import Result as Result
from jaxtransfer.transfer import compare as compare
from jaxtransfer.transfer import finetune as finetune
from jaxtransfer.transfer import load as load
from jaxtransfer.tree import diff as diff
from jaxtransfer.tree import leaf_names as leaf_names
from jaxtransfer.tree import merge as merge
from jaxtransfer.tree import place as place
from jaxtransfer.tree import select as select
from jaxtransfer.tree import split as split
from jaxtransfer.tree import summary as summary
