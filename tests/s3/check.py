#!/usr/bin/env python3
"""Asks an S3 endpoint, through boto3, whether it does what Amazon's does.

    check.py ENDPOINT            with credentials from the environment, as boto3 takes them
    check.py ENDPOINT NAME...    only the checks whose names contain one of these

ALT_KEY and ALT_SECRET, if set, are a second user's, who may do nothing with the first one's buckets.
ENDPOINT2, if set, is another way in to the same buckets.

Each check makes buckets of its own and removes them. Nothing here knows Ashlar: it can be pointed at AWS.
"""
import base64, concurrent.futures, hashlib, io, json, os, random, sys, time, traceback, urllib.parse, zlib
import http.client as http_client

import boto3
from botocore.client import Config
from botocore.exceptions import ClientError

ENDPOINT = sys.argv[1]
REGION = os.environ.get("AWS_REGION", "us-east-1")


def client(key=None, secret=None, endpoint=ENDPOINT, **config):
    config.setdefault("signature_version", "s3v4")
    config.setdefault("retries", {"max_attempts": 1})
    config.setdefault("max_pool_connections", 64)
    return boto3.client(
        "s3", endpoint_url=endpoint, region_name=REGION, aws_access_key_id=key, aws_secret_access_key=secret,
        config=Config(s3={"addressing_style": "path"}, **config))


S3 = client()
OTHER = client(endpoint=os.environ.get("ENDPOINT2", ENDPOINT))
SEED = int(os.environ.get("SEED", random.randrange(1 << 32)))
RANDOM = random.Random(SEED)
MIB = 1 << 20


def data(n):
    return RANDOM.randbytes(n)


class bucket:
    """A bucket for a check, empty when it begins and gone when it has ended."""

    def __init__(self, s3=S3):
        self.name, self.s3 = "check-%08x-%08x" % (SEED, RANDOM.randrange(1 << 32)), s3

    def __enter__(self):
        self.s3.create_bucket(Bucket=self.name)
        return self.name

    def __exit__(self, *_):
        try:
            S3.delete_bucket_policy(Bucket=self.name)
        except ClientError:
            pass
        for page in S3.get_paginator("list_objects_v2").paginate(Bucket=self.name):
            keys = [{"Key": o["Key"]} for o in page.get("Contents", [])]
            if keys:
                S3.delete_objects(Bucket=self.name, Delete={"Objects": keys, "Quiet": True})
        S3.delete_bucket(Bucket=self.name)


def fails(code, status, call, **args):
    """The call must fail with this code and this status; the error."""
    try:
        got = call(**args)
    except ClientError as error:
        e = error.response
        said = (e["Error"]["Code"], e["ResponseMetadata"]["HTTPStatusCode"])
        assert said == (code, status), "%s instead of %s: %s" % (said, (code, status), e["Error"].get("Message"))
        assert e["ResponseMetadata"].get("RequestId"), "an error without a request id"
        return e
    raise AssertionError("no error, but %r" % (got,))


def body(b, k, s3=S3, **args):
    return s3.get_object(Bucket=b, Key=k, **args)["Body"].read()


def lower(headers):
    return {k.lower(): v for k, v in headers.items()}


def http(method, url, headers={}, data=None):
    """A request as it stands: urllib would add headers of its own, and signatures cover them."""
    at = urllib.parse.urlsplit(url)
    kind = http_client.HTTPSConnection if at.scheme == "https" else http_client.HTTPConnection
    line = kind(at.netloc, timeout=60)
    line.request(method, at.path + ("?" + at.query if at.query else ""), body=data, headers=headers)
    reply = line.getresponse()
    return reply.status, lower(reply.headers), reply.read()


# Buckets

def test_buckets():
    with bucket() as b:
        assert b in [x["Name"] for x in S3.list_buckets()["Buckets"]]
        head = S3.head_bucket(Bucket=b)["ResponseMetadata"]
        assert head["HTTPHeaders"]["x-amz-bucket-region"] == REGION
        assert S3.get_bucket_location(Bucket=b)["LocationConstraint"] in (None, REGION)
        S3.put_bucket_tagging(Bucket=b, Tagging={"TagSet": [{"Key": "a", "Value": "1"}]})
        if REGION == "us-east-1":
            # The first region takes it for done, and changes nothing.
            S3.create_bucket(Bucket=b)
        else:
            fails("BucketAlreadyOwnedByYou", 409, S3.create_bucket, Bucket=b)
        assert S3.get_bucket_tagging(Bucket=b)["TagSet"] == [{"Key": "a", "Value": "1"}]
        S3.put_object(Bucket=b, Key="k", Body=b"x")
        fails("BucketNotEmpty", 409, S3.delete_bucket, Bucket=b)
        S3.delete_object(Bucket=b, Key="k")
    fails("404", 404, S3.head_bucket, Bucket=b)
    for call in (S3.delete_bucket, S3.list_objects, S3.list_objects_v2, S3.get_bucket_location, S3.get_bucket_tagging):
        fails("NoSuchBucket", 404, call, Bucket=b)
    fails("NoSuchBucket", 404, S3.put_object, Bucket=b, Key="k", Body=b"x")
    fails("NoSuchBucket", 404, S3.get_object, Bucket=b, Key="k")
    fails("NoSuchBucket", 404, S3.delete_object, Bucket=b, Key="k")
    fails("IllegalLocationConstraintException", 400, S3.create_bucket, Bucket=b,
          CreateBucketConfiguration={"LocationConstraint": "mars-north-1"})


def test_bucket_names():
    loose = client()
    loose.meta.events.unregister("before-parameter-build.s3", __import__("botocore.handlers").handlers.validate_bucket_name)
    for name in ("Upper", "ab", "a" * 64, "192.168.0.1", "under_score", "-dash", "ashlar-system", "xn--x"):
        fails("InvalidBucketName", 400, loose.create_bucket, Bucket=name)
        fails("InvalidBucketName", 400, loose.put_object, Bucket=name, Key="k", Body=b"")


def test_list_buckets_pages():
    with bucket() as a, bucket() as b:
        prefix = "check-%08x" % SEED
        names = []
        for page in S3.get_paginator("list_buckets").paginate(Prefix=prefix, PaginationConfig={"PageSize": 1}):
            assert len(page["Buckets"]) <= 1
            names += [x["Name"] for x in page["Buckets"]]
        assert names == sorted([a, b]), names


# Objects

def test_put_get_sizes():
    with bucket() as b:
        for n in (0, 1, 4096, 32 << 10, (32 << 10) + 1, 1 << 20, (4 << 20) + 7, 12 << 20):
            x = data(n)
            put = S3.put_object(Bucket=b, Key="k", Body=x)
            assert put["ETag"] == '"%s"' % hashlib.md5(x).hexdigest()
            got = S3.get_object(Bucket=b, Key="k")
            assert got["Body"].read() == x and got["ContentLength"] == n and got["ETag"] == put["ETag"]
            head = S3.head_object(Bucket=b, Key="k")
            assert head["ContentLength"] == n and head["ETag"] == put["ETag"]
            assert abs(head["LastModified"].timestamp() - time.time()) < 60
            assert head["ContentType"] == "binary/octet-stream"
        fails("404", 404, S3.head_object, Bucket=b, Key="none")
        fails("NoSuchKey", 404, S3.get_object, Bucket=b, Key="none")


KEYS = ["a", "a/b", "a//b", "/a", "//", "a/", ".", "..", "a/../b", "a/./b", " ", " a ", "a b", "a+b", "a%b", "a%20b", "%2F",
        "a&b=c?d#e", "ä", "日本語/キー", "😀", "a\u0301", "a'b\"c<d>", "a\\b", "~a*(b)!$,;:@=", "x" * 1024, "é" * 512,
        "a\tb", "a\nb", "a\rb", "\u00a0", "\ufeffa"]


def test_awkward_keys():
    with bucket() as b:
        for key in KEYS:
            S3.put_object(Bucket=b, Key=key, Body=key.encode())
        for key in KEYS:
            assert body(b, key) == key.encode(), repr(key)
        listed = [o["Key"] for o in S3.list_objects_v2(Bucket=b)["Contents"]]
        assert listed == sorted(KEYS, key=lambda k: k.encode()), [k for k in KEYS if k not in listed]
        listed = [o["Key"] for o in S3.list_objects(Bucket=b)["Contents"]]
        assert listed == sorted(KEYS, key=lambda k: k.encode())
        S3.copy_object(Bucket=b, Key="copy", CopySource={"Bucket": b, "Key": "a+b"})
        assert body(b, "copy") == b"a+b"
        S3.copy_object(Bucket=b, Key="copy", CopySource={"Bucket": b, "Key": "a&b=c?d#e"})
        assert body(b, "copy") == b"a&b=c?d#e"
        for key in KEYS[::2]:
            S3.delete_object(Bucket=b, Key=key)
            fails("NoSuchKey", 404, S3.get_object, Bucket=b, Key=key)
        gone = S3.delete_objects(Bucket=b, Delete={"Objects": [{"Key": k} for k in KEYS[1::2]]})
        assert len(gone["Deleted"]) == len(KEYS[1::2]) and not gone.get("Errors"), gone.get("Errors")
        assert [o["Key"] for o in S3.list_objects_v2(Bucket=b)["Contents"]] == ["copy"]
        fails("KeyTooLongError", 400, S3.put_object, Bucket=b, Key="x" * 1025, Body=b"")


def test_headers_and_metadata():
    with bucket() as b:
        headers = dict(ContentType="text/x; charset=utf-8", ContentEncoding="gzip", ContentLanguage="de",
                       ContentDisposition='attachment; filename="a"', CacheControl="no-cache",
                       Metadata={"a": "1", "mixed-case": "Two words", "empty": ""})
        S3.put_object(Bucket=b, Key="k", Body=b"x", Expires="Wed, 21 Oct 2065 07:28:00 GMT", **headers)
        for got in (S3.head_object(Bucket=b, Key="k"), S3.get_object(Bucket=b, Key="k")):
            for name, value in headers.items():
                assert got[name] == value, (name, got.get(name))
            assert got["ExpiresString"] == "Wed, 21 Oct 2065 07:28:00 GMT"
        got = S3.get_object(Bucket=b, Key="k", ResponseContentType="a/b", ResponseCacheControl="c", ResponseContentLanguage="d",
                            ResponseContentDisposition="e", ResponseContentEncoding="identity",
                            ResponseExpires="Thu, 01 Jan 2037 00:00:00 GMT")
        said = [got[x] for x in ("ContentType", "CacheControl", "ContentLanguage", "ContentDisposition", "ContentEncoding")]
        assert said == ["a/b", "c", "d", "e", "identity"], said
        for sent, kept in (("deflate, gzip", "deflate, gzip"), ("aws-chunked, gzip", "gzip"), ("aws-chunked", None)):
            S3.put_object(Bucket=b, Key="m", ContentEncoding=sent)
            assert S3.head_object(Bucket=b, Key="m").get("ContentEncoding") == kept, sent
        fails("MetadataTooLarge", 400, S3.put_object, Bucket=b, Key="m", Body=b"", Metadata={"a": "x" * 2048})
        S3.put_object(Bucket=b, Key="m", Body=b"", Metadata={"a": "x" * 2047})
        fails("InvalidStorageClass", 400, S3.put_object, Bucket=b, Key="m", Body=b"", StorageClass="GLACIER")
        fails("AccessControlListNotSupported", 400, S3.put_object, Bucket=b, Key="m", Body=b"", ACL="public-read")


def test_ranges():
    with bucket() as b:
        for n in (10, 100_000, 9 << 20):
            x = data(n)
            S3.put_object(Bucket=b, Key="k", Body=x)
            for spec, (start, end) in {
                "0-0": (0, 1), "1-4": (1, 5), "5-": (5, n), "-3": (n - 3, n), "-%d" % (n + 5): (0, n), "0-%d" % (n + 9): (0, n),
                "%d-" % (n - 1): (n - 1, n), "%d-%d" % (n // 2, n // 2 + n // 3): (n // 2, n // 2 + n // 3 + 1),
            }.items():
                got = S3.get_object(Bucket=b, Key="k", Range="bytes=" + spec)
                assert got["ResponseMetadata"]["HTTPStatusCode"] == 206, spec
                assert got["ContentRange"] == "bytes %d-%d/%d" % (start, end - 1, n), (spec, got["ContentRange"])
                assert got["Body"].read() == x[start:end], spec
                head = S3.head_object(Bucket=b, Key="k", Range="bytes=" + spec)
                assert head["ContentLength"] == end - start
            for spec in ("%d-" % n, "%d-%d" % (n, n + 1), "-0"):
                fails("InvalidRange", 416, S3.get_object, Bucket=b, Key="k", Range="bytes=" + spec)
                fails("416", 416, S3.head_object, Bucket=b, Key="k", Range="bytes=" + spec)
            for spec in ("bytes=5-1", "bytes=a-b", "bytes=0-1,3-4", "lines=1-2"):
                got = S3.get_object(Bucket=b, Key="k", Range=spec)
                assert got["ResponseMetadata"]["HTTPStatusCode"] == 200 and got["Body"].read() == x
        S3.put_object(Bucket=b, Key="e", Body=b"")
        fails("InvalidRange", 416, S3.get_object, Bucket=b, Key="e", Range="bytes=0-")
        # Amazon's CRT finds out by this that an object is empty.
        said = fails("InvalidRange", 416, S3.get_object, Bucket=b, Key="e", Range="bytes=0-99")["Error"]
        assert (said.get("ActualObjectSize"), said.get("RangeRequested")) == ("0", "bytes=0-99"), said


def test_if_range():
    """Who has a part of another object gets all of this one."""
    def ask(s3, method, value, **args):
        def add(request, **_):
            request.headers["If-Range"] = value
        s3.meta.events.register("before-sign.s3", add)
        return getattr(s3, method)(**args)

    with bucket() as b:
        x = [data(5 * MIB), data(100)]
        upload, done = parts_of(b, "k", enumerate(x, 1))
        S3.complete_multipart_upload(Bucket=b, Key="k", UploadId=upload, MultipartUpload={"Parts": done})
        S3.put_object(Bucket=b, Key="e", Body=b"")
        etag, whole = S3.head_object(Bucket=b, Key="k")["ETag"], b"".join(x)
        beyond = "bytes=%d-" % len(whole)
        stale = ('"0123456789abcdef0123456789abcdef"', "Sat, 01 Jan 2000 00:00:00 GMT")
        for asked in ({"Range": "bytes=1-5"}, {"Range": beyond}, {"PartNumber": 1}, {"PartNumber": 2}):
            for value in stale:
                got = ask(client(), "get_object", value, Bucket=b, Key="k", **asked)
                assert got["ResponseMetadata"]["HTTPStatusCode"] == 200 and "ContentRange" not in got, (asked, value, got)
                assert got["Body"].read() == whole and "PartsCount" not in got, (asked, value)
                head = ask(client(), "head_object", value, Bucket=b, Key="k", **asked)
                assert head["ContentLength"] == len(whole) and "PartsCount" not in head, (asked, value, head)
            if asked != {"Range": beyond}:
                got = ask(client(), "get_object", etag, Bucket=b, Key="k", **asked)
                assert got["ResponseMetadata"]["HTTPStatusCode"] == 206 and len(got["Body"].read()) < len(whole), asked
        past = dict(method="get_object", Bucket=b, Key="k", Range=beyond)
        fails("InvalidRange", 416, ask, s3=client(), value=etag, **past)
        fails("PreconditionFailed", 412, ask, s3=client(), value=stale[0], IfMatch='"x"', **past)
        for asked in ({"Range": "bytes=0-"}, {"PartNumber": 1}):
            got = ask(client(), "get_object", stale[0], Bucket=b, Key="e", **asked)
            assert got["ResponseMetadata"]["HTTPStatusCode"] == 200 and got["Body"].read() == b"", asked


def test_conditional_reads():
    with bucket() as b:
        etag = S3.put_object(Bucket=b, Key="k", Body=b"x")["ETag"]
        past, future = "Sat, 01 Jan 2000 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"
        for call, pre, same in ((S3.get_object, "PreconditionFailed", "304"), (S3.head_object, "412", "304")):
            ok = lambda **a: call(Bucket=b, Key="k", **a)
            ok(IfMatch=etag), ok(IfMatch="*"), ok(IfNoneMatch='"x"'), ok(IfModifiedSince=past), ok(IfUnmodifiedSince=future)
            ok(IfMatch=etag, IfUnmodifiedSince=past), ok(IfNoneMatch='"x"', IfModifiedSince=future)
            fails(pre, 412, call, Bucket=b, Key="k", IfMatch='"x"')
            fails(pre, 412, call, Bucket=b, Key="k", IfUnmodifiedSince=past)
            fails(same, 304, call, Bucket=b, Key="k", IfNoneMatch=etag)
            fails(same, 304, call, Bucket=b, Key="k", IfNoneMatch="*")
            fails(same, 304, call, Bucket=b, Key="k", IfModifiedSince=future)
            fails(same, 304, call, Bucket=b, Key="k", IfNoneMatch=etag, IfModifiedSince=past)
            fails(pre, 412, call, Bucket=b, Key="k", IfMatch='"x"', Range="bytes=99-")


def test_conditional_writes():
    with bucket() as b:
        put = lambda **a: S3.put_object(Bucket=b, Key="k", **a)
        etag = put(Body=b"1", IfNoneMatch="*")["ETag"]
        fails("PreconditionFailed", 412, S3.put_object, Bucket=b, Key="k", Body=b"2", IfNoneMatch="*")
        fails("PreconditionFailed", 412, S3.put_object, Bucket=b, Key="k", Body=b"2", IfMatch='"x"')
        etag2 = put(Body=b"2", IfMatch=etag)["ETag"]
        fails("PreconditionFailed", 412, S3.put_object, Bucket=b, Key="k", Body=b"3", IfMatch=etag)
        fails("NoSuchKey", 404, S3.put_object, Bucket=b, Key="none", Body=b"3", IfMatch=etag)
        fails("NotImplemented", 501, S3.put_object, Bucket=b, Key="k", Body=b"3", IfNoneMatch=etag)
        assert body(b, "k") == b"2"
        fails("PreconditionFailed", 412, S3.copy_object, Bucket=b, Key="k", CopySource=b + "/k", IfNoneMatch="*",
              MetadataDirective="REPLACE")
        fails("PreconditionFailed", 412, S3.delete_object, Bucket=b, Key="k", IfMatch=etag)
        fails("PreconditionFailed", 412, S3.delete_object, Bucket=b, Key="none", IfMatch=etag)
        S3.put_object_tagging(Bucket=b, Key="k", Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})
        S3.delete_object(Bucket=b, Key="k", IfMatch=etag2)
        big = data(6 << 20)
        put(Body=big, IfNoneMatch="*")
        fails("PreconditionFailed", 412, S3.put_object, Bucket=b, Key="k", Body=big, IfNoneMatch="*")


def test_racers():
    """Eight create one object, through two endpoints: one wins. Eight add to a counter: nothing is lost."""
    with bucket() as b, concurrent.futures.ThreadPoolExecutor(8) as pool:
        def create(i):
            try:
                (S3, OTHER)[i % 2].put_object(Bucket=b, Key="lock", Body=b"%d" % i, IfNoneMatch="*")
                return i
            except ClientError as e:
                assert e.response["Error"]["Code"] in ("PreconditionFailed", "ConditionalRequestConflict"), e
        for _ in range(5):
            won = [i for i in pool.map(create, range(8)) if i is not None]
            assert len(won) == 1 and body(b, "lock") == body(b, "lock", OTHER) == b"%d" % won[0], won
            S3.delete_object(Bucket=b, Key="lock")
        S3.put_object(Bucket=b, Key="n", Body=b"0")

        def add(i):
            s3 = (S3, OTHER)[i % 2]
            for _ in range(5):
                while True:
                    got = s3.get_object(Bucket=b, Key="n")
                    try:
                        s3.put_object(Bucket=b, Key="n", Body=b"%d" % (int(got["Body"].read()) + 1), IfMatch=got["ETag"])
                        break
                    except ClientError as e:
                        assert e.response["Error"]["Code"] in ("PreconditionFailed", "ConditionalRequestConflict"), e
        list(pool.map(add, range(8)))
        assert body(b, "n") == b"40"


def test_delete():
    with bucket() as b:
        assert S3.delete_object(Bucket=b, Key="none")["ResponseMetadata"]["HTTPStatusCode"] == 204
        keys = ["k%04d" % i for i in range(1000)]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda k: S3.put_object(Bucket=b, Key=k, Body=b""), keys))
        done = S3.delete_objects(Bucket=b, Delete={"Objects": [{"Key": k} for k in keys[:500]]})
        assert [d["Key"] for d in done["Deleted"]] == keys[:500] and "Errors" not in done
        quiet = S3.delete_objects(Bucket=b, Delete={"Objects": [{"Key": k} for k in keys[500:]], "Quiet": True})
        assert not quiet.get("Deleted") and not quiet.get("Errors")
        assert S3.list_objects_v2(Bucket=b)["KeyCount"] == 0
        fails("MalformedXML", 400, S3.delete_objects, Bucket=b, Delete={"Objects": [{"Key": "k"}] * 1001})
        etag = S3.put_object(Bucket=b, Key="k", Body=b"x")["ETag"]
        done = S3.delete_objects(Bucket=b, Delete={"Objects": [{"Key": "k", "ETag": '"no"'}, {"Key": "none"}]})
        assert [e["Code"] for e in done["Errors"]] == ["PreconditionFailed"] and len(done["Deleted"]) == 1
        assert not S3.delete_objects(Bucket=b, Delete={"Objects": [{"Key": "k", "ETag": etag}]}).get("Errors")


def test_what_some_clients_say():
    """Headers that boto3 has no way to send, or would write in another way."""
    with bucket() as b:
        for k in ("p q", "p+q"):
            S3.put_object(Bucket=b, Key=k, Body=k.encode())
        for source, found in (("p+q", b"p q"), ("p%20q", b"p q"), ("p%2Bq", b"p+q")):
            s3 = client()
            say = {"x-amz-copy-source": b + "/" + source, "x-amz-api-version": "2006-03-01"}
            s3.meta.events.register("before-call.s3.CopyObject", lambda params, **_: params["headers"].update(say))
            s3.copy_object(Bucket=b, Key="copy", CopySource={"Bucket": b, "Key": "none"})
            assert body(b, "copy") == found, source


def test_copy():
    with bucket() as a, bucket() as b:
        x = data(5 << 20)
        S3.put_object(Bucket=a, Key="k", Body=x, ContentType="a/b", Metadata={"m": "1"}, Tagging="t=1&u=2", ChecksumAlgorithm="SHA256")
        done = S3.copy_object(Bucket=b, Key="c", CopySource={"Bucket": a, "Key": "k"})
        assert done["CopyObjectResult"]["ETag"] == '"%s"' % hashlib.md5(x).hexdigest()
        got = S3.get_object(Bucket=b, Key="c", ChecksumMode="ENABLED")
        assert got["Body"].read() == x and got["ContentType"] == "a/b" and got["Metadata"] == {"m": "1"} and got["TagCount"] == 2
        assert got["ChecksumSHA256"] == base64.b64encode(hashlib.sha256(x).digest()).decode()
        S3.copy_object(Bucket=b, Key="c", CopySource={"Bucket": a, "Key": "k"}, MetadataDirective="REPLACE", ContentType="c/d",
                       Metadata={"n": "2"}, TaggingDirective="REPLACE", Tagging="v=3")
        got = S3.head_object(Bucket=b, Key="c")
        assert got["ContentType"] == "c/d" and got["Metadata"] == {"n": "2"}
        assert S3.get_object_tagging(Bucket=b, Key="c")["TagSet"] == [{"Key": "v", "Value": "3"}]
        fails("InvalidRequest", 400, S3.copy_object, Bucket=a, Key="k", CopySource={"Bucket": a, "Key": "k"})
        S3.copy_object(Bucket=a, Key="k", CopySource={"Bucket": a, "Key": "k"}, MetadataDirective="REPLACE", Metadata={"z": "9"})
        assert S3.head_object(Bucket=a, Key="k")["Metadata"] == {"z": "9"} and body(a, "k") == x
        etag = S3.head_object(Bucket=a, Key="k")["ETag"]
        copy = lambda **c: S3.copy_object(Bucket=b, Key="d", CopySource={"Bucket": a, "Key": "k"}, **c)
        copy(CopySourceIfMatch=etag), copy(CopySourceIfNoneMatch='"x"')
        for c in (dict(CopySourceIfMatch='"x"'), dict(CopySourceIfNoneMatch=etag),
                  dict(CopySourceIfModifiedSince="Fri, 01 Jan 2100 00:00:00 GMT"),
                  dict(CopySourceIfUnmodifiedSince="Sat, 01 Jan 2000 00:00:00 GMT")):
            fails("PreconditionFailed", 412, S3.copy_object, Bucket=b, Key="d", CopySource={"Bucket": a, "Key": "k"}, **c)
        fails("NoSuchKey", 404, S3.copy_object, Bucket=b, Key="d", CopySource={"Bucket": a, "Key": "none"})
        fails("NoSuchBucket", 404, S3.copy_object, Bucket=b, Key="d", CopySource={"Bucket": "no-such-" + a, "Key": "k"})


def test_checksums():
    with bucket() as b:
        x = data(100_000)
        sums = {"CRC32": zlib.crc32(x).to_bytes(4, "big"), "SHA1": hashlib.sha1(x).digest(), "SHA256": hashlib.sha256(x).digest()}
        for name, digest in sums.items():
            text = base64.b64encode(digest).decode()
            put = S3.put_object(Bucket=b, Key=name, Body=x, ChecksumAlgorithm=name)
            assert put["Checksum" + name] == text and put["ChecksumType"] == "FULL_OBJECT"
            put = S3.put_object(Bucket=b, Key=name, Body=x, **{"Checksum" + name: text})
            head = S3.head_object(Bucket=b, Key=name, ChecksumMode="ENABLED")
            assert head["Checksum" + name] == text and "Checksum" + name not in S3.head_object(Bucket=b, Key=name)
            wrong = base64.b64encode(bytes([digest[0] ^ 1]) + digest[1:]).decode()
            fails("BadDigest", 400, S3.put_object, Bucket=b, Key="wrong", Body=x, **{"Checksum" + name: wrong})
            fails("InvalidRequest", 400, S3.put_object, Bucket=b, Key="wrong", Body=x, **{"Checksum" + name: "AAAA"})
        fails("BadDigest", 400, S3.put_object, Bucket=b, Key="wrong", Body=x, ContentMD5=base64.b64encode(b"x" * 16).decode())
        fails("InvalidDigest", 400, S3.put_object, Bucket=b, Key="wrong", Body=x, ContentMD5="AAAA")
        S3.put_object(Bucket=b, Key="md5", Body=x, ContentMD5=base64.b64encode(hashlib.md5(x).digest()).decode())
        fails("404", 404, S3.head_object, Bucket=b, Key="wrong")
        # Nothing was said: there is one all the same.
        plain = client(request_checksum_calculation="when_required")
        plain.put_object(Bucket=b, Key="plain", Body=x)
        assert "ChecksumCRC64NVME" in S3.head_object(Bucket=b, Key="plain", ChecksumMode="ENABLED")
        # A body whose length is not known beforehand comes in chunks, with the checksum behind it.
        class Stream(io.RawIOBase):
            left = 300_000
            def readable(self): return True
            def read(self, n=-1):
                n = self.left if n < 0 else min(n, self.left)
                self.left -= n
                return b"s" * n
        S3.upload_fileobj(Stream(), b, "stream")
        assert body(b, "stream") == b"s" * 300_000


def crc(polynomial, bits, x):
    """A reflected CRC, bit by bit where there is no library for it."""
    table = []
    for i in range(256):
        for _ in range(8):
            i = i >> 1 ^ (polynomial if i & 1 else 0)
        table.append(i)
    mask = sum = (1 << bits) - 1
    for byte in x:
        sum = table[(sum ^ byte) & 255] ^ sum >> 8
    return (sum ^ mask).to_bytes(bits // 8, "big")


def test_other_checksums():
    """Those for which botocore wants a library of its own."""
    assert crc(0x82F63B78, 32, b"123456789").hex() == "e3069283"
    assert crc(0x9A6C9329AC4BC9B5, 64, b"123456789").hex() == "ae8b14860a799888"
    with bucket() as b:
        x = [data(5 * MIB), data(70)]
        for name, made in (("CRC32C", lambda p: crc(0x82F63B78, 32, p)), ("CRC64NVME", lambda p: crc(0x9A6C9329AC4BC9B5, 64, p))):
            text = lambda p: base64.b64encode(made(p)).decode()
            small = x[1]
            put = S3.put_object(Bucket=b, Key="k", Body=small, **{"Checksum" + name: text(small)})
            assert put["Checksum" + name] == text(small)
            assert S3.head_object(Bucket=b, Key="k", ChecksumMode="ENABLED")["Checksum" + name] == text(small)
            fails("BadDigest", 400, S3.put_object, Bucket=b, Key="wrong", Body=small, **{"Checksum" + name: text(small + b"x")})
            fails("404", 404, S3.head_object, Bucket=b, Key="wrong")
            # Of parts: the whole's, which nobody has read.
            upload = S3.create_multipart_upload(Bucket=b, Key="k", ChecksumAlgorithm=name, ChecksumType="FULL_OBJECT")["UploadId"]
            parts = []
            for n, p in enumerate(x):
                got = S3.upload_part(Bucket=b, Key="k", UploadId=upload, PartNumber=n + 1, Body=p, **{"Checksum" + name: text(p)})
                parts.append({"PartNumber": n + 1, "ETag": got["ETag"], "Checksum" + name: text(p)})
            args = dict(Bucket=b, Key="k", UploadId=upload, MultipartUpload={"Parts": parts})
            fails("BadDigest", 400, S3.complete_multipart_upload, **args, **{"Checksum" + name: text(b"other")})
            end = S3.complete_multipart_upload(**args, **{"Checksum" + name: text(x[0] + x[1])})
            assert end["Checksum" + name] == text(x[0] + x[1]) and end["ChecksumType"] == "FULL_OBJECT"


def test_transfers():
    """What people use: boto3's transfer manager, in parts and several at once."""
    with bucket() as b:
        for n in (0, 4096, 12 * MIB, 64 * MIB):
            x = data(n)
            S3.upload_fileobj(io.BytesIO(x), b, "k")
            got = io.BytesIO()
            OTHER.download_fileobj(b, "k", got)
            assert got.getvalue() == x, n
            OTHER.copy({"Bucket": b, "Key": "k"}, b, "copy")
            assert body(b, "copy") == x, n
        assert not S3.list_multipart_uploads(Bucket=b).get("Uploads")


def test_tagging():
    with bucket() as b:
        tags = [{"Key": "a", "Value": "1"}, {"Key": "b c", "Value": "d/e=f"}]
        for n in (0, 10, 5 << 20):
            x = data(n)
            S3.put_object(Bucket=b, Key="k", Body=x, Tagging="x=y")
            before = S3.head_object(Bucket=b, Key="k")
            assert S3.get_object_tagging(Bucket=b, Key="k")["TagSet"] == [{"Key": "x", "Value": "y"}]
            S3.put_object_tagging(Bucket=b, Key="k", Tagging={"TagSet": tags})
            assert S3.get_object_tagging(Bucket=b, Key="k")["TagSet"] == tags
            after = S3.get_object(Bucket=b, Key="k")
            assert after["Body"].read() == x and after["ETag"] == before["ETag"] and after["LastModified"] == before["LastModified"]
            assert after["TagCount"] == 2
            S3.delete_object_tagging(Bucket=b, Key="k")
            assert S3.get_object_tagging(Bucket=b, Key="k")["TagSet"] == [] and body(b, "k") == x
        many = [{"Key": "k%d" % i, "Value": ""} for i in range(11)]
        fails("InvalidTag", 400, S3.put_object_tagging, Bucket=b, Key="k", Tagging={"TagSet": many})
        fails("InvalidTag", 400, S3.put_object_tagging, Bucket=b, Key="k", Tagging={"TagSet": [tags[0]] * 2})
        fails("NoSuchKey", 404, S3.get_object_tagging, Bucket=b, Key="none")
        fails("NoSuchTagSet", 404, S3.get_bucket_tagging, Bucket=b)
        S3.put_bucket_tagging(Bucket=b, Tagging={"TagSet": tags})
        assert S3.get_bucket_tagging(Bucket=b)["TagSet"] == tags
        S3.delete_bucket_tagging(Bucket=b)
        fails("NoSuchTagSet", 404, S3.get_bucket_tagging, Bucket=b)


# Listing

def test_what_is_remembered_makes_nothing_younger():
    """Tags do not make an object another one to those who compare lists."""
    with bucket() as b:
        def listed(k):
            return [(o["LastModified"], o["ETag"], o["Size"]) for o in S3.list_objects_v2(Bucket=b, Prefix=k)["Contents"]]
        for k, x in (("small", b"x"), ("large", data(MIB)), ("none", b"")):
            put, before = S3.put_object(Bucket=b, Key=k, Body=x), listed(k)
            # Until it would be seen.
            S3.put_object(Bucket=b, Key="clock", Body=b"")
            while listed("clock")[0][0] <= before[0][0]:
                S3.put_object(Bucket=b, Key="clock", Body=b"")
            S3.put_object_tagging(Bucket=b, Key=k, Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})
            assert listed(k) == before, (listed(k), before)
            S3.delete_object_tagging(Bucket=b, Key=k)
            assert listed(k) == before, (listed(k), before)
            got = S3.get_object(Bucket=b, Key=k)
            assert got["Body"].read() == x and got["ETag"] == put["ETag"]


def test_listing():
    with bucket() as b:
        keys = ["%s/%d" % (d, i) for d in ("a", "b", "b/c", "d") for i in range(7)] + ["top1", "top2", "b-x"]
        for k in keys:
            S3.put_object(Bucket=b, Key=k, Body=k.encode())
        everything = sorted(keys)

        def expected(prefix, delimiter):
            seen = []
            for k in everything:
                if k.startswith(prefix):
                    at = k.find(delimiter, len(prefix)) if delimiter else -1
                    item = (k[:at + len(delimiter)], True) if at >= 0 else (k, False)
                    if item not in seen:
                        seen.append(item)
            return seen

        for prefix in ("", "a", "a/", "b", "b/", "b/c/", "zzz"):
            for delimiter in ("", "/", "/c", "1"):
                for size in (1, 3, 1000):
                    for name in ("list_objects_v2", "list_objects", "list_object_versions"):
                        got = []
                        pages = S3.get_paginator(name).paginate(Bucket=b, Prefix=prefix, Delimiter=delimiter,
                                                                PaginationConfig={"PageSize": size})
                        for page in pages:
                            part = [(o["Key"], False) for o in page.get("Contents", page.get("Versions", []))]
                            part += [(p["Prefix"], True) for p in page.get("CommonPrefixes", [])]
                            assert len(part) <= size
                            got += sorted(part)
                        assert got == expected(prefix, delimiter), (name, prefix, delimiter, size, got)
        assert [o["Key"] for o in S3.list_objects_v2(Bucket=b, StartAfter="d/3")["Contents"]] == ["d/4", "d/5", "d/6", "top1", "top2"]
        assert [o["Key"] for o in S3.list_objects(Bucket=b, Marker="d/6")["Contents"]] == ["top1", "top2"]
        none = S3.list_objects_v2(Bucket=b, MaxKeys=0)
        assert none["KeyCount"] == 0 and not none["IsTruncated"]
        fails("InvalidArgument", 400, S3.list_objects_v2, Bucket=b, MaxKeys=-1)
        fails("InvalidArgument", 400, S3.list_objects_v2, Bucket=b, ContinuationToken="nonsense")
        fails("InvalidArgument", 400, S3.list_objects_v2, Bucket=b, EncodingType="base64")
        one = S3.list_objects_v2(Bucket=b, Prefix="top1", FetchOwner=True)["Contents"][0]
        assert one["Size"] == 4 and one["ETag"] == '"%s"' % hashlib.md5(b"top1").hexdigest() and one["Owner"]["ID"]


# Uploads in parts


def parts_of(b, k, parts, **args):
    upload = S3.create_multipart_upload(Bucket=b, Key=k, **args)["UploadId"]
    done = []
    for n, x in parts:
        got = S3.upload_part(Bucket=b, Key=k, UploadId=upload, PartNumber=n, Body=x)
        done.append({"PartNumber": n, "ETag": got["ETag"]})
    return upload, done


def test_multipart():
    with bucket() as b:
        x = [(1, data(5 * MIB)), (3, data(6 * MIB + 1)), (10000, data(100))]
        upload, done = parts_of(b, "k", x, ContentType="a/b", Metadata={"m": "1"}, Tagging="t=1")
        listed = S3.list_parts(Bucket=b, Key="k", UploadId=upload)
        assert [(p["PartNumber"], p["Size"]) for p in listed["Parts"]] == [(n, len(p)) for n, p in x]
        page = S3.list_parts(Bucket=b, Key="k", UploadId=upload, MaxParts=1, PartNumberMarker=1)
        assert [p["PartNumber"] for p in page["Parts"]] == [3] and page["IsTruncated"] and page["NextPartNumberMarker"] == 3
        assert [u["UploadId"] for u in S3.list_multipart_uploads(Bucket=b)["Uploads"]] == [upload]
        fails("NoSuchKey", 404, S3.get_object, Bucket=b, Key="k")
        end = S3.complete_multipart_upload(Bucket=b, Key="k", UploadId=upload, MultipartUpload={"Parts": done})
        etag = '"%s-3"' % hashlib.md5(b"".join(hashlib.md5(p).digest() for _, p in x)).hexdigest()
        whole = b"".join(p for _, p in x)
        assert end["ETag"] == etag, end
        got = S3.get_object(Bucket=b, Key="k")
        assert got["Body"].read() == whole and got["ETag"] == etag and got["ContentType"] == "a/b" and got["Metadata"] == {"m": "1"}
        for i, (_, p) in enumerate(x):
            part = S3.get_object(Bucket=b, Key="k", PartNumber=i + 1)
            assert part["Body"].read() == p and part["PartsCount"] == 3 and part["ResponseMetadata"]["HTTPStatusCode"] == 206
        fails("InvalidPartNumber", 416, S3.get_object, Bucket=b, Key="k", PartNumber=4)
        at = 5 * MIB - 10
        assert body(b, "k", Range="bytes=%d-%d" % (at, at + 6 * MIB + 50)) == whole[at:at + 6 * MIB + 51]
        assert not S3.list_multipart_uploads(Bucket=b).get("Uploads")
        # Asked again, it is answered as it was.
        again = S3.complete_multipart_upload(Bucket=b, Key="k", UploadId=upload, MultipartUpload={"Parts": done})
        assert again["ETag"] == etag
        fails("NoSuchUpload", 404, S3.upload_part, Bucket=b, Key="k", UploadId=upload, PartNumber=1, Body=b"")
        fails("NoSuchUpload", 404, S3.abort_multipart_upload, Bucket=b, Key="k", UploadId=upload)
        S3.put_object(Bucket=b, Key="k", Body=b"small")
        assert body(b, "k") == b"small"


def test_multipart_errors():
    with bucket() as b:
        upload, done = parts_of(b, "k", [(1, data(5 * MIB - 1)), (2, b"x")])
        complete = lambda parts, **a: dict(Bucket=b, Key="k", UploadId=upload, MultipartUpload={"Parts": parts}, **a)
        fails("EntityTooSmall", 400, S3.complete_multipart_upload, **complete(done))
        fails("InvalidPartOrder", 400, S3.complete_multipart_upload, **complete(done[::-1]))
        fails("InvalidPart", 400, S3.complete_multipart_upload, **complete([{"PartNumber": 1, "ETag": '"no"'}]))
        fails("InvalidPart", 400, S3.complete_multipart_upload, **complete([dict(done[0], PartNumber=7)]))
        fails("MalformedXML", 400, S3.complete_multipart_upload, **complete([]))
        for n in (0, 10001):
            fails("InvalidArgument", 400, S3.upload_part, Bucket=b, Key="k", UploadId=upload, PartNumber=n, Body=b"")
        fails("NoSuchUpload", 404, S3.upload_part, Bucket=b, Key="k", UploadId="no", PartNumber=1, Body=b"")
        fails("NoSuchUpload", 404, S3.list_parts, Bucket=b, Key="k", UploadId="0" * 32)
        S3.put_object(Bucket=b, Key="k", Body=b"there")
        fails("PreconditionFailed", 412, S3.complete_multipart_upload, **complete(done[:1], IfNoneMatch="*"))
        # It is still there to be completed.
        etag = S3.head_object(Bucket=b, Key="k")["ETag"]
        S3.complete_multipart_upload(**complete(done[:1], IfMatch=etag))
        assert S3.head_object(Bucket=b, Key="k")["ContentLength"] == 5 * MIB - 1
        upload, done = parts_of(b, "gone", [(1, b"x")])
        S3.abort_multipart_upload(Bucket=b, Key="gone", UploadId=upload)
        fails("NoSuchUpload", 404, S3.complete_multipart_upload, Bucket=b, Key="gone", UploadId=upload, MultipartUpload={"Parts": done})


def test_multipart_again():
    """A part that is uploaded again counts; one that is not named does not; an empty one is none."""
    with bucket() as b:
        first, second = data(5 * MIB), data(5 * MIB)
        upload, done = parts_of(b, "k", [(1, first), (1, second), (2, b""), (5, data(100))])
        fails("InvalidPart", 400, S3.complete_multipart_upload, Bucket=b, Key="k", UploadId=upload, MultipartUpload={"Parts": [done[0]]})
        assert len(S3.list_parts(Bucket=b, Key="k", UploadId=upload)["Parts"]) == 3
        S3.complete_multipart_upload(Bucket=b, Key="k", UploadId=upload, MultipartUpload={"Parts": done[1:3]})
        assert body(b, "k") == second
        upload, done = parts_of(b, "e", [(1, b"")])
        S3.complete_multipart_upload(Bucket=b, Key="e", UploadId=upload, MultipartUpload={"Parts": done})
        assert body(b, "e") == b"" and S3.head_object(Bucket=b, Key="e")["ETag"].endswith('-1"')


def test_multipart_racers():
    """Who completes what others complete at that moment is told that it is done, or to ask again: no part is said to be missing."""
    with bucket() as b, concurrent.futures.ThreadPoolExecutor(16) as pool:
        for n in range(15):
            upload, done = parts_of(b, "k", [(1, data(5 * MIB)), (2, b"%d" % n)])
            args = dict(Bucket=b, Key="k", UploadId=upload, MultipartUpload={"Parts": done})

            def complete(nth):
                time.sleep(RANDOM.random() * 0.03)
                try:
                    return (S3, OTHER)[nth % 2].complete_multipart_upload(**args)["ETag"]
                except ClientError as error:
                    assert error.response["Error"]["Code"] == "ServiceUnavailable", error

            told = set(pool.map(complete, range(16))) - {None}
            assert told == {S3.head_object(Bucket=b, Key="k")["ETag"]}, told
            assert told == {S3.complete_multipart_upload(**args)["ETag"]}


def test_multipart_copy():
    with bucket() as b:
        x = data(12 * MIB)
        S3.put_object(Bucket=b, Key="from", Body=x)
        upload = S3.create_multipart_upload(Bucket=b, Key="k")["UploadId"]
        done = []
        for n, (start, end) in enumerate([(0, 6 * MIB), (6 * MIB, 12 * MIB)]):
            got = S3.upload_part_copy(Bucket=b, Key="k", UploadId=upload, PartNumber=n + 1, CopySource={"Bucket": b, "Key": "from"},
                                      CopySourceRange="bytes=%d-%d" % (start, end - 1))
            done.append({"PartNumber": n + 1, "ETag": got["CopyPartResult"]["ETag"]})
        for bad in ("bytes=0-%d" % len(x), "bytes=5-1", "bytes=0-"):
            fails("InvalidArgument", 400, S3.upload_part_copy, Bucket=b, Key="k", UploadId=upload, PartNumber=9,
                  CopySource={"Bucket": b, "Key": "from"}, CopySourceRange=bad)
        S3.complete_multipart_upload(Bucket=b, Key="k", UploadId=upload, MultipartUpload={"Parts": done})
        assert body(b, "k") == x


def test_multipart_mixed_checksums():
    """An upload that named no checksum takes parts with any: a copy has that of what it was copied from."""
    with bucket() as b:
        x = data(5 * MIB)
        S3.put_object(Bucket=b, Key="from", Body=x, ChecksumAlgorithm="SHA256")
        upload = S3.create_multipart_upload(Bucket=b, Key="k")["UploadId"]
        copied = S3.upload_part_copy(Bucket=b, Key="k", UploadId=upload, PartNumber=1, CopySource={"Bucket": b, "Key": "from"})
        sent = S3.upload_part(Bucket=b, Key="k", UploadId=upload, PartNumber=2, Body=b"end", ChecksumAlgorithm="CRC32")
        done = [{"PartNumber": 1, "ETag": copied["CopyPartResult"]["ETag"]}, {"PartNumber": 2, "ETag": sent["ETag"]}]
        S3.complete_multipart_upload(Bucket=b, Key="k", UploadId=upload, MultipartUpload={"Parts": done})
        assert body(b, "k") == x + b"end" and body(b, "k", PartNumber=2) == b"end"


def test_multipart_checksums():
    with bucket() as b:
        x = [data(5 * MIB), data(5 * MIB), data(77)]
        for algorithm, kind in (("CRC32", "COMPOSITE"), ("CRC32", "FULL_OBJECT"), ("SHA256", "COMPOSITE"), ("SHA1", "COMPOSITE"),
                                (None, None)):
            args = {k: v for k, v in (("ChecksumAlgorithm", algorithm), ("ChecksumType", kind)) if v}
            upload = S3.create_multipart_upload(Bucket=b, Key="k", **args)["UploadId"]
            done = []
            for n, p in enumerate(x):
                c = {"ChecksumAlgorithm": algorithm} if algorithm else {}
                got = S3.upload_part(Bucket=b, Key="k", UploadId=upload, PartNumber=n + 1, Body=p, **c)
                part = {"PartNumber": n + 1, "ETag": got["ETag"]}
                if algorithm:
                    part["Checksum" + algorithm] = got["Checksum" + algorithm]
                done.append(part)
            end = S3.complete_multipart_upload(Bucket=b, Key="k", UploadId=upload, MultipartUpload={"Parts": done})
            head = S3.head_object(Bucket=b, Key="k", ChecksumMode="ENABLED")
            b64 = lambda d: base64.b64encode(d).decode()
            if (algorithm, kind) == ("CRC32", "FULL_OBJECT"):
                assert head["ChecksumCRC32"] == b64(zlib.crc32(b"".join(x)).to_bytes(4, "big")), head
            elif algorithm == "CRC32":
                crcs = b"".join(zlib.crc32(p).to_bytes(4, "big") for p in x)
                assert head["ChecksumCRC32"] == b64(zlib.crc32(crcs).to_bytes(4, "big")) + "-3", head
            elif algorithm:
                h = getattr(hashlib, algorithm.lower())
                assert head["Checksum" + algorithm] == b64(h(b"".join(h(p).digest() for p in x)).digest()) + "-3", head
            assert head["ChecksumType"] == (kind or head["ChecksumType"]) and end["ChecksumType"] == head["ChecksumType"]
        fails("InvalidRequest", 400, S3.create_multipart_upload, Bucket=b, Key="k", ChecksumAlgorithm="SHA256", ChecksumType="FULL_OBJECT")
        fails("InvalidRequest", 400, S3.create_multipart_upload, Bucket=b, Key="k", ChecksumAlgorithm="CRC64NVME", ChecksumType="COMPOSITE")
        upload = S3.create_multipart_upload(Bucket=b, Key="k", ChecksumAlgorithm="SHA256")["UploadId"]
        fails("InvalidRequest", 400, S3.upload_part, Bucket=b, Key="k", UploadId=upload, PartNumber=1, Body=b"x", ChecksumAlgorithm="CRC32")


def test_list_uploads():
    with bucket() as b:
        keys = ["a", "a/1", "a/2", "b", "x" * 1000, "x" * 1000 + "y"]
        ids = {}
        for k in keys + ["b"]:
            ids.setdefault(k, []).append(S3.create_multipart_upload(Bucket=b, Key=k)["UploadId"])
        everything = [(k, i) for k in sorted(keys) for i in sorted(ids[k])]
        for size in (1, 2, 1000):
            got = []
            for page in S3.get_paginator("list_multipart_uploads").paginate(Bucket=b, PaginationConfig={"PageSize": size}):
                got += [(u["Key"], u["UploadId"]) for u in page.get("Uploads", [])]
            assert sorted(got) == everything and [k for k, _ in got][:5] == ["a", "a/1", "a/2", "b", "b"], (size, got)
        rolled = S3.list_multipart_uploads(Bucket=b, Delimiter="/")
        assert [p["Prefix"] for p in rolled["CommonPrefixes"]] == ["a/"] and len(rolled["Uploads"]) == 5
        only = S3.list_multipart_uploads(Bucket=b, Prefix="a/")
        assert [u["Key"] for u in only["Uploads"]] == ["a/1", "a/2"]
        # What rolls up is told once, however many there are, and what is behind it is not lost: by keys that are long, too.
        long = "y" * 900
        for k in ["d/%d" % n for n in range(40)] + ["d0", "e/1", long + "/1", long + "/2", "z"]:
            S3.create_multipart_upload(Bucket=b, Key=k)
        for size in (1, 2, 3, 1000):
            keys, prefixes = [], []
            for page in S3.get_paginator("list_multipart_uploads").paginate(Bucket=b, Delimiter="/", PaginationConfig={"PageSize": size}):
                keys += [u["Key"] for u in page.get("Uploads", [])]
                prefixes += [p["Prefix"] for p in page.get("CommonPrefixes", [])]
            assert keys[:4] == ["a", "b", "b", "d0"] and keys[-1] == "z" and len(keys) == 7, (size, keys)
            assert prefixes == ["a/", "d/", "e/", long + "/"], (size, prefixes)
        # A bucket goes with the uploads that nobody has completed.


# Who may

def test_signatures():
    with bucket() as b:
        S3.put_object(Bucket=b, Key="k", Body=b"x")
        who = boto3.Session().get_credentials()
        fails("SignatureDoesNotMatch", 403, client(who.access_key, "wrong").get_object, Bucket=b, Key="k")
        fails("InvalidAccessKeyId", 403, client("NOSUCHKEY", "x").get_object, Bucket=b, Key="k")
        status, _, text = http("GET", "%s/%s/k" % (ENDPOINT, b))
        assert status == 403 and b"<Code>AccessDenied</Code>" in text
        region = boto3.client("s3", endpoint_url=ENDPOINT, region_name="mars-north-1", config=Config(s3={"addressing_style": "path"}))
        try:
            region.list_objects_v2(Bucket=b)
        except ClientError as e:
            assert e.response["Error"]["Code"] == "AuthorizationHeaderMalformed" and e.response["Error"]["Region"] == REGION


def test_signature_version_2():
    old = client(signature_version="s3")
    with bucket(old) as b:
        old.put_object(Bucket=b, Key="k", Body=b"x")
        assert body(b, "k", old) == b"x" and old.list_objects(Bucket=b)["Contents"][0]["Key"] == "k"
        who = boto3.Session().get_credentials()
        fails("SignatureDoesNotMatch", 403, client(who.access_key, "wrong", signature_version="s3").list_objects, Bucket=b)


def test_dates_of_signatures():
    """A signature may be dated by Date, as mails have it."""
    with bucket() as b:
        s3 = client()
        s3.meta.events.register("before-call.s3.PutObject", lambda params, **_: params["headers"].update(Date="x"))
        s3.put_object(Bucket=b, Key="k", Body=b"x")
        assert body(b, "k") == b"x"


def test_presigned():
    with bucket() as b:
        for version in ("s3v4", "s3"):
            s3 = client(signature_version=version)
            url = s3.generate_presigned_url("put_object", Params={"Bucket": b, "Key": "a b/ä"}, ExpiresIn=60)
            assert http("PUT", url, data=b"presigned")[0] == 200
            url = s3.generate_presigned_url("get_object", Params={"Bucket": b, "Key": "a b/ä"}, ExpiresIn=60)
            assert http("GET", url)[2] == b"presigned"
            assert http("GET", url + "x")[0] == 403 and http("DELETE", url)[0] == 403
            url = s3.generate_presigned_url("get_object", Params={"Bucket": b, "Key": "a b/ä", "ResponseContentType": "x/y"}, ExpiresIn=60)
            assert http("GET", url)[1]["content-type"] == "x/y"
            url = s3.generate_presigned_url("get_object", Params={"Bucket": b, "Key": "a b/ä"}, ExpiresIn=1)
            time.sleep(2.1)
            status, _, text = http("GET", url)
            assert status == 403 and b"expired" in text, text
        # A time that is none is told from one that is over.
        s3, params = client(signature_version="s3v4"), {"Bucket": b, "Key": "k"}
        url = s3.generate_presigned_url("put_object", Params=params, ExpiresIn=-1)
        status, _, text = http("PUT", url, data=b"x")
        assert status == 400 and b"AuthorizationQueryParametersError" in text and b"non-negative" in text, text


def form(fields, file, name="f.txt", boundary="a-boundary"):
    """A form as browsers send it: its type and its bytes."""
    text = b"".join(b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
                    % (boundary.encode(), n.encode(), v.encode()) for n, v in fields.items())
    head = b'--%s\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\nContent-Type: a/b\r\n\r\n'
    text += head % (boundary.encode(), name.encode()) + file + b"\r\n--%s--\r\n" % boundary.encode()
    return {"Content-Type": "multipart/form-data; boundary=" + boundary}, text


def test_forms():
    with bucket() as b:
        def post(key, file, conditions=(), more={}, s3=S3, **args):
            """Sends a form that was signed with these conditions, and more fields than that."""
            signed = {k: v for k, v in more.items() if not k.startswith("x-unsigned-")}
            given = s3.generate_presigned_post(b, key, Fields=dict(signed), Conditions=[{k: v} for k, v in signed.items()] + list(conditions),
                                               ExpiresIn=args.pop("ExpiresIn", 60))
            fields = dict(given["fields"])
            fields.update({k[11:]: v for k, v in more.items() if k.startswith("x-unsigned-")})
            return http("POST", given["url"], *form(fields, file, **args))

        for n in (0, 1, 4096, 5 * MIB + 3):
            x = data(n)
            status, head, text = post("k%d" % n, x)
            assert status == 204 and not text, (status, text)
            assert head["etag"] == '"%s"' % hashlib.md5(x).hexdigest() and body(b, "k%d" % n) == x
        # What looks like its end is not.
        x = b"\r\n--a-boundar\r\n--a-bound\r\r\n" * 3000
        assert post("k", x)[0] == 204 and body(b, "k") == x
        more = {"acl": "private", "Content-Type": "a/b", "x-amz-meta-m": "1", "Cache-Control": "no-cache", "success_action_status": "201"}
        status, head, text = post("up/${filename}", b"x", more=more, name="C:\\dir\\a b.txt")
        assert status == 201 and b"<Key>up/a b.txt</Key>" in text and head["location"].endswith("/up/a%20b.txt"), (status, head, text)
        got = S3.head_object(Bucket=b, Key="up/a b.txt")
        assert (got["ContentType"], got["Metadata"], got["CacheControl"]) == ("a/b", {"m": "1"}, "no-cache")
        to = "http://elsewhere.example/done?a=b"
        status, head, _ = post("k", b"x", more={"success_action_redirect": to})
        assert status == 303 and head["location"].startswith(to + "&bucket=%s&key=k&etag=%%22" % b), (status, head)
        tags = "<Tagging><TagSet><Tag><Key>t</Key><Value>1</Value></Tag></TagSet></Tagging>"
        assert post("k", b"x", more={"tagging": tags})[0] == 204
        assert S3.get_object_tagging(Bucket=b, Key="k")["TagSet"] == [{"Key": "t", "Value": "1"}]
        assert post("k", b"old", s3=client(signature_version="s3"))[0] == 204 and body(b, "k") == b"old"

        def refused(code, status, *args, **named):
            got = post(*args, **named)
            assert got[0] == status and b"<Code>%s</Code>" % code.encode() in got[2], (code, got)
            assert body(b, "k") == b"old"
        refused("EntityTooLarge", 400, "k", b"1234", [["content-length-range", 0, 3]])
        refused("EntityTooSmall", 400, "k", b"1234", [["content-length-range", 5, 9]])
        refused("EntityTooLarge", 400, "k", data(3 * MIB), [["content-length-range", 0, MIB]])
        refused("AccessDenied", 403, "k", b"1", more={"x-unsigned-x-amz-meta-a": "1"})
        refused("AccessDenied", 403, "k", b"1", [{"acl": "private"}])
        refused("AccessDenied", 403, "k", b"1", more={"x-unsigned-key": "other"})
        refused("AccessDenied", 403, "k", b"1", ExpiresIn=-1)
        refused("SignatureDoesNotMatch", 403, "k", b"1", more={"x-unsigned-x-amz-signature": "0" * 64})
        refused("InvalidAccessKeyId", 403, "k", b"1", s3=client("NOSUCHKEY", "x"))
        refused("SignatureDoesNotMatch", 403, "k", b"1", s3=client(boto3.Session().get_credentials().access_key, "wrong"))
        refused("BadDigest", 400, "k", b"1", more={"x-unsigned-x-amz-checksum-crc32": "AAAAAA=="})
        refused("NotImplemented", 501, "k", b"1", more={"x-amz-server-side-encryption": "aws:kms"})
        refused("NotImplemented", 501, "k", b"1", more={"x-amz-website-redirect-location": "/x"})
        refused("KeyTooLongError", 400, "k" * 1025, b"1")
        refused("MaxPostPreDataLengthExceededError", 400, "k", b"1", more={"x-ignore-a": "x" * (21 << 10)})
        url = "%s/%s" % (ENDPOINT, b)
        for fields, status, code in (({"key": "k"}, 403, b"AccessDenied"), ({"a": "k"}, 400, b"InvalidArgument"),
                                     ({"key": "k", "policy": "e30="}, 400, b"InvalidArgument")):
            got = http("POST", url, *form(fields, b"1"))
            assert got[0] == status and b"<Code>%s</Code>" % code in got[2], got
        given = S3.generate_presigned_post(b, "k")
        headers, text = form(given["fields"], b"1")
        # A file that no boundary ends is none, nor is a form without a file.
        for cut in (text[:-8], text[:-18], text[:-22], text[:200]):
            got = http("POST", url, headers, cut)
            assert got[0] == 400 and b"<Code>MalformedPOSTRequest</Code>" in got[2], (cut, got)
        assert http("POST", url, {"Content-Type": "text/plain"}, text)[0] == 412
        assert http("POST", url, headers, b"nothing of a form")[0] == 400
        assert body(b, "k") == b"old"
        if "ALT_KEY" in os.environ:
            alt = client(os.environ["ALT_KEY"], os.environ["ALT_SECRET"])
            refused("AccessDenied", 403, "k", b"1", s3=alt)
            may = {"Effect": "Allow", "Principal": "*", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::%s/k*" % b}
            S3.put_bucket_policy(Bucket=b, Policy=json.dumps({"Version": "2012-10-17", "Statement": [may]}))
            assert post("k", b"alt", s3=alt)[0] == 204 and body(b, "k") == b"alt"
            assert http("POST", url, *form({"key": "k2"}, b"anybody"))[0] == 204 and body(b, "k2") == b"anybody"
            assert http("POST", url, *form({"key": "l"}, b"anybody"))[0] == 403
            assert http("POST", url, *form({"key": "k3", "tagging": tags}, b"1"))[0] == 403


def test_policies():
    if "ALT_KEY" not in os.environ:
        return "skipped: no second user"
    alt = client(os.environ["ALT_KEY"], os.environ["ALT_SECRET"])
    with bucket() as b:
        S3.put_object(Bucket=b, Key="public/k", Body=b"x")
        S3.put_object(Bucket=b, Key="private/k", Body=b"x")
        for call in (dict(Key="public/k"), dict(Key="none")):
            fails("AccessDenied", 403, alt.get_object, Bucket=b, **call)
        # Who may list what begins with a key may know that it is not there.
        lists = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::" + b,
                 "Condition": {"StringLike": {"s3:prefix": "public/*"}}}
        reads = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "s3:GetObject", "Resource": "arn:aws:s3:::*"}
        S3.put_bucket_policy(Bucket=b, Policy=json.dumps({"Version": "2012-10-17", "Statement": [lists, reads]}))
        fails("404", 404, alt.head_object, Bucket=b, Key="public/none")
        fails("403", 403, alt.head_object, Bucket=b, Key="private/none")
        S3.delete_bucket_policy(Bucket=b)
        fails("AccessDenied", 403, alt.list_objects_v2, Bucket=b)
        fails("AccessDenied", 403, alt.put_object, Bucket=b, Key="k", Body=b"")
        fails("AccessDenied", 403, alt.delete_bucket, Bucket=b)
        fails("AccessDenied", 403, alt.get_bucket_policy, Bucket=b)
        fails("BucketAlreadyExists", 409, alt.create_bucket, Bucket=b)
        assert b not in [x["Name"] for x in alt.list_buckets()["Buckets"]]
        fails("NoSuchBucketPolicy", 404, S3.get_bucket_policy, Bucket=b)
        policy = {"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::%s/*" % b},
            {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::%s/private/*" % b},
            {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::" + b,
             "Condition": {"StringLike": {"s3:prefix": "public/*"}}}]}
        S3.put_bucket_policy(Bucket=b, Policy=json.dumps(policy))
        assert json.loads(S3.get_bucket_policy(Bucket=b)["Policy"]) == policy
        assert S3.get_bucket_policy_status(Bucket=b)["PolicyStatus"]["IsPublic"]
        assert body(b, "public/k", alt) == b"x" and http("GET", "%s/%s/public/k" % (ENDPOINT, b))[2] == b"x"
        fails("AccessDenied", 403, S3.get_object, Bucket=b, Key="private/k")
        fails("AccessDenied", 403, alt.get_object, Bucket=b, Key="private/k")
        fails("AccessDenied", 403, alt.list_objects_v2, Bucket=b)
        assert len(alt.list_objects_v2(Bucket=b, Prefix="public/")["Contents"]) == 1
        fails("AccessDenied", 403, alt.get_object, Bucket=b, Key="none")
        fails("MalformedPolicy", 400, S3.put_bucket_policy, Bucket=b, Policy='{"Statement": []}')
        S3.put_public_access_block(Bucket=b, PublicAccessBlockConfiguration={"RestrictPublicBuckets": True, "BlockPublicPolicy": True})
        fails("AccessDenied", 403, alt.get_object, Bucket=b, Key="public/k")
        fails("AccessDenied", 403, S3.put_bucket_policy, Bucket=b, Policy=json.dumps(policy))
        S3.delete_public_access_block(Bucket=b)
        S3.delete_bucket_policy(Bucket=b)
        fails("AccessDenied", 403, alt.get_object, Bucket=b, Key="public/k")


def test_conditions_of_removals():
    """Who removes by an ETag has to be one who may read it: by what is answered it could be guessed."""
    if "ALT_KEY" not in os.environ:
        return "skipped: no second user"
    alt = client(os.environ["ALT_KEY"], os.environ["ALT_SECRET"])
    with bucket() as b:
        def allow(*actions):
            statement = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": list(actions), "Resource": "arn:aws:s3:::%s/*" % b}
            S3.put_bucket_policy(Bucket=b, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))

        def many(etag):
            done = alt.delete_objects(Bucket=b, Delete={"Objects": [dict({"Key": "k"}, **({"ETag": etag} if etag else {}))]})
            return [e["Code"] for e in done.get("Errors", [])]

        etag = S3.put_object(Bucket=b, Key="k", Body=b"x")["ETag"]
        allow("s3:DeleteObject", "s3:DeleteObjectVersion")
        for named in (etag, '"no"'):
            fails("AccessDenied", 403, alt.delete_object, Bucket=b, Key="k", IfMatch=named)
            fails("AccessDenied", 403, alt.delete_object, Bucket=b, Key="none", IfMatch=named)
            assert many(named) == ["AccessDenied"]
        # Of one that is named by its version another right is asked for.
        allow("s3:DeleteObject", "s3:DeleteObjectVersion", "s3:GetObject")
        fails("AccessDenied", 403, alt.delete_object, Bucket=b, Key="k", VersionId="null", IfMatch=etag)
        fails("PreconditionFailed", 412, alt.delete_object, Bucket=b, Key="k", IfMatch='"no"')
        assert many('"no"') == ["PreconditionFailed"] and body(b, "k") == b"x"
        alt.delete_object(Bucket=b, Key="k", IfMatch=etag)
        S3.put_object(Bucket=b, Key="k", Body=b"x")
        assert many(etag) == []
        allow("s3:DeleteObject", "s3:DeleteObjectVersion", "s3:GetObjectVersion")
        S3.put_object(Bucket=b, Key="k", Body=b"x")
        fails("AccessDenied", 403, alt.delete_object, Bucket=b, Key="k", IfMatch=etag)
        alt.delete_object(Bucket=b, Key="k", VersionId="null", IfMatch=etag)
        # Whether there is one at all is told by no removal but that one.
        allow("s3:DeleteObject")
        S3.put_object(Bucket=b, Key="k", Body=b"x")
        alt.delete_object(Bucket=b, Key="k", IfMatch="*")
        S3.put_object(Bucket=b, Key="k", Body=b"x")
        assert many(None) == []


def test_configurations():
    with bucket() as b:
        for call, code in ((S3.get_bucket_cors, "NoSuchCORSConfiguration"), (S3.get_bucket_website, "NoSuchWebsiteConfiguration"),
                           (S3.get_bucket_ownership_controls, "OwnershipControlsNotFoundError"),
                           (S3.get_public_access_block, "NoSuchPublicAccessBlockConfiguration"),
                           (S3.get_bucket_lifecycle_configuration, "NoSuchLifecycleConfiguration"),
                           (S3.get_object_lock_configuration, "ObjectLockConfigurationNotFoundError"),
                           (S3.get_bucket_replication, "ReplicationConfigurationNotFoundError"),
                           (S3.get_bucket_encryption, "ServerSideEncryptionConfigurationNotFoundError")):
            fails(code, 404, call, Bucket=b)
        assert "Status" not in S3.get_bucket_versioning(Bucket=b)
        assert S3.get_bucket_request_payment(Bucket=b)["Payer"] == "BucketOwner"
        assert S3.get_bucket_acl(Bucket=b)["Grants"][0]["Permission"] == "FULL_CONTROL"
        rules = [{"ID": "r", "AllowedOrigins": ["https://*.a.example"], "AllowedMethods": ["GET", "PUT"], "AllowedHeaders": ["x-*"],
                  "ExposeHeaders": ["ETag"], "MaxAgeSeconds": 60}]
        S3.put_bucket_cors(Bucket=b, CORSConfiguration={"CORSRules": rules})
        assert S3.get_bucket_cors(Bucket=b)["CORSRules"] == rules
        url = "%s/%s/k" % (ENDPOINT, b)
        ask = {"Origin": "https://w.a.example", "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "X-A"}
        status, head, _ = http("OPTIONS", url, ask)
        assert status == 200 and head["access-control-allow-origin"] == "https://w.a.example", (status, head)
        assert head["access-control-allow-headers"] == "x-a" and head["access-control-max-age"] == "60"
        assert http("OPTIONS", url, dict(ask, Origin="https://b.example"))[0] == 403
        head = http("GET", url, {"Origin": "https://w.a.example"})[1]
        assert head["access-control-expose-headers"] == "ETag"
        S3.delete_bucket_cors(Bucket=b)
        fails("NoSuchCORSConfiguration", 404, S3.get_bucket_cors, Bucket=b)
        S3.put_bucket_ownership_controls(Bucket=b, OwnershipControls={"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]})
        assert S3.get_bucket_ownership_controls(Bucket=b)["OwnershipControls"]["Rules"][0]["ObjectOwnership"] == "BucketOwnerEnforced"
        # Who has said that there are no ACLs is sent none, but what says so.
        k = {"Bucket": b, "Key": "k"}
        S3.put_object(ACL="bucket-owner-full-control", **k)
        copy = lambda **a: S3.copy_object(CopySource=b + "/k", MetadataDirective="REPLACE", **a)
        for call in (S3.put_object, S3.create_multipart_upload, S3.put_object_acl, copy):
            fails("AccessControlListNotSupported", 400, call, ACL="private", **k)
        fails("AccessControlListNotSupported", 400, S3.put_bucket_acl, Bucket=b, ACL="private")
        given = S3.generate_presigned_post(b, "k", Fields={"acl": "private"}, Conditions=[{"acl": "private"}])
        status, _, text = http("POST", given["url"], *form(given["fields"], b"x"))
        assert status == 400 and b"AccessControlListNotSupported" in text, (status, text)
        S3.delete_bucket_ownership_controls(Bucket=b)
        S3.put_object(ACL="private", **k)


def test_lifecycle():
    with bucket() as b:
        put = lambda rules: S3.put_bucket_lifecycle_configuration(Bucket=b, LifecycleConfiguration={"Rules": rules})
        rule = lambda id, **more: dict({"ID": id, "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}, **more)
        tags = [{"Key": "t", "Value": "1"}, {"Key": "u", "Value": "2"}]
        rules = [rule("a", Filter={"Prefix": "a/"}), rule("b", Filter={"Tag": tags[0]}, Status="Disabled"),
                 rule("c", Filter={"And": {"Prefix": "c", "Tags": tags, "ObjectSizeGreaterThan": 5}}),
                 rule("d", Filter={"ObjectSizeLessThan": 7}), {"ID": "e", "Status": "Enabled", "Prefix": "e", "Expiration": {"Days": 5}},
                 rule("f", AbortIncompleteMultipartUpload={"DaysAfterInitiation": 3}),
                 rule("g", NoncurrentVersionExpiration={"NoncurrentDays": 2, "NewerNoncurrentVersions": 3}),
                 rule("h", Expiration={"ExpiredObjectDeleteMarker": True}, NoncurrentVersionExpiration={"NoncurrentDays": 1})]
        put(rules)
        assert S3.get_bucket_lifecycle_configuration(Bucket=b)["Rules"] == rules
        put([{k: v for k, v in rule("x").items() if k != "ID"}])
        assert S3.get_bucket_lifecycle_configuration(Bucket=b)["Rules"][0]["ID"]
        for code, status, bad in (
                ("InvalidArgument", 400, [rule("a"), rule("a")]), ("InvalidArgument", 400, [rule("a" * 256)]),
                ("InvalidArgument", 400, [rule("a", Expiration={"Days": 0})]), ("MalformedXML", 400, [rule("a", Status="enabled")]),
                ("InvalidRequest", 400, [rule("a", Filter={"Tag": tags[0]}, AbortIncompleteMultipartUpload={"DaysAfterInitiation": 1})]),
                ("MalformedXML", 400, [rule("a", Expiration={"Days": 1, "Date": "2020-01-01"})]),
                ("InvalidArgument", 400, [rule("a", Expiration={"Date": "2020-01-01T01:00:00Z"})]),
                ("NotImplemented", 501, [rule("a", Transitions=[{"Days": 1, "StorageClass": "GLACIER"}])]),
                ("NotImplemented", 501, [rule("a", NoncurrentVersionTransitions=[{"NoncurrentDays": 1, "StorageClass": "GLACIER"}])]),
                ("InvalidArgument", 400, [rule("a", NoncurrentVersionExpiration={"NoncurrentDays": 1, "NewerNoncurrentVersions": 101})])):
            fails(code, status, put, rules=bad)
        assert len(S3.get_bucket_lifecycle_configuration(Bucket=b)["Rules"]) == 1
        S3.delete_bucket_lifecycle(Bucket=b)
        fails("NoSuchLifecycleConfiguration", 404, S3.get_bucket_lifecycle_configuration, Bucket=b)
        # Those that have ended go soon (Amazon takes its time), and no others.
        for k, more in (("old/a", {}), ("old/tagged", {"Tagging": "t=1"}), ("old/large", {"Body": b"123456"}), ("new/a", {})):
            S3.put_object(Bucket=b, Key=k, **more)
        past = {"Date": "2020-01-01T00:00:00Z"}
        put([rule("gone", Filter={"And": {"Prefix": "old/", "Tags": tags[:1]}}, Expiration=past), rule("later", Expiration={"Days": 9}),
             rule("large", Filter={"And": {"Prefix": "old/", "ObjectSizeGreaterThan": 5}}, Expiration=past)])
        said = S3.put_object(Bucket=b, Key="new/b")["Expiration"]
        assert 'rule-id="later"' in said and S3.head_object(Bucket=b, Key="new/b")["Expiration"] == said, said
        keys = lambda: [o["Key"] for o in S3.list_objects_v2(Bucket=b)["Contents"]]
        until = time.time() + 90
        while keys() != ["new/a", "new/b", "old/a"]:
            assert time.time() < until, keys()
            time.sleep(0.1)


def test_what_is_not_there_is_not_done():
    """Nothing is touched by a request that is not understood."""
    with bucket() as b:
        S3.put_object(Bucket=b, Key="k", Body=b"stays")
        fails("NotImplemented", 501, S3.put_object, Bucket=b, Key="k", Body=b"no", ServerSideEncryption="aws:kms")
        fails("NotImplemented", 501, S3.put_object, Bucket=b, Key="k", Body=b"no", WebsiteRedirectLocation="/x")
        # A bucket without locks takes none.
        fails("InvalidRequest", 400, S3.put_object, Bucket=b, Key="k", Body=b"no", ObjectLockLegalHoldStatus="ON")
        fails("InvalidRequest", 400, S3.put_object_retention, Bucket=b, Key="k", Retention={"Mode": "GOVERNANCE"})
        fails("InvalidRequest", 400, S3.put_object_legal_hold, Bucket=b, Key="k", LegalHold={"Status": "ON"})
        fails("NotImplemented", 501, S3.get_object_torrent, Bucket=b, Key="k")
        fails("NotImplemented", 501, S3.restore_object, Bucket=b, Key="k", RestoreRequest={"Days": 1})
        fails("NotImplemented", 501, S3.put_bucket_website, Bucket=b, WebsiteConfiguration={"IndexDocument": {"Suffix": "i"}})
        sign = lambda query: S3.generate_presigned_url("put_object", Params={"Bucket": b, "Key": "k"})
        for query in ("annotation", "renameObject", "append", "encryption"):
            def add(request, query=query, **_):
                request.url += ("&" if "?" in request.url else "?") + query
            s3 = client()
            s3.meta.events.register("before-sign.s3.PutObject", add)
            fails("NotImplemented", 501, s3.put_object, Bucket=b, Key="k", Body=b"no")
        assert body(b, "k") == b"stays"


def main(names):
    only = sys.argv[2:]
    checks = [(n[5:], f) for n, f in names.items() if n.startswith("test_") and (not only or any(o in n for o in only))]
    failed = []
    print("seed %d" % SEED, flush=True)
    for name, check in checks:
        began = time.time()
        try:
            said = check() or "ok"
        except Exception:
            said = "FAILED"
            failed.append(name)
            traceback.print_exc()
        print("%-28s %s (%.1f s)" % (name, said, time.time() - began), flush=True)
    print("%d checks, %d failed %s" % (len(checks), len(failed), " ".join(failed)))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main(globals())
