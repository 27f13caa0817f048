#!/usr/bin/env python3
"""Asks an S3 endpoint, through boto3, who is let in by access control lists, as Amazon lets them in.

    acl.py ENDPOINT            with credentials from the environment, as boto3 takes them
    acl.py ENDPOINT NAME...    only the checks whose names contain one of these

ALT_KEY and ALT_SECRET are a second user's, ENDPOINT2, if set, is another way in to the same buckets. Buckets are made by
a third, who may do no more than others: OWNER_KEY and OWNER_SECRET, or one that ASHLAR, the command, makes.
"""
import concurrent.futures, json, os, subprocess

from botocore import UNSIGNED
from botocore.exceptions import ClientError

from check import ENDPOINT, RANDOM, SEED, S3, body, client, fails, http, main

SECOND = os.environ.get("ENDPOINT2", ENDPOINT)


def owner(name="owner"):
    if "OWNER_KEY" in os.environ:
        return os.environ["OWNER_KEY"], os.environ["OWNER_SECRET"]
    made = subprocess.run([os.environ["ASHLAR"], "user", "add", "%s-%08x" % (name, SEED), "--json"], check=True, capture_output=True)
    made = json.loads(made.stdout)
    return made["access_key_id"], made["secret_access_key"]


OWN_KEYS = owner()
OWN, OWN2 = client(*OWN_KEYS), client(*OWN_KEYS, endpoint=SECOND)
ALT = client(os.environ["ALT_KEY"], os.environ["ALT_SECRET"])
ALT2 = client(os.environ["ALT_KEY"], os.environ["ALT_SECRET"], endpoint=SECOND)
ANY = client(endpoint=SECOND, signature_version=UNSIGNED)
OWNER, OTHER = (s3.list_buckets()["Owner"]["ID"] for s3 in (OWN, ALT))
GROUPS = "http://acs.amazonaws.com/groups/global/"
EVERYBODY = ("READ", "AllUsers")


class bucket:
    """A bucket for a check, without anything in it when it has ended."""

    def __init__(self, acl=None, ownership="ObjectWriter"):
        self.name = "acl-%08x-%08x" % (SEED, RANDOM.randrange(1 << 32))
        self.args = {"ObjectOwnership": ownership} if ownership else {}
        self.args.update({"ACL": acl} if acl else {})

    def __enter__(self):
        OWN.create_bucket(Bucket=self.name, **self.args)
        return self.name

    def __exit__(self, *_):
        # Whose the bucket is may remove what others have put.
        page = OWN.list_object_versions(Bucket=self.name)
        for one in page.get("Versions", []) + page.get("DeleteMarkers", []):
            OWN.delete_object(Bucket=self.name, Key=one["Key"], VersionId=one["VersionId"])
        OWN.delete_bucket(Bucket=self.name)


def denied(call, **args):
    fails("AccessDenied", 403, call, **args)


def grants(acl):
    """What is granted to whom, in any order."""
    name = lambda to: to["URI"].removeprefix(GROUPS) if to["Type"] == "Group" else to["ID"]
    return sorted((g["Permission"], name(g["Grantee"])) for g in acl["Grants"])


def acl_of(s3, b, k=None, **args):
    acl = s3.get_object_acl(Bucket=b, Key=k, **args) if k else s3.get_bucket_acl(Bucket=b)
    return acl["Owner"]["ID"], grants(acl)


def test_ownership():
    with bucket(ownership=None) as b:
        # What nobody asked for is as it always was: no lists.
        denied(ALT.put_object, Bucket=b, Key="k")
        fails("AccessControlListNotSupported", 400, OWN.put_object, Bucket=b, Key="k", ACL="public-read")
        fails("AccessControlListNotSupported", 400, OWN.put_object, Bucket=b, Key="k", GrantRead="id=" + OTHER)
        fails("AccessControlListNotSupported", 400, OWN.put_bucket_acl, Bucket=b, ACL="public-read")
        fails("OwnershipControlsNotFoundError", 404, OWN.get_bucket_ownership_controls, Bucket=b)
        assert acl_of(OWN, b) == (OWNER, [("FULL_CONTROL", OWNER)])
        for kind in ("BucketOwnerPreferred", "ObjectWriter", "BucketOwnerEnforced"):
            OWN.put_bucket_ownership_controls(Bucket=b, OwnershipControls={"Rules": [{"ObjectOwnership": kind}]})
            told = OWN.get_bucket_ownership_controls(Bucket=b)["OwnershipControls"]["Rules"]
            assert told == [{"ObjectOwnership": kind}]
        fails("AccessControlListNotSupported", 400, OWN.put_bucket_acl, Bucket=b, ACL="private")
        bad = {"Rules": [{"ObjectOwnership": "Whoever"}]}
        fails("MalformedXML", 400, OWN.put_bucket_ownership_controls, Bucket=b, OwnershipControls=bad)
        fails("BucketAlreadyOwnedByYou", 409, OWN.create_bucket, Bucket=b, ObjectOwnership="ObjectWriter")
    fails("InvalidBucketAclWithObjectOwnership", 400, OWN.create_bucket, Bucket="x" + b, ACL="public-read")
    fails("InvalidArgument", 400, OWN.create_bucket, Bucket="x" + b, ObjectOwnership="Whoever")


def test_lists_and_tags_of_old_versions():
    """Whoever sets the one does not undo the other, that somebody sets at that moment: small ones, and such as stand in stripes."""
    with bucket() as b, concurrent.futures.ThreadPoolExecutor(1) as pool:
        OWN.put_bucket_versioning(Bucket=b, VersioningConfiguration={"Status": "Enabled"})
        for size in (10, 300_000):
            old = dict(Bucket=b, Key="k", VersionId=OWN.put_object(Bucket=b, Key="k", Body=b"x" * size)["VersionId"])
            OWN.put_object(Bucket=b, Key="k", Body=b"new")
            for n in range(60):
                tags = [{"Key": "n", "Value": "%d" % n}]
                tagged = pool.submit(OWN2.put_object_tagging, Tagging={"TagSet": tags}, **old)
                OWN.put_object_acl(ACL=("private", "public-read")[n % 2], **old)
                tagged.result()
                assert OWN.get_object_tagging(**old)["TagSet"] == tags, n
                assert len(OWN.get_object_acl(**old)["Grants"]) == 1 + n % 2, n
            assert OWN.get_object(**old)["Body"].read() == b"x" * size


def test_enforced_again():
    """What lists let in is let in no more when they are off, and is again when they are on."""
    with bucket() as b:
        OWN.put_object(Bucket=b, Key="k", Body=b"1", ACL="public-read")
        OWN.put_bucket_acl(Bucket=b, ACL="public-read-write")
        ALT.put_object(Bucket=b, Key="a", Body=b"2")
        set = lambda kind: OWN.put_bucket_ownership_controls(Bucket=b, OwnershipControls={"Rules": [{"ObjectOwnership": kind}]})
        fails("InvalidBucketAclWithObjectOwnership", 400, set, kind="BucketOwnerEnforced")
        fails("InvalidBucketAclWithObjectOwnership", 400, OWN.delete_bucket_ownership_controls, Bucket=b)
        denied(OWN.get_object, Bucket=b, Key="a")
        OWN.put_bucket_acl(Bucket=b, ACL="private")
        set("BucketOwnerEnforced")
        denied(ANY.get_object, Bucket=b, Key="k")
        denied(ALT2.get_object, Bucket=b, Key="a")
        assert body(b, "a", OWN) == b"2" and acl_of(OWN, b, "a") == (OWNER, [("FULL_CONTROL", OWNER)])
        set("ObjectWriter")
        assert body(b, "k", ANY) == b"1" and body(b, "a", ALT) == b"2"
        denied(OWN.get_object, Bucket=b, Key="a")


def test_buckets():
    with bucket("public-read-write") as b:
        assert acl_of(OWN, b) == (OWNER, [("FULL_CONTROL", OWNER), EVERYBODY, ("WRITE", "AllUsers")])
        denied(ALT.get_bucket_acl, Bucket=b)
        denied(ALT.put_bucket_acl, Bucket=b, ACL="private")
        denied(ALT.get_bucket_policy, Bucket=b)
        ANY.put_object(Bucket=b, Key="k", Body=b"1")
        # What nobody in particular has put is the bucket owner's.
        assert body(b, "k", OWN) == b"1" and acl_of(OWN, b, "k")[0] == OWNER
        denied(ANY.get_object, Bucket=b, Key="k")
        assert [o["Key"] for o in ANY.list_objects_v2(Bucket=b)["Contents"]] == ["k"]
        assert "Errors" not in ANY.delete_objects(Bucket=b, Delete={"Objects": [{"Key": "k"}]})
        fails("NoSuchKey", 404, ANY.get_object, Bucket=b, Key="k")
        # Revoked, and so at once, through both ways in.
        OWN.put_bucket_acl(Bucket=b, ACL="private")
        for call in (ANY.list_objects_v2, ALT2.head_bucket):
            try:
                call(Bucket=b)
                raise RuntimeError("let in")
            except ClientError as error:
                assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 403
        denied(ANY.put_object, Bucket=b, Key="k")
        denied(ANY.get_object, Bucket=b, Key="k")
        OWN.put_bucket_acl(Bucket=b, GrantReadACP="id=" + OTHER, GrantWrite='id="%s"' % OTHER)
        assert grants(ALT2.get_bucket_acl(Bucket=b)) == [("READ_ACP", OTHER), ("WRITE", OTHER)]
        ALT.put_object(Bucket=b, Key="k")
        denied(ALT.list_objects_v2, Bucket=b)
        # Whose it is stays, whatever the list says.
        OWN.put_bucket_acl(Bucket=b, ACL="authenticated-read")
        ALT2.list_objects_v2(Bucket=b)
        denied(ANY.list_objects_v2, Bucket=b)


def test_objects():
    with bucket("public-read-write") as b:
        OWN.put_object(Bucket=b, Key="o", Body=b"1")
        denied(ALT.get_object, Bucket=b, Key="o")
        denied(ALT.get_object_acl, Bucket=b, Key="o")
        ALT.put_object(Bucket=b, Key="a", Body=b"2")
        # An object is its writer's, also in another one's bucket.
        for call in (OWN.get_object, OWN.get_object_acl, OWN.get_object_tagging):
            denied(call, Bucket=b, Key="a")
        denied(OWN.put_object_acl, Bucket=b, Key="a", ACL="public-read")
        assert acl_of(ALT2, b, "a") == (OTHER, [("FULL_CONTROL", OTHER)])
        ALT.put_object_acl(Bucket=b, Key="a", ACL="bucket-owner-read")
        assert body(b, "a", OWN) == b"2"
        denied(OWN.get_object_acl, Bucket=b, Key="a")
        ALT.put_object_acl(Bucket=b, Key="a", ACL="bucket-owner-full-control")
        assert acl_of(OWN, b, "a") == (OTHER, sorted([("FULL_CONTROL", OTHER), ("FULL_CONTROL", OWNER)]))
        # Lists tell whose each is.
        told = {o["Key"]: o["Owner"]["ID"] for o in OWN.list_objects(Bucket=b)["Contents"]}
        assert told == {"a": OTHER, "o": OWNER}
        told = {o["Key"]: o["Owner"]["ID"] for o in OWN.list_objects_v2(Bucket=b, FetchOwner=True)["Contents"]}
        assert told == {"a": OTHER, "o": OWNER}
        told = {o["Key"]: o["Owner"]["ID"] for o in OWN.list_object_versions(Bucket=b)["Versions"]}
        assert told == {"a": OTHER, "o": OWNER}
        for args, code in [
            ({"ACL": "public-ready"}, "InvalidArgument"), ({"GrantRead": "id=nobody"}, "InvalidArgument"),
            ({"GrantRead": "emailAddress=a@b.c"}, "UnresolvableGrantByEmailAddress"), ({"GrantRead": "what"}, "InvalidArgument"),
            ({"ACL": "private", "GrantRead": "id=" + OTHER}, "InvalidRequest"),
        ]:
            for call in (OWN.put_object, OWN.put_object_acl, OWN.create_multipart_upload):
                fails(code, 400, call, Bucket=b, Key="o", **args)
        fails("MissingSecurityHeader", 400, OWN.put_object_acl, Bucket=b, Key="o")
        others = {"Owner": {"ID": OTHER}, "Grants": []}
        denied(OWN.put_object_acl, Bucket=b, Key="o", AccessControlPolicy=others)
        fails("NoSuchKey", 404, OWN.put_object_acl, Bucket=b, Key="x", ACL="private")
        assert body(b, "o", OWN) == b"1"


def test_what_else_is_kept():
    """A list is changed, and nothing else; and what else is changed leaves it as it is."""
    with bucket() as b:
        data = RANDOM.randbytes(300_000)
        OWN.put_object(Bucket=b, Key="k", Body=data, Metadata={"m": "1"}, ContentType="a/b", Tagging="t=1")
        before = OWN.head_object(Bucket=b, Key="k", ChecksumMode="ENABLED")
        OWN.put_object_acl(Bucket=b, Key="k", GrantRead="uri=%sAllUsers" % GROUPS, GrantFullControl="id=" + OWNER)
        after = OWN.head_object(Bucket=b, Key="k", ChecksumMode="ENABLED")
        for one in (before, after):
            del one["ResponseMetadata"]
        assert before == after and before["Metadata"] == {"m": "1"}
        assert OWN.get_object_tagging(Bucket=b, Key="k")["TagSet"] == [{"Key": "t", "Value": "1"}]
        OWN.put_object_tagging(Bucket=b, Key="k", Tagging={"TagSet": [{"Key": "u", "Value": "2"}]})
        assert acl_of(OWN, b, "k") == (OWNER, [("FULL_CONTROL", OWNER), EVERYBODY])
        assert body(b, "k", ANY) == data and ANY.get_object(Bucket=b, Key="k", Range="bytes=5-9")["Body"].read() == data[5:10]
        denied(ANY.get_object_tagging, Bucket=b, Key="k")
        denied(ANY.get_object_acl, Bucket=b, Key="k")
        denied(ANY.put_object, Bucket=b, Key="k")
        # Put anew it has no list that it is not given; nor has a copy, whatever the source had.
        OWN.put_object(Bucket=b, Key="j", Body=b"", ACL="public-read")
        OWN.copy_object(Bucket=b, Key="c", CopySource={"Bucket": b, "Key": "k"})
        denied(ANY.get_object, Bucket=b, Key="c")
        OWN.copy_object(Bucket=b, Key="c", CopySource={"Bucket": b, "Key": "k"}, ACL="public-read")
        assert body(b, "c", ANY) == data
        OWN.put_object(Bucket=b, Key="k", Body=b"3")
        denied(ANY.get_object, Bucket=b, Key="k")
        # Made longer and with another key it is the same object.
        OWN.put_object(Bucket=b, Key="j", Body=b"more", WriteOffsetBytes=0)
        assert body(b, "j", ANY) == b"more"
        OWN.rename_object(Bucket=b, Key="i", RenameSource="j")
        assert body(b, "i", ANY) == b"more"
        fails("InvalidRequest", 400, OWN.put_object, Bucket=b, Key="i", Body=b"x", WriteOffsetBytes=4, ACL="private")


def test_copies_need_a_source_that_may_be_read():
    with bucket() as b, bucket("public-read-write") as other:
        OWN.put_object(Bucket=b, Key="k", Body=b"1")
        source = {"Bucket": b, "Key": "k"}
        denied(ALT.copy_object, Bucket=other, Key="c", CopySource=source)
        upload = ALT.create_multipart_upload(Bucket=other, Key="m", GrantRead="uri=%sAllUsers" % GROUPS)["UploadId"]
        part = {"Bucket": other, "Key": "m", "UploadId": upload}
        for more in ({}, {"CopySourceRange": "bytes=0-0"}, {"CopySourceRange": "bytes=7-9"}):
            denied(ALT.upload_part_copy, PartNumber=1, CopySource=source, **part, **more)
        OWN.put_object_acl(Bucket=b, Key="k", GrantRead="id=" + OTHER)
        ALT.copy_object(Bucket=other, Key="c", CopySource=source)
        assert acl_of(ALT, other, "c") == (OTHER, [("FULL_CONTROL", OTHER)])
        denied(OWN.get_object, Bucket=other, Key="c")
        denied(OWN.rename_object, Bucket=other, Key="d", RenameSource="c")
        # Parts: who began it owns it, may look at it, and end it.
        told = OWN.list_multipart_uploads(Bucket=other)["Uploads"][0]
        assert (told["Owner"]["ID"], told["Initiator"]["ID"]) == (OTHER, OTHER)
        etag = ALT.upload_part_copy(PartNumber=1, CopySource=source, **part)["CopyPartResult"]["ETag"]
        assert len(ALT.list_parts(**part)["Parts"]) == 1
        denied(ANY.list_parts, **part)
        ALT.complete_multipart_upload(MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]}, **part)
        assert body(other, "m", ANY) == b"1" and acl_of(ALT, other, "m") == (OTHER, [EVERYBODY])
        upload = OWN.create_multipart_upload(Bucket=other, Key="n")["UploadId"]
        denied(ALT.abort_multipart_upload, Bucket=other, Key="n", UploadId=upload)
        OWN.abort_multipart_upload(Bucket=other, Key="n", UploadId=upload)
        upload = ALT.create_multipart_upload(Bucket=other, Key="n")["UploadId"]
        ALT.abort_multipart_upload(Bucket=other, Key="n", UploadId=upload)


def test_versions():
    with bucket() as b:
        OWN.put_bucket_versioning(Bucket=b, VersioningConfiguration={"Status": "Enabled"})
        old = OWN.put_object(Bucket=b, Key="k", Body=b"1")["VersionId"]
        new = OWN.put_object(Bucket=b, Key="k", Body=b"2", ACL="public-read")["VersionId"]
        assert body(b, "k", ANY) == b"2" and body(b, "k", ANY, VersionId=new) == b"2"
        denied(ANY.get_object, Bucket=b, Key="k", VersionId=old)
        said = OWN.put_object_acl(Bucket=b, Key="k", VersionId=old, ACL="public-read")
        assert said["ResponseMetadata"]["HTTPHeaders"]["x-amz-version-id"] == old
        OWN.put_object_acl(Bucket=b, Key="k", ACL="private")
        assert body(b, "k", ANY, VersionId=old) == b"1"
        for args in ({}, {"VersionId": new}):
            denied(ANY.get_object, Bucket=b, Key="k", **args)
        assert acl_of(OWN, b, "k", VersionId=old)[1] == [("FULL_CONTROL", OWNER), EVERYBODY]
        # What was behind it is current again, with its own list.
        OWN.delete_object(Bucket=b, Key="k", VersionId=new)
        assert body(b, "k", ANY) == b"1"
        assert [v["VersionId"] for v in OWN.list_object_versions(Bucket=b)["Versions"]] == [old]


def test_preferred():
    with bucket("public-read-write", "BucketOwnerPreferred") as b:
        ALT.put_object(Bucket=b, Key="a", Body=b"1")
        ALT.put_object(Bucket=b, Key="o", Body=b"2", ACL="bucket-owner-full-control")
        assert acl_of(ALT, b, "a")[0] == OTHER and acl_of(OWN, b, "o") == (OWNER, [("FULL_CONTROL", OWNER)])
        denied(ALT.get_object, Bucket=b, Key="o")
        denied(OWN.get_object, Bucket=b, Key="a")


def test_policies_come_first():
    with bucket("public-read") as b:
        OWN.put_object(Bucket=b, Key="k", Body=b"1", ACL="public-read")
        everything = ["arn:aws:s3:::" + b, "arn:aws:s3:::%s/*" % b]
        rule = lambda effect, action: json.dumps({"Version": "2012-10-17", "Statement": [
            {"Effect": effect, "Principal": "*", "Action": action, "Resource": everything}]})
        OWN.put_bucket_policy(Bucket=b, Policy=rule("Deny", ["s3:GetObject", "s3:ListBucket"]))
        for s3 in (ANY, ALT2, OWN):
            denied(s3.get_object, Bucket=b, Key="k")
            denied(s3.list_objects_v2, Bucket=b)
        OWN.put_bucket_policy(Bucket=b, Policy=rule("Allow", ["s3:GetObject", "s3:PutObject"]))
        ALT.put_object(Bucket=b, Key="a", Body=b"2")
        # A bucket's policy does not open what is somebody else's.
        for s3 in (ANY, OWN):
            denied(s3.get_object, Bucket=b, Key="a")
        assert body(b, "k", ANY) == b"1" and body(b, "a", ALT2) == b"2"
        OWN.put_bucket_policy(Bucket=b, Policy=rule("Deny", "s3:PutObjectAcl"))
        denied(OWN.put_object, Bucket=b, Key="k", ACL="public-read")
        OWN.put_object(Bucket=b, Key="k", Body=b"3")
        denied(ANY.get_object, Bucket=b, Key="k")
        # What a policy says of tags is asked of those that are set.
        may = json.loads(rule("Allow", "s3:PutObjectTagging"))
        may["Statement"][0]["Condition"] = {"StringEquals": {"s3:RequestObjectTag/x": "y"}}
        OWN.put_bucket_policy(Bucket=b, Policy=json.dumps(may))
        tag = lambda value: dict(Bucket=b, Key="k", Tagging={"TagSet": [{"Key": "x", "Value": value}]})
        ALT.put_object_tagging(**tag("y"))
        denied(ALT.put_object_tagging, **tag("z"))
        assert OWN.get_object_tagging(Bucket=b, Key="k")["TagSet"] == [{"Key": "x", "Value": "y"}]
        # Of what is not there nobody is told who may not list.
        OWN.put_bucket_policy(Bucket=b, Policy=rule("Deny", "s3:ListBucket"))
        denied(ANY.get_object, Bucket=b, Key="none")


def test_the_public_is_kept_out():
    with bucket() as b:
        OWN.put_object(Bucket=b, Key="k", Body=b"1", ACL="public-read")
        OWN.put_bucket_acl(Bucket=b, ACL="authenticated-read")
        assert OWN.get_bucket_policy_status(Bucket=b)["PolicyStatus"]["IsPublic"]
        block = lambda **flags: OWN.put_public_access_block(Bucket=b, PublicAccessBlockConfiguration=flags)
        block(BlockPublicAcls=True)
        for acl in ("public-read", "public-read-write", "authenticated-read"):
            denied(OWN.put_object, Bucket=b, Key="n", ACL=acl)
            denied(OWN.put_object_acl, Bucket=b, Key="k", ACL=acl)
            denied(OWN.put_bucket_acl, Bucket=b, ACL=acl)
            denied(OWN.create_multipart_upload, Bucket=b, Key="n", ACL=acl)
            denied(OWN.copy_object, Bucket=b, Key="n", ACL=acl, CopySource={"Bucket": b, "Key": "k"})
        denied(OWN.put_object, Bucket=b, Key="n", GrantWriteACP="uri=%sAuthenticatedUsers" % GROUPS)
        # What there is stays until it is ignored.
        assert body(b, "k", ANY) == b"1"
        ALT2.list_objects_v2(Bucket=b)
        block(IgnorePublicAcls=True)
        denied(ANY.get_object, Bucket=b, Key="k")
        denied(ALT2.list_objects_v2, Bucket=b)
        assert not OWN.get_bucket_policy_status(Bucket=b)["PolicyStatus"]["IsPublic"]
        OWN.put_object_acl(Bucket=b, Key="k", GrantRead="id=%s,uri=%sAllUsers" % (OTHER, GROUPS))
        assert body(b, "k", ALT2) == b"1"
        OWN.delete_public_access_block(Bucket=b)
        assert body(b, "k", ANY) == b"1"


def test_forms():
    with bucket("public-read-write") as b:
        def post(fields):
            mark = "b%08x" % RANDOM.randrange(1 << 32)
            part = '--%s\r\nContent-Disposition: form-data; name="%%s"\r\n\r\n%%s\r\n' % mark
            form = "".join(part % pair for pair in [*fields.items(), ("file", "1")]) + "--%s--\r\n" % mark
            kind = {"Content-Type": "multipart/form-data; boundary=" + mark, "Content-Length": str(len(form))}
            return http("POST", "%s/%s" % (ENDPOINT, b), kind, form.encode())[0]
        assert post({"key": "k", "acl": "public-read"}) == 204 and body(b, "k", ANY) == b"1"
        assert post({"key": "j"}) == 204
        denied(ANY.get_object, Bucket=b, Key="j")
        assert post({"key": "j", "acl": "nonsense"}) == 400
        OWN.put_bucket_acl(Bucket=b, ACL="private")
        assert post({"key": "k"}) == 403


def test_who_may_do_everything():
    """An administrator needs no list."""
    with bucket() as b:
        OWN.put_object(Bucket=b, Key="k", Body=b"1")
        assert body(b, "k", S3) == b"1" and acl_of(S3, b, "k")[0] == OWNER


if __name__ == "__main__":
    main(globals())
