"""A chat template tried out: a conversation of markers, rendered in a process of its own.

A template is a Jinja program of the other side. The sandbox keeps it from Python, not from the
processor or from memory, so the trial has limits on both and is killed past them; and it may leave
out, change or add text, so the markers are looked for in what it renders.

Notable: what a template does with other words than these is not seen.
"""

import json
import subprocess
import sys
from dataclasses import dataclass

from offsite.emulator.strict_json import JsonObject

TIME_S = 60.0
CPU_S = 20
MEMORY_BYTES = 4 << 30
MARKERS = ("offsite trial one", "offsite trial two", "offsite trial three")
_ROLES = ("user", "assistant", "user")
_MAX_REASON = 200
_CHILD = "from offsite.emulator.bundle.template_probe import child; child()"


@dataclass(frozen=True, slots=True)
class TemplateTrial:
    """What a template did: the characters it added, or what went wrong."""

    added_chars: int
    problem: str = ""


def try_template(settings: JsonObject, time_s: float = TIME_S) -> TemplateTrial:
    """Renders the markers with the `chat_template` of a bundle's tokenizer settings."""
    command = [sys.executable, "-c", _CHILD]
    request = json.dumps(dict(settings))
    try:
        done = subprocess.run(
            command, input=request, capture_output=True, text=True, timeout=time_s, check=False
        )
    except subprocess.TimeoutExpired:
        return TemplateTrial(0, f"did not end within {time_s:g} s")
    if done.returncode != 0:
        return TemplateTrial(0, "broke the limits on time or memory, or crashed")
    added, problem = json.loads(done.stdout)
    return TemplateTrial(added, problem)


def render_markers(settings: JsonObject) -> TemplateTrial:
    """The trial without limits: for `child`, and for templates that can be trusted to end."""
    from transformers.utils.chat_template_utils import render_jinja_template

    tokens = {name: str(value) for name, value in settings.items() if name.endswith("_token")}
    turns = [{"role": role, "content": text} for role, text in zip(_ROLES, MARKERS, strict=True)]
    try:
        result = render_jinja_template(
            [turns],
            chat_template=str(settings["chat_template"]),
            add_generation_prompt=True,
            **tokens,  # type: ignore[arg-type]  # what the template may name
        )
    except Exception as error:  # noqa: BLE001 - a template can raise whatever Python can
        reason = ascii(str(error))[:_MAX_REASON]
        return TemplateTrial(0, f"refused a plain conversation: {reason}")
    return _look(str(result[0][0]))  # (conversations, their spans)


def _look(text: str) -> TemplateTrial:
    added = len(text) - sum(map(len, MARKERS))
    position = 0
    for marker in MARKERS:
        if text.count(marker) != 1 or text.find(marker) < position:
            return TemplateTrial(added, "did not render every message once, unchanged and in order")
        position = text.find(marker)
    return TemplateTrial(added)


def child() -> None:
    """Reads settings from standard input and writes the outcome of the trial as JSON."""
    _limit()
    trial = render_markers(json.load(sys.stdin))
    json.dump([trial.added_chars, trial.problem], sys.stdout)


def _limit() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
