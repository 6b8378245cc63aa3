"""Which clients may be asked, by what they state."""

import pytest

from offsite.coordinator.policy.eligibility import MIB, Eligibility, Facts, is_version, version_of

STATED = Facts("0.2.10", 4096 * MIB, 500)


@pytest.mark.parametrize(
    "wanted",
    [
        Eligibility(),
        Eligibility(500, 4096, "0.2.10"),
        Eligibility(least_version="0.2.9"),
        Eligibility(least_version="0.2"),
    ],
)
def test_who_states_enough_is_asked(wanted: Eligibility) -> None:
    assert wanted.why_not(STATED) == ""


@pytest.mark.parametrize(
    ("wanted", "stated", "said"),
    [
        (Eligibility(least_examples=501), STATED, "501 examples are wanted, 500 stated"),
        (Eligibility(least_examples=1), Facts("0.1"), "1 examples are wanted, nothing stated"),
        (Eligibility(least_memory_mib=4097), STATED, "4097 MiB of memory are wanted, 4096 stated"),
        (Eligibility(least_version="0.2.11"), STATED, "version 0.2.11 is wanted, 0.2.10 stated"),
        (Eligibility(least_version="0.1"), Facts(), "version 0.1 is wanted, none stated"),
        (Eligibility(501, 0, "0.3"), STATED, "version 0.3 is wanted, 0.2.10 stated; 501 examples"),
    ],
)
def test_who_states_too_little_or_nothing_is_told_why(
    wanted: Eligibility, stated: Facts, said: str
) -> None:
    assert said in wanted.why_not(stated)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0.1.0", (0, 1)), ("1.10", (1, 10)), ("0.2.0.dev3", (0, 2)), ("x", ()), ("", ()), ("0", ())],
)
def test_a_version_is_compared_by_its_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert version_of(text) == numbers


def test_a_setting_is_a_version_whole() -> None:
    assert is_version("0.1.0") and not is_version("0.1.0rc1") and not is_version("")
