"""Python's ordinary life: classes, dictionaries, strings, JSON, regular expressions, exceptions, generators."""
import collections
import hashlib
import heapq
import json
import re


class Account:
    def __init__(self, name, amount):
        self.name, self.amount = name, amount

    def move(self, amount, other):
        if amount > self.amount:
            raise ValueError(f"{self.name} has only {self.amount}")
        self.amount -= amount
        other.amount += amount


def accounts(rounds):
    people = [Account(f"person {i}", 1000 + i) for i in range(100)]
    refused = 0
    for i in range(rounds):
        try:
            people[i * 7 % 100].move(i * 31 % 900, people[i * 13 % 100])
        except ValueError:
            refused += 1
    return refused, sum(p.amount for p in people)


def words(rounds):
    text = " ".join(f"w{i * i % 977}" for i in range(4000))
    counts = collections.Counter()
    for i in range(rounds):
        counts.update(re.findall(r"w(\d+)", text))
        text = re.sub(r"w(\d)1", r"x\1", text, count=10)
    return counts.most_common(3)


def documents(rounds):
    tree = {"list": [{"id": i, "name": f"name {i}", "tags": ["a", "b", i / 7]} for i in range(300)]}
    for _ in range(rounds):
        tree = json.loads(json.dumps(tree, sort_keys=True))
    return len(json.dumps(tree))


def paths(size):
    best, heap = {}, [(0, 0, 0)]
    while heap:
        cost, x, y = heapq.heappop(heap)
        if (x, y) in best:
            continue
        best[x, y] = cost
        for nx, ny in ((x + 1, y), (x, y + 1), (x - 1, y), (x, y - 1)):
            if 0 <= nx < size and 0 <= ny < size and (nx, ny) not in best:
                heapq.heappush(heap, (cost + (nx * 31 + ny * 17) % 10 + 1, nx, ny))
    return best[size - 1, size - 1]


def primes(limit):
    def numbers():
        sieve = bytearray([1]) * limit
        for i in range(2, limit):
            if sieve[i]:
                yield i
                sieve[i * i::i] = bytes(len(range(i * i, limit, i)))
    return sum(numbers())


result = [accounts(60000), words(25), documents(40), paths(90), primes(200000), pow(3, 1 << 14, (1 << 2203) - 1) % 1000003]
print(result, hashlib.md5(repr(result).encode()).hexdigest())
