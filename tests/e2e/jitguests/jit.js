// What makes V8 write, patch and throw away machine code: run by tests/e2e/test_long_jitguests.py, which knows the output.
'use strict';
const {Worker, isMainThread, workerData} = require('worker_threads');

// Functions made of text: each is parsed, run cold, some get hot.
function made(count) {
  let sum = 0;
  for (let i = 0; i < count; i++) {
    const f = new Function('a', 'b', `let s = ${i}; for (let i = 0; i < 300; i++) s = (s * 31 + a * i + b) | 0; return s;`);
    for (let k = 0; k < 8; k++) sum = (sum + f(k, i)) | 0;
  }
  return sum;
}

// Speculation that fails: the same function sees integers, doubles, strings, other shapes.
function add(a, b) { return a + b; }
function area(shape) { return shape.w * shape.h; }
function deoptimize(rounds) {
  let numbers = 0, text = 0;
  for (let r = 0; r < rounds; r++) {
    for (let i = 0; i < 4000; i++) numbers += add(i, r);
    for (let i = 0; i < 4000; i++) numbers += add(i * 0.5, 0x7fffffff);
    for (let i = 0; i < 400; i++) text += add('x', i).length;
    for (let i = 0; i < 3000; i++) {
      const shapes = [{w: i, h: 2}, {h: 3, w: i}, {w: i, h: 1, [`k${r}`]: 1}, {w: 1.5, h: i}];
      numbers += area(shapes[(i + r) % 4]);
    }
  }
  return [numbers, text];
}

function text(rounds) {
  const lines = Array.from({length: 500}, (_, i) => `2026-11-${10 + i % 20} user${i % 37} "GET /p/${i}?q=${i * 7}" ${200 + i % 5}`);
  let sum = 0;
  for (let r = 0; r < rounds; r++) {
    const pattern = new RegExp(`^(\\d+)-(\\d+)-(\\d+) user(\\d*${r % 10}) "GET ([^?]+)\\?q=(\\d+)" (20[0-4])$`);
    for (const line of lines) {
      const m = pattern.exec(line);
      if (m) sum += Number(m[6]) + m[5].length;
    }
    const back = JSON.parse(JSON.stringify(lines.map((line, i) => ({line, i, half: i / 2, list: [i, [r]]}))));
    back.sort((a, b) => (a.i * 7919) % 503 - (b.i * 7919) % 503 || a.i - b.i);
    sum += back[r].i + back[499 - r].half;
  }
  return sum;
}

function* numbers(limit) { for (let i = 0; i < limit; i++) yield i; }
function closures(rounds) {
  let sum = 0;
  for (let r = 0; r < rounds; r++) {
    const steps = Array.from({length: 20}, (_, k) => x => (x * (k + 3) + r) % 100003);
    for (const n of numbers(500)) sum += steps.reduce((x, f) => f(x), n);
    try { (function deep(n) { return deep(n + 1) + 1; })(0); } catch (e) { sum += e instanceof RangeError ? 1 : 1000000; }
    try { null.x; } catch (e) { sum += e instanceof TypeError ? 1 : 1000000; }
  }
  return sum;
}

// (func (export "f") (param i32) (result i32)): the sum of i * i for i below the parameter; "g": i32.load of the parameter.
const wasm = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 6, 1, 96, 1, 127, 1, 127, 3, 3, 2, 0, 0, 5, 3, 1, 0, 1, 7, 9, 2, 1, 102, 0, 0, 1, 103, 0, 1,
  10, 41, 2, 31, 1, 2, 127, 3, 64, 32, 2, 32, 1, 32, 1, 108, 106, 33, 2, 32, 1, 65, 1, 106, 34, 1, 32, 0, 72, 13, 0, 11, 32, 2, 11,
  7, 0, 32, 0, 40, 2, 0, 11]);
async function webassembly(count) {
  let sum = 0, traps = 0;
  for (let i = 0; i < count; i++) {
    const {instance} = await WebAssembly.instantiate(wasm);
    sum = (sum + instance.exports.f(20000 + i) + instance.exports.g(i * 4)) | 0;
    try { instance.exports.g(65536 + i); } catch (e) { traps += e instanceof WebAssembly.RuntimeError; }
  }
  return [sum, traps];
}

async function workers(count) {
  const memory = new SharedArrayBuffer(64), cells = new Int32Array(memory);
  const all = Array.from({length: count}, () => new Promise((done, failed) => {
    const worker = new Worker(__filename, {workerData: memory});
    worker.on('exit', done);
    worker.on('error', failed);
  }));
  await Promise.all(all);
  return Array.from(cells);
}

async function main() {
  for (let round = 0; round < Number(process.argv[2] || 5); round++) {
    const start = process.hrtime.bigint();
    const result = [made(400), deoptimize(20), text(20), closures(30), await webassembly(30), await workers(3)];
    console.log(`node ${JSON.stringify(result)}`);
    console.log(`time node round ${round} ${(process.hrtime.bigint() - start) / 1000000n} ms`);
  }
}

if (!isMainThread) {
  const cells = new Int32Array(workerData);
  for (let i = 0; i < 20000; i++) Atomics.add(cells, i % 4, i & 7);
  Atomics.add(cells, 7, 1);
  Atomics.notify(cells, 7);
} else {
  main();
}
