"""Conservation law of one group: gains over REINFORCE at some positions, losses at others.

    python notebooks/studies/conservation_law.py [--groups 40000] [--group 8] [--out law.png]

The answers are binary tokens whose probability of the mode depends on the position. The 0/1 reward
depends weakly (delta -> 0) on the token of an unknown position. R_t is the limit of
gSNR(g) / gSNR(REINFORCE with the known mean) if that position is t, and nu_t is REINFORCE's noise
at t. Then sum_t nu_t R_t <= sum_t nu_t for every function g of one group's tokens and rewards.
tests/credit/test_sploo_theory.py proves it by enumeration. The command prints R_t and its weighted
mean for five estimators, and writes a plot.
"""

import argparse

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np

from jaxcredit import credit
from jaxcredit.utils.colors import COLORS
from jaxcredit.rollout import Rollout

# Probability of the mode by position.
MASS = np.array([0.97] * 4 + [0.5] + [0.6] * 7)


def draw(groups: int, group: int, mass: np.ndarray, success: float = 0.5, seed: int = 0) -> Rollout:
    """Sampled groups in the limit delta = 0, where rewards do not depend on tokens."""
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
    """R_t and its weighted mean, [T + 1], and their standard errors from `parts` batches."""
    x = (np.asarray(rollout.tokens) == 0) - mass
    S = ((np.asarray(rollout.reward) - success) * x).sum(1)
    g = (np.asarray(A, np.float64) * x).sum(1)
    noise = rollout.tokens.shape[1] * success * (1 - success) * mass * (1 - mass)  # exact Var S_t
    batches = [_gains(g[i::parts], S[i::parts], noise) for i in range(parts)]
    return _gains(g, S, noise), np.std(batches, 0, ddof=1) / parts**0.5


def _gains(g, S, noise):
    signal = (g * S).mean(0) / (S * S).mean(
        0
    )  # g and S have mean 0; dividing by the sampled noise cancels its scatter
    R = signal**2 * noise.sum() / g.var(0).sum()
    return np.append(R, (noise * R).sum() / noise.sum())


def run(
    *, groups: int = 40_000, group: int = 8, seed: int = 0
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`gains` of five estimators, by name."""
    rollout = draw(groups, group, MASS, seed=seed)
    sploo = jax.jit(lambda rollout, lam, a: credit.sploo(rollout, lam=lam, a=a))
    credits = {
        name: sploo(rollout, *knobs)
        for name, knobs in {"p0": (0.0, 0.0), "safe": (0.0, 2.0), "l1": (1.0, 0.0)}.items()
    }
    deviation = np.asarray(rollout.reward)[..., 0].std(1)[:, None, None] + 1e-6
    credits |= {
        "rloo": jax.jit(credit.rloo)(rollout),
        "tempo": np.asarray(jax.jit(credit.tempo)(rollout)) * deviation,
    }
    return {name: gains(rollout, np.asarray(A), MASS) for name, A in credits.items()}


def figure(results: dict[str, tuple[np.ndarray, np.ndarray]], out: str) -> None:
    """Plot R_t by position, a line for each estimator. The legend has the mean, at most 1."""
    picture = matplotlib.figure.Figure(figsize=(6.4, 3.4), layout="constrained")
    axis = picture.subplots()
    for (name, (R, error)), color in zip(results.items(), COLORS, strict=False):
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
    axis.set_xlabel(
        "position of the key (probability of the mode: .97 in the first four, .5, then .6)"
    )
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
    results = run(groups=args.groups, group=args.group)
    for name, (R, error) in results.items():
        print(
            f"{name:6} mean {R[-1]:.3f} +- {1.96 * error[-1]:.3f}   by position",
            " ".join(f"{x:.2f}" for x in R[:-1]),
        )
    figure(results, args.out)


if __name__ == "__main__":
    main()
