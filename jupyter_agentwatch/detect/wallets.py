"""Shapes of the addresses that coins are paid to. A shape is a weak sign: what counts is where it stands."""

from __future__ import annotations

import re
from typing import Final

from jupyter_agentwatch.detect.expressions import lazy_pattern

__all__ = ["wallet_kind"]

_B58: Final = "[1-9A-HJ-NP-Za-km-z]"
_SHAPES: Final = tuple(
    (kind, lazy_pattern(pattern))
    for kind, pattern in (
        ("Monero", rf"[48]{_B58}{{94}}(?:{_B58}{{11}})?"),
        ("Bitcoin", r"(?:bc1|tb1)[ac-hj-np-z02-9]{11,71}"),
        ("Litecoin", r"ltc1[ac-hj-np-z02-9]{11,71}"),
        ("Ethereum", r"0x[0-9a-fA-F]{40}"),
        ("Kaspa", r"(?:kaspa|karlsen|pyrin|nexellia|spectre|sedra|bugna):q[a-z0-9]{40,70}"),
        ("Zcash", rf"(?:t[13]{_B58}{{33}}|zs1[a-z0-9]{{60,80}})"),
        ("Zephyr", rf"(?:ZEPH|ZEPs|ZPHR){_B58}{{80,110}}"),
        ("CryptoNote", rf"(?:hv[xsi]|TRTL|dg|Wmt|Se|fh|etn|bxc|ccx){_B58}{{80,110}}"),
        ("Alephium", rf"1{_B58}{{43,46}}"),
        ("Ergo", rf"9{_B58}{{50}}"),
        ("Bitcoin", rf"[13]{_B58}{{25,34}}"),
        ("Ravencoin", rf"R{_B58}{{33}}"),
        ("Dogecoin", rf"[D9A]{_B58}{{33}}"),
        ("Litecoin", rf"[LM]{_B58}{{33}}"),
        ("Dash", rf"X{_B58}{{33}}"),
        ("Nervos", r"ck[bt]1[a-z0-9]{40,100}"),
        ("Conflux", r"cfx:[a-z0-9]{40,50}"),
        ("Solana", rf"{_B58}{{43,44}}"),
    )
)
_SEPARATOR: Final = lazy_pattern(r"[./+@,]|:(?!q)")


def wallet_kind(text: str) -> str:
    """Return which coin's address a login such as "wallet.worker" or "COIN:wallet.worker#code" begins with, or "".

    Args:
        text: Value of an option, hostile.
    """
    if not 26 <= len(text) <= 400:
        return ""
    parts = [text, *_SEPARATOR.split(text, maxsplit=8)]
    for part in parts:
        for kind, pattern in _SHAPES:
            # A word of letters alone, such as a long identifier, is no address: one has digits and both cases or 0x.
            if pattern.fullmatch(part) and re.search(r"\d", part):
                return kind
    return ""
