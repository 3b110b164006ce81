"""`nacre export` and `nacre import`: a VM that boots by GRUB from its disk goes into an OVA package, which qemu-img
reads, and comes back; packages in VirtualBox's and VMware's form boot; damaged and hostile ones do no harm."""
import hashlib
import io
import os
import pathlib
import re
import shutil
import subprocess
import tarfile
import tempfile

from grub import make_image, start_linux
from harness import GuestCase, NACRE, Nacre, main


def descriptor(disk, capacity, controller, prefix=""):
    """`controller`: ResourceType and subtype. `prefix`: VMware's "ovf:", or VirtualBox's none."""
    def item(number, kind, body):
        return (f"<{prefix}Item>{body}<rasd:InstanceID>{number}</rasd:InstanceID>"
                f"<rasd:ResourceType>{kind}</rasd:ResourceType></{prefix}Item>")
    items = (item(1, 3, "<rasd:VirtualQuantity>1</rasd:VirtualQuantity>") +
             item(2, 4, "<rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits>"
                        "<rasd:VirtualQuantity>256</rasd:VirtualQuantity>") +
             item(3, controller[0], f"<rasd:ResourceSubType>{controller[1]}</rasd:ResourceSubType>") +
             item(4, 17, "<rasd:AddressOnParent>0</rasd:AddressOnParent>"
                         "<rasd:HostResource>ovf:/disk/d1</rasd:HostResource><rasd:Parent>3</rasd:Parent>"))
    tags = {name: prefix + name for name in
            "Envelope References File DiskSection Info Disk VirtualSystem VirtualHardwareSection Name".split()}
    return f"""<?xml version="1.0"?>
<{tags['Envelope']} xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
<{tags['References']}><{tags['File']} ovf:href="{disk}" ovf:id="f1"/></{tags['References']}>
<{tags['DiskSection']}><{tags['Info']}>x</{tags['Info']}>
<{tags['Disk']} ovf:capacity="{capacity}" ovf:diskId="d1" ovf:fileRef="f1"/></{tags['DiskSection']}>
<{tags['VirtualSystem']} ovf:id="vm 1"><{tags['Info']}>x</{tags['Info']}>
<{tags['VirtualHardwareSection']}><{tags['Info']}>x</{tags['Info']}>{items}</{tags['VirtualHardwareSection']}>
</{tags['VirtualSystem']}></{tags['Envelope']}>"""


class Exchange(GuestCase):
    @classmethod
    def setUpClass(cls):
        cls.shared = tempfile.TemporaryDirectory()
        cls.image = make_image(cls.shared.name)

    @classmethod
    def tearDownClass(cls):
        cls.shared.cleanup()

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.home = self.folder / "home"
        os.environ["NACRE_HOME"] = str(self.home)
        self.addCleanup(os.environ.pop, "NACRE_HOME")

    def nacre(self, *words, status=0):
        done = subprocess.run([NACRE, *map(str, words)], capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, status, f"{words}\n{done.stdout}{done.stderr}")
        return done.stdout if status == 0 else done.stderr

    def create(self):
        self.nacre("create", "a", "--firmware", "bios", "--disk", self.image, "--memory", "256M", "--net",
                   "user,model=e1000")

    def boots(self, name):
        with Nacre("run", name, "--timeout", "200") as guest:
            start_linux(guest, 150)
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)

    def package(self, text, disk, name="vm-disk1.vmdk", manifest=True, algorithm="sha256"):
        """An OVA file; `disk`: a path."""
        ova = self.folder / "package.ova"
        disk_bytes = pathlib.Path(disk).read_bytes()
        sums = "".join(f"{algorithm.upper()}({file})= {hashlib.new(algorithm, content).hexdigest()}\n"
                       for file, content in (("vm.ovf", text.encode()), (name, disk_bytes)))
        with tarfile.open(ova, "w", format=tarfile.USTAR_FORMAT) as tar:
            for file, content in (("vm.ovf", text.encode()), *([("vm.mf", sums.encode())] if manifest else []),
                                  (name, disk_bytes)):
                info = tarfile.TarInfo(file)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return ova

    def vmdk(self, subformat="streamOptimized"):
        path = self.folder / f"{subformat}.vmdk"
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", self.image,
                        path], check=True)
        return path

    def test_there_and_back(self):
        self.create()
        ova = self.folder / "a.ova"
        self.assertEqual("", self.nacre("export", "a", ova))
        with tarfile.open(ova) as tar:
            names = tar.getnames()
            self.assertEqual(names, ["a.ovf", "a-disk1.vmdk", "a.mf"])
            tar.extractall(self.folder, filter="data")
        sums = (self.folder / "a.mf").read_text()
        for name in names[:2]:
            digest = hashlib.sha256((self.folder / name).read_bytes()).hexdigest()
            self.assertIn(f"SHA256({name})= {digest}\n", sums)
        subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "vmdk", self.image, self.folder / "a-disk1.vmdk"],
                       check=True, capture_output=True)
        size = re.search(r'ovf:size="(\d+)"', (self.folder / "a.ovf").read_text()).group(1)
        self.assertEqual(int(size), (self.folder / "a-disk1.vmdk").stat().st_size)
        self.assertIn("is there already", self.nacre("export", "a", ova, status=1))
        self.assertEqual("b\n", self.nacre("import", ova, "b"))
        self.boots("b")
        # The descriptor with its files beside it is a package too.
        self.assertEqual("c\n", self.nacre("import", self.folder / "a.ovf", "c"))

    def test_directories(self):
        self.create()
        self.nacre("clone", "a", "b")
        self.nacre("export", "b", "--dir", self.folder / "b")
        self.assertIn("is there already", self.nacre("export", "b", "--dir", self.folder / "b", status=1))
        shutil.rmtree(self.home)
        info = self.nacre("disk", "info", self.folder / "b/disks/disk0.qcow2")
        self.assertNotIn("acking", info)
        self.assertEqual("b\n", self.nacre("import", self.folder / "b"))
        self.boots("b")

    def test_virtualboxs_form(self):
        disk = self.vmdk()
        ova = self.package(descriptor("vm-disk1.vmdk", 64 << 20, (20, "AHCI")), disk, algorithm="sha1")
        self.assertEqual("vm-1\n", self.nacre("import", ova))
        self.boots("vm-1")

    def test_vmwares_form(self):
        disk = self.vmdk()
        ova = self.package(descriptor("vm-disk1.vmdk", 64 << 20, (6, "lsilogic"), "ovf:"), disk)
        self.assertEqual("w\n", self.nacre("import", ova, "w", "--bus", "ide", "--memory", "300M"))
        self.assertIn("memory = \"300M\"", (self.home / "vms/w/vm.toml").read_text())
        self.boots("w")

    def test_disks_of_others(self):
        for number, (format_, options) in enumerate((("vmdk", ""), ("vdi", ""), ("vhdx", ""), ("vpc", ""), ("qcow2", ""),
                                                     ("raw", ""), ("vmdk", "subformat=streamOptimized"))):
            disk = self.folder / f"{number}.{format_}"
            subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", format_, *(["-o", options] if options else []),
                            self.image, disk], check=True)
            name = self.nacre("import", disk, f"vm{number}").strip()
            subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", self.image,
                            self.home / f"vms/{name}/disks/disk0.qcow2"], check=True, capture_output=True)
        self.boots("vm1")

    def test_what_is_wrong_is_said(self):
        disk = self.vmdk()
        text = descriptor("vm-disk1.vmdk", 64 << 20, (20, "AHCI"))
        good = self.package(text, disk).read_bytes()
        broken = self.folder / "broken.ova"

        def fails(content, message):
            broken.write_bytes(content)
            self.assertIn(message, self.nacre("import", broken, "x", status=1))
            self.assertEqual([], list((self.home / "vms").glob("*")) if (self.home / "vms").exists() else [])
        fails(good[:len(good) // 2], "cut off")
        middle = len(good) // 2
        fails(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1:], "not what the manifest's sums say: vm-disk1.vmdk")
        fails(b"nothing", "broken.ova")
        fails(self.package(text.replace("vm-disk1", "../vm-disk1"), disk).read_bytes(), "there is no file")
        # An image that names files of the host.
        secret = self.folder / "secret"
        secret.write_bytes(b"top secret" * 1000)
        hostile = self.folder / "hostile.vmdk"
        hostile.write_text(f'# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n'
                           f'createType="monolithicFlat"\n\nRW 8 FLAT "{secret}" 0\n')
        fails(self.package(text, hostile).read_bytes(), "a VMDK image in several files")
        self.assertIn("names a file of another folder", self.nacre("import", hostile, "x", status=1))
        overlay = self.folder / "overlay.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", overlay], check=True)
        fails(self.package(text, overlay).read_bytes(), "stands on another image")
        self.nacre("create", "direct")
        self.assertIn("--dir", self.nacre("export", "direct", self.folder / "direct.ova", status=1))
        self.assertFalse((self.folder / "direct.ova").exists())

    def test_a_running_vm_stays_as_it_is(self):
        self.nacre("create", "a")
        self.nacre("start", "a")
        self.addCleanup(lambda: self.nacre("kill", "a"))
        self.assertIn("`nacre stop a` first", self.nacre("export", "a", "--dir", self.folder / "x", status=1))
        self.assertFalse((self.folder / "x").exists())


if __name__ == "__main__":
    main()
