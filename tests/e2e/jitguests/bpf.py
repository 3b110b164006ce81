"""The kernel's BPF compiler: random programs by bpf(2), socket filters and seccomp filters, against a model of them.

Run by tests/e2e/test_long_jitguests.py inside the guest, with the compiler on, hardened (constants blinded) and off.
"""
import ctypes
import os
import pathlib
import random
import socket
import struct
import sys
import time

MASK = (1 << 64) - 1
LIBC = ctypes.CDLL(None, use_errno=True)
SYS_BPF, SYS_UNAME, SYS_GETPPID = 321, 63, 110
ALU64, ALU32, MOV, EXIT = 0x07, 0x04, 0xB0, 0x95
OPERATIONS = {0x00: "add", 0x10: "sub", 0x20: "mul", 0x30: "div", 0x40: "or", 0x50: "and", 0x60: "lsh", 0x70: "rsh", 0x90: "mod",
              0xA0: "xor", 0xB0: "mov", 0xC0: "arsh"}


def signed(value, bits):
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def calculate(name, a, b, bits):
    mask = (1 << bits) - 1
    a, b = a & mask, b & mask
    shift = b & (bits - 1)
    value = {"add": lambda: a + b, "sub": lambda: a - b, "mul": lambda: a * b, "div": lambda: a // b if b else 0, "or": lambda: a | b,
             "and": lambda: a & b, "lsh": lambda: a << shift, "rsh": lambda: a >> shift, "mod": lambda: a % b if b else a,
             "xor": lambda: a ^ b, "mov": lambda: b, "arsh": lambda: signed(a, bits) >> shift}[name]()
    return value & mask


def instruction(code, to, source, immediate):
    return struct.pack("<BBhi", code, to | source << 4, 0, immediate)


def random_program(rng):
    """(program, what it returns): arithmetic over eight registers, 64 and 32 bits wide."""
    registers, out = [], b""
    for to in range(8):
        value = rng.getrandbits(64)
        out += struct.pack("<BBhi", 0x18, to, 0, signed(value, 32)) + struct.pack("<BBhi", 0, 0, 0, signed(value >> 32, 32))
        registers.append(value)
    for _ in range(rng.randrange(20, 150)):
        operation, bits, to, source = rng.choice(list(OPERATIONS)), rng.choice((64, 32)), rng.randrange(8), rng.randrange(8)
        name, group = OPERATIONS[operation], ALU64 if bits == 64 else ALU32
        if rng.random() < 0.5:
            out += instruction(operation | group | 0x08, to, source, 0)
            if name in ("lsh", "rsh", "arsh"):
                pass  # by register: the model masks the count, as the compilers do
            registers[to] = calculate(name, registers[to], registers[source], bits)
        else:
            immediate = rng.randrange(1, bits) if name in ("lsh", "rsh", "arsh") else signed(rng.getrandbits(32) | 1, 32)
            out += instruction(operation | group, to, 0, immediate)
            registers[to] = calculate(name, registers[to], immediate & MASK, bits)
    for other in range(1, 8):  # r0 = the exclusive or of all, folded to 32 bits
        out += instruction(0xA0 | ALU64 | 0x08, 0, other, 0)
        registers[0] ^= registers[other]
    out += instruction(MOV | ALU64 | 0x08, 1, 0, 0) + instruction(0x70 | ALU64, 1, 0, 32) + instruction(0xA0 | ALU64 | 0x08, 0, 1, 0)
    return out + instruction(EXIT, 0, 0, 0), (registers[0] ^ registers[0] >> 32) & 0xFFFFFFFF


def bpf(command, attribute):
    buffer = ctypes.create_string_buffer(attribute.ljust(128, b"\0"), 128)
    result = LIBC.syscall(SYS_BPF, command, buffer, 128)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf command {command}")
    return result, buffer.raw


def run_program(code):
    text, text_license = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    fd, _ = bpf(5, struct.pack("<IIQQ", 1, len(code) // 8, ctypes.addressof(text), ctypes.addressof(text_license)))
    try:
        packet = ctypes.create_string_buffer(64)
        _, answer = bpf(10, struct.pack("<IIIIQQI", fd, 0, 64, 0, ctypes.addressof(packet), 0, 3))
        return struct.unpack_from("<I", answer, 4)[0]
    finally:
        os.close(fd)


def check_programs(count, seed):
    rng = random.Random(seed)
    for number in range(count):
        code, expected = random_program(rng)
        got = run_program(code)
        if got != expected:
            sys.exit(f"FAILED program {number} of seed {seed}: {got:#x}, not {expected:#x}\n{code.hex()}")


def attach(sock, instructions):
    packed = b"".join(struct.pack("<HBBI", *i) for i in instructions)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    sock.setsockopt(socket.SOL_SOCKET, 26, struct.pack("<HxxxxxxQ", len(instructions), ctypes.addressof(buffer)))


def check_filters(count, seed):
    """Datagrams whose byte at an offset, after a random calculation, has a certain bit: the others are thrown away."""
    rng = random.Random(seed)
    for number in range(count):
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with left, right:
            right.setblocking(False)
            offset, factor, term, bit = rng.randrange(8), rng.randrange(1, 1 << 31), rng.getrandbits(32), 1 << rng.randrange(31)
            attach(right, [(0x30, 0, 0, offset), (0x24, 0, 0, factor), (0x04, 0, 0, term), (0x45, 0, 1, bit),
                           (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0)])
            for _ in range(8):
                data = rng.randbytes(8)
                left.send(data)
                kept = bool((data[offset] * factor + term) & 0xFFFFFFFF & bit)
                try:
                    got = right.recv(100) == data
                except BlockingIOError:
                    got = False
                if got != kept:
                    sys.exit(f"FAILED filter {number} of seed {seed}: {got}, not {kept}")


def check_seccomp(count):
    """A child forbids itself one system call after the other, each with its own error number."""
    for number in range(count):
        child = os.fork()
        if child == 0:
            wanted = 40 + number % 50
            code = b"".join(struct.pack("<HBBI", *i) for i in [
                (0x20, 0, 0, 0), (0x15, 0, 1, SYS_GETPPID), (0x06, 0, 0, 0x00050000 | wanted), (0x06, 0, 0, 0x7FFF0000)])
            buffer = ctypes.create_string_buffer(code, len(code))
            program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", 4, ctypes.addressof(buffer)))
            if LIBC.prctl(38, 1, 0, 0, 0) or LIBC.prctl(22, 2, program):
                os._exit(1)
            good = LIBC.syscall(SYS_GETPPID) == -1 and ctypes.get_errno() == wanted and LIBC.syscall(39) == os.getpid()
            os._exit(0 if good else 2)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
            sys.exit(f"FAILED seccomp filter {number}")


def main():
    harden, enable = pathlib.Path("/proc/sys/net/core/bpf_jit_harden"), pathlib.Path("/proc/sys/net/core/bpf_jit_enable")
    for label, on, hard in (("compiled", 1, 0), ("hardened", 1, 2), ("interpreted", 0, 0), ("compiled again", 1, 0)):
        enable.write_text(f"{on}\n")
        harden.write_text(f"{hard}\n")
        start = time.monotonic()
        check_programs(150, 11 + hard)
        middle = time.monotonic()
        check_filters(100, 5)
        check_seccomp(40)
        print(f"time bpf {label}: programs {(middle - start) * 1000:.0f} ms, filters {(time.monotonic() - middle) * 1000:.0f} ms")
        print(f"ok bpf {label}", flush=True)


main()
