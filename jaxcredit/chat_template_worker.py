"""A process that renders chat templates: one request a line of JSON on its input, one reply a line on its output.

Templates are programs of whoever made the checkpoint. jinja's sandbox keeps them from files and Python objects, not from running for ever
or taking all memory: that the limits of this process do. Started by jaxcredit.chat_template as a script; imports nothing of jaxcredit.
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
    """Bound the address space of this process to what it has now and `extra` bytes."""
    if "resource" not in globals():
        return
    with contextlib.suppress(OSError, ValueError):  # where the system knows no such limit
        with open("/proc/self/statm") as f:
            now = int(f.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = now + extra if hard == resource.RLIM_INFINITY else min(now + extra, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def limit_time(seconds: int) -> None:
    """Let the system end this process after so many more seconds of processor time."""
    if "resource" in globals():
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        soft = int(time.process_time()) + 1 + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def rendered(template: str, messages: list, values: dict[str, Any]) -> str:
    """The conversation in the model's format, up to where its answer begins."""
    from transformers.utils.chat_template_utils import render_jinja_template

    out = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, **values)
    text = out[0][0]
    if len(text) > LONGEST:
        raise ValueError(f"it writes {len(text)} characters, at most {LONGEST} are taken")
    return text


def line_of(error: BaseException) -> int | None:
    """The line of the template at which an error arose."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename in ("<template>", "<unknown>")]
    return getattr(error, "lineno", None) or (lines[-1] if lines else None)


def main(seconds: int, memory: int) -> None:
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print does not pass for a reply
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
            reply = {"error": "it takes more memory than a template is given", "line": None}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:500], "line": line_of(error)}
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()
        limit_time(seconds)  # what this request took is not taken from the reading of the next


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
