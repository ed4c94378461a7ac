"""A bucket of S3, or of any server that speaks its protocol. The one place that knows boto3.

Endpoint, region and credentials are the standard AWS settings, as boto3 reads them: AWS_ENDPOINT_URL(_S3), AWS_REGION,
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the role of the machine. Nothing of them is ever part of a
message. Every request, and the reading of every answer, is tried again with growing pauses while that can help.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from functools import lru_cache
from itertools import count
from typing import Any, NoReturn, TypeVar

from wmtp.errors import StorageError, UsageError
from wmtp.redaction import HIDDEN, without_credentials
from wmtp.storage.objects import Status, replaced

T = TypeVar("T")

ATTEMPTS = 8
PATIENCE_S = 60.0
"""So long after the first failure no further attempt is begun: what is large may take longer than that by itself."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5.0, 20.0
SLICE = 1 << 16
"""Bytes of an answer that are read at once: each thread holds so many beside the memory that they are for."""
PAGE = 1000
"""Keys of one listing, and of one request that removes: as many as S3 allows."""
PART = 8 << 20
PARTS_AT_ONCE = 4
PARTS_OF_A_SIZE = 1000
"""Then parts grow by `PART`, since an object may have 10,000: 8 MiB make objects of up to 430 GiB possible."""

_ALWAYS = {"429", "500", "502", "503", "504"}
_PASSING = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "ThrottlingException"}
_PASSING |= {"IncompleteBody", "BadDigest", "OperationAborted", "ConditionalRequestConflict"}
_MISSING = {"404", "NoSuchKey", "NotFound"}
_TAKEN = {"412", "PreconditionFailed"}
_BEYOND = {"416", "InvalidRange"}
_CREDENTIALS = {
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "ExpiredTokenException",
    "TokenRefreshRequired",
}  # fmt: skip
_CLOCK = {"RequestTimeTooSkewed", "RequestExpired"}
_REGION = {"301", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}


class S3Store:
    """See `wmtp.storage.objects.Store`."""

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket

    def status(self, key: str) -> Status | None:
        # A listing, not HEAD: its refusals say why. The key itself comes before all longer ones.
        found = next(self._pages(key, 1))
        there = (entry for entry in found.get("Contents", ()) if entry["Key"] == key)
        return next((Status(int(entry["Size"]), _version(entry)) for entry in there), None)

    def listed(self, prefix: str) -> Iterator[tuple[str, int]]:
        for page in self._pages(prefix):
            entries = ((entry["Key"], int(entry["Size"])) for entry in page.get("Contents", ()))
            yield from (entry for entry in entries if not entry[0].endswith("/"))

    def children(self, prefix: str) -> Iterator[str]:
        for page in self._pages(prefix, Delimiter="/"):
            yield from (entry["Prefix"][len(prefix) :] for entry in page.get("CommonPrefixes", ()))
            yield from (entry["Key"][len(prefix) :] for entry in page.get("Contents", ()) if entry["Key"] != prefix)

    def _pages(self, prefix: str, most: int | None = None, **options: Any) -> Iterator[dict[str, Any]]:
        token: dict[str, str] = {}
        while True:
            page = self._ask("list", prefix, "list_objects_v2", Prefix=prefix, MaxKeys=most or PAGE, **options, **token)
            yield page
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def get(self, key: str) -> bytes:
        def work(client: Any) -> bytes:
            with closing(client.get_object(Bucket=self.bucket, Key=key)["Body"]) as body:
                return bytes(body.read())

        return self._try("read", key, work)

    def read_into(self, key: str, start: int, view: memoryview, version: str | None = None) -> None:
        done = 0
        if not len(view):
            return

        def work(client: Any) -> None:
            nonlocal done, version
            wanted = f"bytes={start + done}-{start + len(view) - 1}"
            answer = client.get_object(Bucket=self.bucket, Key=key, Range=wanted)
            if not str(answer.get("ContentRange")).startswith(f"bytes {start + done}-"):  # not each answers with 206
                raise StorageError(f"{self._named(key)}: the server does not answer ranges of an object")
            with closing(answer["Body"]) as body:
                found = _version(answer)
                if version and found and found != version:
                    raise replaced(self._named(key))
                version = version or found
                while done < len(view):
                    piece = body.read(min(SLICE, len(view) - done))
                    if not piece:
                        raise _Short(f"the answer ended {len(view) - done} bytes early")
                    view[done : done + len(piece)] = piece
                    done += len(piece)

        self._try("read", key, work)

    def put(self, key: str, data: bytes) -> None:
        self._ask("write", key, "put_object", Key=key, Body=data)

    def create(self, key: str, data: bytes) -> bool:
        try:
            self._ask("write once", key, "put_object", Key=key, Body=data, IfNoneMatch="*")
        except _Taken:
            return self._holds(key, data)  # the answer to an attempt that had succeeded may have been lost
        return True

    def replace(self, key: str, old: bytes, new: bytes) -> bool:
        def work(client: Any) -> bool:
            answer = client.get_object(Bucket=self.bucket, Key=key)
            with closing(answer["Body"]) as body:
                found = body.read()
            if found == old:
                client.put_object(Bucket=self.bucket, Key=key, Body=new, IfMatch=answer["ETag"])
            return bool(found in (old, new))  # new: the answer to an attempt that had succeeded was lost

        try:
            return self._try("write on condition", key, work)
        except _Taken:
            return self._holds(key, new)  # an attempt that had no answer may have come late
        except FileNotFoundError:
            return False

    def _holds(self, key: str, data: bytes) -> bool:
        """Whether that is in an object; what took its place may be gone already."""
        try:
            return self.get(key) == data
        except FileNotFoundError:
            return False

    def upload(self, key: str) -> _Upload:
        return _Upload(self, key)

    def remove(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), PAGE):
            self._remove(keys[start : start + PAGE])

    def _remove(self, keys: Sequence[str]) -> None:
        from botocore.exceptions import ClientError

        def work(client: Any) -> None:
            objects = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
            answer = client.delete_objects(Bucket=self.bucket, Delete=objects)
            for failed in answer.get("Errors", ()):  # of one object, in an answer that is good: it may pass like others
                raise ClientError({"Error": failed}, "DeleteObjects")

        self._try("remove", keys[0], work)

    def abandon(self, prefix: str, *, below: bool = True) -> None:
        marks: dict[str, str] = {}
        while True:
            try:
                page = self._ask("list uploads of", prefix, "list_multipart_uploads", Prefix=prefix, **marks)
            except FileNotFoundError:  # how some servers say that there are none
                return
            for entry in page.get("Uploads", ()):
                if entry["Key"].startswith(prefix) and (below or "/" not in entry["Key"][len(prefix) :]):
                    self.abort(entry["Key"], entry["UploadId"])
            if not page.get("IsTruncated"):
                return
            marks = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def part(self, key: str, upload: str, number: int, data: io.BytesIO) -> str:
        """Give one part of an upload to the store; its tag.

        As a file, which goes in blocks, and not as bytes at once, which must have left within one time-out.

        Raises:
            StorageError: the store has dropped the upload, or does not take the part.
        """

        def work(client: Any) -> str:
            data.seek(0)
            answer = client.upload_part(Bucket=self.bucket, Key=key, UploadId=upload, PartNumber=number, Body=data)
            return str(answer["ETag"])

        try:
            return self._try("write", key, work)
        except FileNotFoundError:
            raise self.dropped(key) from None

    def dropped(self, key: str) -> StorageError:
        """What is said of an upload that the store no longer knows, though nobody here has ended it."""
        return StorageError(f"the upload of {self._named(key)} was dropped by the server")

    def abort(self, key: str, upload: str) -> None:
        """Drop the parts of an upload; one that is over is dropped already."""
        with suppress(FileNotFoundError):
            self._ask("drop the upload of", key, "abort_multipart_upload", Key=key, UploadId=upload)

    # Requests

    def _ask(self, verb: str, key: str, operation: str, **arguments: Any) -> dict[str, Any]:
        def work(client: Any) -> dict[str, Any]:
            answer: dict[str, Any] = getattr(client, operation)(Bucket=self.bucket, **arguments)
            return answer

        return self._try(verb, key, work)

    def _try(self, verb: str, key: str, work: Callable[[Any], T]) -> T:
        """Do the work until it succeeds, fails for good, or patience is over."""
        failed: float | None = None
        renewed = False
        for attempt in count(1):
            client = _client(os.getpid())
            try:
                return work(client)
            except _library_errors() as problem:
                failed = failed or time.monotonic()
                over = attempt >= ATTEMPTS or time.monotonic() - failed > PATIENCE_S
                if _code(problem) in _CREDENTIALS and not renewed:
                    _renew(client)
                    renewed = True
                elif over or not _may_pass(problem):
                    self._fail(verb, key, problem, attempt)
            time.sleep(random.uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)))
        raise AssertionError("count() does not end")

    def _named(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    def _fail(self, verb: str, key: str, problem: Exception, attempts: int) -> NoReturn:
        """The library's error as one of ours, or as that of a missing file; what is in it of credentials stays out."""
        from botocore.exceptions import BotoCoreError, NoCredentialsError, SSLError

        what, code = f"cannot {verb} {self._named(key)}", _code(problem)
        if code in _TAKEN:
            raise _Taken from problem
        if code in _MISSING or code == "NoSuchUpload":
            raise FileNotFoundError(errno.ENOENT, "no such object", self._named(key)) from problem
        if code in _BEYOND:  # it was as long as that when it was listed
            raise replaced(self._named(key)) from problem
        if code == "NoSuchBucket":
            why = f"there is no bucket {self.bucket!r} at {_endpoint()}; make it, or mend the location"
        elif code in _CREDENTIALS or isinstance(problem, NoCredentialsError):
            why = (
                f"{code or 'there are no credentials'}; {_endpoint()} wants those of AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, of AWS_PROFILE, or the machine's role"
            )
        elif isinstance(problem, SSLError) and not _may_pass(problem):
            why = f"{_said(problem)}; AWS_CA_BUNDLE names a file of certificates to trust"
        elif isinstance(problem, BotoCoreError) and not _may_pass(problem):  # before anything was asked
            why = f"the AWS settings cannot be used: {_said(problem)}"
        elif code in _CLOCK:
            why = f"{code}: this machine's clock is not that of {_endpoint()}; set it (NTP does)"
        elif code in _REGION:
            why = f"{code}; the bucket is in another region than AWS_REGION says"
        elif code in ("501", "NotImplemented"):
            why = f"{code}: {_endpoint()} has no such request, and runs need one that has it (docs/operations.md)"
        elif code in ("403", "AccessDenied", "AllAccessDisabled"):
            why = f"{code}: {_endpoint()} does not let these credentials do that"
        else:
            tried = f" after {attempts} attempts" if attempts > 1 else ""
            raise StorageError(f"{what}: {_endpoint()} gave no good answer{tried} ({_said(problem)})") from None
        raise StorageError(f"{what}: {why}", settings=True) from None


class _Upload:
    """A small object is one request. Of a larger one at most `PARTS_AT_ONCE` parts are on their way; one is filling."""

    def __init__(self, store: S3Store, key: str) -> None:
        self._store, self._key, self._id = store, key, ""
        self._filling, self._size, self._sent = io.BytesIO(), 0, 0
        self._threads: ThreadPoolExecutor | None = None
        self._under_way: deque[Future[dict[str, Any]]] = deque()
        self._done: list[dict[str, Any]] = []

    def write(self, data: bytes | memoryview) -> int:
        """Take some bytes; returns how many."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), SLICE):
            self._filling.write(view[start : start + SLICE])
            if self._filling.tell() >= PART * (1 + self._sent // PARTS_OF_A_SIZE):
                self._send()
        self._size += len(view)
        return len(view)

    def finish(self) -> None:
        """Make the object."""
        if not self._id:
            self._store.put(self._key, self._filling.getvalue())
            return
        if self._filling.tell():
            self._send()
        while self._under_way:
            self._done.append(self._under_way.popleft().result())
        self._stop()
        try:
            self._store._ask(
                "write", self._key, "complete_multipart_upload", Key=self._key, UploadId=self._id,
                MultipartUpload={"Parts": self._done},
            )  # fmt: skip
        except FileNotFoundError:  # no such upload: the answer to an attempt that had succeeded was lost
            if (self._store.status(self._key) or Status(-1)).st_size != self._size:
                raise self._store.dropped(self._key) from None

    def abort(self) -> None:
        """Leave nothing behind; where even that fails, `abandon` finds it."""
        for future in self._under_way:
            future.cancel()
        self._stop()
        if self._id:
            with suppress(StorageError):
                self._store.abort(self._key, self._id)

    def _send(self) -> None:
        """One part, by a thread; waits while too many are under way."""
        if not self._id:
            answer = self._store._ask("write", self._key, "create_multipart_upload", Key=self._key)
            self._id, self._threads = answer["UploadId"], ThreadPoolExecutor(PARTS_AT_ONCE, "wmtp-upload")
        assert self._threads is not None
        if len(self._under_way) == PARTS_AT_ONCE:
            self._done.append(self._under_way.popleft().result())
        self._sent += 1
        self._under_way.append(self._threads.submit(self._part, self._sent, self._filling))
        self._filling = io.BytesIO()

    def _part(self, number: int, data: io.BytesIO) -> dict[str, Any]:
        return {"PartNumber": number, "ETag": self._store.part(self._key, self._id, number, data)}

    def _stop(self) -> None:
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None


# The library


class _Taken(Exception):
    """There is an object where one should have been made."""


class _Short(Exception):
    """An answer was cut off."""


@lru_cache(maxsize=1)
def _client(pid: int) -> Any:
    """The client of this process: connections must not be shared with a parent.

    Raises:
        UsageError: boto3 is not installed.
        StorageError: settings that it cannot read.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as problem:
        raise UsageError("s3:// needs boto3: pip install 'wmtp[s3]'") from problem
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"total_max_attempts": 1},  # `S3Store._try` repeats, and bodies too
        max_pool_connections=32,
        request_checksum_calculation="when_required",  # other servers than Amazon's do not know the newer ones
        response_checksum_validation="when_required",
    )
    try:
        session = boto3.session.Session()
        region = os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
        client = session.client("s3", region_name=region, config=config)
    except (BotoCoreError, ValueError) as problem:
        raise StorageError(f"the AWS settings cannot be used: {_without_user(str(problem))}", settings=True) from None
    client.meta.events.register("before-sign.s3.DeleteObjects", _add_md5)
    return client


def _add_md5(request: Any, **_: Any) -> None:
    """Older servers want this sum of a request that removes; boto3 sends another one."""
    digest = hashlib.md5(request.body, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()


def forget_client() -> None:
    """The next request reads the AWS settings again."""
    _client.cache_clear()


def _renew(client: Any) -> None:
    """Read them again, unless another thread has: credentials that were refused may have newer ones in their file."""
    if _client(os.getpid()) is client:
        forget_client()


def _library_errors() -> tuple[type[Exception], ...]:
    """Empty of the library's own where it is missing: `_client` says so."""
    try:
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError
    except ImportError:
        return (_Short,)
    return (BotoCoreError, ClientError, ResponseParserError, _Short)


def _may_pass(problem: Exception) -> bool:
    """Whether another attempt can help."""
    from botocore.exceptions import ConnectionError as NotReached
    from botocore.exceptions import HTTPClientError, IncompleteReadError, SSLError
    from botocore.parsers import ResponseParserError

    if isinstance(problem, SSLError):
        return "CERTIFICATE_VERIFY_FAILED" not in str(problem)  # else it was cut off
    if isinstance(problem, (NotReached, HTTPClientError, IncompleteReadError, ResponseParserError, _Short)):
        return True
    status = str(_answer(problem).get("ResponseMetadata", {}).get("HTTPStatusCode"))
    return _code(problem) in _PASSING or status in _ALWAYS


def _version(entry: Mapping[str, Any]) -> str | None:
    """The ETag of an answer or an entry of a listing."""
    return str(entry.get("ETag") or "").removeprefix("W/").strip('"') or None


def _code(problem: Exception) -> str:
    """What the server calls it; empty where there was no answer."""
    return str(_answer(problem).get("Error", {}).get("Code", ""))


def _answer(problem: Exception) -> dict[str, Any]:
    """What the server said, as the library has read it."""
    found = getattr(problem, "response", None)
    return found if isinstance(found, dict) else {}


def _endpoint() -> str:
    return _without_user(str(_client(os.getpid()).meta.endpoint_url))


def _said(problem: Exception) -> str:
    text = _without_user(str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__)
    return f"{text[:300]}..." if len(text) > 300 else text


def _without_user(text: str) -> str:
    """URLs may hold a name and a password."""
    return without_credentials(text).replace(f"://{HIDDEN}@", "://")
