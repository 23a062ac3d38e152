"""Small worlds with exactly known credit, to measure estimators.

`FAMILIES` lists the families of worlds. `sample` draws groups of answers from one, as a `Rollout`
with its true advantages; `gradient` is the policy gradient that an estimator's credit gives.
"""

from jaxcredit.arena.family import Family, LabeledBatch, gradient, sample
from jaxcredit.arena.world import World, solve
from jaxcredit.arena.worlds.anchor_hub import AnchorHub
from jaxcredit.arena.worlds.bit_search import BitSearch
from jaxcredit.arena.worlds.hackable_prm import HackablePRM
from jaxcredit.arena.worlds.keybranch import KeyBranch
from jaxcredit.arena.worlds.lengths import Lengths
from jaxcredit.arena.worlds.plan_lag import PlanLag
from jaxcredit.arena.worlds.recovery import Recovery
from jaxcredit.arena.worlds.replay_noise import ReplayNoise
from jaxcredit.arena.worlds.strata import Strata
from jaxcredit.arena.worlds.team import Team
from jaxcredit.arena.worlds.twin import Twin
from jaxcredit.arena.worlds.umbrella import Umbrella

FAMILIES = (
    KeyBranch,
    HackablePRM,
    Strata,
    AnchorHub,
    PlanLag,
    BitSearch,
    Team,
    Recovery,
    Umbrella,
    Twin,
    ReplayNoise,
    Lengths,
)

__all__ = [
    *(f.__name__ for f in FAMILIES),
    "FAMILIES",
    "LabeledBatch",
    "Family",
    "World",
    "gradient",
    "sample",
    "solve",
]
