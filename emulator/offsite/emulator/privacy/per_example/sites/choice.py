"""Which site a module is; every parameter that trains belongs to exactly one, or nothing runs."""

from collections.abc import Mapping

from torch import nn

from offsite.emulator.privacy.per_example.flat_buffer import FlatBuffer
from offsite.emulator.privacy.per_example.sites.layer_norm import LayerNormSite
from offsite.emulator.privacy.per_example.sites.linear import LinearSite
from offsite.emulator.privacy.per_example.sites.scale import ScaleSite
from offsite.emulator.privacy.per_example.sites.site import Site
from offsite.secure.errors import ConfigError

KINDS: tuple[type[LinearSite | LayerNormSite | ScaleSite], ...] = (
    LinearSite,
    LayerNormSite,
    ScaleSite,
)


def sites_of(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], buffer: FlatBuffer
) -> list[Site]:
    """Return the sites that hold ``parameters``, by wire name, in the model's order.

    Raises:
        ConfigError: a module that holds one of them is of no kind known here; names it.
    """
    wire_names = {id(parameter): name for name, parameter in parameters.items()}
    sites: list[Site] = []
    for path, module in model.named_modules():
        names = {
            own: wire_names[id(parameter)]
            for own, parameter in module.named_parameters(recurse=False)
            if id(parameter) in wire_names
        }
        if names:
            sites.append(_site(path, module, names, buffer))
    return sites


def _site(path: str, module: nn.Module, names: Mapping[str, str], buffer: FlatBuffer) -> Site:
    for kind in KINDS:
        if kind.fits(module) and "forward" not in module.__dict__:
            return kind(path, module, names, buffer)
    raise ConfigError(
        f"{path} ({type(module).__name__}) holds {', '.join(names)}, which would train, but the "
        "gradients of single examples are known for linear layers and norms alone; with "
        "differential privacy use a whole_block or lora adapter"
    )
