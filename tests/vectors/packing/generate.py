"""Writes what bitsandbytes makes of a fixed tensor, or checks with `--check` that it still does.

bitsandbytes is the reference of NF4, but no dependency: with the kernels of every accelerator it is
larger than all else that the tests need. So its answer is kept here, and it is asked again where
it is installed (`tests/emulator/packing/test_nf4.py`).

    python -m tests.vectors.packing.generate [--check]
"""

import json
import sys
from pathlib import Path

import torch

from offsite.emulator.schema import tensor_bytes

VECTOR = Path(__file__).with_name("nf4_bitsandbytes.json")
SHAPE = (37, 51)
"""An odd number of values, and a last block that is not full."""


def tensor() -> torch.Tensor:
    """Values without a random source: every block has another size, one is 0."""
    index = torch.arange(SHAPE[0] * SHAPE[1], dtype=torch.float64)
    values = (index * 7919 % 1009 - 504) / 1009
    block = index // 64
    values = values * 10 ** (block % 5 - 2)
    values[block == 3] = 0.0
    return values.float().reshape(SHAPE)


def answer() -> dict[str, object]:
    """Of bitsandbytes."""
    import bitsandbytes
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(tensor(), blocksize=64, quant_type="nf4")
    values = functional.dequantize_4bit(packed, state)
    return {
        "made_by": f"bitsandbytes {bitsandbytes.__version__}, on a CPU",
        "shape": list(SHAPE),
        "code": hex_of(state.code),
        "packed": hex_of(packed),
        "absmax": hex_of(state.absmax),
        "values": hex_of(values),
    }


def hex_of(tensor: torch.Tensor) -> str:
    """The bytes of a tensor, row-major, little-endian."""
    return bytes(tensor_bytes(tensor)).hex()


def main() -> None:
    text = json.dumps(answer(), indent=1) + "\n"
    if "--check" not in sys.argv:
        VECTOR.write_text(text)
    elif json.loads(VECTOR.read_text()) != json.loads(text):
        sys.exit(f"{VECTOR.name}: bitsandbytes answers otherwise now")


if __name__ == "__main__":
    main()
