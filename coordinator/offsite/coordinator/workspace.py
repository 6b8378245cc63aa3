"""An opened coordinator: state folder, settings, keys and database together.

Commands that build or serve hold the folder's lock; `invite`, `revoke` and `status` do not, so
they work while it serves.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from offsite.coordinator.addresses import check_reachable
from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.keys import Keys, load_keys
from offsite.coordinator.state import StateFolder
from offsite.coordinator.store import Store
from offsite.emulator.settings import load_settings


@dataclass(frozen=True, slots=True)
class Workspace:
    """What every command works with."""

    state: StateFolder
    config: CoordinatorConfig
    keys: Keys
    store: Store

    @property
    def address(self) -> str:
        """What edges connect to.

        Raises:
            ConfigError: what is known is only where to listen, which no edge can dial.
        """
        return check_reachable(self.config.server.advertise or self.config.server.listen)


@contextmanager
def open_workspace(
    root: Path, overrides: Sequence[str] = (), *, exclusive: bool
) -> Iterator[Workspace]:
    """Opens an initialised state folder.

    Raises:
        ConfigError: it was not initialised, or a setting is wrong.
        StateLockedError: `exclusive`, and another process builds or serves.
    """
    with StateFolder.open(root, exclusive=exclusive) as state:
        config = load_settings(CoordinatorConfig, state.config, overrides)
        with Store(state.database) as store:
            yield Workspace(state, config, load_keys(state), store)


def absolute_paths(config: CoordinatorConfig) -> CoordinatorConfig:
    """The same settings with every path absolute, so that the file means the same anywhere."""
    sections = {}
    for field in dataclasses.fields(config):
        section = getattr(config, field.name)
        paths = {
            inner.name: getattr(section, inner.name).resolve()
            for inner in dataclasses.fields(section)
            if isinstance(getattr(section, inner.name), Path)
        }
        sections[field.name] = dataclasses.replace(section, **paths)
    return CoordinatorConfig(**sections)
