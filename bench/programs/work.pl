# Perl's ordinary life: lines, regular expressions, hashes, sorting, string building.
use strict;
use warnings;

my ($random, @lines) = (42);
sub number { $random = ($random * 1103515245 + 12345) & 0x7fffffff; return $random >> 8; }
for my $i (1 .. 12000) {
    push @lines, sprintf "%03d.%d.example.org - user%d [%02d/Nov/2026] \"GET /page/%d?x=%d\" %d %d", number() % 256, $i % 97,
        number() % 50, 1 + $i % 28, number() % 400, $i, (200, 200, 304, 404)[number() % 4], number() % 90000;
}
my (%hits, %bytes, %status, $wrong);
for my $round (1 .. 3) {
    for (@lines) {
        if (m{^(\S+) - (\w+) \[(\d+)/(\w+)/(\d+)\] "GET (/[^?"]*)\?x=(\d+)" (\d{3}) (\d+)$}) {
            $hits{$6}++;
            $bytes{$2} += $9;
            $status{$8}{$3}++;
        } else {
            $wrong++;
        }
    }
}
my @best = (sort { $hits{$b} <=> $hits{$a} || $a cmp $b } keys %hits)[0 .. 4];
print "$_ $hits{$_}\n" for @best;
print join(",", map { "$_=$bytes{$_}" } (sort keys %bytes)[0 .. 4]), "\n";
my $text = join "\n", @lines;
my $changed = ($text =~ s/user(\d+)/"U" . ($1 * 3)/ge);
my %letters;
$letters{$_}++ for split //, substr $text, 0, 200000;
print "$changed ", length $text, " ", scalar(keys %letters), " $status{404}{'07'}\n";
