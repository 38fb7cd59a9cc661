"""Training: states, losses, jitted steps, the loop and its checkpoints."""

from jaxtransfer.train.checkpoint import Checkpoints as Checkpoints
from jaxtransfer.train.checkpoint import Progress as Progress
from jaxtransfer.train.lock import TakenOverWarning as TakenOverWarning
from jaxtransfer.train.loop import Settings as Settings
from jaxtransfer.train.loop import train as train
from jaxtransfer.train.losses import cross_entropy as cross_entropy
from jaxtransfer.train.preemption import Preempted as Preempted
from jaxtransfer.train.preemption import watch_termination as watch_termination
from jaxtransfer.train.saved import DamagedCheckpointWarning as DamagedCheckpointWarning
from jaxtransfer.train.saved import load_checkpoint as load_checkpoint
from jaxtransfer.train.state import TrainState as TrainState
from jaxtransfer.train.state import init_state as init_state
from jaxtransfer.train.step import TrainStep as TrainStep
from jaxtransfer.train.step import make_train_step as make_train_step
