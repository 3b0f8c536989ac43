"""A small OpenID Connect provider, run as a process on loopback: `python -m tests.oidc_provider PORT`.

It signs in whoever comes as the person that `PUT /person` names, checks the client, the redirect address and PKCE, and
gives each code once. `PUT /faults` lets it misbehave: claims of the next ID token, an algorithm, a key, an error.
"""

import base64
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from authlib.oauth2.rfc7636 import create_s256_code_challenge
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

CLIENT, SECRET = "presswork", "the client's secret"
KEY = RSAKey.generate_key(2048, {"kid": "one", "use": "sig"}, private=True)
STRANGER = RSAKey.generate_key(2048, {"kid": "one"}, private=True)


class Provider(BaseHTTPRequestHandler):
    person: ClassVar[dict[str, Any]] = {}
    faults: ClassVar[dict[str, Any]] = {}
    codes: ClassVar[dict[str, dict[str, str]]] = {}

    @property
    def issuer(self) -> str:
        host, port = self.server.server_address[:2]
        return f"http://{host!s}:{port}"

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        asked = dict(parse_qsl(place.query))
        match place.path:
            case "/.well-known/openid-configuration":
                ends = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
                self._send({"issuer": self.issuer, **{name: f"{self.issuer}/{path}" for name, path in ends.items()}})
            case "/keys":
                self._send({"keys": [KEY.as_dict(private=False)]})
            case "/authorize":
                self._authorize(asked)
            case _:
                self._send({}, 404)

    def do_PUT(self) -> None:
        found = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        setattr(Provider, self.path.strip("/"), found)
        self._send({})

    def do_POST(self) -> None:
        form = dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
        asked = Provider.codes.pop(form.get("code", ""), None)
        name, _, secret = base64.b64decode(self.headers.get("Authorization", "Basic Og==")[6:]).decode().partition(":")
        if (unquote(name), unquote(secret)) != (CLIENT, SECRET):
            self._send({"error": "invalid_client"}, 401)
        elif (
            asked is None
            or asked["redirect_uri"] != form.get("redirect_uri")
            or asked["code_challenge"] != create_s256_code_challenge(form.get("code_verifier", ""))
        ):
            self._send({"error": "invalid_grant"}, 400)
        else:
            self._send({"access_token": "x", "token_type": "Bearer", **self._id_token(asked)})

    def _authorize(self, asked: dict[str, str]) -> None:
        assert asked["response_type"] == "code" and asked["code_challenge_method"] == "S256", asked
        assert asked["client_id"] == CLIENT and "openid" in asked["scope"].split(), asked
        code = f"code-{len(Provider.codes)}-{time.monotonic_ns()}"
        Provider.codes[code] = asked
        answer = {"error": Provider.faults["error"]} if "error" in Provider.faults else {"code": code}
        self.send_response(302)
        self.send_header("Location", f"{asked['redirect_uri']}?{urlencode({**answer, 'state': asked['state']})}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _id_token(self, asked: dict[str, str]) -> dict[str, str]:
        if Provider.faults.get("no_id_token"):
            return {}
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": asked["nonce"]}
        claims |= Provider.person | Provider.faults.get("claims", {})
        claims |= {name: now + age for name, age in Provider.faults.get("ages", {}).items()}
        key: Any = {"stranger": STRANGER, "client": OctKey.import_key(SECRET * 3)}.get(
            Provider.faults.get("key", ""), KEY
        )
        algorithm = "HS256" if isinstance(key, OctKey) else "RS256"
        return {"id_token": jwt.encode({"alg": algorithm, "kid": "one"}, claims, key, algorithms=[algorithm])}

    def _send(self, found: Any, status: int = 200) -> None:
        body = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Provider).serve_forever()
