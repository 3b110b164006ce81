"""User-mode network: DHCP, names, TCP from the guest to the host's loopback, port forwarding to the guest."""
import hashlib
import http.server
import random
import socket
import threading
import time

from harness import ENGINE, GuestCase, Nacre, PROMPT, boot_arguments, free_port, main


class Server:
    """Serves one block of bytes on the host's loopback."""

    def __init__(self, content):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_PUT(self):
                self.server.received = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(201)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Network(GuestCase):
    SIZE = 4 << 20
    SECONDS = 60

    def setUp(self):
        self.content = random.Random(self.SIZE).randbytes(self.SIZE)
        self.server = Server(self.content)
        self.addCleanup(self.server.close)

    def test_fetch_from_the_hosts_loopback(self):
        with Nacre("run", "--engine", ENGINE, *boot_arguments("cloud-amd64")) as guest:
            guest.expect(PROMPT)
            self.assertIn("inet 10.0.2.", guest.command_output("ip -4 addr show eth0"))
            digest = guest.command_output(f"wget -q -O - http://10.0.2.2:{self.server.port}/ | sha256sum", self.SECONDS)
            self.assertEqual(digest.split()[0], hashlib.sha256(self.content).hexdigest())
            self.assertIn("nameserver 10.0.2.3", guest.command_output("cat /etc/resolv.conf"))
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)

    def test_ping_the_gateway(self):
        with Nacre("run", "--engine", ENGINE, *boot_arguments("cloud-amd64")) as guest:
            guest.expect(PROMPT)
            self.assertIn("3 packets received", guest.command_output("ping -c 3 -i 0.2 10.0.2.2"))
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)

    def test_port_forward_answers(self):
        port = free_port()
        with Nacre("run", "--engine", ENGINE, "--net", f"user,forward=tcp:127.0.0.1:{port}-:80",
                   *boot_arguments("cloud-amd64")) as guest:
            guest.expect(PROMPT)
            guest.command_output("mkdir /tmp/www; head -c 100000 /dev/urandom >/tmp/www/f; httpd -p 80 -h /tmp/www")
            expected = guest.command_output("sha256sum </tmp/www/f").split()[0]
            answer = b""
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
                    client.sendall(b"GET /f HTTP/1.0\r\n\r\n")
                    answer = b""
                    while data := client.recv(65536):
                        answer += data
                if answer:
                    break
                time.sleep(0.2)
            head, _, body = answer.partition(b"\r\n\r\n")
            self.assertIn(b"200", head.split(b"\r\n")[0])
            self.assertEqual(hashlib.sha256(body).hexdigest(), expected)
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)

    def test_port_in_use_is_told(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with Nacre("run", "--net", f"user,forward=tcp:127.0.0.1:{port}-:22", *boot_arguments("cloud-amd64")) as guest:
                self.check_exit(guest, 1, 30)
                self.assertIn(str(port), guest.errors)

    def test_e1000(self):
        with socket.create_server(("127.0.0.1", 0)) as listener, \
                Nacre("run", "--engine", ENGINE, "--net", "user,model=e1000,mac=52:54:00:aa:bb:cc",
                      *boot_arguments("amd64")) as guest:
            guest.expect(PROMPT)
            guest.command_output("modprobe e1000; ip link set eth0 up; "
                                 "udhcpc -i eth0 -q -n -t 5 -T 2 -s /etc/udhcpc.script", self.SECONDS)
            self.assertEqual(guest.command_output("cat /sys/class/net/eth0/address").strip(), "52:54:00:aa:bb:cc")
            digest = guest.command_output(f"wget -q -O - http://10.0.2.2:{self.server.port}/ | tee /tmp/f | sha256sum",
                                          self.SECONDS)
            expected = hashlib.sha256(self.content).hexdigest()
            self.assertEqual(digest.split()[0], expected)
            # And back: the driver leaves checksums and segmentation to the card.
            guest.send(f"nc 10.0.2.2 {listener.getsockname()[1]} </tmp/f; echo se""nt\n")
            listener.settimeout(self.SECONDS)
            received = hashlib.sha256()
            with listener.accept()[0] as connection:
                connection.settimeout(self.SECONDS)
                left = len(self.content)
                while left > 0 and (data := connection.recv(min(left, 1 << 16))):
                    received.update(data)
                    left -= len(data)
            self.assertEqual(received.hexdigest(), expected)
            guest.expect("sent")
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)

    def test_no_network(self):
        text = self.run_lines(["ls /sys/class/net; poweroff -f"], "--engine", ENGINE, "--net", "none",
                              *boot_arguments("cloud-amd64"))
        self.assertNotIn("eth0", text)


if __name__ == "__main__":
    main()
