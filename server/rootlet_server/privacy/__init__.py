"""Privacy on the server: what training has spent, and how much noise a budget asks for."""

from rootlet_server.privacy.accounting import epsilon, epsilon_by_rdp, noise_multiplier_for

__all__ = ["epsilon", "epsilon_by_rdp", "noise_multiplier_for"]
