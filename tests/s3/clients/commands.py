"""Clients that are commands: awscli, s3cmd, rclone, s5cmd."""
import json, os, sys, urllib.parse

from driver import PART, Driver, run, serve, won

BIN = os.path.join(sys.prefix, "bin")


def uri(bucket, key):
    return "s3://%s/%s" % (bucket, key)


class Aws(Driver):
    def aws(self, *args, env={}):
        return run([BIN + "/aws", "--endpoint-url", self.endpoint, *args], env)

    def api(self, call, bucket, *args, env={}):
        said = self.aws("s3api", call, "--bucket", bucket, "--output", "json", *args, env=env)
        return json.loads(said) if said.strip() else {}

    def version(self):
        return run([BIN + "/aws", "--version"]).split()[0].split("/")[1]

    def put(self, bucket, key, path):
        self.aws("s3", "cp", "--only-show-errors", path, uri(bucket, key))

    put_parts = put

    def get(self, bucket, key, path):
        self.aws("s3", "cp", "--only-show-errors", uri(bucket, key), path)

    def range(self, bucket, key, start, length, path):
        self.api("get-object", bucket, "--key", key, "--range",
                 "bytes=%d-%d" % (start, start + length - 1), path)

    def list(self, bucket, prefix):
        return [o["Key"] for o in self.api("list-objects-v2", bucket, "--prefix", prefix)["Contents"]]

    def copy(self, bucket, source, key):
        self.aws("s3", "cp", "--only-show-errors", uri(bucket, source), uri(bucket, key))

    def remove(self, bucket, keys):
        given = json.dumps({"Objects": [{"Key": k} for k in keys]})
        gone = self.api("delete-objects", bucket, "--delete", given)
        assert not gone.get("Errors"), gone["Errors"]

    def write(self, bucket, key, path, *more, env={}):
        self.api("put-object", bucket, "--key", key, "--body", path, *more, env=env)

    def create(self, bucket, key, path):
        return won(lambda: self.write(bucket, key, path, "--if-none-match", "*"))

    def swap(self, bucket, key, path, etag):
        return won(lambda: self.write(bucket, key, path, "--if-match", etag))

    def sign(self, bucket, key, method):
        # It signs for reading only.
        return self.aws("s3", "presign", "--expires-in", "60", uri(bucket, key)).strip() \
            if method == "get" else None

    def put_wrong(self, bucket, key, path, md5, sha256):
        self.write(bucket, key, path, "--checksum-sha256", sha256, env={"AWS_MAX_ATTEMPTS": "1"})

    def versions(self, bucket, key):
        return [v["VersionId"] for v in self.api("list-object-versions", bucket, "--prefix", key)["Versions"]]

    def get_version(self, bucket, key, id, path):
        self.api("get-object", bucket, "--key", key, "--version-id", id, path)

    def tag(self, bucket, key, path, tags):
        given = {"TagSet": [{"Key": k, "Value": v} for k, v in tags.items()]}
        self.api("put-object-tagging", bucket, "--key", key, "--tagging", json.dumps(given))

    def tags(self, bucket, key):
        return {t["Key"]: t["Value"] for t in self.api("get-object-tagging", bucket, "--key", key)["TagSet"]}


class S3cmd(Driver):
    def s3cmd(self, *args):
        tls = ["--ssl", "--ca-certs=" + self.ca] if self.secure else ["--no-ssl"]
        return run([BIN + "/s3cmd", "-c", "/dev/null",
                    "--access_key=" + self.key, "--secret_key=" + self.secret, "--region=" + self.region,
                    "--host=" + self.host, "--host-bucket=" + self.host,
                    "--multipart-chunk-size-mb=%d" % (PART >> 20), "--no-progress", *tls, *args])

    def version(self):
        return run([BIN + "/s3cmd", "--version"]).split()[-1]

    def put(self, bucket, key, path, *more):
        self.s3cmd("put", *more, path, uri(bucket, key))

    put_parts = put

    def get(self, bucket, key, path):
        self.s3cmd("get", "--force", uri(bucket, key), path)

    def list(self, bucket, prefix):
        head = "s3://%s/" % bucket
        said = self.s3cmd("ls", "--recursive", head + prefix)
        return [line.split(head, 1)[1] for line in said.split("\n") if head in line]

    def copy(self, bucket, source, key):
        self.s3cmd("cp", uri(bucket, source), uri(bucket, key))

    def remove(self, bucket, keys):
        self.s3cmd("del", *(uri(bucket, k) for k in keys))

    def create(self, bucket, key, path):
        return won(lambda: self.put(bucket, key, path, "--add-header=If-None-Match:*"))

    def swap(self, bucket, key, path, etag):
        return won(lambda: self.put(bucket, key, path, "--add-header=If-Match:" + etag))

    def sign(self, bucket, key, method):
        return self.s3cmd("signurl", uri(bucket, key), "+60").strip() if method == "get" else None

    def put_wrong(self, bucket, key, path, md5, sha256):
        self.put(bucket, key, path, "--max-retries=0", "--add-header=x-amz-checksum-sha256:" + sha256)

    def tag(self, bucket, key, path, tags):
        self.s3cmd("settagging", uri(bucket, key), "&".join("%s=%s" % t for t in tags.items()))

    def tags(self, bucket, key):
        said = self.s3cmd("gettagging", uri(bucket, key))
        return dict(line.strip().split(":\t") for line in said.split("\n") if ":\t" in line)


def remote(bucket, key):
    return "R:%s/%s" % (bucket, key)


class Rclone(Driver):
    """It sends no header that it does not know: no conditions and no checksums of ours."""

    def rclone(self, *args, out=None):
        part = "%dM" % (PART >> 20)
        config = {"TYPE": "s3", "PROVIDER": "Other", "ENDPOINT": self.endpoint, "REGION": self.region,
                  "ACCESS_KEY_ID": self.key, "SECRET_ACCESS_KEY": self.secret,
                  "UPLOAD_CUTOFF": part, "CHUNK_SIZE": part}
        env = {"RCLONE_CONFIG_R_" + k: v for k, v in config.items()}
        tls = ["--ca-cert", self.ca] if self.secure else []
        return run([BIN + "/rclone", "--config", "/dev/null", "--retries", "1", *tls, *args], env, out)

    def version(self):
        return run([BIN + "/rclone", "version"]).split()[1].lstrip("v")

    def put(self, bucket, key, path, *more):
        self.rclone("copyto", "--ignore-times", *more, path, remote(bucket, key))

    put_parts = put

    def get(self, bucket, key, path, *more):
        self.rclone("copyto", *more, remote(bucket, key), path)

    def range(self, bucket, key, start, length, path):
        with open(path, "wb") as out:
            self.rclone("cat", "--offset", str(start), "--count", str(length), remote(bucket, key), out=out)

    def list(self, bucket, prefix):
        said = json.loads(self.rclone("lsjson", "--recursive", "--files-only", remote(bucket, prefix)))
        return [prefix + o["Path"] for o in said]

    def copy(self, bucket, source, key):
        self.rclone("copyto", remote(bucket, source), remote(bucket, key))

    def remove(self, bucket, keys):
        listed = os.path.join(os.environ["HOME"], "keys")
        with open(listed, "w") as out:
            out.write("\n".join(keys) + "\n")
        self.rclone("delete", "--files-from-raw", listed, "R:" + bucket)

    def sign(self, bucket, key, method):
        return self.rclone("link", "--expire", "1m", remote(bucket, key)).strip() if method == "get" else None

    def get_version(self, bucket, key, id, path):
        # It has no ids: old versions are files, with their times in their names.
        folder, name = os.path.split(key)
        stem = os.path.splitext(name)[0]
        said = json.loads(self.rclone("lsjson", "--s3-versions", "--files-only", remote(bucket, folder)))
        old = sorted(o["Name"] for o in said if o["Name"].startswith(stem + "-v"))
        self.get(bucket, os.path.join(folder, old[0]), path, "--s3-versions")

    def tag(self, bucket, key, path, tags):
        given = urllib.parse.urlencode(tags)
        self.put(bucket, key, path, "--no-check-dest", "--header-upload", "x-amz-tagging: " + given)


class S5cmd(Driver):
    def s5cmd(self, *args):
        # Go takes what else to trust from here.
        env = {"SSL_CERT_FILE": self.ca, "AWS_CA_BUNDLE": self.ca} if self.secure else {}
        return run([BIN + "/s5cmd", "--endpoint-url", self.endpoint, *args], env)

    def version(self):
        return run([BIN + "/s5cmd", "version"]).split("-")[0].lstrip("v")

    def put(self, bucket, key, path):
        self.s5cmd("cp", "--raw", "--part-size", str(PART >> 20), path, uri(bucket, key))

    put_parts = put

    def get(self, bucket, key, path):
        self.s5cmd("cp", "--raw", "--part-size", str(PART >> 20), uri(bucket, key), path)

    def list(self, bucket, prefix):
        head = "s3://%s/" % bucket
        said = self.s5cmd("--json", "ls", head + prefix + "*")
        return [json.loads(line)["key"].removeprefix(head) for line in said.splitlines()]

    def copy(self, bucket, source, key):
        self.s5cmd("cp", "--raw", uri(bucket, source), uri(bucket, key))

    def remove(self, bucket, keys):
        self.s5cmd("rm", "--raw", *(uri(bucket, k) for k in keys))

    def sign(self, bucket, key, method):
        return self.s5cmd("presign", "--expire", "60s", uri(bucket, key)).strip() \
            if method == "get" else None

    def versions(self, bucket, key):
        # Its JSON leaves the versions out.
        said = self.s5cmd("ls", "--all-versions", uri(bucket, key))
        return [line.split()[-1] for line in said.splitlines()]

    def get_version(self, bucket, key, id, path):
        self.s5cmd("cp", "--version-id", id, uri(bucket, key), path)


if __name__ == "__main__":
    serve({"awscli": Aws, "s3cmd": S3cmd, "rclone": Rclone, "s5cmd": S5cmd})
