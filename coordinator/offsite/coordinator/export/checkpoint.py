"""The adapter by itself, and the full model with the adapter in its weights.

`adapter.safetensors` holds the tensors under their wire names, fp32, with the spec and the layer
map beside it; the merged checkpoint is a plain `transformers` folder with its tokenizer.
"""

from pathlib import Path

from offsite.coordinator.export.tuned import Tuned, describe, new_folder
from offsite.coordinator.plug_in import merged_in
from offsite.emulator.schema import tensors_to_bytes

ADAPTER_FILE = "adapter.safetensors"


def export_adapter(destination: Path, tuned: Tuned) -> None:
    """Write the adapter's tensors, spec and layer map into a new folder."""
    with new_folder(destination) as folder:
        (folder / ADAPTER_FILE).write_bytes(tensors_to_bytes(tuned.tensors))
        details = {"layer_map": tuned.adapter.layer_map.to_json()}
        describe(folder, tuned, "Adapter tensors", details)


def export_merged(destination: Path, tuned: Tuned) -> None:
    """Write a checkpoint for `AutoModelForCausalLM.from_pretrained` into a new folder."""
    with new_folder(destination) as folder:
        with merged_in(tuned.model, tuned.adapter, tuned.tensors) as model:
            model.save_pretrained(folder)
        tuned.tokenizer.save_pretrained(folder)
        describe(folder, tuned, "Merged checkpoint", {"kept_share_of_gain": 1.0})
