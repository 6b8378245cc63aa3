"""`python -m benchmarks.dp` on tiny models: every way runs on every adapter and is compared."""

import argparse
import json
import math

import pytest
import torch
from benchmarks.dp import __main__ as program
from benchmarks.dp import measured
from benchmarks.dp.setups import ADAPTERS, Setup, Size, random_batch
from benchmarks.dp.ways import CLIP, ENGINE, NON_PRIVATE, WAYS

TINY = Size(hidden=64, blocks=5, vocabulary=96, rows=3, width=9)
EVERY_ADAPTER = pytest.mark.parametrize("adapter", ADAPTERS)


@pytest.fixture(autouse=True)
def warnings_are_told_to_be_quiet() -> None:
    import warnings

    warnings.simplefilter("ignore")


def total_of(way: str, setup: Setup) -> torch.Tensor:
    total = torch.zeros(sum(parameter.numel() for parameter in setup.parameters.values()))
    with WAYS[way](setup) as accumulate:
        accumulate(random_batch(TINY), total)
    return total


@EVERY_ADAPTER
def test_every_private_way_computes_the_same_sum(adapter: str) -> None:
    """Otherwise it would not be the same work that is timed."""
    setup = ADAPTERS[adapter](TINY)
    expected = total_of("one_by_one", setup)
    assert float(expected.norm()) > CLIP / 2
    for way in WAYS.keys() - {NON_PRIVATE}:
        torch.testing.assert_close(total_of(way, setup), expected, rtol=0, atol=1e-5 * CLIP)
    assert all(parameter.grad is None for parameter in setup.parameters.values())


def test_what_trains_is_what_the_names_say() -> None:
    counts = {name: len(make(TINY).parameters) for name, make in ADAPTERS.items()}
    assert counts == {"lora_qv": 5 * 2 * 2, "lora_all": 5 * 7 * 2, "blocks_2_2": 4 * 9}


def test_ways_take_turns_and_are_compared_within_a_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(measured.time, "process_time", lambda: float(next(clock)))
    found = measured.times(ADAPTERS["lora_qv"](TINY), TINY, [NON_PRIVATE, ENGINE], 0.0)
    assert set(found) == {NON_PRIVATE, ENGINE}
    assert all(one.rounds == 3 and one.ratio == 1 for one in found.values())


def test_memory_is_that_of_a_process_of_its_own() -> None:
    wide = Size(hidden=64, blocks=5, vocabulary=96, rows=64, width=64)
    narrow = Size(hidden=64, blocks=5, vocabulary=96, rows=2, width=8)
    large, small = (measured.peak_mb("lora_qv", size, ENGINE) for size in (wide, narrow))
    assert large > small >= 0


def test_a_process_that_fails_has_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(setup: Setup) -> None:
        raise SystemExit(1)

    monkeypatch.setitem(WAYS, ENGINE, fail)  # type: ignore[arg-type]
    assert math.isnan(measured.peak_mb("lora_qv", TINY, ENGINE))


def test_the_last_line_is_a_summary(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "size_of", lambda adapter, is_quick: TINY)
    given = argparse.Namespace(
        quick=True, adapters=list(ADAPTERS), ways=[ENGINE], logical=6, seconds=0.0
    )
    monkeypatch.setattr(program, "_arguments", lambda: given)
    program.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["what"] for line in lines].count("noise") == 3
    summary = lines[-1]
    assert summary["what"] == "summary" and summary["goals_met"].endswith(" of 6")
    assert {f"{a}_{what}" for a in ADAPTERS for what in ("time", "memory", "step")} <= set(summary)
