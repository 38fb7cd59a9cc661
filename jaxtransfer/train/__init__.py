"""Training: states, losses, jitted steps, the loop and its checkpoints."""

from jaxtransfer.train.checkpoint import Checkpoints as Checkpoints
from jaxtransfer.train.checkpoint import Progress as Progress
from jaxtransfer.train.delta import channel_attention as channel_attention
from jaxtransfer.train.delta import delta as delta
from jaxtransfer.train.distillation import distillation as distillation
from jaxtransfer.train.distillation import keep_old_head as keep_old_head
from jaxtransfer.train.distillation import (
    learning_without_forgetting as learning_without_forgetting,
)
from jaxtransfer.train.evaluation import evaluate as evaluate
from jaxtransfer.train.events import Callback as Callback
from jaxtransfer.train.events import Event as Event
from jaxtransfer.train.features import features as features
from jaxtransfer.train.find_lr import LearningRates as LearningRates
from jaxtransfer.train.find_lr import find_lr as find_lr
from jaxtransfer.train.lock import TakenOverWarning as TakenOverWarning
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
from jaxtransfer.train.preemption import Preempted as Preempted
from jaxtransfer.train.preemption import watch_termination as watch_termination
from jaxtransfer.train.progress import progress_bar as progress_bar
from jaxtransfer.train.progress import step_bar as step_bar
from jaxtransfer.train.proof import Proof as Proof
from jaxtransfer.train.proof import prove_frozen as prove_frozen
from jaxtransfer.train.regularisers import Forward as Forward
from jaxtransfer.train.regularisers import Regulariser as Regulariser
from jaxtransfer.train.regularisers import batch_spectral_shrinkage as batch_spectral_shrinkage
from jaxtransfer.train.regularisers import l2_sp as l2_sp
from jaxtransfer.train.saved import DamagedCheckpointWarning as DamagedCheckpointWarning
from jaxtransfer.train.saved import load_checkpoint as load_checkpoint
from jaxtransfer.train.settings import Settings as Settings
from jaxtransfer.train.sharding import Sharding as Sharding
from jaxtransfer.train.skipping import check_skipped as check_skipped
from jaxtransfer.train.state import TrainState as TrainState
from jaxtransfer.train.state import init_state as init_state
from jaxtransfer.train.statistics import recalibrate_stats as recalibrate_stats
from jaxtransfer.train.step import TrainStep as TrainStep
from jaxtransfer.train.step import make_train_step as make_train_step
from jaxtransfer.train.stopping import Stall as Stall
from jaxtransfer.train.stopping import early_stopping as early_stopping
from jaxtransfer.train.writers import csv_writer as csv_writer
from jaxtransfer.train.writers import event_rows as event_rows
from jaxtransfer.train.writers import jsonl_writer as jsonl_writer
from jaxtransfer.train.writers import tensorboard_writer as tensorboard_writer
