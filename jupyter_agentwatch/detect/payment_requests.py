"""Payments in a plaintext HTTP request: x402, MPP and L402 headers, and JSON-RPC that tells a wallet or node to pay.

What is in TLS is not seen, and of a connection only its first request.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, Final

import msgspec

from jupyter_agentwatch.detect.expressions import lazy_pattern

__all__ = ["WALLET_METHODS", "Payment", "find_payment"]

WALLET_METHODS: Final = lazy_pattern(
    r"\b(?:eth_send(?:Raw)?Transaction|eth_sendUserOperation|eth_signTransaction|eth_signTypedData(?:_v[34])?|"
    r"personal_(?:sendTransaction|unlockAccount|sign)|"
    r"wallet_sendCalls|send(?:toaddress|many|rawtransaction)|"
    r"walletprocesspsbt|sendTransaction|transfer_split|sweep_all|signAndSendTransaction)\b"
)
"""JSON-RPC methods that sign or broadcast a payment."""

_HEADERS: Final = {"x-payment": "x402", "payment-signature": "x402"}
_SCHEMES: Final = {"payment": "mpp", "l402": "l402", "lsat": "l402"}
_UNIT: Final = 1_000_000
"""Stablecoins that are paid so, USDC above all, have six decimals."""

_NETWORKS: Final = frozenset(
    {"base", "base-sepolia", "avalanche", "avalanche-fuji", "polygon", "polygon-amoy", "iotex"}
)
_ASSETS: Final = frozenset(
    {
        "0x833589fcd6edb6e08f4c7c32d4f71b54bda02913",  # USDC on Base
        "0x036cbd53842c5426634e7929541ec2318f3dcf7e",  # USDC on Base Sepolia
    }
)
_MAX_VALUE: Final = 16_384
_MAX_DIGITS: Final = 40


class Payment(msgspec.Struct, frozen=True):
    """What a request pays.

    Attributes:
        kind: "x402", "mpp", "l402", or the method of a JSON-RPC call.
        amount: In units of its currency; None where the request does not say it in a way that is known.
    """

    kind: str
    amount: float | None = None


def find_payment(request: bytes) -> Payment | None:
    """Return what the first request of a connection pays, or None; never raises.

    Several payments in one request are one, of an amount that is not known.

    Args:
        request: Its first bytes: head, and as much of the body as has come.
    """
    head, _, body = request.replace(b"\r\n", b"\n").partition(b"\n\n")
    found = []
    for line in head.split(b"\n")[1:]:
        name, colon, value = line.decode("latin-1").partition(":")
        if colon:
            payment = _of_header(name.strip().lower(), value.strip()[:_MAX_VALUE])
            found += [payment] if payment is not None else []
    method = WALLET_METHODS.search(body.decode("utf-8", "replace")) if b'"method"' in body else None
    if method is not None:
        found.append(Payment(method[0]))
    if len(found) > 1:
        return Payment(found[0].kind)
    return found[0] if found else None


def _of_header(name: str, value: str) -> Payment | None:
    kind = _HEADERS.get(name)
    if kind is not None:
        return Payment(kind, _x402_amount(_decoded(value)))
    if name == "authorization":
        kind = _SCHEMES.get(value.partition(" ")[0].lower())
        return Payment(kind) if kind is not None else None
    return None


def _decoded(value: str) -> Any:
    try:
        data = base64.b64decode(value.replace("-", "+").replace("_", "/") + "=" * (-len(value) % 4), validate=True)
        return json.loads(data)
    except (ValueError, binascii.Error, RecursionError):
        return None


def _x402_amount(message: Any) -> float | None:
    """Return the amount that is signed away: what the authorization says, in a currency whose decimals are known."""
    accepted = _part(message, "accepted")
    asset = accepted.get("asset")
    known = str(asset).lower() in _ASSETS if asset is not None else _part({"": message}, "").get("network") in _NETWORKS
    value = _part(_part(message, "payload"), "authorization").get("value", accepted.get("amount"))
    if not known or not isinstance(value, str) or not value.isdecimal() or len(value) > _MAX_DIGITS:
        return None
    return int(value) / _UNIT


def _part(message: Any, name: str) -> dict[str, Any]:
    part = message.get(name) if isinstance(message, dict) else None
    return part if isinstance(part, dict) else {}
