"""Drivers' processes, and a line to a gateway that tells how far an upload is."""
import json, os, re, select, signal, socket, subprocess, threading, time

HERE = os.path.dirname(os.path.abspath(__file__))
WITHIN = 60


class Impossible(Exception):
    """The client has no way to do this."""


class Refused(Exception):
    """The gateway said NotImplemented."""


class Wrong(Exception):
    """Anything else that is not as it should be."""


def told(answer):
    """The value of a driver's answer, or what it means that there is none."""
    if "ok" in answer:
        return answer["ok"]
    if "impossible" in answer:
        raise Impossible(answer["impossible"])
    if re.search(r"\bNotImplemented\b|(code|status):? ?501\b|\b501 Not Implemented", answer["error"]):
        raise Refused(answer["error"])
    raise Wrong(answer["error"])


class Process:
    """A client's driver: started when it is first asked, killed when it takes too long."""

    def __init__(self, command, env, folder):
        self.command, self.folder, self.child = command, folder, None
        os.makedirs(folder, exist_ok=True)
        # No client finds what whoever runs this has configured.
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LD_LIBRARY_PATH", "TMPDIR")}
        self.env = dict(kept, HOME=folder, AWS_CONFIG_FILE="/dev/null", AWS_EC2_METADATA_DISABLED="true",
                        PYTHONDONTWRITEBYTECODE="1", PYTHONUTF8="1", **env)

    def start(self):
        self.log = open(os.path.join(self.folder, "log"), "ab")
        self.child = subprocess.Popen(
            self.command, env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
            cwd=self.folder, start_new_session=True)

    def call(self, name, **args):
        if self.child is None:
            self.start()
        asked = json.dumps(dict(args, call=name)) + "\n"
        self.child.stdin.write(asked.encode())
        self.child.stdin.flush()
        line, until = b"", time.monotonic() + WITHIN
        while not line.endswith(b"\n"):
            if not select.select([self.child.stdout], [], [], max(0, until - time.monotonic()))[0]:
                self.end()
                raise Wrong("no answer to %s within %d s" % (name, WITHIN))
            more = os.read(self.child.stdout.fileno(), 1 << 20)
            if not more:
                self.end()
                raise Wrong("the client's process ended during %s: see %s/log" % (name, self.folder))
            line += more
        return told(json.loads(line))

    def end(self):
        if self.child is None:
            return
        # The commands that it may have started are in its session.
        os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()
        self.child.stdin.close(), self.child.stdout.close(), self.log.close()
        self.child = None


class Line:
    """Passes bytes on to an endpoint; once so many went up, it does something while everything waits."""

    def __init__(self, endpoint, after, do):
        self.to = endpoint.split("://")[1].split(":")
        self.after, self.do, self.sent, self.lock, self.done = after, do, 0, threading.Lock(), None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                near = self.listener.accept()[0]
            except OSError:
                return
            far = socket.create_connection((self.to[0], int(self.to[1])))
            threading.Thread(target=self.pump, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self.pump, args=(far, near, False), daemon=True).start()

    def pump(self, source, sink, up):
        try:
            while chunk := source.recv(1 << 16):
                sink.sendall(chunk)
                if up:
                    with self.lock:
                        self.sent += len(chunk)
                        if self.sent >= self.after and self.done is None:
                            self.done = self.sent
                            self.do()
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            for end in (source, sink):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def close(self):
        self.listener.close()
