#!/usr/bin/env python3
"""Asks an S3 endpoint, through boto3, whether what is encrypted is, and comes back to who has the key.

    encryption.py ENDPOINT            with credentials from the environment, as boto3 takes them
    encryption.py ENDPOINT NAME...    only the checks whose names contain one of these

ENDPOINT2, if set, is another way in to the same buckets. ASHLAR and ASHLAR_CLUSTER, if set, are the command and a rig's
folder: then devices are searched for what they must not hold, and a node is killed while an object is read.
"""
import base64, glob, hashlib, itertools, json, mmap, os, signal, subprocess, urllib.request

from check import MIB, OTHER, S3, body, bucket, client, data, fails, http, main

MARK = b"nobody may read this on a device: "


class Customer:
    """A customer's key, as boto3 takes it: for a request, and for the source of a copy."""

    def __init__(self, key):
        self.key, self.md5 = key, base64.b64encode(hashlib.md5(key).digest()).decode()
        names = ("SSECustomerAlgorithm", "SSECustomerKey", "SSECustomerKeyMD5")
        values = ("AES256", base64.b64encode(key).decode(), self.md5)
        # boto3 encodes a key by itself, unless the digest is given too.
        self.of = dict(zip(names, values))
        self.source = {"CopySource" + name: value for name, value in self.of.items()}


A, B = Customer(b"a" * 32), Customer(b"b" * 32)
STORE = {"ServerSideEncryption": "AES256"}
# How something is put, how it is read, and how it is copied from.
WAYS = {"plain": ({}, {}, {}), "store": (STORE, {}, {}), "customer": (A.of, A.of, A.source)}


def said(reply):
    """How a reply says that an object is encrypted."""
    headers = reply["ResponseMetadata"]["HTTPHeaders"]
    start = "x-amz-server-side-encryption"
    return {k[len(start):]: v for k, v in headers.items() if k.startswith(start)}


EXPECTED = {"plain": {}, "store": {"": "AES256"},
            "customer": {"-customer-algorithm": "AES256", "-customer-key-md5": A.md5}}


def test_put_get_head_and_ranges():
    with bucket() as b:
        for (way, (put, get, _)), size in itertools.product(WAYS.items(), (0, 1, 13, 1000, MIB + 1, 9 * MIB + 5)):
            k, content = "%s-%d" % (way, size), data(size)
            made = S3.put_object(Bucket=b, Key=k, Body=content, ChecksumAlgorithm="CRC32", **put)
            assert said(made) == EXPECTED[way], (k, said(made))
            is_md5 = made["ETag"] == '"%s"' % hashlib.md5(content).hexdigest()
            assert is_md5 == (way != "customer"), (k, made["ETag"])
            for s3 in (S3, OTHER):
                read = s3.get_object(Bucket=b, Key=k, ChecksumMode="ENABLED", **get)
                assert read["Body"].read() == content and said(read) == EXPECTED[way], k
                assert read["ETag"] == made["ETag"] and read["ChecksumCRC32"] == made["ChecksumCRC32"], k
            head = S3.head_object(Bucket=b, Key=k, **get)
            assert (head["ContentLength"], said(head)) == (size, EXPECTED[way]), k
            for first, last in ((0, 0), (15, 16), (17, 40), (size - 7, size + 7), (4 * MIB - 1, 4 * MIB + 1)):
                if 0 <= first < size:
                    part = body(b, k, Range="bytes=%d-%d" % (first, last), **get)
                    assert part == content[first:last + 1], (k, first, last)
        listed = {o["Key"]: o["Size"] for o in S3.list_objects_v2(Bucket=b)["Contents"]}
        assert listed["customer-1000"] == 1000 and listed["store-%d" % (9 * MIB + 5)] == 9 * MIB + 5


def test_keys_that_do_not_fit():
    with bucket() as b:
        S3.put_object(Bucket=b, Key="mine", Body=b"x" * 100, Metadata={"a": "1"}, **A.of)
        S3.put_object(Bucket=b, Key="store", Body=b"x", **STORE)
        S3.put_object(Bucket=b, Key="plain", Body=b"x")
        attributes = {"ObjectAttributes": ["ETag", "Checksum"]}
        for call, args in ((S3.get_object, {}), (S3.get_object, {"Range": "bytes=0-1"}),
                           (S3.get_object, {"IfNoneMatch": S3.head_object(Bucket=b, Key="mine", **A.of)["ETag"]}),
                           (S3.get_object_attributes, attributes)):
            fails("InvalidRequest", 400, call, Bucket=b, Key="mine", **args)
            fails("AccessDenied", 403, call, Bucket=b, Key="mine", **args, **B.of)
            fails("InvalidRequest", 400, call, Bucket=b, Key="store", **args, **A.of)
            fails("InvalidRequest", 400, call, Bucket=b, Key="plain", **args, **A.of)
        fails("400", 400, S3.head_object, Bucket=b, Key="mine")
        fails("403", 403, S3.head_object, Bucket=b, Key="mine", **B.of)
        copy = dict(Bucket=b, Key="copy", CopySource={"Bucket": b, "Key": "mine"})
        fails("InvalidRequest", 400, S3.copy_object, **copy)
        fails("AccessDenied", 403, S3.copy_object, **copy, **B.source)
        fails("404", 404, S3.head_object, Bucket=b, Key="copy")
        assert S3.get_object_attributes(Bucket=b, Key="mine", **attributes, **A.of)["ETag"]
        # What needs no bytes needs no key.
        S3.put_object_tagging(Bucket=b, Key="mine", Tagging={"TagSet": [{"Key": "t", "Value": "1"}]})
        assert S3.get_object_tagging(Bucket=b, Key="mine")["TagSet"] == [{"Key": "t", "Value": "1"}]
        read = S3.get_object(Bucket=b, Key="mine", **A.of)
        assert (read["Body"].read(), read["Metadata"], read["TagCount"]) == (b"x" * 100, {"a": "1"}, 1)


def test_what_is_refused_touches_nothing():
    with bucket() as b:
        S3.put_object(Bucket=b, Key="k", Body=b"stays")
        put = dict(Bucket=b, Key="k", Body=b"no")
        fails("InvalidArgument", 400, S3.put_object, **put, **STORE, **A.of)
        fails("InvalidArgument", 400, S3.put_object, **put, **dict(A.of, SSECustomerKeyMD5=B.md5))
        fails("InvalidArgument", 400, S3.put_object, **put, **dict(A.of, SSECustomerAlgorithm="AES192"))
        fails("InvalidArgument", 400, S3.put_object, **put, ServerSideEncryption="AES512")
        for way in ("aws:kms", "aws:kms:dsse"):
            fails("NotImplemented", 501, S3.put_object, **put, ServerSideEncryption=way)
            fails("NotImplemented", 501, S3.create_multipart_upload, Bucket=b, Key="k", ServerSideEncryption=way)
            fails("NotImplemented", 501, S3.copy_object, Bucket=b, Key="k2", CopySource={"Bucket": b, "Key": "k"},
                  ServerSideEncryption=way)
            rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": way}}
            fails("NotImplemented", 501, S3.put_bucket_encryption, Bucket=b,
                  ServerSideEncryptionConfiguration={"Rules": [rule]})
        fails("ServerSideEncryptionConfigurationNotFoundError", 404, S3.get_bucket_encryption, Bucket=b)
        assert [o["Key"] for o in S3.list_objects_v2(Bucket=b)["Contents"]] == ["k"]
        assert body(b, "k") == b"stays" and not S3.list_multipart_uploads(Bucket=b).get("Uploads")
        # What is encrypted does not grow.
        for way in ("store", "customer"):
            S3.put_object(Bucket=b, Key=way, Body=b"x", **WAYS[way][0])
            fails("InvalidRequest", 400, S3.put_object, Bucket=b, Key=way, Body=b"y", WriteOffsetBytes=1)
            assert body(b, way, **WAYS[way][1]) == b"x"


def test_copies_between_all_ways():
    content = data(MIB + 77)
    with bucket() as b:
        for way, (put, _, _) in WAYS.items():
            S3.put_object(Bucket=b, Key=way, Body=content, Tagging="t=1", Metadata={"m": "1"}, **put)
        for (old, (_, _, source)), (new, (put, get, _)) in itertools.product(WAYS.items(), WAYS.items()):
            k = "%s-%s" % (old, new)
            copied = S3.copy_object(Bucket=b, Key=k, CopySource={"Bucket": b, "Key": old}, **put, **source)
            assert said(copied) == EXPECTED[new], (k, said(copied))
            read = S3.get_object(Bucket=b, Key=k, **get)
            assert read["Body"].read() == content and said(read) == EXPECTED[new], k
            assert (read["Metadata"], read["TagCount"], read["ETag"]) == (
                {"m": "1"}, 1, copied["CopyObjectResult"]["ETag"]), k
        # Onto itself, for other metadata: encrypted as it was.
        copied = S3.copy_object(Bucket=b, Key="store", CopySource={"Bucket": b, "Key": "store"}, Metadata={"m": "2"},
                                MetadataDirective="REPLACE")
        assert said(copied) == EXPECTED["store"] and body(b, "store") == content
        # From now on with another key. Without a word of encryption nothing would change.
        itself = dict(Bucket=b, Key="plain", CopySource={"Bucket": b, "Key": "plain"})
        fails("InvalidRequest", 400, S3.copy_object, **itself)
        S3.copy_object(**itself, **A.of)
        S3.copy_object(**itself, **A.source, **B.of)
        assert body(b, "plain", **B.of) == content
        fails("AccessDenied", 403, S3.get_object, Bucket=b, Key="plain", **A.of)


def test_uploads_in_parts():
    first, second, copied = data(5 * MIB + 3), data(5 * MIB), data(100)
    with bucket() as b:
        S3.put_object(Bucket=b, Key="source", Body=copied, **B.of)
        for way, (put, get, _) in WAYS.items():
            upload = S3.create_multipart_upload(Bucket=b, Key=way, **put)
            assert said(upload) == EXPECTED[way]
            of = dict(Bucket=b, Key=way, UploadId=upload["UploadId"])
            if way == "customer":
                for wrong in ({}, B.of):
                    fails("InvalidRequest", 400, S3.upload_part, **of, PartNumber=1, Body=b"x", **wrong)
            else:
                fails("InvalidRequest", 400, S3.upload_part, **of, PartNumber=1, Body=b"x", **A.of)
            parts = []
            for number, content in ((1, second), (1, first), (2, second)):
                part = S3.upload_part(**of, PartNumber=number, Body=content, **get)
                assert said(part) == EXPECTED[way]
                parts = [p for p in parts if p["PartNumber"] != number]
                parts.append({"PartNumber": number, "ETag": part["ETag"], "ChecksumCRC32": part.get("ChecksumCRC32")})
            # Not even how long it is, is told without its key.
            fails("AccessDenied", 403, S3.upload_part_copy, **of, PartNumber=3, CopySource={"Bucket": b, "Key": "source"},
                  CopySourceRange="bytes=200-299", **A.source, **get)
            part = S3.upload_part_copy(**of, PartNumber=3, CopySource={"Bucket": b, "Key": "source"},
                                       CopySourceRange="bytes=1-99", **B.source, **get)
            parts.append({"PartNumber": 3, "ETag": part["CopyPartResult"]["ETag"],
                          "ChecksumCRC32": part["CopyPartResult"].get("ChecksumCRC32")})
            parts = [{k: v for k, v in p.items() if v} for p in parts]
            listed = [p["ETag"] for p in S3.list_parts(**of, **get)["Parts"]]
            assert listed == [p["ETag"] for p in parts], (listed, parts)
            if way == "customer":
                for wrong in ({}, B.of):
                    fails("InvalidRequest", 400, S3.complete_multipart_upload, **of, MultipartUpload={"Parts": parts},
                          **wrong)
            made = S3.complete_multipart_upload(**of, MultipartUpload={"Parts": parts}, **get)
            assert said(made) == EXPECTED[way] and made["ETag"].endswith('-3"'), (way, made)
            whole = first + second + copied[1:]
            read = OTHER.get_object(Bucket=b, Key=way, **get)
            assert read["Body"].read() == whole and said(read) == EXPECTED[way], way
            at = len(first)
            part = body(b, way, Range="bytes=%d-%d" % (at - 9, at + 9), **get)
            assert part == whole[at - 9:at + 10], way
            assert body(b, way, PartNumber=3, **get) == copied[1:], way


def test_a_buckets_default():
    with bucket() as b:
        fails("ServerSideEncryptionConfigurationNotFoundError", 404, S3.get_bucket_encryption, Bucket=b)
        S3.put_object(Bucket=b, Key="before", Body=b"x")
        rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}, "BucketKeyEnabled": False}
        S3.put_bucket_encryption(Bucket=b, ServerSideEncryptionConfiguration={"Rules": [rule]})
        found = S3.get_bucket_encryption(Bucket=b)["ServerSideEncryptionConfiguration"]["Rules"]
        assert found == [rule], found
        assert said(S3.head_object(Bucket=b, Key="before")) == {}
        fails("InvalidRequest", 400, S3.put_object, Bucket=b, Key="before", Body=b"y", WriteOffsetBytes=1)
        assert said(OTHER.put_object(Bucket=b, Key="k", Body=b"x" * 99)) == EXPECTED["store"]
        assert said(S3.put_object(Bucket=b, Key="own", Body=b"x", **A.of)) == EXPECTED["customer"]
        copied = S3.copy_object(Bucket=b, Key="copy", CopySource={"Bucket": b, "Key": "before"})
        assert said(copied) == EXPECTED["store"] and body(b, "copy") == b"x"
        assert said(S3.create_multipart_upload(Bucket=b, Key="parts")) == EXPECTED["store"]
        form = S3.generate_presigned_post(b, "form")
        edge = "edge"
        fields = "".join('--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (edge, k, v)
                         for k, v in list(form["fields"].items()) + [("file", "posted")])
        status, headers, _ = http("POST", form["url"], {"content-type": "multipart/form-data; boundary=" + edge},
                                  (fields + "--%s--\r\n" % edge).encode())
        assert (status, headers["x-amz-server-side-encryption"]) == (204, "AES256"), (status, headers)
        assert body(b, "form") == b"posted"
        S3.delete_bucket_encryption(Bucket=b)
        fails("ServerSideEncryptionConfigurationNotFoundError", 404, S3.get_bucket_encryption, Bucket=b)
        assert said(S3.put_object(Bucket=b, Key="k2", Body=b"x")) == {} and body(b, "k") == b"x" * 99


def test_versions_tags_and_other_keys():
    with bucket() as b:
        S3.put_object(Bucket=b, Key="k", Body=b"moves", **A.of)
        S3.rename_object(Bucket=b, Key="k2", RenameSource="k")
        assert body(b, "k2", **A.of) == b"moves"
        S3.delete_object(Bucket=b, Key="k2")
        S3.put_bucket_versioning(Bucket=b, VersioningConfiguration={"Status": "Enabled"})
        ids = []
        for customer in (A, B, None):
            args = customer.of if customer else STORE
            ids.append(S3.put_object(Bucket=b, Key="k", Body=b"v%d" % len(ids), **args)["VersionId"])
        for id in ids:
            S3.put_object_tagging(Bucket=b, Key="k", VersionId=id, Tagging={"TagSet": [{"Key": "a", "Value": id}]})
        assert body(b, "k", VersionId=ids[0], **A.of) == b"v0" and body(b, "k", VersionId=ids[1], **B.of) == b"v1"
        assert body(b, "k") == b"v2"
        fails("AccessDenied", 403, S3.get_object, Bucket=b, Key="k", VersionId=ids[1], **A.of)
        S3.delete_object(Bucket=b, Key="k", VersionId=ids[2])
        assert body(b, "k", **B.of) == b"v1"
        for id in ids[:2]:
            S3.delete_object(Bucket=b, Key="k", VersionId=id)


def test_presigned_urls_and_policies():
    with bucket() as b:
        url = S3.generate_presigned_url("put_object", {"Bucket": b, "Key": "k", **A.of})
        headers = {"x-amz-server-side-encryption-customer-" + k: v for k, v in
                   (("algorithm", "AES256"), ("key", A.of["SSECustomerKey"]), ("key-MD5", A.md5))}
        request = urllib.request.Request(url, b"presigned", headers, method="PUT")
        assert urllib.request.urlopen(request).status == 200
        url = S3.generate_presigned_url("get_object", {"Bucket": b, "Key": "k", **A.of})
        assert urllib.request.urlopen(urllib.request.Request(url, headers=headers)).read() == b"presigned"
        only = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::%s/*" % b}
        for name, right, wrong in (("", STORE, A.of), ("-customer-algorithm", A.of, STORE)):
            statement = dict(only, Condition={"Null": {"s3:x-amz-server-side-encryption" + name: "true"}})
            policy = {"Version": "2012-10-17", "Statement": [statement]}
            S3.put_bucket_policy(Bucket=b, Policy=json.dumps(policy))
            fails("AccessDenied", 403, S3.put_object, Bucket=b, Key="p", Body=b"x", **wrong)
            fails("AccessDenied", 403, S3.put_object, Bucket=b, Key="p", Body=b"x")
            S3.put_object(Bucket=b, Key="p", Body=b"x", **right)


def ashlar(*words):
    command = [os.environ["ASHLAR"], "--cluster", os.environ["ASHLAR_CLUSTER"], *words]
    return subprocess.run(command, capture_output=True, text=True)


def on_devices(runs):
    """Which of these runs of bytes the rig's files hold: of a device, where a rig that is new has written."""
    found = set()
    for path in glob.glob(os.environ["ASHLAR_CLUSTER"] + "/**/*", recursive=True):
        if os.path.isfile(path) and os.path.getsize(path):
            with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as held:
                found |= {run for run in runs if held.find(run, 0, 192 * MIB) >= 0}
    return found


def test_devices_hold_nothing_of_it():
    if "ASHLAR" not in os.environ:
        return print("  no rig at hand")
    with bucket() as b:
        for way, (put, _, _) in WAYS.items():
            for k, content in ((way, (MARK + way.encode()) * 3), (way + "-long", (MARK + way.encode()) * 50_000)):
                S3.put_object(Bucket=b, Key=k, Body=content, **put)
        marks = {MARK + way.encode() for way in WAYS}
        # What is not encrypted is found, so the rest would be.
        found = on_devices(marks | {A.key, A.of["SSECustomerKey"].encode()})
        assert found == {MARK + b"plain"}, found
        # Who comes without the gateway is given nothing that would be taken for the object.
        for way in ("store", "customer-long"):
            got = ashlar("get", "ashlar://%s/%s" % (b, way), "-")
            assert got.returncode != 0 and "encrypted" in got.stderr and not got.stdout, got
        assert ashlar("get", "ashlar://%s/plain" % b, "-").stdout.encode() == (MARK + b"plain") * 3


def test_a_node_dies_while_it_is_read():
    if "ASHLAR" not in os.environ:
        return print("  no rig at hand")
    content = data(40 * MIB)
    with bucket() as b:
        S3.put_object(Bucket=b, Key="k", Body=content, **A.of)
        read = S3.get_object(Bucket=b, Key="k", **A.of)["Body"]
        got = [read.read(MIB)]
        status = json.loads(ashlar("rig", "--dir", os.environ["ASHLAR_CLUSTER"], "status", "--json").stdout)
        os.kill(status["nodes"][-1]["pid"], signal.SIGKILL)
        got.append(read.read())
        assert b"".join(got) == content
        assert body(b, "k", Range="bytes=%d-" % (4 * MIB - 3), **A.of) == content[4 * MIB - 3:]
        S3.put_object(Bucket=b, Key="k2", Body=content[:9 * MIB], **STORE)
        assert OTHER.get_object(Bucket=b, Key="k2")["Body"].read() == content[:9 * MIB]


if __name__ == "__main__":
    main(globals())
