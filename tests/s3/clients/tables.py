"""Clients that know tables, not objects: polars, duckdb, deltalake, lancedb.

Their rows follow from a seed, so that the one who writes and the one who compares need not hand them over.
"""
import importlib.metadata, os, random

from driver import PART, Driver, serve

WIDTH = 1024


def rows(seed, n):
    import pyarrow
    dice = random.Random(seed)
    return pyarrow.table({"id": pyarrow.array(range(n), pyarrow.int64()),
                          "seed": pyarrow.array([seed] * n, pyarrow.int64()),
                          "body": pyarrow.array([dice.randbytes(WIDTH) for _ in range(n)], pyarrow.binary())})


def compare(got, wanted):
    """Tables of whatever library: the same rows, in whatever order."""
    def all_of(table):
        columns = [table.column(name).to_pylist() for name in ("seed", "id", "body")]
        return sorted(zip(*columns))
    got, wanted = all_of(got), [row for table in wanted for row in all_of(table)]
    assert got == sorted(wanted), "%d rows instead of %d, or others" % (len(got), len(wanted))


class Tables(Driver):
    def version(self):
        return importlib.metadata.version(self.package)

    def at(self, bucket, key):
        return "s3://%s/%s" % (bucket, key)

    def build(self, folder, seed, n):
        """What stands for a table, in a folder of this machine."""
        self.store(os.path.join(folder, self.name), rows(seed, n), {})

    def write(self, bucket, key, seed, n):
        self.store(self.at(bucket, key) + "/" + self.name, rows(seed, n), self.options())

    def where(self):
        """Where a table's versions are, and what their names end with."""
        return self.log

    def same(self, folder, tables):
        """Whether a folder of this machine has the rows of these."""
        compare(self.load(os.path.join(folder, self.name), {}), [rows(*table) for table in tables])

    def one_of(self, folder, tables):
        got = self.load(os.path.join(folder, self.name), {})
        seed = got.column("seed").to_pylist()[0]
        compare(got, [rows(*table) for table in tables if table[0] == seed])

    def adds(self):
        """Whether a table that is made by two at once has the rows of both."""
        return self.package == "deltalake"

    def read(self, bucket, key, seed, n):
        compare(self.load(self.at(bucket, key) + "/" + self.name, self.options()), [rows(seed, n)])

    def options(self):
        return {"aws_endpoint_url": self.endpoint, "aws_access_key_id": self.key, "aws_region": self.region,
                "aws_secret_access_key": self.secret, "aws_allow_http": str(not self.secure).lower()}


class Polars(Tables):
    package, name = "polars", "table.parquet"

    def store(self, path, table, options):
        # Its parts are of 64 MiB unless it is told otherwise.
        os.environ["POLARS_UPLOAD_CHUNK_SIZE"] = str(PART)
        import polars
        # Groups of rows, so that what is wanted of a file is not all of it.
        polars.from_arrow(table).write_parquet(path, row_group_size=1000, compression="uncompressed",
                                               storage_options=options or None)

    def load(self, path, options):
        import polars
        return polars.read_parquet(path, storage_options=options or None).to_arrow()

    def slice(self, bucket, key, seed, n, start, length):
        import polars
        scan = polars.scan_parquet(self.at(bucket, key) + "/" + self.name, storage_options=self.options())
        compare(scan.slice(start, length).collect().to_arrow(), [rows(seed, n).slice(start, length)])

    def list(self, bucket, prefix):
        import polars
        scan = polars.scan_csv(self.at(bucket, prefix) + "**/*", has_header=False, include_file_paths="path",
                               storage_options=self.options())
        head = self.at(bucket, "")
        return [path.removeprefix(head) for path in scan.collect()["path"].to_list()]


class Duckdb(Tables):
    package, name = "duckdb", "table.parquet"

    def connect(self):
        import duckdb, duckdb_extension_httpfs
        db = duckdb.connect()
        folder = list(duckdb_extension_httpfs.__path__)[0]
        db.execute("LOAD '%s/extensions/v%s/httpfs.duckdb_extension'" % (folder, duckdb.__version__))
        db.execute("CREATE SECRET (TYPE s3, URL_STYLE 'path', "
                   "KEY_ID '%s', SECRET '%s', REGION '%s', ENDPOINT '%s', USE_SSL %s)" % (self.key, self.secret, self.region, self.host, self.secure))
        # This makes its parts small.
        db.execute("SET s3_uploader_max_filesize = '50GB'")
        if self.ca:
            db.execute("SET ca_cert_file = '%s'" % self.ca)
            db.execute("SET enable_server_cert_verification = true")
        return db

    def store(self, path, table, options):
        db = self.connect()
        db.register("given", table)
        how = "FORMAT parquet, ROW_GROUP_SIZE 2048, COMPRESSION uncompressed"
        db.execute("COPY given TO '%s' (%s)" % (path, how))

    def load(self, path, options):
        return self.connect().execute("SELECT * FROM read_parquet('%s')" % path).to_arrow_table()

    def slice(self, bucket, key, seed, n, start, length):
        got = self.connect().execute("SELECT * FROM read_parquet('%s/%s') WHERE id >= %d AND id < %d" % (
            self.at(bucket, key), self.name, start, start + length)).to_arrow_table()
        compare(got, [rows(seed, n).slice(start, length)])

    def list(self, bucket, prefix):
        got = self.connect().execute("SELECT file FROM glob('%s**')" % self.at(bucket, prefix)).fetchall()
        return [path.removeprefix(self.at(bucket, "")) for path, in got]


class Deltalake(Tables):
    package, name, log = "deltalake", "delta", ("delta/_delta_log/", ".json")

    def store(self, path, table, options, mode="error"):
        import deltalake
        deltalake.write_deltalake(path, table, mode=mode, storage_options=options or None)

    def load(self, path, options):
        import deltalake, pyarrow
        table = deltalake.DeltaTable(path, storage_options=options or None)
        found = deltalake.QueryBuilder().register("t", table).execute("SELECT * FROM t")
        return pyarrow.table(found.read_all())

    def create(self, bucket, key, seed, n):
        import deltalake.exceptions
        try:
            self.write(bucket, key, seed, n)
            return True
        except deltalake.exceptions.DeltaError as error:
            # It says so in words.
            signs = ("already exists", "conflict", "changed since last commit")
            if any(sign in str(error).lower() for sign in signs):
                return False
            raise

    def append(self, bucket, key, seed, n):
        self.store(self.at(bucket, key) + "/" + self.name, rows(seed, n), self.options(), "append")

    def clear(self, bucket, key):
        """Has what overwritten tables were made of removed: what stays is one file and the log."""
        import deltalake
        path = self.at(bucket, key) + "/" + self.name
        for seed in (1, 2, 3, 4):
            self.store(path, rows(seed, 4), self.options(), "overwrite")
        gone = deltalake.DeltaTable(path, storage_options=self.options()).vacuum(
            retention_hours=0, dry_run=False, enforce_retention_duration=False)
        assert len(gone) == 3, gone
        return [".parquet", 1]


class Lancedb(Tables):
    package, name, log = "lancedb", "t", ("t.lance/_versions/", ".manifest")

    def options(self):
        return {"endpoint": self.endpoint, "aws_access_key_id": self.key,
                "aws_secret_access_key": self.secret, "region": self.region,
                "allow_http": str(not self.secure).lower()}

    def db(self, path, options):
        import lancedb
        return lancedb.connect(os.path.dirname(path), storage_options=options or None)

    def store(self, path, table, options):
        self.db(path, options).create_table(self.name, table)

    def load(self, path, options):
        return self.db(path, options).open_table(self.name).to_arrow()

    def create(self, bucket, key, seed, n):
        try:
            self.write(bucket, key, seed, n)
            return True
        except (ValueError, RuntimeError, OSError) as error:
            if "already exists" in str(error) or "conflict" in str(error).lower():
                return False
            raise

    def append(self, bucket, key, seed, n):
        db = self.db(self.at(bucket, key) + "/" + self.name, self.options())
        db.open_table(self.name).add(rows(seed, n))

    def clear(self, bucket, key):
        """Drops a table: nothing of it stays."""
        self.write(bucket, key, 1, 4)
        self.db(self.at(bucket, key) + "/" + self.name, self.options()).drop_table(self.name)
        return ["", 0]


if __name__ == "__main__":
    serve({"polars": Polars, "duckdb": Duckdb, "deltalake": Deltalake, "lancedb": Lancedb})
