"""A small guest with the real qemu-guest-agent, and the commands that ask it."""
import os
import subprocess

from harness import GUESTS, NACRE, Nacre, PROMPT, boot_arguments


def agent_initrd():
    path = GUESTS / "agent/initrd.img"
    if not path.exists():
        raise AssertionError(f"{path} is missing: run scripts/prepare-guest-agent")
    return path


def nacre(*arguments, expected=0, data=None, seconds=300, home=None):
    """Runs a command; its standard output as bytes. `expected`: the exit status."""
    environment = {**os.environ, **({"NACRE_HOME": str(home)} if home else {})}
    stdin = {"input": data} if data is not None else {"stdin": subprocess.DEVNULL}
    done = subprocess.run([str(NACRE), *map(str, arguments)], capture_output=True, timeout=seconds, check=False,
                          env=environment, **stdin)
    if done.returncode != expected:
        raise AssertionError(f"{arguments}: status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done


class AgentGuest(Nacre):
    """Boots it with a control socket; the agent runs when this returns, unless told otherwise."""

    def __init__(self, control, *arguments, engine="jit", start=True):
        super().__init__("run", *boot_arguments("cloud-amd64", "nacre.net=off"), "--initrd", agent_initrd(), "--control",
                         control, "--engine", engine, "--timeout", "900", *arguments)
        self.expect(PROMPT, 300)
        if start:
            self.start_agent()
            nacre("exec", "--wait", "300", control, "true")

    def start_agent(self):
        self.command_output("qemu-ga -m virtio-serial -p /dev/vport*p1 -f /tmp/qga.pid -t /tmp -d; echo")
