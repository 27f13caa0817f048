"""Runs the operations, client by client, and writes down what came of them."""
import contextlib, datetime, json, os, re, shutil, subprocess, tempfile, time
import concurrent.futures

import boto3

import operations, rows
from check import ENDPOINT, RANDOM, S3, SEED, data
from process import Impossible, Line, Process, Refused, Wrong


class Witness:
    """boto3, which looks at what others did."""

    def read(self, bucket, key, version=None):
        more = {"VersionId": version} if version else {}
        return S3.get_object(Bucket=bucket, Key=key, **more)["Body"].read()

    def put(self, bucket, key, x):
        return S3.put_object(Bucket=bucket, Key=key, Body=x)["ETag"]

    def etag(self, bucket, key):
        return S3.head_object(Bucket=bucket, Key=key)["ETag"]

    def version(self, bucket, key):
        return S3.head_object(Bucket=bucket, Key=key)["VersionId"]

    def keys(self, bucket, prefix):
        pages = S3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [o["Key"] for page in pages for o in page.get("Contents", [])]

    def tags(self, bucket, key):
        return {t["Key"]: t["Value"] for t in S3.get_object_tagging(Bucket=bucket, Key=key)["TagSet"]}


class Other(Witness):
    """boto3 is looked at by minio-py."""

    def __init__(self, environment):
        import minio
        key = environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
        at = ENDPOINT.split("://")
        self.s3 = minio.Minio(at[1], *key, secure=at[0] == "https", region=environment["AWS_REGION"])

    def read(self, bucket, key, version=None):
        got = self.s3.get_object(bucket, key, version_id=version)
        try:
            return got.read()
        finally:
            got.close()
            got.release_conn()

    def keys(self, bucket, prefix):
        return [o.object_name for o in self.s3.list_objects(bucket, prefix, recursive=True)]

    def tags(self, bucket, key):
        return dict(self.s3.get_object_tags(bucket, key))


class Shared:
    """What every client reads."""

    def __init__(self, bucket):
        self.bucket = bucket
        self.objects = {"get %d" % n: data(n) for n in (0, 4096, operations.PARTS)}
        for key, x in self.objects.items():
            S3.put_object(Bucket=bucket, Key=key, Body=x)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            put = lambda name: S3.put_object(Bucket=bucket, Key="list/" + name, Body=b"x\n")
            list(pool.map(put, operations.NAMES))


class Turn:
    """A client, and what an operation needs: buckets, files, somebody who looks."""

    def __init__(self, world, name, process):
        self.world, self.name, self.process, self.shared = world, name, process, world.shared
        self.witness = Other(world.env) if name == "boto3" else Witness()
        self.files = 0

    def call(self, name, **args):
        return self.process.call(name, **args)

    def can(self, name):
        return name in self.methods

    def path(self):
        self.files += 1
        return os.path.join(self.process.folder, "file %d" % self.files)

    def file(self, x):
        path = self.path()
        with open(path, "wb") as out:
            out.write(x)
        return path

    @contextlib.contextmanager
    def through(self, env):
        """The same client by another way."""
        turn = Turn(self.world, self.name, Process(self.process.command, dict(self.world.env, **env),
                                                   self.process.folder))
        turn.bucket, turn.witness, turn.files = self.bucket, self.witness, self.files
        turn.methods = self.methods
        try:
            yield turn
        finally:
            turn.process.end()

    def over_tls(self):
        return self.through(self.world.tls())

    @contextlib.contextmanager
    def while_a_node_dies(self, after):
        node = self.world.rig("status")["head"]
        line = Line(ENDPOINT, after, lambda: self.world.rig("kill", str(node)))
        try:
            with self.through({"S3_ENDPOINT": line.endpoint}) as turn:
                yield turn
            if line.done is None:
                raise Wrong("no node was killed: only %d bytes went up" % line.sent)
        finally:
            line.close()
            self.world.revive(node)


class World:
    """The endpoint, its credentials, and its rig, if there is one."""

    def __init__(self, args, folder):
        self.args, self.folder, self.gateway, self.buckets = args, folder, None, []
        got = boto3.Session().get_credentials()
        self.env = {"S3_ENDPOINT": ENDPOINT, "AWS_ACCESS_KEY_ID": got.access_key,
                    "AWS_SECRET_ACCESS_KEY": got.secret_key,
                    "AWS_REGION": os.environ.get("AWS_REGION", "us-east-1")}
        self.env["AWS_DEFAULT_REGION"] = self.env["AWS_REGION"]
        self.shared = Shared(self.bucket())

    def bucket(self):
        name = "clients-%08x-%08x" % (SEED, RANDOM.randrange(1 << 32))
        S3.create_bucket(Bucket=name)
        self.buckets.append(name)
        return name

    def rig(self, *args):
        done = subprocess.run([self.args.ashlar, "rig", *args, "--dir", self.args.rig, "--json"], check=True,
                              stdout=subprocess.PIPE)
        return json.loads(done.stdout) if args[0] == "status" else None

    def revive(self, node):
        if any(n["node"] == node and n["state"] == "running" for n in self.rig("status")["nodes"]):
            return
        self.rig("start", str(node))
        # The next client finds a store that is whole, and a chain of three.
        until = time.time() + 60
        while time.time() < until:
            status = self.rig("status")
            roles = [n["role"] for n in status["nodes"]]
            if all(n["state"] == "running" for n in status["nodes"]) and roles.count("follower") >= 2:
                return
            time.sleep(0.5)
        raise Wrong("node %d does not come back" % node)

    def tls(self):
        """A second gateway; an authority of its own certifies it: some refuse who certifies themselves."""
        at = lambda name: os.path.join(self.folder, name)
        if self.gateway is None:
            quiet = dict(check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
            subprocess.run([*new, "-x509", "-keyout", at("ca.key"), "-out", at("ca.pem"), "-days", "2",
                            "-subj", "/CN=clients of a test"], **quiet)
            subprocess.run([*new, "-keyout", at("tls.key"), "-out", at("tls.csr"), "-subj", "/CN=localhost"],
                           **quiet)
            with open(at("tls.ext"), "w") as out:
                out.write("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n"
                          "extendedKeyUsage=serverAuth\n")
            subprocess.run(["openssl", "x509", "-req", "-in", at("tls.csr"), "-CA", at("ca.pem"),
                            "-CAkey", at("ca.key"), "-CAcreateserial", "-days", "2",
                            "-extfile", at("tls.ext"), "-out", at("tls.pem")], **quiet)
            self.gateway = subprocess.Popen(
                [self.args.ashlar, "gateway", "run", "--cluster", self.args.rig, "--listen", "127.0.0.1:0",
                 "--tls-cert", at("tls.pem"), "--tls-key", at("tls.key")],
                stderr=open(at("gateway.log"), "wb"), start_new_session=True)
            until, found = time.time() + 30, None
            while found is None:
                assert time.time() < until and self.gateway.poll() is None, open(at("gateway.log")).read()
                time.sleep(0.1)
                found = re.search(r"https://127\.0\.0\.1:(\d+)", open(at("gateway.log")).read())
            self.secure = "https://localhost:" + found[1]
        ca = at("ca.pem")
        return {"S3_ENDPOINT": self.secure, "S3_CA": ca, "AWS_CA_BUNDLE": ca, "SSL_CERT_FILE": ca,
                "REQUESTS_CA_BUNDLE": ca, "NODE_EXTRA_CA_CERTS": ca}

    def end(self):
        if self.gateway:
            self.gateway.terminate()
            self.gateway.wait()
        for name in self.buckets:
            empty(name)
            S3.delete_bucket(Bucket=name)


def empty(bucket):
    for page in S3.get_paginator("list_object_versions").paginate(Bucket=bucket):
        gone = [{"Key": v["Key"], "VersionId": v["VersionId"]}
                for v in page.get("Versions", []) + page.get("DeleteMarkers", [])]
        if gone:
            S3.delete_objects(Bucket=bucket, Delete={"Objects": gone, "Quiet": True})
    for page in S3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket):
        for upload in page.get("Uploads", []):
            S3.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])


def cell(turn, column, check):
    began = time.time()
    try:
        check(turn)
        said, why = "pass", ""
    except Impossible as error:
        said, why = "-", str(error)
    except Refused as error:
        said, why = "501", str(error)
    except Exception as error:
        said = "FAIL"
        why = str(error) if isinstance(error, Wrong) else "%s: %s" % (type(error).__name__, error)
    told = why[:600] + " " if why and said != "-" else ""
    print("%-16s %-18s %s %s(%.1f s)" % (turn.name, column, said, told, time.time() - began), flush=True)
    return said, why


def row(world, name, command, columns, kills):
    """What came of a client's operations, and its version."""
    process = Process(command, world.env, os.path.join(world.folder, name))
    turn, cells = Turn(world, name, process), {}
    try:
        version = process.call("version")
        turn.methods = process.call("methods")
    except (Wrong, Impossible) as error:
        return {column: ("FAIL", "does not start: %s" % error) for column in columns}, "?"
    # minio-py looks at boto3 with what it keeps of regions: buckets are made by the one that looks.
    turn.bucket, turn.versioned = world.bucket(), world.bucket()
    S3.put_bucket_versioning(Bucket=turn.versioned, VersioningConfiguration={"Status": "Enabled"})
    for column, check in columns.items():
        if column == "node killed" and name not in kills:
            cells[column] = ("-", "")
        else:
            cells[column] = cell(turn, column, check)
    process.end()
    shutil.rmtree(process.folder)
    return cells, version


def write(path, rows, versions, columns, left_out, command):
    lines = ["# Clients", "", "What real S3 clients can do with Ashlar: made by a run of",
             "[tests/s3/clients.py](clients.py), on %s, and not by hand:" %
             datetime.date.today().isoformat(), "", "    " + command, "",
             "with the endpoint and the `AWS_SHARED_CREDENTIALS_FILE` that `ashlar rig up` prints.", "",
             "pass: done, and found so by another client. 501: the gateway said `NotImplemented`. -: the",
             "client has no way to do it, or it was not tried (nodes are killed under five). FAIL: anything",
             "else; why stands below. To clients of tables an operation is what comes next to it: see",
             "[tests/s3/clients/rows.py](clients/rows.py).", "",
             "| client | version | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, cells in rows.items():
        lines.append("| %s | %s | %s |" % (name, versions[name], " | ".join(cells[c][0] for c in columns)))
    wrong = [(name, c, cells[c][1]) for name, cells in rows.items() for c in columns
             if cells[c][0] in ("FAIL", "501")]
    if wrong:
        lines += ["", "## What did not pass", ""]
        lines += ["- %s, %s: `%s`" % (name, c, " ".join(why.split())[:400].replace("`", "'"))
                  for name, c, why in wrong]
    if left_out:
        lines += ["", "Left out, because there was no node or npm: %s." % ", ".join(left_out)]
    with open(path, "w") as out:
        out.write("\n".join(lines) + "\n")


def make(args, commands, left_out, kills, tables):
    print("seed %d" % SEED, flush=True)
    began, made, versions = time.time(), {}, {}
    columns = dict(operations.COLUMNS)
    if args.core or not args.rig:
        if not args.core:
            print("LEFT OUT: %s: they take --ashlar and --rig" % ", ".join(operations.WITHOUT_CORE))
        columns = {c: f for c, f in columns.items() if c not in operations.WITHOUT_CORE}
    columns = {c: f for c, f in columns.items() if args.column in c}
    with tempfile.TemporaryDirectory(prefix="s3-clients-run-") as folder:
        world = World(args, folder)
        try:
            # Where no node is killed, two at a time: commands take longer to start than the gateway takes.
            with concurrent.futures.ThreadPoolExecutor(2 if "node killed" not in columns else 1) as pool:
                def turn(name):
                    of = rows.COLUMNS if name in tables else operations.COLUMNS
                    return row(world, name, commands[name], {c: of[c] for c in columns}, kills)
                for name, came in zip(commands, pool.map(turn, commands)):
                    made[name], versions[name] = came
        finally:
            world.end()
    if args.table:
        command = "tests/s3/clients.py ENDPOINT%s --table tests/s3/CLIENTS.md" % (
            " --core" if args.core else " --ashlar target/release/ashlar --rig .ashlar-rig")
        write(args.table, made, versions, columns, left_out, command)
    count = lambda said: sum(c[0] == said for cells in made.values() for c in cells.values())
    print("%d clients, %d operations in %.0f s: %d pass, %d refused as 501, %d not possible" % (
        len(made), count("pass") + count("501") + count("FAIL"), time.time() - began, count("pass"),
        count("501"), count("-")))
    failed = ["%s/%s" % (name, c) for name, cells in made.items() for c in cells if cells[c][0] == "FAIL"]
    print("%d failed %s" % (len(failed), " ".join(failed)))
    return bool(failed)
