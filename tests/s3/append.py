#!/usr/bin/env python3
"""Asks an S3 endpoint, through boto3, whether objects grow at their end as they do in Amazon's directory buckets.

    append.py ENDPOINT            with credentials from the environment, as boto3 takes them
    append.py ENDPOINT NAME...    only the checks whose names contain one of these

ENDPOINT2, if set, is another way in to the same buckets. Each check makes a bucket of its own and removes it.
"""
import base64, concurrent.futures, zlib

from botocore.exceptions import ClientError

from check import MIB, OTHER, S3, bucket, data, fails, main


def crc32(whole):
    return base64.b64encode(zlib.crc32(whole).to_bytes(4, "big")).decode()


def append(b, k, offset, body, s3=S3, **args):
    return s3.put_object(Bucket=b, Key=k, Body=body, WriteOffsetBytes=offset, **args)


def read(b, k, s3=S3, **args):
    return s3.get_object(Bucket=b, Key=k, **args)["Body"].read()


def is_there(b, k, body):
    for s3 in (S3, OTHER):
        head = s3.head_object(Bucket=b, Key=k)
        assert head["ContentLength"] == len(body), (head["ContentLength"], len(body))
        assert read(b, k, s3) == body


def test_an_object_is_made_and_grows():
    with bucket() as b:
        whole = data(10)
        made = append(b, "k", 0, whole, ContentType="text/x-log", Metadata={"a": "1"}, Tagging="t=1")
        for length in (1, 4096, 70_000, 6 * MIB, 100, 9 * MIB, 0, 1):
            more = data(length)
            grown = append(b, "k", len(whole), more)
            whole += more
            assert grown["Size"] == len(whole), grown
            assert grown["ETag"] != made["ETag"], made
            made = grown
            is_there(b, "k", whole)
            head = S3.head_object(Bucket=b, Key="k", ChecksumMode="ENABLED")
            assert head["ETag"] == made["ETag"] and head["ContentType"] == "text/x-log", head
            assert head["Metadata"] == {"a": "1"} and head["ChecksumType"] == "FULL_OBJECT", head
            assert head["ChecksumCRC32"] == grown["ChecksumCRC32"] == crc32(whole), head
        at = len(whole) - 9 * MIB
        assert read(b, "k", Range="bytes=%d-%d" % (at - 300, at + 300)) == whole[at - 300 : at + 301]
        assert S3.get_object_tagging(Bucket=b, Key="k")["TagSet"] == [{"Key": "t", "Value": "1"}]
        listed = S3.list_objects_v2(Bucket=b)["Contents"]
        assert [(o["Key"], o["Size"], o["ETag"]) for o in listed] == [("k", len(whole), made["ETag"])], listed


def test_only_its_end_is_written_at():
    with bucket() as b:
        fails("InvalidWriteOffset", 400, append, b=b, k="k", offset=1, body=b"x")
        append(b, "k", 0, b"abc")
        for offset in (0, 1, 2, 4, 1 << 40):
            fails("InvalidWriteOffset", 400, append, b=b, k="k", offset=offset, body=b"x")
        is_there(b, "k", b"abc")
        append(b, "k", 3, b"")
        append(b, "k", 3, b"d")
        is_there(b, "k", b"abcd")
        empty = S3.put_object(Bucket=b, Key="empty", Body=b"")
        append(b, "empty", 0, b"x", IfMatch=empty["ETag"])
        is_there(b, "empty", b"x")


def test_conditions_and_what_is_not_for_it():
    with bucket() as b:
        made = append(b, "k", 0, b"abc", IfNoneMatch="*")
        fails("PreconditionFailed", 412, append, b=b, k="k", offset=3, body=b"x", IfNoneMatch="*")
        fails("PreconditionFailed", 412, append, b=b, k="k", offset=3, body=b"x", IfMatch='"%s"' % ("0" * 32))
        fails("InvalidRequest", 400, append, b=b, k="k", offset=3, body=b"x", Metadata={"b": "2"})
        fails("InvalidRequest", 400, append, b=b, k="k", offset=3, body=b"x", Tagging="a=b")
        # What was made with a CRC-32 is not made longer by another kind.
        fails("InvalidRequest", 400, append, b=b, k="k", offset=3, body=b"x", ChecksumAlgorithm="SHA1")
        fails("BadDigest", 400, append, b=b, k="k", offset=3, body=b"x", ChecksumCRC32="AAAAAA==")
        is_there(b, "k", b"abc")
        append(b, "k", 3, b"d", IfMatch=made["ETag"])
        is_there(b, "k", b"abcd")
        S3.put_object(Bucket=b, Key="sha", Body=b"abc", ChecksumAlgorithm="SHA256")
        grown = append(b, "sha", 3, b"d")
        assert not [name for name in grown if name.startswith("ChecksumSHA")], grown
        is_there(b, "sha", b"abcd")


def test_objects_of_parts_grow():
    with bucket() as b:
        upload = S3.create_multipart_upload(Bucket=b, Key="k", ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT")
        name = {"Bucket": b, "Key": "k", "UploadId": upload["UploadId"]}
        whole, parts = b"", []
        for number, length in ((1, 5 * MIB), (2, 5 * MIB + 1), (3, 7)):
            body = data(length)
            part = S3.upload_part(Body=body, PartNumber=number, ChecksumAlgorithm="CRC32", **name)
            parts.append({"PartNumber": number, "ETag": part["ETag"], "ChecksumCRC32": part["ChecksumCRC32"]})
            whole += body
        S3.complete_multipart_upload(MultipartUpload={"Parts": parts}, ChecksumType="FULL_OBJECT", **name)
        more = data(5 * MIB)
        grown = append(b, "k", len(whole), more)
        whole += more
        assert grown["ETag"].endswith('-4"') and grown["ChecksumCRC32"] == crc32(whole), grown
        is_there(b, "k", whole)
        # A copy is an object of its own, and what replaces the one that grew leaves it alone.
        S3.copy_object(Bucket=b, Key="copy", CopySource={"Bucket": b, "Key": "k"})
        S3.put_object(Bucket=b, Key="k", Body=b"new")
        is_there(b, "copy", whole)
        is_there(b, "k", b"new")


def test_buckets_that_keep_versions_are_not_for_it():
    with bucket() as b:
        append(b, "k", 0, b"abc")
        for status in ("Enabled", "Suspended"):
            S3.put_bucket_versioning(Bucket=b, VersioningConfiguration={"Status": status})
            fails("InvalidRequest", 400, append, b=b, k="k", offset=3, body=b"x")
            fails("InvalidRequest", 400, append, b=b, k="new", offset=0, body=b"x")
        is_there(b, "k", b"abc")
        S3.delete_object(Bucket=b, Key="k", VersionId="null")


def test_of_those_who_append_at_once_one_does():
    with bucket() as b, concurrent.futures.ThreadPoolExecutor(8) as threads:
        whole = b""
        append(b, "k", 0, whole)
        for length in (20, 20, 100_000, 20):
            said = [data(length) for _ in range(8)]

            def one(i):
                try:
                    return append(b, "k", len(whole), said[i], s3=(S3, OTHER)[i % 2])["Size"]
                except ClientError as error:
                    code = error.response["Error"]["Code"]
                    assert code in ("InvalidWriteOffset", "ConditionalRequestConflict"), error
                    return None

            done = list(threads.map(one, range(8)))
            won = [i for i, size in enumerate(done) if size is not None]
            assert len(won) == 1 and done[won[0]] == len(whole) + length, done
            whole += said[won[0]]
            is_there(b, "k", whole)


def test_a_log_that_many_write_has_every_line_once():
    with bucket() as b, concurrent.futures.ThreadPoolExecutor(4) as threads:
        append(b, "log", 0, b"")

        def writer(w):
            s3, at = (S3, OTHER)[w % 2], []
            for n in range(12):
                line = b"%d %04d\n" % (w, n)
                while True:
                    size = s3.head_object(Bucket=b, Key="log")["ContentLength"]
                    try:
                        append(b, "log", size, line, s3=s3)
                        at.append((size, line))
                        break
                    except ClientError as error:
                        code = error.response["Error"]["Code"]
                        assert code in ("InvalidWriteOffset", "ConditionalRequestConflict", "SlowDown"), error
            return at

        written = [row for rows in threads.map(writer, range(4)) for row in rows]
        log = read(b, "log")
        assert len(log) == sum(len(line) for _, line in written), log
        for at, line in written:
            assert log[at : at + len(line)] == line, (at, line)


if __name__ == "__main__":
    main(globals())
