"""Signing in to the dashboard by OpenID Connect, at a provider of other people's making (oidc-provider-mock). Run by `make test-api`."""

import base64
import contextlib
import hashlib
import http.client
import io
import json
import os
import pathlib
import subprocess
import threading
import urllib.parse

import oidc_provider_mock
import pytest
import werkzeug.serving

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("TOLLGATE_BIN", str(ROOT / "target" / "debug" / "tollgate"))
SECRET = "client-secret-CANARY"
TOKEN = "oidc-check-0123456789abcdef0123456789abcdef"
CONFIG = """
server:
  listen: "127.0.0.1:0"
  admin: "127.0.0.1:0"
  admin_token: "{token}"
  oidc:
    issuer: "{issuer}"
    client_id: tollgate
    client_secret: "{secret}"
    roles: {{ admin: [platform], operator: [ops], viewer: [staff, support] }}
auth: none
data_dir: data
providers: {{ sim: {{ kind: simulated }} }}
"""
PEOPLE = [
    oidc_provider_mock.User(sub="ann", claims={"email": "ann@example.org", "groups": ["staff", "ops"]}),
    oidc_provider_mock.User(sub="vic", claims={"groups": "staff"}),
    oidc_provider_mock.User(sub="root", claims={"email": "root@example.org", "email_verified": False, "groups": ["platform"]}),
    oidc_provider_mock.User(sub="eve", claims={"email": "eve@example.org", "groups": ["guests"]}),
]


class Pkce:
    """What the provider leaves out: a code goes only to whoever knows the verifier of the challenge it was asked for with."""

    def __init__(self, app):
        self.app, self.challenge, self.verified = app, None, []

    def __call__(self, environ, start_response):
        query = urllib.parse.parse_qs(environ["QUERY_STRING"])
        if environ["PATH_INFO"] == "/oauth2/authorize":
            assert query["code_challenge_method"] == ["S256"], query
            self.challenge = query["code_challenge"][0]
        if environ["PATH_INFO"] == "/oauth2/token":
            # A copy: the provider reads the body too.
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            environ["wsgi.input"] = io.BytesIO(body)
            verifier = urllib.parse.parse_qs(body.decode())["code_verifier"][0]
            digest = hashlib.sha256(verifier.encode()).digest()
            self.verified.append(base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == self.challenge)
        return self.app(environ, start_response)


@contextlib.contextmanager
def provider(**settings):
    os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"
    app = Pkce(oidc_provider_mock.app(require_nonce=True, user_claims=PEOPLE, **settings))
    server = werkzeug.serving.make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", app
    server.shutdown()
    thread.join()


class Gateway:
    def __init__(self, directory, issuer):
        config = directory / "tollgate.yaml"
        config.write_text(CONFIG.format(token=TOKEN, issuer=issuer, secret=SECRET))
        config.chmod(0o600)
        self.log = directory / "log"
        self.process = subprocess.Popen(
            [BINARY, "serve", "--config", str(config)],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
        )
        ready = next((line for line in self.process.stdout if line.startswith("ready ")), None)
        assert ready, self.log.read_text()
        self.admin = ready.split()[2].split("=")[1]

    def stop(self):
        self.process.terminate()
        assert self.process.wait(timeout=40) == 0, self.log.read_text()
        log = self.log.read_text()
        assert "panicked" not in log and "CANARY" not in log, log


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with provider() as (issuer, app):
        gateway = Gateway(tmp_path_factory.mktemp("gateway"), issuer)
        yield gateway, app
        gateway.stop()


class Browser:
    """Keeps cookies by host, and follows nothing by itself."""

    def __init__(self):
        self.cookies = {}

    def ask(self, url, method="GET", body=None, headers=None):
        url = urllib.parse.urlsplit(url)
        connection = http.client.HTTPConnection(url.netloc, timeout=30)
        kept = self.cookies.setdefault(url.netloc, {})
        headers = {"accept": "text/html", "cookie": "; ".join(f"{k}={v}" for k, v in kept.items()), **(headers or {})}
        if isinstance(body, dict):
            body = urllib.parse.urlencode(body)
            headers["content-type"] = "application/x-www-form-urlencoded"
        connection.request(method, urllib.parse.urlunsplit(("", "", url.path or "/", url.query, "")), body, headers)
        reply = connection.getresponse()
        reply.text = reply.read().decode()
        for cookie in reply.headers.get_all("set-cookie") or []:
            name, value = cookie.split(";")[0].split("=", 1)
            if "Max-Age=0" in cookie:
                kept.pop(name, None)
            else:
                kept[name] = value
        connection.close()
        return reply

    def to_the_provider(self, gateway, next="/calls"):
        reply = self.ask(f"http://{gateway.admin}/login/oidc?next={urllib.parse.quote(next, safe='')}")
        assert reply.status == 303, reply.text
        return reply.headers["location"]

    def back(self, gateway, person, next="/calls"):
        """The address that the provider sends the browser back to."""
        reply = self.ask(self.to_the_provider(gateway, next), "POST", {"sub": person})
        assert reply.status == 302, reply.text
        return reply.headers["location"]

    def sign_in(self, gateway, person, next="/calls"):
        return self.ask(self.back(gateway, person, next))

    def session(self, gateway):
        return json.loads(self.ask(f"http://{gateway.admin}/api/session").text)


def test_who_has_a_role_comes_in_and_is_named_in_the_audit_log(running):
    gateway, app = running
    browser = Browser()
    page = browser.ask(f"http://{gateway.admin}/login?next=%2Fcalls")
    assert 'href="&#x2f;login&#x2f;oidc?next=%2Fcalls"' in page.text, page.text

    reply = browser.sign_in(gateway, "ann", "/calls?model=a%26b")
    assert reply.status == 200, reply.text
    assert "url=&#x2f;calls?model=a%26b" in reply.text, reply.text
    cookies = reply.headers.get_all("set-cookie")
    assert any("SameSite=Strict" in cookie and "HttpOnly" in cookie for cookie in cookies), cookies
    assert app.verified and all(app.verified), "PKCE"
    session = browser.session(gateway)
    assert (session["name"], session["role"]) == ("ann@example.org (oidc)", "operator")

    made = browser.ask(
        f"http://{gateway.admin}/api/keys",
        "POST",
        json.dumps({"name": "of-ann", "team": "x"}),
        {"x-tollgate-csrf": session["csrf"], "content-type": "application/json"},
    )
    assert made.status == 201, made.text
    audit = json.loads(browser.ask(f"http://{gateway.admin}/api/audit").text)
    actors = {line["entry"]["actor"] for line in audit["entries"] if line["entry"]["subject"] == "of-ann"}
    assert actors == {"ann@example.org (oidc)"}, audit


def test_roles_follow_the_claim_and_names_what_is_verified(running):
    gateway, _ = running
    for person, name, role in [("vic", "vic", "viewer"), ("root", "root", "admin")]:
        browser = Browser()
        assert browser.sign_in(gateway, person).status == 200
        session = browser.session(gateway)
        assert (session["name"], session["role"]) == (f"{name} (oidc)", role)


def test_nobody_comes_in_without_a_role(running):
    gateway, _ = running
    browser = Browser()
    reply = browser.sign_in(gateway, "eve")
    assert reply.status == 403 and "no role here" in reply.text and "server.oidc.roles" in reply.text, reply.text
    assert browser.session(gateway)["status"] == 401
    german = Browser()
    reply = german.ask(german.back(gateway, "eve"), headers={"accept-language": "de"})
    assert reply.status == 403 and "keine Rolle" in reply.text, reply.text


def test_a_refusal_of_the_provider_says_so(running):
    gateway, _ = running
    browser = Browser()
    denied = browser.ask(browser.to_the_provider(gateway), "POST", {"action": "deny"})
    reply = browser.ask(denied.headers["location"])
    # This provider leaves the state out of a refusal, so nobody knows whose it is.
    assert reply.status in (400, 403) and 'role="alert"' in reply.text, reply.text


def test_a_code_is_good_for_the_browser_that_asked_for_it_and_once(running):
    gateway, _ = running
    ann, eve = Browser(), Browser()
    back = ann.back(gateway, "ann")
    eve.to_the_provider(gateway)
    for stranger in [eve, Browser()]:
        reply = stranger.ask(back)
        assert reply.status == 400 and "Begin again" in reply.text, reply.text
        assert stranger.session(gateway)["status"] == 401
    kept = dict(ann.cookies[gateway.admin])
    assert ann.ask(back).status == 200
    ann.cookies[gateway.admin] = kept
    reply = ann.ask(back)
    assert reply.status == 403 and "invalid_grant" in reply.text, reply.text
    assert "session" not in " ".join(ann.cookies[gateway.admin])


@pytest.mark.parametrize("next", ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:alert(1)", ""])
def test_nobody_is_sent_elsewhere(running, next):
    gateway, _ = running
    reply = Browser().sign_in(gateway, "ann", next)
    assert reply.status == 200 and 'content="0; url=&#x2f;"' in reply.text and "evil" not in reply.text, reply.text


def test_a_provider_that_is_away_or_another_is_named_with_the_mend(tmp_path):
    with provider() as (issuer, _):
        pass
    gateway = Gateway(tmp_path, issuer)
    page = Browser().ask(f"http://{gateway.admin}/login/oidc")
    assert page.status == 502 and "does not answer" in page.text and SECRET not in page.text, page.text
    assert 'name="token"' in page.text, "a token still opens"
    gateway.stop()
    with provider() as (issuer, _):
        other = tmp_path / "other"
        other.mkdir()
        gateway = Gateway(other, issuer.replace("127.0.0.1", "localhost") + "/")
        page = Browser().ask(f"http://{gateway.admin}/login/oidc")
        assert page.status == 502 and "calls itself" in page.text and "server.oidc.issuer" in page.text, page.text
        gateway.stop()
