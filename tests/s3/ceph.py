#!/usr/bin/env python3
"""Runs the public s3-tests suite of Ceph against a rig, and compares what passes with what is written down.

    ceph.py CHECKOUT --ashlar COMMAND --rig FOLDER [--python PYTHON] [--only TEXT] [--write]

CHECKOUT is a copy of https://github.com/ceph/s3-tests, RIG one that runs and has a gateway: six users are made in it. It has
to be one of `ashlar rig up --object-ownership ObjectWriter`: the suite expects ACLs of buckets that did not ask for any.
PYTHON has what the suite's requirements.txt asks for, but gevent and tox; without one a venv is made for it. What passes
and what fails, and why, stands in ceph.txt: --write writes it anew. A test that passed and does not any more, or that
fails for no reason that is known, makes this fail.
"""
import argparse, json, os, re, subprocess, sys, tempfile, xml.etree.ElementTree as tree

HERE = os.path.dirname(os.path.abspath(__file__))
EXPECTED = os.path.join(HERE, "ceph.txt")
FILES = ("test_s3.py", "test_headers.py")
# Goes first: it wants a user who has no buckets, and others leave some that the suite does not know of.
FIRST = "test_list_buckets_paginated"
USERS = ("s3 main", "s3 alt", "s3 tenant", "iam", "iam root", "iam alt root")
NEEDS = ("PyYAML", "boto3==1.44.8", "munch", "isodate", "requests", "pytz", "httplib2", "lxml", "pytest")

# What is not run at all, by the suite's own marks.
OUT = {
    "lifecycle_transition": "one storage class", "cloud_transition": "one storage class",
    "cloud_restore": "one storage class", "storage_class": "one storage class",
    "lifecycle_expiration": "waits for days that a setting of Ceph's makes seconds: lifecycle.py moves the clock",
    "bucket_logging": "no logging of requests to buckets", "bucket_logging_cleanup": "no logging of requests to buckets",
    "s3website": "no websites", "s3website_routing_rules": "no websites", "s3website_redirect_location": "no websites",
    "sns": "no notifications",
}
UNEXPLAINED = "not explained yet"
ELSEWHERE = "test_iam.py, test_sts.py, test_sns.py and test_s3select.py: no IAM, STS, SNS and no queries in objects"


def arguments():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("checkout")
    parser.add_argument("--ashlar", required=True)
    parser.add_argument("--rig", required=True)
    parser.add_argument("--python")
    parser.add_argument("--only", default="")
    parser.add_argument("--write", action="store_true")
    return parser.parse_args()


def ask(args, *words):
    command = [args.ashlar, "--cluster", args.rig, *words, "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def endpoint(args):
    status = subprocess.run([args.ashlar, "rig", "--dir", args.rig, "status", "--json"], check=True,
                            capture_output=True, text=True).stdout
    return json.loads(status)["gateway"]["endpoint"].removeprefix("http://").split(":")


def configure(args, path):
    host, port = endpoint(args)
    lines = ["[DEFAULT]", "host = " + host, "port = " + port, "is_secure = False", "ssl_verify = False",
             "[fixtures]", "bucket prefix = s3t-{random}-", "iam name prefix = s3-tests-", "iam path prefix = /s3-tests/"]
    for n, section in enumerate(USERS):
        user = ask(args, "user", "add", "ceph-%d-%d" % (os.getpid(), n))
        lines += ["[%s]" % section, "display_name = " + user["account"], "user_id = " + user["canonical_id"],
                  "email = x%d@example.com" % n, "api_name = us-east-1", "tenant = t",
                  "access_key = " + user["access_key_id"], "secret_key = " + user["secret_access_key"]]
    with open(path, "w") as out:
        out.write("\n".join(lines) + "\n")


def python_of(args, folder):
    if args.python:
        return args.python
    subprocess.run([sys.executable, "-m", "venv", folder + "/venv"], check=True)
    subprocess.run([folder + "/venv/bin/pip", "install", "--quiet", *NEEDS], check=True)
    return folder + "/venv/bin/python"


def pytest_collection_modifyitems(items):
    """This file is a plugin of pytest's too."""
    items.sort(key=lambda item: item.name != FIRST)


def run(args, folder):
    """What became of each test: None if it passed, else what it says."""
    configure(args, folder + "/s3.conf")
    marks = " and ".join("not " + mark for mark in OUT)
    command = [python_of(args, folder), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "ceph", "-m", marks,
               "--junitxml", folder + "/junit.xml"]
    command += ["-k", args.only] if args.only else []
    command += ["s3tests/functional/" + name for name in FILES]
    environment = dict(os.environ, S3TEST_CONF=folder + "/s3.conf", AWS_CONFIG_FILE="/dev/null",
                       AWS_EC2_METADATA_DISABLED="true", PYTHONPATH=HERE, PYTHONDONTWRITEBYTECODE="1")
    subprocess.run(command, cwd=args.checkout, env=environment)
    became = {}
    for case in tree.parse(folder + "/junit.xml").iter("testcase"):
        name = case.get("name")
        faults = [child for child in case if child.tag in ("failure", "error")]
        if any(child.tag == "skipped" for child in case):
            continue
        said = faults[0].get("message", "").splitlines() if faults else None
        became[name] = (said or ["?"])[0] if faults else None
    return became


def expected():
    """The tests that pass, and why others do not, as it is written down."""
    passes, fails, reason = set(), {}, None
    for line in open(EXPECTED) if os.path.exists(EXPECTED) else []:
        line = line.rstrip("\n")
        if line.startswith("## "):
            reason = line[3:]
        elif line and not line.startswith("#"):
            if reason == "passes":
                passes.add(line)
            else:
                fails[line] = reason
    return passes, fails


def failing_on_amazon(checkout):
    """The tests of which the suite itself says that they fail on Amazon's S3."""
    mark = r"@pytest\.mark\.fails_on_aws[^\n]*\n(?:@[^\n]*\n)*def (test_\w+)"
    sources = [open(os.path.join(checkout, "s3tests", "functional", name)).read() for name in FILES]
    return {name for source in sources for name in re.findall(mark, source)}


MENDED = "botocore mends what the test breaks, and the request that is sent is right"
TENANTS = "tenants are Ceph's"
# Why a test fails, by its name and what it says.
REASONS = [
    ("bad_authorization|bad_date_none|bad_contentlength_none|test_object_read_unreadable", MENDED),
    ("policy_different_tenant|policy_tenanted_bucket|arn:aws:s3::1", TENANTS),
    ("nonpublicpolicy_principal|public_policy_with_principal", TENANTS),
    ("naming_dns_dot_dash|naming_dns_dash_dot", "Amazon takes these names: no dot beside a dot is all that it asks"),
    ("object_checksum_|multipart_checksum_sha256", "'bad' is no digest (InvalidRequest), and none that does not fit"),
    ("delete_.*if_match", "If-Match with a size or a time is of directory buckets"),
    ("if_match|if_none_match", "a write takes If-Match with an ETag and If-None-Match: *, as on Amazon's"),
    ("get_part", "a part that an object does not have is InvalidPartNumber (416), as on Amazon's"),
    ("copy_invalid_range", "a range that the source does not have is an InvalidArgument, as on Amazon's"),
    ("request_obj_tag", "the test gives its header to one client, and asks another"),
    ("torrent", "no torrents"),
    ("kms", "no key management service: aws:kms is NotImplemented, and touches nothing"),
    ("sse_c_other_key|sse_c_multipart_bad_download", "who reads with another key is denied (403), as on Amazon's"),
    ("transition", "one storage class"),
    ("chunked_transfer_encoding", "a body without a length is MissingContentLength, as on Amazon's"),
    ("resend_first_finishes_last", "a part that is named twice is InvalidPartOrder, as on Amazon's"),
    ("bucket_get_location", "the location of what is in us-east-1 is told as none, as on Amazon's"),
    ("list_prefix_unreadable", "the prefix of the first way to list is encoded, as on Amazon's: botocore leaves it so"),
    ("end_with_IfExists", "an owner may do what no policy denies, as on Amazon's"),
    ("delete_marker_nonversioned", "x-amz-delete-marker comes only if it is true, as on Amazon's"),
    ("put_authenticated_expired|expires_out_(max|positive)_range",
     "an X-Amz-Expires that is out of bounds is AuthorizationQueryParametersError, as on Amazon's"),
    ("recreate_", "who makes their own bucket again is told nothing (in us-east-1, as on Amazon's), or BucketAlreadyOwnedByYou"),
    ("x-amz-foo|success_redirect_action", "a header x-amz-foo, or a parameter that a list has not, is refused and not passed over"),
    ("cors_origin_response", "what is no preflight is judged by its own method, and not by Access-Control-Request-Method"),
    ("set_get_unicode_metadata", "metadata comes back in UTF-8, on Amazon's as RFC 2047 says: the test reads Latin-1"),
]


def reason_of(name, said, known, amazon):
    if name.split("[")[0] in amazon:
        return "the suite says that it fails on Amazon's S3 as well"
    for pattern, reason in REASONS:
        if re.search(pattern, name + ": " + said):
            return reason
    return known.get(name)


def write(became, known, amazon):
    by_reason = {}
    for name, said in became.items():
        reason = "passes" if said is None else reason_of(name, said, known, amazon) or UNEXPLAINED
        by_reason.setdefault(reason, []).append(name)
    with open(EXPECTED, "w") as out:
        out.write("# Ceph's s3-tests, as ceph.py ran them: what passes, and why the rest does not.\n")
        out.write("# Not run: %s;\n" % ELSEWHERE)
        for reason in sorted(set(OUT.values())):
            marks = ", ".join(mark for mark in OUT if OUT[mark] == reason)
            out.write("# %s: %s;\n" % (marks, reason))
        for reason in sorted(by_reason, key=lambda r: (r != "passes", r)):
            out.write("\n## %s\n" % reason)
            out.write("".join(name + "\n" for name in sorted(by_reason[reason])))


def main():
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        became = run(args, folder)
    passes, fails = expected()
    passed = {name for name, said in became.items() if said is None}
    failed = {name: said for name, said in became.items() if said is not None}
    print("%d tests: %d passed, %d failed" % (len(became), len(passed), len(failed)))
    if args.write:
        return write(became, fails, failing_on_amazon(args.checkout))
    worse = sorted(set(failed) & passes)
    unknown = sorted(name for name in failed if name not in passes and name not in fails)
    for what, names in (("passed before", worse), ("fails, and nobody says why", unknown)):
        for name in names:
            print("%s: %s: %s" % (what, name, failed[name]))
    for name in sorted(passed - passes):
        print("passes now: %s" % name)
    sys.exit(bool(worse or unknown))


if __name__ == "__main__":
    main()
