"""Regenerate the committed Python code of the wire protocol.

python protos/generate.py           # rewrite protos/offsite/v1/*_pb2*
python protos/generate.py --check   # exit 1 if the committed code is stale
"""

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).parent
BIN = Path(sys.executable).parent


def generate(out: Path) -> list[Path]:
    """Write the code below `out`; returns the files relative to it."""
    status = protoc.main(
        [
            "protoc",
            f"-I{PROTOS}",
            f"-I{files('grpc_tools') / '_proto'}",
            f"--plugin=protoc-gen-mypy={BIN / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={BIN / 'protoc-gen-mypy_grpc'}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            *map(str, sorted(PROTOS.glob("offsite/**/*.proto"))),
        ]
    )
    if status:
        raise SystemExit(status)
    return sorted(path.relative_to(out) for path in out.rglob("*_pb2*"))


def stale() -> list[str]:
    """Generated files that are missing, surplus or different in the tree."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = generate(Path(folder))
        committed = {p.relative_to(PROTOS) for p in PROTOS.rglob("*_pb2*") if p.suffix != ".pyc"}
        different = [
            path
            for path in fresh
            if path in committed
            and (Path(folder) / path).read_bytes() != (PROTOS / path).read_bytes()
        ]
        return sorted(map(str, {*different, *(set(fresh) ^ committed)}))


def main() -> None:
    """Entry point."""
    if "--check" not in sys.argv[1:]:
        generate(PROTOS)
        return
    if wrong := stale():
        raise SystemExit(f"stale generated code, run `make protos`: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
