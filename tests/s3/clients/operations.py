"""The columns of the table, for clients of objects: each operation is looked at through another client."""
import base64, hashlib, time

from check import MIB, data, form, http
from process import Impossible, Wrong, told

PARTS = 12 * MIB
KILLED = 64 * MIB
RACERS = 8
# What every client that lists names at all can have in them: no "//", "." or "..", which some take for
# paths, and no control characters, which end the lines that commands print. check.py has those.
AWKWARD = ("plain", "a b", "a+b", "a%20b", "a%b", "a&b=c?d#e", "ä", "a\u0308", "日本語", "😀", "a'b\"c<d>",
           "~a*(b)!$,;:@=", "[x]{y}^`|", "a\\b", " led and trailed ", "d/e", "d/e f/g+h", "é" * 100, "\u00a0",
           ".hidden", "%2F", "...")
NAMES = ["%04d %s" % (n, AWKWARD[n % len(AWKWARD)]) for n in range(1001)]


def same(got, wanted, what):
    if got != wanted:
        if isinstance(wanted, bytes):
            at = next((i for i, (a, b) in enumerate(zip(got, wanted)) if a != b), min(len(got), len(wanted)))
            raise Wrong("%s: %d bytes instead of %d, differing at %d" % (what, len(got), len(wanted), at))
        raise Wrong("%s: %.300r instead of %.300r" % (what, got, wanted))


def put(t, size, call="put", key="put %d+ä"):
    x = data(size)
    key = key % size
    t.call(call, bucket=t.bucket, key=key, path=t.file(x))
    same(t.witness.read(t.bucket, key), x, "what was put")
    return key


def empty(t):
    put(t, 0)


def small(t):
    put(t, 4096)


def parts(t):
    key = put(t, PARTS, "put_parts")
    etag = t.witness.etag(t.bucket, key)
    if "-" not in etag:
        raise Wrong("not put in parts: the ETag is %s" % etag)


def get(t):
    for key, x in t.shared.objects.items():
        path = t.path()
        t.call("get", bucket=t.shared.bucket, key=key, path=path)
        same(open(path, "rb").read(), x, "what was got of %d bytes" % len(x))


def ranges(t):
    asked = {4096: [(0, 1), (1, 4000)], PARTS: [(4 * MIB - 7, 9 * MIB + 5), (PARTS - 1, PARTS)]}
    for size, some in asked.items():
        x = t.shared.objects["get %d" % size]
        for start, end in some:
            path = t.path()
            t.call("range", bucket=t.shared.bucket, key="get %d" % size, start=start, length=end - start,
                   path=path)
            same(open(path, "rb").read(), x[start:end], "bytes %d to %d of %d" % (start, end, size))


def listing(t):
    got = sorted(t.call("list", bucket=t.shared.bucket, prefix="list/"))
    wanted = sorted("list/" + n for n in NAMES)
    if got != wanted:
        raise Wrong("%d keys; not listed: %.300r; made up: %.300r" % (
            len(got), sorted(set(wanted) - set(got))[:5], sorted(set(got) - set(wanted))[:5]))


def copy(t):
    for size in (4096, PARTS):
        x = data(size)
        name = "a-b-%d" if t.can("copies_plain_names") else "a+b %d ä"
        source, key = ("source/" + name) % size, ("copy/" + name) % size
        t.witness.put(t.bucket, source, x)
        t.call("copy", bucket=t.bucket, source=source, key=key)
        same(t.witness.read(t.bucket, key), x, "the copy")


def multi_delete(t):
    keys = ["gone/all/%d %s" % (n, a) for n, a in enumerate(AWKWARD)]
    for key in keys + ["gone/stays"]:
        t.witness.put(t.bucket, key, b"x")
    if t.can("remove_all"):
        # It takes no list of keys, but sends one.
        t.call("remove_all", bucket=t.bucket, prefix="gone/all/")
    else:
        t.call("remove", bucket=t.bucket, keys=keys)
    # Who takes it for a folder may leave a marker that it is there.
    left = [key for key in t.witness.keys(t.bucket, "gone/") if key != "gone/all/"]
    same(left, ["gone/stays"], "what stayed")


def race(t, call, key, racers=RACERS, **more):
    """Some write one key, on a condition that one of them can meet."""
    each = [data(4096 + n) for n in range(racers)]
    args = [dict(more, bucket=t.bucket, key=key, path=t.file(x)) for x in each]
    won = [x for x, answer in zip(each, t.call("race", method=call, each=args)) if told(answer)]
    if len(won) != 1:
        raise Wrong("%d of %d won" % (len(won), racers))
    same(t.witness.read(t.bucket, key), won[0], "what the winner wrote")


def create(t):
    race(t, "create", "created")
    if t.call("create", bucket=t.bucket, key="created", path=t.file(b"late")):
        raise Wrong("what was there was created")


def swap(t):
    old, new = data(4096), data(4096)
    etag = t.witness.put(t.bucket, "swapped", old)
    if not t.call("swap", bucket=t.bucket, key="swapped", path=t.file(new), etag=etag):
        raise Wrong("refused although nothing had changed")
    same(t.witness.read(t.bucket, "swapped"), new, "what was swapped in")
    if t.call("swap", bucket=t.bucket, key="swapped", path=t.file(b"late"), etag=etag):
        raise Wrong("swapped although it had changed")
    same(t.witness.read(t.bucket, "swapped"), new, "what should have stayed")
    race(t, "swap", "swapped", 3, etag=t.witness.etag(t.bucket, "swapped"))


def presigned(t):
    url = t.call("sign", bucket=t.shared.bucket, key="get 4096", method="get")
    status, _, got = http("GET", url)
    same(status, 200, "the status of %s: %.300r" % (url, got))
    same(got, t.shared.objects["get 4096"], "what the URL gave")
    url = t.call("sign", bucket=t.bucket, key="signed a+b ä", method="put")
    # Some sign for reading only.
    if url:
        x = data(4096)
        status, _, got = http("PUT", url, {"Content-Length": "4096"}, x)
        same(status, 200, "the status of %s: %.300r" % (url, got))
        same(t.witness.read(t.bucket, "signed a+b ä"), x, "what was put by the URL")


def post(t):
    given, x = t.call("form", bucket=t.bucket, key="posted"), data(4096)
    status, _, got = http("POST", given["url"], *form(given["fields"], x))
    same(status, 204, "the status of the form: %.300r" % got)
    same(t.witness.read(t.bucket, "posted"), x, "what was posted")


def checksum(t):
    x, other = data(4096), data(4096)
    try:
        t.call("put_wrong", bucket=t.bucket, key="wrong", path=t.file(x),
               md5=base64.b64encode(hashlib.md5(other).digest()).decode(),
               sha256=base64.b64encode(hashlib.sha256(other).digest()).decode())
    except Wrong as error:
        if not any(sign in str(error) for sign in ("BadDigest", "XAmzContentChecksumMismatch")):
            raise
    else:
        raise Wrong("a body with a wrong checksum was taken")
    same(t.witness.keys(t.bucket, "wrong"), [], "what a refused put left")


def versions(t):
    if not t.can("get_version"):
        raise Impossible("knows no versions")
    key, contents, ids = "old/name.bin", [data(4096), data(5000), data(6000)], []
    for n, x in enumerate(contents):
        # rclone tells versions by their times, and Amazon's have no fractions of seconds.
        time.sleep(1.1 if n and t.name == "rclone" else 0)
        t.call("put", bucket=t.versioned, key=key, path=t.file(x))
        ids.append(t.witness.version(t.versioned, key))
    same(len(set(ids)), 3, "versions")
    for id, x in zip(ids, contents):
        same(t.witness.read(t.versioned, key, id), x, "a version")
    path = t.path()
    t.call("get_version", bucket=t.versioned, key=key, id=ids[0], path=path)
    same(open(path, "rb").read(), contents[0], "the oldest version")
    if t.can("versions"):
        same(t.call("versions", bucket=t.versioned, key=key), ids[::-1], "the versions listed")


def tags(t):
    x, wanted = data(4096), {"colour": "green", "with space": "a+b c"}
    t.witness.put(t.bucket, "tagged", x)
    # Some give tags with what they put.
    t.call("tag", bucket=t.bucket, key="tagged", path=t.file(x), tags=wanted)
    same(t.witness.tags(t.bucket, "tagged"), wanted, "the tags")
    same(t.witness.read(t.bucket, "tagged"), x, "what has the tags")
    if t.can("tags"):
        same(t.call("tags", bucket=t.bucket, key="tagged"), wanted, "the tags told")


def tls(t):
    with t.over_tls() as t:
        for size in (4096, PARTS):
            key = put(t, size, "put", "tls %d")
            path = t.path()
            t.call("get", bucket=t.bucket, key=key, path=path)
            same(open(path, "rb").read(), t.witness.read(t.bucket, key), "what was got over TLS")


def killed(t):
    x = data(KILLED)
    with t.while_a_node_dies(KILLED // 4) as t:
        t.call("put", bucket=t.bucket, key="killed", path=t.file(x))
        same(t.witness.read(t.bucket, "killed"), x, "what was put while a node died")
        path = t.path()
        t.call("get", bucket=t.bucket, key="killed", path=path)
        same(open(path, "rb").read(), x, "what was got without the node")


COLUMNS = {
    "0 B": empty, "4 KiB": small, "12 MiB in parts": parts, "get": get, "ranges": ranges, "list": listing,
    "copy": copy, "multi-delete": multi_delete, "create if absent": create, "CAS": swap,
    "presigned": presigned, "POST": post,
    "bad checksum": checksum, "versions": versions, "tags": tags, "TLS": tls, "node killed": killed,
}
WITHOUT_CORE = ("TLS", "node killed")
