#!/usr/bin/env python3
"""Cuts the power of a whole virtual machine under load, again and again, and reads what was acknowledged.

    python3 tests/vm/power_cut.py --ashlar target/release/ashlar [--rounds N] [--seed S] [--work DIR] [--kernel vmlinuz]
    python3 tests/vm/power_cut.py --ashlar target/release/ashlar --lie      the canary: flushes that do nothing

A kernel of its own boots under QEMU, with six nodes on six raw virtio disks and a gateway; three of the nodes are
members of the control plane, with their files on a seventh disk, by ext4. The host is the client. A cut is SIGKILL for
QEMU at a random moment under load, and now and then again while the store recovers. Each disk then loses what a seeded
coin says of what was not flushed, and the machine boots from what is left. Checked are P1 and P4: what was acknowledged
is there, to the byte; what was not is there whole or not at all, and for ever; lists agree.

Not part of CI: it wants QEMU, a kernel, 4 GiB of memory, up to 13 GB of disk, and /dev/kvm (else it is slow).

Why the disks are servers of NBD in this script, and not QEMU's `blklogwrites`, whose log could be replayed. That driver
(block/blklogwrites.c) gives an entry its place in the log when the operation has *ended* at the file below, and writes
the entry after that. So
- a flush stands behind writes that ended while it was under way, of which it says nothing: a replay up to the flush is
  kinder than a disk, and when the flush was issued is not in the log;
- a write whose entry was on its way at the cut leaves a hole of unknown length, perhaps before an acknowledged flush.
Here the disk itself knows. A flush makes those writes durable that had been *answered* when it came in, and no others:
none of its own batch of requests, and none whose answers went out when it was there to be read. (If it is sent in the
microseconds in which answers are on their way to the guest, it counts as one behind them: nobody outside can tell.) All
other writes are loose: at the cut each sector of 512 bytes holds its durable content, or that of a loose write to it.
Before every second cut under load the disks end no more flushes for a moment, so that there is more to lose.

Exit code: 0 without violations; 1 with some (the images as the last cut under load left them, and what was said, are
kept in the work folder); 2 if it could not be tried; 3 if the disks lied and nothing was noticed.
"""
import argparse, collections, hashlib, hmac, http.client, json, lzma, os, random, re, shutil, signal, socket
import struct, subprocess, sys, tempfile, threading, time, urllib.parse
import xml.etree.ElementTree as xml
from pathlib import Path

SELF = os.path.abspath(__file__)
NODES, CONTROL = 6, 3
STATE = NODES + 1                      # the number of the disk with the files of the control members
DEVICE, STATE_SIZE, SECTOR = 1 << 30, 256 << 20, 512
FATES = ("lost", "kept", "writes", "sectors", "prefix")
BUCKET, LOOK = "/power", [("list-type", "2"), ("max-keys", "97")]
WORKERS, KEYS = 8, 20                  # keys of each worker, to which nobody else writes
PATIENCE = 180                         # seconds in which a store must serve, and all be read: it may be emulated
MODULES = """virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk failover net_failover
    virtio_net crc16 crc32c_generic libcrc32c mbcache jbd2 ext4""".split()
# Not that a processor stood still: an emulated one may.
AMISS = re.compile(r"@@ broken|@@ ended node|panicked at|Kernel panic|EXT4-fs error|BUG: (?!soft lockup)")

HELP = """%s What this needs comes from:
    apt-get install qemu-system-x86 busybox-static e2fsprogs
    apt-get download $(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ {print $2}')
    dpkg-deb -x linux-image-*.deb kernel      # nothing is installed: --kernel kernel/boot/vmlinuz-…"""


def fail(text):
    print(text, file=sys.stderr)
    sys.exit(2)


class Disk:
    """A process that serves one image, by NBD, to one machine, until that dies. Every write goes to the image at once;
    what stood there is kept in memory until the write is durable."""
    def __init__(self, order):
        self.order, self.dice = order, random.Random(order["seed"])
        self.image = os.open(order["image"], os.O_RDWR)
        self.loose = collections.deque()   # (offset, new, old), in the order in which they came
        self.written = self.durable = self.flushes = self.fails = 0
    def write(self, at, new):
        self.loose.append((at, new, os.pread(self.image, len(new), at)))
        os.pwrite(self.image, new, at)
        self.written += 1
    def zero(self, at, length):
        zeros = bytes(1 << 20)
        for place in range(at, at + length, len(zeros)):
            part = zeros[:at + length - place]
            if os.pread(self.image, len(part), place) != part:
                self.write(place, part)
    def flush(self, covered):
        self.flushes += 1
        # As long as a slow disk takes: a quick one has hardly ever anything to lose. No order depends on this.
        time.sleep(self.dice.random() * 0.03)
        while self.durable < covered and not self.order["lie"]:
            self.loose.popleft()
            self.durable += 1
    def serve(self):
        signal.signal(signal.SIGUSR1, lambda *_: setattr(self, "fails", 1))
        with socket.socket(fileno=self.order["fd"]) as listener:
            conn, _ = listener.accept()
        try:
            self.handshake(conn)
            self.requests(conn)
        except (ConnectionError, EOFError):
            self.cut()
    def handshake(self, conn):
        conn.sendall(b"NBDMAGIC" + b"IHAVEOPT" + struct.pack(">H", 3))         # fixed newstyle, no zeroes
        conn.recv(4, socket.MSG_WAITALL)
        option = 0
        while option != 7:                                                     # GO
            if len(head := conn.recv(16, socket.MSG_WAITALL)) < 16:
                raise EOFError
            _, option, length = struct.unpack(">QII", head)
            if length:
                conn.recv(length, socket.MSG_WAITALL)
            # It flushes (4) and zeros (64). No FUA and no trim: of those QEMU makes flushes, and nothing.
            export = struct.pack(">HQH", 0, os.fstat(self.image).st_size, 1 | 4 | 64)
            for kind, data in ((3, export), (1, b"")) if option == 7 else ((0x80000001, b""),):
                conn.sendall(struct.pack(">QIII", 0x3e889045565a9, option, kind, len(data)) + data)
    def requests(self, conn):
        buffer = bytearray()
        stale = 0              # so many bytes of the buffer came before the last answers went out
        before = answered = 0  # writes answered before those answers, and with them

        def more(flags=socket.MSG_DONTWAIT):
            try:
                data = conn.recv(4 << 20, flags)
            except BlockingIOError:
                return False
            if not data:
                raise EOFError
            buffer.extend(data)
            return True

        def request(at):
            """Kind, cookie, place, count and length of what is asked there; nothing if it is not all there."""
            if len(buffer) >= at + 28:
                _, _, *asked, count = struct.unpack_from(">IHHQQI", buffer, at)
                length = 28 + count * (asked[0] == 1)
                return (*asked, count, length) if len(buffer) >= at + length else None

        while request(0) or more(0):
            while more():
                pass
            at, replies = 0, []
            while asked := request(at):
                kind, cookie, offset, count, length = asked
                if kind == 1:
                    self.write(offset, bytes(memoryview(buffer)[at + 28:at + length]))
                elif kind == 3 and not self.fails:
                    self.flush(before if at < stale else answered)
                elif kind == 6:
                    self.zero(offset, count)
                data = os.pread(self.image, count, offset) if kind == 0 else b""
                if kind != 3 or not self.fails:
                    replies.append(struct.pack(">IIQ", 0x67446698, 0, cookie) + data)
                at += length
            del buffer[:at]
            while more():
                pass
            stale, before, answered = len(buffer), answered, self.written
            conn.sendall(b"".join(replies))
    def cut(self):
        """Back to what is durable, and from there on what its fate lets be."""
        for at, _, old in reversed(self.loose):
            os.pwrite(self.image, old, at)
        fate, dice = self.order["fate"], self.dice
        end, lost, torn = dice.randrange(len(self.loose) + 1), 0, 0
        with open(self.order["story"], "w") as story:
            print(f"fate {fate}; offset, length and sectors kept of each loose write, in their order", file=story)
            for number, (at, new, _) in enumerate(self.loose):
                sectors = len(new) // SECTOR
                some = dice.randrange(sectors + 1) if number == end else sectors * (number < end)
                kept = {"lost": 0, "kept": sectors, "writes": sectors * dice.randrange(2), "prefix": some}.get(fate)
                alive = [dice.random() < 0.5 if kept is None else n < kept for n in range(sectors)]
                for n in (n for n in range(sectors) if alive[n]):
                    os.pwrite(self.image, new[n * SECTOR:(n + 1) * SECTOR], at + n * SECTOR)
                lost += not any(alive)
                torn += any(alive) and not all(alive)
                print(at, len(new), "".join("01"[a] for a in alive), file=story)
        print(json.dumps(dict(writes=self.written, flushes=self.flushes, loose=len(self.loose), lost=lost, torn=torn)))


INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin; export PATH=/bin
mkdir -p /proc /sys /dev /tmp /state
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
# Which needs which is not the same in all kernels.
for round in 1 2 3 4; do for module in /modules/*; do insmod $module 2>/dev/null; done; done
mkdir /dev/power
for disk in /sys/block/vd*; do
    name=$(cat $disk/serial); ln -s /dev/${disk##*/} /dev/power/$name
    echo "@@ cache $name $(cat $disk/queue/write_cache)"
done
ip link set lo up; ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up; ip route add default via 10.0.2.2
ulimit -n 65536; ulimit -l unlimited
mount -t ext4 /dev/power/disk-STATE /state || echo "@@ broken: the file system of the control members"
if grep -q power.format /proc/cmdline; then
    cp -r /cluster/* /state/
    for n in NUMBERS; do
        ashlar device format --cluster /state/map.json --device-no $n /dev/power/disk-$n || echo "@@ broken: format $n"
    done
    sync
fi
# As the unit does: what fails is started again a second later.
forever() {
    who=$1; shift
    { while :; do "$@" </dev/null; echo "@@ ended $who $?"; sleep 1; done; } 2>&1 |
        while read -r line; do read up _ < /proc/uptime; echo "$up $who: $line"; done
}
echo "@@ starting"
for n in NUMBERS; do forever node-$n ashlar node run --config /state/node-$n/node.toml & done
export ASHLAR_CLUSTER=/state/map.json ASHLAR_ROOT_KEY_FILE=/state/root.key
if grep -q power.format /proc/cmdline; then
    until ashlar user add power --admin --json > /tmp/user 2>/tmp/why; do cat /tmp/why; sleep 1; done
    echo "@@ user $(tr -d '\n' < /tmp/user)"
fi
forever gateway ashlar gateway run --listen 0.0.0.0:9000
"""


def initramfs(options, kernel):
    """Busybox, the binary and what it is linked to, modules, and what the operator of a cluster makes."""
    def put(path, content):
        path = Path("root", path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.read_bytes() if isinstance(content, Path) else content.encode())
        path.chmod(0o700)

    linked = subprocess.run(["ldd", options.ashlar], capture_output=True, text=True).stdout
    for library in re.findall(r"(/\S+) \(0x", linked):
        put(library.lstrip("/"), Path(library))
    folder = kernel.parent.parent / "lib" / "modules" / kernel.name.removeprefix("vmlinuz-")
    if not folder.is_dir():
        fail(HELP % f"There are no modules of this kernel in {folder}.")
    for path in folder.rglob("*.ko*"):
        if path.name.split(".")[0].replace("-", "_") in MODULES:
            put(f"modules/{path.name.removesuffix('.xz')}", path)
            if path.suffix == ".xz":
                Path("root/modules", path.stem).write_bytes(lzma.decompress(path.read_bytes()))
    put("init", INIT.replace("STATE", str(STATE)).replace("NUMBERS", " ".join(map(str, range(1, NODES + 1)))))
    put("bin/busybox", Path(shutil.which("busybox")))
    put("bin/ashlar", Path(options.ashlar))
    spec = 'class = "4+2"\n'
    for n in range(1, NODES + 1):
        spec += f'[[node]]\nid = {n}\ncores = ["127.0.0.1:{7000 + n}"]\n[[node.device]]\nno = {n}\nsize = "{DEVICE}"\n'
    Path("cluster.toml").write_text(spec)
    run = lambda *args, **more: subprocess.run(args, check=True, stdout=subprocess.DEVNULL, **more)
    run(options.ashlar, "map", "new", "cluster.toml", "--out", "map.json", "--seed", str(options.seed))
    run(options.ashlar, "gateway", "root-key", "root.key")
    put("cluster/root.key", Path("root.key"))
    # A spec has no members of the control plane; a rig's map has them like this.
    whole = json.loads(Path("map.json").read_text())
    whole["control"] = [{"id": n, "address": f"127.0.0.1:{7100 + n}"} for n in range(1, CONTROL + 1)]
    put("cluster/map.json", json.dumps(whole, indent=2))
    for n in range(1, NODES + 1):
        config = f'node = {n}\nmap = "map.json"\npool_bytes = {32 << 20}\nindex_cache = {32 << 20}\n'
        config += f'[[device]]\nno = {n}\npath = "/dev/power/disk-{n}"\n'
        config += f'[control]\nid = {n}\ndir = "control"\n' * (n <= CONTROL)
        put(f"cluster/node-{n}/node.toml", config)
        put(f"cluster/node-{n}/map.json", json.dumps(whole, indent=2))
    run("busybox", "sh", "-c", "busybox find . | busybox cpio -o -H newc > ../initramfs", cwd="root")


class Machine:
    def __init__(self, options):
        self.options, self.boots, self.process, self.user = options, 0, None, None
        self.totals = collections.Counter()
    def boot(self, form=False, lie=False):
        self.boots += 1
        dice = random.Random(f"{self.options.seed} boot {self.boots}")
        alike = dice.choice(FATES) if dice.random() < 0.3 else None
        self.disks, arguments = [], []
        for n in range(1, STATE + 1):
            path = f"disk-{n}.sock"
            Path(path).unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
                listener.listen()
                order = json.dumps({"image": f"disk-{n}.img", "story": f"loose-{self.boots}-{n}", "lie": lie,
                                    "fate": alike or dice.choice(FATES), "fd": listener.fileno(),
                                    "seed": f"{self.options.seed} disk {self.boots} {n}"})
                self.disks.append(subprocess.Popen([sys.executable, SELF, "--disk", order], stdout=subprocess.PIPE,
                                                   pass_fds=[listener.fileno()]))
            # A cache that is written back, so that the guest knows that it has to flush.
            arguments += ["-blockdev", f"driver=nbd,node-name=n{n},server.type=unix,server.path={path}",
                          "-device", f"virtio-blk-pci,drive=n{n},serial=disk-{n},write-cache=on"]
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        log = f"console-{self.boots}.log"
        Path(log).touch()
        command = [self.options.qemu, "-machine", f"q35,accel={self.options.accel}", "-cpu", "max,la57=off",
                   "-smp", "2", "-m", "3072", "-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{log}",
                   "-kernel", self.options.kernel, "-initrd", "initramfs",
                   "-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on" + " power.format" * form,
                   "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{self.port}-:9000",
                   "-device", "virtio-net-pci,netdev=net", *arguments]
        with open("qemu.log", "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    def says(self, pattern, count=1):
        """Waits until it says so; what it said, or nothing if it does not."""
        end = time.monotonic() + PATIENCE
        while len(found := re.findall(pattern, self.console())) < count:
            if time.monotonic() > end or self.ended():
                return None
            time.sleep(0.02)
        return found
    def console(self):     # but not its newest line, which may be there in part
        return Path(f"console-{self.boots}.log").read_bytes().decode(errors="replace").rpartition("\n")[0]
    def ended(self):
        return self.process.poll() is not None
    def cut(self, then=lambda: None, flushless=0):
        """The power goes, so many seconds after the last flush that ends; what became of the disks' loose writes."""
        for disk in self.disks if flushless else ():
            disk.send_signal(signal.SIGUSR1)
        threading.Event().wait(flushless)
        self.process.kill()
        then()
        self.process.wait()
        self.process, total = None, collections.Counter()
        for disk in self.disks:
            total.update(json.loads(disk.communicate()[0]))
        self.totals.update(total, cuts=1)
        return total


class S3:
    """One connection. Nothing is asked twice: what became of a first request is not known to whoever makes a second."""
    def __init__(self, machine):
        self.machine, self.conn = machine, None
    def ask(self, method, path, query=(), body=b"", headers=()):
        """Status and body; status 0 if there was no answer, or part of one."""
        now, user, port = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), self.machine.user, self.machine.port
        text = "&".join("=".join(urllib.parse.quote(part, safe="") for part in pair) for pair in sorted(query))
        sha = hashlib.sha256(body).hexdigest()
        given = {**dict(headers), "host": f"127.0.0.1:{port}", "x-amz-content-sha256": sha, "x-amz-date": now}
        names, scope = ";".join(sorted(given)), f"{now[:8]}/us-east-1/s3/aws4_request"
        canonical = "\n".join([method, path, text, *(f"{k}:{given[k]}" for k in sorted(given)), "", names, sha])
        key = b"AWS4" + user["secret_access_key"].encode()
        signed = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        for part in [*scope.split("/"), signed]:
            key = hmac.digest(key, part.encode(), "sha256")
        given["authorization"] = (f"AWS4-HMAC-SHA256 Credential={user['access_key_id']}/{scope}, "
                                  f"SignedHeaders={names}, Signature={key.hex()}")
        try:
            if self.conn is None or self.conn.port != port:
                self.conn = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            self.conn.request(method, path + "?" * bool(text) + text, body, given)
            answer = self.conn.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            if self.conn:
                self.conn.close()
            return 0, b""
    def settle(self, method, path, query=(), good=(200, 404), end=None):
        end = end or time.monotonic() + PATIENCE
        while (answer := self.ask(method, path, query))[0] not in good:
            if time.monotonic() > end or self.machine.ended():
                break
            time.sleep(0.02)
        return answer


Version = collections.namedtuple("Version", "number size sha md5")
words = lambda version: f"version {version.number} ({version.size} bytes)" if version else "absent"


class Key:
    """What is known of one. `sure` is what was acknowledged last (None: it is not there); each of `maybe` was asked for
    later, and nobody knows whether it came to be. A key with one of those is left alone until it was read."""
    def __init__(self, name):
        self.name, self.path, self.sure, self.maybe, self.history = name, f"{BUCKET}/{name}", None, [], []
    def next(self, seed, dice):
        """Another content, unlike all others."""
        size = dice.randint(*dice.choice(((100, 4 << 10), (100, 4 << 10), (4 << 10, 128 << 10), (128 << 10, 2 << 20))))
        number = len(self.history) + 1
        body = random.Random(f"{seed} {self.name} {number}").randbytes(size)
        self.history.append(Version(number, size, hashlib.sha256(body).hexdigest(), hashlib.md5(body).hexdigest()))
        return self.history[-1], body
    def known(self, body):
        sha = hashlib.sha256(body).hexdigest()
        return next((version for version in self.history if version.sha == sha), None)


class Client:
    def __init__(self, machine, seed):
        self.machine, self.seed, self.lock = machine, seed, threading.Lock()
        self.keys = [[Key(f"worker-{w}/key-{k:03}") for k in range(KEYS)] for w in range(WORKERS)]
        self.connections = [S3(machine) for _ in range(WORKERS)]
        self.counts, self.violations = collections.Counter(), []
    def count(self, what):
        with self.lock:
            self.counts[what] += 1
    def violation(self, text):
        self.violations.append(text)
        print("VIOLATION:", text, flush=True)
    def everybody(self, act, *args):
        threads = [threading.Thread(target=act, args=(w, *args)) for w in range(WORKERS)]
        for thread in threads:
            thread.start()
        return threads
    def work(self, w, turn, stop):
        dice = random.Random(f"{self.seed} work {turn} {w}")
        while not stop.is_set() and (free := [key for key in self.keys[w] if not key.maybe]):
            self.change(self.connections[w], dice.choice(free), dice)
    def change(self, s3, key, dice):
        roll, wanted, alone = dice.random(), None, False
        if roll < 0.1:
            status, body = s3.ask("GET", key.path)
            found = key.known(body) if status == 200 else None
            if status in (200, 404) and (found != key.sure or status == 200 and not found):
                self.violation(f"{key.name} under load: {words(key.sure)} was acknowledged, and {words(found)} is read")
            return
        if roll < 0.25:
            status, _ = s3.ask("DELETE", key.path)
        else:
            wanted, body = key.next(self.seed, dice)
            alone = roll < 0.4
            status, _ = s3.ask("PUT", key.path, (), body, {"if-none-match": "*"} if alone else {})
        if alone and (status == 412 and not key.sure or status == 200 and key.sure):
            self.violation(f"{key.name}: a put that must not replace is answered {status}, over {words(key.sure)}")
        if status in (200, 204):
            key.sure = wanted
            self.count("objects" if wanted else "deletes")
        elif status == 0 or status >= 500:
            key.maybe.append(wanted)
            self.count("unknown")
        elif status != 412 or not alone:
            self.violation(f"{key.name}: status {status}")
    def verify(self):
        """Reads everything, and the list of it."""
        listed, end = self.list(), time.monotonic() + PATIENCE
        for thread in self.everybody(self.read, listed, end):
            thread.join()
        for name in listed.keys() - {key.name for keys in self.keys for key in keys}:
            self.violation(f"{name} is listed and was never put")
    def read(self, w, listed, end):
        for key in self.keys[w]:
            status, body = self.connections[w].settle("GET", key.path, end=end)
            found = key.known(body) if status == 200 else None
            if status not in (200, 404):
                self.violation(f"{key.name}, {words(key.sure)}: cannot be read within {PATIENCE} s: status {status}")
                if time.monotonic() > end:
                    return                 # of what is behind it nobody knows
            elif status == 200 and not found:
                self.violation(f"{key.name}: {len(body)} bytes that nobody ever put; acknowledged is {words(key.sure)}")
            elif found not in [key.sure, *key.maybe]:
                self.violation(f"{key.name}: {words(key.sure)} was acknowledged, and {words(found)} is read; unknown: "
                               f"{', '.join(map(words, key.maybe)) or 'nothing'}")
            elif listed.get(key.name) != (found and (found.size, found.md5)):
                self.violation(f"{key.name}: {words(found)} is read, and listed is {listed.get(key.name)}")
            else:
                self.count("read" if found else "absent")
                found == key.sure or self.count("came to be")
                key.sure, key.maybe = found, []
    def list(self):
        listed, more = {}, []
        while more is not None:
            status, body = self.connections[0].settle("GET", BUCKET, LOOK + more)
            if status != 200:
                self.violation(f"there is no list for {PATIENCE} s: status {status}")
                return listed
            page = xml.fromstring(body)
            for item in page.iterfind("{*}Contents"):
                name, size, tag = (item.findtext("{*}" + field) for field in ("Key", "Size", "ETag"))
                listed[name] = int(size), tag.strip('"')
            token = page.findtext("{*}NextContinuationToken")
            more = [("continuation-token", token)] if token else None
        return listed


class Rounds:
    def __init__(self, options):
        self.options, self.machine = options, Machine(options)
        self.client = Client(self.machine, options.seed)
        self.dice, self.recovery = random.Random(f"{options.seed} rounds"), 0          # seconds that the last one took
    def serve(self, first):
        """Waits until the store serves; whether it does."""
        machine, s3 = self.machine, self.client.connections[0]
        look = f"See console-{machine.boots}.log and qemu.log in {os.getcwd()}."
        if not machine.says("@@ starting"):
            fail(f"The machine does not boot. {look} Where kvm is there and runs no usual kernel, --accel tcg helps.")
        begin = time.monotonic()
        if not machine.says("@@ cache disk-[0-9]+ write back", STATE):
            fail(f"The guest does not take its disks' caches for volatile: it would flush nothing. {look}")
        if first:
            user = machine.says("@@ user (.*)") or fail(f"A store without any power cut does not serve. {look}")
            machine.user = json.loads(user[0])
        status, _ = s3.settle("PUT", BUCKET, good=(200,)) if first else s3.settle("GET", BUCKET, LOOK, (200,))
        self.recovery = time.monotonic() - begin
        if status != 200:
            self.client.violation(f"the store does not serve {PATIENCE} s after a power cut: status {status}")
        return status == 200
    def run(self):
        client, machine = self.client, self.machine
        try:
            for turn in range(self.options.rounds + 1):
                begin, hits = time.monotonic(), 0
                # The power goes again while what it did is mended.
                while turn and self.dice.random() < 0.25:
                    machine.boot()
                    machine.says("@@ starting")
                    threading.Event().wait(self.dice.uniform(0, 1.2 * self.recovery))
                    if self.amiss():
                        return
                    machine.cut()
                    hits += 1
                # Nothing could be mended if the disks had lied when they were formatted.
                machine.boot(form=not turn, lie=self.options.lie and turn > 0)
                if self.serve(not turn) and turn:
                    client.verify()
                read = time.monotonic() - begin
                if self.amiss() or turn == self.options.rounds:
                    return
                before = client.counts["objects"]
                loose = self.load(turn)
                # In case that the machine makes nothing good of what is left.
                images = [f"disk-{n}.img" for n in range(1, STATE + 1)]
                subprocess.run(["cp", "--sparse=always", "--reflink=auto", *images, "cut"], check=True)
                if self.amiss():
                    return
                print(f"round {turn + 1}: {hits} cuts of recoveries; the last took {self.recovery:.1f} s, all was read "
                      f"after {read:.1f} s; objects acknowledged {client.counts['objects'] - before}; at the cut loose "
                      f"writes {loose['loose']}, lost {loose['lost']}, torn {loose['torn']}; "
                      f"in all {time.monotonic() - begin:.1f} s", flush=True)
        finally:
            if machine.process:
                machine.cut()
    def amiss(self):
        if self.machine.process:
            said = [line for line in self.machine.console().splitlines() if AMISS.search(line)]
            for line in said + ["the machine ended"] * self.machine.ended():
                self.client.violation(f"boot {self.machine.boots}: {line}")
        return self.client.violations
    def load(self, turn):
        """Work until a random moment, and then the power goes under it."""
        client, stop, begin = self.client, threading.Event(), time.monotonic()
        # Where the machine is slow the moment comes later, or hardly anything would be under way.
        enough = client.counts["objects"] + self.dice.randint(10, 400)
        threads = client.everybody(client.work, turn, stop)
        while client.counts["objects"] < enough and time.monotonic() - begin < 12:
            stop.wait(0.01)
        stop.wait(self.dice.uniform(0, 0.3))
        self.amiss()
        loose = self.machine.cut(stop.set, self.dice.choice((0, self.dice.uniform(0, 0.5))))
        for thread in threads:
            thread.join()
        return loose


def prepare(options):
    """Finds what this needs, or says where it comes from; makes an empty folder, in which the rest happens."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"                          # not everybody's has mkfs
    options.qemu, busybox = shutil.which("qemu-system-x86_64"), shutil.which("busybox")
    kernels = sorted(Path("/boot").glob("vmlinuz-*"), key=lambda path: path.stat().st_mtime)
    kernel = Path(options.kernel).resolve() if options.kernel else kernels[-1] if kernels else None
    needs = {"qemu-system-x86_64": options.qemu, "mkfs.ext4": shutil.which("mkfs.ext4"),
             "a kernel that can be read": kernel and os.access(kernel, os.R_OK),
             # One that is linked to libraries names its interpreter.
             "a static busybox": busybox and b"/ld-linux" not in Path(busybox).read_bytes()[:4096]}
    if missing := [what for what, there in needs.items() if not there]:
        fail(HELP % f"Missing: {', '.join(missing)}.")
    options.kernel, options.ashlar = str(kernel), str(Path(options.ashlar).resolve())
    if not os.access(options.ashlar, os.X_OK):
        fail(f"{options.ashlar} is no program: cargo build --release")
    options.accel = options.accel or ("kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg")
    if options.accel == "tcg":
        print("without kvm the machine is emulated, and slow")
    Path(options.work).mkdir(parents=True, exist_ok=True)
    os.chdir(tempfile.mkdtemp(prefix="run-", dir=options.work))       # the names of sockets must be short
    Path("cut").mkdir()
    initramfs(options, kernel)
    for n in range(1, STATE + 1):
        with open(f"disk-{n}.img", "wb") as image:
            image.truncate(STATE_SIZE if n == STATE else DEVICE)
    subprocess.run(["mkfs.ext4", "-q", "-F", f"disk-{STATE}.img"], check=True)


def main():
    if sys.argv[1:2] == ["--disk"]:        # not for people: see Machine.boot
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return Disk(json.loads(sys.argv[2])).serve()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ashlar", required=True, help="the binary")
    parser.add_argument("--rounds", type=int, default=20, help="cuts under load; those of recoveries come on top")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of contents, requests, coins")
    parser.add_argument("--work", default="/var/tmp/ashlar-power-cut", help="a folder on a real disk")
    parser.add_argument("--kernel", help="vmlinuz, its modules beside it (../lib/modules); else the newest of /boot")
    parser.add_argument("--accel", choices=("kvm", "tcg"), help="what runs the machine; else kvm if there is /dev/kvm")
    parser.add_argument("--lie", action="store_true", help="flushes do nothing: violations must be found")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: fail("ended"))           # the machine ends with it
    prepare(options)
    print(f"seed {options.seed}, {options.rounds} rounds, in {os.getcwd()}", flush=True)
    rounds = Rounds(options)
    rounds.run()
    counts, totals, found = rounds.client.counts, rounds.machine.totals, len(rounds.client.violations)
    if found:
        print(f"kept in {os.getcwd()}: cut/disk-N.img as the last cut under load left them, disk-N.img as they are, "
              "loose-BOOT-N what the cuts took, console-BOOT.log what was said")
    else:
        shutil.rmtree(os.getcwd())
    print(f"power cuts {totals['cuts']}, objects acknowledged {counts['objects']}, deletes {counts['deletes']}, "
          f"unknown {counts['unknown']} (came to be {counts['came to be']}), read back {counts['read']}, "
          f"absent as they should {counts['absent']}, writes {totals['writes']}, flushes {totals['flushes']}, "
          f"writes lost by the cuts {totals['lost']}, torn {totals['torn']}, {found} violations"
          + (": they were found, as the disks lied" if found else ", THOUGH THE DISKS LIED") * options.lie)
    sys.exit(1 if found else 3 if options.lie else 0)


if __name__ == "__main__":
    main()
