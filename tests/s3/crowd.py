#!/usr/bin/env python3
"""Takes all that one peer can get of an S3 endpoint on this host, and looks whether others are served all the same.

    crowd.py ENDPOINT            as check.py; from 127.0.0.2 it takes what there is, from 127.0.0.1 it asks
    crowd.py ENDPOINT NAME...    only the checks whose names contain one of these

A gateway as it comes has 4,096 connections and 1,024 requests at once, of which a peer has three quarters.
"""
import contextlib, resource, select, socket, time

from check import S3, body, bucket, data, main
from malformed import AT, Line, Request

CONNECTIONS, REQUESTS = 3072, 768
OTHER = "127.0.0.2"


class From(Line):
    """A connection from the other address."""

    def __init__(self):
        self.socket = socket.create_connection((AT.hostname, AT.port), timeout=30, source_address=(OTHER, 0))
        self.rest = b""


@contextlib.contextmanager
def many():
    """Room for many connections, which are closed in the end."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    lines = []
    try:
        yield lines
    finally:
        for line in lines:
            line.socket.close()


def readable(lines, at_least, wait=30):
    """Those of which at least so many have something to say."""
    of, poll, said = {line.socket.fileno(): line for line in lines}, select.poll(), set()
    for fd in of:
        poll.register(fd, select.POLLIN)
    until = time.time() + wait
    while len(said) < at_least and time.time() < until:
        for fd, _ in poll.poll(1000):
            poll.unregister(fd)
            said.add(fd)
    return [of[fd] for fd in said]


def slow_down(line):
    status, headers, text = line.reply()
    assert status == 503 and b"<Code>SlowDown</Code>" in text, (status, text)
    assert int(headers["retry-after"]) >= 1, headers


def test_connections():
    with bucket() as b, many() as lines:
        lines += [From() for _ in range(CONNECTIONS + 20)]
        told = readable(lines, 20)
        # Who comes later is accepted later: by now all of these have been.
        S3.put_object(Bucket=b, Key="k", Body=b"served")
        assert body(b, "k") == b"served"
        assert len(told) == len(readable(lines, len(lines), 1)) == 20, len(told)
        for line in told:
            slow_down(line)


def test_requests():
    with bucket() as b, many() as lines:
        def begin(k):
            head = Request("PUT", "/%s/%s" % (b, k), more={"content-length": "1", "expect": "100-continue"}).head
            lines.append(From().send(head))
            return lines[-1]
        for i in range(REQUESTS):
            status, _, _ = begin("slow-%d" % i).reply()
            assert status == 100, (i, status)
        slow_down(begin("more"))
        # Large ones, too, and documents.
        x = data(9 << 20)
        S3.put_object(Bucket=b, Key="k", Body=x)
        assert body(b, "k") == x
        S3.put_bucket_tagging(Bucket=b, Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})
        # None of it has failed for that.
        for line in lines[:REQUESTS]:
            status, _, _ = line.send(b"x").reply()
            assert status == 200, status


if __name__ == "__main__":
    main(globals())
