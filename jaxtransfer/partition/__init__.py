"""What trains, and how fast."""

from jaxtransfer.partition.group import Group as Group
from jaxtransfer.partition.plan import Plan as Plan
from jaxtransfer.partition.recipes import RECIPES as RECIPES
from jaxtransfer.partition.recipes import full as full
from jaxtransfer.partition.recipes import last as last
from jaxtransfer.partition.recipes import layer_decay as layer_decay
from jaxtransfer.partition.recipes import lp_ft as lp_ft
from jaxtransfer.partition.recipes import probe as probe
from jaxtransfer.partition.recipes import resolve_plans as resolve_plans
from jaxtransfer.partition.schedules import warmup_cosine as warmup_cosine
