"""The columns of the table, for clients of tables: boto3 brings what they write, and it is read here."""
import os

from check import RANDOM
from operations import COLUMNS as OBJECTS
from operations import listing
from process import Impossible, Wrong, told

# A row has 1 KiB.
SMALL, LARGE = 4, 12 << 10


def seed():
    return RANDOM.randrange(1 << 40)


def bring(t, key):
    """What is below a key, in a folder."""
    folder = t.path()
    os.makedirs(folder)
    for name in t.witness.keys(t.bucket, key + "/"):
        path = os.path.join(folder, name.removeprefix(key + "/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as out:
            out.write(t.witness.read(t.bucket, name))
    return folder


def send(t, n):
    """A table that the client made here, put by boto3; its key and its seed."""
    folder, key, s = t.path(), "sent %d ä" % n, seed()
    os.makedirs(folder)
    t.call("build", folder=folder, seed=s, n=n)
    for below, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(below, name)
            t.witness.put(t.bucket, key + "/" + os.path.relpath(path, folder), open(path, "rb").read())
    return key, s


def put(t, n, key="put %d"):
    key, s = key % n, seed()
    t.call("write", bucket=t.bucket, key=key, seed=s, n=n)
    t.call("same", folder=bring(t, key), tables=[[s, n]])
    return key, s


def empty(t):
    put(t, 0)


def small(t):
    put(t, SMALL)


def parts(t):
    key, _ = put(t, LARGE)
    etags = [t.witness.etag(t.bucket, name) for name in t.witness.keys(t.bucket, key + "/")]
    if not any("-" in etag for etag in etags):
        raise Wrong("not put in parts: the ETags are %s" % etags)


def get(t):
    for n in (0, SMALL, LARGE):
        key, s = send(t, n)
        t.call("read", bucket=t.bucket, key=key, seed=s, n=n)


def ranges(t):
    if not t.can("slice"):
        raise Impossible("no part of a file")
    key, s = send(t, LARGE)
    for start, length in ((0, 1), (5000, 10), (LARGE - 1, 1)):
        t.call("slice", bucket=t.bucket, key=key, seed=s, n=LARGE, start=start, length=length)


def clear(t):
    if not t.can("clear"):
        raise Impossible("removes nothing")
    end, stay = t.call("clear", bucket=t.bucket, key="cleared")
    left = [k for k in t.witness.keys(t.bucket, "cleared/") if k.endswith(end)]
    if len(left) != stay:
        raise Wrong("%d are left instead of %d: %s" % (len(left), stay, left[:5]))


def create(t):
    """Eight make one table: each that was acknowledged has a version of its own, by a put that creates.

    That one of them wins is more than these promise: on a file system too, the second may have looked for the
    table before the first made it, and is then added (deltalake) or written over it (lancedb).
    """
    if not t.can("create"):
        raise Impossible("writes over what is there")
    seeds = [seed() for _ in range(8)]
    each = [dict(bucket=t.bucket, key="created", seed=s, n=SMALL) for s in seeds]
    won = [s for s, answer in zip(seeds, t.call("race", method="create", each=each)) if told(answer)]
    if not won:
        raise Wrong("none of 8 won")
    log, end = t.call("where")
    made = [k for k in t.witness.keys(t.bucket, "created/" + log) if k.endswith(end)]
    if len(made) != len(won):
        raise Wrong("%d of 8 were acknowledged, %d versions made" % (len(won), len(made)))
    folder = bring(t, "created")
    if t.call("adds"):
        t.call("same", folder=folder, tables=[[s, SMALL] for s in won])
    else:
        t.call("one_of", folder=folder, tables=[[s, SMALL] for s in won])


def append(t):
    """Four add to a table at once, each again if another was first: what was acknowledged is there."""
    if not t.can("append"):
        raise Impossible("has no versions of tables")
    key, s = put(t, SMALL, "appended %d")
    seeds = [seed() for _ in range(4)]
    each = [dict(bucket=t.bucket, key=key, seed=s, n=SMALL) for s in seeds]
    for answer in t.call("race", method="append", each=each):
        told(answer)
    t.call("same", folder=bring(t, key), tables=[[s, SMALL]] + [[s, SMALL] for s in seeds])


def tls(t):
    with t.over_tls() as t:
        key, s = put(t, LARGE, "tls %d")
        t.call("read", bucket=t.bucket, key=key, seed=s, n=LARGE)


def none(t):
    raise Impossible("a client of tables")


COLUMNS = dict(dict.fromkeys(OBJECTS, none), **{
    "0 B": empty, "4 KiB": small, "12 MiB in parts": parts, "get": get, "ranges": ranges, "list": listing,
    "multi-delete": clear, "create if absent": create, "CAS": append, "TLS": tls,
})
