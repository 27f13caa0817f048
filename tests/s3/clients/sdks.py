"""boto3, its transfer manager among it, and minio-py."""
import datetime

from driver import PART, Driver, serve, won


class Boto3(Driver):
    def __init__(self):
        super().__init__()
        import boto3, boto3.s3.transfer
        from botocore.client import Config
        self.s3 = boto3.client("s3", endpoint_url=self.endpoint, config=Config(
            signature_version="s3v4", s3={"addressing_style": "path"}, max_pool_connections=32))
        self.parts = boto3.s3.transfer.TransferConfig(multipart_threshold=PART, multipart_chunksize=PART)
        self.version = lambda: boto3.__version__

    def put(self, bucket, key, path):
        self.s3.upload_file(path, bucket, key, Config=self.parts)

    put_parts = put

    def get(self, bucket, key, path):
        self.s3.download_file(bucket, key, path, Config=self.parts)

    def range(self, bucket, key, start, length, path):
        got = self.s3.get_object(Bucket=bucket, Key=key, Range="bytes=%d-%d" % (start, start + length - 1))
        with open(path, "wb") as out:
            out.write(got["Body"].read())

    def list(self, bucket, prefix):
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [o["Key"] for page in pages for o in page.get("Contents", [])]

    def copy(self, bucket, source, key):
        # The transfer manager's copy makes parts of what is large.
        self.s3.copy({"Bucket": bucket, "Key": source}, bucket, key, Config=self.parts)

    def remove(self, bucket, keys):
        gone = self.s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": k} for k in keys]})
        assert not gone.get("Errors"), gone["Errors"]

    def create(self, bucket, key, path):
        return won(lambda: self.s3.put_object(Bucket=bucket, Key=key, Body=open(path, "rb"), IfNoneMatch="*"))

    def swap(self, bucket, key, path, etag):
        return won(lambda: self.s3.put_object(Bucket=bucket, Key=key, Body=open(path, "rb"), IfMatch=etag))

    def sign(self, bucket, key, method):
        of = {"Bucket": bucket, "Key": key}
        return self.s3.generate_presigned_url(method + "_object", of, ExpiresIn=60)

    def form(self, bucket, key):
        return self.s3.generate_presigned_post(bucket, key, ExpiresIn=60)

    def put_wrong(self, bucket, key, path, md5, sha256):
        self.s3.put_object(Bucket=bucket, Key=key, Body=open(path, "rb"), ChecksumSHA256=sha256)

    def versions(self, bucket, key):
        got = self.s3.list_object_versions(Bucket=bucket, Prefix=key)
        return [v["VersionId"] for v in got["Versions"]]

    def get_version(self, bucket, key, id, path):
        self.s3.download_file(bucket, key, path, ExtraArgs={"VersionId": id})

    def tag(self, bucket, key, path, tags):
        self.s3.put_object_tagging(Bucket=bucket, Key=key, Tagging={
            "TagSet": [{"Key": k, "Value": v} for k, v in tags.items()]})

    def tags(self, bucket, key):
        return {t["Key"]: t["Value"] for t in self.s3.get_object_tagging(Bucket=bucket, Key=key)["TagSet"]}


class MinioPy(Driver):
    def __init__(self):
        super().__init__()
        import minio
        self.s3 = minio.Minio(self.host, self.key, self.secret, secure=self.secure, region=self.region)
        self.version = lambda: minio.__version__

    def put(self, bucket, key, path):
        self.s3.fput_object(bucket, key, path, part_size=PART)

    put_parts = put

    def get(self, bucket, key, path):
        self.s3.fget_object(bucket, key, path)

    def range(self, bucket, key, start, length, path):
        got = self.s3.get_object(bucket, key, offset=start, length=length)
        with open(path, "wb") as out:
            out.write(got.read())
        got.close()
        got.release_conn()

    def list(self, bucket, prefix):
        return [o.object_name for o in self.s3.list_objects(bucket, prefix, recursive=True)]

    def copy(self, bucket, source, key):
        from minio.commonconfig import CopySource
        self.s3.copy_object(bucket, key, CopySource(bucket, source))

    def remove(self, bucket, keys):
        from minio.deleteobjects import DeleteObject
        failed = [str(e) for e in self.s3.remove_objects(bucket, [DeleteObject(k) for k in keys])]
        assert not failed, failed

    def sign(self, bucket, key, method):
        return self.s3.get_presigned_url(method.upper(), bucket, key, datetime.timedelta(seconds=60))

    def form(self, bucket, key):
        from minio.datatypes import PostPolicy
        now = datetime.datetime.now(datetime.timezone.utc)
        policy = PostPolicy(bucket, now + datetime.timedelta(seconds=60))
        policy.add_equals_condition("key", key)
        return {"url": "%s/%s" % (self.endpoint, bucket),
                "fields": dict(self.s3.presigned_post_policy(policy), key=key)}

    def versions(self, bucket, key):
        return [o.version_id for o in self.s3.list_objects(bucket, key, include_version=True)
                if not o.is_delete_marker]

    def get_version(self, bucket, key, id, path):
        self.s3.fget_object(bucket, key, path, version_id=id)

    def tag(self, bucket, key, path, tags):
        from minio.commonconfig import Tags
        given = Tags.new_object_tags()
        given.update(tags)
        self.s3.set_object_tags(bucket, key, given)

    def tags(self, bucket, key):
        return dict(self.s3.get_object_tags(bucket, key))


if __name__ == "__main__":
    serve({"boto3": Boto3, "minio-py": MinioPy})
