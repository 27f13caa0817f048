#!/usr/bin/env python3
"""Parts of uploads, some of which nobody waits for.

    parts.py ENDPOINT STAGE

leave: uploads are given up while parts of them come, whose senders go away. make: an upload with one part. complete: that one.
"""
import sys, time

ENDPOINT, STAGE = sys.argv[1:3]
sys.argv = sys.argv[:2]
from check import RANDOM, S3, body, data
from malformed import Line, Request

BUCKET, KEY = "parts-of-uploads", "k"


def leave():
    S3.create_bucket(Bucket=BUCKET)
    for _ in range(100):
        x = data(RANDOM.choice((100, 200_000)))
        upload = S3.create_multipart_upload(Bucket=BUCKET, Key=KEY)["UploadId"]
        more = {"content-length": "%d" % len(x), "expect": "100-continue"}
        head = Request("PUT", "/%s/%s" % (BUCKET, KEY), query="partNumber=1&uploadId=" + upload, more=more).head
        line = Line().send(head)
        told = line.reply()
        assert told and told[0] == 100, told
        S3.abort_multipart_upload(Bucket=BUCKET, Key=KEY, UploadId=upload)
        line.send(x)
        # It is dropped wherever it is by then.
        time.sleep(RANDOM.random() * 0.02)
        line.socket.close()


def make():
    upload = S3.create_multipart_upload(Bucket=BUCKET, Key=KEY)["UploadId"]
    S3.upload_part(Bucket=BUCKET, Key=KEY, UploadId=upload, PartNumber=1, Body=b"part")


def complete():
    upload = S3.list_multipart_uploads(Bucket=BUCKET)["Uploads"][0]["UploadId"]
    parts = S3.list_parts(Bucket=BUCKET, Key=KEY, UploadId=upload)["Parts"]
    named = {"Parts": [{"PartNumber": part["PartNumber"], "ETag": part["ETag"]} for part in parts]}
    S3.complete_multipart_upload(Bucket=BUCKET, Key=KEY, UploadId=upload, MultipartUpload=named)
    assert body(BUCKET, KEY) == b"part"


{"leave": leave, "make": make, "complete": complete}[STAGE]()
