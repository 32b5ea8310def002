"""`ChatAgent` with the real client library and a model from a script, good and bad; each run ends with one outcome."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from jupyter_agentwatch.agents import (
    AgentRun,
    Budget,
    ChatAgent,
    Edit,
    Finish,
    Observation,
    Outcome,
    Patch,
    Shell,
    Unclear,
)
from jupyter_agentwatch.agents.tools import TOOLS
from jupyter_agentwatch.errors import ModelError
from jupyter_agentwatch.events import AgentNote
from jupyter_agentwatch.testing import Answer, Endless, ScriptedModel, Silence, calls
from tests.outside import recorded
from tests.servers import free_port

if TYPE_CHECKING:
    from jupyter_agentwatch import Watch

PATIENCE_S = 60.0
KEY = "sk-not-a-real-key"


def chat(model: ScriptedModel | str, **options: Any) -> ChatAgent:
    """Return an agent that asks a scripted model, and tries nothing again unless a test says so."""
    url = model if isinstance(model, str) else model.url
    return ChatAgent("m", base_url=url, api_key=KEY, **{"retries": 0, "timeout": PATIENCE_S, **options})


def ran(watch: Watch, agent: ChatAgent, **options: Any) -> AgentRun:
    """Run an agent to its end, and see that its end is on record and nothing runs on."""
    run = watch.run_agent(agent, "work", **options)
    outcome = run.wait(PATIENCE_S)
    last = [note for note in recorded(watch, AgentNote) if note.run == run.id][-1]
    assert (last.op, last.outcome) == ("end", outcome.value)
    assert watch.status().running_steps == []
    return run


@pytest.mark.sandbox
def test_a_model_works_with_tools_and_sees_what_came_of_them(closed: Watch) -> None:
    """Commands, edits and patches are carried out in order, and each result goes back to the call that asked for it."""
    script = [
        calls(("edit_file", {"path": "m.txt", "old": "", "new": "one\n"}), ("shell", {"command": "cat m.txt; exit 4"})),
        calls(("apply_patch", {"diff": "--- a/m.txt\n+++ b/m.txt\n@@ -1 +1 @@\n-one\n+two\n"}), say="now the patch"),
        calls(("finish", {"answer": "all done"})),
    ]
    with ScriptedModel(script) as model:
        run = ran(closed, chat(model, price_in=1000.0, price_out=2000.0, temperature=0.5))
    assert (run.outcome, run.answer) == (Outcome.FINISHED, "all done"), run.reason
    assert [type(step.action) for step in run.steps] == [Edit, Shell, Patch, Finish]
    assert run.steps[2].action.thought == "now the patch"
    assert (closed.workspace / "m.txt").read_text() == "two\n"
    first, second, third = model.requests
    assert (first["model"], first["temperature"], len(first["tools"])) == ("m", 0.5, len(TOOLS))
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert first["messages"][1]["content"] == "work"
    answered = [message for message in second["messages"] if message["role"] == "tool"]
    assert [message["tool_call_id"] for message in answered] == ["call_1", "call_2"]
    assert answered[1]["content"] == "one\n[exit code 4]"
    assert "+two" in third["messages"][-1]["content"]
    assert model.authorization == [f"Bearer {KEY}"] * 3
    assert (run.usage.tokens_in, run.usage.tokens_out, run.usage.requests) == (300, 30, 3)
    assert run.usage.cost_usd == pytest.approx(0.3 + 0.06)
    costs = [note.cost_usd for note in recorded(closed, AgentNote) if note.run == run.id and note.op == "turn"]
    assert costs == [pytest.approx(0.12), 0.0, pytest.approx(0.12), pytest.approx(0.12)]
    assert KEY not in closed.log.read_text()
    assert KEY not in closed.run("env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'").stdout


@pytest.mark.sandbox
@pytest.mark.parametrize(
    ("script", "options", "outcome", "reason"),
    [
        ([{"content": "I am a teapot."}] * 3, {}, Outcome.NONSENSE, "called no tool"),
        ([{"content": None, "refusal": "No."}] * 3, {}, Outcome.NONSENSE, "called no tool"),
        ([calls(("reboot", {}))] * 3, {}, Outcome.NONSENSE, "no tool 'reboot'"),
        ([{"tool_calls": [7, None]}] * 3, {}, Outcome.NONSENSE, "called no tool"),
        ([Answer(200, b"<html>hello</html>")], {}, Outcome.MODEL_ERROR, "no JSON"),
        ([Answer(200, [1])], {}, Outcome.MODEL_ERROR, "no JSON object"),
        ([Answer(200, {"choices": []})], {}, Outcome.MODEL_ERROR, "holds no message"),
        ([Answer(200, {"choices": [{"message": "hi"}]})], {}, Outcome.MODEL_ERROR, "holds no message"),
        ([Answer(200, b"[" * 100_000)], {}, Outcome.MODEL_ERROR, "no JSON"),
        ([Answer(401, {"error": {"message": "bad \x1b[31mkey"}})], {}, Outcome.MODEL_ERROR, "check the key"),
        ([Answer(404, {"error": {"message": "no such model"}})], {}, Outcome.MODEL_ERROR, "name of the model"),
        ([Answer(429, b"slow down")], {}, Outcome.MODEL_ERROR, "HTTP 429"),
        ([Answer(500, b"oh")], {}, Outcome.MODEL_ERROR, "HTTP 500"),
        ([Endless()], {}, Outcome.MODEL_ERROR, "larger than"),
        ([Endless(pause=0.05)], {"timeout": 0.5}, Outcome.MODEL_ERROR, "no complete reply within 0.5 s"),
        ([Silence()], {"timeout": 0.5}, Outcome.MODEL_ERROR, "no complete reply within 0.5 s"),
    ],
)
def test_a_bad_model_ends_the_run_in_words(
    closed: Watch, script: list[Any], options: dict[str, Any], outcome: Outcome, reason: str
) -> None:
    """Nonsense, refusals, foreign answers, errors, endless and missing replies: one outcome, one reason for people."""
    with ScriptedModel(script) as model:
        run = ran(closed, chat(model, **options))
    assert (run.outcome, reason in run.reason) == (outcome, True), run.reason
    assert run.reason.isprintable()


@pytest.mark.sandbox
def test_what_fails_for_a_moment_is_tried_again(closed: Watch) -> None:
    """429 and 500 are asked again, and the run's account counts every request."""
    script = [Answer(429, b"", {"retry-after-ms": "1"}), Answer(500, b"", {"retry-after-ms": "1"})]
    with ScriptedModel(script) as model:
        run = ran(closed, chat(model, retries=2))
    assert (run.outcome, run.usage.requests, len(model.requests)) == (Outcome.FINISHED, 3, 3)


@pytest.mark.sandbox
def test_a_model_that_cannot_be_reached_is_named_without_its_secrets(closed: Watch) -> None:
    """A refused connection says where nobody answered, and nothing of what stands in the address besides."""
    port = free_port()
    run = ran(closed, chat(f"http://user:hunter2@127.0.0.1:{port}/v1"))
    assert run.outcome is Outcome.MODEL_ERROR
    assert f"127.0.0.1:{port}" in run.reason
    assert "hunter2" not in run.reason


@pytest.mark.sandbox
def test_stop_cancels_a_request_under_way(closed: Watch) -> None:
    """A run that waits for its model ends at once when it is stopped, and so does its thread."""
    with ScriptedModel([Silence()]) as model:
        agent = chat(model)
        run = closed.run_agent(agent, "work")
        assert model.asked.acquire(timeout=PATIENCE_S)
        run.stop()
        assert run.wait(PATIENCE_S) is Outcome.STOPPED
        for thread in threading.enumerate():
            if thread.name == f"agentwatch-run-{run.id}":
                thread.join(PATIENCE_S)
                assert not thread.is_alive()
    assert not run.steps


def test_a_cancelled_agent_asks_no_more() -> None:
    """After `cancel` nothing is sent, and that is said."""
    with ScriptedModel([]) as model:
        agent = chat(model)
        agent.cancel()
        with pytest.raises(ModelError, match="cancelled"):
            agent.act(Observation(task="work", turn=1))
        agent.close()
    assert model.requests == []


@pytest.mark.sandbox
def test_a_budget_of_tokens_ends_the_run(closed: Watch) -> None:
    """What the endpoint says it has used is counted, and the bound ends the run before the next request."""
    with ScriptedModel([calls(("shell", {"command": "true"}))] * 9) as model:
        run = ran(closed, chat(model), budget=Budget(tokens=250))
    assert (run.outcome, len(model.requests), run.usage.tokens) == (Outcome.BUDGET, 3, 330)


def asked(agent: ChatAgent, turns: int = 1) -> list[Any]:
    """Return what an agent chooses in its first turns, each time told "ok"."""
    try:
        return [
            agent.act(Observation(task="t", turn=turn, text="ok" if turn > 1 else "")) for turn in range(1, turns + 1)
        ]
    finally:
        agent.close()


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("shell", "{", "no JSON"),
        ("shell", "[" * 100_000, "no JSON"),
        ("shell", "[]", "must be a JSON object"),
        ("shell", "{}", "needs command"),
        ("shell", '{"command": 7}', "needs command"),
        ("shell", '{"command": "ls", "timeout": "soon"}', "timeout"),
        ("shell", '{"command": "ls", "timeout": -1}', "timeout"),
        ("shell", None, "must be a JSON text"),
        ("edit_file", '{"path": "a", "old": "b"}', "needs new"),
        ("apply_patch", "{}", "needs diff"),
        (None, "{}", "no tool None"),
        ("\x1b[2J", "{}", "no tool"),
    ],
)
def test_a_malformed_call_is_told_to_the_model(name: Any, arguments: Any, problem: str) -> None:
    """What is wrong with a call goes back to it as its result, and the conversation stays one that endpoints take."""
    call = {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
    with ScriptedModel([{"role": "assistant", "tool_calls": [call]}]) as model:
        first, last = asked(chat(model), 2)
    assert isinstance(first, Unclear)
    assert problem in first.problem
    assert first.problem.isprintable()
    assert isinstance(last, Finish)
    said, told = model.requests[1]["messages"][-2:]
    assert json.loads(said["tool_calls"][0]["function"]["arguments"]) == {}
    assert (told["role"], told["tool_call_id"]) == ("tool", "c")


@pytest.mark.parametrize("usage", [None, 7, {"prompt_tokens": -5, "cost": "free"}, {"completion_tokens": 1e400}, {}])
def test_usage_that_cannot_be_counts_as_none(usage: Any) -> None:
    """An endpoint that says nothing, or nonsense, of what it used is no reason to fail."""
    message = calls(("finish", {"answer": ""}))
    with ScriptedModel([Answer(200, {"choices": [{"message": message}], "usage": usage})]) as model:
        (action,) = asked(chat(model, price_in=1.0))
    assert (action.usage.tokens, action.usage.cost_usd, action.usage.requests) == (0, 0.0, 1)


def test_the_cost_that_the_endpoint_tells_goes_first() -> None:
    """A cost in the reply is taken as it is; the given prices reckon it where there is none."""
    body = {"choices": [{"message": {}}], "usage": {"prompt_tokens": 10, "cost": 0.25}}
    with ScriptedModel([Answer(200, body)]) as model:
        (action,) = asked(chat(model, price_in=1e6))
    assert action.usage.cost_usd == 0.25


def test_a_long_conversation_loses_its_oldest_outputs() -> None:
    """What was put out first is left out first; the task and what the model said stay."""
    with ScriptedModel([calls(("shell", {"command": f"echo {n}"})) for n in range(4)]) as model:
        agent = chat(model, context_chars=1000)
        for turn in range(1, 5):
            agent.act(Observation(task="the task", turn=turn, text="x" * 500, outcome="exited", exit_code=0))
        agent.close()
    messages = model.requests[-1]["messages"]
    outputs = [message["content"] for message in messages if message["role"] == "tool"]
    assert [len(each) > 400 for each in outputs] == [False, False, True]
    assert "left out" in outputs[0]
    assert messages[1]["content"] == "the task"


def test_what_cannot_be_an_agent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name, no key, and bounds that mean nothing are told at once."""
    with pytest.raises(ValueError, match="model is empty"):
        ChatAgent(" ")
    with pytest.raises(ValueError, match="timeout"):
        ChatAgent("m", api_key=KEY, timeout=0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_ADMIN_KEY", raising=False)
    with pytest.raises(ModelError, match="set OPENAI_API_KEY"):
        ChatAgent("m")


def test_a_key_is_never_shown() -> None:
    """An agent shows its model and where that is, and no key."""
    agent = ChatAgent("m", base_url="http://user:hunter2@127.0.0.1:9/v1", api_key=KEY)
    assert repr(agent) == "<ChatAgent m at http://127.0.0.1:9>"
    agent.close()
