"""Peak memory of a resume: resident set of a process that restores a run, beside the state's size.

    python tests/benchmarks/resume.py [--layers 8] [--width 768]

One process begins a run and saves it at step 0. Another resumes it and stops, without a training
step, and reports its peak (ru_maxrss). `import` is the peak of a process that only builds the
programs. The loader of pretrained weights must not be called by the resume.
"""

import argparse
import resource
import subprocess
import sys
import tempfile

PARTS = ("import", "begin", "resume")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        measure(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            command = [sys.executable, __file__, "--part", part, "--folder", f"{folder}/run"]
            command += ["--layers", str(args.layers), "--width", str(args.width)]
            subprocess.run(command, check=True)


def measure(args) -> None:
    """Do one part in this process and print its peak."""
    import jax
    import optax

    from jaxcredit.parallel import params
    from jaxcredit.policy import Chars, presets, transformer
    from jaxcredit.tasks import Task
    from jaxcredit.train import Experiment
    from jaxcredit.train.programs import build
    from jaxcredit.train.run import run

    loads = []

    def load_params(shardings):
        loads.append(shardings)
        return jax.jit(lambda key: params.init(transformer.specs(policy), key))(jax.random.key(0))

    shape = {"width": args.width, "layers": args.layers, "heads": 8, "ffn": 4 * args.width}
    tokenizer = Chars("0123456789>" + "".join(chr(0x4E00 + i) for i in range(16_000)))
    policy = presets.micro(tokenizer.vocab_size, **shape)
    items = [{"prompt": f"{i}>", "meta": str(i)} for i in range(8)]
    exp = Experiment(
        name="resume",
        task=Task("copy", items, items, lambda meta, text, ids: float(text == meta)),
        tokenizer=tokenizer,
        policy=policy,
        load_params=load_params,
        optimizer=optax.adam(1e-5),
        prompts_per_step=2,
        group_size=2,
        buckets=(4,),
        max_new_tokens=4,
        steps=0,
        eval_prompts=2,
        reward_workers=0,
    )
    if args.part == "import":
        state = build(exp).state
        arrays = jax.tree.leaves(state)
        print(f"parameters: {params.count(state.params):,}")
        print(f"state: {sum(x.size * x.dtype.itemsize for x in arrays) / 2**20:,.0f} MiB")
    else:
        run(exp, args.folder, resume=args.part == "resume")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{args.part}: peak {peak:,.0f} MiB, pretrained weights read {len(loads)} times")


if __name__ == "__main__":
    main()
