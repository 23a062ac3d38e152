"""BitSearch: turns that ask for a bit of a hidden answer, ask for nothing, or leak the answer into the text without its being used."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcredit.arena.family import family, static
from jaxcredit.arena.world import World, grid, world


@family
class BitSearch:
    """A turn is one token: ask for bit a < bits, a decoy, or (the last action) leak. The answer is drawn from posterior^eta.

    A bit that was asked for is known with certainty 1 - noise, so it comes out right with probability (1 - e)^eta / ((1 - e)^eta + e^eta),
    one that was not in half of all answers. `info` is what a reader believes of the right answer, prod of (1 - e) and 1/2, which a leak
    raises although the policy does not use it; `gain` its differences, of logarithms with log = 1. Separates information gain, by
    probability or logarithm, normalised by turn or not, from the outcome; the signal fails where eta is low, and on leaks.
    """

    eta: Float[Array, ""] | float = 1.0
    noise: Float[Array, ""] | float = 0.02
    leak: Float[Array, ""] | float = (
        0.0  # how much of the remaining doubt a leak takes from the reader
    )
    log: Float[Array, ""] | float = 0.0
    ask: Float[Array, ""] | float = (
        0.6  # mass of the bits; the rest is for decoys and, if there is one, the leak
    )
    bits: int = static(3)
    decoys: int = static(2)
    leaks: int = static(0)
    turns: int = static(5)

    @property
    def segments(self):
        return self.turns

    def world(self) -> World:
        # State: which bits are known, and above them whether there was a leak.
        m, T = self.bits, self.turns
        t, s, a = grid(T, 2 ** (m + 1), m + self.decoys + self.leaks)
        learnt = jnp.where(
            a < m, 1 << jnp.minimum(a, m), jnp.where(a >= m + self.decoys, 1 << m, 0)
        )
        e, eta = jnp.maximum(jnp.asarray(self.noise, float), 1e-12), self.eta
        sure = (1 - e) ** eta / ((1 - e) ** eta + e**eta)
        known = self._known(s | learnt)
        return world(
            T,
            2 ** (m + 1),
            a.size,
            next=s | learnt,
            segment=t,
            chance=(t == T - 1) * sure**known * 0.5 ** (m - known),
        )

    def policy(self) -> Float[Array, "P A"]:
        a, other = jnp.arange(self.bits + self.decoys + self.leaks), self.decoys + self.leaks
        p = jnp.where(a < self.bits, self.ask / self.bits, (1 - self.ask) / max(other, 1))
        return jnp.broadcast_to(jnp.log(p), (self.turns, a.size))

    def signals(self, seen, *, key):
        s, last = seen.trace.state, seen.trace.token[..., -1:]
        after = jnp.take_along_axis(seen.world.next[-1][s[..., -1]], last, -1)
        s = jnp.concatenate([s, after], -1)
        known = self._known(s)
        belief = (1 - jnp.asarray(self.noise, seen.logits.dtype)) ** known * 0.5 ** (
            self.bits - known
        )
        belief = jnp.where(s >> self.bits > 0, belief + self.leak * (1 - belief), belief)
        info = jnp.where(jnp.asarray(self.log) > 0, jnp.log(belief), belief)
        return {"info": info, "gain": info[..., 1:] - info[..., :-1]}

    def blocks(self):
        return {}

    def _known(self, s):
        return sum((s >> b) & 1 for b in range(self.bits))
