"""Worlds whose credit is known exactly, to see what an estimator gets right and where it loses. `FAMILIES` is the catalogue."""

from jaxcredit.arena.family import Batch, Family, gradient, sample
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
    "Batch",
    "Family",
    "World",
    "gradient",
    "sample",
    "solve",
]
