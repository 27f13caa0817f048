#!/usr/bin/env python3
"""Uploads, encrypted in each way and not, that a gateway was putting together which is gone.

    takeover.py ENDPOINT STAGE FOLDER

begin: makes them, and names them in FOLDER. early: the gateway may be at it still. late: it is certainly gone. Between the
stages whoever calls writes into the uploads' records how long ago that gateway began: no client can.
"""
import json, os, sys

ENDPOINT, STAGE, FOLDER = sys.argv[1:4]
sys.argv = sys.argv[:2]
from check import MIB, OTHER, S3, body, fails
from encryption import B, EXPECTED, WAYS, said

BUCKET = "taken-over"
CONTENTS = {way: [way.encode() * MIB, way.encode() * 9] for way in WAYS}


def begin():
    S3.create_bucket(Bucket=BUCKET)
    for way, (put, get, _) in WAYS.items():
        of = dict(Bucket=BUCKET, Key=way, UploadId=S3.create_multipart_upload(Bucket=BUCKET, Key=way, **put)["UploadId"])
        parts = [{"PartNumber": n, "ETag": S3.upload_part(**of, PartNumber=n, Body=content, **get)["ETag"]}
                 for n, content in enumerate(CONTENTS[way], 1)]
        with open(os.path.join(FOLDER, way), "w") as file:
            json.dump(dict(of, MultipartUpload={"Parts": parts}), file)


def uploads():
    for way, (_, get, _) in WAYS.items():
        with open(os.path.join(FOLDER, way)) as file:
            yield way, get, json.load(file)


def early():
    for _, get, of in uploads():
        fails("ServiceUnavailable", 503, S3.complete_multipart_upload, **of, **get)


def late():
    for way, get, of in uploads():
        if way == "customer":
            for wrong in ({}, B.of):
                fails("InvalidRequest", 400, S3.complete_multipart_upload, **of, **wrong)
        for _ in range(2):
            made = OTHER.complete_multipart_upload(**of, **get)
            assert said(made) == EXPECTED[way] and made["ETag"].endswith('-2"'), (way, made)
        assert body(BUCKET, way, **get) == b"".join(CONTENTS[way]), way
        assert body(BUCKET, way, PartNumber=2, **get) == CONTENTS[way][1], way


{"begin": begin, "early": early, "late": late}[STAGE]()
