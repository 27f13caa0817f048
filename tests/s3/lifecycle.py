#!/usr/bin/env python3
"""What grows old ends: objects and uploads that a clock is moved for.

    lifecycle.py ENDPOINT make BUCKET        makes them, and the rules
    lifecycle.py ENDPOINT verify BUCKET      asks for what is to be there after 3 days, and for nothing else
    lifecycle.py ENDPOINT make-versions BUCKET, verify-versions BUCKET      the same of versions
    lifecycle.py ENDPOINT put-versions BUCKET      puts versions while others end, and asks for those that are to stay
"""
import sys

import boto3
from botocore.client import Config

ENDPOINT, STAGE, BUCKET = sys.argv[1:4]
S3 = boto3.client("s3", endpoint_url=ENDPOINT, config=Config(s3={"addressing_style": "path"}))


def rule(id, days, prefix, **more):
    return dict({"ID": id, "Status": "Enabled", "Filter": {"Prefix": prefix}, "Expiration": {"Days": days}}, **more)


def make():
    S3.create_bucket(Bucket=BUCKET)
    for key in ["short/%d" % i for i in range(1100)] + ["long/a", "off/a", "b", "short"]:
        S3.put_object(Bucket=BUCKET, Key=key, Body=key.encode())
    S3.put_object(Bucket=BUCKET, Key="long/t", Tagging="end=soon")
    # Tags that are changed do not make an object younger, and count as they are now.
    S3.put_object_tagging(Bucket=BUCKET, Key="long/a", Tagging={"TagSet": [{"Key": "end", "Value": "late"}]})
    for key in ("short/up", "up"):
        upload = S3.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        S3.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=b"x" * (1 << 20))
    abort = {"ID": "up", "Status": "Enabled", "Filter": {"Prefix": "short/"}, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}}
    tagged = rule("tagged", 1, "", Filter={"And": {"Prefix": "long/", "Tags": [{"Key": "end", "Value": "soon"}]}})
    rules = [rule("short", 1, "short/"), rule("long", 30, "long/"), rule("off", 1, "off/", Status="Disabled"), abort, tagged]
    S3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": rules})


def verify():
    keys = [o["Key"] for o in S3.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert keys == ["b", "long/a", "off/a", "short"], keys[:20]
    uploads = [u["Key"] for u in S3.list_multipart_uploads(Bucket=BUCKET)["Uploads"]]
    assert uploads == ["up"], uploads


def noncurrent(id, prefix, days=1, **more):
    return {"ID": id, "Status": "Enabled", "Filter": {"Prefix": prefix}, "NoncurrentVersionExpiration": dict({"NoncurrentDays": days}, **more)}


def make_versions():
    """16 versions and markers end of these, and nothing else."""
    S3.create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=True)
    put = lambda key, n, **more: [S3.put_object(Bucket=BUCKET, Key=key, Body=b"%s %d" % (key.encode(), i), **more)["VersionId"] for i in range(n)]
    put("all/a", 4)                             # 3 end
    put("all/large", 1)
    S3.put_object(Bucket=BUCKET, Key="all/large", Body=b"x" * 3_000_000)  # 1 ends
    put("kept/a", 5)                            # 2 end
    put("kept/b", 3)
    put("late/a", 3)
    put("none/a", 3)
    locked = put("locked/a", 3)                 # 1 ends: one is held, one is current
    S3.put_object_legal_hold(Bucket=BUCKET, Key="locked/a", VersionId=locked[0], LegalHold={"Status": "ON"})
    put("marked/a", 2)                          # 3 end: what is behind the marker, and then the marker
    S3.delete_object(Bucket=BUCKET, Key="marked/a")
    held = put("marked/held", 1)
    S3.put_object_legal_hold(Bucket=BUCKET, Key="marked/held", VersionId=held[0], LegalHold={"Status": "ON"})
    S3.delete_object(Bucket=BUCKET, Key="marked/held")
    S3.delete_object(Bucket=BUCKET, Key="marked/alone")  # 1 ends
    S3.delete_object(Bucket=BUCKET, Key="alone/a")
    put("stays/a", 2)                           # 2 end: the one behind, and the marker stays with nothing under it
    S3.delete_object(Bucket=BUCKET, Key="stays/a")
    put("tagged/a", 2)
    S3.put_object(Bucket=BUCKET, Key="tagged/a", Body=b"soon", Tagging="end=soon")  # 1 ends
    put("tagged/a", 1)
    put("ends/a", 1)                            # 1 ends, which is: a marker comes, that is as old as nothing
    S3.delete_object(Bucket=BUCKET, Key="ends/marker")   # 1 ends, as an object would
    rules = [
        noncurrent("all", "all/"), noncurrent("kept", "kept/", NewerNoncurrentVersions=2), noncurrent("late", "late/", 30),
        noncurrent("locked", "locked/"), noncurrent("stays", "stays/"), noncurrent("marked", "marked/"),
        {"ID": "markers", "Status": "Enabled", "Filter": {"Prefix": "marked/"}, "Expiration": {"ExpiredObjectDeleteMarker": True}},
        dict(noncurrent("tagged", ""), Filter={"And": {"Prefix": "tagged/", "Tags": [{"Key": "end", "Value": "soon"}]}}),
        rule("ends", 1, "ends/"),
    ]
    S3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": rules})
    told = S3.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    assert [r["ID"] for r in told] == [r["ID"] for r in rules] and told[1] == rules[1] and told[6] == rules[6], told


def verify_versions():
    left = {}
    for page in S3.get_paginator("list_object_versions").paginate(Bucket=BUCKET):
        for kind in ("Versions", "DeleteMarkers"):
            for row in page.get(kind, []):
                versions, markers = left.setdefault(row["Key"], [0, 0])
                left[row["Key"]] = [versions + (kind == "Versions"), markers + (kind != "Versions")]
    assert left == {
        "all/a": [1, 0], "all/large": [1, 0], "alone/a": [0, 1], "kept/a": [3, 0], "kept/b": [3, 0], "late/a": [3, 0], "none/a": [3, 0],
        "locked/a": [2, 0], "marked/held": [1, 1], "stays/a": [0, 1], "tagged/a": [3, 0], "ends/a": [1, 1],
    }, left
    body = lambda key: S3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    assert body("all/a") == b"all/a 3" and body("kept/a") == b"kept/a 4" and body("all/large") == b"x" * 3_000_000



def put_versions():
    """What is put while versions end stays: the current one, and so many behind it as the rules keep."""
    made = {"all/race": [], "kept/race": []}
    for n in range(150):
        for key, ids in made.items():
            body = b"%s %d" % (key.encode(), n) * (1, 200, 9000)[n % 3]
            ids.append((S3.put_object(Bucket=BUCKET, Key=key, Body=body)["VersionId"], body))
    for key, stay in (("all/race", 1), ("kept/race", 3)):
        newest = made[key][:-stay - 1:-1]
        rows = S3.list_object_versions(Bucket=BUCKET, Prefix=key)["Versions"]
        assert [r["VersionId"] for r in rows[:stay]] == [id for id, _ in newest], (key, rows[:stay])
        for id, body in newest:
            assert S3.get_object(Bucket=BUCKET, Key=key, VersionId=id)["Body"].read() == body
        assert S3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == newest[0][1]


{"make": make, "verify": verify, "make-versions": make_versions, "verify-versions": verify_versions, "put-versions": put_versions}[STAGE]()
