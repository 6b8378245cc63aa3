"""A chat template is tried where it can do no harm, and must give back what it was given."""

import pytest

from offsite.emulator.bundle.template_probe import (
    MARKERS,
    TemplateTrial,
    render_markers,
    try_template,
)

EACH = "{% for m in messages %}"
HONEST = EACH + "<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"


def test_an_honest_template_adds_its_marks() -> None:
    settings = {"chat_template": HONEST, "eos_token": "</s>"}
    added = sum(len(f"<|{role}|></s>") for role in ("user", "assistant", "user"))
    assert render_markers(settings) == try_template(settings) == TemplateTrial(added)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (EACH + "{{ m.content }}{% break %}{% endfor %}", "did not render every message"),
        (EACH + "{{ m.content | upper }}{% endfor %}", "did not render every message"),
        (EACH + "{{ m.content }}{{ m.content }}{% endfor %}", "did not render every message"),
        ("{{ raise_exception('no') }}", "refused a plain conversation: 'no'"),
        ("{% for", "refused a plain conversation"),
        ("{{ ''.__class__.__mro__ }}", "refused a plain conversation"),
    ],
)
def test_a_hostile_template_is_found(template: str, problem: str) -> None:
    assert problem in render_markers({"chat_template": template}).problem


def test_what_it_adds_is_counted() -> None:
    trial = render_markers({"chat_template": HONEST + "{{ 'x' * 5000 }}"})
    assert trial.added_chars > 5000 and not trial.problem


def test_a_template_without_end_is_stopped() -> None:
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    assert "did not end" in try_template({"chat_template": endless}, time_s=3.0).problem


def test_a_template_that_takes_all_memory_is_stopped() -> None:
    greedy = "{{ 'a' * 99999999999 }}"
    assert "refused" in try_template({"chat_template": greedy}).problem


def test_markers_are_looked_for_in_order() -> None:
    mixed = "{% for m in messages | reverse %}{{ m.content }}{% endfor %}"
    assert render_markers({"chat_template": mixed}).problem
    assert len(set(MARKERS)) == 3
