#!/usr/bin/env python3
"""Asks an S3 endpoint, through boto3, whether objects get other keys as they do in Amazon's directory buckets.

    rename.py ENDPOINT            with credentials from the environment, as boto3 takes them
    rename.py ENDPOINT NAME...    only the checks whose names contain one of these

ALT_KEY and ALT_SECRET, if set, are a second user's. ENDPOINT2, if set, is another way in to the same buckets. ASHLAR, if
set, is the command, to which ASHLAR_CLUSTER names the rig behind the endpoint: a partition of it is split. Each check
makes a bucket of its own and removes it.
"""
import concurrent.futures, datetime, json, os, subprocess, threading, time, urllib.parse, uuid

from botocore.exceptions import ClientError

from check import MIB, OTHER, S3, body, bucket, client, data, fails, main

SIZES = (0, 10, 20_000, 70_000, 9 * MIB)


def rename(b, source, key, s3=S3, **args):
    # A key that begins with a slash is told from a bucket and a key by that.
    source = urllib.parse.quote(source, safe="" if source.startswith("/") else "/")
    return s3.rename_object(Bucket=b, Key=key, RenameSource=source, **args)


def keys(b, s3=S3, **args):
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=b, **args)
    return [o["Key"] for page in pages for o in page.get("Contents", [])]


def is_only_at(b, k, whole):
    for s3 in (S3, OTHER):
        assert keys(b, s3) == [k], (keys(b, s3), k)
        assert body(b, k, s3) == whole


def test_an_object_moves_and_stays_what_it_is():
    with bucket() as b:
        for size in SIZES:
            whole = data(size)
            S3.put_object(Bucket=b, Key="a", Body=whole, ContentType="text/x", Metadata={"m": "1"}, Tagging="t=1",
                          ChecksumAlgorithm="SHA256")
            before = S3.head_object(Bucket=b, Key="a", ChecksumMode="ENABLED")
            for source, key in (("a", "dir/b c+ä%"), ("dir/b c+ä%", "/c//"), ("/c//", "a")):
                # Both know it where it was.
                assert body(b, source) == body(b, source, OTHER) == whole
                rename(b, source, key, s3=OTHER)
                is_only_at(b, key, whole)
                for s3 in (S3, OTHER):
                    fails("NoSuchKey", 404, s3.get_object, Bucket=b, Key=source)
                after = S3.head_object(Bucket=b, Key=key, ChecksumMode="ENABLED")
                for said in ("ETag", "LastModified", "ContentType", "Metadata", "ContentLength", "ChecksumSHA256"):
                    assert after[said] == before[said], (said, before[said], after[said])
            assert S3.get_object_tagging(Bucket=b, Key="a")["TagSet"] == [{"Key": "t", "Value": "1"}]
            listed = S3.list_objects_v2(Bucket=b)["Contents"]
            assert [(o["Key"], o["ETag"], o["Size"]) for o in listed] == [("a", before["ETag"], size)], listed


def test_it_takes_the_place_of_what_is_there():
    with bucket() as b:
        for size in SIZES:
            for other in SIZES:
                whole = data(size)
                S3.put_object(Bucket=b, Key="old", Body=whole)
                S3.put_object(Bucket=b, Key="new", Body=data(other))
                assert body(b, "new", OTHER) != b"?"
                rename(b, "old", "new")
                is_only_at(b, "new", whole)
        # What comes where it was is another object, and what it was given is its own.
        S3.put_object(Bucket=b, Key="old", Body=b"another")
        S3.delete_object(Bucket=b, Key="new")
        is_only_at(b, "old", b"another")


def test_objects_of_parts_move():
    with bucket() as b:
        upload = S3.create_multipart_upload(Bucket=b, Key="old")["UploadId"]
        whole, parts = b"", []
        for number, length in ((1, 5 * MIB), (2, 5 * MIB + 1), (3, 7)):
            x = data(length)
            name = {"Bucket": b, "Key": "old", "UploadId": upload, "PartNumber": number}
            parts.append({"PartNumber": number, "ETag": S3.upload_part(Body=x, **name)["ETag"]})
            whole += x
        done = {"Bucket": b, "Key": "old", "UploadId": upload, "MultipartUpload": {"Parts": parts}}
        etag = S3.complete_multipart_upload(**done)["ETag"]
        rename(b, "old", "new")
        is_only_at(b, "new", whole)
        assert S3.head_object(Bucket=b, Key="new")["ETag"] == etag
        part = S3.get_object(Bucket=b, Key="new", PartNumber=2)
        assert part["Body"].read() == whole[5 * MIB : 10 * MIB + 1] and part["PartsCount"] == 3
        # The upload is over, though its object has gone from there.
        fails("NoSuchUpload", 404, S3.complete_multipart_upload, **done)
        is_only_at(b, "new", whole)
        S3.put_object(Bucket=b, Key="new", Body=whole[:10], IfMatch=etag)
        is_only_at(b, "new", whole[:10])


def test_what_else_is_done_to_it_goes_on():
    with bucket() as b:
        S3.put_object(Bucket=b, Key="a", Body=b"abc")
        S3.put_object_tagging(Bucket=b, Key="a", Tagging={"TagSet": [{"Key": "x", "Value": "y"}]})
        made = S3.head_object(Bucket=b, Key="a")["LastModified"]
        rename(b, "a", "b")
        S3.put_object(Bucket=b, Key="b", Body=b"def", WriteOffsetBytes=3)
        rename(b, "b", "c")
        is_only_at(b, "c", b"abcdef")
        assert S3.get_object_tagging(Bucket=b, Key="c")["TagSet"] == [{"Key": "x", "Value": "y"}]
        assert S3.head_object(Bucket=b, Key="c")["LastModified"] >= made
        S3.copy_object(Bucket=b, Key="d", CopySource={"Bucket": b, "Key": "c"})
        S3.delete_object(Bucket=b, Key="c")
        is_only_at(b, "d", b"abcdef")


def test_conditions():
    ago, ahead = datetime.datetime(2020, 1, 1), datetime.datetime(2100, 1, 1)
    with bucket() as b:
        etag = S3.put_object(Bucket=b, Key="a", Body=b"abc")["ETag"]
        there = S3.put_object(Bucket=b, Key="b", Body=b"def")["ETag"]
        no = lambda key="b", **args: fails("PreconditionFailed", 412, rename, b=b, source="a", key=key, **args)
        no(SourceIfMatch=there)
        no(SourceIfNoneMatch=etag)
        no(SourceIfNoneMatch="*")
        no(SourceIfModifiedSince=ahead)
        no(SourceIfUnmodifiedSince=ago)
        no(DestinationIfMatch=etag)
        no(DestinationIfNoneMatch="*")
        no(DestinationIfModifiedSince=ahead)
        no(DestinationIfUnmodifiedSince=ago)
        no("new", DestinationIfMatch=etag)
        no("new", DestinationIfModifiedSince=ago)
        fails("NotImplemented", 501, rename, b=b, source="a", key="b", DestinationIfNoneMatch=there)
        assert keys(b) == ["a", "b"] and body(b, "a") == b"abc" and body(b, "b") == b"def"
        rename(b, "a", "new", SourceIfMatch=etag, SourceIfModifiedSince=ago, DestinationIfNoneMatch="*")
        rename(b, "new", "b", SourceIfUnmodifiedSince=ahead, SourceIfNoneMatch=there, DestinationIfMatch=there)
        is_only_at(b, "b", b"abc")
        S3.put_object(Bucket=b, Key="a", Body=b"x")
        rename(b, "b", "a", DestinationIfModifiedSince=ago)
        rename(b, "a", "c", DestinationIfUnmodifiedSince=ago)
        is_only_at(b, "c", b"abc")


def test_a_request_that_comes_again_does_nothing():
    with bucket() as b:
        S3.put_object(Bucket=b, Key="a", Body=b"abc")
        token = str(uuid.uuid4())
        rename(b, "a", "b", ClientToken=token)
        rename(b, "a", "b", s3=OTHER, ClientToken=token)
        S3.put_object(Bucket=b, Key="a", Body=b"another")
        rename(b, "a", "b", ClientToken=token)
        assert body(b, "a") == b"another" and body(b, "b") == b"abc"
        fails("IdempotencyParameterMismatch", 400, rename, b=b, source="c", key="b", ClientToken=token)
        fails("IdempotencyParameterMismatch", 400, rename, b=b, source="a", key="b", ClientToken=token, SourceIfMatch="*")
        fails("InvalidArgument", 400, rename, b=b, source="a", key="b", ClientToken="x" * 65)
        # Without it, or with another one, it is another request. What is copied was not given its key by any.
        S3.copy_object(Bucket=b, Key="copy", CopySource={"Bucket": b, "Key": "b"})
        fails("NoSuchKey", 404, rename, b=b, source="gone", key="copy", ClientToken=token)
        rename(b, "a", "b", ClientToken=str(uuid.uuid4()))
        assert body(b, "b") == b"another" and keys(b) == ["b", "copy"]


def test_what_makes_no_sense():
    with bucket() as b, bucket() as other:
        S3.put_object(Bucket=b, Key="a", Body=b"abc")
        fails("NoSuchKey", 404, rename, b=b, source="gone", key="b")
        fails("InvalidRequest", 400, rename, b=b, source="a", key="a")
        source = lambda text: dict(call=S3.rename_object, Bucket=b, Key="b", RenameSource=text)
        fails("InvalidRequest", 400, **source("/%s/a" % other))
        fails("InvalidRequest", 400, **source(""))
        fails("InvalidArgument", 400, **source("%zz"))
        fails("KeyTooLongError", 400, **source("a" * 1025))
        fails("NoSuchBucket", 404, rename, b=b + "x", source="a", key="b")
        is_only_at(b, "a", b"abc")
        S3.rename_object(Bucket=b, Key="b", RenameSource="/%s/a" % b)
        is_only_at(b, "b", b"abc")


def test_buckets_that_keep_versions_are_not_for_it():
    with bucket() as b:
        S3.put_object(Bucket=b, Key="a", Body=b"abc")
        for status in ("Enabled", "Suspended"):
            S3.put_bucket_versioning(Bucket=b, VersioningConfiguration={"Status": status})
            fails("InvalidRequest", 400, rename, b=b, source="a", key="b")
        is_only_at(b, "a", b"abc")
        S3.delete_object(Bucket=b, Key="a", VersionId="null")
    b = "check-locked-" + uuid.uuid4().hex[:12]
    S3.create_bucket(Bucket=b, ObjectLockEnabledForBucket=True)
    version = S3.put_object(Bucket=b, Key="a", Body=b"abc")["VersionId"]
    fails("InvalidRequest", 400, rename, b=b, source="a", key="b")
    is_only_at(b, "a", b"abc")
    S3.delete_object(Bucket=b, Key="a", VersionId=version)
    S3.delete_bucket(Bucket=b)


def test_who_may():
    if "ALT_KEY" not in os.environ:
        return "skipped: no second user"
    alt = client(os.environ["ALT_KEY"], os.environ["ALT_SECRET"])
    with bucket() as b:
        S3.put_object(Bucket=b, Key="mine/a", Body=b"abc", Tagging="free=yes")
        S3.put_object(Bucket=b, Key="mine/b", Body=b"abc")

        def allow(*statements):
            all_of = [{"Effect": "Allow", "Principal": "*", "Action": action, "Resource": "arn:aws:s3:::%s/%s" % (b, what),
                       **more} for action, what, more in statements]
            S3.put_bucket_policy(Bucket=b, Policy=json.dumps({"Version": "2012-10-17", "Statement": all_of}))

        denied = lambda source="mine/a": fails("AccessDenied", 403, rename, b=b, source=source, key="open/x", s3=alt)
        denied()
        put = (["s3:PutObject"], "open/*", {})
        allow(put)
        denied()
        # Who may put, and remove what is there, may not have it read by whom they like.
        allow(put, (["s3:DeleteObject"], "mine/*", {}))
        denied()
        allow(put, (["s3:GetObject"], "mine/*", {}))
        denied()
        allow((["s3:GetObject", "s3:DeleteObject"], "mine/*", {}))
        denied()
        free = {"Condition": {"StringEquals": {"s3:ExistingObjectTag/free": "yes"}}}
        allow(put, (["s3:GetObject", "s3:DeleteObject"], "mine/*", free))
        denied("mine/b")
        rename(b, "mine/a", "open/x", s3=alt)
        assert keys(b) == ["mine/b", "open/x"]


def test_of_those_who_rename_at_once_one_does():
    with bucket() as b, concurrent.futures.ThreadPoolExecutor(8) as threads:
        for size in (20, 100_000) * 3:
            whole = data(size)
            S3.put_object(Bucket=b, Key="a", Body=whole)

            def one(i):
                try:
                    rename(b, "a", "to/%d" % i, s3=(S3, OTHER)[i % 2])
                    return True
                except ClientError as error:
                    assert error.response["Error"]["Code"] == "NoSuchKey", error
                    return False

            done = list(threads.map(one, range(8)))
            assert done.count(True) == 1, done
            is_only_at(b, "to/%d" % done.index(True), whole)
            S3.delete_object(Bucket=b, Key="to/%d" % done.index(True))


def test_lists_show_it_once():
    """An object that goes to and fro is seen by every list, under one of its keys, and by every reader under one."""
    names = ["k%02d" % n for n in range(10)]
    with bucket() as b, concurrent.futures.ThreadPoolExecutor(4) as threads:
        whole, stop = data(30_000), threading.Event()
        S3.put_object(Bucket=b, Key=names[0], Body=whole)
        for other in range(20):
            S3.put_object(Bucket=b, Key="l%02d" % other, Body=b"x")

        def move():
            try:
                at = 0
                for n in range(60):
                    to = (at + 1 + n * 7 % 9) % 10
                    rename(b, names[at], names[to], s3=(S3, OTHER)[n % 2])
                    at = to
                return at
            finally:
                stop.set()

        def look(s3):
            looks = 0
            while not stop.is_set() or not looks:
                page = s3.list_objects_v2(Bucket=b, Prefix="k")["Contents"]
                assert [o["Size"] for o in page] == [len(whole)], page
                looks += 1
            return looks

        def read(s3):
            reads = 0
            while not stop.is_set() or not reads:
                for name in names:
                    try:
                        assert body(b, name, s3) == whole
                        reads += 1
                    except ClientError as error:
                        assert error.response["Error"]["Code"] == "NoSuchKey", error
            return reads

        looking = [threads.submit(look, s3) for s3 in (S3, OTHER)] + [threads.submit(read, OTHER)]
        at = move()
        said = [task.result() for task in looking]
        assert keys(b, Prefix="k") == [names[at]] and body(b, names[at]) == whole
        return "%d lists, %d reads" % (said[0] + said[1], said[2])


def test_files_that_are_written_and_then_named():
    """As programs write files: under another name first. Whoever reads the name finds one of them whole."""
    with bucket() as b, concurrent.futures.ThreadPoolExecutor(6) as threads:
        sizes = (100, 20_000, 70_000)
        written = {n: data(sizes[n % 3]) for n in range(48)}

        def write(w):
            s3 = (S3, OTHER)[w % 2]
            for n in range(w, 48, 4):
                S3.put_object(Bucket=b, Key="tmp/%d" % n, Body=written[n])
                rename(b, "tmp/%d" % n, "file", s3=s3)

        def read(s3):
            seen = set()
            for _ in range(60):
                try:
                    seen.add(body(b, "file", s3))
                except ClientError as error:
                    assert error.response["Error"]["Code"] == "NoSuchKey" and not seen, error
            return seen

        writing = [threads.submit(write, w) for w in range(4)]
        reading = [threads.submit(read, s3) for s3 in (S3, OTHER)]
        for task in writing:
            task.result()
        values = set(written.values())
        assert all(task.result() <= values for task in reading)
        assert keys(b) == ["file"] and body(b, "file") in values


def test_keys_of_two_partitions():
    """Last: it splits a partition. What is refused for that is not done."""
    if "ASHLAR" not in os.environ:
        return "skipped: no rig"
    b = "check-apart-" + uuid.uuid4().hex[:12]
    S3.create_bucket(Bucket=b)
    whole = data(20_000)
    S3.put_object(Bucket=b, Key="a", Body=whole)
    S3.put_object(Bucket=b, Key="big/a", Body=data(70_000))
    at, refused, ends = "a", 0, time.time() + 60

    def cross(at):
        to = "z" if at == "a" else "a"
        try:
            rename(b, at, to, s3=OTHER)
            at = to
        except ClientError as error:
            code = error.response["Error"]["Code"]
            assert code in ("NotImplemented", "SlowDown", "ServiceUnavailable"), error
            is_only_at_of(("a", "z"), at)
            return at, code == "NotImplemented"
        is_only_at_of(("a", "z"), at)
        return at, False

    def is_only_at_of(names, at):
        for name in names:
            if name == at:
                assert body(b, name) == whole
            else:
                fails("NoSuchKey", 404, S3.get_object, Bucket=b, Key=name)

    for _ in range(4):
        at, apart = cross(at)
        assert not apart
    command = [os.environ["ASHLAR"], "cluster"]
    status = json.loads(subprocess.run(command + ["status", "--json"], check=True, capture_output=True).stdout)
    split = lambda chain: subprocess.run(command + ["split", str(chain[0]), b + "/m"], capture_output=True).returncode == 0
    assert any(split(chain) for chain in status["chains"]), status["chains"]
    while refused < 3:
        at, apart = cross(at)
        refused += apart
        assert time.time() < ends, "nothing was refused"
    rename(b, at, at + "/in")
    rename(b, at + "/in", at)
    rename(b, "big/a", "big/b")
    is_only_at_of(("a", "z"), at)
    S3.delete_objects(Bucket=b, Delete={"Objects": [{"Key": k} for k in (at, "big/b")]})
    while True:
        try:
            # The two are made one for that.
            S3.delete_bucket(Bucket=b)
            return
        except ClientError as error:
            assert error.response["Error"]["Code"] == "SlowDown" and time.time() < ends + 120, error


if __name__ == "__main__":
    main(globals())
