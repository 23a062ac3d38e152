"""TEMPO on GSM8K with Qwen3 from a Hugging Face folder, on a mesh (fsdp x tensor).

Does it fit? Only shapes are needed.
    jaxcredit plan configs/gsm8k_qwen3.py --model 8b --rows 64 --seq 1024
The weights: a folder, or an id on the hub (Qwen/Qwen3-0.6B) where the network is there.
    hf download Qwen/Qwen3-0.6B --local-dir qwen3-0.6b
The data: a folder with train.jsonl and test.jsonl ("question", "answer"), or none where tensorflow-datasets has prepared gsm8k.
    jaxcredit train configs/gsm8k_qwen3.py --checkpoint qwen3-0.6b --data gsm8k
"""

import dataclasses
import functools
import warnings
from pathlib import Path

import optax

from jaxcredit import credit, losses
from jaxcredit.parallel import mesh
from jaxcredit.policy import PlaceholderTokenizer, lora, presets
from jaxcredit.policy.formats import pretrained
from jaxcredit.policy.tokenizer import HF
from jaxcredit.tasks import Task, gsm8k
from jaxcredit.train.experiment import Experiment

MODELS = {
    name.removeprefix("qwen3_").replace("0p6", "0.6").replace("1p7", "1.7"): preset
    for name, preset in presets.ALL.items()
}
ABSENT = "no checkpoint was given, which is enough to plan. To train give --checkpoint FOLDER, or an id on the hub: --checkpoint Qwen/Qwen3-0.6B"


def experiment(
    model: str = "0.6b",
    checkpoint: str | None = None,
    data: Path | None = None,
    rows: int = 64,
    group: int = 8,
    seq: int = 1024,
    prompt: int = 256,
    micro: int | None = None,
    fsdp: int | None = None,
    tensor: int = 1,
    slices: int = 1,
    settle: bool = True,
    lora_rank: int = 0,
    lr: float = 1e-6,
    temperature: float = 1.0,
    steps: int = 200,
    eval_prompts: int = 256,
    save_every: int = 20,
    seed: int = 0,
) -> Experiment:
    """The run of this file.

    Args:
        model: the shape to plan with, of Qwen3 or any name of `jaxcredit models`; a checkpoint brings its own
        checkpoint: a Hugging Face folder (config.json, *.safetensors, tokenizer), or its id on the hub
        data: a folder with train.jsonl and test.jsonl; None: what tensorflow-datasets has prepared
        rows: answers a step, over all prompts and devices
        group: answers to each prompt
        seq: tokens that a prompt and its answer may have together
        prompt: tokens that a prompt may have; problems with longer ones are left out
        micro: prompts in one forward and backward pass; None: one on each device of the axis fsdp
        fsdp: devices that parameters and prompts are cut over; None: all that tensor leaves
        tensor: devices that heads, hidden layer and vocabulary are cut over
        slices: TPU slices, each with all parameters; the prompts are cut over them, and only gradients cross the network between
        settle: sample from weights that only tensor cuts, brought there once a step; --no-settle: gather each layer for each token
        lora_rank: train adapters of this rank, on bfloat16 weights that stay as they are; 0: train everything
        lr: learning rate, after five steps of rising to it
        temperature: temperature of sampling
        steps: optimizer steps
        eval_prompts: held-out problems of an evaluation
        save_every: steps between checkpoints
        seed: seed of the order of problems and of the sampling
    """
    if rows % group or not 0 < prompt < seq:
        raise ValueError(
            f"rows = {rows} must be a multiple of group = {group}, and prompt = {prompt} be less than seq = {seq}"
        )
    if model not in MODELS:
        raise ValueError(f"no model is called {model!r}; there are: {', '.join(MODELS)}")
    shape = dict(dtype="bfloat16", param_dtype="bfloat16" if lora_rank else "float32", remat="full")
    if checkpoint:
        tokenizer = HF(checkpoint, enable_thinking=False)
        policy = pretrained.config(checkpoint, **shape)
        # Rows beyond the tokenizer's ids pad the vocabulary: they mean nothing and must not be sampled.
        policy = dataclasses.replace(
            policy, forbidden=tuple(range(tokenizer.vocab_size, policy.vocab))
        )
        task = fitting(gsm8k(data), tokenizer, prompt)
    else:
        policy = MODELS[model](**shape)
        tokenizer = PlaceholderTokenizer(policy.vocab, ABSENT)
        task = gsm8k(data) if data else UNREAD
    fsdp = mesh.axis_sizes({"data": slices, "fsdp": fsdp or -1, "tensor": tensor})["fsdp"]
    return Experiment(
        name=f"gsm8k_qwen3_{model}",
        task=task,
        tokenizer=tokenizer,
        policy=policy,
        load_params=functools.partial(weights, checkpoint, policy),
        lora=lora.table(lora_rank, lora.ATTENTION if policy.experts else lora.ATTENTION + lora.MLP),
        credit=credit.tempo,
        objective=functools.partial(losses.ppo_clip, high=0.28),
        optimizer=optax.chain(
            optax.clip_by_global_norm(1.0), optax.adam(optax.linear_schedule(0.0, lr, 5))
        ),
        prompts_per_step=rows // group,
        group_size=group,
        micro_batch=micro or min(slices * fsdp, rows // group),
        buckets=(prompt,),
        max_new_tokens=seq - prompt,
        temperature=temperature,
        steps=steps,
        eval_every=20,
        eval_prompts=eval_prompts,
        save_every=save_every,
        sampling_rules=mesh.sampling_rules if settle else None,
        mesh=({"data": slices} if slices > 1 else {}) | {"fsdp": fsdp, "tensor": tensor},
        seed=seed,
    )


def weights(checkpoint, policy, shardings):
    """The parameters of the checkpoint, each placed where it belongs before the next is read."""
    if checkpoint is None:
        raise ValueError(ABSENT)
    shape = dict(dtype=policy.dtype, param_dtype=policy.param_dtype)
    return pretrained.load(checkpoint, shardings=shardings, **shape)[1]


def fitting(task: Task, tokenizer, room: int) -> Task:
    """The task without problems whose prompt has more than `room` tokens."""

    def short(items):
        return [item for item in items if len(tokenizer.chat(item["prompt"])) <= room]

    kept = Task(task.name, short(task.train), short(task.test), task.reward)
    if lost := len(task.train) + len(task.test) - len(kept.train) - len(kept.test):
        warnings.warn(
            f"{lost} problems with prompts of more than {room} tokens are left out; --prompt makes room for them",
            stacklevel=3,
        )
    return kept


ITEM = {"prompt": "1 + 1 = ?", "meta": {"gold": "2"}}
UNREAD = Task(
    "gsm8k", [ITEM] * 7473, [ITEM] * 1319, lambda meta, text, ids: 0.0
)  # its numbers, to plan with
