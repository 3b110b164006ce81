"""The tour of README.md as it stands there, with Debian."""
from harness import Folder, main
from tour import Tour


class DebianTour(Folder):
    def test_as_it_stands_in_readme(self):
        tour = Tour(self.folder.name)
        self.addCleanup(tour.clear)
        tour.take(self)
        self.assertEqual(list((tour.home / "vms").iterdir()), [])


if __name__ == "__main__":
    main()
