"""Writes what JAX-Privacy's auditor answers to fixed counts and scores, or checks that it still does.

JAX-Privacy is the reference for the bounds, but no dependency: of all that its wheel needs, its
auditing module uses numpy, scipy and dp_accounting only, so that one module is loaded, from the
package where it is installed, or from a wheel:

    pip download --no-deps jax-privacy==2.0.0
    python -m tests.vectors.audit_bounds.generate WHEEL [--check]

Each file is one JSON object: what it is, the input, and either what the reference answers or
`refused`, a part of what our error says. A `bad_*` file has exactly one thing wrong with it.
"""

import importlib.util
import json
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from zipimport import zipimporter

HERE = Path(__file__).parent
PACKAGE, MODULE = "jax_privacy", "auditing"
SIGNIFICANCE = 0.05

Vector = dict[str, object]
Vectors = Iterator[tuple[str, Vector]]

COUNTS = {
    "all_right": (1000, 100, 100),
    "few_guesses": (1000, 20, 20),
    "most_right": (1000, 100, 95),
    "all_guessed": (1000, 1000, 700),
    "many_canaries": (10_000, 1000, 930),
    "chance": (500, 50, 27),
    "hardly_more": (2000, 400, 260),
    "all_wrong": (100, 10, 0),
    "no_guess": (100, 0, 0),
}
DELTAS = (1e-5, 1e-3)
RATES = {
    "clear": (500, 420, 500, 80),
    "weak": (1000, 560, 1000, 470),
    "none_accused": (300, 200, 310, 0),
    "chance": (200, 100, 200, 100),
    "opposite": (200, 20, 200, 180),
}


def reference(wheel: Path | None = None) -> ModuleType | None:
    """JAX-Privacy's auditing module alone, without JAX; None where there is none."""
    spec = _installed() if wheel is None else zipimporter(f"{wheel}/{PACKAGE}").find_spec(MODULE)
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def _installed() -> ModuleSpec | None:
    package = importlib.util.find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        return None
    path = Path(package.submodule_search_locations[0]) / f"{MODULE}.py"
    return importlib.util.spec_from_file_location(MODULE, path)


def scores(canaries: int, shift: float) -> tuple[list[float], list[float], float]:
    """Of canaries in and out, spread without a random source, and a threshold."""
    spread = [((index * 7919) % 1009) / 1009 for index in range(canaries)]
    inside = [round(value + shift, 6) for value in spread[::2]]
    outside = [round(value, 6) for value in spread[1::2]]
    return inside, outside, 0.9


def good(module: ModuleType) -> Vectors:
    for name, (canaries, guessed, right) in COUNTS.items():
        for delta in DELTAS:
            terms = (canaries, guessed, right, SIGNIFICANCE, delta)
            yield (
                f"counts_{name}_{delta:g}",
                {
                    "what": "counts of guesses of in and out",
                    "canaries": canaries,
                    "guessed": guessed,
                    "right": right,
                    "significance": SIGNIFICANCE,
                    "delta": delta,
                    "p_value_at_epsilon_1": float(
                        module._one_run_p_value(canaries, guessed, right, 1.0, delta)
                    ),
                    "one_run_epsilon": float(module._epsilon_one_run(0, *terms)),
                    "f_dp_epsilon": float(module._epsilon_one_run_fdp(0, *terms)),
                },
            )
    for name, rates in RATES.items():
        yield f"rates_{name}", _rates(module, rates)
    for canaries, shift in ((200, 0.3), (1000, 0.6), (1000, 0.02)):
        yield f"scores_{canaries}_{shift:g}", _scores(module, canaries, shift)


def _rates(module: ModuleType, rates: tuple[int, int, int, int]) -> Vector:
    inside, found, outside, accused = rates
    auditor = module.CanaryScoreAuditor(
        [1.0] * found + [0.0] * (inside - found), [1.0] * accused + [0.0] * (outside - accused)
    )
    thresholds = len(auditor._fn_counts)
    return {
        "what": "rates of independent runs at a fixed threshold",
        "inside": inside,
        "inside_found": found,
        "outside": outside,
        "outside_accused": accused,
        "significance": SIGNIFICANCE,
        "delta": 1e-5,
        "clopper_pearson_epsilon": float(
            auditor.epsilon_clopper_pearson(
                SIGNIFICANCE, 1e-5, False, threshold_strategy=module.Explicit(0.5)
            )
        ),
        "gaussian_tests": thresholds,
        "gaussian_epsilon": float(auditor.epsilon_from_gdp(SIGNIFICANCE, 1e-5)),
    }


def _scores(module: ModuleType, canaries: int, shift: float) -> Vector:
    inside, outside, threshold = scores(canaries, shift)
    auditor = module.CanaryScoreAuditor(inside, outside)
    fixed = {"threshold_strategy": module.Explicit(threshold)}
    return {
        "what": "CanaryScoreAuditor at an explicit threshold",
        "inside": inside,
        "outside": outside,
        "threshold": threshold,
        "significance": SIGNIFICANCE,
        "delta": 1e-5,
        "one_run_epsilon": float(auditor.epsilon_one_run(SIGNIFICANCE, 1e-5, **fixed)),
        "f_dp_epsilon": float(auditor.epsilon_one_run_fdp(SIGNIFICANCE, 1e-5, **fixed)),
        "clopper_pearson_epsilon": float(
            auditor.epsilon_clopper_pearson(SIGNIFICANCE, 1e-5, False, **fixed)
        ),
    }


def bad() -> Vectors:
    """What no audit can have counted."""
    counts: Vector = {"canaries": 100, "guessed": 10, "right": 9}
    level: Vector = {"significance": 0.05, "delta": 1e-5}
    rates: Vector = {"inside": 50, "inside_found": 40, "outside": 50, "outside_accused": 5}
    changes: list[tuple[str, Vector, Vector, str]] = [
        ("more_right_than_guessed", counts, {"right": 11}, "right <= guessed"),
        ("more_guessed_than_canaries", counts, {"guessed": 101}, "guessed <= canaries"),
        ("negative_right", counts, {"right": -1}, "0 <= right"),
        ("no_canary", counts, {"canaries": 0, "guessed": 0, "right": 0}, "at least one canary"),
        ("significance_zero", counts, {"significance": 0.0}, "significance between 0 and 0.5"),
        ("significance_half", counts, {"significance": 0.5}, "significance between 0 and 0.5"),
        ("delta_one", counts, {"delta": 1.0}, "a delta of [0, 1)"),
        ("delta_negative", counts, {"delta": -1e-5}, "a delta of [0, 1)"),
        ("more_found_than_inside", rates, {"inside_found": 51}, "found 51 of 50"),
        ("more_accused_than_outside", rates, {"outside_accused": 51}, "found 51 of 50"),
        ("nobody_inside", rates, {"inside": 0, "inside_found": 0}, "found 0 of 0"),
        ("nobody_outside", rates, {"outside": 0, "outside_accused": 0}, "found 0 of 0"),
    ]
    for name, whole, change, says in changes:
        yield f"bad_{name}", {"what": name, **whole, **level, **change, "refused": says}


def documents(module: ModuleType) -> dict[str, Vector]:
    """Every file's content, by its name without `.json`."""
    version = {"made_by": "jax-privacy 2.0.0, auditing.py"}
    return {name: version | vector for name, vector in good(module)} | dict(bad())


def main() -> None:
    wheels = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
    module = reference(*wheels)
    if module is None:
        sys.exit("expected jax-privacy, or its wheel as argument: see the head of this file")
    for name, vector in documents(module).items():
        path, text = HERE / f"{name}.json", json.dumps(vector, indent=1) + "\n"
        if "--check" not in sys.argv:
            path.write_text(text)
        elif path.read_text() != text:
            sys.exit(f"{path.name}: the reference answers otherwise now")


if __name__ == "__main__":
    main()
