"""The contract with the parts of Flower that executors of ours stand on; a new Flower passes this first.

It imports nothing but Flower and the file under contract, so that it runs in an environment with
another Flower and little else (`benchmarks/engines/contract.py`).
"""

import inspect
import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from offsite.emulator.engines.flower import fab, fleet_wire, internals

BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_a_client_is_made_of_an_address_a_ca_and_interceptors() -> None:
    from flwr.supercore.control.control_http_client import ControlHttpClient
    from flwr.supercore.runtime import RuntimeHttpClient

    for client in (RuntimeHttpClient, ControlHttpClient):
        assert parameters(client.from_server_address) == [
            "server_address",
            "insecure",
            "root_certificates",
            "interceptors",
            "retry_invoker",
        ]
    for name in (
        "AcquireTask",
        "PullTaskInput",
        "PushTaskOutput",
        "SendTaskHeartbeat",
        "PullMessages",
        "PushMessages",
        "PullObject",
        "PushObject",
        "ConfirmMessageReceived",
        "GetNodes",
    ):
        assert callable(getattr(RuntimeHttpClient, name))
    for name in ("RegisterNode", "StartRun", "StopRun"):
        assert callable(getattr(ControlHttpClient, name))


def test_messages_of_the_wire_have_the_fields_that_are_used() -> None:
    from flwr.proto.control_pb2 import RegisterNodeRequest, StartRunRequest, StartRunResponse
    from flwr.proto.fab_pb2 import Fab
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.proto.runtime_pb2 import (
        AcquireTaskRequest,
        AcquireTaskResponse,
        PullTaskInputResponse,
        PushTaskOutputRequest,
        SendTaskHeartbeatResponse,
    )

    wanted = {
        AcquireTaskRequest: {"supported_task_types"},
        AcquireTaskResponse: {"task", "token"},
        PullTaskInputResponse: {"task_id", "run", "context"},
        PushTaskOutputRequest: {"sub_status"},
        SendTaskHeartbeatResponse: {"success"},
        RegisterNodeRequest: {"public_key", "name"},
        StartRunRequest: {"fab"},
        StartRunResponse: {"run_id"},
        Fab: {"hash_str", "content"},
        NodeInfo: {"node_id", "public_key"},
    }
    for message, fields in wanted.items():
        assert fields <= set(message.DESCRIPTOR.fields_by_name), message


def test_a_question_without_messages_is_answered_with_nothing() -> None:
    from flwr.proto.fleet_pb2 import PullMessagesResponse

    body = PullMessagesResponse(messages_list=[], message_object_trees=[]).SerializeToString()
    assert fleet_wire.FleetAnswer(200, "application/x-protobuf", body).is_empty


def test_helpers_of_a_client_app_process_have_the_parameters_that_are_used() -> None:
    from flwr.supernode.runtime.run_clientapp import (
        pull_task_input,
        push_message,
        push_task_output,
    )

    assert parameters(pull_task_input) == ["client"]
    assert parameters(push_message) == ["client", "message", "context"]
    assert parameters(push_task_output) == ["client", "context", "sub_status", "details"]


def test_a_grid_takes_a_client_of_ours() -> None:
    client = object()
    grid = internals.RunGrid(client, "token")  # type: ignore[arg-type]
    assert grid._runtime_client is client  # what every call of the grid goes through
    assert parameters(type(grid).push_messages) == ["self", "messages"]
    assert parameters(type(grid).pull_messages) == ["self", "message_ids"]


def test_a_node_signs_with_three_headers() -> None:
    assert set(internals.SIGNED_HEADERS) == fleet_wire.HEADERS - {"content-type"}
    assert internals.PUBLIC_KEY_HEADER == fleet_wire.PUBLIC_KEY


def test_the_calls_of_a_node_are_those_that_pass() -> None:
    from flwr.superlink.routers.fleet.router import router

    paths = {route.path for route in router.routes}
    refused = {fleet_wire.PREFIX + name for name in ("register-node", "unregister-node")}
    assert paths == fleet_wire.PATHS | refused


def test_the_bundle_names_apps_and_passes_flowers_own_check() -> None:
    from flwr.common.config import get_fab_config, get_metadata_from_config

    content = fab.fab()
    config = get_fab_config(content)
    assert get_metadata_from_config(config) == ("offsite/offsite", "1.0.0")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["pyproject.toml", ".info/CONTENT"]


def test_the_bundle_is_the_same_on_every_machine() -> None:
    assert fab.fab_sha256() == ("b0fe231306518ca2b44ecb8969c49b784f92cf92abe98f4e21dad3e23a338715")


FLAGS = {
    "flower-superlink": (
        "--host",
        "--port",
        "--ssl-ca-certfile",
        "--ssl-certfile",
        "--ssl-keyfile",
        "--database",
        "--isolation",
        "--superexec-auth-secret-file",
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    ),
    "flower-supernode": (
        "--superlink",
        "--root-certificates",
        "--auth-supernode-private-key",
        "--host",
        "--port",
        "--isolation",
        "--superexec-auth-secret-file",
    ),
}


@pytest.mark.parametrize("command", FLAGS)
def test_the_commands_have_the_flags_that_children_are_started_with(command: str) -> None:
    found = shutil.which(command, path=str(BIN))
    assert found is not None
    done = subprocess.run(
        [found, "--help"], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert [flag for flag in FLAGS[command] if flag not in done.stdout] == []


def test_the_words_of_the_environment_are_flowers() -> None:
    from flwr.common import constant
    from flwr.supercore import telemetry, update_check
    from flwr.supercore.constant import FLWR_DISABLE_UPDATE_CHECK

    assert FLWR_DISABLE_UPDATE_CHECK == "FLWR_DISABLE_UPDATE_CHECK"
    assert "FLWR_TELEMETRY_ENABLED" in inspect.getsource(telemetry)
    assert "FLWR_DISABLE_UPDATE_CHECK" in inspect.getsource(update_check)
    assert (
        constant.FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION
        == "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"
    )
