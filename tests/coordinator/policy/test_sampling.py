"""Who is asked: so many, by the seed alone, nobody more often than another."""

import pytest

from offsite.coordinator.policy.sampling import Sample, sampled

NAMES = [f"edge-{number}" for number in range(30)]


@pytest.mark.parametrize(
    ("sample", "there", "least", "expected"),
    [
        (Sample(), 20, 5, 20),
        (Sample(share=0.5), 20, 5, 10),
        (Sample(share=0.1), 30, 2, 3),
        (Sample(share=0.1), 20, 5, 5),
        (Sample(share=0.31), 10, 2, 4),
        (Sample(most=7), 20, 5, 7),
        (Sample(share=0.5, most=7), 20, 5, 7),
        (Sample(share=0.5, most=7), 10, 2, 5),
        (Sample(share=0.01), 3, 5, 3),
    ],
)
def test_so_many_are_asked(sample: Sample, there: int, least: int, expected: int) -> None:
    assert sample.size(there, least) == expected
    assert len(sampled(NAMES[:there], sample, least, 1)) == min(expected, there)


def test_the_draw_follows_from_the_seed_and_who_is_there() -> None:
    half = Sample(share=0.5)
    first = sampled(NAMES, half, 2, 1)
    assert first == sampled(NAMES[::-1], half, 2, 1) == sorted(first)
    assert first != sampled(NAMES, half, 2, 2)


def test_over_many_rounds_everybody_is_asked_about_as_often() -> None:
    counts = dict.fromkeys(NAMES, 0)
    for seed in range(2000):
        for name in sampled(NAMES, Sample(share=0.2), 2, seed):
            counts[name] += 1
    # Of 2000 draws at 1/5, five standard deviations are 90.
    assert all(abs(count - 400) < 90 for count in counts.values())
