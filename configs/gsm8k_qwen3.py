"""TEMPO on GSM8K (grade school mathematics) with Qwen3, on a mesh of GPUs or TPUs.

Predict the memory and the communication. This needs shapes alone, no weights:
    jaxcredit plan configs/gsm8k_qwen3.py --model 8b --rows 64 --seq 1024
Download the weights:
    hf download Qwen/Qwen3-0.6B --local-dir qwen3-0.6b
Train, with a folder that has train.jsonl and test.jsonl ("question", "answer"):
    jaxcredit train configs/gsm8k_qwen3.py --checkpoint qwen3-0.6b --data gsm8k
Without --data, the data set that tensorflow-datasets has prepared is used.
"""

import dataclasses
import functools
import warnings
from pathlib import Path

import optax

from jaxcredit import credit, losses
from jaxcredit.parallel import mesh
from jaxcredit.policy import HF, PlaceholderTokenizer, lora, presets
from jaxcredit.policy.formats import pretrained
from jaxcredit.tasks import Task, gsm8k
from jaxcredit.train import Experiment

MODELS = {
    name.removeprefix("qwen3_").replace("0p6", "0.6").replace("1p7", "1.7"): preset
    for name, preset in presets.ALL.items()
}
NO_CHECKPOINT = (
    "no checkpoint was given, which suffices for `jaxcredit plan`. To train, give "
    "--checkpoint FOLDER, or an id on the hub: --checkpoint Qwen/Qwen3-0.6B"
)


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
    reshard: bool = True,
    lora_rank: int = 0,
    lr: float = 1e-6,
    temperature: float = 1.0,
    steps: int = 200,
    eval_prompts: int = 256,
    save_every: int = 20,
    seed: int = 0,
) -> Experiment:
    """The experiment of this file.

    Args:
        model: shape to plan with: a size of Qwen3 or a name of `jaxcredit models`; a checkpoint
            has its own
        checkpoint: a Hugging Face folder (config.json, *.safetensors, tokenizer), or its id on
            the hub
        data: a folder with train.jsonl and test.jsonl; None: as tensorflow-datasets has prepared it
        rows: answers in one step, over all prompts and devices
        group: answers to each prompt
        seq: largest number of tokens of a prompt and its answer together
        prompt: largest number of tokens of a prompt; problems with longer ones are left out
        micro: prompts in one forward and backward pass; None: one for each device of the axis fsdp
        fsdp: devices over which parameters and prompts are sharded; None: all that --tensor leaves
        tensor: devices over which heads, hidden layer and vocabulary are sharded
        slices: TPU slices, each with all parameters; the prompts are distributed over them, and
            only gradients cross the network between slices
        reshard: before sampling, gather the weights once over the axis fsdp; with --no-reshard
            each layer is gathered for each token
        lora_rank: rank of trained adapters on frozen bfloat16 weights; 0: train all weights
        lr: learning rate after a linear warm-up of five steps
        temperature: sampling temperature
        steps: optimizer steps
        eval_prompts: held-out problems in an evaluation
        save_every: steps between checkpoints
        seed: seed of the order of problems and of the sampling
    """
    if rows % group or not 0 < prompt < seq:
        raise ValueError(
            f"rows = {rows} must be a multiple of group = {group}, "
            f"and prompt = {prompt} must be less than seq = {seq}"
        )
    if model not in MODELS:
        raise ValueError(f"unknown model {model!r}; known: {', '.join(MODELS)}")
    shape = dict(dtype="bfloat16", param_dtype="bfloat16" if lora_rank else "float32", remat="full")
    if checkpoint:
        tokenizer = HF(checkpoint, enable_thinking=False)
        policy = pretrained.config(checkpoint, **shape)
        # Ids that the tokenizer does not have pad the vocabulary and must not be sampled.
        unused = tuple(range(tokenizer.vocab_size, policy.vocab))
        policy = dataclasses.replace(policy, forbidden=unused)
        task = with_short_prompts(gsm8k(data), tokenizer, prompt)
    else:
        policy = MODELS[model](**shape)
        tokenizer = PlaceholderTokenizer(policy.vocab, NO_CHECKPOINT)
        task = gsm8k(data) if data else PLACEHOLDER
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
        sampling_rules=mesh.sampling_rules if reshard else None,
        mesh=({"data": slices} if slices > 1 else {}) | {"fsdp": fsdp, "tensor": tensor},
        seed=seed,
    )


def weights(checkpoint, policy, shardings):
    """Parameters of the checkpoint, each sharded before the next one is read."""
    if checkpoint is None:
        raise ValueError(NO_CHECKPOINT)
    shape = dict(dtype=policy.dtype, param_dtype=policy.param_dtype)
    return pretrained.load(checkpoint, shardings=shardings, **shape)[1]


def with_short_prompts(task: Task, tokenizer, longest: int) -> Task:
    """The task without problems whose prompt has more than `longest` tokens."""

    def short(items):
        return [item for item in items if len(tokenizer.chat(item["prompt"])) <= longest]

    train, test = short(task.train), short(task.test)
    if left_out := len(task.train) + len(task.test) - len(train) - len(test):
        warnings.warn(
            f"{left_out} problems with prompts of more than {longest} tokens are left out; "
            "a larger --prompt includes them",
            stacklevel=3,
        )
    return Task(task.name, train, test, task.reward)


# As many problems as GSM8K has, for `jaxcredit plan` without the data.
ITEM = {"prompt": "1 + 1 = ?", "meta": {"gold": "2"}}
PLACEHOLDER = Task("gsm8k", [ITEM] * 7473, [ITEM] * 1319, lambda meta, text, ids: 0.0)
