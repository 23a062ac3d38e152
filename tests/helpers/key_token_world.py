"""A bandit world with known credit: three turns of two tokens, whose reward depends on one token,
the key token.

The key token is the first token of the second turn. A trajectory earns 1 if it chooses token 1
there, whatever its other tokens are. `with_true_signals` adds every signal of SIGNALS with its true
value: critics predict the mean return before the key token and the return after it, judges score
the second turn, and implicit reward models prefer the paid token.
"""

import jax.numpy as jnp

from jaxcredit.rollout import SIGNALS, Rollout

K, TURN = 3, 2  # turns, tokens a turn
KEY, RIGHT = 2, 1  # response column of the key token, the token that is paid
S = K * TURN


def rollout(tokens, logp, prompt, *, by_turn: bool = False, tie_breaker: float = 0.0) -> Rollout:
    """A rollout of responses [N, G, S] to prompts [N, P] in K turns; the last turn is paid.

    `by_turn`: every turn earns a reward, the first always 1. `tie_breaker`: a small reward for the
    other tokens, so that one response is best.
    """
    N, G, _ = tokens.shape
    P = prompt.shape[-1]
    right = (tokens[..., KEY] == RIGHT).astype(jnp.float32)
    action_mask = jnp.pad(jnp.ones((N, G, S), bool), ((0, 0), (0, 0), (P, 0)))
    turn = jnp.pad(jnp.arange(S) // TURN, (P, 0), constant_values=-1)
    reward = (
        jnp.zeros((N, G, K))
        .at[..., -1]
        .set(right + tie_breaker * (tokens * 2 ** jnp.arange(S)).sum(-1))
    )
    if by_turn:
        reward = jnp.stack([jnp.ones_like(right), right, right], -1)
    return Rollout(
        tokens=jnp.concatenate([jnp.broadcast_to(prompt[:, None], (N, G, P)), tokens], -1),
        action_mask=action_mask,
        logp=jnp.pad(logp, ((0, 0), (0, 0), (P, 0))),
        segment=jnp.broadcast_to(turn.astype(jnp.int32), action_mask.shape),
        reward=reward,
        segment_mask=jnp.ones((N, G, K), bool),
        token_mask=jnp.ones(action_mask.shape, bool),
    )


def with_true_signals(plain: Rollout) -> Rollout:
    """The rollout with every signal of SIGNALS at its true value in this world."""
    N, G, T = plain.action_mask.shape
    P = T - S
    R = (plain.tokens[..., P + KEY] == RIGHT).astype(jnp.float32)  # [N, G]
    p = jnp.broadcast_to(R.mean(-1, keepdims=True), R.shape)  # expected return before the key token
    r, turn, mid = R[..., None], jnp.arange(K), jnp.arange(K) == KEY // TURN
    column = jnp.arange(T) - P
    key = jnp.broadcast_to(column == KEY, (N, G, T))
    sign = jnp.where(key, 2 * r - 1, 0.0)  # +1 on the paid token, -1 on another token at its place
    before = jnp.where(turn <= KEY // TURN, p[..., None], r)  # value before a turn
    after = jnp.where(turn < KEY // TURN, p[..., None], r)
    potential = jnp.concatenate([before, r], -1)
    of_turn = lambda x: jnp.broadcast_to(x, (N, G, K))  # noqa: E731
    branch = jnp.int32(1 - R)[..., None]  # the branch after the key token
    choices = jnp.arange(4)
    chosen = jnp.where(mid, 1 - branch, 0)
    agents = jnp.arange(8)
    signals = {
        "value": before,
        "token_value": jnp.where(column <= KEY, p[..., None], r),
        "value_plan": before,
        "value_switch": before,
        "subgoal": of_turn(jnp.int32(turn)),
        "kind": jnp.broadcast_to(jnp.where(column % TURN == 0, 1, 3), (N, G, T)),
        "state": jnp.where(turn > KEY // TURN, 3 + branch, turn),
        "stratum": plain.tokens[..., P] % 2,
        "agent": of_turn(jnp.minimum(turn, 1)),
        "gain": jnp.where(mid, r - p[..., None], 0.0),
        "info": jnp.log(0.1 + 0.8 * potential),
        "process": jnp.where(mid, 2 * r - 1, 0.5),
        "error": jnp.where(mid, 1 - r, 0.0),
        "verdict": jnp.where(mid, r, 0.5),
        "node": jnp.where(turn < KEY // TURN, 1, 2 * turn + branch),
        "node_parent": jnp.broadcast_to(jnp.array([-1, 0, 1, 1, 2, 3]), (N, 6)),
        "turn_parent": of_turn(turn),
        "pivot": jnp.where(R == 1, KEY // TURN, -1),  # none in a failed trajectory
        "pair": jnp.broadcast_to(jnp.arange(G) ^ 1, (N, G)),
        "components": jnp.stack([R, (plain.tokens[..., P] % 2) * 0.1, jnp.zeros_like(R)], -1),
        "anytime": after,
        "macro": jnp.broadcast_to(
            (jnp.maximum(column, 0) + 1) // 2, (N, G, T)
        ),  # one macro action ends with the key token; the last token is one
        "continued": 4 * R,
        "planning": key,
        "decision_weight": jnp.where(key, 3.0, 0.6),
        "prob_square": jnp.where(plain.action_mask, 0.3, 0.0),
        "better_logp": plain.logp + 0.5 * sign,
        "worse_logp": plain.logp - 0.5 * sign,
        "prm_logp": plain.logp + 0.5 * sign,
        "ref_logp": plain.logp - 0.5 * sign,
        "progress": jnp.where(mid, r, 0.0),
        "grounded": of_turn(0.5),
        "achieved": jnp.where(mid, r, 0.0),
        "seen": of_turn(1.0),
        "action_value": after,
        "mixing": of_turn(1.0),
        "answer_weight": 0.25 + 0.5 * R,
        "density": 0.5 + 0.5 * R,
        "attribution": jnp.broadcast_to(jnp.where(mid, 3 * r, 0.0)[..., None], (N, G, K, 2)),
        "score": jnp.stack([R, R], -1),
        "choice": chosen,
        "choice_value": jnp.where(mid[:, None], 1.0 * (choices == 1), r[..., None]),
        "choice_prob": jnp.broadcast_to(0.25, (N, G, K, 4)),
        "coalition": jnp.where(agents & 2 > 0, r, 0.0),
        "utility": jnp.stack([R, R], -1),
        "greedy_reward": p[:, 0],
        "counterfactual": jnp.where(mid, p[..., None], r),
        "entropy": jnp.where(key, 1.0, 0.1),
        "waad": jnp.where(key, 1.0, 0.1),
        "fai": jnp.where(key, 1.0, 0.1),
        "prompt": jnp.arange(N),
    }
    missing = SIGNALS.keys() - signals.keys()
    assert not missing, f"add {', '.join(sorted(missing))} to tests/helpers/key_token_world.py"
    return plain.with_signals(
        **{
            s: x.astype(jnp.int32 if SIGNALS[s].kind == "i" else jnp.float32)
            for s, x in signals.items()
        }
    )
