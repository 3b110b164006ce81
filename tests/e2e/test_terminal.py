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
            # The shell drops the key between its echo and the start of sleep: it is pressed until the prompt is back, far
            # earlier than sleep would end by itself.
            for _ in range(60):
                guest.send(b"\x03")
                if guest.seen(PROMPT, 1):
                    break
            else:
                self.fail(f"Ctrl-C did not stop the guest's command\n{guest.text()}")
            guest.expect(PROMPT, 0)
            self.assertIsNone(guest.process.poll())  # it was the guest's command that ended, not the machine
            guest.send("echo the sh''ell\n")  # after what a key too many left: an empty line and a prompt
            guest.expect("the shell")
            guest.expect(PROMPT)
            self.assertEqual(guest.command_output("jobs; pidof sleep"), "")
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
