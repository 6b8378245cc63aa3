"""`coordinator export`: the tuned adapter in three forms, each in a folder of its own.

peft      for `PeftModel.from_pretrained`; whole blocks in their low-rank form
adapter   the tensors as they were tuned, with their layer map
merged    a checkpoint for `AutoModelForCausalLM.from_pretrained`

All in the precision that the model is stored in, whatever it is evaluated in.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from offsite.coordinator.export.checkpoint import export_adapter, export_merged
from offsite.coordinator.export.low_rank import LowRankOptions
from offsite.coordinator.export.peft_adapter import PeftExport, export_peft
from offsite.coordinator.export.tuned import Tuned
from offsite.coordinator.owner_inputs import (
    adapter_of,
    final_form,
    gate_of,
    load_stored_model,
)
from offsite.coordinator.release import stored_release
from offsite.coordinator.workspace import open_workspace
from offsite.coordinator.workspace_campaign import result_of
from offsite.emulator.base_model import load_tokenizer
from offsite.emulator.terminal import Terminal
from offsite.secure.errors import ConfigError, PolicyError


def export_result(
    root: Path, overrides: Sequence[str], out: Path | None, rank: int, terminal: Terminal
) -> None:
    """Writes what may be released.

    Raises:
        PolicyError: no round came within the tolerance of the full model.
        ConfigError: there is nothing to export yet, or `out` is a file.
    """
    options = LowRankOptions(rank=rank)
    with open_workspace(root, overrides, exclusive=True) as workspace:
        bundle = stored_release(workspace)
        result = result_of(workspace, bundle)
        if not result.released:
            raise PolicyError(f"{result.reason}; nothing was exported")
        folder = out or workspace.state.export
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder}: expected a folder for the export, found a file")
        model = load_stored_model(workspace.config, bundle)
        form = final_form(workspace.config, bundle, model, result)
        tuned = Tuned(
            model=model,
            tokenizer=load_tokenizer(workspace.config.model.path),
            adapter=adapter_of(bundle),
            tensors=form.tensors,
            is_corrected=form.is_corrected,
            base_name=workspace.config.model.name,
            base_fingerprint=bundle.manifest.facts.base_fingerprint,
        )
        terminal.note("writing the adapter, the merged checkpoint and the PEFT adapter")
        export_adapter(folder / "adapter", tuned)
        export_merged(folder / "merged", tuned)
        gate = gate_of(workspace.config, bundle, model, terminal.progress)
        peft = export_peft(folder / "peft", tuned, options, gate)
    dtype = str(model.dtype).removeprefix("torch.")
    terminal.result(
        _text(folder, peft, dtype),
        {
            "export": str(folder),
            "merged_dtype": dtype,
            "corrected": form.is_corrected,
            "peft": asdict(peft),
        },
    )


def _text(folder: Path, peft: PeftExport, dtype: str) -> str:
    kept = "" if peft.kept_share is None else f", {peft.kept_share:.0%} of the gain on the gate"
    return (
        f"{folder / 'peft'}: rank up to {peft.largest_rank}{kept}\n"
        f"{folder / 'adapter'}: the tensors as they were tuned\n"
        f"{folder / 'merged'}: a checkpoint for transformers, {dtype} as the model is stored"
    )
