"""A terminal as standard input: raw while the guest runs, Ctrl-] leaves, the terminal is as before on every way out."""
import os
import signal
import termios

from harness import GuestCase, LEAVE, Nacre, PROMPT, main


class Terminal(GuestCase):
    def check_restored(self, guest):
        self.assertEqual(termios.tcgetattr(guest.slave), guest.before)

    def test_leave_key(self):
        with Nacre("run", terminal=True) as guest:
            guest.expect(PROMPT)
            self.assertFalse(termios.tcgetattr(guest.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG))
            self.assertIn("tty", guest.command_output("tty"))
            guest.send(LEAVE)
            guest.wait(20)
            self.assertGreaterEqual(guest.process.returncode, 0, guest.errors)
            self.check_restored(guest)

    def test_interrupt_key_goes_to_the_guest(self):
        with Nacre("run", terminal=True) as guest:
            guest.expect(PROMPT)
            guest.send("echo sta''rted; sleep 1000\n")
            guest.expect("started")  # the shell has given the terminal its usual mode for the command
            guest.send(b"\x03")
            guest.expect(PROMPT)
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)
            self.check_restored(guest)

    def test_terminated_from_outside(self):
        with Nacre("run", terminal=True) as guest:
            guest.expect(PROMPT)
            os.kill(guest.process.pid, signal.SIGTERM)
            guest.wait(20)
            self.check_restored(guest)


if __name__ == "__main__":
    main()
