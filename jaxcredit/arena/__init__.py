"""Worlds whose credit is known exactly, to see what an estimator gets right and where it loses. `FAMILIES` is the catalogue."""

from jaxcredit.arena.anchor_hub import AnchorHub
from jaxcredit.arena.bit_search import BitSearch
from jaxcredit.arena.family import Batch, Family, gradient, sample
from jaxcredit.arena.hackable_prm import HackablePRM
from jaxcredit.arena.keybranch import KeyBranch
from jaxcredit.arena.lengths import Lengths
from jaxcredit.arena.plan_lag import PlanLag
from jaxcredit.arena.recovery import Recovery
from jaxcredit.arena.replay_noise import ReplayNoise
from jaxcredit.arena.strata import Strata
from jaxcredit.arena.team import Team
from jaxcredit.arena.twin import Twin
from jaxcredit.arena.umbrella import Umbrella
from jaxcredit.arena.world import World, solve

FAMILIES = (KeyBranch, HackablePRM, Strata, AnchorHub, PlanLag, BitSearch, Team, Recovery, Umbrella, Twin, ReplayNoise, Lengths)

__all__ = [*(f.__name__ for f in FAMILIES), "FAMILIES", "Batch", "Family", "World", "gradient", "sample", "solve"]
