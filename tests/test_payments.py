"""Payments in plaintext requests: read before they leave, told as findings, and bounded by a budget of money."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_agentwatch import Watch
from jupyter_agentwatch.detect.payment_flows import PaymentFlowDetector
from jupyter_agentwatch.detect.payment_requests import Payment, find_payment
from jupyter_agentwatch.events import Finding, Flow, LimitHit
from jupyter_agentwatch.policy import Budgets
from jupyter_agentwatch.sandbox.protocol import name_protocol
from jupyter_agentwatch.supervisor.budgets import BudgetBook
from jupyter_agentwatch.testing import event
from tests.outside import recorded
from tests.servers import PRELUDE, Server, network, read_all, rule

if TYPE_CHECKING:
    from pathlib import Path

USDC = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"


def x402(value: Any, *, version: int = 1, asset: str = USDC, urlsafe: bool = False) -> str:
    """Return a payment header's value, as its two versions have it, signed by nobody."""
    payload = {"signature": "0x00", "authorization": {"from": "0xa", "to": "0xb", "value": value, "nonce": "0x1"}}
    message: dict[str, Any] = {"x402Version": version, "payload": payload}
    if version == 1:
        message |= {"scheme": "exact", "network": "base"}
    else:
        message["accepted"] = {"scheme": "exact", "network": "eip155:8453", "asset": asset, "amount": value}
    encode = base64.urlsafe_b64encode if urlsafe else base64.b64encode
    return encode(json.dumps(message).encode()).decode()


def request(*headers: str, body: str = "", method: str = "GET") -> bytes:
    """Return a request to a server."""
    return "\r\n".join((f"{method} /paid HTTP/1.1", "Host: a.example", *headers, "", body)).encode()


PAYS: list[tuple[bytes, Payment]] = [
    (request(f"X-PAYMENT: {x402('10000')}"), Payment("x402", 0.01)),
    (request(f"x-payment :{x402('2500000', urlsafe=True).rstrip('=')}"), Payment("x402", 2.5)),
    (request(f"PAYMENT-SIGNATURE: {x402('10000', version=2)}"), Payment("x402", 0.01)),
    (request(f"PAYMENT-SIGNATURE: {x402('10000', version=2, asset='0x01')}"), Payment("x402")),
    (request("X-PAYMENT: rubbish"), Payment("x402")),
    (request(f"X-PAYMENT: {x402('-5')}"), Payment("x402")),
    (request(f"X-PAYMENT: {x402('9' * 400)}"), Payment("x402")),
    (request(f"X-PAYMENT: {x402(5)}"), Payment("x402")),
    (request(f"X-PAYMENT: {x402('1')}", f"X-PAYMENT: {x402('1')}"), Payment("x402")),
    (request("Authorization: Payment eyJjaGFsbGVuZ2UiOnt9fQ"), Payment("mpp")),
    (request("authorization:  L402 abc:def"), Payment("l402")),
    (request("Authorization: LSAT abc:def"), Payment("l402")),
    (
        request(
            "Content-Type: application/json",
            body='{"method": "eth_sendRawTransaction", "params": ["0x"]}',
            method="POST",
        ),
        Payment("eth_sendRawTransaction"),
    ),
    (request(body='[{"method":"wallet_sendCalls"}]', method="POST"), Payment("wallet_sendCalls")),
    (request(body='{"id":1,"method":"sendtoaddress","params":["bc1",1]}', method="POST"), Payment("sendtoaddress")),
]

PAYS_NOT: list[bytes] = [
    request(),
    request("Authorization: Bearer payment"),
    request("Accept-Payment: x402"),
    request("X-PAYMENT-RESPONSE: abc"),
    request(body='{"method": "eth_getBalance"}', method="POST"),
    request(body="the word eth_sendRawTransaction", method="POST"),
    request(body="X-PAYMENT: abc", method="POST"),
    request("X-Note: X-PAYMENT: abc"),
    b"\x16\x03\x01\x00\x05hello",
    b"",
]


@pytest.mark.parametrize(("data", "expected"), PAYS)
def test_a_request_that_pays_is_read(data: bytes, expected: Payment) -> None:
    """How, and how much where it says so in a currency that is known; else the amount is not known."""
    assert find_payment(data) == expected
    naming = name_protocol(data, b"", final=True)
    assert naming is not None
    assert (naming.protocol, naming.payment) == ("http", expected)


@pytest.mark.parametrize("data", PAYS_NOT)
def test_a_request_that_does_not_pay_is_left_alone(data: bytes) -> None:
    """Offers, receipts, other credentials, and the same words elsewhere are no payment."""
    assert find_payment(data) is None


@given(st.binary(max_size=300), st.sampled_from(["X-PAYMENT: ", "PAYMENT-SIGNATURE: ", "Authorization: Payment "]))
def test_hostile_requests_never_raise(data: bytes, header: str) -> None:
    """Whatever follows, the answer is a payment or none, and an amount is finite and not negative."""
    for raw in (
        data,
        header.encode() + data,
        request(header + base64.b64encode(data).decode()),
        b"GET / HTTP/1.1\n" + data,
    ):
        found = find_payment(raw)
        assert found is None or found.amount is None or 0 <= found.amount < 1e35


@pytest.mark.parametrize("deep", ["[" * 9000, '{"a":' * 3000])
def test_deep_nesting_is_no_payment_of_a_known_amount(deep: str) -> None:
    """A header made to exhaust the parser counts as a payment that does not say how much."""
    assert find_payment(request(f"X-PAYMENT: {base64.b64encode(deep.encode()).decode()}")) == Payment("x402")


def a_flow(**fields: Any) -> Flow:
    """Return the record of a named flow."""
    made = event("flow", **{"op": "named", "protocol": "http", "addr": "192.0.2.1", "port": 80, **fields})
    assert isinstance(made, Flow)
    return made


FOUND = [
    a_flow(payment="x402", amount=0.01),
    a_flow(payment="x402"),
    a_flow(payment="mpp", host="a.example"),
    a_flow(payment="l402", verdict="deny"),
    a_flow(payment="eth_sendTransaction", server_name="node.example"),
]
NOT_FOUND = [
    a_flow(),
    a_flow(op="closed", payment="x402"),
    a_flow(protocol="tls"),
    a_flow(amount=1.0),
    a_flow(op="failed"),
]


@pytest.mark.parametrize("record", FOUND)
def test_a_flow_that_pays_is_a_finding(record: Flow) -> None:
    """High, of the payment family, with amount and destination."""
    (found,) = PaymentFlowDetector().feed(record)
    assert (found.rule, found.severity, found.family) == ("payment.request", "high", "payment")
    assert record.payment in found.title
    assert ":80" in found.title


@pytest.mark.parametrize("record", NOT_FOUND)
def test_a_flow_that_does_not_pay_is_none(record: Flow) -> None:
    """Nor the end of one that did: it was told already."""
    assert list(PaymentFlowDetector().feed(record)) == []


def test_payments_count_against_the_budget_of_money() -> None:
    """Beside compute; the one that goes beyond is told, with what it would have come to."""
    book = BudgetBook(Budgets(money=1.0, price_cpu_hour=3600.0))
    assert book.feed(a_flow(payment="x402", amount=0.5)) == []
    assert book.feed(event("resources", cpu_s=0.25)) == []
    (limit,) = book.feed(a_flow(payment="x402", amount=0.5))
    assert (limit["limit"], limit["value"], limit["maximum"]) == ("budgets.money", 1.25, 1.0)


def test_a_payment_of_an_unknown_amount_uses_up_the_budget() -> None:
    """Also the first; and one that was refused costs nothing."""
    book = BudgetBook(Budgets(money=100.0))
    assert book.feed(a_flow(payment="mpp", verdict="deny")) == []
    (limit,) = book.feed(a_flow(payment="mpp"))
    assert limit["limit"] == "budgets.money"


CLIENT = """
s = socket.create_connection((HOST, int(sys.argv[1])))
s.sendall(sys.argv[2].encode())
s.shutdown(socket.SHUT_WR)
while s.recv(100):
    pass
"""


@pytest.mark.sandbox
@pytest.mark.rungs("A", "B")
def test_a_payment_beyond_the_budget_never_leaves(tmp_path: Path) -> None:
    """The first is paid and found; the second would go beyond: the watch freezes, and the server gets no byte of it."""
    with Server(read_all) as server:
        policy = network(rule(server.port, "http")) | {"budgets": {"money": 1.0}, "breaker": {"freeze_at": "never"}}
        with Watch(policy, tmp_path) as watch:
            sent = request(f"X-PAYMENT: {x402('600000')}").decode().replace("a.example", "host.loopback")
            argv = ["python3", "-IS", "-c", PRELUDE + CLIENT, str(server.port), sent]
            assert watch.run(argv).ok
            watch.start(argv)
            while watch.status().state != "frozen":
                pass
            watch.kill()
            (limit,) = recorded(watch, LimitHit)
            assert limit.limit == "budgets.money"
            assert limit.value == pytest.approx(1.2)
            flows = [each for each in recorded(watch, Flow) if each.op == "named"]
            assert [(each.payment, each.amount) for each in flows] == [("x402", 0.6)] * 2
            found = [each.rule for each in recorded(watch, Finding) if each.family == "payment"]
            assert "payment.request" in found
        first, second = server.wait_said(2)
        assert first == sent.encode()
        assert second == b""
