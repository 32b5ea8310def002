"""A model for programs inside, with the real clients of OpenAI and Anthropic in the real sandbox, and no key there."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jupyter_agentwatch import Watch
from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.errors import PolicyError
from jupyter_agentwatch.events import Connect, LimitHit, ModelCall
from tests.model_upstream import CLAUDE, KEY, MODEL, ModelService, chat, chunk, event, message
from tests.outside import LONG_S, wait_all_ended

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]

CURL = 'curl -sS --max-time 60 -H "Authorization: Bearer $OPENAI_API_KEY" $OPENAI_BASE_URL'
ASK = f"""{CURL}/chat/completions -w ' %{{http_code}}' -d '{{"model": "{MODEL}", "messages": []}}'"""


@pytest.fixture(scope="module")
def service() -> Iterator[ModelService]:
    """The service that stands for the provider, outside."""
    with ModelService() as made, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_MODEL_KEY", KEY)
        yield made


@pytest.fixture(scope="module")
def watch(service: ModelService, tmp_path_factory: pytest.TempPathFactory, rung: str) -> Iterator[Watch]:
    """A watch whose commands have a model."""
    with Watch(policy=service.policy(), workspace=tmp_path_factory.mktemp("project")) as made:
        yield made


def calls(watch: Watch, step: int) -> list[ModelCall]:
    """What is on record of a step's model calls, once as many have ended as have begun."""
    found = [e for e in read_events(watch.log, kinds={"model"}, step=step) if isinstance(e, ModelCall)]
    assert {e.request for e in found if e.op == "request"} == {e.request for e in found if e.op == "response"}
    return found


OPENAI = f"""
import json, openai
client = openai.OpenAI(max_retries=0)
tool = {{"type": "function", "function": {{"name": "sh", "parameters": {{"type": "object", "properties": {{}}}}}}}}
said = client.chat.completions.create(model={MODEL!r}, messages=[{{"role": "user", "content": "hi"}}], tools=[tool])
call = said.choices[0].message.tool_calls[0].function
stream = client.chat.completions.create(model={MODEL!r}, messages=[], stream=True)
text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
try:
    client.chat.completions.create(model="another", messages=[])
    refused = 0
except openai.PermissionDeniedError as error:
    refused = error.status_code
print(json.dumps([call.name, call.arguments, text, refused, [m.id for m in client.models.list()]]))
"""


def test_openais_client_works_inside(watch: Watch, service: ModelService) -> None:
    """Completions, tool calls, streams, errors and the list of models, by the environment alone."""
    service.asked.clear()
    service.answer = lambda number, asked, _: (
        [chunk({"content": "str"}), chunk({"content": "eam"}), chunk(None, (3, 2)), b"data: [DONE]\n\n"]
        if asked.body.get("stream")
        else chat(None, calls=[("sh", '{"cmd": "ls"}')])
    )
    result = watch.run([sys.executable, "-c", OPENAI], timeout=120, check=True)
    assert json.loads(result.stdout) == ["sh", '{"cmd": "ls"}', "stream", 403, [MODEL, CLAUDE]]
    assert [a.fields["authorization"] for a in service.asked] == [f"Bearer {KEY}"] * 2
    found = calls(watch, result.step)
    assert [(e.op, e.verdict, e.status, e.model) for e in found] == [
        ("request", "allow", 0, MODEL),
        ("response", "allow", 200, MODEL),
        ("request", "allow", 0, MODEL),
        ("response", "allow", 200, MODEL),
        ("refused", "deny", 403, ""),
    ]
    ended = [e for e in found if e.op == "response"]
    assert [(e.input_tokens, e.output_tokens, e.cost) for e in ended] == [(7, 5, 17.0), (3, 2, 7.0)]
    assert found[1].tool_calls == ['sh {"cmd": "ls"}']
    assert {e.cell for e in found} == {e.cell for e in read_events(watch.log, step=result.step)}


ANTHROPIC = f"""
import anthropic, json
client = anthropic.Anthropic(max_retries=0)
said = client.messages.create(model={CLAUDE!r}, max_tokens=9, messages=[{{"role": "user", "content": "hi"}}])
with client.messages.stream(model={CLAUDE!r}, max_tokens=9, messages=[{{"role": "user", "content": "hi"}}]) as stream:
    text = "".join(stream.text_stream)
print(json.dumps([said.content[0].text, text]))
"""


def test_anthropics_client_works_inside(watch: Watch, service: ModelService) -> None:
    """Messages and streams in the other shape, on record with their tokens."""
    streamed = [
        event("message_start", message={**message(), "content": [], "usage": {"input_tokens": 5, "output_tokens": 1}}),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": "stream"}),
        event("content_block_stop", index=0),
        event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 6}),
        event("message_stop"),
    ]
    service.answer = lambda number, asked, _: streamed if asked.body.get("stream") else message("whole")
    result = watch.run([sys.executable, "-c", ANTHROPIC], timeout=120, check=True)
    assert json.loads(result.stdout) == ["whole", "stream"]
    found = [e for e in calls(watch, result.step) if e.op == "response"]
    assert [(e.endpoint, e.input_tokens, e.output_tokens) for e in found] == [
        ("/v1/messages", 11, 3),
        ("/v1/messages", 5, 6),
    ]


def test_the_key_is_nowhere_inside(watch: Watch) -> None:
    """Neither the environment nor what can be read of any process holds the key; the token is not the key."""
    script = "env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'"
    result = watch.run(script)
    assert "OPENAI_API_KEY=aw-" in result.stdout
    assert KEY not in result.stdout
    assert KEY not in watch.log.read_text()


def test_only_the_port_of_the_proxy_is_open(watch: Watch, service: ModelService) -> None:
    """The upstream itself cannot be reached from inside: a model is no way to the network."""
    port = service.url.split(":")[2].split("/")[0]
    result = watch.run(
        f"curl -sS --max-time 20 http://127.0.0.1:{port}/v1/models; curl -sS http://host.loopback:{port}/"
    )
    assert result.stdout == ""
    assert not result.ok


def test_a_wrong_token_is_refused_and_on_record(watch: Watch, service: ModelService) -> None:
    """Without the watch's token nothing is asked, and the attempt leads to its step and process."""
    service.asked.clear()
    result = watch.run(ASK.replace("$OPENAI_API_KEY", "wrong"))
    assert result.stdout.endswith(" 401")
    (refused,) = calls(watch, result.step)
    assert (refused.verdict, refused.op, refused.status) == ("deny", "refused", 401)
    connects = {e.flow: e.pid for e in read_events(watch.log, step=result.step) if isinstance(e, Connect)}
    assert connects[refused.flow] == refused.pid
    assert service.asked == []


@pytest.mark.parametrize("bound", ["max_requests", "max_tokens", "max_cost"])
def test_a_budget_ends_what_is_asked(service: ModelService, tmp_path: Path, bound: str) -> None:
    """Once a bound is reached, the next request is refused before it leaves, and that is on record once."""
    service.asked.clear()
    service.answer = lambda *_: chat()
    most = {"max_requests": 1, "max_tokens": 12, "max_cost": 17}
    with Watch(policy=service.policy(**{bound: most[bound]}), workspace=tmp_path) as watch:
        result = watch.run(f"{ASK}; {ASK}; {ASK}")
        assert [line for line in ("200", "403", "403") if line in result.stdout] == ["200", "403", "403"]
        assert len(service.asked) == 1
        hits = [e for e in read_events(watch.log, kinds={"limit"}) if isinstance(e, LimitHit)]
        assert [(e.limit, e.maximum) for e in hits] == [(f"models.{bound}", most[bound])]


def test_a_kill_in_mid_stream_ends_everything(service: ModelService, tmp_path: Path) -> None:
    """A kill while a stream runs leaves no process, ends the request upstream, and the log says how far it came."""
    is_gone, runs = threading.Event(), threading.Event()

    def endless() -> Iterator[bytes]:
        try:
            while True:
                runs.set()
                yield chunk({"content": "x" * 100})
        finally:
            is_gone.set()

    service.answer = lambda *_: endless()
    with Watch(policy=service.policy(), workspace=tmp_path) as watch:
        body = json.dumps({"model": MODEL, "messages": [], "stream": True})
        running = watch.start(f"{CURL}/chat/completions -N -d '{body}' > /dev/null")
        assert runs.wait(LONG_S)
        killed = watch.kill("enough")
        assert killed.survivors == 0
        assert is_gone.wait(LONG_S)
        asked, ended = (e for e in read_events(watch.log, kinds={"model"}) if isinstance(e, ModelCall))
        assert (asked.op, asked.step, asked.request) == ("request", running.step, 1)
        assert (ended.op, ended.step, ended.request) == ("response", running.step, 1)
        assert ended.reason


def test_a_suspended_watch_asks_nothing_and_loses_nothing(service: ModelService, tmp_path: Path) -> None:
    """While a watch is suspended no piece of a stream comes in; after the resume the answer is whole."""
    go_on, begun = threading.Event(), threading.Event()

    def pieces() -> Iterator[bytes]:
        yield chunk({"content": "first"})
        begun.set()
        go_on.wait(LONG_S)
        yield chunk({"content": "second"})
        yield b"data: [DONE]\n\n"

    service.answer = lambda *_: pieces()
    with Watch(policy=service.policy(), workspace=tmp_path) as watch:
        body = json.dumps({"model": MODEL, "messages": [], "stream": True})
        running = watch.start(f"{CURL}/chat/completions -N -d '{body}'")
        assert begun.wait(LONG_S)
        watch.suspend()
        go_on.set()
        assert not running.has_ended
        watch.resume()
        result = running.wait(LONG_S)
    assert "first" in result.stdout
    assert result.stdout.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"key_env": "TEST_MODEL_NO_KEY"}, "TEST_MODEL_NO_KEY is not set"),
        ({"key_env": "", "key_file": "/nowhere/key"}, "cannot read"),
        ({"key_env": "", "key_file": "WORKSPACE/key"}, "can be seen from inside"),
        ({"url": "ftp://api.example"}, "upstreams\\[0\\].url"),
        ({"key_file": "/tmp/key"}, "not both"),
        ({"shape": "other"}, "upstreams\\[0\\].shape"),
    ],
)
def test_a_wrong_model_policy_is_refused(
    service: ModelService, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    """A key that is missing or visible inside, and an address that is none, are named before anything starts."""
    (tmp_path / "key").write_text(KEY)
    policy = service.policy()
    policy["models"]["upstreams"][0] |= {k: v.replace("WORKSPACE", str(tmp_path)) for k, v in change.items()}
    with pytest.raises(PolicyError, match=named) as caught:
        Watch(policy=policy, workspace=tmp_path)
    assert KEY not in str(caught.value)


def test_a_key_may_stand_in_a_file_outside(service: ModelService, tmp_path: Path) -> None:
    """A key from a file is used as one from a variable is."""
    service.asked.clear()
    service.answer = lambda *_: chat("from a file")
    (tmp_path / "work").mkdir()
    (tmp_path / "key").write_text("sk-from-a-file\n")
    policy = service.policy()
    policy["models"]["upstreams"][0] |= {"key_env": "", "key_file": str(tmp_path / "key")}
    with Watch(policy=policy, workspace=tmp_path / "work") as watch:
        assert "from a file" in watch.run(ASK).stdout
    assert service.asked[0].fields["authorization"] == "Bearer sk-from-a-file"


def proxy_of(watch: str) -> int | None:
    """The process id of a watch's proxy, None where it has ended."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().endswith(f".proxy\0{watch}\0".encode()):
                return int(entry.name)
    return None


def wait_no_proxy(watch: str) -> None:
    """Wait until a watch's proxy has ended."""
    pid = proxy_of(watch)
    if pid is not None:
        with suppress(ProcessLookupError):
            wait_all_ended([os.pidfd_open(pid)])
    assert proxy_of(watch) is None


@pytest.mark.parametrize("how", ["close", "kill", "its supervisor is killed"])
def test_the_proxy_ends_with_its_watch(service: ModelService, tmp_path: Path, how: str) -> None:
    """However a watch ends, nothing is left that has the key."""
    watch = Watch(policy=service.policy(), workspace=tmp_path)
    assert proxy_of(watch.id)
    if how == "close":
        watch.close()
    elif how == "kill":
        watch.kill()
    else:
        os.kill(watch.status().pid, signal.SIGKILL)
    wait_no_proxy(watch.id)
    watch.close()


def test_a_proxy_that_died_denies(service: ModelService, tmp_path: Path) -> None:
    """Without its proxy a watch goes on, but nothing can be asked any more, and that is on record."""
    with Watch(policy=service.policy(), workspace=tmp_path) as watch:
        os.kill(proxy_of(watch.id) or 0, signal.SIGKILL)
        wait_no_proxy(watch.id)
        result = watch.run(ASK)
        assert not result.ok
        assert result.stdout.strip() == "000"
        (noted,) = [e for e in read_events(watch.log, kinds={"model"}) if isinstance(e, ModelCall)]
        assert (noted.verdict, noted.reason) == ("deny", "the model proxy has ended")
        assert watch.run(["true"]).ok
