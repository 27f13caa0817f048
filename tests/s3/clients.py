#!/usr/bin/env python3
"""Drives real S3 clients, end to end, and makes a table of what they can do with an endpoint.

    clients.py ENDPOINT [--core] [--only CLIENT,...] [--column TEXT] [--cache FOLDER] [--table FILE]
               [--ashlar COMMAND --rig FOLDER]

Credentials are taken from the environment, as boto3 takes them. The clients are installed into the cache
(else into a folder that is removed), at the versions of clients.txt and clients/package.json; what needs
node and npm is left out aloud where there is none. --core is what CI runs: six clients, a minute. --ashlar
and --rig let it start a gateway with TLS and kill nodes: without them those columns are left out.

Every operation has 60 s. What a client changed is read back by another. The cells of the table: pass; 501:
the gateway said NotImplemented; -: the client has no way to do it; FAIL: anything else, and why stands
below it.
"""
import argparse, os, shutil, subprocess, sys, tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
PARTS = os.path.join(HERE, "clients")
# Each client: the module or script that drives it, and the Python that it is installed for.
CLIENTS = {
    "awscli": ("commands.py", "core"), "boto3": ("sdks.py", "core"), "rclone": ("commands.py", "core"),
    "s5cmd": ("commands.py", "core"), "minio-py": ("sdks.py", "core"), "s3cmd": ("commands.py", "core"),
    "aws-sdk-js": ("sdk.mjs", "js"), "minio-js": ("minio.mjs", "js"),
    "s3fs": ("stores.py", "s3fs"), "pyarrow": ("stores.py", "data"), "obstore": ("stores.py", "data"),
    "opendal": ("stores.py", "data"), "s3torchconnector": ("stores.py", "torch"),
    "polars": ("tables.py", "data"), "duckdb": ("tables.py", "data"), "deltalake": ("tables.py", "data"),
    "lancedb": ("tables.py", "data"),
}
CORE = [name for name, (_, where) in CLIENTS.items() if where == "core"]
TABLES = [name for name, (script, _) in CLIENTS.items() if script == "tables.py"]
# Those that a node is killed under.
KILLS = ("awscli", "boto3", "rclone", "minio-py", "aws-sdk-js")


def arguments():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("endpoint")
    parser.add_argument("--core", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--column", default="")
    parser.add_argument("--cache")
    parser.add_argument("--table")
    parser.add_argument("--ashlar")
    parser.add_argument("--rig")
    return parser.parse_args()


def pins(name):
    """The lines of clients.txt for one of its Pythons."""
    lines, taken = [], False
    for line in open(os.path.join(HERE, "clients.txt")):
        if line.startswith("## "):
            taken = line[3:].split(":")[0].strip() == name
        elif taken and line.strip() and not line.startswith("#"):
            lines.append(line)
    assert lines, "clients.txt has nothing for " + name
    return "".join(lines)


def install(name, cache):
    """A Python with these clients; what is there already, at these versions, stays."""
    folder = os.path.join(cache, name)
    python, mark = os.path.join(folder, "bin", "python"), os.path.join(folder, "installed.txt")
    wanted = pins(name)
    if os.path.exists(mark) and open(mark).read() == wanted:
        return python
    print("installing into %s" % folder, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listed:
        listed.write(wanted)
        listed.flush()
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
                        "--requirement", listed.name], check=True)
    with open(mark, "w") as out:
        out.write(wanted)
    return python


def install_js(cache):
    """node, with a folder that has the clients; none where npm is not there."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        return None
    folder = os.path.join(cache, "js")
    mark, wanted = os.path.join(folder, "installed.json"), open(os.path.join(PARTS, "package.json")).read()
    if not (os.path.exists(mark) and open(mark).read() == wanted):
        print("installing into %s" % folder, flush=True)
        os.makedirs(folder, exist_ok=True)
        shutil.copy(os.path.join(PARTS, "package.json"), folder)
        subprocess.run([npm, "install", "--no-audit", "--no-fund", "--silent"], cwd=folder, check=True)
        with open(mark, "w") as out:
            out.write(wanted)
    # Modules are looked for beside the script that wants them.
    for name in os.listdir(PARTS):
        if name.endswith(".mjs"):
            shutil.copy(os.path.join(PARTS, name), folder)
    return node


def main():
    args = arguments()
    if not args.cache:
        with tempfile.TemporaryDirectory(prefix="s3-clients-") as folder:
            sys.exit(subprocess.run([sys.executable, "-B", *sys.argv, "--cache", folder]).returncode)
    cache = os.path.abspath(args.cache)
    os.makedirs(cache, exist_ok=True)
    python = install("core", cache)
    if os.path.realpath(sys.prefix) != os.path.realpath(os.path.join(cache, "core")):
        # What looks on is boto3, of the same Python as the first clients.
        os.execv(python, [python, "-B", *sys.argv])
    sys.path.insert(0, PARTS)
    import table
    names = [n for n in CLIENTS if n in (CORE if args.core else CLIENTS)]
    if args.only:
        names = [n for n in names if n in args.only.split(",")]
    commands, left_out = {}, []
    for name in names:
        script, where = CLIENTS[name]
        if where == "js":
            node = install_js(cache)
            if node:
                commands[name] = [node, os.path.join(cache, "js", script)]
            else:
                left_out.append(name)
                print("LEFT OUT: %s: there is no node or no npm here" % name, flush=True)
        else:
            commands[name] = [install(where, cache), "-B", os.path.join(PARTS, script), name]
    sys.exit(table.make(args, commands, left_out, KILLS, TABLES))


if __name__ == "__main__":
    main()
