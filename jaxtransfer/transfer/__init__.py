"""The hallway: load a model, fine-tune it, and see whether the transfer helped."""

from jaxtransfer.transfer.advising import advise as advise
from jaxtransfer.transfer.comparing import DIGITS as DIGITS
from jaxtransfer.transfer.comparing import compare as compare
from jaxtransfer.transfer.loading import EMBEDDED_SOURCE as EMBEDDED_SOURCE
from jaxtransfer.transfer.loading import load as load
from jaxtransfer.transfer.ranking import rank as rank
from jaxtransfer.transfer.sweeping import sweep as sweep
from jaxtransfer.transfer.tuning import Result as Result
from jaxtransfer.transfer.tuning import finetune as finetune
from jaxtransfer.transfer.tuning import fit_head as fit_head
