"""BitSearch: turns that ask for bits of a hidden answer, ask for nothing, or leak the answer."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcredit.arena.family import family, static
from jaxcredit.arena.world import World, grid, world


@family
class BitSearch:
    """World of search turns, to test credit by information gain.

    A turn is one token: ask for bit a < bits, a decoy, or (last action) a leak. The answer is drawn
    from posterior^eta. A bit that was asked for comes out right with probability
    (1 - e)^eta / ((1 - e)^eta + e^eta), e = noise; another with probability 1/2.

    Signals: `info`, a reader's belief in the right answer: (1 - e) for each known bit, 1/2 for each
    other (its logarithm with log = 1). A leak raises it although the policy does not use it. `gain`
    is its difference from turn to turn.

    Exact credit: the change of the success probability by each turn, 0 for decoys and leaks.
    Information gain is good credit at eta = 1; it fails at low eta and on leaks.
    """

    eta: Float[Array, ""] | float = 1.0
    noise: Float[Array, ""] | float = 0.02
    leak: Float[Array, ""] | float = 0.0  # share of the reader's doubt that a leak removes
    log: Float[Array, ""] | float = 0.0
    ask: Float[Array, ""] | float = 0.6  # probability of asking for a bit
    bits: int = static(3)
    decoys: int = static(2)
    leaks: int = static(0)
    turns: int = static(5)

    @property
    def segments(self):
        return self.turns

    def world(self) -> World:
        # State: a bit mask of known bits; the next bit is 1 after a leak.
        m, T = self.bits, self.turns
        t, s, a = grid(T, 2 ** (m + 1), m + self.decoys + self.leaks)
        after = jnp.where(a < m, 1 << jnp.minimum(a, m), jnp.where(a >= m + self.decoys, 1 << m, 0))
        e, eta = jnp.maximum(jnp.asarray(self.noise, float), 1e-12), self.eta
        sure = (1 - e) ** eta / ((1 - e) ** eta + e**eta)
        known = self._known(s | after)
        return world(
            T,
            2 ** (m + 1),
            a.size,
            next=s | after,
            segment=t,
            chance=(t == T - 1) * sure**known * 0.5 ** (m - known),
        )

    def policy(self) -> Float[Array, "P A"]:
        a, other = jnp.arange(self.bits + self.decoys + self.leaks), self.decoys + self.leaks
        p = jnp.where(a < self.bits, self.ask / self.bits, (1 - self.ask) / max(other, 1))
        return jnp.broadcast_to(jnp.log(p), (self.turns, a.size))

    def signals(self, inputs, *, key):
        s, last = inputs.trace.state, inputs.trace.token[..., -1:]
        after = jnp.take_along_axis(inputs.world.next[-1][s[..., -1]], last, -1)
        s = jnp.concatenate([s, after], -1)
        known = self._known(s)
        belief = (1 - jnp.asarray(self.noise, inputs.logits.dtype)) ** known * 0.5 ** (
            self.bits - known
        )
        belief = jnp.where(s >> self.bits > 0, belief + self.leak * (1 - belief), belief)
        info = jnp.where(jnp.asarray(self.log) > 0, jnp.log(belief), belief)
        return {"info": info, "gain": info[..., 1:] - info[..., :-1]}

    def blocks(self):
        return {}

    def _known(self, s):
        return sum((s >> b) & 1 for b in range(self.bits))
