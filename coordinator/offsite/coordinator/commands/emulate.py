"""`coordinator emulate`: from the full model to a signed release.

(1) check what can be checked at once: settings, inputs, and the campaign of the present release
(2) read public text and questions, then load the model and take its fingerprint
(3) build, measure, judge, sign and publish (`releasing`)

Rule: the earlier release and its campaign stay as they are until the new release is published.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from offsite.coordinator.config_release import sections_of
from offsite.coordinator.measuring_inputs import check_inputs
from offsite.coordinator.owners_model import OwnersModel, read_owners_inputs
from offsite.coordinator.releasing import make_release
from offsite.coordinator.round_metrics import baseline_of, closed_of, standing_of
from offsite.coordinator.tables.campaigns import CampaignState
from offsite.coordinator.workspace import Workspace, open_workspace
from offsite.emulator.bundle.stated import stated_manifest
from offsite.emulator.durable import undo_half_exchange
from offsite.emulator.terminal import Terminal
from offsite.secure.errors import ConfigError


def emulate_release(
    root: Path, overrides: Sequence[str], replace: bool, terminal: Terminal
) -> None:
    """Builds the release that the next campaign uses.

    Raises:
        ConfigError: a setting is wrong; or, without `replace`, a campaign would be lost.
        PolicyError: the release would leak more than the budget; nothing was signed.
    """
    with _says_what_is_lost(terminal), open_workspace(root, overrides, exclusive=True) as workspace:
        # (1) What costs nothing to check.
        config = workspace.config
        check_present(workspace, replace)
        check_inputs(config, list(sections_of(config.emulator).values()))
        if config.gate.questions is None:
            terminal.note(
                "warning: gate.questions names no file, so no skill is measured: the leak report will "
                "say nothing but what is verbatim, and no round is judged"
            )
        # (2) What it is measured on, and the model.
        inputs = read_owners_inputs(config)
        terminal.note(f"reading the model in {config.model.path}")
        owner = OwnersModel.load(config.model.path)
        # (3) The release.
        published = make_release(workspace, owner, inputs, terminal)
    terminal.result(published.shown, published.document)


@contextmanager
def _says_what_is_lost(terminal: Terminal) -> Iterator[None]:
    """Unlike a search, which keeps every measurement."""
    try:
        yield
    except KeyboardInterrupt:
        terminal.note(
            "what was built and measured until now is lost, the next run starts anew; the release "
            "before stays until another one is whole"
        )
        raise


def check_present(workspace: Workspace, replace: bool) -> None:
    """That the present release may be replaced.

    Raises:
        ConfigError: a result that could be exported, or closed rounds to go on from, would be lost.
    """
    undo_half_exchange(workspace.state.bundle)
    if replace:
        return
    row = workspace.store.campaigns.current()
    if row is None or row.release_sha256 != _stated_digest(workspace):
        return
    rounds = workspace.store.campaigns.rounds(row.campaign_id)
    if row.state is CampaignState.ENDED:
        orders = workspace.store.campaigns.orders(row.campaign_id)
        now = standing_of(rounds, orders, baseline_of(rounds))
        if now.may_release(workspace.config.gate.tolerance):
            raise ConfigError(
                f"campaign {row.campaign_id} has ended with a result that a new release makes "
                "unreachable: run `coordinator export` first, then this command with --replace"
            )
    elif closed_of(rounds):
        raise ConfigError(
            f"campaign {row.campaign_id} is under way with the present release; let `coordinator "
            "serve` end it, or give it up with --replace"
        )


def _stated_digest(workspace: Workspace) -> bytes | None:
    """Of the present release, as campaigns name it."""
    stated = stated_manifest(workspace.state.bundle)
    return None if stated is None else hashlib.sha256(stated.to_bytes()).digest()
