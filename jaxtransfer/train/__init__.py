"""Training: states, losses, jitted steps, the loop and its checkpoints."""

from jaxtransfer.train.checkpoint import Checkpoints as Checkpoints
from jaxtransfer.train.checkpoint import Progress as Progress
from jaxtransfer.train.loop import Settings as Settings
from jaxtransfer.train.loop import train as train
from jaxtransfer.train.losses import absolute_error as absolute_error
from jaxtransfer.train.losses import binary_cross_entropy as binary_cross_entropy
from jaxtransfer.train.losses import cross_entropy as cross_entropy
from jaxtransfer.train.losses import focal as focal
from jaxtransfer.train.losses import huber as huber
from jaxtransfer.train.losses import multi_task as multi_task
from jaxtransfer.train.losses import squared_error as squared_error
from jaxtransfer.train.precision import BFLOAT16 as BFLOAT16
from jaxtransfer.train.precision import FLOAT16 as FLOAT16
from jaxtransfer.train.precision import FLOAT32 as FLOAT32
from jaxtransfer.train.precision import LossScaling as LossScaling
from jaxtransfer.train.precision import Precision as Precision
from jaxtransfer.train.skipping import check_skipped as check_skipped
from jaxtransfer.train.state import TrainState as TrainState
from jaxtransfer.train.state import init_state as init_state
from jaxtransfer.train.step import TrainStep as TrainStep
from jaxtransfer.train.step import make_train_step as make_train_step
