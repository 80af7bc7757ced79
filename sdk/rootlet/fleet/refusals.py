"""From a refused call to the error that names its remedy."""

import json

from rootlet.errors import (
    FleetError,
    NodeStillActiveError,
    RunEndedError,
    ServerRefusedError,
)

REGISTER = (
    "its operator adds the public key to the folder of rootlet serve --node-keys and starts that "
    "again; on another SuperLink: flwr supernode register <public key>"
)

PUBLIC_KEY_IN_USE = 23
REGISTRATION_DISABLED = 2001
ACTIVATION_FAILED = 2004
DEACTIVATION_FAILED = 2005
UNREGISTRATION_FAILED = 2006
RUN_STATUS_NOT_ALLOWED = 2007


def refusal(path: str, status: int, content: bytes) -> FleetError:
    """Return the error for an answer with a status other than 200, 401, 429 and 5xx.

    Args:
        path: The call.
        status: HTTP status.
        content: The body; Flower sends JSON with `code` and `detail`.
    """
    code, text = _code_and_text(content)
    if code == ACTIVATION_FAILED:
        return NodeStillActiveError(
            "the server does not activate this node key: either the key is not registered "
            f"({REGISTER}), or the server still counts it as online (until twice the heartbeat "
            "interval after the last heartbeat)"
        )
    if code == RUN_STATUS_NOT_ALLOWED:
        return RunEndedError(f"the run is not running: {path} answers {text}")
    remedy = (
        f"; the server wants registered nodes: {REGISTER}" if code == REGISTRATION_DISABLED else ""
    )
    return ServerRefusedError(
        f"{path} is refused with status {status}, code {code}: {text}{remedy}",
        status=status,
        code=code,
    )


def _code_and_text(content: bytes) -> tuple[int, str]:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        return 0, repr(content[:200])
    code = answer.get("code")
    text = " ".join(str(answer[key]) for key in ("detail", "extra") if key in answer)
    return code if type(code) is int else 0, text[:300]
