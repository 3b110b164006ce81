"""A client of the control socket (docs/control.md), and switching engines by it."""
import json
import socket
import statistics
import time


class Refused(Exception):
    pass


FORK = "reseeded due to virtual machine fork"


def another_generation(guest, control):
    """A Linux guest that starts (not the cloud kernel, which lacks the driver) seeds its random numbers anew when it is told that it is a copy, not before."""
    guest.expect("/root# ", 300)
    assert guest.command_output(f"dmesg | grep -c '{FORK}'") == "0"
    control.call("vm.new_generation")
    guest.command_output(f"until dmesg | grep -q '{FORK}'; do usleep 50000; done", 300)


class ControlSocket:
    def __init__(self, path, seconds=60):
        """Connects as soon as the VM listens."""
        deadline = time.monotonic() + seconds
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                self.socket.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        self.socket.settimeout(300)
        self.lines = self.socket.makefile("r", encoding="utf-8")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lines.close()
        self.socket.close()

    def call(self, method, **params):
        request = {"jsonrpc": "2.0", "method": method, "params": params, "id": 1}
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(self.lines.readline())
        if "error" in answer:
            raise Refused(f"{method}: {answer['error']}")
        return answer["result"]

    def tour(self, engines, times, pause_s):
        """From engine to engine in turns, with a pause after each that `pause_s(i)` gives; a text for each pair of engines
        and the pauses of the guest in milliseconds."""
        pauses = {}
        for i in range(times):
            done = self.call("engine.switch", engine=engines[i % len(engines)])
            pauses.setdefault(f"{done['from']} -> {done['engine']}", []).append(done["pause_us"] / 1000)
            time.sleep(pause_s(i))
        everything = [pause for some in pauses.values() for pause in some]
        rows = [f"  {name:<16} {len(some):>4} switches, the guest stood still for {statistics.median(some):.1f} ms "
                f"(median), {max(some):.1f} ms (longest)" for name, some in [*pauses.items(), ("all", everything)]]
        return "\n".join(rows), everything
