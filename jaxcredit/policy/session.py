"""A decoding session: sample turns, append given tokens, branch from any earlier token.

A session is one pytree. The keys and values of a prompt are stored once for its rows. Each row has
a contiguous history of its own tokens behind the prompt. The newest sampled token of a row is
pending: it is fed with the tokens that follow it, so that the last token of an episode needs no
forward pass.

Letters in shapes: N prompts, R rows, P prompt tokens, C columns of history, S new tokens, E given
tokens, L layers, D model width, K key and value heads, h head size.
"""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxcredit.policy.attention import attend, by_head
from jaxcredit.policy.config import Config
from jaxcredit.policy.positions import (
    layer_windows,
    position_ids,
    rope_by_window,
    sliding_window_mask,
)
from jaxcredit.policy.sampler import (
    UNROLL_MAX_LAYERS,
    choose_token,
    empty_columns,
    write_column,
)
from jaxcredit.policy.transformer import (
    block,
    cast,
    embed,
    forward,
    layer_params,
    norm,
    unembed,
)

NONE = -1  # no pending token


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Session:
    """State of the rows of N prompts between calls."""

    prompt_cache: tuple[Array, Array]  # keys [L, N, K, h, P] and values [L, N, K, P, h]
    prompt_mask: Bool[Array, "N P"]  # False on left padding
    prompt_hidden: Float[Array, "N D"]  # behind the last prompt token
    cache: tuple[Array, Array]  # keys [L, N, K, R, h, C] and values [L, N, K, R, C, h]
    length: Int[Array, "N R"]  # own tokens in the cache
    last: Int[Array, "N R"]  # pending token, NONE where the cache holds all tokens
    hidden: Float[Array, "N R D"]  # behind the newest cached token
    key: Key[Array, "N R"]  # random key of each row

    @property
    def room(self) -> int:
        """Columns of history, C."""
        return self.cache[1].shape[4]

    @property
    def tokens(self) -> Int[Array, "N R"]:
        """Number of own tokens of each row, a pending one included."""
        return self.length + (self.last != NONE)


def row_keys(key: Key[Array, ""], prompts: Int[Array, "N"], rows: int) -> Key[Array, "N R"]:
    """Random keys of rows.

    Args:
        key: key of the training step.
        prompts: index of each prompt in its data set.
        rows: number of rows per prompt.

    Returns:
        [N, R] keys: functions of the step, the prompt and the number of the row only.
    """
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(lambda k: fold(k, jnp.arange(rows)))(fold(key, prompts))


@functools.partial(jax.jit, static_argnames=("cfg",))
def prefill(
    params: PyTree,
    prompt: Int[Array, "N P"],
    prompt_mask: Bool[Array, "N P"],
    key: Key[Array, "N R"],
    cfg: Config,
) -> Session:
    """Start a session: one forward pass over each prompt.

    Args:
        params: parameters of the policy.
        prompt: token ids, padded on the left.
        prompt_mask: False on padding.
        key: random keys of the rows, see `row_keys`; its shape states the number of rows.
        cfg: configuration of the policy.

    Returns:
        A session whose rows have no tokens of their own yet.
    """
    (N, R), L, K, h = key.shape, cfg.layers, cfg.kv_heads, cfg.head_dim
    hidden, cache = forward(
        cast(params, cfg), prompt, prompt_mask, cfg, lambda k, v: (k[:, :, 0], v[:, :, 0])
    )
    last = hidden[:, -1]
    empty = jnp.zeros((L, N, K, R, h, 0), cfg.dtype), jnp.zeros((L, N, K, R, 0, h), cfg.dtype)
    zero = jnp.zeros((N, R), jnp.int32)
    behind = jnp.broadcast_to(last[:, None], (N, R, last.shape[-1]))
    return Session(cache, prompt_mask, last, empty, zero, zero + NONE, behind, key)


def grow(session: Session, room: int) -> Session:
    """Session with more columns of history.

    Args:
        session: the session.
        room: number of columns, at least those that the session has.

    Raises:
        ValueError: `room` is too small.
    """
    more = room - session.room
    if more < 0:
        raise ValueError(f"a session of {session.room} columns cannot shrink to {room}")
    keys, values = session.cache
    keys = jnp.pad(keys, [(0, 0)] * 5 + [(0, more)])
    values = jnp.pad(values, [(0, 0)] * 4 + [(0, more), (0, 0)])
    return dataclasses.replace(session, cache=(keys, values))


def fork(
    session: Session,
    row: Int[Array, "N R2"],
    at: Int[Array, "N R2"],
    token: Int[Array, "N R2"],
    key: Key[Array, "N R2"],
) -> Session:
    """New rows that continue earlier tokens of given rows; caches are copied, nothing is computed.

    Args:
        session: the session.
        row: the row that each new row continues.
        at: number of own tokens of that row to keep, 0 to all of them.
        token: the last of these tokens (ignored where `at` is 0).
        key: random keys of the new rows.
    """

    def take(x):  # [L, N, K, R, ...]
        return jnp.take_along_axis(x, row[None, :, None, :, None, None], 3)

    continues = at > 0
    fresh = jnp.broadcast_to(
        session.prompt_hidden[:, None], (*row.shape, session.prompt_hidden.shape[-1])
    )
    return dataclasses.replace(
        session,
        cache=jax.tree.map(take, session.cache),
        length=jnp.maximum(at - 1, 0),
        last=jnp.where(continues, token, NONE),
        hidden=fresh,
        key=key,
    )


def _by_layer(tree: PyTree, cfg) -> PyTree:
    """List of layers of a stack over layers, if the layers are unrolled; else the stack."""
    if cfg.layers > UNROLL_MAX_LAYERS:
        return tree
    return [jax.tree.map(operator.itemgetter(i), tree) for i in range(cfg.layers)]


def _over_layers(step, x, *inputs, cfg):
    """All layers: `step(x, *inputs of a layer) -> x, output`. Inputs are results of `_by_layer`."""
    if cfg.layers > UNROLL_MAX_LAYERS:
        return jax.lax.scan(lambda x, xs: step(x, *xs), x, inputs)
    outputs = []
    for layer in zip(*inputs, strict=True):
        x, output = step(x, *layer)
        outputs.append(output)
    return x, outputs


def _stacked(outputs: PyTree, cfg) -> PyTree:
    """The inverse of `_by_layer`."""
    return (
        outputs
        if cfg.layers > UNROLL_MAX_LAYERS
        else jax.tree.map(lambda *xs: jnp.stack(xs), *outputs)
    )


def _inputs(params, session, cfg):
    """Weights, prompt keys and values, and window of each layer."""
    return _by_layer((layer_params(params), *session.prompt_cache, layer_windows(cfg)), cfg)


@functools.partial(jax.jit, static_argnames=("cfg",))
def extend(
    params: PyTree,
    session: Session,
    ids: Int[Array, "N R E"],
    mask: Bool[Array, "N R E"],
    cfg: Config,
) -> Session:
    """Append given tokens, such as a tool's answer: one forward pass over them and pending tokens.

    Args:
        params: parameters of the policy.
        session: a session with room for E + 1 more columns in each row.
        ids: token ids.
        mask: True on ids to append, from the first column on. Rows without any stay as they are.
        cfg: configuration of the policy.
    """
    params = cast(params, cfg)
    extended = mask.any(-1)
    pending = (session.last != NONE) & extended
    tokens = jnp.concatenate([jnp.maximum(session.last, 0)[..., None], ids], -1)
    valid = jnp.concatenate([pending[..., None], mask], -1)
    prompt_length = session.prompt_mask.sum(-1, dtype=jnp.int32)[:, None]
    start = prompt_length + session.length
    at = start[..., None] + position_ids(valid)
    turn, E1 = rope_by_window(at, cfg), tokens.shape[-1]
    column = jnp.arange(session.room)
    own_mask = jnp.tril(jnp.ones((E1, E1), bool)) & valid[..., None, :]
    prompt_at = position_ids(session.prompt_mask)[:, None]
    history_at = prompt_length[..., None] + column

    def layer(x, inputs, cache):
        w, kp, vp, window = inputs

        def attention(q, k, v):
            k, v = by_head(k, v)
            see_prompt = sliding_window_mask(
                session.prompt_mask[:, None, None, :], at, prompt_at, window
            )
            see_history = sliding_window_mask(
                (column < session.length[..., None])[..., None, :], at, history_at, window
            )
            see_own = sliding_window_mask(own_mask, at, at, window)
            parts = (
                (kp, vp, see_prompt[:, None, :, None]),
                (*cache, see_history[:, None, :, None]),
                (k, v, see_own[:, None, :, None]),
            )
            return attend(q, *parts, cfg=cfg), (k, v)

        x, kv = block(x, w, *turn(window), attention, cfg)
        return x, kv

    x = embed(params, tokens, cfg)
    x, news = _over_layers(
        layer, x, _inputs(params, session, cfg), _by_layer(session.cache, cfg), cfg=cfg
    )
    x = norm(x, params["final_norm"], cfg)
    newest = mask.sum(-1, dtype=jnp.int32)  # column of the last id
    hidden = jnp.take_along_axis(x, newest[..., None, None], 2)[:, :, 0]
    return dataclasses.replace(
        session,
        cache=_merged(session, _stacked(news, cfg), ~pending),
        length=session.length + jnp.where(extended, newest + pending, 0),
        last=jnp.where(extended, NONE, session.last),
        hidden=jnp.where(extended[..., None], hidden, session.hidden),
    )


def _merged(session, turn, skip):
    """Caches with the columns of a turn behind each row's own; without column 0 where `skip`."""
    keys, values = turn

    def put(history, new, at, skip, axis):  # of one row and layer
        new = jnp.where(skip, jnp.roll(new, -1, axis), new)
        return jax.lax.dynamic_update_slice_in_dim(history, new, at, axis)

    def rows(history, new, axis):  # [L, N, K, R, ...]
        each = functools.partial(put, axis=axis)
        each = jax.vmap(each, (0, 0, 0, 0))  # R
        each = jax.vmap(each, (0, 0, None, None))  # K
        each = jax.vmap(each, (0, 0, 0, 0))  # N
        return jax.vmap(each, (0, 0, None, None))(history, new, session.length, skip)  # L

    return rows(session.cache[0], keys, 1), rows(session.cache[1], values, 0)


@functools.partial(
    jax.jit,
    static_argnames=(
        "cfg",
        "max_new_tokens",
        "temperature",
        "top_k",
        "top_p",
        "stop",
        "first",
        "final",
    ),
)
def generate(
    params: PyTree,
    session: Session,
    active: Bool[Array, "N R"],
    cfg: Config,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: tuple[int, ...] = (),
    first: bool = False,
    final: bool = False,
) -> tuple[Session, dict[str, Array]]:
    """Sample a turn: up to `max_new_tokens` tokens of each active row, until a stop token.

    Args:
        params: parameters of the policy.
        session: a session with room for `max_new_tokens` + 1 more columns in each row.
        active: rows that sample; the others stay as they are.
        cfg: configuration of the policy.
        max_new_tokens: largest number of tokens, S.
        temperature: of the softmax; 0 takes the likeliest token.
        top_k: sample among the k likeliest tokens; 0: among all.
        top_p: sample among the likeliest tokens that hold this probability.
        stop: ids that end a turn.
        first: no row has a pending token, as after `prefill`; saves a column.
        final: the session is not used again; its cache is returned as it was.

    Returns:
        The session, and `tokens`, `logp`, `mask` [N, R, S] and `done` [N, R]. `mask` is True on
        sampled tokens. `done` is True where a turn ended with a stop token.
        `logp` is log softmax(logits / temperature) of the chosen token, before top-k and top-p.
    """
    (N, R), S = session.length.shape, max_new_tokens
    L, K, h = cfg.layers, cfg.kv_heads, cfg.head_dim
    params = cast(params, cfg)
    lead = 0 if first else 1  # column 0 holds the pending token
    W = S + lead
    pending = session.last != NONE
    held = jnp.where(pending, 0, lead)  # first valid column of each row
    prompt_length = session.prompt_mask.sum(-1, dtype=jnp.int32)[:, None]
    start = prompt_length + session.length - held  # position of column 0
    own = session.length + pending  # own tokens before the turn
    column, history = jnp.arange(W), jnp.arange(session.room)
    prompt_at = position_ids(session.prompt_mask)[:, None]
    history_at = prompt_length[..., None] + history
    inputs, pasts = _inputs(params, session, cfg), _by_layer(session.cache, cfg)

    def choose(hidden, k):
        """Token k of the turn and its log-probability, from hidden states [N, R, D]."""

        def draw(logits):
            keys = jax.vmap(jax.vmap(jax.random.fold_in))(session.key, own + k)
            return jax.vmap(jax.vmap(jax.random.categorical))(keys, logits)

        logits = unembed(params, hidden, cfg)
        return choose_token(logits, draw, temperature=temperature, top_k=top_k, top_p=top_p)

    out = empty_columns(active, S)
    turn = jnp.zeros((L, N, K, R, h, W), cfg.dtype), jnp.zeros((L, N, K, R, W, h), cfg.dtype)
    caches = _by_layer(turn, cfg)

    def feed(c, token, caches):
        """Feed column c of the turn; its hidden states [N, R, D]."""
        at = (start + c)[..., None]
        rotation = rope_by_window(at, cfg)
        own_mask = (column <= c) & (column >= held[..., None])
        own_at = start[..., None] + column

        def layer(x, inputs, past, now):
            w, kp, vp, window = inputs

            def attention(q, k, v):
                k, v = by_head(k, v)
                keys = jax.lax.dynamic_update_slice_in_dim(now[0], k, c, 4)
                values = jax.lax.dynamic_update_slice_in_dim(now[1], v, c, 3)
                parts = [
                    (
                        kp,
                        vp,
                        sliding_window_mask(
                            session.prompt_mask[:, None, None, :], at, prompt_at, window
                        )[:, None, :, None],
                    )
                ]
                if session.room:
                    visible = (history < session.length[..., None])[..., None, :]
                    parts.append(
                        (
                            *past,
                            sliding_window_mask(visible, at, history_at, window)[:, None, :, None],
                        )
                    )
                parts.append(
                    (
                        keys,
                        values,
                        sliding_window_mask(own_mask[..., None, :], at, own_at, window)[
                            :, None, :, None
                        ],
                    )
                )
                return attend(q, *parts, cfg=cfg), (keys, values)

            return block(x, w, *rotation(window), attention, cfg)

        x = embed(params, token[..., None], cfg)
        x, caches = _over_layers(layer, x, inputs, pasts, caches, cfg=cfg)
        return norm(x[:, :, 0], params["final_norm"], cfg), caches

    def more(carry):
        k, out, _ = carry
        return (k < S) & out["active"].any()

    def step(carry):
        k, out, caches = carry
        fed = jax.lax.dynamic_slice_in_dim(out["tokens"], jnp.maximum(k - 1, 0), 1, 2)[..., 0]
        fed = jnp.where(k == 0, jnp.maximum(session.last, 0), fed)
        x, caches = feed(k - 1 + lead, fed, caches)
        x = jnp.where((k == 0) & ~pending[..., None], session.hidden, x)
        return k + 1, write_column(out, k, *choose(x, k), stop), caches

    begin = 0
    if first:
        out, begin = write_column(out, 0, *choose(session.hidden, 0), stop), 1
    _, out, caches = jax.lax.while_loop(more, step, (begin, out, caches))
    count = out["mask"].sum(-1, dtype=jnp.int32)
    result = {name: out[name] for name in ("tokens", "logp", "mask", "done")}
    if final:
        return session, result
    newest = jnp.take_along_axis(out["tokens"], jnp.maximum(count - 1, 0)[..., None], 2)[..., 0]
    spoke = count > 0
    session = dataclasses.replace(
        session,
        cache=_merged(session, _stacked(caches, cfg), held > 0),
        length=session.length + jnp.where(spoke, pending + count - 1, 0),
        last=jnp.where(spoke, newest, session.last),
    )
    return session, result
