"""Files and guests that mean harm: a clear error and the right exit status, never a crash of Nacre."""
import os
import pathlib
import random
import subprocess

import bare
from control import ControlSocket
from harness import Folder, NACRE, Nacre, guest_file, main

class HostileFiles(Folder):
    def check_refused(self, path, *arguments):
        status, errors = self.run_status(*arguments)
        self.assertEqual(status, 1, errors)
        self.assertIn(str(path), errors)

    def kernels(self):
        real = guest_file("cloud-amd64", "vmlinuz").read_bytes()
        noise = random.Random(1).randbytes(1 << 20)
        yield "empty", b""
        yield "one-byte", b"\x7f"
        yield "noise", noise
        yield "zeros", bytes(1 << 20)
        for size in (0x1F0, 0x202, 0x264, 0x4000, len(real) // 2):
            yield f"truncated-{size}", real[:size]
        huge = bytearray(real)
        huge[0x1F4:0x1F8] = b"\xff\xff\xff\xff"  # syssize
        yield "syssize", bytes(huge)
        setup = bytearray(real)
        setup[0x1F1] = 0xFF  # setup_sects
        yield "setup-sects", bytes(setup[:0x8000])
        good = bare.build(pathlib.Path(self.folder.name) / "good", bare.debug_exit(1)).read_bytes()
        for name, at, value in (("phnum", 44, b"\xff\xff"), ("phoff", 28, b"\xf0\xff\xff\xff"),
                                ("paddr", 0x34 + 12, b"\x00\xf0\xff\xff"), ("memsz", 0x34 + 20, b"\xff\xff\xff\xff"),
                                ("filesz", 0x34 + 16, b"\xff\xff\xff\x7f"), ("offset", 0x34 + 4, b"\xff\xff\xff\xff")):
            broken = bytearray(good)
            broken[at:at + len(value)] = value
            yield f"elf-{name}", bytes(broken)

    def test_kernels(self):
        for name, content in self.kernels():
            with self.subTest(kernel=name):
                path = self.write(name, content)
                self.check_refused(path, "--kernel", path)

    def test_huge_kernel(self):
        path = self.write("kernel", b"\x7fELF")
        os.truncate(path, 64 << 30)
        self.check_refused(path, "--kernel", path)

    def test_initrd_larger_than_memory(self):
        path = self.write("initrd", b"")
        os.truncate(path, 8 << 30)
        self.check_refused(path, "--kernel", guest_file("cloud-amd64", "vmlinuz"), "--initrd", path, "--memory", "256M")

    def test_folders_and_devices_are_no_files(self):
        for path in (self.folder.name, "/dev/null"):
            with self.subTest(path=path):
                self.check_refused(path, "--kernel", path)

    def test_disks(self):
        kernel = bare.build(pathlib.Path(self.folder.name) / "kernel", bare.debug_exit(1))
        for name, content in (("empty", b""), ("odd", b"x" * 513)):
            with self.subTest(disk=name):
                path = self.write(name, content)
                status, errors = self.run_status("--kernel", kernel, "--disk", path, "--debug-exit")
                self.assertIn(status, (1, 3), errors)  # refused, or taken and the guest ran: (1 << 1) | 1
                if status == 1:
                    self.assertIn(str(path), errors)
        path = self.write("huge", b"")
        os.truncate(path, 4 << 40)
        status, errors = self.run_status("--kernel", kernel, "--disk", path, "--debug-exit")
        self.assertEqual(status, 3, errors)


class HostileGuests(Folder):
    """Bare programs instead of a kernel; --debug-exit ends those that survive."""

    def run_code(self, code, engine):
        path = bare.build(pathlib.Path(self.folder.name) / "kernel", code)
        return self.run_status("--engine", engine, "--kernel", path, "--memory", "64M", "--debug-exit", "--no-reboot")

    def test_debug_exit_status(self):
        for engine in ("jit", "interp"):
            for value in (0, 1, 0x21):
                with self.subTest(engine=engine, value=value):
                    status, errors = self.run_code(bare.debug_exit(value), engine)
                    self.assertEqual(status, (value << 1) | 1, errors)

    def test_triple_fault_is_3(self):
        for engine in ("jit", "interp"):
            with self.subTest(engine=engine):
                status, errors = self.run_code(bare.TRIPLE_FAULT, engine)
                self.assertEqual(status, 3, errors)
                self.assertIn("triple fault", errors.lower())

    def test_jump_to_nowhere_is_3(self):
        for engine in ("jit", "interp"):
            with self.subTest(engine=engine):
                status, errors = self.run_code(bare.JUMP_NOWHERE, engine)
                self.assertEqual(status, 3, errors)

    def test_memory_is_what_the_guest_touches(self):
        path = bare.build(pathlib.Path(self.folder.name) / "kernel", bare.TOUCH_100_MIB)
        for engine in ("jit", "interp"):
            with self.subTest(engine=engine), Nacre("run", "--engine", engine, "--kernel", path, "--memory", "512M") as guest:
                guest.expect("!")
                if "asan" not in str(NACRE):
                    self.assertLess(guest.memory_mib(), 100 + 60)
                self.assertGreater(guest.memory_mib(), 100)

    def test_garbage_to_every_port(self):
        for seed, step in ((1, 1), (2, 1), (3, -1), (4, -1)):
            with self.subTest(seed=seed, step=step):
                code = bare.PORT_GARBAGE.replace("SEED", str(seed)).replace("STEP", str(step))
                # The garbage may hit reset, power-off or sleep: any ending is right but a crash or a hang.
                kernel = bare.build(pathlib.Path(self.folder.name) / "kernel", code)
                socket = pathlib.Path(self.folder.name) / "control"
                with Nacre("run", "--net", "none", "--serial", "none", "--engine", "jit", "--kernel", kernel, "--memory",
                           "64M", "--debug-exit", "--no-reboot", "--control", socket) as guest:
                    for _ in range(60):
                        try:
                            guest.process.wait(1)
                            break
                        except subprocess.TimeoutExpired:
                            with ControlSocket(socket) as control:
                                if control.call("vm.info")["state"] == "asleep":
                                    control.call("vm.stop")
                    self.assertIn(guest.wait(60), (0, 3, 0x43), guest.errors)


if __name__ == "__main__":
    main()
