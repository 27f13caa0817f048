"""One client, driven by lines: what every client's module shares.

A driver is a process of its own, because clients hang, crash and want Pythons of their own. It reads one
JSON object a line, {"call": name, ...arguments}, and answers {"ok": value}, {"error": text} or
{"impossible": why}. Contents go by files. A method that a driver has not is something that its client
cannot do. driver.mjs speaks the same.
"""
import concurrent.futures, json, os, subprocess, sys, traceback

RACERS = 8
PART = 5 << 20
# What a write says that came second. 409 is Amazon's answer to some of those that race.
LOST = ("PreconditionFailed", "ConditionalRequestConflict", "412", "Precondition Failed",
        "pre-conditions you specified")


class Impossible(Exception):
    """The client has no way to do this."""


class Driver:
    def __init__(self):
        self.endpoint, self.ca = os.environ["S3_ENDPOINT"], os.environ.get("S3_CA")
        self.host = self.endpoint.split("://")[1]
        self.secure = self.endpoint.startswith("https:")
        self.key, self.secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
        self.region = os.environ["AWS_REGION"]

    def methods(self):
        return [name for name in dir(self) if callable(getattr(self, name))]

    def race(self, method, each):
        """The same call by eight at once, each with arguments of its own: what each was told."""
        with concurrent.futures.ThreadPoolExecutor(len(each)) as pool:
            return list(pool.map(lambda args: answer(self, dict(args, call=method)), each))


def lost(error):
    return any(sign in str(error) for sign in LOST)


def won(write):
    """Whether a conditional write was made; errors that are no answer to its condition go on."""
    try:
        write()
        return True
    except Exception as error:
        if lost(error):
            return False
        raise


def run(command, env={}, out=None):
    """A command's standard output, unless it goes to a file; what it says on the other is why it fails."""
    done = subprocess.run(command, env=dict(os.environ, **env), stdin=subprocess.DEVNULL,
                          stdout=out or subprocess.PIPE, stderr=subprocess.PIPE)
    said = (done.stdout or b"").decode(errors="replace")
    if done.returncode:
        why = done.stderr.decode(errors="replace") + said[-500:]
        name = os.path.basename(command[0])
        raise RuntimeError("%s: exit %d: %s" % (name, done.returncode, why.strip()[-1500:]))
    return said


def answer(driver, asked):
    call = asked.pop("call")
    method = getattr(driver, call, None)
    if method is None:
        return {"impossible": "no " + call}
    try:
        return {"ok": method(**asked)}
    except Impossible as why:
        return {"impossible": str(why)}
    except BaseException as error:
        traceback.print_exc()
        return {"error": "%s: %s" % (type(error).__name__, error)}


def serve(kinds):
    # Clients print what they like: answers have a way out of their own.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    driver = kinds[sys.argv[1]]()
    for line in sys.stdin:
        out.write(json.dumps(answer(driver, json.loads(line))) + "\n")
        out.flush()
    # Clients' threads do not keep it.
    os._exit(0)
