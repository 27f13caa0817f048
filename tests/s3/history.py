#!/usr/bin/env python3
"""Reads and changes a few keys through two S3 endpoints, and writes down what was asked when, and what came of it.

    history.py ENDPOINT run LOG     until its standard input ends
    history.py ENDPOINT look LOG    reads every key and lists them all, at both endpoints; goes on with LOG

ENDPOINT2 is the other way in. Times are the machine's monotonic clock, in nanoseconds. Whether the history is
linearizable is for others to say: tests/tests/s3.rs does.
"""
import itertools, json, os, random, sys, threading, time

from check import ENDPOINT, SEED, client
from botocore.exceptions import BotoCoreError, ClientError, ConnectTimeoutError, EndpointConnectionError

BUCKET = "history"
CLIENTS, KEYS, PAGE = 12, 16, 7
LOOKS = 1000


def name(key):
    return "key/%08d" % key


def content(value):
    """Says which value it is, and no two are of one length or the same: so no two have one ETag."""
    dice = random.Random(value)
    size = 40_000 + dice.randrange(200_000) if dice.randrange(20) == 0 else dice.randrange(6000)
    return b"%d:" % value + dice.randbytes(size)


class Task:
    def __init__(self, number, say, stop):
        self.number, self.say, self.stop = number, say, stop
        self.dice = random.Random("%d-%d" % (SEED, number))
        # Each operation is one request: what became of a first attempt is not known to whoever makes a second one.
        ends = [client(endpoint=end, connect_timeout=2, read_timeout=20, retries={"total_max_attempts": 1})
                for end in (ENDPOINT, os.environ.get("ENDPOINT2", ENDPOINT))]
        self.ends, self.known = ends, {}

    def tell(self, key, kind, value, condition, act):
        """Does it, and says what came of it; gives what the store answered, if that was no error."""
        told = dict(client=self.number, key=key, kind=kind, value=value, condition=condition)
        got = None
        told["invoke"] = time.monotonic_ns()
        try:
            got = act(self.dice.choice(self.ends))
            told["outcome"] = "done"
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status == 412 or status == 404 and condition:
                told["outcome"] = "unmet"
            elif status == 404 and kind == "get":
                told["outcome"] = "absent"
            else:
                told["outcome"] = "refused" if kind == "get" else "unknown"
        except (EndpointConnectionError, ConnectTimeoutError):
            # It was not sent.
            told["outcome"] = "refused"
        except BotoCoreError:
            told["outcome"] = "refused" if kind == "get" else "unknown"
        told["ret"] = time.monotonic_ns()
        if kind == "get" and got is not None:
            told["outcome"] = "found"
            told["value"] = value = self.value(key, got)
            if value is None:
                return None
        self.say(told)
        if told["outcome"] in ("refused", "unknown"):
            # Who is refused at once must not fill the history with it.
            self.stop.wait(0.02)
        return got

    def value(self, key, got):
        """Which value it is that was read, to its last byte."""
        body, etag = got
        try:
            value = int(body.split(b":", 1)[0])
        except ValueError:
            value = None
        if value is None or content(value) != body:
            self.say(dict(wrong="key %d: %d bytes that are no value: %r" % (key, len(body), body[:40])))
            return None
        self.known[key] = (value, etag)
        return value

    def get(self, key):
        def act(s3):
            got = s3.get_object(Bucket=BUCKET, Key=name(key))
            return got["Body"].read(), got["ETag"]
        return self.tell(key, "get", None, None, act)

    def put(self, key, value, condition=None, **args):
        done = self.tell(key, "put", value, condition,
                         lambda s3: s3.put_object(Bucket=BUCKET, Key=name(key), Body=content(value), **args))
        if done:
            self.known[key] = (value, done["ETag"])

    def delete(self, key, condition=None, **args):
        self.tell(key, "delete", None, condition, lambda s3: s3.delete_object(Bucket=BUCKET, Key=name(key), **args))

    def list(self, after=-1, most=PAGE):
        args = {"StartAfter": name(after)} if after >= 0 else {}
        told = dict(begin=after + 1, invoke=time.monotonic_ns())
        try:
            page = self.dice.choice(self.ends).list_objects_v2(Bucket=BUCKET, MaxKeys=most, **args)
        except (BotoCoreError, ClientError):
            return
        told["ret"] = time.monotonic_ns()
        told["shown"] = [int(o["Key"].split("/")[1]) for o in page.get("Contents", [])]
        told["end"] = told["shown"][-1] + 1 if page["IsTruncated"] else None
        self.say(told)

    def work(self, values):
        while not self.stop.is_set():
            key, dice = self.dice.randrange(KEYS), self.dice.randrange(100)
            known = self.known.get(key)
            if dice < 45:
                self.get(key)
            elif dice < 50:
                self.list(self.dice.randrange(-1, KEYS))
            elif dice < 68:
                self.put(key, next(values))
            elif dice < 76:
                self.put(key, next(values), "absent", IfNoneMatch="*")
            elif dice < 88 and known:
                self.put(key, next(values), known[0], IfMatch=known[1])
            elif dice < 92 and known:
                self.delete(key, known[0], IfMatch=known[1])
            else:
                self.delete(key)


def main(mode, log):
    lock = threading.Lock()
    with open(log, "a") as out:
        def say(told):
            line = json.dumps(told) + "\n"
            with lock:
                out.write(line)

        if mode == "look":
            for end in (0, 1):
                task = Task(LOOKS + end, say, threading.Event())
                task.ends = [task.ends[end]]
                for key in range(KEYS):
                    task.get(key)
                task.list(most=1000)
            return
        client().create_bucket(Bucket=BUCKET)
        stop, values = threading.Event(), itertools.count(1)
        threads = [threading.Thread(target=Task(n, say, stop).work, args=(values,)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        stop.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main(*sys.argv[2:4])
