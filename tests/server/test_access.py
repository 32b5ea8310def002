"""Who is let in: nobody without the token, the authorizer's word, the XSRF cookie and the right origin."""

from __future__ import annotations

from http.cookies import SimpleCookie
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_server.auth import Authorizer

from tests.server.scenes import Browser, scene

if TYPE_CHECKING:
    from jupyter_agentwatch import Watch

RUN = "0badcafe"
READS = [("api", "runs"), ("api", "runs", RUN), ("stream",), ("summary",), ("nothing",)]
ACTIONS = [
    ("api", "kill-all"),
    ("api", "runs", RUN, "kill"),
    ("api", "runs", RUN, "suspend"),
    ("api", "runs", RUN, "resume"),
    ("api", "runs", RUN, "asks", "1"),
    ("nothing",),
]
ROUTES = [*(("GET", parts) for parts in READS), *(("POST", parts) for parts in ACTIONS)]


class ReadOnly(Authorizer):
    """Lets everybody look at watches and do nothing."""

    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        """Allow reading."""
        return (action, resource) == ("read", "agentwatch")


class Nothing(Authorizer):
    """Lets nobody do anything with watches."""

    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        """Allow everything else."""
        return resource != "agentwatch"


@pytest.mark.parametrize("header", ["", "token wrong"], ids=["no token", "wrong token"])
@scene
async def test_nobody_is_let_in_without_the_token(browser: Browser, header: str) -> None:
    """Each route answers 403 without the right token, before it looks at anything."""
    for method, parts in ROUTES:
        body = b"{}" if method == "POST" else None
        answer = await browser.send(method, *parts, headers={"Authorization": header}, body=body)
        assert (parts, answer.status) == (parts, 403)


@pytest.mark.parametrize("header", ["", "token wrong"], ids=["no token", "wrong token"])
@pytest.mark.parametrize("parts", [("stream",), ("summary",)])
@scene
async def test_no_stream_without_the_token(browser: Browser, parts: tuple[str, ...], header: str) -> None:
    """A WebSocket is refused in its handshake."""
    assert await browser.refused_stream(*parts, params={"run": RUN}, headers={"Authorization": header}) == 403


@pytest.mark.sandbox
@pytest.mark.parametrize("jp_server_config", [{"authorizer_class": ReadOnly}], indirect=True)
@scene
async def test_who_may_only_look_cannot_act(browser: Browser, watch: Watch) -> None:
    """An authorizer that grants `read` shows runs and streams; every action is 403 and changes nothing."""
    assert (await browser.get("api", "runs", watch.id)).status == 200
    stream = await browser.stream("stream", params={"run": watch.id})
    assert (await stream.next())["type"] == "state"
    for parts in ACTIONS:
        real = [watch.id if part == RUN else part for part in parts]
        assert (await browser.post(*real)).status == 403
    assert (await browser.get("api", "runs", watch.id)).content["state"] == "closed"
    stream.connection.close()


@pytest.mark.parametrize("jp_server_config", [{"authorizer_class": Nothing}], indirect=True)
@scene
async def test_who_may_not_look_sees_nothing(browser: Browser) -> None:
    """Without the authorizer's word for `read`, REST and WebSocket are 403."""
    for parts in READS:
        assert (await browser.get(*parts)).status == 403
    for name in ("stream", "summary"):
        assert await browser.refused_stream(name, params={"run": RUN}) == 403


async def logged_in(browser: Browser) -> str:
    """Return the cookies of a browser that has logged in."""
    cookies = SimpleCookie()
    for line in (await browser.get("api", "runs")).headers.get_list("Set-Cookie"):
        cookies.load(line)
    return "; ".join(f"{name}={morsel.coded_value}" for name, morsel in cookies.items())


@pytest.mark.sandbox
@scene
async def test_a_cookie_alone_kills_nothing(browser: Browser, watch: Watch) -> None:
    """A page that has only the browser's cookies (a foreign site's form) is 403; with the XSRF token it is let in."""
    login = await logged_in(browser)
    actions = [("api", "kill-all"), *(("api", "runs", watch.id, verb) for verb in ("suspend", "kill"))]
    for parts in actions:
        bare = await browser.post(*parts, headers={"Authorization": "", "Cookie": login})
        wrong = {"Authorization": "", "Cookie": f"{login}; _xsrf=one", "X-XSRFToken": "other"}
        assert (parts, bare.status, (await browser.post(*parts, headers=wrong)).status) == (parts, 403, 403)
    assert watch.status().state == "closed"
    right = {"Authorization": "", "Cookie": f"{login}; _xsrf=one", "X-XSRFToken": "one"}
    killed = await browser.post("api", "runs", watch.id, "kill", headers=right)
    assert (killed.status, killed.content["final"]) == (200, True)


@scene
async def test_a_foreign_page_gets_no_stream(browser: Browser, jp_http_port: int) -> None:
    """A WebSocket that another site's page opens with this browser's cookies is refused, whatever it asks for."""
    # A cookie's name holds the host that it was made for.
    cookies = {"Authorization": "", "Cookie": await logged_in(browser), "Host": f"127.0.0.1:{jp_http_port}"}
    own = await browser.stream("summary", headers=dict(cookies))
    assert (await own.next())["type"] == "runs"
    own.connection.close()
    for name in ("stream", "summary"):
        headers = {**cookies, "Origin": "https://elsewhere.example"}
        assert await browser.refused_stream(name, params={"run": RUN}, headers=headers) == 403


@pytest.mark.sandbox
@scene
async def test_actions_are_posts_only(browser: Browser, watch: Watch) -> None:
    """What a link or an image can send does nothing: GET on an action is 405."""
    for parts in ACTIONS[:-1]:
        real = [watch.id if part == RUN else part for part in parts]
        assert (real, (await browser.get(*real)).status) == (real, 405)
    assert not watch.has_ended


@scene
async def test_answers_are_json_and_kept_nowhere(browser: Browser) -> None:
    """Success or refusal: JSON, not sniffed, not cached."""
    answers = [
        await browser.get("api", "runs"),
        await browser.get("nothing"),
        await browser.get("stream"),
        await browser.post("api", "runs", RUN, "kill"),
        await browser.post("api", "kill-all", body=b"{"),
        await browser.get("api", "runs", headers={"Authorization": ""}),
    ]
    assert [answer.status for answer in answers] == [200, 404, 400, 404, 400, 403]
    for answer in answers:
        assert answer.content is not None
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


@scene
async def test_everything_lies_under_the_base_url(jp_fetch: Any, jp_base_url: str, browser: Browser) -> None:
    """The server's prefix is respected, and without it there is nothing."""
    assert jp_base_url != "/"
    assert (await browser.get("api", "runs")).content == {"runs": []}
    outside = await jp_fetch("..", "agentwatch", "api", "runs", raise_error=False, follow_redirects=False)
    assert outside.code in {302, 404}
