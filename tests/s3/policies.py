#!/usr/bin/env python3
"""Asks an S3 endpoint, through boto3, whether each request is asked for all that it does, under the names that policies have.

    policies.py ENDPOINT            with credentials from the environment, as boto3 takes them
    policies.py ENDPOINT NAME...    only the checks whose names contain one of these

ALT_KEY and ALT_SECRET are a second user's, ENDPOINT2, if set, is another way in to the same buckets. Buckets are made by
a third: OWNER_KEY and OWNER_SECRET, or one that ASHLAR, the command, makes.
"""
import base64, hashlib, json, os, select, socket, subprocess, threading, time, urllib.parse

from acl import ALT, ANY, OWN, SECOND, bucket, denied, owner
from check import ENDPOINT, MIB, RANDOM, SEED, body, client, data, fails, form, http, main


def allow(*actions, who="*", on=None, effect="Allow", **condition):
    """A statement about all that is in a bucket, or about what is named."""
    return lambda b: {"Effect": effect, "Principal": who, "Action": list(actions),
                      "Resource": ["arn:aws:s3:::%s/%s" % (b, on or "*")], **({"Condition": condition} if condition else {})}


def deny(*actions, **rest):
    return allow(*actions, effect="Deny", **rest)


def policy(b, *statements):
    text = {"Version": "2012-10-17", "Statement": [make(b) for make in statements]}
    OWN.put_bucket_policy(Bucket=b, Policy=json.dumps(text))


def tagged(b, k, tags):
    OWN.put_object(Bucket=b, Key=k, Body=k.encode(), Tagging=urllib.parse.urlencode(tags))


def set_of(**tags):
    return {"TagSet": [{"Key": k, "Value": v} for k, v in tags.items()]}


def tags_of(b, k):
    return {t["Key"]: t["Value"] for t in OWN.get_object_tagging(Bucket=b, Key=k)["TagSet"]}


def versioned(b):
    OWN.put_bucket_versioning(Bucket=b, VersioningConfiguration={"Status": "Enabled"})


class asking:
    """Asks for an object again and again meanwhile: so a gateway always knows what it knew of the one who asks, and of the bucket."""

    def __init__(self, s3, b, k):
        self.s3, self.args, self.over = s3, dict(Bucket=b, Key=k), threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.over.is_set():
            try:
                self.s3.head_object(**self.args)
            except Exception:
                # Allowed or not: that is what changes.
                pass

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def test_what_was_told_is_so_at_every_gateway():
    """What decides about requests is changed through one gateway while another one is asked all the time: who is told that it is
    done finds it done there."""
    with bucket() as b:
        OWN.put_object(Bucket=b, Key="k", Body=b"x")
        with asking(ANY, b, "k"):
            for _ in range(20):
                policy(b, allow("s3:GetObject"))
                assert body(b, "k", ANY) == b"x"
                OWN.delete_bucket_policy(Bucket=b)
                denied(ANY.get_object, Bucket=b, Key="k")
    # A bucket that was somebody's is another one's.
    old, ours = client(*owner("leaver")), "gone-%08x-%08x" % (SEED, RANDOM.randrange(1 << 32))
    there = client(*owner("leaving"), endpoint=SECOND)
    here = client(endpoint=ENDPOINT)
    for _ in range(5):
        old.create_bucket(Bucket=ours)
        old.put_bucket_policy(Bucket=ours, Policy=json.dumps({"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "s3:*", "Resource": "arn:aws:s3:::%s/*" % ours}]}))
        with asking(there, ours, "k"):
            there.put_object(Bucket=ours, Key="k", Body=b"x")
            there.delete_object(Bucket=ours, Key="k")
            old.delete_bucket(Bucket=ours)
            here.create_bucket(Bucket=ours)
            denied(there.put_object, Bucket=ours, Key="k", Body=b"x")
        here.delete_bucket(Bucket=ours)


def test_a_key_that_was_taken_away_is_taken_nowhere():
    with bucket() as b:
        policy(b, allow("s3:GetObject"))
        OWN.put_object(Bucket=b, Key="k", Body=b"x")
        for i in range(5):
            name = "short-%d-%08x" % (i, SEED)
            run = lambda *args: subprocess.run([os.environ["ASHLAR"], "user", *args], check=True, capture_output=True).stdout
            made = json.loads(run("add", name, "--json"))
            s3 = client(made["access_key_id"], made["secret_access_key"], endpoint=SECOND)
            with asking(s3, b, "k"):
                assert body(b, "k", s3) == b"x"
                run("remove", name)
                fails("InvalidAccessKeyId", 403, s3.get_object, Bucket=b, Key="k")


def test_old_signatures_make_no_other_request():
    """Version 2 signs a list of query parameters: what is not on it may not turn one request into another."""
    old = client(*owner("old"), signature_version="s3")
    name = "old-%08x-%08x" % (SEED, RANDOM.randrange(1 << 32))
    old.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    put = old.generate_presigned_url("put_object", Params={"Bucket": name, "Key": "k"}, ExpiresIn=60)
    get = old.generate_presigned_url("get_object", Params={"Bucket": name, "Key": "k"}, ExpiresIn=60)
    assert "AWSAccessKeyId" in put
    assert http("PUT", put, data=b"x")[0] == 200
    on = lambda status: b"<LegalHold><Status>%s</Status></LegalHold>" % status
    for query, text in (("legal-hold", on(b"OFF")), ("legal-hold", on(b"ON")),
                        ("retention", b"<Retention><Mode>COMPLIANCE</Mode><RetainUntilDate>2120-01-01T00:00:00Z</RetainUntilDate></Retention>")):
        status, _, said = http("PUT", put + "&" + query, {"Content-MD5": ""}, text)
        assert status == 403 and b"AccessDenied" in said or b"SignatureDoesNotMatch" in said, (query, status, said)
    for query in ("legal-hold", "retention", "attributes"):
        status, _, said = http("GET", get + "&" + query)
        assert status == 403 and b"AccessDenied" in said, (query, status, said)
    assert http("GET", get)[2] == b"x"
    for one in old.list_object_versions(Bucket=name)["Versions"]:
        old.delete_object(Bucket=name, Key="k", VersionId=one["VersionId"])
    old.delete_bucket(Bucket=name)


def test_copied_tags():
    """Who copies an object with its tags reads tags, and sets them."""
    with bucket(ownership=None) as b, bucket(ownership=None) as from_:
        tagged(from_, "s", {"public": "yes"})
        OWN.put_object(Bucket=from_, Key="plain", Body=b"1")
        source = {"Bucket": from_, "Key": "s"}
        copy = lambda **args: ALT.copy_object(Bucket=b, Key="k", **{"CopySource": source, **args})
        policy(from_, allow("s3:GetObject"))
        policy(b, allow("s3:PutObject", "s3:PutObjectTagging"))
        denied(copy)
        policy(from_, allow("s3:GetObject", "s3:GetObjectTagging"))
        copy()
        assert tags_of(b, "k") == {"public": "yes"}
        policy(b, allow("s3:PutObject"))
        denied(copy)
        denied(copy, TaggingDirective="REPLACE", Tagging="a=b")
        # What has none, and what is to have none, is copied.
        copy(CopySource={"Bucket": from_, "Key": "plain"})
        copy(TaggingDirective="REPLACE")
        assert tags_of(b, "k") == {}
        # Which tags it is to have is judged by the tags that it then has.
        policy(b, allow("s3:PutObject", "s3:PutObjectTagging"),
               deny("s3:PutObject", StringEquals={"s3:RequestObjectTag/public": "yes"}))
        denied(copy)
        denied(copy, Tagging="project=ok")
        copy(TaggingDirective="REPLACE", Tagging="project=ok")
        assert tags_of(b, "k") == {"project": "ok"}


def test_tags_of_versions():
    with bucket(ownership=None) as b:
        versioned(b)
        first = OWN.put_object(Bucket=b, Key="k", Body=b"1")["VersionId"]
        tag = lambda **args: ALT.put_object_tagging(Bucket=b, Key="k", **{"Tagging": set_of(x="y"), **args})
        policy(b, allow("s3:PutObjectTagging"))
        tag()
        denied(tag, VersionId=first)
        policy(b, allow("s3:PutObjectTagging", "s3:PutObjectVersionTagging"),
               deny("s3:PutObjectVersionTagging", StringEquals={"s3:RequestObjectTag/x": "y"}))
        tag()
        denied(tag, VersionId=first)
        tag(VersionId=first, Tagging=set_of(x="z"))
        # And what is allowed for some tags only is.
        policy(b, allow("s3:PutObjectTagging", StringEquals={"s3:RequestObjectTag/x": "y"}))
        tag()
        denied(tag, Tagging=set_of(x="z"))
        denied(ANY.put_object_tagging, Bucket=b, Key="k", Tagging=set_of(x="z"))


def test_tags_that_change_meanwhile():
    """What is judged by an object's tags is judged by those that it has when it is changed."""
    with bucket(ownership=None) as b:
        tagged(b, "k", {"state": "draft"})
        policy(b, allow("s3:PutObjectTagging", "s3:GetObject", StringEquals={"s3:ExistingObjectTag/state": "draft"}))
        assert body(b, "k", ALT) == b"k"
        text = b"<Tagging><TagSet><Tag><Key>state</Key><Value>mine</Value></Tag></TagSet></Tagging>"
        url = urllib.parse.urlsplit("%s/%s/k?tagging" % (ENDPOINT, b))
        line = socket.create_connection((url.hostname, url.port), timeout=60)
        head = "PUT %s?%s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n" % (url.path, url.query, url.netloc, len(text))
        line.sendall(head.encode() + text[:10])
        # It is let in before this comes to the same gateway, or after: either way it is not done.
        OWN.head_object(Bucket=b, Key="k")
        tagged(b, "k", {"state": "final"})
        line.sendall(text[10:])
        said = line.recv(100)
        assert b" 403 " in said, said
        line.close()
        assert tags_of(b, "k") == {"state": "final"}
        denied(ALT.get_object, Bucket=b, Key="k")


def test_lists_of_what_is_put_for_another():
    """A policy that lets somebody put lets nobody say who else may read, but in the owner's favour."""
    for kind in ("ObjectWriter", "BucketOwnerPreferred"):
        with bucket(ownership=kind) as b:
            policy(b, allow("s3:PutObject"))
            ANY.put_object(Bucket=b, Key="k", Body=b"1")
            denied(ANY.put_object, Bucket=b, Key="k", Body=b"2", ACL="public-read")
            ANY.put_object(Bucket=b, Key="k", Body=b"3", ACL="bucket-owner-full-control")
            # Whose it is may say so.
            ALT.put_object(Bucket=b, Key="a", Body=b"4", ACL="public-read")
            assert body(b, "a", ANY) == b"4"
            policy(b, allow("s3:PutObject", "s3:PutObjectAcl"))
            ANY.put_object(Bucket=b, Key="k", Body=b"5", ACL="public-read")
            assert body(b, "k", ANY) == b"5"


def test_attributes_are_read():
    with bucket(ownership=None) as b:
        versioned(b)
        first = OWN.put_object(Bucket=b, Key="k", Body=b"1")["VersionId"]
        ask = lambda **args: ALT.get_object_attributes(Bucket=b, Key="k", ObjectAttributes=["ETag", "ObjectSize"], **args)
        policy(b, allow("s3:GetObjectAttributes", "s3:GetObjectVersionAttributes"))
        denied(ask)
        policy(b, allow("s3:GetObjectAttributes", "s3:GetObjectVersionAttributes", "s3:GetObject"))
        assert ask()["ObjectSize"] == 1
        denied(ask, VersionId=first)
        policy(b, allow("s3:*"), deny("s3:GetObject"))
        denied(ask)


def test_versions_of_sources_and_of_many():
    with bucket(ownership=None) as b:
        versioned(b)
        kept, other = (OWN.put_object(Bucket=b, Key="k", Body=b"1")["VersionId"] for _ in range(2))
        policy(b, allow("s3:*"), deny("s3:GetObjectVersion", "s3:DeleteObjectVersion", StringEquals={"s3:VersionId": kept}))
        copy = lambda version: ALT.copy_object(Bucket=b, Key="c", CopySource={"Bucket": b, "Key": "k", "VersionId": version})
        copy(other)
        denied(copy, version=kept)
        gone = ALT.delete_objects(Bucket=b, Delete={"Objects": [{"Key": "k", "VersionId": v} for v in (kept, other)]})
        assert [d["VersionId"] for d in gone["Deleted"]] == [other]
        assert [(e["VersionId"], e["Code"]) for e in gone["Errors"]] == [(kept, "AccessDenied")]
        OWN.delete_bucket_policy(Bucket=b)


def test_conditions_can_be_asked_for():
    """Amazon's own example: whoever may put may not put over anything, in one piece or in parts."""
    with bucket(ownership=None) as b:
        policy(b, allow("s3:PutObject", Null={"s3:if-none-match": "false"}),
               allow("s3:PutObject", Bool={"s3:ObjectCreationOperation": "false"}))
        put = lambda **args: ALT.put_object(Bucket=b, Key="k", Body=b"x", **args)
        denied(put)
        put(IfNoneMatch="*")
        upload = dict(Bucket=b, Key="parts", UploadId=ALT.create_multipart_upload(Bucket=b, Key="parts")["UploadId"])
        part = ALT.upload_part(**upload, PartNumber=1, Body=b"part")["ETag"]
        complete = lambda **args: ALT.complete_multipart_upload(
            **upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part}]}, **args)
        denied(complete)
        complete(IfNoneMatch="*")
        assert body(b, "parts", OWN) == b"part"
        given = ALT.generate_presigned_post(b, "form")
        headers, text = form(given["fields"], b"x")
        assert http("POST", given["url"], headers, text)[0] == 403


def test_grants_are_seen_whole():
    """A header that comes twice is judged by both."""
    with bucket() as b:
        policy(b, allow("s3:PutObject", "s3:PutObjectAcl", StringEquals={"s3:x-amz-grant-read": "id=" + ALT.list_buckets()["Owner"]["ID"]}))
        url = urllib.parse.urlsplit("%s/%s/k" % (ENDPOINT, b))
        grant = "x-amz-grant-read: id=%s\r\n" % ALT.list_buckets()["Owner"]["ID"]
        more = "x-amz-grant-read: uri=http://acs.amazonaws.com/groups/global/AllUsers\r\n"
        for headers, status in ((grant, b" 200 "), (grant + more, b" 403 ")):
            with socket.create_connection((url.hostname, url.port), timeout=60) as line:
                line.sendall(("PUT %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 1\r\n%s\r\nx" % (url.path, url.netloc, headers)).encode())
                said = line.recv(100)
                assert status in said, (headers, said)


def test_what_comes_twice_is_judged_as_it_is_done():
    """Of other headers the first one counts: for policies as well."""
    with bucket() as b:
        url = urllib.parse.urlsplit("%s/%s/k" % (ENDPOINT, b))
        policy(b, allow("s3:PutObject", "s3:PutObjectAcl"), deny("s3:PutObject", StringEquals={"s3:x-amz-acl": "public-read"}))
        for lists, status in ((("public-read", "private"), b" 403 "), (("private", "public-read"), b" 200 ")):
            with socket.create_connection((url.hostname, url.port), timeout=60) as line:
                headers = "".join("x-amz-acl: %s\r\n" % acl for acl in lists)
                line.sendall(("PUT %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 1\r\n%s\r\nx" % (url.path, url.netloc, headers)).encode())
                said = line.recv(100)
                assert status in said, (lists, said)
        denied(ANY.get_object, Bucket=b, Key="k")


def test_none_is_not_any():
    with bucket(ownership=None) as b:
        policy(b, allow("s3:PutObject", "s3:PutObjectTagging", **{"ForAnyValue:StringNotEquals": {"s3:RequestObjectTagKeys": "secret"}}))
        denied(ALT.put_object, Bucket=b, Key="k")
        denied(ALT.put_object, Bucket=b, Key="k", Tagging="secret=1")
        ALT.put_object(Bucket=b, Key="k", Tagging="open=1")


def test_forms_have_an_age():
    with bucket(ownership=None) as b:
        policy(b, allow("s3:PutObject"), deny("s3:PutObject", NumericGreaterThanEquals={"s3:signatureAge": "0"}))
        given = ALT.generate_presigned_post(b, "k")
        mark = "boundary"
        part = '--%s\r\nContent-Disposition: form-data; name="%%s"\r\n\r\n%%s\r\n' % mark
        form = "".join(part % pair for pair in [*given["fields"].items(), ("file", "1")]) + "--%s--\r\n" % mark
        kind = {"Content-Type": "multipart/form-data; boundary=" + mark, "Content-Length": str(len(form))}
        post = lambda: http("POST", given["url"], kind, form.encode())[0]
        assert post() == 403
        policy(b, allow("s3:PutObject"), deny("s3:PutObject", NumericGreaterThan={"s3:signatureAge": "600000"}))
        assert post() == 204


def test_patterns_cost_little():
    """Whoever has a bucket writes its policy, whoever comes says who they are: neither keeps a gateway busy."""
    with bucket(ownership=None) as b:
        policy(b, allow("s3:*"), deny("s3:*", StringLike={"aws:UserAgent": "*" + "a" * 4000 + "b" + "?" * 14_000}))
        text = "".join("<Object><Key>%d</Key></Object>" % i for i in range(100))
        text = ("<Delete>%s</Delete>" % text).encode()
        md5 = base64.b64encode(hashlib.md5(text).digest()).decode()
        ask = lambda agent: http("POST", "%s/%s?delete" % (ENDPOINT, b), {"Content-MD5": md5, "User-Agent": agent}, text)
        begun = time.monotonic()
        status, _, said = ask("a" * 4096)
        assert status == 200 and said.count(b"<Deleted>") == 100, (status, said[:300])
        took = time.monotonic() - begun
        # What is longer is not looked through, and not let in.
        status, _, said = ask("a" * 60_000)
        assert status == 200 and said.count(b"<Code>AccessDenied</Code>") == 100, (status, said[:300])
        OWN.put_object(Bucket=b, Key="k", Body=b"1")
        assert http("GET", "%s/%s/k" % (ENDPOINT, b), {"User-Agent": "a" * 4000 + "b"})[0] == 200
        policy(b, allow("s3:*"), deny("s3:*", StringLike={"aws:UserAgent": "*" + "a" * 4000 + "b"}))
        assert http("GET", "%s/%s/k" % (ENDPOINT, b), {"User-Agent": "a" * 4001 + "b"})[0] == 403
        return "a hundred keys by a bad pattern: %.1f s" % took


def answered(lines, count, reply):
    """The first so many of these lines that are answered, each so; and the others."""
    first = []
    while len(first) < count:
        ready, _, _ = select.select([line for line in lines if line not in first], [], [], 60)
        assert ready, "only %d were answered" % len(first)
        for line in ready:
            said = line.recv(len(reply))
            assert said == reply, said
        first += ready
    return first, [line for line in lines if line not in first]


def test_documents_that_do_not_come_keep_no_bodies_out():
    with bucket(ownership=None) as b:
        policy(b, allow("s3:GetObject", "s3:PutObject"))
        at = urllib.parse.urlsplit(ENDPOINT)
        lines = []
        for i in range(150):
            # Two peers: one alone does not get as many.
            line = socket.create_connection((at.hostname, at.port), timeout=60, source_address=("127.0.0.%d" % (2 + i % 2), 0))
            line.sendall(("POST /%s?delete HTTP/1.1\r\nHost: %s\r\nContent-MD5: 1B2M2Y8AsgTpgAmY7PhCfg==\r\n"
                          "Content-Length: 1500000\r\nExpect: 100-continue\r\n\r\n" % (b, at.netloc)).encode())
            lines.append(line)
        # Of so many at the least the document is waited for.
        answered(lines, 100, b"HTTP/1.1 100")
        ANY.put_object(Bucket=b, Key="large", Body=data(3 * MIB))
        assert len(body(b, "large", ANY)) == 3 * MIB
        ANY.put_object(Bucket=b, Key="small", Body=b"1")
        assert body(b, "small", ANY) == b"1"
        for line in lines:
            line.close()


def test_slow_readers_keep_nobody_out():
    """Many who read a large object, and take none of it: small ones come and go."""
    with bucket(ownership=None) as b:
        policy(b, allow("s3:GetObject"))
        OWN.put_object(Bucket=b, Key="large", Body=data(24 * MIB))
        OWN.put_object(Bucket=b, Key="small", Body=b"s" * 4096)
        at = urllib.parse.urlsplit(ENDPOINT)
        lines = []
        for _ in range(80):
            line = socket.socket()
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.settimeout(60)
            line.connect((at.hostname, at.port))
            line.sendall(("GET /%s/large HTTP/1.1\r\nHost: %s\r\n\r\n" % (b, at.netloc)).encode())
            lines.append(line)
        # So many as there is memory for are answered, and the others wait for theirs.
        _, others = answered(lines, 20, b"HTTP/1.1 200")
        for _ in range(50):
            assert body(b, "small", ANY) == b"s" * 4096
            OWN.put_object(Bucket=b, Key="small", Body=b"s" * 4096)
        # And that not because they had given up by then.
        ready, _, _ = select.select(others, [], [], 0)
        assert len(ready) < len(others), "nobody waits any more"
        for line in lines:
            line.close()


if __name__ == "__main__":
    main(globals())
