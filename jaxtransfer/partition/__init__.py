"""What trains, and how fast."""

from jaxtransfer.partition.group import Group as Group
from jaxtransfer.partition.opt_state import carry_opt_state as carry_opt_state
from jaxtransfer.partition.opt_state import evaluation_params as evaluation_params
from jaxtransfer.partition.optimizers import OPTIMIZERS as OPTIMIZERS
from jaxtransfer.partition.optimizers import Optimizer as Optimizer
from jaxtransfer.partition.plan import Plan as Plan
from jaxtransfer.partition.recipes import RECIPES as RECIPES
from jaxtransfer.partition.recipes import discriminative as discriminative
from jaxtransfer.partition.recipes import freeze_until as freeze_until
from jaxtransfer.partition.recipes import full as full
from jaxtransfer.partition.recipes import gradual as gradual
from jaxtransfer.partition.recipes import last as last
from jaxtransfer.partition.recipes import layer_decay as layer_decay
from jaxtransfer.partition.recipes import lp_ft as lp_ft
from jaxtransfer.partition.recipes import probe as probe
from jaxtransfer.partition.recipes import resolve_plans as resolve_plans
from jaxtransfer.partition.recipes import surgical as surgical
from jaxtransfer.partition.schedules import SCHEDULES as SCHEDULES
from jaxtransfer.partition.schedules import constant as constant
from jaxtransfer.partition.schedules import linear as linear
from jaxtransfer.partition.schedules import one_cycle as one_cycle
from jaxtransfer.partition.schedules import warmup_cosine as warmup_cosine
from jaxtransfer.partition.sparse import bias_only as bias_only
from jaxtransfer.partition.sparse import norm_only as norm_only
