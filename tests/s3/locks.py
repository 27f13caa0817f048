#!/usr/bin/env python3
"""Asks an S3 endpoint, through boto3, whether what is locked stays.

    locks.py ENDPOINT            with credentials from the environment, as boto3 takes them
    locks.py ENDPOINT NAME...    only the checks whose names contain one of these

ENDPOINT2, if set, is another way in to the same buckets; ALT_KEY and ALT_SECRET, if set, are another user's. Each check
makes a bucket of its own and removes it: what compliance keeps is kept for seconds.
"""
import concurrent.futures, datetime, json, os, time

from botocore.exceptions import ClientError

from check import ENDPOINT, RANDOM, SEED, client, fails, main

# Others may get in the way of what is checked here.
PATIENT = {"retries": {"max_attempts": 4}}
S3 = client(**PATIENT)
OTHER = client(endpoint=os.environ.get("ENDPOINT2", ENDPOINT), **PATIENT)


def soon(**args):
    """A time from now on, whole seconds: more is not told back by all."""
    return (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(**args)).replace(microsecond=0)


def denied(call, **args):
    fails("AccessDenied", 403, call, **args)


def rows(b):
    """All versions and markers."""
    all = []
    for page in S3.get_paginator("list_object_versions").paginate(Bucket=b):
        all += [(r["Key"], r["VersionId"]) for r in page.get("Versions", []) + page.get("DeleteMarkers", [])]
    return all


def off(b, k, id, s3=S3):
    s3.put_object_legal_hold(Bucket=b, Key=k, VersionId=id, LegalHold={"Status": "OFF"})


class bucket:
    """A bucket with locks, without anything in it when the check has ended."""

    def __init__(self, **default):
        self.name, self.default = "locks-%08x-%08x" % (SEED, RANDOM.randrange(1 << 32)), default

    def __enter__(self):
        S3.create_bucket(Bucket=self.name, ObjectLockEnabledForBucket=True)
        if self.default:
            configure(self.name, **self.default)
        return self.name

    def __exit__(self, kind, *_):
        until = time.time() + 60
        while True:
            left = rows(self.name)
            for k, id in left:
                try:
                    off(self.name, k, id)
                    S3.delete_object(Bucket=self.name, Key=k, VersionId=id, BypassGovernanceRetention=True)
                except ClientError as error:
                    # A marker takes no hold, and what compliance keeps goes later.
                    if error.response["Error"]["Code"] == "MethodNotAllowed":
                        S3.delete_object(Bucket=self.name, Key=k, VersionId=id)
                    else:
                        assert kind or error.response["Error"]["Code"] == "AccessDenied", error
            if not left:
                break
            assert kind or time.time() < until, left[:3]
            if kind:
                return
        S3.delete_bucket(Bucket=self.name)


def configure(b, mode="GOVERNANCE", s3=S3, **period):
    rule = {"Rule": {"DefaultRetention": dict({"Mode": mode}, **period)}} if period else {}
    s3.put_object_lock_configuration(Bucket=b, ObjectLockConfiguration=dict({"ObjectLockEnabled": "Enabled"}, **rule))


def put(b, k, body=b"x", s3=S3, **args):
    return s3.put_object(Bucket=b, Key=k, Body=body, **args)["VersionId"]


def there(b, k, id, s3=S3):
    try:
        return s3.get_object(Bucket=b, Key=k, VersionId=id)["Body"].read()
    except ClientError as error:
        assert error.response["Error"]["Code"] == "NoSuchVersion", error
        return None


def remove(b, k, id, s3=S3, **args):
    return s3.delete_object(Bucket=b, Key=k, VersionId=id, **args)


def retain(b, k, id, mode, until, s3=S3, **args):
    return s3.put_object_retention(Bucket=b, Key=k, VersionId=id, Retention={"Mode": mode, "RetainUntilDate": until}, **args)


def told(b, k, id=None, s3=S3):
    """What HEAD says: mode, time, hold."""
    head = s3.head_object(Bucket=b, Key=k, **({"VersionId": id} if id else {}))
    return head.get("ObjectLockMode"), head.get("ObjectLockRetainUntilDate"), head.get("ObjectLockLegalHoldStatus")


def test_configurations():
    with bucket() as b:
        assert OTHER.get_bucket_versioning(Bucket=b)["Status"] == "Enabled"
        get = lambda s3=S3: s3.get_object_lock_configuration(Bucket=b)["ObjectLockConfiguration"]
        assert get(OTHER) == {"ObjectLockEnabled": "Enabled"}
        for period in ({"Days": 3}, {"Years": 100}):
            configure(b, "COMPLIANCE", **period)
            assert get(OTHER)["Rule"] == {"DefaultRetention": dict({"Mode": "COMPLIANCE"}, **period)}
        configure(b)
        assert "Rule" not in get(OTHER)
        bad = lambda code, status, **how: fails(code, status, configure, b=b, **how)
        bad("MalformedXML", 400, Days=1, Years=1)
        bad("MalformedXML", 400, mode="governance", Days=1)
        bad("InvalidRetentionPeriod", 400, Days=0)
        bad("InvalidRetentionPeriod", 400, Years=-1)
        bad("InvalidRetentionPeriod", 400, Days=36501)
        fails("MalformedXML", 400, S3.put_object_lock_configuration, Bucket=b, ObjectLockConfiguration={"ObjectLockEnabled": "Disabled"})
        fails("InvalidBucketState", 409, OTHER.put_bucket_versioning, Bucket=b, VersioningConfiguration={"Status": "Suspended"})
        assert S3.get_bucket_versioning(Bucket=b)["Status"] == "Enabled"


def test_buckets_that_had_none():
    """A bucket gets locks when it keeps versions, and not before; what it had can be locked then."""
    b = "locks-none-%08x" % SEED
    S3.create_bucket(Bucket=b)
    # It is there, but not as it is asked for.
    fails("BucketAlreadyOwnedByYou", 409, S3.create_bucket, Bucket=b, ObjectLockEnabledForBucket=True)
    fails("ObjectLockConfigurationNotFoundError", 404, S3.get_object_lock_configuration, Bucket=b)
    fails("InvalidBucketState", 409, configure, b=b, Days=1)
    S3.put_object(Bucket=b, Key="k", Body=b"plain")
    for call in (lambda: put(b, "k", ObjectLockLegalHoldStatus="ON"),
                 lambda: S3.get_object_retention(Bucket=b, Key="k"), lambda: S3.get_object_legal_hold(Bucket=b, Key="k"),
                 lambda: S3.put_object_legal_hold(Bucket=b, Key="k", LegalHold={"Status": "ON"}),
                 lambda: S3.put_object_retention(Bucket=b, Key="k", Retention={"Mode": "GOVERNANCE", "RetainUntilDate": soon(days=1)}),
                 lambda: S3.create_multipart_upload(Bucket=b, Key="k", ObjectLockLegalHoldStatus="ON")):
        fails("InvalidRequest", 400, call)
    S3.put_bucket_versioning(Bucket=b, VersioningConfiguration={"Status": "Enabled"})
    configure(b)
    # It is the null version then, and nothing takes its place.
    OTHER.put_object_legal_hold(Bucket=b, Key="k", LegalHold={"Status": "ON"})
    assert told(b, "k") == told(b, "k", "null") == (None, None, "ON")
    denied(remove, b=b, k="k", id="null")
    newer = put(b, "k", b"newer")
    denied(remove, b=b, k="k", id="null", s3=OTHER)
    assert there(b, "k", "null") == b"plain" and there(b, "k", newer) == b"newer"
    off(b, "k", "null")
    for id in (newer, "null"):
        remove(b, "k", id)
    S3.delete_bucket(Bucket=b)


def test_holds():
    for size in (0, 10, 50_000, 6_000_000):
        with bucket() as b:
            data = RANDOM.randbytes(size)
            id = put(b, "k", data)
            fails("NoSuchObjectLockConfiguration", 404, S3.get_object_legal_hold, Bucket=b, Key="k")
            assert told(b, "k") == (None, None, None)
            etag = S3.head_object(Bucket=b, Key="k")["ETag"]
            made = S3.head_object(Bucket=b, Key="k")["LastModified"]
            OTHER.put_object_legal_hold(Bucket=b, Key="k", LegalHold={"Status": "ON"})
            assert S3.get_object_legal_hold(Bucket=b, Key="k", VersionId=id)["LegalHold"]["Status"] == "ON"
            for _ in range(2):
                denied(remove, b=b, k="k", id=id)
                denied(remove, b=b, k="k", id=id, s3=OTHER, BypassGovernanceRetention=True)
                # One that is not current any more, too.
                S3.delete_object(Bucket=b, Key="k")
            assert there(b, "k", id) == data
            head = S3.head_object(Bucket=b, Key="k", VersionId=id)
            assert (head["ETag"], head["LastModified"], head["ObjectLockLegalHoldStatus"]) == (etag, made, "ON")
            fails("BucketNotEmpty", 409, S3.delete_bucket, Bucket=b)
            off(b, "k", id, OTHER)
            assert S3.get_object_legal_hold(Bucket=b, Key="k", VersionId=id)["LegalHold"]["Status"] == "OFF"
            remove(b, "k", id)
            assert there(b, "k", id) is None
    with bucket() as b:
        put(b, "k")
        fails("MalformedXML", 400, S3.put_object_legal_hold, Bucket=b, Key="k", LegalHold={"Status": "on"})
        fails("NoSuchKey", 404, S3.put_object_legal_hold, Bucket=b, Key="x", LegalHold={"Status": "ON"})
        marker = S3.delete_object(Bucket=b, Key="k")["VersionId"]
        fails("MethodNotAllowed", 405, S3.put_object_legal_hold, Bucket=b, Key="k", VersionId=marker, LegalHold={"Status": "ON"})


def test_governance():
    with bucket() as b:
        until = soon(days=2)
        id = put(b, "k", ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=until)
        assert told(b, "k", id, OTHER) == ("GOVERNANCE", until, None)
        said = OTHER.get_object_retention(Bucket=b, Key="k", VersionId=id)["Retention"]
        assert said == {"Mode": "GOVERNANCE", "RetainUntilDate": until}, said
        denied(remove, b=b, k="k", id=id)
        denied(retain, b=b, k="k", id=id, mode="GOVERNANCE", until=soon(days=1))
        denied(retain, b=b, k="k", id=id, mode="COMPLIANCE", until=soon(days=3))
        denied(S3.put_object_retention, Bucket=b, Key="k", VersionId=id, Retention={})
        retain(b, "k", id, "GOVERNANCE", soon(days=3))
        retain(b, "k", id, "GOVERNANCE", soon(days=1), OTHER, BypassGovernanceRetention=True)
        denied(remove, b=b, k="k", id=id)
        remove(b, "k", id, OTHER, BypassGovernanceRetention=True)
        assert there(b, "k", id) is None
        # What was taken back is gone.
        id = put(b, "k", ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=until)
        S3.put_object_retention(Bucket=b, Key="k", VersionId=id, Retention={}, BypassGovernanceRetention=True)
        fails("NoSuchObjectLockConfiguration", 404, S3.get_object_retention, Bucket=b, Key="k")
        remove(b, "k", id)
        fails("InvalidArgument", 400, retain, b=b, k="k", id=put(b, "k"), mode="GOVERNANCE", until=soon(days=-1))
        fails("InvalidArgument", 400, put, b=b, k="k", ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=soon(days=-1))
        fails("InvalidArgument", 400, put, b=b, k="k", ObjectLockMode="GOVERNANCE")
        fails("InvalidArgument", 400, put, b=b, k="k", ObjectLockRetainUntilDate=until)
        fails("InvalidArgument", 400, put, b=b, k="k", ObjectLockMode="none", ObjectLockRetainUntilDate=until)


def test_compliance():
    """Nobody shortens it, and when its time has come it is over."""
    with bucket() as b:
        until = soon(seconds=6)
        id = put(b, "k", b"kept", ObjectLockMode="COMPLIANCE", ObjectLockRetainUntilDate=until)
        for bypass in (False, True):
            denied(remove, b=b, k="k", id=id, BypassGovernanceRetention=bypass)
            for mode, to in (("COMPLIANCE", soon(seconds=4)), ("GOVERNANCE", soon(days=1))):
                denied(retain, b=b, k="k", id=id, mode=mode, until=to, BypassGovernanceRetention=bypass)
            denied(S3.put_object_retention, Bucket=b, Key="k", VersionId=id, Retention={}, BypassGovernanceRetention=bypass)
        until = soon(seconds=8)
        retain(b, "k", id, "COMPLIANCE", until, OTHER)
        end = time.time() + 60
        while there(b, "k", id) is not None:
            try:
                remove(b, "k", id, OTHER)
                assert datetime.datetime.now(datetime.timezone.utc) >= until - datetime.timedelta(milliseconds=500)
            except ClientError as error:
                assert error.response["Error"]["Code"] == "AccessDenied" and time.time() < end, error


def test_defaults():
    """What a bucket wants of what is put, whichever way it is put."""
    with bucket(mode="GOVERNANCE", Days=1) as b:
        ids = {"put": put(b, "put", s3=OTHER)}
        ids["copy"] = S3.copy_object(Bucket=b, Key="copy", CopySource={"Bucket": b, "Key": "put"})["VersionId"]
        upload = S3.create_multipart_upload(Bucket=b, Key="parts")["UploadId"]
        part = S3.upload_part(Bucket=b, Key="parts", UploadId=upload, PartNumber=1, Body=b"p" * 100_000)["ETag"]
        done = OTHER.complete_multipart_upload(Bucket=b, Key="parts", UploadId=upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part}]})
        ids["parts"] = done["VersionId"]
        for key, id in ids.items():
            mode, until, hold = told(b, key)
            assert mode == "GOVERNANCE" and hold is None, (key, mode)
            assert abs((until - soon(days=1)).total_seconds()) < 30, (key, until)
            denied(remove, b=b, k=key, id=id)
        until = soon(hours=1)
        id = put(b, "own", ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=until, ObjectLockLegalHoldStatus="ON")
        assert told(b, "own", id) == ("GOVERNANCE", until, "ON")
        # Markers have none.
        S3.delete_object(Bucket=b, Key="put")
        marker = [id for k, id in rows(b) if k == "put" and id != ids["put"]][0]
        remove(b, "put", marker)


def test_uploads_and_copies():
    with bucket() as b:
        until = soon(days=1)
        locked = {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": until, "ObjectLockLegalHoldStatus": "ON"}
        upload = S3.create_multipart_upload(Bucket=b, Key="k", **locked)["UploadId"]
        parts = []
        for n, size in ((1, 5 << 20), (2, 10)):
            etag = OTHER.upload_part(Bucket=b, Key="k", UploadId=upload, PartNumber=n, Body=b"%d" % n * size)["ETag"]
            parts.append({"PartNumber": n, "ETag": etag})
        id = OTHER.complete_multipart_upload(Bucket=b, Key="k", UploadId=upload, MultipartUpload={"Parts": parts})["VersionId"]
        assert told(b, "k", id) == ("GOVERNANCE", until, "ON")
        denied(remove, b=b, k="k", id=id, BypassGovernanceRetention=True)
        # A lock is not copied along with what it keeps.
        copy = lambda **how: S3.copy_object(Bucket=b, Key="c", CopySource={"Bucket": b, "Key": "k"}, **how)["VersionId"]
        assert told(b, "c", copy()) == (None, None, None)
        assert told(b, "c", copy(**locked)) == ("GOVERNANCE", until, "ON")
        # Tags of what is locked may change, and the lock stays.
        OTHER.put_object_tagging(Bucket=b, Key="k", VersionId=id, Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})
        put(b, "k")
        S3.put_object_tagging(Bucket=b, Key="k", VersionId=id, Tagging={"TagSet": [{"Key": "a", "Value": "c"}]})
        assert told(b, "k", id) == ("GOVERNANCE", until, "ON")
        off(b, "k", id)
        assert told(b, "k", id) == ("GOVERNANCE", until, "OFF")


def test_many_at_once():
    with bucket() as b:
        until = soon(days=1)
        free, governed = put(b, "a"), put(b, "b", ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=until)
        held = put(b, "c", ObjectLockLegalHoldStatus="ON")
        named = [{"Key": k, "VersionId": id} for k, id in (("a", free), ("b", governed), ("c", held))]
        said = S3.delete_objects(Bucket=b, Delete={"Objects": named + [{"Key": "c"}]})
        assert sorted((e["Key"], e["Code"]) for e in said["Errors"]) == [("b", "AccessDenied"), ("c", "AccessDenied")], said
        assert sorted(d["Key"] for d in said["Deleted"]) == ["a", "c"]
        said = OTHER.delete_objects(Bucket=b, Delete={"Objects": named}, BypassGovernanceRetention=True)
        assert [(e["Key"], e["VersionId"], e["Code"]) for e in said["Errors"]] == [("c", held, "AccessDenied")], said
        assert there(b, "b", governed) is None and there(b, "c", held) == b"x"


def test_who_may():
    """Whoever is let in may do what the policy says of locks, and no more."""
    if "ALT_KEY" not in os.environ:
        return
    alt = client(os.environ["ALT_KEY"], os.environ["ALT_SECRET"], **PATIENT)

    def let(b, *actions, **condition):
        allow = {"Effect": "Allow", "Principal": "*", "Action": list(actions), "Resource": "arn:aws:s3:::%s/*" % b}
        if condition:
            allow["Condition"] = condition
        S3.put_bucket_policy(Bucket=b, Policy=json.dumps({"Version": "2012-10-17", "Statement": [allow]}))

    def deny(b, action, **condition):
        says = lambda effect, **more: dict(Effect=effect, Principal="*", Resource="arn:aws:s3:::%s/*" % b, **more)
        rules = [says("Allow", Action="s3:*"), says("Deny", Action=action, Condition=condition)]
        S3.put_bucket_policy(Bucket=b, Policy=json.dumps({"Version": "2012-10-17", "Statement": rules}))

    with bucket() as b:
        until = soon(days=2)
        locked = {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": until}
        id = put(b, "k", ObjectLockLegalHoldStatus="OFF", **locked)
        let(b, "s3:PutObject", "s3:GetObject", "s3:GetObjectVersion", "s3:DeleteObjectVersion")
        put(b, "mine", s3=alt)
        denied(put, b=b, k="mine", s3=alt, **locked)
        denied(put, b=b, k="mine", s3=alt, ObjectLockLegalHoldStatus="ON")
        denied(alt.create_multipart_upload, Bucket=b, Key="mine", **locked)
        assert told(b, "k", id, alt) == (None, None, None)
        denied(alt.get_object_retention, Bucket=b, Key="k")
        denied(alt.put_object_legal_hold, Bucket=b, Key="k", LegalHold={"Status": "ON"})
        denied(remove, b=b, k="k", id=id, s3=alt, BypassGovernanceRetention=True)
        let(b, "s3:*", NumericLessThan={"s3:object-lock-remaining-retention-days": "5"})
        put(b, "mine", s3=alt, **locked)
        denied(put, b=b, k="mine", s3=alt, ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=soon(days=9))
        denied(retain, b=b, k="k", id=id, mode="GOVERNANCE", until=soon(days=9), s3=alt)
        retain(b, "k", id, "GOVERNANCE", soon(days=3), alt)
        deny(b, "s3:PutObjectLegalHold", StringEquals={"s3:object-lock-legal-hold": "ON"})
        put(b, "mine", s3=alt, ObjectLockLegalHoldStatus="OFF")
        denied(put, b=b, k="mine", s3=alt, ObjectLockLegalHoldStatus="ON")
        denied(alt.put_object_legal_hold, Bucket=b, Key="k", VersionId=id, LegalHold={"Status": "ON"})
        # What nobody says of a removal cannot be looked at: a denial that is never met is refused.
        fails("MalformedPolicy", 400, deny, b=b, action="s3:DeleteObjectVersion", StringEquals={"s3:object-lock-mode": "COMPLIANCE"})
        # By the tags of what is removed, one by one and many at once.
        S3.put_object_tagging(Bucket=b, Key="k", VersionId=id, Tagging={"TagSet": [{"Key": "keep", "Value": "yes"}]})
        deny(b, "s3:BypassGovernanceRetention", StringEquals={"s3:ExistingObjectTag/keep": "yes"})
        denied(remove, b=b, k="k", id=id, s3=alt, BypassGovernanceRetention=True)
        many = alt.delete_objects(Bucket=b, Delete={"Objects": [{"Key": "k", "VersionId": id}]}, BypassGovernanceRetention=True)
        assert [e["Code"] for e in many["Errors"]] == ["AccessDenied"] and told(b, "k", id)[0] == "GOVERNANCE", many
        let(b, "s3:GetObject", "s3:GetObjectVersion", "s3:GetObjectRetention", "s3:DeleteObjectVersion", "s3:BypassGovernanceRetention")
        assert told(b, "k", id, alt)[0] == "GOVERNANCE" and told(b, "k", id, alt)[2] is None
        denied(remove, b=b, k="k", id=id, s3=alt)
        remove(b, "k", id, alt, BypassGovernanceRetention=True)
        S3.delete_bucket_policy(Bucket=b)


def test_a_hold_and_a_removal_race():
    """Through two gateways at once: either the hold is set, and the version stays, or it is gone and was never held."""
    with bucket() as b, concurrent.futures.ThreadPoolExecutor(2) as pool:
        won = [0, 0]
        for n in range(60):
            size = (5, 5000, 100_000)[n % 3]
            data = RANDOM.randbytes(size)
            id = put(b, "k", data)
            if n % 2:
                put(b, "k", b"newer")

            def hold():
                try:
                    S3.put_object_legal_hold(Bucket=b, Key="k", VersionId=id, LegalHold={"Status": "ON"})
                    return True
                except ClientError as error:
                    assert error.response["Error"]["Code"] == "NoSuchVersion", error
                    return False

            def gone():
                try:
                    remove(b, "k", id, OTHER, BypassGovernanceRetention=True)
                    return True
                except ClientError as error:
                    assert error.response["Error"]["Code"] == "AccessDenied", error
                    return False

            both = [pool.submit(hold), pool.submit(gone)]
            held, removed = (it.result() for it in both)
            assert held != removed, (n, held, removed)
            assert there(b, "k", id) == (data if held else None), n
            won[removed] += 1
            if held:
                off(b, "k", id)
                remove(b, "k", id)
        print("  %d holds, %d removals" % tuple(won))


def test_changes_of_one_lock_race():
    """Holds, retentions and tags, through two gateways at once: none is lost."""
    with bucket() as b, concurrent.futures.ThreadPoolExecutor(3) as pool:
        for n in range(12):
            id = put(b, "k", RANDOM.randbytes((5, 50_000)[n % 2]))
            if n % 3 == 0:
                put(b, "k", b"newer")
            until = soon(days=1)
            for done in [
                pool.submit(S3.put_object_legal_hold, Bucket=b, Key="k", VersionId=id, LegalHold={"Status": "ON"}),
                pool.submit(retain, b, "k", id, "GOVERNANCE", until, OTHER),
                pool.submit(OTHER.put_object_tagging, Bucket=b, Key="k", VersionId=id, Tagging={"TagSet": [{"Key": "a", "Value": "b"}]}),
            ]:
                done.result()
            assert told(b, "k", id) == ("GOVERNANCE", until, "ON"), n
            assert S3.get_object_tagging(Bucket=b, Key="k", VersionId=id)["TagSet"] == [{"Key": "a", "Value": "b"}]


if __name__ == "__main__":
    main(globals())
