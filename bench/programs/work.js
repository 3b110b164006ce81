// Node.js's ordinary life: objects, closures, JSON, regular expressions, sorting, maps, typed arrays, exceptions.
'use strict';
const crypto = require('crypto');

let seed = 12345;
const random = () => (seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff) / 0x80000000;
const people = Array.from({length: 4000}, (_, i) => ({id: i, name: `name${Math.floor(random() * 1e6)}`, age: 20 + i % 60}));

function documents(rounds) {
  let tree = people.slice(0, 500), length = 0;
  for (let i = 0; i < rounds; i++) {
    const text = JSON.stringify(tree);
    length += text.length;
    tree = JSON.parse(text);
  }
  return length;
}

function words(rounds) {
  const text = people.map(p => `${p.name}@example${p.age}.org`).join(' ');
  let count = 0;
  for (let i = 0; i < rounds; i++) {
    for (const m of text.matchAll(/name(\d+)5@example(\d+)\.org/g)) count += m[1].length + Number(m[2]);
  }
  return count;
}

class Shape { area() { throw new Error('no area'); } }
class Square extends Shape { constructor(a) { super(); this.a = a; } area() { return this.a * this.a; } }
class Circle extends Shape { constructor(r) { super(); this.r = r; } area() { return 3 * this.r * this.r; } }

function shapes(rounds) {
  let sum = 0, thrown = 0;
  for (let i = 0; i < rounds; i++) {
    const shape = i % 50 === 0 ? new Shape() : i % 2 ? new Square(i % 10) : new Circle(i % 7);
    try { sum += shape.area(); } catch (e) { thrown++; }
  }
  return [sum, thrown];
}

function sieve(limit) {
  const composite = new Uint8Array(limit);
  let sum = 0;
  for (let i = 2; i < limit; i++) {
    if (composite[i]) continue;
    sum += i;
    for (let j = i * i; j < limit; j += i) composite[j] = 1;
  }
  return sum;
}

const sorted = [...people].sort((a, b) => a.age - b.age || a.name.localeCompare(b.name)).map(p => p.id);
const groups = new Map();
for (const p of people) groups.set(p.age, (groups.get(p.age) || []).concat(p.name));
const result = [documents(60), words(40), shapes(200000), sieve(1000000), sorted.slice(0, 5), groups.get(33).length];
console.log(JSON.stringify(result), crypto.createHash('sha256').update(JSON.stringify(sorted)).digest('hex'));
