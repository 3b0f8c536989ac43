"""One signed request to an S3 server (AWS Signature Version 4), so that readiness can be a real write."""

import hashlib
import hmac
import http.client
from datetime import UTC, datetime

SIGNED = "host;x-amz-content-sha256;x-amz-date"


def put(port: int, path: str, body: bytes, access_key: str, secret_key: str, *, timeout: float) -> int:
    """The status of a PUT to 127.0.0.1, or 0 if there was no answer. The path needs no quoting."""
    now = datetime.now(UTC)
    moment, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    host, digest, scope = f"127.0.0.1:{port}", hashlib.sha256(body).hexdigest(), f"{day}/us-east-1/s3/aws4_request"
    request = f"PUT\n{path}\n\nhost:{host}\nx-amz-content-sha256:{digest}\nx-amz-date:{moment}\n\n{SIGNED}\n{digest}"
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{secret_key}".encode()
    for word in (*scope.split("/"), text):
        key = hmac.digest(key, word.encode(), "sha256")
    authorization = f"AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={SIGNED}, Signature={key.hex()}"
    headers = {"Authorization": authorization, "X-Amz-Content-Sha256": digest, "X-Amz-Date": moment}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("PUT", path, body, headers)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
