"""Fuzzes one target with atheris, guided by the branches of `offsite.secure` that an input reaches.

    python -m tests.fuzz.run TARGET [--seconds 60] [--finds DIR]

Begins from the corpus, ends with code 0 when the time is over, and with another one at the first
input that breaks a rule; the input then lies in DIR, to be kept in the corpus under the name of the
defect.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["offsite.secure", "offsite.emulator.rounds.exchange"]):
    from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
LONGEST_BYTES = 1 << 17


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--finds", type=Path, default=Path("."))
    arguments = parser.parse_args()
    handler = TARGETS[arguments.target]

    def one_input(data: bytes) -> None:
        handler(data)

    with tempfile.TemporaryDirectory() as grown:
        options = [
            f"-max_total_time={arguments.seconds}",
            f"-max_len={LONGEST_BYTES}",
            f"-artifact_prefix={arguments.finds}/",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], *options, grown, str(CORPUS / arguments.target)], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
