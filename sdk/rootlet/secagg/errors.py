"""What can go wrong in a secure round."""

from rootlet.errors import RequestRefusedError
from rootlet_runtime.errors import RootletError


class SecureRoundRefusedError(RequestRefusedError):
    """A round that this device does not take part in: its parameters, or what the server sent."""


class EnrolmentError(RootletError, ValueError):
    """An enrolment that is missing, damaged, expired or of another authority."""
