"""Process that renders chat templates.

It reads one JSON request per line of standard input and writes one JSON reply per line of standard
output.

A template is untrusted code. Jinja's sandbox denies it files and Python objects but bounds neither
time nor memory, so this process limits both. jaxcredit.policy.chat_template starts this file as a
script; it imports nothing of jaxcredit.
"""

import contextlib
import json
import os
import sys
import time
import traceback
from typing import Any

with contextlib.suppress(ImportError):  # not on Windows
    import resource

LONGEST = 2**24  # characters of a rendered conversation


def limit_memory(extra: int) -> None:
    """Limit the address space of this process to its present size plus `extra` bytes."""
    if "resource" not in globals():
        return
    with contextlib.suppress(OSError, ValueError):  # a system without this limit
        with open("/proc/self/statm") as f:
            now = int(f.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = now + extra if hard == resource.RLIM_INFINITY else min(now + extra, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def limit_time(seconds: int) -> None:
    """Limit this process to `seconds` more seconds of CPU time, after which the system ends it."""
    if "resource" in globals():
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        soft = int(time.process_time()) + 1 + seconds
        resource.setrlimit(
            resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard)
        )


def rendered(template: str, messages: list, values: dict[str, Any]) -> str:
    """Conversation in the model's format, including the generation prompt."""
    from transformers.utils.chat_template_utils import render_jinja_template

    out = render_jinja_template(
        [messages], chat_template=template, add_generation_prompt=True, **values
    )
    text = out[0][0]
    if len(text) > LONGEST:
        raise ValueError(f"it writes {len(text)} characters, more than the limit of {LONGEST}")
    return text


def line_of(error: BaseException) -> int | None:
    """Line of the template at which an error was raised."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename in ("<template>", "<unknown>")
    ]
    return getattr(error, "lineno", None) or (lines[-1] if lines else None)


def main(seconds: int, memory: int) -> None:
    """Answer requests until standard input ends.

    Args:
        seconds: CPU time per request.
        memory: bytes per request beyond the present size of the process.
    """
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of libraries must not be read as a reply
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            import transformers.utils.chat_template_utils  # noqa: F401

            limit_memory(memory)
            limit_time(seconds)
            reply = {"text": rendered(**request)}
        except RecursionError:
            reply = {"error": "it calls itself without end", "line": None}
        except MemoryError:
            reply = {"error": "it takes more memory than templates may use", "line": None}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:500], "line": line_of(error)}
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()
        limit_time(seconds)  # CPU time of this request does not count for the next one


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
