"""Experiments: all settings of a run as one value, with checks that need no device."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import optax

from jaxcredit import credit as credits
from jaxcredit import losses
from jaxcredit.credit import Credit, check_knobs, method_of
from jaxcredit.parallel import mesh as meshes
from jaxcredit.policy import lora
from jaxcredit.policy.config import Config, specs
from jaxcredit.policy.tokenizer import Tokenizer
from jaxcredit.rollout import SIGNALS
from jaxcredit.tasks import Task
from jaxcredit.utils import ranges
from jaxcredit.utils.ranges import COUNT, FROM_0, NOT_NEGATIVE, POSITIVE, SEED, SHARE_ABOVE_0, Range

# Ranges of the numbers of an Experiment, its Warmup and its policy. Those in OR_NONE may also be
# None.
NUMBERS: dict[str, Range] = {
    "beta": NOT_NEGATIVE,
    "prompts_per_step": COUNT,
    "group_size": COUNT,
    "max_new_tokens": COUNT,
    "temperature": POSITIVE,
    "top_k": FROM_0,
    "top_p": SHARE_ABOVE_0,
    "max_sampling_rounds": COUNT,
    "epochs": COUNT,
    "steps": FROM_0,
    "eval_every": COUNT,
    "eval_prompts": COUNT,
    "save_every": COUNT,
    "max_to_keep": COUNT,
    "reward_timeout_s": POSITIVE,
    "reward_workers": FROM_0,
    "max_skipped_steps": COUNT,
    "seed": SEED,
}
OR_NONE = {"minibatch": COUNT, "micro_batch": COUNT}
WARMUP = {"steps": FROM_0, "batch": COUNT, "until": NOT_NEGATIVE, "every": COUNT}
POLICY = {
    name: COUNT for name in ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "ffn")
}
POLICY |= {name: COUNT for name in ("vocab_chunk", "token_chunk", "query_chunk")}
POLICY |= {
    "rope_theta": POSITIVE,
    "norm_eps": POSITIVE,
    "score_dim": FROM_0,
    "score_cap": NOT_NEGATIVE,
    "logit_cap": NOT_NEGATIVE,
}


@dataclasses.dataclass(frozen=True)
class Warmup:
    """Supervised training on the task's demonstrations, before reinforcement learning."""

    steps: int = 500  # at most
    batch: int = 128  # demonstrations per step
    until: float = 1.0  # held-out greedy accuracy at which the warm-up ends; above 1: never
    every: int = 10  # steps between evaluations of that accuracy
    optimizer: optax.GradientTransformation = dataclasses.field(
        default_factory=lambda: optax.adamw(2e-3)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Settings of a run: task, policy, estimator, update, schedule and devices.

    A config is a function that returns an Experiment; `jaxcredit train` runs it.
    """

    name: str
    task: Task
    tokenizer: Tokenizer
    policy: Config
    # Function from shardings (None on one device) to parameters; None: random parameters.
    load_params: Callable[[Any], Any] | None = None
    warmup: Warmup | None = None
    # Ranks of LoRA adapters by matrix, the only trained parameters; empty: all are trained.
    lora: Mapping[str, int] = dataclasses.field(default_factory=dict)

    credit: Credit = credits.tempo
    # Annotators by name: see jaxcredit.signals.
    signals: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
    objective: losses.Objective = losses.ppo_clip
    aggregate: losses.Aggregate = losses.token_mean
    kl: Callable = losses.k3
    beta: float = 0.0  # weight of the KL penalty; above 0 needs the signal ref_logp
    optimizer: optax.GradientTransformation = dataclasses.field(
        default_factory=lambda: optax.adam(1e-6)
    )

    prompts_per_step: int = 32  # over all processes
    group_size: int = 16  # trajectories per prompt
    buckets: tuple[int, ...] = (64,)  # prompt lengths for which programs are compiled, in tokens
    max_new_tokens: int = 64  # longest answer in tokens
    temperature: float = 1.0
    top_k: int = 0  # sample from the k most likely tokens; 0: all
    top_p: float = 1.0  # nucleus sampling: least probability mass of the tokens to sample from
    # Sample the answers of a step before the update of the step before, and score them during that
    # update. They come from parameters that are one update old. Their loss is therefore weighted by
    # losses.truncated_importance of whole answers; weights of single tokens do not correct the bias
    # (tests/benchmarks/ahead.py).
    sample_ahead: bool = False
    # Rounds of dynamic sampling, to replace groups without a signal; 1: no replacement.
    max_sampling_rounds: int = 1
    minibatch: int | None = None  # prompts per optimizer step; None: all
    micro_batch: int | None = None  # prompts per forward and backward pass; None: the minibatch
    epochs: int = 1  # passes over each rollout

    steps: int = 100
    eval_every: int = 10  # steps
    eval_prompts: int = 512  # held-out problems of an evaluation, at most
    save_every: int = 50  # steps
    max_to_keep: int = 2  # checkpoints
    reward_timeout_s: float = 10.0  # of one call of the reward
    reward_workers: int = 1  # processes that compute rewards (see tasks.score); 0: this process
    max_skipped_steps: int = 8  # steps in a row without a finite gradient that stop the run
    # Sizes of the mesh axes, for example {"fsdp": 4, "tensor": 2}; empty: one device.
    mesh: Mapping[str, int] = dataclasses.field(default_factory=dict)
    rules: meshes.Rules = dataclasses.field(default_factory=lambda: meshes.fsdp_tensor)
    # Sharding rules of the parameters during sampling, for example mesh.sampling_rules, which need
    # memory for parameters in the compute dtype that are replicated over fsdp. None: as during
    # training, with an all-gather per layer and token.
    sampling_rules: meshes.Rules | None = None
    seed: int = 0

    def provided(self) -> set[str]:
        """Names of the signals in the rollouts of this experiment."""
        return {
            "prompt",
            *(s for make in self.signals.values() for s in getattr(make, "provides", ())),
        }

    def held_out(self) -> tuple[list[dict], int]:
        """The problems of an evaluation, and the number of problems per batch."""
        items = list(itertools.islice(self.task.test, self.eval_prompts))
        most = self.prompts_per_step * self.group_size
        return items, min(round_up(len(items), self.prompts_per_step), most)

    def check(self) -> "Experiment":
        """This experiment, if its settings fit together.

        Raises:
            TypeError: a field has the wrong type.
            ValueError: a number is out of range, or two settings contradict each other. The message
                names both and a fix.
        """
        self._check_types()
        ranges.check(NUMBERS, self)
        ranges.check(
            {name: r for name, r in OR_NONE.items() if getattr(self, name) is not None}, self
        )
        ranges.check(POLICY, self.policy, "policy.")
        if self.warmup:
            ranges.check(WARMUP, self.warmup, "warmup.")
        check_knobs(self.credit)
        method = method_of(self.credit)
        missing = [s for s in method.needs if s not in self.provided()]
        if missing:
            raise ValueError(_missing(method, missing, self.provided()))
        if self.group_size < method.min_group_size:
            raise ValueError(
                f"{method.name} compares the trajectories of a group, and group_size = "
                f"{self.group_size}: "
                f"sample at least {method.min_group_size} a prompt, or take an estimator that "
                "needs no peers"
            )
        if self.beta and "ref_logp" not in self.provided():
            raise ValueError(
                f"beta = {self.beta} weighs a KL to a reference: add "
                'signals={"reference": signals.reference()}, or set beta = 0'
            )
        if self.tokenizer.vocab_size > self.policy.vocab:
            raise ValueError(
                f"tokenizer and checkpoint disagree: the tokenizer has {self.tokenizer.vocab_size} "
                "ids, the policy embeds "
                f"{self.policy.vocab}; take the tokenizer of the checkpoint's own folder"
            )
        if self.sample_ahead and self.max_sampling_rounds > 1:
            raise ValueError(
                f"max_sampling_rounds = {self.max_sampling_rounds} waits for rewards, nothing can "
                "be sampled ahead: set sample_ahead=False or max_sampling_rounds=1"
            )
        if jax.process_count() > 1 and not self.mesh:
            raise ValueError(
                f"{jax.process_count()} processes without a mesh would train a model each: set "
                f"mesh, such as {{'fsdp': -1}}"
            )
        lora.specs(specs(self.policy), self.lora)
        minibatch = self.minibatch or self.prompts_per_step
        shards = meshes.shard_count("batch", self.rules, self.mesh)
        demos = min(self.warmup.batch, len(self.task.demos)) if self.warmup else shards
        for small, large, message in (
            (minibatch, self.prompts_per_step, "minibatch must divide prompts_per_step"),
            (self.micro_batch or minibatch, minibatch, "micro_batch must divide the minibatch"),
            (
                shards,
                self.micro_batch or minibatch,
                "the mesh axis that cuts the batch must divide the prompts of a pass (micro_batch)",
            ),
            (shards, demos, "the mesh axis that cuts the batch must divide the warm-up's batch"),
        ):
            if small < 1 or large % small:
                raise ValueError(f"{message}: {small} does not divide {large}")
        if self.warmup and not len(self.task.demos):
            raise ValueError(
                f"a warm-up needs demonstrations, and task {self.task.name!r} has no demos: give "
                "it some, or set warmup=None"
            )
        if self.prompts_per_step > len(self.task.train):
            raise ValueError(
                f"a step takes {self.prompts_per_step} prompts and the task has "
                f"{len(self.task.train)}: lower prompts_per_step, or give more data"
            )
        return self

    def _check_types(self) -> None:
        """Raise a TypeError for a field of the wrong type."""
        for name, kind in (
            ("name", str),
            ("task", Task),
            ("policy", Config),
            ("warmup", Warmup | None),
        ):
            if not isinstance(x := getattr(self, name), kind):
                expected = getattr(kind, "__name__", "Warmup or None")
                raise TypeError(
                    f"{name} = {x!r:.80}: it must be a {expected}, not {type(x).__name__}"
                )
        missing = [
            name
            for name in ("encode", "decode", "chat", "vocab_size", "pad_id", "stop_ids")
            if not hasattr(self.tokenizer, name)
        ]
        if missing:
            raise TypeError(
                f"tokenizer = {self.tokenizer!r:.80} has no {', '.join(missing)}: take "
                "jaxcredit.policy.Chars(alphabet) or .HF(folder)"
            )
        if not isinstance(self.optimizer, optax.GradientTransformation):
            raise TypeError(
                f"optimizer = {self.optimizer!r:.80}: it must be an optax.GradientTransformation, "
                "such as optax.adam(1e-6)"
            )
        annotators = {f"signals[{name!r}]": make for name, make in self.signals.items()}
        for name, x in (
            {n: getattr(self, n) for n in ("credit", "objective", "aggregate", "kl", "load_params")}
            | annotators
        ).items():
            if not callable(x) and not (name == "load_params" and x is None):
                raise TypeError(
                    f"{name} = {x!r:.80}: it must be a function, not {type(x).__name__}"
                )
        if not self.buckets or not all(COUNT.holds(length) for length in self.buckets):
            raise ValueError(
                f"buckets = {self.buckets!r}: prompt lengths to compile for, such as (64,), each "
                f"{COUNT}"
            )
        if wrong := {
            axis: size for axis, size in self.mesh.items() if size != -1 and not COUNT.holds(size)
        }:
            raise ValueError(
                f"mesh = {dict(self.mesh)!r}: the size of {', '.join(wrong)} must be {COUNT}, or "
                "-1 for all devices that are left"
            )
        if not len(self.task.test):
            raise ValueError(
                f"task {self.task.name!r} has no held-out problems: give some as Task(test=...), a "
                "run is judged by them"
            )


def round_up(n: int, step: int) -> int:
    """Smallest multiple of `step` that is at least `n`."""
    return -(-n // step) * step


def _missing(method, missing, provided):
    """Message about signals that an estimator needs and the experiment does not provide."""
    names = [n for n in credits.__all__ if set(method_of(getattr(credits, n)).needs) <= provided]
    return (
        f"{method.name} needs the signal{'s' * (len(missing) > 1)} {', '.join(missing)}, which "
        "this experiment does not collect "
        f"(it has: {', '.join(sorted(provided))}). "
        f"{how_to_provide(missing, provided - {'prompt'})}. "
        f"Estimators that need nothing more: {', '.join(names)}"
    )


def how_to_provide(needs: Iterable[str], provided: Iterable[str] = ()) -> str:
    """Instructions for adding signals to a config.

    Args:
        needs: signals to add.
        provided: signals that the config's annotators provide already.
    """
    makers = [SIGNALS[name].maker for name in needs if name in SIGNALS and SIGNALS[name].maker]
    without = [name for name in needs if name not in SIGNALS or not SIGNALS[name].maker]
    parts = (
        [f"Add to the config's Experiment(...): signals={{{', '.join(makers)}}}"] if makers else []
    )
    parts = [
        f"{part}, beside what provides {', '.join(sorted(provided))}" if provided else part
        for part in parts
    ]
    if without:
        meanings = "; ".join(
            f"{name} ({SIGNALS[name].meaning})" if name in SIGNALS else name for name in without
        )
        parts.append(
            f"jaxcredit.signals has no annotator for {meanings}: write one, as "
            "jaxcredit/signals/greedy_baseline.py is one"
        )
    return ". ".join(parts)
