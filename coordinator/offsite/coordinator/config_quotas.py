"""The settings `[quotas]`: what one client may ask of the service at a time."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from offsite.coordinator.config_problems import Problems
from offsite.secure import limits

if TYPE_CHECKING:
    from offsite.coordinator.service.quotas import QuotaSettings


@dataclass(frozen=True, slots=True)
class QuotaSection:
    """What one client may ask of the service at a time; more is told when to come back."""

    calls_per_s: Annotated[float, "calls of one client a second, in the long run"] = 100.0
    call_burst: Annotated[int, "calls of one client at once"] = 500
    uploads_per_client: Annotated[int, "replies that one client may send at a time"] = 3
    upload_mib_per_client: Annotated[int, "MiB of replies that one client may send at a time"] = (
        4096
    )
    uploads_at_once: Annotated[
        int, "replies of all clients received at a time, about 4 MB of memory each; more wait"
    ] = 16

    def __post_init__(self) -> None:
        problems = Problems()
        problems.outside("calls_per_s", self.calls_per_s, 1, 10_000)
        problems.outside("call_burst", self.call_burst, 20, 100_000)
        problems.outside("uploads_per_client", self.uploads_per_client, 2, 100)
        least = limits.ROUND_MESSAGE_BYTES // limits.MIB + 1
        problems.outside("upload_mib_per_client", self.upload_mib_per_client, least, 1 << 30)
        problems.outside("uploads_at_once", self.uploads_at_once, 1, 1000)
        problems.report()

    def settings(self) -> "QuotaSettings":
        """As the service takes them."""
        from offsite.coordinator.service.quotas import QuotaSettings

        return QuotaSettings(
            self.calls_per_s,
            self.call_burst,
            self.uploads_per_client,
            self.upload_mib_per_client * limits.MIB,
            self.uploads_at_once,
        )
