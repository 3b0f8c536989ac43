"""Signing in by OpenID Connect: authorization code with PKCE, state and nonce, through Authlib.

The provider says who somebody is, by an ID token that is checked here: its signature by an algorithm of our list, its
issuer, its audience, its times (a minute of skew is allowed) and the nonce. What they may do follows from one claim of
it and from PRESSWORK_OIDC_SCOPES. Every way to fail is one sentence.
"""

import json
import re
import secrets
import threading
import time
from dataclasses import dataclass
from typing import Any

import httpx2
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.httpx_client import OAuth2Client
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import ExpiredTokenError, InvalidClaimError, JoseError, MissingClaimError
from joserfc.jwk import KeySet

from services.api.errors import ApiError
from services.core.model.scopes import ALL, Scope
from services.core.settings import Settings

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
SKEW_SECONDS = 60
_TIMEOUT_SECONDS = 10
_KEPT_SECONDS = 3600  # what the provider says of itself
_LONGEST_ANSWER = 1 << 20
_WORD = re.compile(r"[\w.-]{1,60}", re.ASCII)
_LONGEST_NAME = 100


class SignInFailed(ApiError):
    """The provider did not sign anybody in."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(status, "sign_in_failed", message)


@dataclass(frozen=True, slots=True)
class Begun:
    """A sign-in under way. It stands in a cookie of the browser that began it."""

    state: str
    nonce: str
    verifier: str
    back: str
    redirect_uri: str

    @classmethod
    def new(cls, back: str, redirect_uri: str) -> "Begun":
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        return cls(state, nonce, verifier, back, redirect_uri)


@dataclass(frozen=True, slots=True)
class Person:
    """Whom the provider has signed in. `tenant` is a tenant's name; None: the first one."""

    name: str
    scopes: frozenset[Scope]
    tenant: str | None


class Provider:
    """The provider that the settings name."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._guard = threading.Lock()
        self._known: dict[str, Any] = {}
        self._known_until = 0.0

    @property
    def host(self) -> str:
        return httpx2.URL(self._settings.oidc_issuer).host

    def address(self, begun: Begun) -> str:
        """Where the browser is sent. Raises SignInFailed."""
        metadata = self._metadata()
        with self._client(begun.redirect_uri) as client:
            url, _ = client.create_authorization_url(
                metadata["authorization_endpoint"],
                state=begun.state,
                code_verifier=begun.verifier,
                nonce=begun.nonce,
            )
        return str(url)

    def finish(self, begun: Begun, answer: dict[str, str]) -> Person:
        """Who came back. Raises SignInFailed."""
        if not secrets.compare_digest(answer.get("state", "").encode(), begun.state.encode()):
            raise SignInFailed("This sign-in was begun elsewhere, or is over: begin again.")
        if answer.get("iss", self._settings.oidc_issuer).rstrip("/") != self._settings.oidc_issuer.rstrip("/"):
            raise SignInFailed("The answer comes from another provider than the one that was asked: begin again.")
        if "error" in answer or "code" not in answer:
            raise SignInFailed(f"{self.host} has not signed you in ({_word(answer.get('error', 'no code'))}).", 403)
        claims = self._claims(begun, self._exchange(begun, answer["code"]))
        return self._person(claims)

    def _exchange(self, begun: Begun, code: str) -> dict[str, Any]:
        metadata = self._metadata()
        try:
            with self._client(begun.redirect_uri) as client:
                found = client.fetch_token(
                    metadata["token_endpoint"], code=code, code_verifier=begun.verifier, grant_type="authorization_code"
                )
        except OAuthError as error:
            raise SignInFailed(
                f"{self.host} refuses the code ({_word(str(error.error))}): begin again; if that does not help, "
                "PRESSWORK_OIDC_CLIENT_ID and PRESSWORK_OIDC_CLIENT_SECRET are to be checked.",
                403,
            ) from None
        except (httpx2.HTTPError, ValueError):
            raise self._away() from None
        if not isinstance(found, dict) or not isinstance(found.get("id_token"), str):
            raise SignInFailed(f"{self.host} sent no ID token; the scope openid must be allowed for this client.", 502)
        return dict(found)

    def _claims(self, begun: Begun, token: dict[str, Any]) -> CodeIDToken:
        settings = self._settings
        options = {
            "iss": {"essential": True, "value": self._metadata()["issuer"]},
            "aud": {"essential": True, "value": settings.oidc_client_id},
            "exp": {"essential": True},
        }
        params = {"nonce": begun.nonce, "client_id": settings.oidc_client_id, "access_token": token.get("access_token")}
        try:
            found = self._decoded(token["id_token"])
            claims = CodeIDToken(found.claims, found.header, options, params)
            claims.validate(leeway=SKEW_SECONDS)
        except ExpiredTokenError:
            raise SignInFailed(
                "The provider's ID token has expired: begin again, and check both clocks.", 403
            ) from None
        except (InvalidClaimError, MissingClaimError) as error:
            raise SignInFailed(_wrong_claim(str(error.claim)), 403) from None
        except (JoseError, ValueError):
            algorithms = ", ".join(ALGORITHMS)
            raise SignInFailed(
                f"The provider's ID token is not signed by one of its keys, with one of {algorithms}.", 403
            ) from None
        return claims

    def _decoded(self, token: str) -> jwt.Token:
        keys = self._get(self._metadata()["jwks_uri"])
        return jwt.decode(token, KeySet.import_key_set(keys), algorithms=ALGORITHMS)  # type: ignore[arg-type]

    def _person(self, claims: CodeIDToken) -> Person:
        settings = self._settings
        name = next((str(claims[key]) for key in ("email", "preferred_username", "sub") if claims.get(key)), "")
        name = "".join(letter for letter in name if letter.isprintable())[:_LONGEST_NAME]
        held = claims.get(settings.oidc_claim)
        values = {str(value) for value in (held if isinstance(held, list) else [held] if held is not None else [])}
        scopes = {
            scope for value, given in settings.oidc_scopes.items() if value == "*" or value in values for scope in given
        }
        if not scopes:
            raise SignInFailed(
                f"{name} may do nothing here: no value of the claim {settings.oidc_claim} is in PRESSWORK_OIDC_SCOPES; "
                "ask whoever runs this Presswork.",
                403,
            )
        tenant = str(claims.get(settings.oidc_tenant_claim) or "") if settings.oidc_tenant_claim else None
        return Person(name, frozenset(scope for scope in ALL if scope.value in scopes), tenant)

    def _metadata(self) -> dict[str, Any]:
        """What the provider says of itself. Raises SignInFailed."""
        with self._guard:
            if time.monotonic() < self._known_until:
                return self._known
        issuer = self._settings.oidc_issuer
        found = self._get(issuer.rstrip("/") + "/.well-known/openid-configuration")
        needed = ("issuer", "authorization_endpoint", "token_endpoint", "jwks_uri")
        if not all(isinstance(found.get(name), str) for name in needed) or found["issuer"].rstrip("/") != issuer.rstrip(
            "/"
        ):
            raise SignInFailed(f"{issuer} is no OpenID provider of that name: PRESSWORK_OIDC_ISSUER is wrong.", 502)
        with self._guard:
            self._known, self._known_until = found, time.monotonic() + _KEPT_SECONDS
        return found

    def _get(self, address: str) -> dict[str, Any]:
        try:
            with httpx2.Client(timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
                answer = client.get(address, headers={"Accept": "application/json"})
            found = json.loads(answer.content[:_LONGEST_ANSWER]) if answer.status_code == 200 else None
        except (httpx2.HTTPError, ValueError):
            raise self._away() from None
        if not isinstance(found, dict):
            raise self._away()
        return found

    def _away(self) -> SignInFailed:
        return SignInFailed(f"{self.host} cannot be reached or answers wrongly; try again, or use an API key.", 503)

    def _client(self, redirect_uri: str) -> OAuth2Client:
        settings = self._settings
        return OAuth2Client(
            settings.oidc_client_id,
            settings.oidc_client_secret or None,
            scope=settings.oidc_request,
            redirect_uri=redirect_uri,
            code_challenge_method="S256",
            token_endpoint_auth_method="client_secret_basic" if settings.oidc_client_secret else "none",
            timeout=_TIMEOUT_SECONDS,
            trust_env=False,
        )


def _word(given: str) -> str:
    """A code of an error as the provider says it, unless it is anything else."""
    return given if _WORD.fullmatch(given) else "an error"


def _wrong_claim(name: str) -> str:
    match name:
        case "aud" | "azp":
            return "The provider's ID token is for another client: PRESSWORK_OIDC_CLIENT_ID must be this one's."
        case "iss":
            return "The provider's ID token names another issuer: PRESSWORK_OIDC_ISSUER must be the one that it names."
        case "nonce":
            return "The provider's ID token belongs to another sign-in: begin again."
        case "iat" | "nbf":
            return "The provider's ID token is from the future: check both clocks."
    return f"The provider's ID token is wrong in its {_word(name)}: begin again."
