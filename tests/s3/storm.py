#!/usr/bin/env python3
"""Puts through an S3 endpoint while its store is beaten, and looks afterwards what is there.

    storm.py ENDPOINT put LOG       until its standard input ends: whatever is begun and acknowledged is written down
    storm.py ENDPOINT verify LOG    everything acknowledged is there, and whatever is there is whole

Eight clients put objects of all sizes, some of them in parts, each under keys of its own, and overwrite them. Three
write a log each, line by line, at its end: every line that was acknowledged is in it once, in its order. Three give an
object one key after the other, and ask again until they are told that it has it: it is there once, and whole.
"""
import hashlib, itertools, json, random, sys, threading, time, uuid

from check import MIB, S3, SEED, client
from botocore.exceptions import BotoCoreError, ClientError

BUCKET = "storm"
CLIENTS, KEYS, LOGS, RINGS, PLACES = 8, 12, 3, 3, 5


def content(seed, size):
    return random.Random(seed).randbytes(size)


def put_parts(s3, key, x):
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
    parts = []
    for n, at in enumerate(range(0, len(x), 5 * MIB)):
        got = s3.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=n + 1, Body=x[at:at + 5 * MIB])
        parts.append({"PartNumber": n + 1, "ETag": got["ETag"]})
    s3.complete_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})


def work(me, stop, say):
    dice = random.Random(SEED + me)
    s3 = client(connect_timeout=2, read_timeout=20)
    n = 0
    while not stop.is_set():
        n += 1
        key = "%d/%d" % (me, dice.randrange(KEYS))
        size = dice.choice((0, 100, 4096, 100_000, 1 << 20, 6 * MIB, 11 * MIB))
        seed = "%d-%d-%d" % (SEED, me, n)
        x = content(seed, size)
        made = dict(key=key, seed=seed, size=size, md5=hashlib.md5(x).hexdigest())
        say("begun", made)
        try:
            if size > 5 * MIB and dice.random() < 0.7:
                put_parts(s3, key, x)
            else:
                s3.put_object(Bucket=BUCKET, Key=key, Body=x)
            say("done", made)
        except (ClientError, BotoCoreError) as error:
            code = (getattr(error, "response", None) or {}).get("Error", {}).get("Code", type(error).__name__)
            say("failed", dict(made, why=code))
            stop.wait(0.1)


def write_log(me, stop, say):
    s3 = client(connect_timeout=2, read_timeout=20)
    key, n = "log/%d" % me, 0
    while not stop.is_set():
        n += 1
        line = "%d %d %s\n" % (SEED, n, "x" * random.Random(n).choice((1, 100, 20_000)))
        say("begun", dict(log=key, line=line))
        while not stop.is_set():
            try:
                try:
                    size = s3.head_object(Bucket=BUCKET, Key=key)["ContentLength"]
                except ClientError as error:
                    assert error.response["Error"]["Code"] == "404", error
                    size = 0
                if size and s3.get_object(Bucket=BUCKET, Key=key)["Body"].read().endswith(line.encode()):
                    # It was done, though nobody could say so.
                    break
                s3.put_object(Bucket=BUCKET, Key=key, Body=line, WriteOffsetBytes=size)
                say("done", dict(log=key, line=line))
                break
            except (ClientError, BotoCoreError):
                stop.wait(0.1)


def go_round(me, stop, say):
    s3, dice = client(connect_timeout=2, read_timeout=20), random.Random(SEED + 100 + me)
    size = (100, 100_000, 6 * MIB)[me % 3]
    for n in itertools.count():
        # One that may yet be put once more is none that is there once.
        ring = dict(ring="ring/%d-%d" % (me, n), seed="%d-%d" % (SEED, me), size=size)
        try:
            s3.put_object(Bucket=BUCKET, Key=ring["ring"] + "/0", Body=content(ring["seed"], size))
            break
        except (ClientError, BotoCoreError):
            if stop.wait(0.1):
                return
    at, moves = 0, 0
    while not stop.is_set():
        to, token = (at + 1 + dice.randrange(PLACES - 1)) % PLACES, str(uuid.uuid4())
        while not stop.is_set():
            try:
                s3.rename_object(Bucket=BUCKET, Key="%s/%d" % (ring["ring"], to), RenameSource="%s/%d" % (ring["ring"], at),
                                 ClientToken=token)
                at, moves = to, moves + 1
                break
            except (ClientError, BotoCoreError) as error:
                code = (getattr(error, "response", None) or {}).get("Error", {}).get("Code", "")
                if code in ("NoSuchKey", "IdempotencyParameterMismatch", "PreconditionFailed"):
                    # Nobody else moves it: it is gone, or what was done is forgotten.
                    say("lost", dict(ring, why=code))
                    return
                stop.wait(0.1)
    say("moved", dict(ring, moves=moves))


def put(log):
    S3.create_bucket(Bucket=BUCKET)
    lock, stop = threading.Lock(), threading.Event()
    with open(log, "w") as out:
        def say(what, made):
            with lock:
                out.write(json.dumps(dict(made, what=what)) + "\n")
                out.flush()
        threads = [threading.Thread(target=work, args=(i, stop, say)) for i in range(CLIENTS)]
        threads += [threading.Thread(target=write_log, args=(i, stop, say)) for i in range(LOGS)]
        threads += [threading.Thread(target=go_round, args=(i, stop, say)) for i in range(RINGS)]
        for t in threads:
            t.start()
        sys.stdin.read()
        stop.set()
        for t in threads:
            t.join()


def verify_logs(events):
    """How many lines are in the logs: those that were begun, in their order, and each that was acknowledged."""
    begun, done = {}, {}
    for e in events:
        (begun if e["what"] == "begun" else done).setdefault(e["log"], []).append(e["line"])
    assert len(begun) == LOGS, begun.keys()
    lines = 0
    for key, said in begun.items():
        there = S3.get_object(Bucket=BUCKET, Key=key)["Body"].read().decode().splitlines(keepends=True)
        missing = set(done.get(key, [])) - set(there)
        assert not missing, "%s: %d lines that were acknowledged are not there" % (key, len(missing))
        rest = iter(said)
        assert all(line in rest for line in there), "%s: lines that were not written so" % key
        lines += len(there)
    return lines


def verify_rings(events):
    """How often objects were moved: each of them is there, under one of its keys."""
    assert len(events) == RINGS and all(e["what"] == "moved" for e in events), events
    for e in events:
        listed = [o["Key"] for o in S3.list_objects_v2(Bucket=BUCKET, Prefix=e["ring"] + "/").get("Contents", [])]
        assert len(listed) == 1, (e, listed)
        there = S3.get_object(Bucket=BUCKET, Key=listed[0])["Body"].read()
        assert there == content(e["seed"], e["size"]), "%s: %d bytes" % (listed[0], len(there))
    assert all(e["moves"] > 3 for e in events), events
    return sum(e["moves"] for e in events)


def verify(log):
    # What each key may hold: what was acknowledged last, or whatever was begun and not acknowledged since, or before
    # that, but still on its way then.
    may, done, failed = {}, 0, {}
    events = [json.loads(line) for line in open(log)]
    lines = verify_logs([e for e in events if "log" in e])
    moves = verify_rings([e for e in events if "ring" in e])
    for e in events:
        if "log" in e or "ring" in e:
            continue
        if e["what"] == "begun":
            may.setdefault(e["key"], [None]).append(e)
        elif e["what"] == "done":
            done += 1
            may[e["key"]] = [x for x in may[e["key"]] if x and (x["seed"] == e["seed"] or x.get("doubt"))]
        else:
            failed[e["why"]] = failed.get(e["why"], 0) + 1
            for x in may[e["key"]]:
                if x and x["seed"] == e["seed"]:
                    x["doubt"] = True
    assert done > 20, "only %d puts were acknowledged: %s" % (done, failed)
    wrong = []
    for key, states in sorted(may.items()):
        try:
            got = S3.get_object(Bucket=BUCKET, Key=key)
            x = got["Body"].read()
            assert len(x) == got["ContentLength"]
            is_one = any(s and len(x) == s["size"] and hashlib.md5(x).hexdigest() == s["md5"] for s in states)
        except ClientError as error:
            assert error.response["Error"]["Code"] == "NoSuchKey", error
            is_one = None in states
        if not is_one:
            wrong.append(key)
    listed = {o["Key"] for page in S3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET) for o in page.get("Contents", [])}
    may.update({"log/%d" % n: [] for n in range(LOGS)})
    listed = {key for key in listed if not key.startswith("ring/")}
    assert listed <= set(may), listed - set(may)
    print("%d puts acknowledged, failed: %s, %d keys, %d lines of logs, %d renames" % (done, failed, len(may), lines, moves))
    assert not wrong, "neither what was acknowledged nor what was begun since: %s" % wrong


if __name__ == "__main__":
    began = time.time()
    {"put": put, "verify": verify}[sys.argv[2]](sys.argv[3])
