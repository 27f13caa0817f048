#!/usr/bin/env python3
"""What grows old ends: objects and uploads that a clock is moved for.

    lifecycle.py ENDPOINT make BUCKET        makes them, and the rules
    lifecycle.py ENDPOINT verify BUCKET      asks for what is to be there after 3 days, and for nothing else
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


{"make": make, "verify": verify}[STAGE]()
