#!/usr/bin/env python3
"""Sends an S3 endpoint requests whose bodies come when their bucket is another user's.

    slow.py ENDPOINT            as check.py, with a second user's ALT_KEY and ALT_SECRET
    slow.py ENDPOINT NAME...    only the checks whose names contain one of these

Who was let into a bucket is not let into the next one of that name: what comes late is refused, and touches nothing there.
"""
import base64, hashlib, os, time

from check import MIB, RANDOM, S3, SEED, body, client, data, form, main
from malformed import AT, Line, Request, refused

ALT = client(os.environ["ALT_KEY"], os.environ["ALT_SECRET"])
# For so long a gateway goes by what it was told of a bucket, in seconds.
STANDS = 0.1


def expecting(text):
    return {"content-length": "%d" % len(text), "expect": "100-continue"}


def new_name():
    return "slow-%08x-%08x" % (SEED, RANDOM.randrange(1 << 32))


def late(head, text, name=None):
    """`head` says of a bucket what is asked for there: `text` comes when the gateway has let that in, and the name is another bucket's."""
    b = name or new_name()
    S3.create_bucket(Bucket=b)
    line = Line().send(head(b))
    told = line.reply()
    assert told and told[0] == 100, told
    S3.delete_bucket(Bucket=b)
    ALT.create_bucket(Bucket=b)
    try:
        ALT.put_object(Bucket=b, Key="k", Body=b"stays", Tagging="a=1")
        time.sleep(2 * STANDS)
        refused(line.send(text).reply(), (404, "NoSuchBucket"))
        assert [o["Key"] for o in ALT.list_objects_v2(Bucket=b)["Contents"]] == ["k"]
        assert body(b, "k", ALT) == b"stays"
        assert ALT.get_object_tagging(Bucket=b, Key="k")["TagSet"] == [{"Key": "a", "Value": "1"}]
    finally:
        for found in ALT.list_objects_v2(Bucket=b).get("Contents", []):
            ALT.delete_object(Bucket=b, Key=found["Key"])
        ALT.delete_bucket(Bucket=b)


def test_objects():
    """Such as ride in the journal, and such as stand in stripes."""
    for n in (10, 3 * MIB):
        x = data(n)
        late(lambda b: Request("PUT", "/%s/new" % b, more=expecting(x)).head, x)


def test_over_an_object():
    late(lambda b: Request("PUT", "/%s/k" % b, more=expecting(b"late")).head, b"late")


def test_forms():
    name = new_name()
    given = S3.generate_presigned_post(name, "new")
    headers, text = form(given["fields"], b"late")
    lines = ["POST /%s HTTP/1.1" % name, "host: " + AT.netloc] + ["%s: %s" % kv for kv in {**headers, **expecting(text)}.items()]
    late(lambda _: "\r\n".join(lines + ["", ""]).encode(), text, name)


def test_documents():
    tags = b"<Tagging><TagSet><Tag><Key>a</Key><Value>late</Value></Tag></TagSet></Tagging>"
    late(lambda b: Request("PUT", "/%s/k" % b, query="tagging=", more=expecting(tags)).head, tags)
    gone = b"<Delete><Object><Key>k</Key></Object></Delete>"
    md5 = base64.b64encode(hashlib.md5(gone).digest()).decode()
    late(lambda b: Request("POST", "/" + b, {"content-md5": md5}, query="delete=", more=expecting(gone)).head, gone)


if __name__ == "__main__":
    main(globals())
