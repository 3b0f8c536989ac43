"""Reads of many small objects. botocore spends most of a millisecond of a core on each; here a request is signed (AWS
Signature Version 4) and sent over botocore's own connections, with their limits of time, and nothing else is done.

What is not simply the object is left to botocore, whose errors say what is wrong.
"""

import hashlib
import hmac
import threading
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

from urllib3.exceptions import HTTPError

_SIGNED = "host;x-amz-content-sha256;x-amz-date"
_EMPTY = hashlib.sha256(b"").hexdigest()
_SAFE = "/-_.~"


class SmallReader:
    """Reads objects of one bucket. Threads may share it."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._client, self._bucket = client, bucket
        self._lock = threading.Lock()
        self._place: tuple[str, str, str, Any] | None = None
        self._key: tuple[tuple[str, str], bytes] | None = None

    def read(self, key: str, part: tuple[int, int] | None = None) -> bytes | None:
        """The object, or only the bytes from the first to the last of these positions; None: ask botocore. Raises
        OSError: the store cannot be reached."""
        place = self._place or self._found()
        host, path, region, pool = place
        if pool is None:
            return None
        target = path + quote(key, safe=_SAFE)
        headers = self._signed(host, target, region)
        if part is not None:
            headers["Range"] = f"bytes={part[0]}-{part[1]}"
        try:
            answer = pool.urlopen("GET", target, headers=headers, retries=False, redirect=False, decode_content=False)
        except HTTPError as error:
            raise OSError(str(error)) from error
        return answer.data if answer.status == (200 if part is None else 206) else None

    def _found(self) -> tuple[str, str, str, Any]:
        """Host, path and region as botocore chooses them, and its connections; without these behind a proxy."""
        with self._lock:
            if self._place is None:
                given = {"Bucket": self._bucket, "Key": "k"}
                address = urlsplit(self._client.generate_presigned_url("get_object", Params=given, ExpiresIn=60))
                region = address.query.partition("X-Amz-Credential=")[2].split("%2F")[2]
                base = f"{address.scheme}://{address.netloc}"
                session = self._client._endpoint.http_session  # noqa: SLF001  as in deadlines.py
                pool = None
                if session._proxy_config.proxy_url_for(base) is None:  # noqa: SLF001
                    pool = session._manager.connection_from_url(base)  # noqa: SLF001
                    session._setup_ssl_cert(pool, base, session._verify)  # noqa: SLF001
                self._place = address.netloc, address.path.removesuffix("k"), region, pool
            return self._place

    def _signed(self, host: str, target: str, region: str) -> dict[str, str]:
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        held = self._client._request_signer._credentials.get_frozen_credentials()  # noqa: SLF001  it renews them
        scope = f"{moment[:8]}/{region}/s3/aws4_request"
        headers = {"Host": host, "X-Amz-Content-Sha256": _EMPTY, "X-Amz-Date": moment}
        lines, names = f"host:{host}\nx-amz-content-sha256:{_EMPTY}\nx-amz-date:{moment}\n", _SIGNED
        if held.token:
            headers["X-Amz-Security-Token"] = held.token
            lines, names = f"{lines}x-amz-security-token:{held.token}\n", f"{names};x-amz-security-token"
        request = f"GET\n{target}\n\n{lines}\n{names}\n{_EMPTY}"
        text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(self._signing_key(held.secret_key, scope), text.encode(), "sha256").hex()
        credential = f"Credential={held.access_key}/{scope}"
        headers["Authorization"] = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={signature}"
        return headers

    def _signing_key(self, secret: str, scope: str) -> bytes:
        known = self._key
        if known is not None and known[0] == (secret, scope):
            return known[1]
        key = f"AWS4{secret}".encode()
        for word in scope.split("/"):
            key = hmac.digest(key, word.encode(), "sha256")
        self._key = (secret, scope), key
        return key
