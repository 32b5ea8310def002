"""Names under which mining pools answer. A weak sign by itself: names die, move, and are also read about.

The list holds domains of pools alone; those of dynamic DNS services, under which anybody has a name, were left out.
"""

from __future__ import annotations

from typing import Final

from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.listed import listed

__all__ = ["POOL_DOMAINS", "pool_domain", "pool_service"]

POOL_DOMAINS: Final = frozenset(
    listed(
        "2miners.com 2miners.ru acc-pool.pw aeon-pool.com aionpool.tech antpool.com asiapool.io awgoaigartnj-xmr.com "
        "backup-pool.com baikalmine.com bepooh.com bittubeapp.com bizxmr.cc bmpool.org bohemianpool.com braiins.com "
        "c3pool.com c3pool.org cnpool.cc coinfoundry.org coolmining.club cruxpool.com cryptmonero.com crypto-pool.fr "
        "crypto-pool.info crypto-pools.org cryptoknight.cc cryptominded.com cryptonight.net cryptonotepool.org "
        "cryptonotepool.org.uk d5pool.us dwarfpool.com emergate.net ethereumpool.co ethermine.org ethpool.org "
        "extremehash.com extremepool.org extrmepool.org ezil.me f2pool.com fairhash.org fairpool.cloud fairpool.xyz "
        "fastpool.xyz flexpool.io flypool.org friendspool.club gntl.co.uk gntl.uk googleminer.com hash-to-coins.com "
        "hashanywhere.com hashcity.org hashfor.cash hashinvest.net hashinvest.ws hashvault.pro hellominer.com "
        "herominers.com hiveon.com hiveon.net humpool.com k1pool.com kaspapool.org kippo.eu koto-pool.work "
        "kryptex.network kupool.com lindon-pool.win litecoinpool.org luckpool.net luckypool.io luxor.tech mine.bz "
        "mine2gether.com minemonero.gq miner.center miner.rocks minercircle.com minergate.com minerpool.org "
        "minerpool.pw minerrocks.com miners.pro minerxmr.ru mineshaft.ml minexmr.cn minexmr.com minexmr.org "
        "minexmr.uk mining-dutch.nl mining-help.ru mininglottery.eu miningocean.org miningpoolhub.com "
        "miningrigrentals.com mixpools.org monero.farm monerocean.stream monerod.org monerogb.com monerohash.com "
        "monerominers.net moneroocean.stream monerooceans.stream moneropool.com moneropool.nl moneropool.ru "
        "moneropools.com monerorx.com moneroworld.com monerpool.org moriaxmr.com multipool.us multipooler.com "
        "mypool.online myxmr.pw nanopool.org nicehash.com noobxmr.com p2pool.io pangolinminer.com pool-proxy.com "
        "pool.support pooldd.com poolin.com poolmining.org poolto.be ppxxmr.com prohashing.com ratchetmining.com "
        "ravenminer.com rplant.xyz secumine.net semipool.com shscrypto.net siamining.com slushpool.com somec.cc "
        "sparkpool.com supportxmr.com suprnova.cc titcoinpool.com tubepool.xyz ultra-pool.com unipool.pro "
        "unmineable.com usxmrpool.com viabtc.com viaxmr.com vipor.net walpool.com winxmr.club woolypooly.com xmr.pt "
        "xmrfast.com xmrget.com xmrig.com xmrminer.cc xmrminerpro.com xmrpool.com xmrpool.de xmrpool.eu xmrpool.me "
        "xmrpool.net xmrpool.xyz zarabotaibitok.ru zergpool.com zpool.ca "
    )
)
"""Registered domains of pools and of miners' own donation servers."""

_SERVICE: Final = lazy_pattern(
    r"^(?:[\w-]*(?:stratum|xmr|monero|randomx|kawpow|ethash|etchash|cryptonight|pool|mine|mining|miner|solo|gulf|proxy)"
    r"[\w-]*|[a-z]{2,5}\d{0,2}|[a-z]{2,6}-[\w-]{2,20}|donate[\w-]*|rx)\."
)
_STRATUM: Final = lazy_pattern(
    r"(?:^|[.-])stratum\d{0,2}[.-]|^(?:xmr|eth|etc|rvn|ergo|kas|zeph|ltc|btc|zec|alph|monero|randomx)[\w-]{0,16}"
    r"\.(?:[\w-]+\.)?[\w-]*(?:pool|mine|hash|miner)[\w-]*\.|"
    # A region, and a domain that ends in "pool": how pools name the servers that miners log in at.
    r"^(?:us|eu|na|sa|as|asia|sg|de|fr|hk|ru|au|ca|jp|br|uk|fi|pl|in)(?:[-.]?(?:east|west|north|south|central|\d))?"
    r"\.(?!(?:whirl|car|van|liver|black)pool)[\w-]+pool\.[a-z]{2,10}$"
)
_READ_ABOUT: Final = frozenset({"", "www", "blog", "docs", "help", "status", "support", "forum", "m"})


def pool_domain(host: str) -> str:
    """Return the pool's domain that a name belongs to, or "".

    Args:
        host: A host name in lower case.
    """
    labels = host.rstrip(".").split(".")
    for at in range(max(0, len(labels) - 4), len(labels) - 1):
        name = ".".join(labels[at:])
        if name in POOL_DOMAINS:
            return name
    return ""


def pool_service(host: str) -> bool:
    """Return whether a name is one that miners log in at, rather than a pool's web site."""
    host = host.rstrip(".")
    domain = pool_domain(host)
    if not domain:
        return _STRATUM.search(host) is not None
    label = host[: -len(domain)].rstrip(".")
    return label not in _READ_ABOUT and _SERVICE.match(label + ".") is not None
