"""A real Jupyter server with the extension in it, for the tests of this folder only.

The plugin of pytest-jupyter is not registered: its automatic fixtures would then be part of every test of the project.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pytest_jupyter.jupyter_server import (  # noqa: F401 -- fixtures are found by their names
    echo_kernel_spec,
    http_server,
    http_server_client,
    http_server_port,
    jp_argv,
    jp_asyncio_loop,
    jp_auth_header,
    jp_base_url,
    jp_config_dir,
    jp_configurable_serverapp,
    jp_data_dir,
    jp_env_config_path,
    jp_env_jupyter_path,
    jp_environ,
    jp_fetch,
    jp_home_dir,
    jp_http_port,
    jp_kernel_dir,
    jp_logging_stream,
    jp_nbconvert_templates,
    jp_root_dir,
    jp_runtime_dir,
    jp_server_cleanup,
    jp_serverapp,
    jp_system_config_path,
    jp_system_jupyter_path,
    jp_template_dir,
    jp_web_app,
    jp_ws_fetch,
)

from jupyter_agentwatch import Watch
from tests.server.scenes import Browser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folders of one test, so that `kill-all` means this test's watches; short, for a socket's path has 107 bytes."""
    base = Path(tempfile.mkdtemp(prefix="aws-", dir="/tmp"))
    for variable, name in {"AGENTWATCH_RUNTIME_DIR": "run", "AGENTWATCH_LOG_DIR": "log"}.items():
        (base / name).mkdir(mode=0o700)
        monkeypatch.setenv(variable, str(base / name))
    yield base / "run"
    shutil.rmtree(base)


@pytest.fixture
def jp_server_config(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The extension, enabled as the wheel enables it, nothing that lets a stranger in, and the test's own settings."""
    own: dict[str, Any] = getattr(request, "param", {})
    enabled = {"jpserver_extensions": {"jupyter_agentwatch": True}, "allow_unauthenticated_access": False}
    return {"ServerApp": {**enabled, **own}}


@pytest.fixture
def browser(jp_fetch: Any, jp_ws_fetch: Any, jp_serverapp: Any) -> Browser:  # noqa: F811
    """What stands for a page of this server."""
    return Browser(jp_fetch, jp_ws_fetch)


@pytest.fixture
def watches(tmp_path: Path) -> Iterator[Callable[..., Watch]]:
    """Start watches, each with a workspace of its own, that end with the test."""
    started: list[Watch] = []

    def start(policy: Any = None) -> Watch:
        workspace = tmp_path / f"workspace{len(started)}"
        workspace.mkdir()
        started.append(Watch(policy, workspace))
        return started[-1]

    yield start
    for watch in started:
        watch.close()


@pytest.fixture
def watch(watches: Callable[..., Watch]) -> Watch:
    """One watch with the default policy."""
    return watches()
