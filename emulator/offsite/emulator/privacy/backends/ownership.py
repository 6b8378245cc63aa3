"""Where the parameters stand that a backend is told of.

Rule: a parameter that is named and not in the model, or that trains and is not named, is an error:
its gradient would be nobody's, and would enter the sum unclipped or not at all.
"""

from collections.abc import Mapping

from torch import nn

from offsite.secure.errors import ConfigError


def owners_of(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Module]:
    """Return the module that holds each parameter.

    Raises:
        ConfigError: one is not in the model, does not train, or another one trains.
    """
    named = {id(parameter) for parameter in parameters.values()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad != (id(parameter) in named):
            raise ConfigError(
                f"{name}: expected to train exactly the parameters that the backend is told of, "
                f"found requires_grad {parameter.requires_grad}; freeze it, or attach the adapter"
            )
    owners = {
        id(parameter): module
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    }
    missing = [name for name, parameter in parameters.items() if id(parameter) not in owners]
    if missing:
        raise ConfigError(
            f"{missing[0]} is no parameter of the model; name those that the attached adapter has"
        )
    return {name: owners[id(parameter)] for name, parameter in parameters.items()}
