"""100 MB over TCP, byte-identical."""
from test_network import Network as Quick
from harness import main


class LargeTransfer(Quick):
    SIZE = 100 * 1000 * 1000
    SECONDS = 600
    test_ping_the_gateway = test_port_forward_answers = test_port_in_use_is_told = test_no_network = None


del Quick

if __name__ == "__main__":
    main()
