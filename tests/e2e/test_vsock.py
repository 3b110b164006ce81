"""virtio-vsock: programs of the guest and of the host reach each other by Unix sockets, also after a restore."""
import hashlib
import os
import pathlib
import socket
import stat
import subprocess
import threading

from control import ControlSocket
from guest_agent import agent_initrd
from harness import ENGINE, Folder, NACRE, Nacre, PROMPT, ROOT, boot_arguments, main

PATIENCE = 300
SIZE = 3_000_000


def echo(peer):
    """Sends back what comes, while it still comes."""
    while piece := peer.recv(65536):
        peer.sendall(piece)
    peer.shutdown(socket.SHUT_WR)


class Vsock(Folder):
    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(self.folder.name)
        subprocess.run(["g++", "-O1", "-static", "-o", self.path / "vsock-cat", ROOT / "tests/e2e/vsock_cat.cc"], check=True,
                       timeout=600)
        (self.path / "manifest").write_text("file vsock-cat bin/vsock-cat 755\n")
        subprocess.run([NACRE.parent / "nacre-cpio", self.path / "manifest", self.path / "cat.img"], check=True, timeout=600)

    def boot(self, *options):
        return Nacre("run", *boot_arguments("cloud-amd64", "nacre.net=off"), "--initrd", agent_initrd(), "--initrd",
                     self.path / "cat.img", "--engine", ENGINE, "--vsock", self.path / "v", *options)

    def start(self, guest):
        guest.expect(PROMPT, PATIENCE)
        self.assertEqual(guest.command_output("for m in $(cat /opt/modules/order); do insmod /opt/modules/${m##*/} "
                                              "2>/dev/null; done; ls /dev/vsock"), "/dev/vsock")

    def serve(self, name):
        """An echo at the socket to which the guest's connections to a port lead, for one of them."""
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.settimeout(PATIENCE)
        listener.bind(str(self.path / name))
        listener.listen()

        def run():
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(PATIENCE)
                echo(peer)
        server = threading.Thread(target=run, daemon=True)
        server.start()
        return server

    def connect(self, port, name="v"):
        """A connection to the guest's port; nothing where nobody listens."""
        peer = socket.socket(socket.AF_UNIX)
        self.addCleanup(peer.close)
        peer.settimeout(PATIENCE)
        peer.connect(str(self.path / name))
        peer.sendall(f"CONNECT {port}\n".encode())
        answer = b""
        while not answer.endswith(b"\n"):
            piece = peer.recv(1)
            if not piece:
                self.assertEqual(answer, b"")
                return None
            answer += piece
        self.assertRegex(answer, rb"^OK \d+\n$")
        return peer

    def check_from_guest(self, guest, name):
        server = self.serve(name)
        guest.command_output(f"head -c {SIZE} /dev/urandom >/tmp/sent")
        self.assertEqual(guest.command_output("vsock-cat 5000 </tmp/sent >/tmp/back; echo $?", PATIENCE), "0")
        self.assertEqual(guest.command_output("cmp /tmp/sent /tmp/back && echo same", PATIENCE), "same")
        server.join(PATIENCE)

    def check_from_host(self, guest, name="v"):
        guest.send("vsock-cat -l 6000; echo ended $?\n")
        guest.expect("listens", PATIENCE)
        peer = self.connect(6000, name)
        data = os.urandom(SIZE)
        sender = threading.Thread(target=lambda: (peer.sendall(data), peer.shutdown(socket.SHUT_WR)), daemon=True)
        sender.start()
        back = b""
        while piece := peer.recv(65536):
            back += piece
        self.assertEqual(hashlib.sha256(back).hexdigest(), hashlib.sha256(data).hexdigest())
        sender.join(PATIENCE)
        guest.expect("ended 0", PATIENCE)
        guest.expect(PROMPT, PATIENCE)

    def test_both_ways(self):
        with self.boot() as guest:
            self.start(guest)
            self.assertEqual(stat.S_IMODE((self.path / "v").stat().st_mode), 0o600)
            self.check_from_guest(guest, "v_5000")
            self.check_from_host(guest)
            self.assertIn("connect", guest.command_output("vsock-cat 5001 </dev/null"))
            self.assertIsNone(self.connect(6001))
            for line in (b"CONNECT x\n", b"CONNECT 99999999999999999999\n", b"\n", b"C" * 1000):
                with socket.socket(socket.AF_UNIX) as peer:
                    peer.settimeout(PATIENCE)
                    peer.connect(str(self.path / "v"))
                    peer.sendall(line)
                    try:
                        self.assertEqual(peer.recv(1), b"")
                    except ConnectionResetError:
                        pass  # what it sent was not read to its end
            self.check_from_host(guest)
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)
        self.assertFalse((self.path / "v").exists())

    def test_a_restored_guest_has_no_old_connections(self):
        with self.boot("--control", self.path / "c") as guest:
            self.start(guest)
            guest.send("vsock-cat -l 6000; echo ended $?\n")
            guest.expect("listens", PATIENCE)
            peer = self.connect(6000)
            peer.sendall(b"x")
            self.assertEqual(peer.recv(1), b"x")
            with ControlSocket(self.path / "c") as control:
                control.call("vm.snapshot", path=str(self.path / "s"))
            peer.sendall(b"y")
            self.assertEqual(peer.recv(1), b"y")
            with Nacre("run", "--restore", self.path / "s", "--engine", ENGINE, "--vsock", self.path / "w") as other:
                other.expect("ended 1", PATIENCE)
                other.expect(PROMPT, PATIENCE)
                self.check_from_host(other, "w")
                self.check_from_guest(other, "w_5000")
                other.send("poweroff -f\n")
                self.check_exit(other, 0)
            peer.close()
            guest.expect("ended 0", PATIENCE)
            guest.expect(PROMPT, PATIENCE)
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)


if __name__ == "__main__":
    main()
