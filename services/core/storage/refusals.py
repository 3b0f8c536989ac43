"""What an S3 server's error codes mean for Presswork: an outage, a missing object, or a refusal and what would help."""

from botocore.exceptions import ClientError

from services.core.model.errors import ObjectMissing, StoreRefused, StoreUnavailable

_OUTAGES = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "OperationAborted"}
_EXPIRED = "the credentials have expired; give new ones, the token in AWS_SESSION_TOKEN included"
_REGION = "the bucket is in another region than AWS_REGION says"
_RIGHTS = "these credentials lack a right on the bucket; services/README.md lists the least that it takes"
_MEANINGS = {
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "RequestExpired": _EXPIRED,
    "InvalidToken": "the token in AWS_SESSION_TOKEN does not belong to the access key",
    "InvalidAccessKeyId": "it does not know the access key in AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": (
        "AWS_SECRET_ACCESS_KEY is not the secret of the access key, or a proxy changes requests on their way"
    ),
    "RequestTimeTooSkewed": "this machine's clock differs from the store's by more than 15 minutes; set the clock",
    "AccessDenied": _RIGHTS,
    "AllAccessDisabled": _RIGHTS,
    "403": _RIGHTS,
    "NoSuchBucket": "there is no such bucket; make it, or name another in PRESSWORK_BUCKET",
    "PermanentRedirect": _REGION,
    "TemporaryRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "301": _REGION,
    "InvalidBucketName": "PRESSWORK_BUCKET is not a name that a bucket may have",
    "BucketAlreadyExists": "a bucket of that name belongs to somebody else; name another in PRESSWORK_BUCKET",
}


def status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code(error: ClientError) -> str:
    """The answer's error code; an answer without a body has only its status."""
    return str(error.response.get("Error", {}).get("Code") or status(error))


def translated(error: ClientError, endpoint: str, bucket: str) -> StoreUnavailable:
    """The error to raise instead: one sentence that names the store, the code and what would do."""
    found = code(error)
    if is_outage(error):
        return StoreUnavailable(f"The object store at {endpoint} answers {found}.")
    if found in ("NoSuchKey", "InvalidRange"):  # a shard that ends before its member does not hold it
        return ObjectMissing()
    return StoreRefused(f"The object store at {endpoint} refuses bucket {bucket!r} with {found}: {meaning_of(error)}.")


def is_outage(error: ClientError) -> bool:
    """Whether the same request may succeed later."""
    if status(error) >= 500 and status(error) != 501:
        return True
    return status(error) in (408, 429) or code(error) in _OUTAGES


def meaning_of(error: ClientError) -> str:
    """What a refusal means, and what would help."""
    meaning = _MEANINGS.get(code(error), "check the address, the bucket and the credentials")
    region = error.response.get("Error", {}).get("Region") or error.response.get("ResponseMetadata", {}).get(
        "HTTPHeaders", {}
    ).get("x-amz-bucket-region")
    return f"{meaning}: {region}" if meaning is _REGION and region else meaning
