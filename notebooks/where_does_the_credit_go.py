# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Where does the credit go?
#
# A small policy sorts digits. It answers one question several times. Some answers are right, and a
# verifier decides which. Which *token* earned the reward? Ten estimators answer below, for the same
# tokens. Everything runs on a CPU in about a minute.

# %%
import importlib.util
import subprocess
import sys

# In Colab: install jaxcredit. Restart the session if jax had to be upgraded.
if importlib.util.find_spec("jaxcredit") is None:
    package = "jaxcredit[train] @ git+https://github.com/jaxcredit/jaxcredit"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)

import jax

print("jax", jax.__version__, jax.devices())

# %% [markdown]
# ## A policy that is sometimes right
#
# A transformer with 0.2 million parameters learns from demonstrations of three to five digits, and
# the training is stopped early. It has never seen lists of six digits.

# %%
import functools

import numpy as np
import optax

from jaxcredit import credit
from jaxcredit.analysis import pictures
from jaxcredit.collect.single_turn import single_turn
from jaxcredit.kernels import prefix_value
from jaxcredit.policy import Chars, presets
from jaxcredit.tasks import number_sorting
from jaxcredit.train import Experiment, Warmup, programs
from jaxcredit.train.evaluation import greedy_accuracy
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
compiled = programs.build(exp)


def accuracy(weights):
    return greedy_accuracy(exp, compiled, weights)


state, steps = warm_up(exp, compiled, compiled.init(jax.random.key(0)), accuracy, print)
print(f"{steps} steps of supervised training")
print(f"{accuracy(state.params):.0%} of the greedy answers to held-out lists of six are right")

# %% [markdown]
# ## A group of answers is a tree
#
# The policy answers each of 64 questions eight times. The figure shows a group in which about half
# of the answers are right. Each edge has the digits that its answers share, and the mean reward of
# those answers, which is the value of that prefix. Where the color changes, a decision
# mattered.

# %%
collect = single_turn(
    compiled.sample, tokenizer, exp.task, group_size=exp.group_size, buckets=exp.buckets
)
collected = collect(state.params, jax.random.key(1), np.arange(exp.prompts_per_step))()
rollout = collected.rollout.filled()
reward = np.asarray(rollout.reward)[..., 0]
mask = np.asarray(rollout.action_mask)


def preference(n):
    """Sort key: groups with several different answers that branch late come first."""
    return -min(len(set(collected.texts[n])), 5), len({answer[:2] for answer in collected.texts[n]})


def text(token):
    return tokenizer.decode([token]) or "."


mixed = [n for n in range(exp.prompts_per_step) if 2 <= reward[n].sum() <= 5]
mixed = mixed or [int(np.abs(reward.mean(1) - 0.5).argmin())]
chosen = min(mixed, key=preference)
tokens = np.asarray(rollout.tokens)[chosen]
answers = [tokens[i][mask[chosen, i]].tolist() for i in range(exp.group_size)]
question = exp.task.train[chosen]["prompt"]
pictures.prefix_tree(
    answers, reward[chosen], text, title=f"sort {question}  (a point is the end of the answer)"
)

# %% [markdown]
# ## Ten estimators for one group
#
# A blue token becomes likelier, a red one less likely. The rows are the eight answers, sorted by
# their rewards.
#
# Some estimators need more than tokens and rewards. The policy provides these signals here: the
# entropy of each choice, the sum of squared probabilities, and the mean reward of each prefix, as a
# perfect critic would predict it.

# %%
import jax.numpy as jnp

from jaxcredit.policy import transformer


def shift_to_tokens(x):
    """Move values from the position that predicts a token to the token itself."""
    return jnp.pad(x, ((0, 0), (0, 0), (1, 0)))


logits = jax.jit(lambda w, y, v: transformer.logits(w, y, v, exp.policy))
rows = (
    rollout.tokens.reshape(-1, rollout.tokens.shape[-1]),
    rollout.token_mask.reshape(-1, rollout.tokens.shape[-1]),
)
logp = jax.nn.log_softmax(logits(state.params, *rows)[:, :-1]).reshape(
    exp.prompts_per_step, exp.group_size, -1, exp.policy.vocab
)
p = jnp.exp(logp)
value = jax.vmap(lambda y, v, r: prefix_value(y, v, r, where=jnp.ones(exp.group_size, bool)))(
    rollout.tokens, rollout.token_mask, rollout.reward[..., 0]
)
with_signals = rollout.with_signals(
    entropy=shift_to_tokens(-(p * jnp.where(p > 0, logp, 0)).sum(-1)),
    prob_square=shift_to_tokens((p * p).sum(-1)),
    token_value=value[..., :-1],
)

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
width = max(map(len, answers))


def of_answers(advantage):
    """Advantages of the chosen group's answers, [answers, width], padded with zeros."""
    answer_rows = [np.asarray(advantage)[chosen, i][mask[chosen, i]] for i in range(exp.group_size)]
    return np.array([np.pad(row, (0, width - len(row))) for row in answer_rows])


advantages = {}
for name, estimator in estimators.items():
    columns = credit.columns(estimator(with_signals), with_signals)
    advantages[name] = of_answers(columns["advantage"] * (columns["weight"] > 0))
pictures.credit_heatmaps(advantages, answers, reward[chosen], text)

# %% [markdown]
# `grpo`, `rloo` and `opo` give all tokens of an answer the same credit. `tempo` gives most of it to
# branch points at which the value changes. With exact prefix values, `ppo` with `lam=0` gives
# credit to nothing else. `sploo` needs evidence, and eight answers have little. `passk` rewards
# the best answer only if no other is as good.
#
# ## Your own estimator
#
# An estimator is a function of one group. This one gives an answer's credit to its first token.

# %%
from jaxcredit.credit import per_group
from jaxcredit.kernels import center, to_tokens
from jaxcredit.rollout import outcome, trajectory_mask


@per_group
def first_token(group):
    """A_it = R_i - mean R at an answer's first token, 0 elsewhere."""
    first = group.action_mask & (jnp.cumsum(group.action_mask, 1) == 1)
    advantage = center(outcome(group), where=trajectory_mask(group))
    return jnp.where(first, to_tokens(advantage, group), 0)


pictures.credit_heatmaps(
    {"first_token": of_answers(first_token(with_signals)), "tempo": advantages["tempo"]},
    answers,
    reward[chosen],
    text,
    wide=2,
)

# %% [markdown]
# Does it obey the laws that every estimator obeys? `jaxcredit check my_file.py` checks a file.

# %%
from jaxcredit.credit import laws

words = {True: "holds  ", False: "BROKEN ", None: "skipped"}
for result in laws.check(first_token, laws=laws.QUICK):
    print(words[result.passed], result.law, result.detail)
