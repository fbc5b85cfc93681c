# SPDX-License-Identifier: BSD-3-Clause
"""A small Linux guest under QEMU with vhost-user-blk disks, driven from Python.

    with Guest([Disk("/tmp/x/vhost.0", queues=4)], memory="hugepages") as guest:
        print(guest.check("lsblk -b"))
        guest.qmp("system_reset")

or from a shell, which prints what it does (--help):

    guest.py --disk /tmp/x/vhost.0,num-queues=4 lsblk 'mkfs.ext4 -q /dev/vda'

The kernel and initramfs come from mkguest.sh. The serial port is the console, kept in a file for when
something goes wrong; a virtio-serial port carries commands and answers (see init; a second
UART lost interrupts under TCG). A script runs in the guest in the background, so several
may be under way: start() one, run() others, wait() for the first. One thread of the host
uses a Guest at a time.

A Guest is one QEMU. To migrate, spawn() another with incoming=True and the same memory and
devices, then guest.migrate_to(it), which takes over the scripts under way.

QEMU dies with us: by close(), at exit, or by the kernel if we are killed.

Environment: QEMU, the program (qemu-system-x86_64; or the path of another version's, or of a
script that ends in an exec of it); GUEST_ACCEL=kvm.
"""

import argparse
import atexit
import base64
import ctypes
import functools
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
QEMU = os.environ.get("QEMU", "qemu-system-x86_64")
ACCEL = os.environ.get("GUEST_ACCEL", "tcg")
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl


class Unavailable(Exception):
    """The guest cannot be had on this machine; str() is the reason, for a skip."""


class GuestError(Exception):
    """The guest did not do what was asked: it timed out, QEMU died, a command failed."""


def images():
    """Build the guest where needed; return (kernel, initramfs). Unavailable if it cannot."""
    if not shutil.which(QEMU):
        raise Unavailable("no %s: apt-get install qemu-system-x86" % QEMU)
    done = subprocess.run([os.path.join(HERE, "mkguest.sh")], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["mkguest.sh failed"])[-1]
        if done.returncode == 77:
            raise Unavailable(last.replace("skip: guest: ", ""))
        raise GuestError("mkguest.sh: " + done.stderr.strip())
    kernel, initramfs = done.stdout.split()
    return kernel, initramfs


@functools.lru_cache(maxsize=None)
def qemu_version():
    """(7, 2), say."""
    out = subprocess.run([QEMU, "--version"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         universal_newlines=True).stdout
    return tuple(int(n) for n in re.search(r"version (\d+)\.(\d+)", out).groups())


def has_property(device, name):
    """Whether this QEMU's device has such a property; False without a QEMU."""
    if not shutil.which(QEMU):
        return False
    done = subprocess.run([QEMU, "-device", device + ",help"], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          universal_newlines=True)
    return any(line.split("=")[0].strip() == name for line in done.stdout.splitlines())


def hugetlbfs():
    """Mount point of a hugetlbfs with 2 MiB pages, or Unavailable."""
    with open("/proc/mounts") as f:
        for line in f:
            where, kind, options = line.split()[1:4]
            if kind == "hugetlbfs" and "pagesize=1024M" not in options:
                return where
    raise Unavailable("hugetlbfs is not mounted: HUGEMEM=1024 ./scripts/setup.sh")


def free_hugepages():
    with open("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages") as f:
        return int(f.read())


class Disk:
    """One vhost-user-blk-pci device. props: its QEMU properties, named as QEMU does.

    reconnect: after how many seconds QEMU tries again to connect to a target that went away;
    None: never.
    """

    def __init__(self, path, queues=1, reconnect=None, **props):
        self.path = path
        self.queues = queues
        self.reconnect = reconnect
        self.props = props


class Guest:
    def __init__(self, disks, memory="hugepages", size=512, smp=2, tmp=None, incoming=False):
        self.disks = list(disks)
        self.memory = memory
        self.size = size
        self.smp = smp
        self.tmp = tmp
        self.incoming = incoming
        self._own_tmp = None
        self._proc = None
        self._serial = self._qmp = None
        self._in = b""
        self._qmp_in = b""
        self._answers = {}
        self._ready = 0
        self._next_id = 1
        self.events = []
        self.boot_seconds = None
        self.watch = lambda: None       # called about once a second of waiting; may raise

    # ---- life -----------------------------------------------------------------------

    def memory_args(self):
        size = "size=%dM" % self.size
        if self.memory == "hugepages":
            free = free_hugepages()
            if free * 2 < self.size:
                raise Unavailable("needs %d MiB in free huge pages, there are %d: "
                                  "HUGEMEM=1024 ./scripts/setup.sh" % (self.size, free * 2))
            backend = "memory-backend-file,mem-path=%s,prealloc=on" % hugetlbfs()
        elif self.memory == "memfd":
            backend = "memory-backend-memfd"
        else:
            backend = "memory-backend-file,mem-path=" + self.memory
        return ["-object", "%s,id=mem,%s,share=on" % (backend, size),
                "-machine", "memory-backend=mem"]

    def argv(self):
        """The QEMU command line; needs self.tmp."""
        kernel, initramfs = images()
        # /dev/kvm may be there and not work (nested, unsupported), so it is not probed for.
        kvm = ACCEL == "kvm"
        args = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc",
                "-accel", "kvm" if kvm else "tcg,thread=multi",
                "-cpu", "host" if kvm else "max,erms=off,fsrm=off", "-smp", str(self.smp),
                "-m", "%dM" % self.size]
        args += self.memory_args()
        args += ["-kernel", kernel, "-initrd", initramfs, "-append",
                 "console=ttyS0 quiet mitigations=off no_timer_check "
                 "random.trust_cpu=on init_on_alloc=0 rcupdate.rcu_expedited=1",
                 "-chardev", "file,id=console,path=%s/console" % self.tmp,
                 "-serial", "chardev:console",
                 "-chardev", "socket,id=agent,path=%s/agent,server=on,wait=off" % self.tmp,
                 "-device", "virtio-serial-pci,max_ports=2",
                 "-device", "virtserialport,chardev=agent,name=agent",
                 "-qmp", "unix:%s/qmp,server=on,wait=off" % self.tmp]
        for i, disk in enumerate(self.disks):
            chardev = "socket,id=char%d,path=%s" % (i, disk.path)
            if disk.reconnect is not None:
                # Newer ones have only the second, older ones only the first.
                new = qemu_version() >= (9, 2)
                chardev += (",reconnect-ms=%d000" if new else ",reconnect=%d") % disk.reconnect
            args += ["-chardev", chardev]
            device = "vhost-user-blk-pci,id=disk%d,chardev=char%d,num-queues=%d" % (
                i, i, disk.queues)
            for key, value in disk.props.items():
                device += ",%s=%s" % (key, value)
            args += ["-device", device]
        if self.incoming:
            args += ["-incoming", "unix:%s/incoming" % self.tmp]
        return args

    def boot(self, timeout=60):
        self.spawn()
        try:
            self.wait_ready(timeout)
        except BaseException:
            self.close()
            raise
        self.boot_seconds = time.monotonic() - self._began
        return self

    def spawn(self):
        """Start QEMU; the guest need not be up yet when this returns."""
        if self.tmp is None:
            self.tmp = self._own_tmp = tempfile.mkdtemp(prefix="guest.", dir="/tmp")
        args = self.argv()
        parent = os.getpid()

        def die_with_parent():
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        self._began = time.monotonic()
        atexit.register(self.close)
        try:
            with open(self.tmp + "/qemu.log", "wb") as log:
                self._proc = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=log,
                                              stderr=log, preexec_fn=die_with_parent)
            self._qmp = self._connect("qmp")
            self._serial = self._connect("agent")
            self._qmp_handshake()
        except BaseException:
            self.close()
            raise
        return self

    def wait_ready(self, timeout=60):
        """Wait until the guest's init serves commands: at boot, and after a reset."""
        self._pump_until(lambda: self._ready > 0, timeout, "the guest to boot")
        self._ready -= 1

    def close(self):
        """Kill QEMU (never politely: nothing in the guest is worth it), remove the files."""
        atexit.unregister(self.close)
        for s in (self._serial, self._qmp):
            if s is not None:
                s.close()
        self._serial = self._qmp = None
        if self._proc is not None:
            self._proc.kill()
            self._proc.wait()
            self._proc = None
        if self._own_tmp is not None:
            shutil.rmtree(self._own_tmp, ignore_errors=True)
            self.tmp = self._own_tmp = None

    def __enter__(self):
        return self.boot() if self._proc is None else self

    def __exit__(self, *_):
        self.close()

    @property
    def pid(self):
        return self._proc.pid

    def alive(self):
        return self._proc is not None and self._proc.poll() is None

    def console(self, lines=25):
        """The end of the kernel's console and of what QEMU itself said."""
        text = ""
        for name in ("qemu.log", "console"):
            try:
                with open("%s/%s" % (self.tmp, name), errors="replace") as f:
                    tail = f.read().splitlines()[-lines:]
            except OSError:
                continue
            if tail:
                text += "--- %s\n%s\n" % (name, "\n".join(tail))
        return text

    # ---- commands in the guest ------------------------------------------------------

    def start(self, script):
        """Start a shell script in the guest; returns a ticket for wait()."""
        ticket = self._next_id
        self._next_id += 1
        line = b"%d %s\n" % (ticket, base64.b64encode(script.encode()))
        self._serial.sendall(line)
        self._answers[ticket] = None
        return ticket

    def done(self, ticket):
        """Has the script ended? Never waits."""
        self._pump(0)
        return self._answers[ticket] is not None

    def wait(self, ticket, timeout=60):
        """(exit status, output) of a script that start() started."""
        self._pump_until(lambda: self._answers[ticket] is not None, timeout, "a guest command")
        return self._answers.pop(ticket)

    def run(self, script, timeout=60):
        return self.wait(self.start(script), timeout)

    def check(self, script, timeout=60):
        """Output of a script that must succeed."""
        return self.check_wait(self.start(script), timeout, script)

    def check_wait(self, ticket, timeout=60, script="the script"):
        status, out = self.wait(ticket, timeout)
        if status:
            raise GuestError("in the guest: %s\nexit status %d\n%s%s" % (
                script, status, out, self.console(12)))
        return out.strip()

    # ---- QMP ------------------------------------------------------------------------

    def qmp(self, command, timeout=30, **arguments):
        request = {"execute": command}
        if arguments:
            request["arguments"] = {k.replace("_", "-"): v for k, v in arguments.items()}
        self._qmp.sendall(json.dumps(request).encode())
        answer = self._qmp_wait(lambda m: "return" in m or "error" in m, timeout, command)
        if "error" in answer:
            raise GuestError("QMP %s: %s" % (command, answer["error"]["desc"]))
        return answer["return"]

    def _has_event(self, name):
        """Was there such an event? Takes what QMP has to say, but does not wait."""
        while b"\n" in self._qmp_in or select.select([self._qmp], [], [], 0)[0]:
            self._qmp_wait(lambda m: True, 5, "an event")
        return any(event["event"] == name for event in self.events)

    def wait_event(self, name, timeout=30):
        """The oldest event of this name not yet taken, waited for where needed."""
        for i, event in enumerate(self.events):
            if event["event"] == name:
                return self.events.pop(i)
        self._qmp_wait(lambda m: m.get("event") == name, timeout, "event " + name)
        return self.wait_event(name, 0)

    def reset(self, timeout=60):
        """system_reset: the guest starts anew, scripts under way are forgotten."""
        self._pump(0)
        self._ready = 0
        self._answers.clear()
        self.qmp("system_reset")
        self.wait_ready(timeout)

    # ---- migration ------------------------------------------------------------------

    def migrate_start(self, to, postcopy=False, **parameters):
        """Start a live migration; parameters: those of migrate-set-parameters."""
        while self._has_event("MIGRATION"):
            self.wait_event("MIGRATION")
        self.qmp("migrate-set-capabilities",
                 capabilities=[{"capability": "events", "state": True},
                               {"capability": "postcopy-ram", "state": postcopy}])
        if postcopy:
            to.qmp("migrate-set-capabilities",
                   capabilities=[{"capability": "postcopy-ram", "state": True}])
        self.qmp("migrate-set-parameters", **parameters)
        self.qmp("migrate", uri="unix:%s/incoming" % to.tmp)

    def migrate_cancel(self, timeout=30):
        while self._has_event("MIGRATION"):
            self.wait_event("MIGRATION")
        self.qmp("migrate_cancel")
        status = None
        while status != "cancelled":
            status = self.wait_event("MIGRATION", timeout)["data"]["status"]
            if status == "completed":
                raise GuestError("the migration was too fast to be cancelled")

    def migrate_to(self, to, timeout=60, postcopy=None, **parameters):
        """Live migration to a QEMU that waits for it; query-migrate's last answer.

        postcopy: the guest goes over after so many seconds, and what is left of its memory
        follows; None: its memory goes first.

        The scripts under way are now those of `to`, and so is `watch`; this Guest is closed.
        When it fails, GuestError with QEMU's reason, and this guest is still what it was.
        """
        self.migrate_start(to, postcopy is not None, **parameters)
        deadline = time.monotonic() + timeout
        switch = time.monotonic() + (postcopy or 0)
        status = None
        while status not in ("completed", "failed", "cancelled"):
            if time.monotonic() > deadline:
                raise GuestError("migration: %s after %d s: %s\n%s%s" % (
                    status, timeout, self.qmp("query-migrate"), self.console(), to.console()))
            self._pump(0.02)
            self.watch()
            while self._has_event("MIGRATION"):
                status = self.wait_event("MIGRATION")["data"]["status"]
            if postcopy is not None and status == "active" and time.monotonic() > switch:
                postcopy = None
                self.qmp("migrate-start-postcopy")
        info = self.qmp("query-migrate")
        if status != "completed":
            raise GuestError("migration %s: %s\n%s%s" % (
                status, info.get("error-desc"), self.console(), to.console()))
        to.wait_event("RESUME", timeout)
        state = self.qmp("query-status")["status"]
        if state != "postmigrate":
            raise GuestError("the migrated guest's source is in state " + state)
        # What the guest said here, perhaps half a line, goes on at the other end.
        while select.select([self._serial], [], [], 0)[0]:
            self._pump(0)
        to._in, to._answers, to._ready = self._in, self._answers, self._ready
        to._next_id, to.watch, to.boot_seconds = self._next_id, self.watch, self.boot_seconds
        self.close()
        return info

    # ---- inside ---------------------------------------------------------------------

    def _connect(self, name):
        deadline = time.monotonic() + 20
        path = "%s/%s" % (self.tmp, name)
        while True:
            s = socket.socket(socket.AF_UNIX)
            try:
                s.connect(path)
                return s
            except OSError:
                s.close()
                if not self.alive() or time.monotonic() > deadline:
                    raise GuestError("QEMU did not start\n" + self.console())
                time.sleep(0.02)

    def _pump_until(self, condition, timeout, what):
        deadline = time.monotonic() + timeout
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                raise GuestError("waited %d s for %s\n%s" % (timeout, what, self.console()))
            self._pump(min(left, 1))
            self.watch()

    def _pump(self, timeout):
        """Take what the guest sent within the timeout and sort it into answers."""
        if not select.select([self._serial], [], [], timeout)[0]:
            return
        data = self._serial.recv(65536)
        if not data:
            raise GuestError("QEMU is gone\n" + self.console())
        self._in += data
        while True:
            line, newline, rest = self._in.partition(b"\n")
            if not newline:
                return
            match = re.search(rb"#(?:(ready)|(\d+) (\d+) (\d+))\s*$", line)
            if match and match.group(2):
                ticket, status, length = (int(n) for n in match.groups()[1:])
                if len(rest) < length:
                    return
                if ticket in self._answers:
                    self._answers[ticket] = (status, rest[:length].decode(errors="replace"))
                rest = rest[length:]
            elif match:
                self._ready += 1
            self._in = rest

    def _qmp_handshake(self):
        self._qmp_wait(lambda m: "QMP" in m, 30, "greeting")
        self.qmp("qmp_capabilities")

    def _qmp_wait(self, wanted, timeout, what):
        deadline = time.monotonic() + timeout
        while True:
            line, newline, rest = self._qmp_in.partition(b"\n")
            if newline:
                self._qmp_in = rest
                message = json.loads(line)
                if "event" in message:
                    self.events.append(message)
                if wanted(message):
                    return message
                continue
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._qmp], [], [], left)[0]:
                raise GuestError("QMP: waited %d s for %s\n%s" % (timeout, what, self.console()))
            data = self._qmp.recv(65536)
            if not data:
                raise GuestError("QEMU is gone (QMP %s)\n%s" % (what, self.console()))
            self._qmp_in += data


# ---- from a shell ---------------------------------------------------------------------------


def _disk(text):
    path, _, rest = text.partition(",")
    props = dict(p.partition("=")[::2] for p in rest.split(",") if p)
    return Disk(path, int(props.pop("num-queues", 1)), **props)


def _pretty(argv):
    """A command line as one would type it, an option a line."""
    text = ""
    for word in argv:
        new = word.startswith("-") and text
        text += (" \\\n      " if new else " " if text else "") + shlex.quote(word)
    return text


def main():
    parser = argparse.ArgumentParser(
        description="Boot a small guest on vhost-user-blk disks and run commands in it; "
        "exits with 1 at the first that fails.")
    parser.add_argument("--disk", action="append", required=True, type=_disk,
                        metavar="SOCKET[,PROPERTY=VALUE...]",
                        help="a controller's socket, and properties of vhost-user-blk-pci")
    parser.add_argument("--memory", default="hugepages",
                        help="hugepages (the default), memfd, or a file's or directory's path")
    parser.add_argument("--size", type=int, default=512, help="of the guest's memory, in MiB")
    parser.add_argument("--smp", type=int, default=2, help="number of vCPUs")
    parser.add_argument("--timeout", type=int, default=120, help="of each command, in seconds")
    parser.add_argument("commands", nargs="*", help="shell scripts to run in the guest")
    args = parser.parse_args()
    # Ctrl-C and kill end with the files removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    tmp = tempfile.mkdtemp(prefix="guest.", dir="/tmp")
    guest = Guest(args.disk, args.memory, args.size, args.smp, tmp)
    try:
        print("  $ " + _pretty(guest.argv()), flush=True)
        guest.boot()
        print("    booted in %.1f s" % guest.boot_seconds, flush=True)
        for command in args.commands:
            print("  guest# " + command, flush=True)
            began = time.monotonic()
            status, out = guest.run(command, args.timeout)
            for line in out.splitlines():
                print("    " + line)
            print("    (%.1f s%s)" % (time.monotonic() - began,
                                      ", EXIT STATUS %d" % status if status else ""), flush=True)
            if status:
                return 1
    except (GuestError, Unavailable) as error:
        print("guest.py: %s" % error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        guest.close()
        shutil.rmtree(tmp, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
