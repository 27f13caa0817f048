#!/usr/bin/env python3
"""Sends an S3 endpoint what no honest client sends, and looks for half objects.

    malformed.py ENDPOINT [NAME...]    as check.py, whose helpers these are

Requests are written byte by byte and signed here, so that they can lie about anything. After each check the
object that was there has to be there unchanged, and the one that was refused must not be.
"""
import base64, hashlib, hmac, socket, time, urllib.parse, zlib

import boto3

from check import ENDPOINT, REGION, S3, MIB, body, bucket, data, fails, main

AT = urllib.parse.urlsplit(ENDPOINT)
WHO = boto3.Session().get_credentials()
UNSIGNED, CHUNKS = "UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
TRAILER, SIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"


def mac(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


class Request:
    """A signed request. `more` are headers that are not signed."""

    def __init__(self, method, path, headers={}, sha=UNSIGNED, query="", more={}, age=0, secret=WHO.secret_key):
        self.stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() - age))
        self.scope = "%s/%s/s3/aws4_request" % (self.stamp[:8], REGION)
        signed = {"host": AT.netloc, "x-amz-content-sha256": sha, "x-amz-date": self.stamp}
        signed.update({k.lower(): v for k, v in headers.items()})
        names = ";".join(sorted(signed))
        lines = [method, path, query] + ["%s:%s" % (k, signed[k]) for k in sorted(signed)] + ["", names, sha]
        text = "\n".join(["AWS4-HMAC-SHA256", self.stamp, self.scope, hashlib.sha256("\n".join(lines).encode()).hexdigest()])
        self.key = ("AWS4" + secret).encode()
        for part in self.scope.split("/"):
            self.key = mac(self.key, part)
        self.last = mac(self.key, text).hex()
        auth = "AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s" % (WHO.access_key, self.scope, names, self.last)
        head = ["%s %s%s HTTP/1.1" % (method, path, "?" + query if query else "")]
        head += ["%s: %s" % kv for kv in list(signed.items()) + [("authorization", auth)] + list(more.items())]
        self.head = "\r\n".join(head + ["", ""]).encode()

    def chunk(self, piece, wrong=False, size=None):
        """A chunk with its signature."""
        empty = hashlib.sha256(b"").hexdigest()
        text = "\n".join(["AWS4-HMAC-SHA256-PAYLOAD", self.stamp, self.scope, self.last, empty, hashlib.sha256(piece).hexdigest()])
        self.last = mac(self.key, text).hex()
        said = self.last[::-1] if wrong else self.last
        return b"%s;chunk-signature=%s\r\n%s\r\n" % (size or b"%x" % len(piece), said.encode(), piece)

    def trailer(self, line, wrong=False):
        text = "\n".join(["AWS4-HMAC-SHA256-TRAILER", self.stamp, self.scope, self.last, hashlib.sha256((line + "\n").encode()).hexdigest()])
        said = mac(self.key, text).hex()
        return ("%s\r\nx-amz-trailer-signature:%s\r\n\r\n" % (line, said[::-1] if wrong else said)).encode()


class Line:
    """A connection, without anything that would help."""

    def __init__(self):
        self.socket = socket.create_connection((AT.hostname, AT.port), timeout=30)
        self.rest = b""

    def send(self, *pieces):
        for piece in pieces:
            try:
                self.socket.sendall(piece)
            except OSError:
                # It has heard enough: what it said is there to be read.
                break
        return self

    def half_close(self):
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            # The other side was faster.
            pass
        return self

    def more(self):
        try:
            got = self.socket.recv(1 << 16)
        except ConnectionResetError:
            got = b""
        self.rest += got
        return bool(got)

    def reply(self):
        """The next reply: its status, its headers, its body. None if there is none."""
        while b"\r\n\r\n" not in self.rest:
            if not self.more():
                return None
        head, self.rest = self.rest.split(b"\r\n\r\n", 1)
        lines = head.decode().split("\r\n")
        headers = {k.lower(): v.strip() for k, v in (l.split(":", 1) for l in lines[1:])}
        length = int(headers.get("content-length", 0))
        while len(self.rest) < length:
            if not self.more():
                return None
        got, self.rest = self.rest[:length], self.rest[length:]
        return int(lines[0].split()[1]), headers, got

    def is_closed(self):
        """Whether there is no more to come."""
        return not self.rest and not self.more()


def ask(*pieces, cut=False):
    line = Line().send(*pieces)
    if cut:
        line.half_close()
    return line.reply()


def refused(reply, *codes):
    assert reply, "no reply"
    status, headers, text = reply
    code = text.split(b"<Code>")[1].split(b"</Code>")[0].decode() if b"<Code>" in text else ""
    assert (status, code) in codes, "%s %s %s, not one of %s" % (status, code, text[:300], codes)
    if code:
        assert headers["x-amz-request-id"].encode() in text, text


class Scene(bucket):
    """A bucket with an object `k` that has to stay, and none that is called `new`."""

    def __enter__(self):
        b = super().__enter__()
        self.stays = data(5000)
        S3.put_object(Bucket=b, Key="k", Body=self.stays)
        return b

    def __exit__(self, *failure):
        try:
            if not failure[0]:
                assert body(self.name, "k") == self.stays, "the object that was there has changed"
                keys = [o["Key"] for o in S3.list_objects_v2(Bucket=self.name).get("Contents", [])]
                assert keys == ["k"], keys
        finally:
            super().__exit__(*failure)


def put(b, key, headers={}, sha=UNSIGNED, more={}, **args):
    return Request("PUT", "/%s/%s" % (b, key), headers, sha, more=more, **args)


def length(n):
    return {"content-length": "%d" % n}


def accepted(b, x, *pieces):
    """What is right is taken: or else that the wrong is refused says nothing."""
    reply = ask(*pieces)
    assert reply and reply[0] == 200, reply
    assert body(b, "new") == x
    S3.delete_object(Bucket=b, Key="new")


def test_lengths():
    for n in (100, 50_000, 9 * MIB):
        with Scene() as b:
            x = data(n)
            accepted(b, x, put(b, "new", more=length(n)).head, x)
            for key in ("k", "new"):
                reply = ask(put(b, key, more=length(n + 1)).head, x, cut=True)
                assert reply is None or reply[0] == 400, reply
                reply = ask(put(b, key, more=length(n)).head, x[:n // 2], cut=True)
                assert reply is None or reply[0] == 400, reply
                line = Line().send(put(b, key, more=length(n)).head, x[:n - 1])
                line.socket.close()
            time.sleep(0.5)


def test_no_length():
    with Scene() as b:
        refused(ask(put(b, "new").head), (411, "MissingContentLength"))
        chunked = {"transfer-encoding": "chunked"}
        refused(ask(put(b, "new", more=chunked).head, b"3\r\nabc\r\n0\r\n\r\n"), (411, "MissingContentLength"))
        for bad in ("-1", "x", "1e3", "99999999999999999999999", "0x10", "+5"):
            reply = ask(put(b, "new", more={"content-length": bad}).head, b"abc", cut=True)
            assert reply is None or reply[0] in (400, 411), (bad, reply)
        refused(ask(put(b, "new", more=length(6 << 30), ).head), (400, "EntityTooLarge"))


def test_two_lengths():
    """What could be taken for two requests is none, or one."""
    with Scene() as b:
        inner = Request("DELETE", "/%s/k" % b).head
        head = put(b, "new").head[:-2]
        for lies in (b"content-length: 3\r\ncontent-length: %d\r\n\r\n" % len(inner),
                     b"content-length: 3, 4\r\n\r\n", b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
                     b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
                     b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n"):
            line = Line().send(head + lies + inner).half_close()
            reply = line.reply()
            assert reply is None or reply[0] in (400, 411), (lies, reply)
            assert line.reply() is None, "a second request was answered"


def test_refused_bodies():
    """A refused body is never taken for the next request, and its sender gets to know why it was refused."""
    with Scene() as b:
        once = {"if-none-match": "*"}
        get = Request("GET", "/%s/k" % b)
        # It asked, and will not send the body: the connection is of no use any more.
        line = Line().send(put(b, "k", once, more=dict(length(7), expect="100-continue")).head)
        status, headers, _ = line.reply()
        assert status == 412 and headers["connection"] == "close", (status, headers)
        line.send(get.head)
        assert line.reply() is None
        # A short body has come already: the connection stays.
        line = Line().send(put(b, "k", once, more=length(7)).head, b"GET /x ")
        assert line.reply()[0] == 412
        status, _, got = line.send(get.head).reply()
        assert status == 200 and got == body(b, "k")
        # A long one is on its way.
        x = data(8 * MIB)
        line = Line().send(put(b, "k", once, more=length(len(x))).head, x)
        status, headers, text = line.reply()
        assert status == 412 and headers["connection"] == "close" and b"PreconditionFailed" in text
        # One who may send it is told so.
        line = Line().send(put(b, "new", more=dict(length(3), expect="100-continue")).head)
        assert line.reply()[0] == 100
        assert line.send(b"abc").reply()[0] == 200
        # One who has nothing to send may not ask, but some do, and misread what comes next on the same connection.
        line = Line().send(put(b, "new", more=dict(length(0), expect="100-continue")).head)
        status, headers, _ = line.reply()
        assert status == 100 or headers["connection"] == "close", (status, headers)
        S3.delete_object(Bucket=b, Key="new")


def test_digests():
    with Scene() as b:
        x = data(70_000)
        accepted(b, x, put(b, "new", sha=hashlib.sha256(x).hexdigest(), more=length(len(x))).head, x)
        for key in ("k", "new"):
            refused(ask(put(b, key, sha=hashlib.sha256(x[1:]).hexdigest(), more=length(len(x))).head, x),
                    (400, "XAmzContentSHA256Mismatch"))
            refused(ask(put(b, key, sha="nonsense", more=length(len(x))).head, x), (400, "InvalidArgument"), (400, "InvalidRequest"))
            md5 = base64.b64encode(b"x" * 16).decode()
            refused(ask(put(b, key, {"content-md5": md5}, more=length(len(x))).head, x), (400, "BadDigest"))


def chunked(b, key, x, sha=CHUNKS, headers={}, decoded=None, total=None):
    headers = dict({"x-amz-decoded-content-length": "%d" % (len(x) if decoded is None else decoded)}, **headers)
    framing = {"transfer-encoding": "chunked"} if total is None else length(total)
    return put(b, key, headers, sha, more=dict(framing, **{"content-encoding": "aws-chunked"}))


def wrap(*pieces):
    """HTTP's own chunks around others."""
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces if p) + b"0\r\n\r\n"


def test_signed_chunks():
    with Scene() as b:
        x = [data(70_000), data(70_000), data(12)]
        whole = b"".join(x)
        request = chunked(b, "new", whole)
        accepted(b, whole, request.head, wrap(*[request.chunk(p) for p in x], request.chunk(b"")))
        pieces = [(lambda r: r.chunk(p)) for p in x]
        for key in ("k", "new"):
            for wrong in range(4):
                request = chunked(b, key, whole)
                bad = [request.chunk(p, wrong=i == wrong) for i, p in enumerate(x + [b""])]
                refused(ask(request.head, wrap(*bad)), (403, "SignatureDoesNotMatch"))
            request = chunked(b, key, whole)
            good = [request.chunk(p) for p in x] + [request.chunk(b"")]
            refused(ask(request.head, wrap(*good[:-1])), (400, "IncompleteBody"))
            request = chunked(b, key, whole)
            good = [request.chunk(p) for p in x] + [request.chunk(b"")]
            refused(ask(request.head, wrap(good[1], good[0], *good[2:])), (403, "SignatureDoesNotMatch"))
            for lie in (-1, 1, 1 << 40):
                request = chunked(b, key, whole, decoded=len(whole) + lie)
                bad = wrap(*[request.chunk(p) for p in x], request.chunk(b""))
                refused(ask(request.head, bad), (400, "IncompleteBody"), (400, "InvalidRequest"), (400, "EntityTooLarge"))
            for size in (b"ffffffffffffffff", b"-1", b"xyz", b"1" * 40, b""):
                request = chunked(b, key, whole)
                bad = wrap(request.chunk(x[0], size=size or b" "), request.chunk(b""))
                reply = ask(request.head, bad)
                assert reply and reply[0] in (400, 403), (size, reply)
            request = chunked(b, key, whole)
            reply = ask(request.head, wrap(b"A" * 100_000))
            assert reply and reply[0] in (400, 403), reply


def test_trailers():
    with Scene() as b:
        x = data(100_000)
        crc = "x-amz-checksum-crc32:" + base64.b64encode(zlib.crc32(x).to_bytes(4, "big")).decode()
        wrong = "x-amz-checksum-crc32:" + base64.b64encode(b"abcd").decode()
        says = {"x-amz-trailer": "x-amz-checksum-crc32"}
        frame = lambda end: b"%x\r\n%s\r\n0\r\n%s" % (len(x), x, end)
        plain = lambda key: chunked(b, key, x, TRAILER, says)
        accepted(b, x, plain("new").head, wrap(frame(crc.encode() + b"\r\n\r\n")))
        for key in ("k", "new"):
            refused(ask(plain(key).head, wrap(frame(wrong.encode() + b"\r\n\r\n"))), (400, "BadDigest"))
            refused(ask(plain(key).head, wrap(frame(b"\r\n"))), (400, "InvalidRequest"), (400, "MalformedTrailerError"))
            refused(ask(plain(key).head, wrap(frame(b""))), (400, "IncompleteBody"), (400, "InvalidRequest"))
            refused(ask(plain(key).head, wrap(frame(b"x-amz-checksum-sha1:AAAA\r\n\r\n"))), (400, "InvalidRequest"), (400, "MalformedTrailerError"))
            refused(ask(plain(key).head, wrap(frame(b"y" * 200_000))), (400, "MalformedTrailerError"), (400, "InvalidRequest"))
            refused(ask(chunked(b, key, x, TRAILER, {"x-amz-trailer": "x-amz-meta-a"}).head, wrap(frame(b"x-amz-meta-a:b\r\n\r\n"))),
                    (400, "InvalidRequest"))
        for bad in (False, True):
            request = chunked(b, "new", x, SIGNED_TRAILER, says)
            frames = wrap(request.chunk(x) + request.chunk(b"")[:-2] + request.trailer(crc, wrong=bad))
            if bad:
                refused(ask(request.head, frames), (403, "SignatureDoesNotMatch"))
            else:
                accepted(b, x, request.head, frames)


def test_signatures():
    with Scene() as b:
        ok = length(3)
        refused(ask(put(b, "new", more=ok, secret="wrong").head, b"abc"), (403, "SignatureDoesNotMatch"))
        for age in (1200, -1200):
            refused(ask(put(b, "new", more=ok, age=age).head, b"abc"), (403, "RequestTimeTooSkewed"))
        # A header that says something and is not signed.
        for more in ({"x-amz-meta-a": "b"}, {"x-amz-copy-source": "%s/k" % b}, {"x-amz-tagging": "a=b"}):
            reply = ask(put(b, "new", more=dict(ok, **more)).head, b"abc")
            refused(reply, (403, "AccessDenied"), (403, "SignatureDoesNotMatch"))
        for lie in ("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 Credential=a/b/c/d/e", "AWS " + "x" * 40, "Bearer x", "", "\t"):
            head = "PUT /%s/new HTTP/1.1\r\nhost: %s\r\ncontent-length: 3\r\nauthorization: %s\r\n\r\nabc" % (b, AT.netloc, lie)
            reply = ask(head.encode())
            assert reply and reply[0] in (400, 403), (lie, reply)
        head = "PUT /%s/new HTTP/1.1\r\nhost: %s\r\ncontent-length: 3\r\n\r\nabc" % (b, AT.netloc)
        refused(ask(head.encode()), (403, "AccessDenied"))


def test_unknown():
    """Whatever is not understood is refused, and nothing is touched."""
    with Scene() as b:
        refused(ask(put(b, "k", query="renameObject=", more=length(3)).head, b"abc"), (400, "InvalidRequest"))
        for query in ("annotation=", "append=", "select=&select-type=2", "versionId=x", "uploadId=x", "partNumber=1",
                      "x-amz-nonsense=1", "tagging=&acl=", "torrent="):
            reply = ask(put(b, "k", query=query, more=length(3)).head, b"abc")
            refused(reply, (501, "NotImplemented"))
        for header in ("x-amz-nonsense", "x-amz-server-side-encryption-context", "x-amz-write-offset-nonsense", "x-amz-object-lock-nonsense",
                       "x-amz-website-redirect-location", "x-amz-rename-source", "x-amz-grant-everything"):
            refused(ask(put(b, "k", {header: "AES256"}, more=length(3)).head, b"abc"), (501, "NotImplemented"))
        # A key that is not whole is none.
        customer = "x-amz-server-side-encryption-customer-"
        for headers in ({"algorithm": "AES256"}, {"key": "x"}, {"key-md5": "x"}, {"algorithm": "AES256", "key": "x", "key-md5": "x"}):
            headers = {customer + name: value for name, value in headers.items()}
            refused(ask(put(b, "k", headers, more=length(3)).head, b"abc"), (400, "InvalidArgument"))
        refused(ask(Request("PUT", "/" + b, query="encryption=", more=length(3)).head, b"abc"), (400, "MalformedXML"))
        for value in ("AES256", "id", "uri=x", "=", "name=x", "id=x,", "uri="):
            reply = ask(put(b, "k", {"x-amz-grant-read": value}, more=length(3)).head, b"abc")
            refused(reply, (400, "InvalidArgument"), (400, "AccessControlListNotSupported"))
        for method in ("PATCH", "TRACE", "FOO", "CONNECT"):
            reply = ask(Request(method, "/%s/k" % b, more=length(0)).head)
            assert reply and reply[0] in (400, 405, 501), (method, reply)
        # A lock that is not whole is none.
        for header, value in (("mode", "COMPLIANCE"), ("mode", "x"), ("retain-until-date", "x"), ("legal-hold", "on")):
            refused(ask(put(b, "k", {"x-amz-object-lock-" + header: value}, more=length(3)).head, b"abc"), (400, "InvalidArgument"))
        refused(ask(Request("PUT", "/" + b, query="object-lock=", more=length(3)).head, b"abc"), (400, "MalformedXML"))
        for query in ("replication=", "website=", "logging=",
                      "notification=", "accelerate=", "requestPayment=", "inventory=&id=x", "analytics=&id=x", "nonsense="):
            reply = ask(Request("PUT", "/" + b, query=query.replace("&id=x", ""), more=length(3)).head, b"abc")
            refused(reply, (501, "NotImplemented"))


def test_presigned():
    """Whoever holds a presigned URL gets nothing else out of it, and nobody without one anything."""
    with Scene() as b:
        expires = str(int(time.time()) + 600)
        text = "PUT\n\n\n%s\n/%s/new" % (expires, b)
        signature = base64.b64encode(hmac.new(WHO.secret_key.encode(), text.encode(), hashlib.sha1).digest()).decode()
        query = urllib.parse.urlencode({"AWSAccessKeyId": WHO.access_key, "Expires": expires, "Signature": signature})
        for more in ("x-amz-copy-source=%s/k" % b, "X-Amz-Copy-Source=%s/k" % b, "x-amz-tagging=a%3Db", "x-amz-meta-a=b"):
            head = "PUT /%s/new?%s&%s HTTP/1.1\r\nhost: %s\r\ncontent-length: 3\r\n\r\n" % (b, query, more, AT.netloc)
            refused(ask(head.encode(), b"abc"), (501, "NotImplemented"), (403, "AccessDenied"))
        # Nobody's document is read: it never comes.
        head = "POST /%s?delete= HTTP/1.1\r\nhost: %s\r\ncontent-length: 99\r\ncontent-md5: %s\r\n\r\n"
        refused(ask((head % (b, AT.netloc, base64.b64encode(bytes(16)).decode())).encode()), (403, "AccessDenied"))
        # A length that is only said of bodies in chunks.
        reply = ask(put(b, "new", {"x-amz-decoded-content-length": "3"}, more=length(3)).head, b"abc")
        refused(reply, (400, "InvalidRequest"))


def test_documents():
    with Scene() as b:
        bomb = b'<?xml version="1.0"?><!DOCTYPE d [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]><Delete><Object><Key>&b;</Key></Object></Delete>'
        outside = b'<!DOCTYPE d [<!ENTITY a SYSTEM "file:///etc/passwd">]><Delete><Object><Key>&a;</Key></Object></Delete>'
        deep = b"<Delete>" + b"<a>" * 100_000
        for text in (bomb, outside, deep, b"", b"\0", b"<Delete>", b"<Delete/>", b"\xff\xfe<", b"<Delete><Object><Key>k</Key></Object>",
                     b"<Delete><Object><Key>k</Key><Nonsense/></Object></Delete>", b"{}"):
            md5 = base64.b64encode(hashlib.md5(text).digest()).decode()
            request = Request("POST", "/" + b, {"content-md5": md5}, query="delete=", more=length(len(text)))
            reply = ask(request.head, text)
            refused(reply, (400, "MalformedXML"), (501, "NotImplemented"), (400, "InvalidRequest"))
        large = b"<Delete>" + b" " * (3 * MIB) + b"</Delete>"
        request = Request("POST", "/" + b, {"content-md5": base64.b64encode(hashlib.md5(large).digest()).decode()}, query="delete=",
                          more=length(len(large)))
        refused(ask(request.head, large), (400, "MaxMessageLengthExceeded"))
        # Without any digest a removal is not believed.
        text = b"<Delete><Object><Key>k</Key></Object></Delete>"
        refused(ask(Request("POST", "/" + b, query="delete=", more=length(len(text))).head, text), (400, "InvalidRequest"))


def test_heads():
    with Scene() as b:
        for head in (b"GARBAGE\r\n\r\n", b"\0\0\0\0\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /%zz HTTP/1.1\r\nhost: x\r\n\r\n",
                     b"GET /%s/%%ff HTTP/1.1\r\nhost: x\r\n\r\n" % b.encode(), b"GET / HTTP/1.1\r\nhost: x\r\n a: b\r\n\r\n",
                     b"GET / HTTP/1.1\r\nhost: x\r\na: \xff\xfe\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
            reply = ask(head, cut=True)
            assert reply is None or 400 <= reply[0] < 500 or reply[0] == 505, (head, reply)
        for head in (b"GET /%s HTTP/1.1\r\nhost: x\r\n\r\n" % (b"a" * 200_000), b"GET / HTTP/1.1\r\nhost: x\r\na: %s\r\n\r\n" % (b"a" * 200_000),
                     b"GET / HTTP/1.1\r\nhost: x\r\n" + b"".join(b"a%d: b\r\n" % i for i in range(500)) + b"\r\n"):
            reply = ask(head, cut=True)
            assert reply is None or reply[0] in (400, 414, 431), reply
        # Many that say nothing do not keep out one who does.
        idle = [Line().send(b"GET / HT") for _ in range(200)]
        assert len(S3.list_objects_v2(Bucket=b)["Contents"]) == 1
        for line in idle:
            line.socket.close()


if __name__ == "__main__":
    main(globals())
