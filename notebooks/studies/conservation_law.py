"""The conservation law in numbers: what an estimator of one group gains over REINFORCE where the key is, and what it pays elsewhere.

    python -m jaxcredit.arena.law [--groups 40000] [--out law.png]

Binary tokens whose mass on the mode is given by position; R is 0 or 1 and hangs a little (delta -> 0) on one of them, nobody knows on
which. R_t is the limit of gSNR(g) / gSNR(REINFORCE with the known mean) with the key at t, and sum_t nu_t R_t <= sum_t nu_t for every
function g of one group's tokens and rewards, nu_t being REINFORCE's noise at t. Enumerated in tests/credit/test_sploo_theory.py.
"""

import argparse

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np

from jaxcredit import credit
from jaxcredit.utils.colors import COLORS
from jaxcredit.rollout import Rollout

MASS = np.array([0.97] * 4 + [0.5] + [0.6] * 7)


def draw(groups: int, group: int, mass: np.ndarray, success: float = 0.5, seed: int = 0) -> Rollout:
    """Groups in which nothing depends on anything: the limit delta = 0."""
    rng = np.random.default_rng(seed)
    shape = (groups, group, len(mass))
    tokens, R = (
        (rng.random(shape) >= mass).astype(np.int32),
        (rng.random(shape[:2]) < success).astype(np.float32),
    )
    ones, zero = np.ones(shape, bool), np.zeros(shape, np.float32)
    segment, reward, real = zero.astype(np.int32), R[..., None], ones[..., :1]
    return Rollout(
        *(jnp.asarray(x) for x in (tokens, ones, zero, segment)),
        reward=jnp.asarray(reward),
        segment_mask=jnp.asarray(real),
    )


def gains(
    rollout: Rollout, A: np.ndarray, mass: np.ndarray, success: float = 0.5, parts: int = 20
) -> tuple[np.ndarray, np.ndarray]:
    """R_t and their weighted mean, [T + 1], with the standard errors of `parts` batches."""
    x = (np.asarray(rollout.tokens) == 0) - mass
    S = ((np.asarray(rollout.reward) - success) * x).sum(1)
    g = (np.asarray(A, np.float64) * x).sum(1)
    noise = (
        rollout.tokens.shape[1] * success * (1 - success) * mass * (1 - mass)
    )  # Var S_t, exactly
    batches = [_gains(g[i::parts], S[i::parts], noise) for i in range(parts)]
    return _gains(g, S, noise), np.std(batches, 0, ddof=1) / parts**0.5


def _gains(g, S, noise):
    signal = (g * S).mean(0) / (S * S).mean(
        0
    )  # both have mean 0; the drawn noise below, that its scatter cancels
    R = signal**2 * noise.sum() / g.var(0).sum()
    return np.append(R, (noise * R).sum() / noise.sum())


def run(
    *, groups: int = 40_000, group: int = 8, seed: int = 0
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rollout = draw(groups, group, MASS, seed=seed)
    sploo = jax.jit(lambda rollout, lam, a: credit.sploo(rollout, lam=lam, a=a))
    found = {
        name: sploo(rollout, *knobs)
        for name, knobs in {"p0": (0.0, 0.0), "safe": (0.0, 2.0), "l1": (1.0, 0.0)}.items()
    }
    deviation = np.asarray(rollout.reward)[..., 0].std(1)[:, None, None] + 1e-6
    found |= {
        "rloo": jax.jit(credit.rloo)(rollout),
        "tempo": np.asarray(jax.jit(credit.tempo)(rollout)) * deviation,
    }
    return {name: gains(rollout, np.asarray(A), MASS) for name, A in found.items()}


def figure(found: dict[str, tuple[np.ndarray, np.ndarray]], out: str) -> None:
    """R_t by position, one line an estimator; in the legend the mean that no estimator can lift above 1."""
    picture = matplotlib.figure.Figure(figsize=(6.4, 3.4), layout="constrained")
    axis = picture.subplots()
    for (name, (R, error)), color in zip(found.items(), COLORS, strict=False):
        axis.errorbar(
            range(len(R) - 1),
            R[:-1],
            1.96 * error[:-1],
            color=color,
            marker="o",
            markersize=3,
            linewidth=1.3,
        )
        axis.plot([], [], color=color, marker="o", markersize=3, label=f"{name}: mean {R[-1]:.3f}")
    axis.axhline(1, color="0.6", linewidth=0.8, linestyle=":")
    axis.set_xlabel("position of the key (mass of the mode: .97 in the first four, .5, then .6)")
    axis.set_ylabel("signal-to-noise over REINFORCE's")
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    picture.savefig(out, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", type=int, default=40_000)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--out", default="law.png")
    args = parser.parse_args()
    found = run(groups=args.groups, group=args.group)
    for name, (R, error) in found.items():
        print(
            f"{name:6} mean {R[-1]:.3f} +- {1.96 * error[-1]:.3f}   by position",
            " ".join(f"{x:.2f}" for x in R[:-1]),
        )
    figure(found, args.out)


if __name__ == "__main__":
    main()
