"""How the server speaks to its SuperLink: registers devices, submits the run, takes its task.

Like `fast_lane.py` and the two `*_main.py`, it uses flwr's internal modules; `flower_version.py`
pins them.
"""

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import (
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient

from rootlet_server.errors import SuperLinkError

_ACQUIRE_TASK = "/flwr.proto.Runtime/AcquireTask"
_APP_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "rootlet-federation"
version = "1.0.0"
description = "A strategy over the adapters of a rootlet bundle"
license = { file = "LICENSE" }
dependencies = []

[tool.flwr.app]
publisher = "rootlet"

[tool.flwr.app.components]
serverapp = "rootlet_server.federation.app:app"
clientapp = "rootlet_server.federation.node_app:app"

[tool.flwr.app.config]
plan = ""
"""


class ControlLink:
    """A connection to the Control and Runtime APIs of our own SuperLink.

    Args:
        address: `host:port` of the SuperLink.
        root_certificate: PEM bytes of the CA, or None for plain HTTP.
        task_secret: The secret that the SuperLink asks of whoever runs its tasks.
    """

    def __init__(self, address: str, *, root_certificate: bytes | None, task_secret: bytes) -> None:
        self._run_id: int | None = None
        insecure = root_certificate is None
        version = RuntimeVersionHttpInterceptor(component_name="rootlet-serve")
        self._control = ControlHttpClient.from_server_address(
            address, insecure, root_certificate, [version]
        )
        auth = SuperExecAuthHttpInterceptor(
            master_secret=task_secret, protected_methods={_ACQUIRE_TASK}
        )
        self._runtime = RuntimeHttpClient.from_server_address(
            address, insecure, root_certificate, [version, auth]
        )

    def register_device(self, public_key_pem: bytes) -> None:
        """Allow the device with this public key (PEM, SubjectPublicKeyInfo) to join.

        A key that is registered already stays registered.

        Raises:
            SuperLinkError: the SuperLink refused the key.
        """
        try:
            self._control.RegisterNode(RegisterNodeRequest(public_key=public_key_pem))
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.CONFLICT:
                raise _refused("a device key", error) from None

    def nodes(self) -> dict[bytes, int]:
        """The ids of the registered devices, by their public key as it was registered.

        Raises:
            SuperLinkError: the SuperLink does not tell.
        """
        try:
            response = self._control.ListNodes(ListNodesRequest())
        except httpx.HTTPStatusError as error:
            raise _refused("to list the devices", error) from None
        return {bytes(node.public_key): int(node.node_id) for node in response.nodes_info}

    def submit(self, plan_path: Path) -> int:
        """Submit the ServerApp with its plan.

        Returns:
            The id of the run.

        Raises:
            SuperLinkError: the SuperLink refused the run.
        """
        content, _ = build_fab_from_files({"pyproject.toml": _APP_PROJECT.encode()})
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        request = StartRunRequest(
            fab=fab_to_proto(fab), override_config=user_config_to_proto({"plan": str(plan_path)})
        )
        try:
            response = self._control.StartRun(request)
        except httpx.HTTPStatusError as error:
            raise _refused("the run", error) from None
        if not response.HasField("run_id"):
            raise SuperLinkError("the SuperLink did not start the run; its log says why")
        self._run_id = int(response.run_id)
        return self._run_id

    def take_task(self) -> str | None:
        """Take the next ServerApp task in line.

        Whoever may log in to this machine can submit a run to the Control API. The task of another
        run than ours is taken out of the line and given to nobody, so that its code never runs.

        Returns:
            Its token; None where there is no task, or one of another run than this link's last.
        """
        response = self._runtime.AcquireTask(
            AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
        )
        ours = response.HasField("task") and response.task.run_id == self._run_id
        return str(response.token) if ours and response.token else None

    def __enter__(self) -> Self:
        """The open connection."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self._control.close()
        self._runtime.close()


def _refused(what: str, error: httpx.HTTPStatusError) -> SuperLinkError:
    return SuperLinkError(
        f"the SuperLink refused {what}: HTTP {error.response.status_code} "
        f"{error.response.text[:500]}"
    )
