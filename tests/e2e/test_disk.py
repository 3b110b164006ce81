"""`nacre disk`, and images that go from qemu-img to Nacre and back: the same content in every variant."""
import json
import os
import pathlib
import random
import subprocess
import tempfile
import unittest

from harness import main

NACRE = os.environ["NACRE"]
SIZE = 6 << 20
VARIANTS = [
    ("compat=0.10", "cluster_size=4096"),
    ("compat=0.10", "cluster_size=2M"),
    ("compat=1.1", "cluster_size=512"),
    ("compat=1.1", "cluster_size=4096", "lazy_refcounts=on"),
    ("compat=1.1", "cluster_size=64k", "extended_l2=on"),
    ("compat=1.1", "cluster_size=16k", "extended_l2=on", "refcount_bits=64"),
    ("compat=1.1", "cluster_size=2M", "extended_l2=on"),
    *[("compat=1.1", f"refcount_bits={bits}") for bits in (1, 2, 4, 8, 16, 32, 64)],
    ("preallocation=metadata",),
    ("preallocation=falloc",),
    ("preallocation=full", "cluster_size=128k"),
]


def run(*words, status=0):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != status:
        raise AssertionError(f"{words}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def nacre(*words, status=0):
    return run(NACRE, "disk", *words, status=status)


def qemu_img(*words, status=0):
    return run("qemu-img", *words, status=status)


class DiskCase(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.random = random.Random(7)
        self.raw = self.folder / "content.raw"
        content = bytearray(SIZE)
        for _ in range(12):
            size = self.random.randrange(512, 300_000)
            at = self.random.randrange(SIZE - size)
            content[at:at + size] = self.random.randbytes(size // 2) + bytes([65]) * (size - size // 2)
        self.raw.write_bytes(content)

    def same(self, image, image_format, content=None):
        """Nacre and qemu-img read the same from an image."""
        back = self.folder / "back.raw"
        back.unlink(missing_ok=True)
        nacre("convert", image, back, "--format", "raw", "--from-format", image_format)
        self.assertEqual(back.read_bytes(), content or self.raw.read_bytes(), image)

    def clean(self, image):
        qemu_img("check", "-q", image)
        nacre("check", image)

    def change(self, image):
        """Writes through Nacre: an overlay of `image` is filled by qemu-io and committed by Nacre."""
        overlay = self.folder / "change.qcow2"
        overlay.unlink(missing_ok=True)
        qemu_img("create", "-q", "-f", "qcow2", "-b", image, "-F", "qcow2", overlay)
        commands = []
        for _ in range(20):
            at, size = self.random.randrange(SIZE // 512 - 200) * 512, self.random.randrange(1, 200) * 512
            commands += ["-c", f"write -P {self.random.randrange(1, 256)} {at} {size}"]
        commands += ["-c", f"write -z 1M 1M", "-c", f"write -z -u 3M 512k", "-c", "discard 4M 300k"]
        run("qemu-io", "-f", "qcow2", *commands, overlay)
        expected = self.folder / "expected.raw"
        qemu_img("convert", "-f", "qcow2", "-O", "raw", overlay, expected)
        nacre("commit", overlay)
        self.clean(image)
        qemu_img("compare", "-q", "-f", "qcow2", "-F", "raw", image, expected)
        self.same(image, "qcow2", expected.read_bytes())


class Exchange(DiskCase):
    def test_variants_of_qemu_img_are_read_and_written(self):
        for number, variant in enumerate(VARIANTS):
            with self.subTest(variant=variant):
                image = self.folder / f"{number}.qcow2"
                qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", ",".join(variant), self.raw, image)
                self.same(image, "qcow2")
                nacre("check", image)
                self.change(image)

    def test_compressed_clusters(self):
        for compression in ("zlib", "zstd"):
            for cluster in ("4096", "64k", "2M"):
                with self.subTest(compression=compression, cluster=cluster):
                    image = self.folder / f"{compression}{cluster}.qcow2"
                    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o",
                             f"compression_type={compression},cluster_size={cluster}", self.raw, image)
                    self.same(image, "qcow2")
                    nacre("check", image)
                    self.change(image)

    def test_internal_snapshots_keep_their_content(self):
        for options in ("cluster_size=4096", "cluster_size=64k,extended_l2=on", "compat=0.10"):
            with self.subTest(options=options):
                image = self.folder / "snapshots.qcow2"
                image.unlink(missing_ok=True)
                qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", options, self.raw, image)
                qemu_img("snapshot", "-c", "before", image)
                info = json.loads(nacre("info", "--json", image))
                self.assertEqual([s["name"] for s in info[0]["snapshots"]], ["before"])
                self.change(image)
                qemu_img("snapshot", "-a", "before", image)
                self.same(image, "qcow2")
                qemu_img("snapshot", "-d", "before", image)
                self.clean(image)

    def test_chains_with_relative_names(self):
        below = self.folder / "below"
        below.mkdir()
        qemu_img("convert", "-f", "raw", "-O", "qcow2", self.raw, below / "base.qcow2")
        nacre("create", self.folder / "middle.qcow2", "--backing", "below/base.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2", self.folder / "top.qcow2", "8M")
        self.same(self.folder / "top.qcow2", "qcow2", self.raw.read_bytes() + bytes(2 << 20))
        info = json.loads(nacre("info", "--json", self.folder / "top.qcow2"))
        self.assertEqual([pathlib.Path(i["file"]).name for i in info], ["top.qcow2", "middle.qcow2", "base.qcow2"])

    def test_images_made_by_nacre(self):
        for number, words in enumerate([(), ("--cluster-size", "4K"), ("--cluster-size", "2M"), ("--extended-l2",),
                                        ("--lazy-refcounts",), ("--compat", "2"), ("--refcount-bits", "1"),
                                        ("--refcount-bits", "64"), ("--preallocation", "metadata"),
                                        ("--preallocation", "full"), ("--cluster-size", "512")]):
            with self.subTest(words=words):
                image = self.folder / f"made{number}.qcow2"
                nacre("convert", self.raw, image, *words)
                self.clean(image)
                qemu_img("compare", "-q", "-f", "qcow2", "-F", "raw", image, self.raw)
                empty = self.folder / f"empty{number}.qcow2"
                nacre("create", empty, "1G", *words[:2 if words and words[0] != "--preallocation" else 0])
                self.clean(empty)
                self.change(image)

    def test_other_formats_are_converted(self):
        for other in ("vmdk", "vdi", "vhdx", "vpc", "qcow"):
            with self.subTest(format=other):
                image = self.folder / f"other.{other}"
                options = ("-o", "force_size=on") if other == "vpc" else ()
                qemu_img("convert", "-f", "raw", "-O", other, *options, self.raw, image)
                target = self.folder / f"{other}.qcow2"
                nacre("convert", image, target, *(("--from-format", "vpc") if other == "vpc" else ()))
                qemu_img("compare", "-q", "-f", "qcow2", "-F", "raw", target, self.raw)


class Command(DiskCase):
    def test_resize(self):
        image = self.folder / "disk.qcow2"
        nacre("convert", self.raw, image, "--cluster-size", "512")
        nacre("resize", image, "+250M")
        self.clean(image)
        self.assertEqual(json.loads(nacre("info", "--json", image))[0]["size_bytes"], SIZE + (250 << 20))
        qemu_img("compare", "-q", "-f", "qcow2", "-F", "raw", image, self.raw)
        nacre("resize", image, "3M", status=1)
        nacre("resize", image, "3M", "--shrink")
        self.clean(image)
        nacre("resize", image, "6M")
        self.same(image, "qcow2", self.raw.read_bytes()[:3 << 20] + bytes(3 << 20))

    def test_an_overlay_that_grows_does_not_show_what_is_below(self):
        qemu_img("convert", "-f", "raw", "-O", "qcow2", self.raw, self.folder / "base.qcow2")
        overlay = self.folder / "overlay.qcow2"
        nacre("create", overlay, "2M", "--backing", "base.qcow2")
        nacre("resize", overlay, "6M")
        self.same(overlay, "qcow2", self.raw.read_bytes()[:2 << 20] + bytes(4 << 20))

    def test_check_tells_leaks_and_corruption_and_mends_them(self):
        image = self.folder / "disk.qcow2"
        nacre("convert", self.raw, image)
        with open(image, "r+b") as file:
            file.seek(2 * 65536 + 2 * 200)  # a cluster behind the end
            file.write(b"\0\1")
        nacre("check", image, status=3)
        nacre("check", "--repair", image)
        with open(image, "r+b") as file:
            file.seek(2 * 65536 + 2 * 5)
            file.write(b"\0\0")
        self.assertEqual(json.loads(nacre("check", "--json", image, status=4))["corruptions"], 1)
        nacre("check", "--repair", image)
        self.clean(image)
        self.same(image, "qcow2")

    def test_nothing_is_overwritten_and_mistakes_are_named(self):
        image = self.folder / "disk.qcow2"
        nacre("create", image, "1M")
        nacre("create", image, "1M", status=1)
        nacre("convert", self.raw, image, status=1)
        self.assertEqual(sorted(p.name for p in self.folder.iterdir()), ["content.raw", "disk.qcow2"])
        nacre("create", self.folder / "x.qcow2", status=1)
        nacre("create", self.folder / "x.qcow2", "1M", "--cluster-size", "3000", status=1)
        nacre("craete", image, status=2)
        nacre("info", status=2)
        nacre("info", image, "--jsn", status=2)
        nacre("info", self.folder / "none", status=1)
        nacre("resize", image, "2M", "--format", "vmdk", status=1)


if __name__ == "__main__":
    main()
