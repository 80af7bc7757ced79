"""What a device insists on before it shares anything, whatever the server asks."""

from dataclasses import dataclass

from rootlet.errors import ConfigError
from rootlet.secagg.errors import SecureRoundRefusedError
from rootlet.secagg.plan import SecurePlan

MIN_LIVE = 5
"""Fewest devices in a sum by default; below that a sum tells much of each."""


@dataclass(frozen=True, kw_only=True)
class SecurePolicy:
    """The floors of a device.

    Attributes:
        required: Refuse every training whose update would travel in clear.
        min_live: Fewest devices whose sum may be unmasked.
        min_noise_multiplier: Least noise of a round, as `NoisePlan.noise_multiplier` has it; 0 for
            rounds without.
        max_clip_norm: Longest clipped update of a round with noise.

    Raises:
        ConfigError: A value outside its bounds.
    """

    required: bool = True
    min_live: int = MIN_LIVE
    min_noise_multiplier: float = 0.0
    max_clip_norm: float = 1e6

    def __post_init__(self) -> None:
        if self.min_live < 2:
            raise ConfigError(f"min_live is {self.min_live}: a sum of fewer than 2 hides nothing")
        if not (self.min_noise_multiplier >= 0 and self.max_clip_norm > 0):
            raise ConfigError(
                f"min_noise_multiplier {self.min_noise_multiplier}, max_clip_norm "
                f"{self.max_clip_norm}: must be at least 0, and positive"
            )

    def check(self, plan: SecurePlan, *, manifest_sha256: str, values: int) -> None:
        """Refuse a plan below the floors; a plan has checked its own bounds already.

        Raises:
            SecureRoundRefusedError: The value, the floor and the remedy.
        """
        if plan.manifest_sha256 != manifest_sha256 or plan.values != values:
            raise SecureRoundRefusedError(
                f"the round is for {plan.values} values of bundle {plan.manifest_sha256[:12]}…; "
                f"this device has {values} of {manifest_sha256[:12]}…: install the same bundle"
            )
        if plan.min_live < self.min_live:
            raise SecureRoundRefusedError(
                f"min_live {plan.min_live}: this device is in no sum of fewer than {self.min_live}"
            )
        if self.min_noise_multiplier > 0:
            noise = 0.0 if plan.noise is None else plan.noise.noise_multiplier(plan.values)
            if noise < self.min_noise_multiplier:
                raise SecureRoundRefusedError(
                    f"the round's noise multiplier is {noise:.3g}: this device asks for "
                    f"{self.min_noise_multiplier:g} at least"
                )
        if plan.noise is not None and plan.noise.clip_norm > self.max_clip_norm:
            raise SecureRoundRefusedError(
                f"clip_norm {plan.noise.clip_norm:g}: this device accepts {self.max_clip_norm:g} "
                "at most"
            )
