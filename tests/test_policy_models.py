"""The policy's `models`, and how records of model calls are told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jupyter_agentwatch.cli.words import event_line
from jupyter_agentwatch.errors import PolicyError
from jupyter_agentwatch.policy import Budgets, Policy, parse_policy, policy_to_yaml
from jupyter_agentwatch.supervisor.budgets import BudgetBook
from jupyter_agentwatch.testing.builders import event

GOOD = """\
version: 1
models:
  upstreams:
    - shape: openai
      url: https://api.example.org/v1
      key_env: MODEL_KEY
      models: [{name: small, price_in: 0.5, price_out: 2}]
    - {shape: anthropic, url: "http://127.0.0.1:9000/v1/", key_file: ~/.keys/model, models: [{name: small}]}
  max_requests: 100
  max_cost: 1.5
"""


def test_a_model_can_be_granted() -> None:
    """What the documentation shows is accepted, means what it says, and survives being written."""
    policy = parse_policy(GOOD, "p.yaml")
    first, second = policy.models.upstreams
    assert (first.key_env, [m.name for m in first.models], second.key_file) == ("MODEL_KEY", ["small"], "~/.keys/model")
    assert parse_policy(policy_to_yaml(policy), "again.yaml") == policy


def test_the_documented_policy_is_accepted() -> None:
    """The policy in docs/other-agents.md is one."""
    text = (Path(__file__).parent.parent / "docs" / "other-agents.md").read_text("utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    models = parse_policy(block, "docs").models
    assert (models.port, models.max_requests, models.upstreams[0].models[0].name) == (8790, 200, "small")


def test_no_model_is_the_default() -> None:
    """An empty list means nothing: no upstream, no endpoint, no token."""
    assert Policy().models.upstreams == []
    assert parse_policy("models: {upstreams: []}", "p.yaml") == Policy()


@pytest.mark.parametrize(
    ("before", "after", "field", "reason"),
    [
        ("https://api.example.org/v1", "api.example.org", "upstreams[0].url", "give an address such as"),
        ("https://api.example.org/v1", "https://user:pw@api.example.org", "upstreams[0].url", "without user"),
        ("https://api.example.org/v1", "https://api.example.org/v1?key=1", "upstreams[0].url", "give an address"),
        ("https://api.example.org/v1", "file:///etc/passwd", "upstreams[0].url", "give an address"),
        ("MODEL_KEY", "MODEL-KEY", "upstreams[0].key_env", "letters, digits and underscores"),
        ("MODEL_KEY", "LANG", "upstreams[0].key_env", "may not be a variable inside"),
        ("key_env: MODEL_KEY", "key_env: K, key_file: /k", "", ""),
        ("~/.keys/model", "keys/model", "upstreams[1].key_file", "absolute path"),
        ("~/.keys/model", "/keys/../model", "upstreams[1].key_file", 'without ".."'),
        ("{name: small, price_in: 0.5, price_out: 2}", "{name: ''}", "upstreams[0].models[0].name", "model's name"),
        ("shape: anthropic", "shape: openai", "upstreams[1].models[0].name", "given before"),
        ("price_in: 0.5, price_out: 2", "price_in: 0", "max_cost", "nothing costs anything"),
        ("shape: openai", "shape: gemini", "upstreams[0].shape", "openai"),
        ("max_requests: 100", "max_requests: 0", "max_requests", ""),
        ("max_requests: 100", "port: 80", "port", ""),
    ],
)
def test_what_makes_no_sense_is_named(before: str, after: str, field: str, reason: str) -> None:
    """Each wrong field is an error that names it, and says what to write instead."""
    assert before in GOOD
    with pytest.raises(PolicyError) as caught:
        parse_policy(GOOD.replace(before, after, 1), "p.yaml")
    assert (f"models.{field}" in str(caught.value)) or not field
    assert reason in str(caught.value)


def test_a_connection_to_the_model_is_no_connection_outside() -> None:
    """The budget of connections counts destinations outside, not the requests to a model."""
    book = BudgetBook(Budgets(connections=1))
    for _ in range(5):
        assert book.feed(event("connect", transport="tcp", addr="127.0.0.1", port=8790, rule="models", flow=1)) == []
    assert book.used()["connections"] == 0


def test_model_calls_are_told_in_safe_lines() -> None:
    """A line shows status, tokens, cost, calls and reason, and nothing of the agent's that could move a cursor."""
    line = event_line(
        event(
            "model",
            op="response",
            flow=1,
            endpoint="/v1/messages",
            model="small",
            status=200,
            input_tokens=7,
            output_tokens=5,
            estimated=True,
            cost=0.25,
            tool_calls=["sh \x1b[2J"],
            reason="it broke\noff",
        )
    )
    assert "response /v1/messages small 200 about 7+5 tokens, cost 0.2500" in line
    assert line.isprintable()
    refused = event_line(event("model", op="refused", verdict="deny", flow=1, status=401, reason="wrong"))
    assert refused.endswith("refused 401: wrong")
