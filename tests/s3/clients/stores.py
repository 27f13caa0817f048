"""Libraries: to most, S3 is one store of many, or a file system."""
import datetime, importlib.metadata

from driver import PART, Driver, serve, won


class Library(Driver):
    def version(self):
        return importlib.metadata.version(self.package)

    def put(self, bucket, key, path):
        self.write(bucket, key, open(path, "rb").read())

    def put_parts(self, bucket, key, path):
        self.put(bucket, key, path)

    def get(self, bucket, key, path):
        with open(path, "wb") as out:
            out.write(self.read(bucket, key))


class Obstore(Library):
    package = "obstore"

    def store(self, bucket):
        from obstore.store import S3Store
        return S3Store(bucket, endpoint=self.endpoint, region=self.region, access_key_id=self.key,
                       secret_access_key=self.secret, virtual_hosted_style_request=False,
                       client_options={"allow_http": not self.secure})

    def write(self, bucket, key, x, **more):
        import obstore
        return obstore.put(self.store(bucket), key, x, chunk_size=PART, **more)

    def read(self, bucket, key, **more):
        import obstore
        return bytes(obstore.get(self.store(bucket), key, **more).bytes())

    def range(self, bucket, key, start, length, path):
        import obstore
        with open(path, "wb") as out:
            out.write(obstore.get_range(self.store(bucket), key, start=start, length=length))

    def list(self, bucket, prefix):
        import obstore
        return [o["path"] for page in obstore.list(self.store(bucket), prefix.rstrip("/")) for o in page]

    def copy(self, bucket, source, key):
        import obstore
        obstore.copy(self.store(bucket), source, key)

    def remove(self, bucket, keys):
        import obstore
        obstore.delete(self.store(bucket), keys)

    def create(self, bucket, key, path):
        import obstore
        try:
            self.write(bucket, key, open(path, "rb").read(), mode="create")
            return True
        except obstore.exceptions.AlreadyExistsError:
            return False

    def swap(self, bucket, key, path, etag):
        import obstore
        try:
            self.write(bucket, key, open(path, "rb").read(), mode={"e_tag": etag}, use_multipart=False)
            return True
        except obstore.exceptions.PreconditionError:
            return False

    def sign(self, bucket, key, method):
        import obstore
        return obstore.sign(self.store(bucket), method.upper(), key, datetime.timedelta(seconds=60))

    def get_version(self, bucket, key, id, path):
        with open(path, "wb") as out:
            out.write(self.read(bucket, key, options={"version": id}))

    def tag(self, bucket, key, path, tags):
        self.write(bucket, key, open(path, "rb").read(), tags=tags, use_multipart=False)


class Opendal(Library):
    package = "opendal"

    def store(self, bucket):
        import opendal
        return opendal.Operator("s3", bucket=bucket, endpoint=self.endpoint, region=self.region, root="/",
                                access_key_id=self.key, secret_access_key=self.secret)

    def write(self, bucket, key, x, **more):
        self.store(bucket).write(key, x, chunk=PART, **more)

    def read(self, bucket, key, **more):
        return bytes(self.store(bucket).read(key, **more))

    def range(self, bucket, key, start, length, path):
        with open(path, "wb") as out:
            out.write(self.read(bucket, key, offset=start, size=length))

    def list(self, bucket, prefix):
        return [e.path for e in self.store(bucket).list(prefix, recursive=True) if not e.path.endswith("/")]

    def copy(self, bucket, source, key):
        self.store(bucket).copy(source, key)

    def remove_all(self, bucket, prefix):
        self.store(bucket).remove_all(prefix)

    def create(self, bucket, key, path):
        return self.conditional(bucket, key, path, if_not_exists=True)

    def swap(self, bucket, key, path, etag):
        return self.conditional(bucket, key, path, if_match=etag)

    def conditional(self, bucket, key, path, **condition):
        import opendal
        try:
            self.store(bucket).write(key, open(path, "rb").read(), **condition)
            return True
        except opendal.exceptions.ConditionNotMatch:
            return False

    def sign(self, bucket, key, method):
        import asyncio
        store = self.store(bucket).to_async_operator()
        ask = {"get": store.presign_read, "put": store.presign_write}[method]

        async def signed():
            return await ask(key, 60)
        return asyncio.run(signed()).url

    def get_version(self, bucket, key, id, path):
        with open(path, "wb") as out:
            out.write(self.read(bucket, key, version=id))


class S3fs(Library):
    package = "s3fs"

    def __init__(self):
        super().__init__()
        import s3fs
        made = dict(endpoint_url=self.endpoint, key=self.key, secret=self.secret, use_listings_cache=False,
                    client_kwargs={"region_name": self.region}, skip_instance_cache=True)
        self.fs = s3fs.S3FileSystem(**made)
        self.old = lambda: s3fs.S3FileSystem(version_aware=True, **made)

    def put(self, bucket, key, path):
        self.fs.put_file(path, bucket + "/" + key)

    def put_parts(self, bucket, key, path):
        self.fs.put_file(path, bucket + "/" + key, chunksize=PART)

    def get(self, bucket, key, path):
        self.fs.get_file(bucket + "/" + key, path)

    def range(self, bucket, key, start, length, path):
        with open(path, "wb") as out:
            out.write(self.fs.cat_file(bucket + "/" + key, start=start, end=start + length))

    def list(self, bucket, prefix):
        return [path.removeprefix(bucket + "/") for path in self.fs.find(bucket + "/" + prefix)]

    def copy(self, bucket, source, key):
        self.fs.cp_file(bucket + "/" + source, bucket + "/" + key)

    def remove(self, bucket, keys):
        # A list of files would be taken for patterns.
        from fsspec.asyn import sync
        sync(self.fs.loop, self.fs._bulk_delete, [bucket + "/" + k for k in keys])

    def create(self, bucket, key, path):
        return won(lambda: self.fs.pipe_file(bucket + "/" + key, open(path, "rb").read(), mode="create"))

    def swap(self, bucket, key, path, etag):
        return won(lambda: self.fs.call_s3("put_object", Bucket=bucket, Key=key, Body=open(path, "rb").read(),
                                           IfMatch=etag))

    def sign(self, bucket, key, method):
        return self.fs.sign(bucket + "/" + key, 60, client_method=method + "_object")

    def versions(self, bucket, key):
        return [v["VersionId"] for v in self.old().object_version_info(bucket + "/" + key)]

    def get_version(self, bucket, key, id, path):
        with open(path, "wb") as out:
            out.write(self.old().cat_file(bucket + "/" + key, version_id=id))

    def tag(self, bucket, key, path, tags):
        self.fs.put_tags(bucket + "/" + key, tags)

    def tags(self, bucket, key):
        return self.fs.get_tags(bucket + "/" + key)


class Pyarrow(Library):
    package = "pyarrow"

    def __init__(self):
        super().__init__()
        import pyarrow.fs
        more = {"tls_ca_file_path": self.ca} if self.secure else {}
        self.selector = pyarrow.fs.FileSelector
        self.fs = pyarrow.fs.S3FileSystem(
            access_key=self.key, secret_key=self.secret, region=self.region, endpoint_override=self.host,
            scheme="https" if self.secure else "http", **more)

    def write(self, bucket, key, x):
        with self.fs.open_output_stream(bucket + "/" + key, compression=None) as out:
            # Parts are made of what is written at once.
            for at in range(0, len(x), PART):
                out.write(x[at:at + PART])

    def read(self, bucket, key):
        with self.fs.open_input_stream(bucket + "/" + key, compression=None) as source:
            return source.read()

    def range(self, bucket, key, start, length, path):
        with self.fs.open_input_file(bucket + "/" + key) as source, open(path, "wb") as out:
            out.write(source.read_at(length, start))

    def list(self, bucket, prefix):
        found = self.fs.get_file_info(self.selector(bucket + "/" + prefix.rstrip("/"), recursive=True))
        return [f.path.removeprefix(bucket + "/") for f in found if f.is_file]

    def copy(self, bucket, source, key):
        self.fs.copy_file(bucket + "/" + source, bucket + "/" + key)

    def remove_all(self, bucket, prefix):
        self.fs.delete_dir_contents(bucket + "/" + prefix.rstrip("/"))


class Torch(Library):
    """The client under s3torchconnector: torch itself has gigabytes, and says nothing to S3."""

    package = "s3torchconnectorclient"

    def __init__(self):
        super().__init__()
        from s3torchconnectorclient._mountpoint_s3_client import MountpointS3Client
        self.s3 = MountpointS3Client(
            region=self.region, endpoint=self.endpoint, force_path_style=True, part_size=PART)

    def write(self, bucket, key, x):
        stream = self.s3.put_object(bucket, key)
        stream.write(x)
        stream.close()

    def read(self, bucket, key, **more):
        return b"".join(self.s3.get_object(bucket, key, **more))

    def range(self, bucket, key, start, length, path):
        with open(path, "wb") as out:
            out.write(self.read(bucket, key, start=start, end=start + length))

    def list(self, bucket, prefix):
        return [o.key for page in self.s3.list_objects(bucket, prefix) for o in page.object_info]

    def copy(self, bucket, source, key):
        self.s3.copy_object(bucket, source, bucket, key)

    def copies_plain_names(self):
        """It says the bare name of what it copies: a plus is a space then, as on Amazon's, and its own HTTP
        refuses to send more than ASCII."""


if __name__ == "__main__":
    serve({"obstore": Obstore, "opendal": Opendal, "s3fs": S3fs, "pyarrow": Pyarrow,
           "s3torchconnector": Torch})
