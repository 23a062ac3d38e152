# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Where does the credit go?
#
# A small policy sorts digits. It answers one question several times, some answers are right, and a verifier says which. Which *token*
# earned it? Ten estimators answer below, on the very same tokens. Everything runs on a CPU in about a minute.

# %%
import importlib.util
import subprocess
import sys

if (
    importlib.util.find_spec("jaxcredit") is None
):  # in Colab; restart the session if jax had to be upgraded
    where = "jaxcredit[train] @ git+https://github.com/jaxcredit/jaxcredit"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", where], check=True)

import jax

print("jax", jax.__version__, jax.devices())

# %% [markdown]
# ## A policy that is right now and then
#
# A transformer of 0.2 M parameters learns from demonstrations of three to five digits, and is stopped early. Six digits it has never seen.

# %%
import functools

import numpy as np
import optax

from jaxcredit import credit
from jaxcredit.analysis import pictures
from jaxcredit.train import programs
from jaxcredit.collect.single_turn import single_turn
from jaxcredit.train.experiment import Experiment, Warmup
from jaxcredit.kernels import prefix_value
from jaxcredit.policy import presets
from jaxcredit.train.evaluation import greedy_accuracy
from jaxcredit.tasks import number_sorting
from jaxcredit.policy.tokenizer import Chars
from jaxcredit.train.supervised import warm_up

tokenizer = Chars("0123456789<>")
exp = Experiment(
    name="notebook",
    task=number_sorting(lengths=(6, 6), demo_lengths=(3, 5)),
    tokenizer=tokenizer,
    policy=presets.micro(tokenizer.vocab_size, remat="none"),
    warmup=Warmup(steps=400, batch=128, until=0.2, every=20, optimizer=optax.adamw(3e-3)),
    prompts_per_step=64,
    group_size=8,
    buckets=(7,),
    max_new_tokens=7,
    eval_prompts=256,
).check()
made = programs.build(exp)


def accuracy(weights):
    return greedy_accuracy(exp, made, weights)


state, steps = warm_up(exp, made, made.init(jax.random.key(0)), accuracy, print)
print(
    f"{steps} steps of supervision: {accuracy(state.params):.0%} of the held-out lists of six come out right, answering greedily"
)

# %% [markdown]
# ## A group of answers is a tree
#
# Eight answers to each of 64 questions. The group drawn is one in which about half are right. On each edge stand the digits that its
# answers share, and the mean reward of those answers: the value of that prefix. Where an edge changes colour, a decision mattered.

# %%
collect = single_turn(
    made.sample, tokenizer, exp.task, group_size=exp.group_size, buckets=exp.buckets
)
collected = collect(state.params, jax.random.key(1), np.arange(exp.prompts_per_step))()
rollout = collected.rollout.filled()
reward = np.asarray(rollout.reward)[..., 0]
mask = np.asarray(rollout.action_mask)
P = exp.buckets[0]


def branching(n):
    """Groups to look at have several different answers, which part late."""
    return -min(len(set(collected.texts[n])), 5), len({a[:2] for a in collected.texts[n]})


def text(token):
    return tokenizer.decode([token]) or "."


mixed = [n for n in range(exp.prompts_per_step) if 2 <= reward[n].sum() <= 5] or [
    int(np.abs(reward.mean(1) - 0.5).argmin())
]
chosen = min(mixed, key=branching)
answers = [
    np.asarray(rollout.tokens)[chosen, i][mask[chosen, i]].tolist() for i in range(exp.group_size)
]
question = exp.task.train[chosen]["prompt"]
pictures.prefix_tree(
    answers, reward[chosen], text, title=f"sort {question}  (a point is the end of the answer)"
)

# %% [markdown]
# ## Ten answers to one question
#
# Blue: this token is to become likelier. Red: less likely. Rows are the eight answers, with their rewards, the right ones on top.
#
# Some estimators want to know more than tokens and rewards. Here the policy itself provides it: the entropy of each choice, the sum of
# squared probabilities, and a critic that knows the mean reward of each prefix.

# %%
import jax.numpy as jnp

from jaxcredit.policy import transformer


def drawn(x):
    """The distribution a token was drawn from stands one column before it."""
    return jnp.pad(x, ((0, 0), (0, 0), (1, 0)))


logits = jax.jit(lambda w, y, v: transformer.logits(w, y, v, exp.policy))
flat = (
    rollout.tokens.reshape(-1, rollout.tokens.shape[-1]),
    rollout.token_mask.reshape(-1, rollout.tokens.shape[-1]),
)
logp = jax.nn.log_softmax(logits(state.params, *flat)[:, :-1]).reshape(
    exp.prompts_per_step, exp.group_size, -1, exp.policy.vocab
)
p = jnp.exp(logp)
entropy, square = drawn(-(p * jnp.where(p > 0, logp, 0)).sum(-1)), drawn((p * p).sum(-1))
value = jax.vmap(lambda y, v, r: prefix_value(y, v, r, where=jnp.ones(exp.group_size, bool)))(
    rollout.tokens, rollout.token_mask, rollout.reward[..., 0]
)
told = rollout.with_signals(entropy=entropy, prob_square=square, token_value=value[..., :-1])

estimators = {
    "grpo": credit.grpo,
    "rloo": credit.rloo,
    "opo": credit.opo,
    "reinforce_pp": credit.reinforce_pp,
    "passk": credit.passk,
    "tempo": credit.tempo,
    "sploo": credit.sploo,
    "ppo (prefix values, lam=0)": functools.partial(credit.ppo, lam=0.0, whiten=False),
    "otb": credit.otb,
    "entropy_mask": credit.entropy_mask,
}
shown = {}
for name, estimator in estimators.items():
    columns = credit.columns(estimator(told), told)
    A = np.asarray(columns["advantage"] * (columns["weight"] > 0))[chosen]
    shown[name] = [A[i][mask[chosen, i]] for i in range(exp.group_size)]
width = max(map(len, answers))
shown = {
    name: np.array([np.pad(row, (0, width - len(row))) for row in rows])
    for name, rows in shown.items()
}
pictures.credit_heatmaps(shown, answers, reward[chosen], text)

# %% [markdown]
# `grpo`, `rloo` and `opo` say the same to every token of an answer. `tempo` speaks up where answers part and their fates with them; a
# critic that knew the prefix values (`ppo` with `lam=0`) would credit nothing else. `sploo` moves only on evidence, and eight answers are
# little of it. `passk` pays the best answer alone, and only if it is alone: two right ones are a tie.
#
# ## Your own
#
# An estimator is a function of one group. This one gives the credit of an answer to its first token alone.

# %%
from jaxcredit.credit import per_group
from jaxcredit.kernels import center, to_tokens
from jaxcredit.rollout import trajectory_mask, outcome


@per_group
def first_word(group):
    """A_it = R_i - mean R at an answer's first token, 0 elsewhere."""
    first = group.action_mask & (jnp.cumsum(group.action_mask, 1) == 1)
    return jnp.where(
        first, to_tokens(center(outcome(group), where=trajectory_mask(group)), group), 0
    )


mine = np.asarray(first_word(told))[chosen]
rows = np.array(
    [np.pad(mine[i][mask[chosen, i]], (0, width - len(answers[i]))) for i in range(exp.group_size)]
)
pictures.credit_heatmaps(
    {"first_word": rows, "tempo": shown["tempo"]}, answers, reward[chosen], text, wide=2
)

# %% [markdown]
# Does it obey the laws that every estimator obeys? `jaxcredit check my_file.py` asks the same.

# %%
from jaxcredit.credit import laws

for result in laws.check(first_word, laws=laws.QUICK):
    print(
        {True: "holds  ", False: "BROKEN ", None: "skipped"}[result.passed],
        result.law,
        result.detail,
    )
