"""The result of an attack as an entry of the privacy ledger, under the campaign that it is of."""

from offsite.audit.attack.analysis import Attack
from offsite.audit.attack.evidence import audit_result
from offsite.edge_client.attack.attack_rounds import Keep
from offsite.edge_client.data import Data
from offsite.edge_client.privacy.campaign_budget import campaign_name
from offsite.edge_client.privacy.private_rounds import PrivateRounds
from offsite.emulator.rounds.plan import RoundPlan


def into_ledger(privacy: PrivateRounds, plan: RoundPlan, data: Data) -> Keep:
    """Enters the verdict and the digest of its evidence; never a figure of the rows."""

    def keep(attack: Attack, evidence: bytes) -> None:
        data_set = privacy.ledger.data_set(data, privacy.limit.unit)
        name = campaign_name(privacy.coordinator, plan.campaign_id, data_set)
        privacy.ledger.append(audit_result(name, attack, evidence))

    return keep
