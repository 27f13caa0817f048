#!/usr/bin/env python3
"""Asks an S3 endpoint, through boto3, whether it keeps versions as Amazon does.

    versions.py ENDPOINT            with credentials from the environment, as boto3 takes them
    versions.py ENDPOINT NAME...    only the checks whose names contain one of these

ENDPOINT2, if set, is another way in to the same buckets. Each check makes a bucket of its own and removes it.
"""
import collections, concurrent.futures, http.client, json, os, random, time
import urllib.error, urllib.parse, urllib.request

from botocore.exceptions import ClientError

from check import ENDPOINT, RANDOM, SEED, client, fails, main

# Others may get in the way of what is checked here.
PATIENT = {"retries": {"max_attempts": 4}}
S3 = client(**PATIENT)
OTHER = client(endpoint=os.environ.get("ENDPOINT2", ENDPOINT), **PATIENT)


def headers_of(error):
    return error["ResponseMetadata"]["HTTPHeaders"]


def versioning(b, status):
    S3.put_bucket_versioning(Bucket=b, VersioningConfiguration={"Status": status})


def rows(b, s3=S3, **args):
    """All versions and markers, page by page, in the order of the listing as far as pages tell it."""
    all = []
    more = {}
    while True:
        page = s3.list_object_versions(Bucket=b, **args, **more)
        for kind in ("Versions", "DeleteMarkers"):
            all += [(r["Key"], r["VersionId"], r["IsLatest"], kind == "DeleteMarkers") for r in page.get(kind, [])]
        if not page["IsTruncated"]:
            return all
        more = {"KeyMarker": page["NextKeyMarker"]}
        if page.get("NextVersionIdMarker"):
            more["VersionIdMarker"] = page["NextVersionIdMarker"]


class bucket:
    """A bucket for a check, without anything in it when it has ended."""

    def __init__(self, status="Enabled"):
        self.name, self.status = "versions-%08x-%08x" % (SEED, RANDOM.randrange(1 << 32)), status

    def __enter__(self):
        S3.create_bucket(Bucket=self.name)
        if self.status:
            versioning(self.name, self.status)
        return self.name

    def __exit__(self, kind, *_):
        all = [{"Key": key, "VersionId": id} for key, id, _, _ in rows(self.name)]
        for at in range(0, len(all), 1000):
            gone = S3.delete_objects(Bucket=self.name, Delete={"Objects": all[at:at + 1000]})
            assert kind or not gone.get("Errors"), gone["Errors"][:3]
        S3.delete_bucket(Bucket=self.name)


def put(b, k, body, s3=S3, **args):
    """What the version is called: of a null one that is not said."""
    return s3.put_object(Bucket=b, Key=k, Body=body, **args).get("VersionId", "null")


def body(b, k, id=None, s3=S3):
    return s3.get_object(Bucket=b, Key=k, **({"VersionId": id} if id else {}))["Body"].read()


def test_states():
    with bucket(None) as b:
        assert "Status" not in S3.get_bucket_versioning(Bucket=b)
        assert "VersionId" not in S3.put_object(Bucket=b, Key="k", Body=b"0")
        fails("IllegalVersioningConfigurationException", 400, S3.put_bucket_versioning, Bucket=b, VersioningConfiguration={})
        fails("NotImplemented", 501, S3.put_bucket_versioning, Bucket=b, VersioningConfiguration={"Status": "Enabled", "MFADelete": "Enabled"})
        for status in ("Enabled", "Suspended", "Enabled"):
            versioning(b, status)
            assert OTHER.get_bucket_versioning(Bucket=b)["Status"] == status
            # Another way in keeps to it at once.
            id = put(b, "k", status.encode(), s3=OTHER)
            assert (id == "null") == (status == "Suspended"), id


def test_versions_stay():
    """Small ones ride in the journal, larger ones in stripes: all stay, and each is what it was."""
    with bucket() as b:
        bodies = {}
        for size in (0, 1, 400, 5000, 40_000, 300_000, 6_000_000):
            data = RANDOM.randbytes(size)
            bodies[put(b, "k", data, Metadata={"size": str(size)})] = data
        ids = list(bodies)
        assert len(set(ids)) == 7
        assert [r[1] for r in rows(b)] == ids[::-1]
        assert [r[2] for r in rows(b)] == [True] + 6 * [False]
        for id, data in bodies.items():
            got = OTHER.get_object(Bucket=b, Key="k", VersionId=id)
            assert got["Body"].read() == data and got["VersionId"] == id and got["Metadata"]["size"] == str(len(data))
            head = S3.head_object(Bucket=b, Key="k", VersionId=id)
            assert head["ContentLength"] == len(data) and head["VersionId"] == id
            if len(data) > 10:
                part = S3.get_object(Bucket=b, Key="k", VersionId=id, Range="bytes=3-7")["Body"].read()
                assert part == data[3:8]
        # What is current goes, and the one before it is current: with its bytes, its name, its time.
        for at in range(6, -1, -1):
            told = S3.head_object(Bucket=b, Key="k")
            assert told["VersionId"] == ids[at] and body(b, "k") == bodies[ids[at]]
            before = S3.head_object(Bucket=b, Key="k", VersionId=ids[at - 1])["LastModified"] if at else None
            gone = S3.delete_object(Bucket=b, Key="k", VersionId=ids[at])
            assert gone["VersionId"] == ids[at] and "DeleteMarker" not in gone
            if at:
                now = S3.head_object(Bucket=b, Key="k")
                assert now["VersionId"] == ids[at - 1] and now["LastModified"] == before
                listed = S3.list_objects_v2(Bucket=b)["Contents"][0]
                assert (listed["LastModified"].replace(microsecond=0), listed["Size"]) == (before, now["ContentLength"]), (at, listed, now)
        fails("NoSuchKey", 404, S3.get_object, Bucket=b, Key="k")
        assert rows(b) == []


def test_other_versions_go():
    """One that is not current is removed, in any order; the others stay readable."""
    with bucket() as b:
        bodies = {}
        for n in range(12):
            data = RANDOM.randbytes(RANDOM.choice((10, 3000, 70_000)))
            bodies[put(b, "k", data)] = data
        while bodies:
            id = RANDOM.choice(list(bodies))
            S3.delete_object(Bucket=b, Key="k", VersionId=id)
            del bodies[id]
            fails("NoSuchVersion", 404, S3.get_object, Bucket=b, Key="k", VersionId=id)
            left = list(bodies)
            assert [r[1:3] for r in rows(b)] == [(id, at == 0) for at, id in enumerate(left[::-1])]
            for id in left:
                assert body(b, "k", id) == bodies[id]
            if left:
                assert body(b, "k") == bodies[left[-1]]


def test_markers():
    with bucket() as b:
        id = put(b, "d/k", b"1")
        gone = S3.delete_object(Bucket=b, Key="d/k")
        assert gone["DeleteMarker"] and gone["VersionId"] != id
        marker = gone["VersionId"]
        for call in (S3.get_object, OTHER.get_object):
            headers = headers_of(fails("NoSuchKey", 404, call, Bucket=b, Key="d/k"))
            assert headers["x-amz-delete-marker"] == "true" and headers["x-amz-version-id"] == marker
        headers = headers_of(fails("404", 404, S3.head_object, Bucket=b, Key="d/k"))
        assert headers["x-amz-delete-marker"] == "true"
        for call, code in ((S3.get_object, "MethodNotAllowed"), (S3.head_object, "405")):
            headers = headers_of(fails(code, 405, call, Bucket=b, Key="d/k", VersionId=marker))
            assert headers["x-amz-delete-marker"] == "true" and headers["allow"] == "DELETE"
        assert body(b, "d/k", id) == b"1"
        # No list of objects shows it, rolled up or not.
        assert S3.list_objects_v2(Bucket=b)["KeyCount"] == 0 and "Contents" not in S3.list_objects(Bucket=b)
        assert "CommonPrefixes" not in S3.list_objects_v2(Bucket=b, Delimiter="/")
        assert rows(b) == [("d/k", id, False, False), ("d/k", marker, True, True)]
        fails("BucketNotEmpty", 409, S3.delete_bucket, Bucket=b)
        # For a condition there is no object.
        second = put(b, "d/k", b"2", IfNoneMatch="*")
        fails("PreconditionFailed", 412, S3.put_object, Bucket=b, Key="d/k", Body=b"3", IfNoneMatch="*")
        S3.delete_object(Bucket=b, Key="d/k", VersionId=second)
        fails("NoSuchKey", 404, S3.get_object, Bucket=b, Key="d/k")
        # The marker goes, and the object is there again.
        gone = S3.delete_object(Bucket=b, Key="d/k", VersionId=marker)
        assert gone["DeleteMarker"] and gone["VersionId"] == marker
        assert body(b, "d/k") == b"1"
        # Of what there never was a marker is made, too.
        assert S3.delete_object(Bucket=b, Key="none")["DeleteMarker"]
        assert ("none", True) in [(r[0], r[3]) for r in rows(b)]


def test_before_versions_were_kept():
    """What was there before is the null version, and stays."""
    with bucket(None) as b:
        bodies = {"s": b"small", "m": RANDOM.randbytes(20_000), "l": RANDOM.randbytes(200_000)}
        for key, data in bodies.items():
            S3.put_object(Bucket=b, Key=key, Body=data, Metadata={"of": key})
        times = {k: S3.head_object(Bucket=b, Key=k)["LastModified"] for k in bodies}
        versioning(b, "Enabled")
        assert sorted(r[:2] for r in rows(b)) == sorted((k, "null") for k in bodies)
        time.sleep(1.1)
        ids = {}
        for key in bodies:
            ids[key] = put(b, key, b"new") if key != "m" else S3.delete_object(Bucket=b, Key=key)["VersionId"]
        for key, data in bodies.items():
            got = S3.get_object(Bucket=b, Key=key, VersionId="null")
            assert got["Body"].read() == data and got["VersionId"] == "null" and got["Metadata"] == {"of": key}
            assert got["LastModified"] == times[key]
            assert [r[1:3] for r in rows(b, Prefix=key)] in ([(ids[key], True), ("null", False)], [("null", False), (ids[key], True)])
        for key, data in bodies.items():
            S3.delete_object(Bucket=b, Key=key, VersionId=ids[key])
            assert body(b, key) == data and S3.head_object(Bucket=b, Key=key)["VersionId"] == "null"
        S3.delete_object(Bucket=b, Key="s", VersionId="null")
        fails("NoSuchKey", 404, S3.get_object, Bucket=b, Key="s")


def test_a_condition_of_the_null_version():
    """It is about what is removed, though another one may be called so meanwhile."""
    with bucket("Suspended") as b, concurrent.futures.ThreadPoolExecutor(1) as pool:
        def remove(etag, wait):
            time.sleep(wait)
            try:
                OTHER.delete_object(Bucket=b, Key="k", VersionId="null", IfMatch=etag)
            except ClientError as error:
                assert error.response["Error"]["Code"] in ("PreconditionFailed", "ConditionalRequestConflict"), error

        for n in range(300):
            etag = S3.put_object(Bucket=b, Key="k", Body=b"old")["ETag"]
            # Now the one comes first, and now the other.
            removed = pool.submit(remove, etag, RANDOM.random() * 0.004)
            time.sleep(RANDOM.random() * 0.004)
            put(b, "k", b"new")
            removed.result()
            assert body(b, "k") == b"new", n
        etag = S3.head_object(Bucket=b, Key="k")["ETag"]
        versioning(b, "Enabled")
        # Behind another one, too.
        put(b, "k", b"newer")
        fails("PreconditionFailed", 412, S3.delete_object, Bucket=b, Key="k", VersionId="null", IfMatch='"no"')
        S3.delete_object(Bucket=b, Key="k", VersionId="null", IfMatch=etag)
        fails("NoSuchVersion", 404, S3.get_object, Bucket=b, Key="k", VersionId="null")
        assert body(b, "k") == b"newer"


def test_suspended():
    with bucket() as b:
        first = put(b, "k", b"first")
        versioning(b, "Suspended")
        assert put(b, "k", b"null one" * 5000) == "null"
        assert [r[1] for r in rows(b)] == ["null", first]
        # There is one null version at most: the next one takes its place.
        assert put(b, "k", b"null two" * 5000) == "null"
        assert [r[1] for r in rows(b)] == ["null", first] and body(b, "k", "null") == b"null two" * 5000
        versioning(b, "Enabled")
        third = put(b, "k", b"third")
        assert [r[1] for r in rows(b)] == [third, "null", first] and body(b, "k", "null") == b"null two" * 5000
        versioning(b, "Suspended")
        # Wherever it stands.
        gone = S3.delete_object(Bucket=b, Key="k")
        assert gone["DeleteMarker"] and gone["VersionId"] == "null"
        assert sorted(r[1] for r in rows(b)) == sorted(["null", third, first])
        fails("NoSuchKey", 404, S3.get_object, Bucket=b, Key="k")
        fails("MethodNotAllowed", 405, S3.get_object, Bucket=b, Key="k", VersionId="null")
        S3.delete_object(Bucket=b, Key="k", VersionId="null")
        assert body(b, "k") == b"third" and body(b, "k", first) == b"first"
        assert put(b, "k", b"four") == "null"
        versioning(b, "Enabled")
        S3.delete_object(Bucket=b, Key="k", VersionId=third)
        assert body(b, "k") == b"four" and [r[1] for r in rows(b)] == ["null", first]


def test_ids():
    with bucket() as b:
        id = put(b, "k", b"x")
        other = put(b, "other", b"y")
        for bad in ("x", "0" * 16, "z" * 16, "%" * 3):
            fails("InvalidArgument", 400, S3.get_object, Bucket=b, Key="k", VersionId=bad)
        for call in (S3.get_object, S3.get_object_tagging):
            for none in (other, "null"):
                fails("NoSuchVersion", 404, call, Bucket=b, Key="k", VersionId=none)
        # A condition is about the version that is named.
        etag = S3.head_object(Bucket=b, Key="k")["ETag"]
        fails("PreconditionFailed", 412, S3.delete_object, Bucket=b, Key="k", VersionId=id, IfMatch='"no"')
        last = put(b, "k", b"z")
        S3.delete_object(Bucket=b, Key="k", VersionId=last, IfMatch=S3.head_object(Bucket=b, Key="k")["ETag"])
        assert S3.head_object(Bucket=b, Key="k")["ETag"] == etag
        S3.delete_object(Bucket=b, Key="k", VersionId=last, IfMatch='"no"')
        # What is not there can be removed.
        assert S3.delete_object(Bucket=b, Key="k", VersionId=other)["VersionId"] == other
        assert body(b, "k", id) == b"x" and body(b, "other") == b"y"
    with bucket(None) as b:
        S3.put_object(Bucket=b, Key="k", Body=b"x")
        assert body(b, "k", "null") == b"x"
        fails("NoSuchVersion", 404, S3.get_object, Bucket=b, Key="k", VersionId=id)
        assert rows(b) == [("k", "null", True, False)]
        assert S3.delete_object(Bucket=b, Key="k", VersionId="null")["VersionId"] == "null"
        assert rows(b) == []


def test_tags():
    with bucket() as b:
        ids = [put(b, "k", b"x" * n) for n in (5, 50_000, 7)]
        tags = lambda id, v: S3.put_object_tagging(Bucket=b, Key="k", Tagging={"TagSet": [{"Key": "t", "Value": v}]}, **({"VersionId": id} if id else {}))
        of = lambda id=None: [t["Value"] for t in S3.get_object_tagging(Bucket=b, Key="k", **({"VersionId": id} if id else {}))["TagSet"]]
        before = [S3.head_object(Bucket=b, Key="k", VersionId=id)["LastModified"] for id in ids]
        assert tags(ids[0], "zero")["VersionId"] == ids[0] and tags(ids[1], "one")["VersionId"] == ids[1]
        assert tags(None, "current")["VersionId"] == ids[2]
        assert [of(id) for id in ids] == [["zero"], ["one"], ["current"]] and of() == ["current"]
        tags(ids[2], "named")
        assert of() == ["named"]
        assert [r[1] for r in rows(b)] == ids[::-1], "tags make no version"
        assert [S3.head_object(Bucket=b, Key="k", VersionId=id)["LastModified"] for id in ids] == before
        S3.delete_object_tagging(Bucket=b, Key="k", VersionId=ids[1])
        assert of(ids[1]) == [] and of(ids[0]) == ["zero"]
        assert [body(b, "k", id) for id in ids] == [b"x" * 5, b"x" * 50_000, b"x" * 7]
        S3.delete_object(Bucket=b, Key="k", VersionId=ids[2])
        assert of() == [] and body(b, "k") == b"x" * 50_000
        # One that is current again stands in two places: both have its tags.
        assert tags(ids[1], "again")["VersionId"] == ids[1] and of() == of(ids[1]) == ["again"]
        put(b, "k", b"newer")
        assert of(ids[1]) == ["again"] and of() == []
        S3.delete_object(Bucket=b, Key="k", VersionId=rows(b)[0][1])
        S3.delete_object(Bucket=b, Key="k", VersionId=ids[1])
        assert of() == ["zero"]
        told = S3.get_object_attributes(Bucket=b, Key="k", VersionId=ids[0], ObjectAttributes=["ObjectSize"])
        assert told["ObjectSize"] == 5 and told["VersionId"] == ids[0]


def test_copies():
    with bucket() as b:
        first, second = put(b, "from", b"first" * 9000), put(b, "from", b"second")
        source = {"Bucket": b, "Key": "from", "VersionId": first}
        done = S3.copy_object(Bucket=b, Key="to", CopySource=source)
        assert done["CopySourceVersionId"] == first and body(b, "to", done["VersionId"]) == b"first" * 9000
        # An old version becomes the current one by a copy to itself.
        again = S3.copy_object(Bucket=b, Key="from", CopySource=source)
        assert [r[1] for r in rows(b, Prefix="from")] == [again["VersionId"], second, first]
        assert body(b, "from") == b"first" * 9000
        marker = S3.delete_object(Bucket=b, Key="from")["VersionId"]
        fails("NoSuchKey", 404, S3.copy_object, Bucket=b, Key="to", CopySource={"Bucket": b, "Key": "from"})
        fails("InvalidRequest", 400, S3.copy_object, Bucket=b, Key="to", CopySource={"Bucket": b, "Key": "from", "VersionId": marker})
        part = RANDOM.randbytes(5 << 20)
        big = put(b, "big", part)
        put(b, "big", b"small")
        up = S3.create_multipart_upload(Bucket=b, Key="parts")["UploadId"]
        copied = S3.upload_part_copy(Bucket=b, Key="parts", UploadId=up, PartNumber=1, CopySource={"Bucket": b, "Key": "big", "VersionId": big})
        assert copied["CopySourceVersionId"] == big
        tail = S3.upload_part(Bucket=b, Key="parts", UploadId=up, PartNumber=2, Body=b"end")
        parts = [{"PartNumber": 1, "ETag": copied["CopyPartResult"]["ETag"]}, {"PartNumber": 2, "ETag": tail["ETag"]}]
        before = put(b, "parts", b"before")
        done = S3.complete_multipart_upload(Bucket=b, Key="parts", UploadId=up, MultipartUpload={"Parts": parts})
        assert body(b, "parts", done["VersionId"]) == part + b"end" and body(b, "parts", before) == b"before"
        put(b, "parts", b"after")
        assert body(b, "parts", done["VersionId"]) == part + b"end"
        S3.delete_object(Bucket=b, Key="parts", VersionId=before)
        assert body(b, "parts", done["VersionId"]) == part + b"end"


def test_completed_again():
    """Who lost the answer to a completion asks again, though something else came on top of what was made."""
    with bucket() as b:
        begin = lambda: S3.create_multipart_upload(Bucket=b, Key="k")["UploadId"]
        up = begin()
        tag = S3.upload_part(Bucket=b, Key="k", UploadId=up, PartNumber=1, Body=b"part")["ETag"]
        parts = {"Parts": [{"PartNumber": 1, "ETag": tag}]}
        complete = lambda s3=S3: s3.complete_multipart_upload(Bucket=b, Key="k", UploadId=up, MultipartUpload=parts)
        done = complete()
        id = done["VersionId"]
        for on_top in (lambda: put(b, "k", b"newer"), lambda: S3.delete_object(Bucket=b, Key="k")):
            on_top()
            before = rows(b)
            again = complete(OTHER)
            assert (again["VersionId"], again["ETag"]) == (id, done["ETag"])
            assert rows(b) == before and body(b, "k", id) == b"part"
        fails("NoSuchUpload", 404, S3.complete_multipart_upload, Bucket=b, Key="k", UploadId=begin()[::-1], MultipartUpload=parts)
        S3.delete_object(Bucket=b, Key="k", VersionId=id)
        fails("NoSuchUpload", 404, complete)
        for left in S3.list_multipart_uploads(Bucket=b).get("Uploads", []):
            S3.abort_multipart_upload(Bucket=b, Key="k", UploadId=left["UploadId"])


def test_bodies_that_take_long():
    """What a bucket wants when the last byte has come counts: nothing that it keeps then is lost."""
    for size in (100, 300_000):
        with bucket(None) as b:
            S3.put_object(Bucket=b, Key="k", Body=b"before")
            url = urllib.parse.urlsplit(S3.generate_presigned_url("put_object", Params={"Bucket": b, "Key": "k"}))
            data = RANDOM.randbytes(size)
            slow = http.client.HTTPConnection(url.netloc)
            slow.putrequest("PUT", url.path + "?" + url.query)
            slow.putheader("Content-Length", str(size))
            slow.endheaders()
            slow.send(data[:size // 2])
            time.sleep(0.5)
            versioning(b, "Enabled")
            slow.send(data[size // 2:])
            reply = slow.getresponse()
            assert reply.status == 200, (reply.status, reply.read())
            id = reply.headers["x-amz-version-id"]
            assert [r[1] for r in rows(b)] == [id, "null"] and body(b, "k", id) == data
            assert body(b, "k", "null") == b"before"


def test_many_of_one_key():
    with bucket() as b:
        ids = [put(b, "k", b"%d" % n) for n in range(60)] + [S3.delete_object(Bucket=b, Key="k")["VersionId"]]
        RANDOM.shuffle(ids)
        done = S3.delete_objects(Bucket=b, Delete={"Objects": [{"Key": "k", "VersionId": id} for id in ids]})
        assert not done.get("Errors") and len(done["Deleted"]) == 61 and rows(b) == []


def test_many():
    with bucket() as b:
        ids = {k: [put(b, k, b"%d" % n) for n in range(3)] for k in ("a", "b", "c")}
        done = S3.delete_objects(Bucket=b, Delete={"Objects": [
            {"Key": "a"}, {"Key": "b", "VersionId": ids["b"][2]}, {"Key": "c", "VersionId": ids["c"][0]}, {"Key": "none"},
            {"Key": "c", "VersionId": "bad"}]})
        told = {d["Key"]: d for d in done["Deleted"]}
        assert told["a"]["DeleteMarker"] and told["a"]["DeleteMarkerVersionId"] not in ids["a"] and "VersionId" not in told["a"]
        assert told["b"]["VersionId"] == ids["b"][2] and "DeleteMarker" not in told["b"]
        assert told["none"]["DeleteMarker"] and [e["Code"] for e in done["Errors"]] == ["InvalidArgument"]
        assert body(b, "b") == b"1" and [r[1] for r in rows(b, Prefix="c")] == ids["c"][:0:-1]
        marker = told["a"]["DeleteMarkerVersionId"]
        done = S3.delete_objects(Bucket=b, Delete={"Objects": [{"Key": "a", "VersionId": marker}]})
        assert done["Deleted"] == [{"Key": "a", "VersionId": marker, "DeleteMarker": True, "DeleteMarkerVersionId": marker}]
        assert body(b, "a") == b"2"


def test_listing():
    """Every page of every size, with and without a delimiter, says what the whole says."""
    with bucket(None) as b:
        keys = ["a", "a/1", "a/2", "a/b/3", "b", "b\u00e9", "z z+%/x"]
        for key in keys[::2]:
            S3.put_object(Bucket=b, Key=key, Body=b"plain")
        versioning(b, "Enabled")
        expected = {key: ["null"] if at % 2 == 0 else [] for at, key in enumerate(keys)}
        for _ in range(30):
            key = RANDOM.choice(keys[1:])
            id = S3.delete_object(Bucket=b, Key=key)["VersionId"] if RANDOM.random() < 0.3 else put(b, key, b"x")
            expected[key].insert(0, id)
        all = [(k, id) for k in sorted(keys, key=lambda k: k.encode()) for id in expected[k]]
        latest = {(k, ids[0]) for k, ids in expected.items() if ids}
        for size in (1, 2, 3, 7, 1000):
            got = rows(b, MaxKeys=size, s3=OTHER)
            assert sorted(r[:2] for r in got) == sorted(all), size
            assert {r[:2] for r in got if r[2]} == latest, size
            if size == 1:
                assert [r[:2] for r in got] == all, "the order of the listing"
        assert [r[:2] for r in rows(b, Prefix="a/", MaxKeys=1)] == [r for r in all if r[0].startswith("a/")]
        for size in (1, 2, 1000):
            prefixes, seen, more = [], [], {}
            while True:
                page = S3.list_object_versions(Bucket=b, Delimiter="/", MaxKeys=size, **more)
                prefixes += [p["Prefix"] for p in page.get("CommonPrefixes", [])]
                seen += [(r["Key"], r["VersionId"]) for kind in ("Versions", "DeleteMarkers") for r in page.get(kind, [])]
                if not page["IsTruncated"]:
                    break
                more = {"KeyMarker": page["NextKeyMarker"]}
                if page.get("NextVersionIdMarker"):
                    more["VersionIdMarker"] = page["NextVersionIdMarker"]
            under = [k for k in keys if "/" in k and expected[k]]
            assert prefixes == sorted({k[:k.index("/") + 1] for k in under}), prefixes
            assert sorted(seen) == sorted(r for r in all if "/" not in r[0])
        fails("InvalidArgument", 400, S3.list_object_versions, Bucket=b, VersionIdMarker="null")
        after = S3.list_object_versions(Bucket=b, KeyMarker="a", VersionIdMarker="null", MaxKeys=1)
        first = (after.get("Versions", []) + after.get("DeleteMarkers", []))[0]
        assert (first["Key"], first["VersionId"]) == next(r for r in all if r[0] > "a")


def test_policies():
    """Who may read objects may not read their versions by that."""
    with bucket() as b:
        first = put(b, "k", b"first")
        put(b, "k", b"second")
        url = "%s/%s/k" % (ENDPOINT, b)

        def get(query=""):
            try:
                with urllib.request.urlopen(url + query) as reply:
                    return reply.status
            except urllib.error.HTTPError as error:
                return error.code
        allow = lambda *actions: S3.put_bucket_policy(Bucket=b, Policy=json.dumps({"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Principal": "*", "Action": list(actions), "Resource": "arn:aws:s3:::%s/*" % b}]}))
        allow("s3:GetObject")
        assert (get(), get("?versionId=" + first)) == (200, 403)
        allow("s3:GetObjectVersion")
        assert (get(), get("?versionId=" + first)) == (403, 200)
        S3.delete_bucket_policy(Bucket=b)


def test_races():
    """Writers, removers and readers at once, by two ways in: what was acknowledged is a version until it is removed."""
    with bucket(None) as b:
        for key in ("x", "y"):
            S3.put_object(Bucket=b, Key=key, Body=b"plain " + key.encode())
        versioning(b, "Enabled")
        kept = collections.defaultdict(dict)
        gone = set()

        def work(n):
            rng = random.Random(SEED + n)
            s3 = (S3, OTHER)[n % 2]
            for turn in range(25):
                key = rng.choice("xy")
                what = rng.random()
                if what < 0.5:
                    data = b"%d %d " % (n, turn) + rng.randbytes(rng.choice((3, 2000, 40_000)))
                    kept[key][s3.put_object(Bucket=b, Key=key, Body=data)["VersionId"]] = data
                elif what < 0.6:
                    kept[key][s3.delete_object(Bucket=b, Key=key)["VersionId"]] = None
                elif what < 0.8 and kept[key]:
                    id = rng.choice(list(kept[key]))
                    gone.add((key, id))
                    s3.delete_object(Bucket=b, Key=key, VersionId=id)
                elif kept[key]:
                    id = rng.choice(list(kept[key]))
                    data = kept[key][id]
                    if data is not None:
                        try:
                            assert body(b, key, id, s3) == data
                        except ClientError as error:
                            assert error.response["Error"]["Code"] == "NoSuchVersion" and (key, id) in gone

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(work, n) for n in range(8)]:
                done.result()
        left = {(key, id) for key, ids in kept.items() for id in ids} - gone
        assert {r[:2] for r in rows(b)} == left | {("x", "null"), ("y", "null")}
        for key, id in left:
            if kept[key][id] is not None:
                assert body(b, key, id) == kept[key][id]
        assert body(b, "x", "null") == b"plain x" and body(b, "y", "null") == b"plain y"
        for key in "xy":
            latest = [r for r in rows(b, Prefix=key) if r[2]]
            assert len(latest) == 1
            if not latest[0][3]:
                assert S3.head_object(Bucket=b, Key=key)["VersionId"] == latest[0][1]


if __name__ == "__main__":
    main(globals())
