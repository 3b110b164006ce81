"""Xen with a paravirtual Linux dom0 by multiboot: a kernel in ring 3 of a hypervisor that writes page tables, descriptor
tables and traps for it."""
from harness import ENGINE, GuestCase, Nacre, PROMPT, boot_arguments, guest_file, main

SECONDS = 300


class Xen(GuestCase):
    def test_dom0_to_its_shell_and_off(self):
        linux = dict(zip(*[iter(boot_arguments("amd64"))] * 2))
        with Nacre("run", "--engine", ENGINE, "--memory", "768M", "--balloon", "off", "--kernel", guest_file("xen", "xen"),
                   "--initrd", f"{linux['--kernel']} console=hvc0 quiet panic=-1", "--initrd", linux["--initrd"],
                   "--append", "com1=115200,8n1 console=com1 dom0_mem=400M") as guest:
            guest.expect("Xen version 4.17", SECONDS)
            guest.expect("Dom0 kernel: 64-bit, PAE", SECONDS)
            guest.expect(PROMPT, SECONDS)
            self.assertEqual(guest.command_output("cat /sys/hypervisor/type").split(), ["xen"])
            self.assertIn("Hypervisor detected: Xen PV", guest.command_output("dmesg"))
            self.assertIn("inet 10.0.2.", guest.command_output("ip -4 addr show eth0"))
            forks = "i=0; while [ $i -lt 200 ]; do busybox true || break; i=$((i+1)); done; echo $i"
            self.assertEqual(guest.command_output(forks, SECONDS).split()[-1], "200")
            guest.send("poweroff -f\n")
            guest.expect("Entering ACPI S5 state", SECONDS)
            self.check_exit(guest, 0)


if __name__ == "__main__":
    main()
