"""Payments: command lines that move money, or tell a wallet, a node or a server that asks for money to do so."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.listed import listed
from jupyter_agentwatch.detect.payment_requests import WALLET_METHODS
from jupyter_agentwatch.detect.rule import Hit, Rule, Ruleset
from jupyter_agentwatch.detect.unwrap import Invocation
from jupyter_agentwatch.detect.wallets import wallet_kind
from jupyter_agentwatch.events import Severity

__all__ = ["PAYMENT"]

_T: Final = "T1657"  # Financial Theft

WALLET_RPC: Final = Rule(
    id="payment.wallet_rpc",
    title="a wallet or node is told to send money",
    severity="high",
    technique=_T,
    rationale="The call signs or broadcasts a payment, which nobody can take back.",
    false_positives=("a private test chain (medium on a loopback address)",),
)
HEADER: Final = Rule(
    id="payment.header",
    title="a payment is attached to a web request",
    severity="high",
    technique=_T,
    rationale="The header carries a signed payment (x402, MPP, L402).",
    false_positives=("a test of a server that asks for payments",),
)
WALLET_TOOL: Final = Rule(
    id="payment.wallet_tool",
    title="a wallet program is told to pay",
    severity="high",
    technique=_T,
    rationale="It moves money by itself.",
    false_positives=("a development chain (`--url localhost`, devnet: medium)",),
)
KEY: Final = Rule(
    id="payment.key",
    title="a wallet is made or its key is taken out",
    severity="medium",
    technique="T1552.004",
    rationale="Who has the key has the money; an agent that makes a wallet of its own can be paid.",
    false_positives=("a test of wallet software",),
)

_HEADERS: Final = lazy_pattern(
    r"^\s*(?:x-payment|payment-signature|payment-authorization|authorization:\s*(?:payment|l402|lsat)\b)", re.IGNORECASE
)
_LOCAL: Final = lazy_pattern(r"localhost|127\.0\.0\.1|\[::1\]|devnet|testnet|regtest|sepolia|anvil|hardhat|signet")


# Where nodes and wallets of the main chains listen; test chains have other ports.
_MAIN: Final = lazy_pattern(r":(?:8332|18081|18082|18083|18089|10009|9735)(?:/|\s|$)")
_CHARGE: Final = lazy_pattern(
    r"/v\d/(?:payment_intents|charges|transfers|payouts|payments/(?:payment|payouts)|checkout/orders|topups)\b|/paymentorders\b"
)


def _local_severity(text: str) -> Severity | None:
    return "medium" if _LOCAL.search(text) and not _MAIN.search(text) else None


def _web(run: Invocation) -> Iterable[Hit]:
    text = " ".join((*run.argv[1:], run.stdin))
    method = WALLET_METHODS.search(text) or re.search(r"\"method\"\s*:\s*\"transfer\"", text)
    if method:
        yield Hit(WALLET_RPC, method[0], _local_severity(text))
    charge = _CHARGE.search(text)
    if charge and (re.search(r"sk_live_|(?:^|\s)-(?:d|X\s*POST|-data\S*|-json|F)\b", text)) and "sk_test_" not in text:
        yield Hit(WALLET_RPC, charge[0], _local_severity(text))
    if any(
        _HEADERS.search(word.partition(":")[0] + ":" + word.partition(":")[2]) for word in run.argv[1:] if ":" in word
    ):
        yield Hit(HEADER, severity="medium" if _LOCAL.search(text) else None)


_MAKES_KEY: Final = lazy_pattern(
    r"\b(?:dumpprivkey|wallet new|keygen new|account new|^new|grind|generate-new-wallet|importprivkey|mnemonic)\b"
)


def _tool(run: Invocation) -> Iterable[Hit]:
    text = " ".join(run.argv[1:])
    verbs = {
        "cast": r"^(?:send|publish|mktx|wallet sign)\b",
        "bitcoin-cli": r"\bsend(?:toaddress|many|rawtransaction|all)?\b|\bdumpprivkey\b",
        "litecoin-cli": r"\bsend(?:toaddress|many|rawtransaction)\b",
        "dogecoin-cli": r"\bsend(?:toaddress|many|rawtransaction)\b",
        "solana": r"^(?:transfer|pay)\b",
        "spl-token": r"^transfer\b",
        "monero-wallet-cli": r"\b(?:transfer|sweep_all)\b",
        "electrum": r"\b(?:payto|paytomany|broadcast)\b",
        "lncli": r"\b(?:payinvoice|sendpayment|sendcoins)\b",
        "lightning-cli": r"\b(?:pay|withdraw|sendpay)\b",
        "geth": r"sendTransaction",
        "near": r"^(?:send|tokens)\b",
        **dict.fromkeys(("x402", "x402-fetch", "x402-axios", "x402-cli", "x402-curl"), r"\S"),
        "stripe": r"^(?:payment_intents|charges|transfers|payouts|topups) create\b"
        r".*(?:--live|sk_live|--confirm\b(?!.*sk_test))",
        "awal": r"\b(?:send|pay|x402)\b",
        "purl": r"\S",
        "mppx": r"\S",
        "cleos": r"^(?:transfer|push)\b",
        "gaiad": r"\btx bank send\b",
        "aptos": r"\btransfer\b",
        "sui": r"\b(?:pay|transfer)\w*\b",
    }
    pattern = verbs.get(run.name)
    if pattern and re.search(pattern, text):
        yield Hit(WALLET_TOOL, severity="medium" if _LOCAL.search(text) else None)
    elif _MAKES_KEY.search(text):
        yield Hit(KEY)


_CODE: Final = lazy_pattern(
    r"send_raw_transaction|sendTransaction|eth_account|Account\.from_key|send_transaction|sendRawTransaction|"
    r"signAndSubmit|transferSOL|x402"
)


def _code(run: Invocation) -> Iterable[Hit]:
    found = WALLET_METHODS.search(run.code) or (_CODE.search(run.code) if run.code else None)
    if run.code and found:
        yield Hit(WALLET_RPC, found[0], "medium" if _LOCAL.search(run.code) else None)


def _gives_wallet(run: Invocation) -> Iterable[Hit]:
    """A payment tool of unknown name: an amount, a destination that is a wallet, and a word for paying."""
    words = run.argv[1:]
    pays = any(word.lower() in ("send", "pay", "transfer", "withdraw", "--amount", "payto") for word in words)
    if (
        pays
        and any(wallet_kind(word.rpartition("=")[2]) for word in words)
        and any(re.fullmatch(r"(?:--\w+=)?\d+(?:\.\d+)?\w{0,5}", word) for word in words)
    ):
        yield Hit(WALLET_TOOL, severity=_local_severity(" ".join(words)))


_TOOLS: Final = listed(
    "cast bitcoin-cli litecoin-cli dogecoin-cli solana spl-token monero-wallet-cli electrum lncli lightning-cli geth "
    "near x402 x402-fetch x402-axios x402-cli x402-curl stripe awal purl mppx "
    "cleos gaiad aptos sui solana-keygen ethkey"
)

PAYMENT: Final = Ruleset(
    rules=(WALLET_RPC, HEADER, WALLET_TOOL, KEY),
    by_name={
        **dict.fromkeys(("curl", "wget", "http", "https", "xh"), (_web,)),
        **dict.fromkeys(_TOOLS, (_tool,)),
        **dict.fromkeys(("python", "node", "nodejs", "bun", "deno", "ipython", "ruby"), (_code,)),
    },
    quiet=frozenset(listed("curl wget http https python node nodejs bun deno ipython ruby near sui cast")),
    marks=listed(
        "payment,charges,transfers,payouts,checkout,l402,lsat,send,transfer,transaction,withdraw,payto,pay ,"
        "eth_account,x402,personal_,wallet",
        ",",
    ),
    shapes=(_gives_wallet,),
    shape_pattern=r"\b(?:0x[0-9a-fA-F]{40}|bc1[a-z0-9]{11,71}|[1-9A-HJ-NP-Za-km-z]{32,106})\b",
)
"""What payments look like on a command line."""
