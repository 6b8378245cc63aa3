"""Runs the shapes, one after another; see the package for what is measured."""

import argparse
import json
import os
from collections.abc import Sequence

import benchmarks.secure_aggregation
from benchmarks.secure_aggregation import flower, offsite
from benchmarks.secure_aggregation.shape import Shape
from offsite.secure.aggregation.keystream import Generator

MILLION = 1_000_000
SHAPES = (
    Shape(10, MILLION),
    Shape(50, MILLION),
    Shape(10, 10 * MILLION),
    Shape(50, 10 * MILLION),
    Shape(100, MILLION),
    Shape(255, MILLION // 10),
)
QUICK = (Shape(10, MILLION), Shape(50, MILLION))
FLOWER_CLIENTS = 100
"""Its Shamir shares take minutes for more."""


def run(shapes: Sequence[Shape], generator: Generator, threads: int) -> dict[str, object]:
    """Prints two lines per shape; returns the summary, with the ratios of every shape."""
    summary: dict[str, object] = {}
    is_exact = True
    for shape in shapes:
        size = {"clients": shape.clients, "values": shape.values, "dropouts": shape.dropouts}
        ours = offsite.measure(shape, generator, threads)
        print(json.dumps({"what": "offsite", **size, **ours}), flush=True)
        is_exact = is_exact and ours["exact"] is True
        ratios = {name: ours[name] for name in ("mask_ratio", "unmask_ratio", "bytes_up_per_value")}
        if shape.clients <= FLOWER_CLIENTS:
            theirs = flower.measure(shape)
            print(json.dumps({"what": "flower", **size, **theirs}), flush=True)
            for step in ("mask", "unmask"):
                ratios[f"flower_{step}"] = round(_seconds(theirs, step) / _seconds(ours, step), 2)
        else:
            print(json.dumps({"what": "flower", **size, "left_out": "too slow"}), flush=True)
        summary[f"{shape.clients}x{shape.values}"] = ratios
    return {"what": "summary", "exact": is_exact, **summary}


def _seconds(line: dict[str, object], step: str) -> float:
    value = line[f"{step}_s"]
    assert isinstance(value, float)
    return value


def main() -> None:
    """Parses and runs."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.secure_aggregation",
        description=benchmarks.secure_aggregation.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="two shapes of 1 M values")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="ours only")
    parser.add_argument(
        "--generator", choices=[generator.name for generator in Generator], default="CHACHA20"
    )
    given = parser.parse_args()
    shapes = QUICK if given.quick else SHAPES
    print(json.dumps(run(shapes, Generator[given.generator], given.threads)))


if __name__ == "__main__":
    main()
